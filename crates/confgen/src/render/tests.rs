//! Every folder of `golden/` is a scenario: `store` goes in, the other files come out and HAProxy reads them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use expect_test::expect_file;
use haproxy::check::{Checker, Verdict};
use haproxy::command::CommandLine;

use super::*;
use crate::operator::Operator;
use crate::settle::tests::{settle, topology};
use crate::settle::{Limits, Memory, Settled};

const SCENARIOS: [&str; 7] =
    ["empty", "hosts-and-paths", "settings", "tcp", "colors-and-states", "old-layout", "garbage"];

fn golden(scenario: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(scenario).join(file)
}

fn settled(scenario: &str) -> Settled {
    let store = std::fs::read_to_string(golden(scenario, "store")).unwrap();
    settle(&topology(&store), &Memory::default(), &Limits::default())
}

fn site(state_dir: &Path) -> Site {
    Site {
        http_binds: vec!["*:80".parse().unwrap(), "[::]:80".parse().unwrap()],
        https_binds: vec!["*:443".parse().unwrap()],
        stats_binds: vec!["[::]:1936".parse().unwrap()],
        runtime_socket: "/run/haproxy/admin.sock".into(),
        server_state_file: state_dir.join("server-state"),
        crt_list: state_dir.join("certs/crt-list.txt"),
        log: "/dev/log".into(),
        trusted_proxies: None,
        // `crypt("secret")`
        stats_hash: "$5$saltsalt$Yl8FPpuNxpJj1lZwZ8yZ3y1T1oKkJYQ8W5pZJgM1kL/".into(),
    }
}

fn rendered(settled: &Settled, site: &Site, operator: &Operator, state_dir: &Path) -> Rendered {
    let view = View::of(settled, site, operator);
    render(&view, &Structure::of(&view, &[]).unwrap(), state_dir).unwrap()
}

/// Puts the files where the rendered one names them and asks HAProxy.
fn check(rendered: &Rendered, state_dir: &Path) -> Verdict {
    let maps = state_dir.join(&rendered.stamp);
    std::fs::create_dir_all(&maps).unwrap();
    std::fs::create_dir_all(state_dir.join("certs")).unwrap();
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
    put(state_dir.join("certs/default.pem"), &(key.cert.pem() + &key.signing_key.serialize_pem()));
    put(state_dir.join("certs/crt-list.txt"), &format!("{}\n", state_dir.join("certs/default.pem").display()));
    put(state_dir.join("server-state"), "1\n");
    put(state_dir.join("haproxy.cfg"), &rendered.cfg);
    let command = CommandLine::from_words(["haproxy", "-c"]).unwrap();
    Checker::new(command, Duration::from_secs(20)).check(&[state_dir.join("haproxy.cfg")]).unwrap()
}

#[test]
fn scenarios_render_as_before() {
    for scenario in SCENARIOS {
        let state_dir = Path::new("/var/lib/confgen");
        let settled = settled(scenario);
        let rendered = rendered(&settled, &site(state_dir), &Operator::default(), state_dir);
        expect_file![golden(scenario, "haproxy.cfg")].assert_eq(&rendered.cfg);
        expect_file![golden(scenario, "hosts.map")].assert_eq(&rendered.maps.hosts);
        expect_file![golden(scenario, "paths.map")].assert_eq(&rendered.maps.paths);
        expect_file![golden(scenario, "urls.map")].assert_eq(&rendered.maps.urls);
        let quarantined: String = settled.quarantined().iter().map(|(key, why)| format!("{key}: {why}\n")).collect();
        expect_file![golden(scenario, "quarantined")].assert_eq(&quarantined);
    }
}

#[test]
fn haproxy_takes_every_scenario_without_a_warning() {
    for scenario in SCENARIOS {
        let dir = tempfile::tempdir().unwrap();
        let rendered = rendered(&settled(scenario), &site(dir.path()), &Operator::default(), dir.path());
        assert_eq!(check(&rendered, dir.path()), Verdict::Valid { warnings: Vec::new() }, "{scenario}");
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
        for kind in ["backend ", "listen tcp-"] {
            let names: Vec<_> = cfg.lines().filter(|line| line.starts_with(kind)).collect();
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
    let rules = keywords.first().is_some_and(|first| first == "http-request");
    assert!(rules || keywords.is_sorted(), "{scenario}: {keywords:?}");
}

/// HAProxy's own defaults (configuration manual): a line that says one again only makes people wonder.
#[test]
fn no_default_is_restated() {
    const DEFAULTS: [&str; 9] = [
        "balance roundrobin",
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
