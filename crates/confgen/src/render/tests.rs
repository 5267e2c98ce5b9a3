//! Every folder of `golden/` is a scenario: `store` goes in, the other files come out and HAProxy reads them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use expect_test::expect_file;
use haproxy::check::{CheckResult, Checker};
use haproxy::command::CommandLine;

use super::*;
use crate::cli::Cli;
use crate::desired::tests::{settle, topology};
use crate::desired::{Authorities, Authority, DesiredState, LastKnownGood, Policy};
use crate::local_files::error_pages;
use crate::operator_files::parse::OperatorConfig;
use crate::render::stats_hash::Hash;

const SCENARIOS: [&str; 10] = [
    "empty",
    "hosts-and-paths",
    "settings",
    "reencrypt",
    "tcp",
    "passthrough",
    "colors-and-states",
    "preview",
    "old-layout",
    "garbage",
];

fn golden(scenario: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(scenario).join(file)
}

/// With one file of authorities.
fn settled(scenario: &str, state_dir: &Path) -> DesiredState {
    let store = std::fs::read_to_string(golden(scenario, "store")).unwrap();
    let copy = state_dir.join("ca/internal.pem").display().to_string().parse().unwrap();
    let usable = [("internal.pem".parse().unwrap(), Authority { copy, fingerprint: "0".to_owned() })].into();
    let authorities = Authorities { usable, ..Authorities::default() };
    settle(&topology(&store), &LastKnownGood::default(), &Policy { ca_files: authorities, ..Policy::default() })
}

pub(crate) fn site(state_dir: &Path) -> Site {
    Site {
        http_binds: vec!["*:80".parse().unwrap(), "[::]:80".parse().unwrap()],
        https_binds: vec!["*:443".parse().unwrap()],
        stats_binds: vec!["[::]:1936".parse().unwrap()],
        runtime_socket: "/run/haproxy/admin.sock".into(),
        server_state_file: state_dir.join("server-state"),
        hard_stop_after: Cli::parse_from(["confgen"]).common.options.hard_stop_after,
        crt_list: state_dir.join("certs/crt-list.txt"),
        log: "/dev/log".into(),
        trusted_proxies: None,
        proxy_protocol_from: None,
        has_traces: true,
        // Of `secret`.
        stats_hash: Hash::Sha256("2BB80D537B1DA3E38BD30361AA855686BDE0EACD7162FEF6A25FE97BF527A25B".into()),
        stats_domain: None,
        acme: None,
        rights: Cli::parse_from(["confgen"]).common.options.rights,
        pages: Arc::default(),
    }
}

fn rendered(settled: &DesiredState, site: &Site, operator: &OperatorConfig, state_dir: &Path) -> Rendered {
    let texts = ServiceTexts::from_desired(settled, site).unwrap();
    let view = View::with_maps(settled, site, operator, Arc::clone(texts.maps()));
    let fingerprint = Arc::new(ConfigFingerprint::from_view(&view, &[]).unwrap());
    render_config(&view, &texts, &Generation::new(fingerprint), &BTreeMap::new(), state_dir).unwrap()
}

/// Puts the files where the rendered one names them and asks HAProxy.
fn check(rendered: &Rendered, state_dir: &Path) -> CheckResult {
    let maps = state_dir.join(&rendered.generation_id);
    std::fs::create_dir_all(&maps).unwrap();
    std::fs::create_dir_all(state_dir.join("certs")).unwrap();
    std::fs::create_dir_all(state_dir.join("ca")).unwrap();
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let put = |path: PathBuf, text: &str| {
        tempfile::NamedTempFile::new_in(state_dir)
            .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()).map(|()| file))
            .map(|file| file.persist(path).unwrap())
            .unwrap();
    };
    put(maps.join("hosts.map"), &rendered.maps.hosts);
    put(maps.join("paths.map"), &rendered.maps.paths);
    put(maps.join("urls.map"), &rendered.maps.urls);
    rendered.pages.files().for_each(|(name, content)| put(maps.join(name), std::str::from_utf8(content).unwrap()));
    put(maps.join("passthrough.map"), &rendered.maps.passthrough);
    put(maps.join("checks.map"), &rendered.maps.checks);
    put(state_dir.join("certs/default.pem"), &(key.cert.pem() + &key.signing_key.serialize_pem()));
    put(state_dir.join("ca/internal.pem"), &key.cert.pem());
    put(state_dir.join("certs/crt-list.txt"), &format!("{}\n", state_dir.join("certs/default.pem").display()));
    put(state_dir.join("server-state"), "1\n");
    put(state_dir.join("haproxy.cfg"), &rendered.cfg.to_string());
    let command = CommandLine::from_words(["haproxy", "-c"]).unwrap();
    Checker::new(command, Duration::from_secs(20)).check_files(&[state_dir.join("haproxy.cfg")]).unwrap()
}

#[test]
fn scenarios_render_as_before() {
    for scenario in SCENARIOS {
        let state_dir = Path::new("/var/lib/confgen");
        let settled = settled(scenario, state_dir);
        let rendered = rendered(&settled, &site(state_dir), &OperatorConfig::default(), state_dir);
        expect_file![golden(scenario, "haproxy.cfg")].assert_eq(&rendered.cfg.to_string());
        expect_file![golden(scenario, "hosts.map")].assert_eq(&rendered.maps.hosts);
        expect_file![golden(scenario, "paths.map")].assert_eq(&rendered.maps.paths);
        expect_file![golden(scenario, "urls.map")].assert_eq(&rendered.maps.urls);
        expect_file![golden(scenario, "passthrough.map")].assert_eq(&rendered.maps.passthrough);
        expect_file![golden(scenario, "checks.map")].assert_eq(&rendered.maps.checks);
        let quarantined: String =
            settled.quarantined_keys().iter().map(|(key, why)| format!("{key}: {why}\n")).collect();
        expect_file![golden(scenario, "quarantined")].assert_eq(&quarantined);
    }
}

#[test]
fn haproxy_takes_every_scenario_without_a_warning() {
    for scenario in SCENARIOS {
        let dir = tempfile::tempdir().unwrap();
        let rendered =
            rendered(&settled(scenario, dir.path()), &site(dir.path()), &OperatorConfig::default(), dir.path());
        assert_eq!(check(&rendered, dir.path()), CheckResult::Valid { warnings: Vec::new() }, "{scenario}");
    }
}

/// The blocks between blank lines, each a list of its lines without comments.
fn blocks(cfg: &str) -> Vec<Vec<&str>> {
    cfg.split("\n\n").map(|block| block.lines().filter(|line| !line.trim().starts_with('#')).collect()).collect()
}

#[test]
fn the_file_reads_as_if_written_by_hand() {
    for scenario in SCENARIOS {
        let cfg = std::fs::read_to_string(golden(scenario, "haproxy.cfg")).unwrap();
        assert!(cfg.ends_with('\n') && !cfg.ends_with("\n\n") && !cfg.contains("\n\n\n"), "{scenario}");
        for line in cfg.lines() {
            assert_eq!(line.trim_end(), line, "{scenario}: blanks at the end of a line");
            let indent = line.len() - line.trim_start().len();
            assert!(indent == 0 || indent == 4, "{scenario}: {line:?}");
            assert!(!line.trim().contains("  "), "{scenario}: {line:?}");
            assert!(line.split_whitespace().count() <= 64, "{scenario}: HAProxy reads no line of more words: {line:?}");
        }
        for block in blocks(&cfg) {
            assert_sorted(scenario, &block);
        }
        let parts = cfg.split("\ndefaults discover-tcp\n");
        let kinds = ["defaults ", "backend ", "listen tcp-"];
        for (part, kind) in parts.flat_map(|part| kinds.map(|kind| (part, kind))) {
            let names: Vec<_> = part.lines().filter(|line| line.starts_with(kind)).collect();
            assert!(names.is_sorted(), "{scenario}: {names:?}");
        }
    }
}

/// Keywords are sorted but for the ones whose order means something: `bind` and `mode` come first, rules (`acl`,
/// `http-request`, …) in the order they act, servers last and sorted by name.
fn assert_sorted(scenario: &str, block: &[&str]) {
    let lines: Vec<&str> = block.iter().filter_map(|line| line.strip_prefix("    ")).collect();
    let servers: Vec<&str> = lines.iter().copied().filter(|line| line.starts_with("server ")).collect();
    assert!(servers.is_sorted(), "{scenario}: {servers:?}");
    let first_server = lines.iter().position(|line| line.starts_with("server ")).unwrap_or(lines.len());
    assert_eq!(lines.len() - first_server, servers.len(), "{scenario}: servers come last");
    let acts = |line: &str| ["bind", "mode", "server", "acl"].contains(&line.split(' ').next().unwrap_or_default());
    let keyword = |line: &&str| line.split(' ').next().unwrap_or_default().to_owned();
    let keywords: Vec<String> = lines.iter().filter(|line| !acts(line)).map(keyword).collect();
    let rules = keywords.first().is_some_and(|first| first == "http-request" || first == "tcp-request");
    assert!(rules || keywords.is_sorted(), "{scenario}: {keywords:?}");
}

/// HAProxy's own defaults (configuration manual): a line that says one again only makes people wonder.
#[test]
fn no_default_is_restated() {
    const DEFAULTS: [&str; 8] = [
        "retries 3",
        "inter 2s",
        "inter 2000",
        "fall 3",
        "rise 2",
        "option http-keep-alive",
        "http-reuse safe",
        "cookie off",
    ];
    for scenario in SCENARIOS {
        let cfg = std::fs::read_to_string(golden(scenario, "haproxy.cfg")).unwrap();
        for default in DEFAULTS {
            assert!(!cfg.contains(default), "{scenario}: {default}");
        }
        assert!(!cfg.lines().any(|line| line.trim_start().starts_with("server ") && line.contains("weight 100")));
    }
}

/// HAProxy 3.3 made `random` its default.
#[test]
fn each_defaults_section_names_its_algorithm() {
    for scenario in SCENARIOS {
        let cfg = std::fs::read_to_string(golden(scenario, "haproxy.cfg")).unwrap();
        let is_base = |block: &Vec<&str>| {
            block.first().is_some_and(|line| line.starts_with("defaults ") && !line.contains(" from "))
        };
        let sections: Vec<_> = blocks(&cfg).into_iter().filter(is_base).collect();
        assert!(!sections.is_empty(), "{scenario}");
        assert!(sections.iter().all(|section| section.contains(&"    balance roundrobin")), "{scenario}: {sections:?}");
    }
}

/// A section that names no `defaults` would take the last one before it, which may have rules of a service.
#[test]
fn each_section_names_its_defaults() {
    for scenario in SCENARIOS {
        let cfg = std::fs::read_to_string(golden(scenario, "haproxy.cfg")).unwrap();
        let opens = |line: &&str| ["frontend ", "backend ", "listen "].iter().any(|kind| line.starts_with(kind));
        for line in cfg.lines().filter(opens) {
            let (_, parent) = line.split_once(" from ").unwrap_or_else(|| panic!("{scenario}: {line}"));
            assert!(cfg.contains(&format!("\ndefaults {parent}")), "{scenario}: {line}");
        }
    }
}

/// An operator's `defaults` stands in for the file's own, but servers are checked, weigh and keep their state as anywhere.
#[test]
fn a_profile_takes_nothing_from_the_servers() {
    let operator =
        "defaults slow\n    mode http\n    timeout client 1h\n    timeout connect 2s\n    timeout server 1h\n";
    let limits =
        Policy { profiles: OperatorConfig::from_texts([("mine.cfg", operator)]).profiles, ..Policy::default() };
    let store = "http-services/a/domain a.com\n http-services/a/profile slow\n \
        http-services/a/upstreams/1 10.0.0.1:80\n tcp-services/b/ports 3306\n tcp-services/b/profile slow\n \
        tcp-services/b/check off\n tcp-services/b/upstreams/1 10.0.0.1:3306\n";
    let settled = settle(&topology(store), &LastKnownGood::default(), &limits);
    let dir = tempfile::tempdir().unwrap();
    let mut rendered =
        rendered(&settled, &site(dir.path()), &OperatorConfig::from_texts([("mine.cfg", operator)]), dir.path());
    let text = rendered.cfg.to_string();
    for (section, line) in [("backend http-a", "check weight 100"), ("listen tcp-b", "no-check weight 100")] {
        let text = text.split("\n\n").find(|block| block.contains(section)).unwrap();
        assert!(text.contains(&format!("\n    default-server {line}\n")), "{text}");
        assert!(text.contains("\n    load-server-state-from-file global\n"), "{text}");
    }
    rendered.cfg = format!("{operator}{text}").as_str().into();
    assert_eq!(check(&rendered, dir.path()), CheckResult::Valid { warnings: Vec::new() });
}

/// The same file, where every flag that adds to it is given.
fn full_site(state_dir: &Path) -> Site {
    let pages = tempfile::tempdir().unwrap();
    let page = std::fs::File::create_new(pages.path().join("404.html")).unwrap();
    std::io::Write::write_all(&mut { page }, b"<p>nothing here").unwrap();
    let flags = "confgen --chroot /var/lib/haproxy --runtime-socket-group adm --stats-domain stats.example.com \
         --trusted-proxies 10.0.0.0/8,fd00::/8 --acme-service acme --hard-stop-after 90m";
    let options = Cli::parse_from(flags.split_whitespace()).common.options;
    // `crypt("secret")`
    let given = options.build_site(Hash::Crypt("$5$saltsalt$Yl8FPpuNxpJj1lZwZ8yZ3y1T1oKkJYQ8W5pZJgM1kL/".into()));
    let Site { trusted_proxies, stats_domain, acme, rights, stats_hash, hard_stop_after, .. } = given;
    let pages = Arc::new(error_pages::read_error_pages_unchecked(Some(pages.path()), pages.path()));
    Site { trusted_proxies, stats_domain, acme, rights, pages, stats_hash, hard_stop_after, ..site(state_dir) }
}

#[test]
fn every_flag_has_its_lines() {
    let state_dir = Path::new("/var/lib/confgen");
    let full = rendered(&settled("flags", state_dir), &full_site(state_dir), &OperatorConfig::default(), state_dir);
    let full = full.cfg.to_string();
    expect_file![golden("flags", "haproxy.cfg")].assert_eq(&full);
    for block in blocks(&full) {
        assert_sorted("flags", &block);
    }
    let dir = tempfile::tempdir().unwrap();
    let rendered =
        rendered(&settled("flags", dir.path()), &full_site(dir.path()), &OperatorConfig::default(), dir.path());
    assert_eq!(check(&rendered, dir.path()), CheckResult::Valid { warnings: Vec::new() });
}

/// A site behind two TCP load balancers.
fn site_behind_balancers(state_dir: &Path) -> Site {
    let flags = ["confgen", "--proxy-protocol-from", "10.0.0.9,fd00::9"];
    let given = Cli::parse_from(flags).common.options.build_site(Hash::Crypt(String::new()));
    Site { proxy_protocol_from: given.proxy_protocol_from, ..site(state_dir) }
}

#[test]
fn every_public_frontend_reads_the_proxy_protocol_of_those_named() {
    let state_dir = Path::new("/var/lib/confgen");
    let settled_as = |state_dir| settled("proxy-protocol", state_dir);
    let behind =
        rendered(&settled_as(state_dir), &site_behind_balancers(state_dir), &OperatorConfig::default(), state_dir);
    let behind = behind.cfg.to_string();
    expect_file![golden("proxy-protocol", "haproxy.cfg")].assert_eq(&behind);
    for block in blocks(&behind) {
        assert_sorted("proxy-protocol", &block);
    }
    let sections: Vec<&str> = behind.split("\n\n").filter(|block| block.contains("expect-proxy")).collect();
    assert_eq!(sections.len(), 4, "discover-web, discover-tls and two TCP services: {sections:?}");
    let dir = tempfile::tempdir().unwrap();
    let rendered =
        rendered(&settled_as(dir.path()), &site_behind_balancers(dir.path()), &OperatorConfig::default(), dir.path());
    assert_eq!(check(&rendered, dir.path()), CheckResult::Valid { warnings: Vec::new() });
}

#[test]
fn without_traces_the_file_lacks_their_lines_which_takes_a_restart() {
    let given = |words: &[&str]| {
        let options = Cli::parse_from(["confgen"].iter().chain(words)).common.options;
        options.build_site(Hash::Crypt(String::new())).has_traces
    };
    assert!(given(&[]) && given(&["--trace-context", "on"]) && !given(&["--trace-context", "off"]));
    for make_site in [site, full_site] {
        let dir = tempfile::tempdir().unwrap();
        let of = |has_traces| {
            let site = Site { has_traces, ..make_site(dir.path()) };
            rendered(&settled("flags", dir.path()), &site, &OperatorConfig::default(), dir.path())
        };
        let (with, without) = (of(true), of(false));
        assert!(!without.cfg.to_string().contains("trace"), "{}", without.cfg);
        // Nothing else differs, besides the generation's name.
        let lines = |rendered: &Rendered| {
            let text = rendered.cfg.to_string().replace(&rendered.generation_id, "the generation");
            let text = text.replace("\"traceparent\":\"%[var(txn.traceparent)]\",", "");
            let lines = blocks(&text).into_iter().flatten().filter(|line| !line.contains("trace") && !line.is_empty());
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(lines(&without), lines(&with));
        assert!(with.fingerprint.restart_reason(&without.fingerprint).is_some());
        assert_eq!(check(&without, dir.path()), CheckResult::Valid { warnings: Vec::new() });
    }
}

#[test]
fn a_global_line_of_the_operators_replaces_confgens() {
    let operator = OperatorConfig::from_texts([(
        "mine.cfg",
        "global\n    uid 0\n    group www-data\n    chroot /\n    log /dev/log local1\n",
    )]);
    let dir = tempfile::tempdir().unwrap();
    let cfg = rendered(&DesiredState::default(), &full_site(dir.path()), &operator, dir.path()).cfg.to_string();
    let global = blocks(&cfg)[1].join("\n");
    for left_out in ["    user ", "    group ", "    chroot ", "    log "] {
        assert!(!global.contains(left_out), "{left_out}: {global}");
    }
    assert!(global.contains("    stats socket "), "{global}");
}

#[test]
fn a_challenge_is_led_to_a_service_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (site, operator) = (full_site(dir.path()), OperatorConfig::default());
    let of = |store: &str| {
        let settled = settle(&topology(store), &LastKnownGood::default(), &Policy::default());
        let rendered = rendered(&settled, &site, &operator, dir.path());
        (rendered.cfg.to_string(), rendered.fingerprint)
    };
    let (with, without) = (of("http-services/acme/upstreams/1 10.0.0.1:80"), of("http-services/shop/domain a.com"));
    assert!(with.0.contains("set-var(txn.backend) str(http-acme) if { path_beg /.well-known/acme-challenge/ }"));
    assert!(!without.0.contains("acme-challenge"));
    // It comes with the service, so its coming is a matter of what all share.
    let lack = without.1.restart_reason(&with.1).unwrap();
    assert!(lack.services.iter().any(|id| id.to_string() == "http-acme"), "{lack:?}");
}

#[test]
fn another_error_page_takes_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let of = |site: &Site| rendered(&DesiredState::default(), site, &OperatorConfig::default(), dir.path()).fingerprint;
    let (with, mut without) = (full_site(dir.path()), full_site(dir.path()));
    assert_eq!(of(&with), of(&without));
    without.pages = Arc::default();
    assert_ne!(of(&with), of(&without));
}

/// docs/limits.md has every time that a line of the file sets, and the limits of this crate.
#[test]
fn the_page_of_limits_has_every_time_of_the_file() {
    let page = include_str!("../../../../docs/limits.md");
    let cfg = std::fs::read_to_string(golden("passthrough", "haproxy.cfg")).unwrap();
    let is_time = |line: &&str| line.starts_with("timeout ") || line.starts_with("hard-stop-after ");
    let times: Vec<&str> = cfg.lines().map(str::trim).filter(is_time).collect();
    assert_eq!(times.len(), 15, "{times:?}");
    for time in times {
        assert!(page.contains(&format!("`{time}`")), "docs/limits.md doesn't name `{time}`");
    }
    assert!(cfg.contains("inspect-delay 5s") && page.contains("has 5 s for the name in its handshake"));
    for (line, words) in [
        ("stick-table type ipv6 size 100k expire 30m", "| 100,000, for 30 minutes |"),
        ("retry-on", "then another one is tried"),
    ] {
        let template =
            [include_str!("../../../../templates/haproxy.cfg"), include_str!("../../../../templates/http-service.cfg")];
        assert!(template.iter().any(|text| text.contains(line)) && page.contains(words), "{line}");
    }
    let routes = format!("| hosts times paths of a service | {},000 |", crate::desired::MAX_ROUTES / 1000);
    assert!(page.contains(&routes), "{routes}");
    let ports = Cli::parse_from(["confgen"]).common.options.tcp_ports;
    assert!(page.contains(&format!("{}-{} unless said", ports.start(), ports.end())));
}
