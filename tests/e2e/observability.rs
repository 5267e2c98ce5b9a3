//! The rules and the dashboard of `observability/`, against promtool, a real Prometheus and a running balancer.

use std::collections::BTreeSet;
use std::fs::read_to_string;
use std::path::Path;
use std::process::Command;

use lab::http::Request;
use lab::{App, Balancer, Etcd, PATIENCE, Process, SOURCE, Scratch, bin, free_port, medium, until, write};
use serde_json::Value;

/// Panels that have no data while all is well.
const EMPTY_IF_WELL: [&str; 5] = [
    "Upstreams without requests",
    "Services without a server",
    "Services that queue",
    "Servers that are not up",
    "Upstreams that are not healthy",
];

fn read(file: &str) -> String {
    read_to_string(Path::new(SOURCE).join(file)).unwrap()
}

/// Runs promtool in `observability/`.
///
/// # Panics
/// If promtool is missing, fails or warns.
#[track_caller]
fn promtool(arguments: &[&str], stdin: Option<&Path>) -> String {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(Path::new(SOURCE).join("observability"));
    if let Some(file) = stdin {
        command.stdin(std::fs::File::open(file).unwrap());
    }
    let output = command.output().expect("promtool, of Debian's package prometheus");
    let (said, complaints) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && complaints.is_empty(), "promtool {arguments:?}: {said}{complaints}");
    said.into_owned()
}

/// A dashboard's query, and the title of its panel.
struct Query {
    panel: String,
    expression: String,
}

/// The queries of all panels and variables, with values in place of Grafana's variables.
fn dashboard_queries() -> Vec<Query> {
    let dashboard: Value = serde_json::from_str(&read("observability/dashboard.json")).unwrap();
    let fill = |expression: &str| {
        let values = [("$balancer", ".+"), ("$service", "(http|tcp)-.+"), ("$top", "10"), ("$__rate_interval", "10s")];
        let filled = values.iter().fold(expression.to_owned(), |text, (name, value)| text.replace(name, value));
        // `$1` belongs to label_replace.
        assert!(!filled.replace("\"$1\"", "").contains('$'), "{filled}");
        filled
    };
    let panels = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| {
        let targets = panel["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
        let title = panel["title"].as_str().unwrap();
        targets.iter().map(move |target| (title.to_owned(), target["expr"].as_str().unwrap().to_owned()))
    });
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter().filter_map(|variable| {
        let query = variable["query"]["query"].as_str()?;
        let selector = query.strip_prefix("label_values(")?.rsplit_once(',')?.0;
        Some((variable["name"].as_str().unwrap().to_owned(), selector.to_owned()))
    });
    panels.chain(variables).map(|(panel, expression)| Query { panel, expression: fill(&expression) }).collect()
}

/// The metrics that an expression names. Recorded ones have a colon.
fn named_metrics(expression: &str) -> BTreeSet<&str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let prefixes = ["confgen_", "announcer_", "haproxy_", "process_"];
    let words = expression.split(|c| !is_word(c)).filter(|word| prefixes.iter().any(|it| word.starts_with(it)));
    words.collect()
}

/// The names of the samples in a scrape.
fn sample_names(scrape: &str) -> BTreeSet<String> {
    let samples = scrape.lines().filter(|line| !line.starts_with('#'));
    samples.filter_map(|line| Some(line.split(['{', ' ']).next()?.to_owned())).collect()
}

/// The alerts' names with the page and section that they lead to.
fn alerts() -> Vec<(String, String)> {
    let text = read("observability/alerts.yml");
    let mut names = text.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let runbooks = text.lines().filter_map(|line| line.trim().strip_prefix("runbook: "));
    let alerts: Vec<_> = runbooks.map(|runbook| (names.next().unwrap().to_owned(), runbook.to_owned())).collect();
    assert!(names.next().is_none() && alerts.len() > 30, "{alerts:?}");
    alerts
}

#[test]
fn promtool_finds_nothing_in_the_rules_and_each_alert_fires() {
    promtool(&["check", "rules", "alerts.yml", "recording.yml"], None);
    promtool(&["check", "config", "--syntax-only", "prometheus.yml"], None);
    promtool(&["test", "rules", "tests.yml"], None);
    let tests = read("observability/tests.yml");
    for (name, _) in alerts() {
        let quiet = format!("alertname: {name}, eval_time: ");
        let fires = format!("alertname: {name}\n");
        assert!(tests.contains(&quiet) && tests.contains(&fires), "{name} has no test of both");
    }
}

#[test]
fn each_alert_has_a_section_that_says_what_to_do() {
    let page = read("docs/alerts.md");
    let sections: Vec<(&str, &str)> =
        page.split("\n### ").skip(1).map(|section| section.split_once('\n').unwrap()).collect();
    let alerts = alerts();
    let headings: Vec<&str> = sections.iter().map(|(heading, _)| *heading).collect();
    let names: Vec<&str> = alerts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(headings, names);
    for ((heading, text), (_, runbook)) in sections.iter().zip(&alerts) {
        assert_eq!(*runbook, format!("docs/alerts.md#{}", heading.to_lowercase()));
        let parts = ["**What it means.**", "**Harm.**", "**Look closer.**", "**What to do.**"];
        let starts: Vec<_> = parts.iter().map(|part| text.find(part)).collect();
        assert!(starts.iter().all(Option::is_some) && starts.is_sorted(), "{heading}: {starts:?}");
    }
}

/// A balancer, an announcer with a copy, and an agent of containers, with their admin ports.
struct Scene {
    balancer: Balancer,
    announcer: u16,
    agent: u16,
    folder: Scratch,
    _running: (App, Process, Etcd),
}

impl Scene {
    fn start() -> Self {
        let etcd = Etcd::start();
        let balancer = Balancer::start(&etcd);
        let (announcer, agent, folder) = (free_port(), free_port(), Scratch::new());
        let admin = format!("127.0.0.1:{announcer}");
        let service = ["--service", "shop", "--domain", "shop.test", "--color", "blue", "--replicas", "1"];
        let app = App::announced("shop-1", &etcd, &[&service[..], &["--check", "tcp", "--admin", &admin]].concat());
        let mut command = Command::new(bin("announcer"));
        // No engine answers there. The metrics are the same.
        command.args(["containers", "--engine", "unix:///no/such.sock", "--host-address", "10.0.0.1", "--admin"]);
        command.arg(format!("127.0.0.1:{agent}")).args(["--endpoints", &etcd.endpoints()]);
        let agent_process = Process::start(&folder, "agent", command.arg("--state-dir").arg(folder.join("state")));
        balancer.wait_status(PATIENCE, "shop.test", "/", 200);
        balancer.wait_settled(PATIENCE);
        Self { balancer, announcer, agent, folder, _running: (app, agent_process, etcd) }
    }

    /// The classic text of one of the product's own scrapes.
    fn scrape(&self, port: u16) -> String {
        until(PATIENCE, "a scrape", || {
            let answer = Request::get("localhost", "/metrics").send(([127, 0, 0, 1], port).into());
            answer.map(|answer| answer.body).map_err(|error| error.to_string())
        })
    }

    /// Starts Prometheus with the example's configuration. The test replaces its addresses, secrets and scrape interval.
    fn start_prometheus(&self, port: u16) -> Process {
        let at = |port: u16| format!("'127.0.0.1:{port}'");
        let password = self.balancer.folder().join("state/stats-password");
        let text = read("observability/prometheus.yml");
        let changes = [
            ("15s", "1s"),
            ("1m", "1s"),
            ("'lb1:9101', 'lb2:9101'", &at(self.balancer.admin().port())),
            ("'lb1:1936', 'lb2:1936'", &at(self.balancer.stats().port())),
            ("'web-1:9102'", &format!("{}, {}", at(self.announcer), at(self.agent))),
            ("/etc/prometheus/haproxy-password", password.to_str().unwrap()),
            (
                "[recording.yml, alerts.yml]",
                &format!("[{SOURCE}/observability/recording.yml, {SOURCE}/observability/alerts.yml]"),
            ),
            ("    authorization: { credentials_file: /etc/haproxy-discover/admin.token }\n", ""),
        ];
        let text = changes.iter().fold(text, |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        let config = self.folder.join("prometheus.yml");
        write(&config, &text);
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", self.folder.join("tsdb").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        Process::start(&self.folder, "prometheus", &mut command)
    }
}

/// Asks Prometheus's API. curl joins the answer's chunks.
fn ask(port: u16, path: &str, query: &str) -> Result<Value, String> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--get", "--data-urlencode", &format!("query={query}")]);
    let output = curl.arg(format!("http://127.0.0.1:{port}/api/v1/{path}")).output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).map_err(|error| format!("{path}: {error}"))?;
    if answer["status"] == "success" { Ok(answer["data"].clone()) } else { Err(format!("{query}: {answer}")) }
}

fn has_data(port: u16, query: &str) -> Result<(), String> {
    let data = ask(port, "query", query)?;
    let is_empty = data["result"].as_array().is_none_or(Vec::is_empty);
    if is_empty { Err(format!("no data: {query}")) } else { Ok(()) }
}

#[test]
fn prometheus_reads_all_that_the_pack_asks_for() {
    let _turn = medium();
    let scene = Scene::start();
    let port = free_port();
    let _prometheus = scene.start_prometheus(port);

    let mut there = BTreeSet::new();
    for port in [scene.balancer.admin().port(), scene.announcer, scene.agent] {
        let scrape = scene.scrape(port);
        let file = scene.folder.join("scrape");
        write(&file, &scrape);
        assert_eq!(promtool(&["check", "metrics"], Some(&file)), "");
        there.extend(sample_names(&scrape));
    }
    let answer = scene.balancer.asked("/metrics/upstreams").unwrap();
    let series = r#"confgen_upstream_info{proxy="http-shop",server="shop-1"#;
    assert!(answer.body.contains(series) && answer.body.contains(r#"color="blue""#), "{}", answer.body);
    there.extend(sample_names(&answer.body));
    // Only while upstreams are retained. docs/metrics.md has it, and a test scrapes it.
    there.insert("confgen_retained_upstreams".to_owned());

    // All rules are evaluated without an error, and those that record something have data.
    let rules = until(PATIENCE, "Prometheus to evaluate its rules", || {
        let groups = ask(port, "rules", "")?["groups"].clone();
        let rules: Vec<Value> =
            groups.as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect();
        let bad = rules.iter().find(|rule| rule["health"] != "ok");
        bad.map_or(Ok(()), |rule| Err(rule.to_string()))?;
        if rules.is_empty() { Err("none".to_owned()) } else { Ok(rules) }
    });
    let text = |rule: &Value, field: &str| rule[field].as_str().unwrap().to_owned();
    let queries = dashboard_queries();
    until(PATIENCE, "data for what is recorded and drawn", || {
        scene.balancer.get("shop.test", "/");
        for rule in rules.iter().filter(|rule| rule["type"] == "recording") {
            has_data(port, &text(rule, "name"))?;
        }
        for query in queries.iter().filter(|query| !EMPTY_IF_WELL.contains(&query.panel.as_str())) {
            has_data(port, &query.expression)?;
        }
        Ok::<(), String>(())
    });
    let empty = queries.iter().filter(|query| EMPTY_IF_WELL.contains(&query.panel.as_str()));
    let empty: Vec<_> = empty.map(|query| ask(port, "query", &query.expression).unwrap()).collect();
    assert_eq!(empty.len(), EMPTY_IF_WELL.len(), "a title of EMPTY_IF_WELL is in no panel");

    // HAProxy's own scrape, as Prometheus keeps it.
    let names = ask(port, "label/__name__/values", "").unwrap();
    there.extend(names.as_array().unwrap().iter().filter_map(|name| Some(name.as_str()?.to_owned())));
    let expressions = rules.iter().map(|rule| text(rule, "query"));
    let expressions: Vec<String> = expressions.chain(queries.into_iter().map(|query| query.expression)).collect();
    let named: BTreeSet<&str> = expressions.iter().flat_map(|expression| named_metrics(expression)).collect();
    let missing: Vec<_> = named.iter().filter(|name| !there.contains(**name)).collect();
    assert!(missing.is_empty() && named.len() > 40, "no such metrics: {missing:?} of {named:?}");
}
