//! What the reference pages say is what the programs do: keys, metrics, exit codes; and no page has a command that nobody
//! runs.

mod exit_codes;
mod keys;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{read_dir, read_to_string};
use std::path::Path;
use std::process::Command;

use lab::http::Request;
use lab::{App, Balancer, Etcd, PATIENCE, Page, Process, SOURCE, Scratch, bin, free_port, light, until};

fn read(page: &str) -> String {
    read_to_string(Path::new(SOURCE).join(page)).unwrap()
}

/// A metric with its labels, and its type.
type Metrics = BTreeSet<(String, String)>;

/// As the page has them: those below these headings.
fn documented(headings: &[&str]) -> Metrics {
    let page = read("docs/metrics.md");
    let sections = page.split("\n## ").filter(|section| headings.iter().any(|heading| section.starts_with(heading)));
    let rows = sections.flat_map(str::lines).filter(|line| line.starts_with("| `"));
    let metrics = rows.flat_map(|row| {
        let cells: Vec<&str> = row.split(" | ").collect();
        let kind = cells[1].to_owned();
        let names = cells[0].trim_start_matches("| ").split(", ").map(|name| name.trim_matches('`').to_owned());
        names.map(move |name| (name, kind.clone()))
    });
    metrics.collect()
}

/// As a scrape has them.
fn scraped(text: &str) -> Metrics {
    let typed = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let types: BTreeMap<&str, &str> = typed.collect();
    let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| line.rsplit_once(' ').unwrap().0);
    let metrics = samples.map(|sample| {
        let (name, labels) =
            sample.split_once('{').map_or((sample, ""), |(name, rest)| (name, rest.trim_end_matches('}')));
        let family = ["", "_total", "_bucket", "_count", "_sum"]
            .iter()
            .find_map(|end| name.strip_suffix(end).filter(|family| types.contains_key(family)))
            .unwrap_or_else(|| panic!("no type of {name}"));
        let name = if types[family] == "histogram" { family } else { name };
        let labels = labels.split("\",").filter_map(|label| Some(label.split_once("=\"")?.0));
        let labels = labels.filter(|label| *label != "le").collect::<Vec<_>>().join(",");
        let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
        (format!("{name}{labels}"), types[family].to_owned())
    });
    metrics.collect()
}

#[test]
fn every_metric_is_documented() {
    let _turn = light();
    let etcd = Etcd::start();
    let balancer = Balancer::start(&etcd);
    let (port, listens) = (free_port(), "127.0.0.1");
    let admin = format!("{listens}:{port}");
    let service = ["--service", "shop", "--domain", "shop.test", "--replicas", "1"];
    let flags = [&service[..], &["--check", "tcp", "--admin", &admin]].concat();
    let _app = App::announced("shop-1", &etcd, &flags);
    balancer.wait_status(PATIENCE, "shop.test", "/", 200);
    // What is retained has a series of its own.
    let (lease, lost) = (etcd.grant(600), App::alone("lost"));
    etcd.put_leased("http-services/lost/upstreams/lost", lost.address.to_string(), lease);
    balancer.wait_servers(PATIENCE, "http-lost", 1);
    // The new HAProxy has it. confgen learns that it is up there once the restart is over.
    balancer.wait_settled(PATIENCE);
    etcd.revoke(lease);
    let (folder, agents) = (Scratch::new(), format!("{listens}:{}", free_port()));
    let mut agent = Command::new(bin("announcer"));
    // No engine answers there. The metrics are the same.
    agent.args(["containers", "--engine", "unix:///no/such.sock", "--host-address", "10.0.0.1", "--admin", &agents]);
    agent.arg("--state-dir").arg(folder.join("state")).args(["--endpoints", &etcd.endpoints()]);
    let _agent = Process::start(&folder, "agent", &mut agent);
    let differs = |scraped: Metrics, headings: &[&str]| {
        let documented = documented(headings);
        let only = |one: &Metrics, other: &Metrics| one.difference(other).cloned().collect::<Vec<_>>();
        let (missing, gone) = (only(&scraped, &documented), only(&documented, &scraped));
        if missing.is_empty() && gone.is_empty() {
            Ok(())
        } else {
            Err(format!("no row: {missing:?}; no metric: {gone:?}"))
        }
    };
    until(PATIENCE, "confgen's metrics to be those of the page", || {
        differs(scraped(&balancer.asked("/metrics").unwrap().body), &["confgen", "Both"])
    });
    until(PATIENCE, "the agent's metrics to be those of the page", || {
        let answer =
            Request::get("localhost", "/metrics").send(agents.parse().unwrap()).map_err(|error| error.to_string())?;
        differs(scraped(&answer.body), &["Of a host's containers", "Both"])
    });
    until(PATIENCE, "announcer's metrics to be those of the page", || {
        let answer = Request::get("localhost", "/metrics").send(admin.parse().unwrap()).unwrap();
        differs(scraped(&answer.body), &["announcer", "Both"])
    });
}

/// Who runs the blocks below a heading: a test's file in this folder or in a crate, or else why there is no command.
const BLOCKS: [(&str, &[(&str, &str)]); 42] = [
    (
        "README.md",
        &[
            ("haproxy-discover", "a drawing"),
            ("Try it", "make's targets; see CONTRIBUTING.md"),
            ("Announce an app", "tutorial/howto.rs"),
            ("Balance", "lines of units/supervisor, which tutorial.rs starts"),
            ("Operate", "tutorial/howto.rs"),
        ],
    ),
    ("CONTRIBUTING.md", &[("Build and test", "make's targets"), ("Run one test", "they run tests")]),
    ("docs/alerts.md", &[]),
    ("docs/announce.md", &[]),
    (
        "docs/ansible.md",
        &[
            ("Ansible", "ansible.rs runs site.yml, with files of its own"),
            ("TLS, certificates and users", "ansible.rs sets them, and runs site.yml so"),
            ("Deploy", "ansible.rs runs deploy.yml, with files of its own"),
            ("What is balanced here", "ansible.rs runs the fact"),
        ],
    ),
    (
        "docs/api.md",
        &[
            ("The admin port", "what every answer begins with: discoverctl/asked.rs"),
            ("Problems", "an answer; crates/confgen/src/status/api/golden.json"),
            ("Changes", "an answer; crates/discovery/src/balancer/api/names.jsonl has its names"),
            ("An upstream", "an answer; crates/confgen/src/status/api/golden.json"),
        ],
    ),
    (
        "docs/app-to-app.md",
        &[
            ("From one app to another", "tutorial/howto.rs"),
            ("By host", "tutorial/howto.rs"),
            ("By port", "tutorial/howto.rs"),
            ("Only for apps", "tutorial/howto.rs"),
        ],
    ),
    ("docs/behaviour.md", &[("A store that is wiped or restored", "the command that the log names; store.rs runs it")]),
    ("docs/console.md", &[]),
    (
        "docs/containers.md",
        &[
            ("Containers by their labels", "an image that no test has; crates/announcer/tests/processes/container.rs"),
            ("Start the agent", "the unit, which units.rs checks"),
            ("Stop without losing a request", "crates/announcer/tests/processes/container.rs, with names of its own"),
            (
                "A limited number of copies",
                "crates/announcer/tests/processes/container/copies.rs, with names of its own",
            ),
            ("The agent's own restart", "crates/announcer/tests/processes/container.rs, without systemd"),
        ],
    ),
    (
        "docs/debug.md",
        &[
            ("One after the other", "tutorial/howto.rs"),
            ("It is served and should not be", "tutorial/howto.rs"),
            ("What has happened?", "tutorial/howto.rs"),
        ],
    ),
    (
        "docs/deploy.md",
        &[
            ("Deploy with systemd", "tutorial/howto.rs"),
            ("The store", "tutorial/howto.rs"),
            ("The balancers' API", "lab/asked.rs"),
            ("A balancer", "tutorial/howto.rs"),
            ("An app", "lab/units.rs"),
            ("A container as the app", "quadlet.rs"),
            ("Green beside blue", "tutorial/howto.rs"),
            ("Two balancers", "tutorial/howto.rs"),
            ("Renew and copy certificates", "tutorial/howto.rs"),
            ("Back up and restore the store", "tutorial/howto.rs"),
            ("Upgrade in place", "lab/units.rs"),
            ("CoreOS", "ignition.rs"),
            ("fleet", "fleet is no more; its options are ignored by systemd, see units.rs"),
        ],
    ),
    (
        "docs/discoverctl.md",
        &[
            ("The operator's files", "a file; discoverctl/asked.rs has its like"),
            ("A rolling reboot", "rolling_reboot.rs"),
            ("switch", "discoverctl/switch.rs, with shorter steps"),
        ],
    ),
    (
        "docs/dns.md",
        &[
            ("Names for balancers", "tutorial/howto.rs"),
            ("Which balancers live", "tutorial/howto.rs"),
            ("Resolvers", "tutorial/howto.rs"),
        ],
    ),
    ("docs/exit-codes.md", &[]),
    ("docs/flags-announcer.md", &[]),
    ("docs/flags-confgen.md", &[]),
    ("docs/flags-discoverctl.md", &[]),
    ("docs/flags-handover.md", &[]),
    (
        "docs/images.md",
        &[
            ("Container images", "images.rs"),
            ("A balancer", "needs ports 80 and 443 of the host"),
            ("An app", "images.rs"),
        ],
    ),
    ("docs/internals/announcer.md", &[]),
    ("docs/internals/bugs.md", &[]),
    ("docs/internals/confgen.md", &[]),
    ("docs/internals/handover.md", &[]),
    ("docs/internals/haproxy-facts.md", &[]),
    ("docs/internals/performance.md", &[]),
    ("docs/internals/proof.md", &[]),
    ("docs/internals/simulation.md", &[("The seeded simulation", "they run tests")]),
    ("docs/internals/state-dir.md", &[]),
    ("docs/internals/testing.md", &[("Tests", "they run tests")]),
    (
        "docs/keys.md",
        &[
            ("Settings", "reference/keys.rs"),
            ("Upstreams", "reference/keys.rs"),
            ("Copies", "reference/keys.rs"),
            ("Balancers", "reference/keys.rs"),
            ("The store itself", "reference/keys.rs"),
            ("The change log", "reference/keys.rs"),
            ("Older layouts", "reference/keys.rs"),
        ],
    ),
    (
        "docs/lab.md",
        &[
            ("The lab: three hosts to hurt", "make's target"),
            ("What each fault costs", "lab/faults.rs"),
            ("What each program's end costs", "lab/units.rs"),
            ("What a reboot of every host costs", "lab/rolling.rs"),
        ],
    ),
    ("docs/limits.md", &[]),
    ("docs/metrics.md", &[("Colors and hosts", "a series and a query; observability.rs runs the dashboard's like")]),
    (
        "docs/migrate.md",
        &[("From confd and the old layout", "tutorial/howto.rs"), ("From a file of your own", "tutorial/howto.rs")],
    ),
    (
        "docs/operator-files.md",
        &[
            ("Files of your own", "a command line of supervisord's"),
            ("An edit", "an answer; tutorial/howto.rs has the like of it from docs/debug.md"),
            (
                "A section with a service's upstreams",
                "files; crates/confgen/src/operator_files/filled/template/tests.rs",
            ),
        ],
    ),
    (
        "docs/packages.md",
        &[
            ("Install", "packages.rs, with a file of its own"),
            ("Upgrade", "packages.rs; needrestart's own line, in its own file"),
            ("Remove", "packages.rs"),
            ("An announcer for any image", "a Dockerfile; packages.rs runs the like of it"),
        ],
    ),
    (
        "docs/secure.md",
        &[
            ("Secure the store", "secure.rs"),
            ("The authority and its certificates", "secure.rs"),
            ("etcd", "secure.rs"),
            ("Users and roles", "secure.rs"),
            ("confgen", "secure.rs"),
            ("announcer", "secure.rs"),
            ("With a password instead", "secure.rs"),
            ("People", "secure.rs"),
            ("What is refused", "secure.rs"),
            ("Renew", "secure.rs"),
            ("A program's certificate", "secure.rs"),
            ("etcd's certificate", "secure.rs"),
            ("A password", "secure.rs"),
            ("The authority", "secure.rs"),
            ("A key that got out", "secure.rs"),
        ],
    ),
    ("docs/serving.md", &[("The stats page and HAProxy's metrics", "lines for Prometheus")]),
    ("docs/settings.md", &[]),
    (
        "docs/tutorial.md",
        &[
            ("Programs", "tutorial.rs"),
            ("A store", "tutorial.rs"),
            ("A balancer", "tutorial.rs"),
            ("Blue", "tutorial.rs"),
            ("Green beside it", "tutorial.rs"),
            ("Switch, and back", "tutorial.rs"),
            ("What is wrong?", "tutorial.rs"),
            ("A container as it is", "tutorial.rs"),
            ("The end", "tutorial.rs"),
        ],
    ),
    ("docs/vagrant.md", &[("A cluster with Vagrant", "vagrant.rs, but for `vagrant provision`")]),
];

#[test]
fn every_block_of_a_page_names_the_test_that_runs_it() {
    let pages_in = |folder: &'static str| {
        let files = read_dir(Path::new(SOURCE).join(folder)).unwrap().map(|page| page.unwrap().file_name());
        let pages = files.map(move |name| format!("{folder}/{}", name.display()));
        pages.filter(|page| page.ends_with(".md"))
    };
    let pages = pages_in("docs").chain(pages_in("docs/internals"));
    let pages: BTreeSet<String> = pages.chain(["README.md", "CONTRIBUTING.md"].map(str::to_owned)).collect();
    assert_eq!(pages, BLOCKS.iter().map(|(page, _)| (*page).to_owned()).collect());
    for (page, blocks) in BLOCKS {
        assert_eq!(
            Page::read(page).headings(),
            blocks.iter().map(|(heading, _)| *heading).collect::<Vec<_>>(),
            "{page}"
        );
        for (heading, by) in blocks {
            let is_there = Path::new(SOURCE).join("tests/e2e").join(by).is_file();
            assert!(is_there || by.contains(' '), "{page}, {heading}: there is no {by}");
        }
    }
}
