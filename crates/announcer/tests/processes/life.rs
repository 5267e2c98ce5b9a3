//! From the app's start to its end.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use lab::{Process, Signal, free_port, until};

use crate::site::{KEY, SOON, Site, leases, record};

#[test]
fn an_app_that_ends_by_itself_is_withdrawn_at_once_and_its_status_kept() {
    let site = Site::new();
    let mut announcer = site.wrap(&["--domain", "a.com"], "until [ -e go ]; do sleep 0.02; done; exit 7");
    site.until_registered();
    lab::write(site.folder.join("go"), "");
    let start = Instant::now();
    assert_eq!(announcer.wait(SOON).code(), Some(7));
    assert!(start.elapsed() < Duration::from_secs(10), "no drain, no wait: {:?}", start.elapsed());
    assert_eq!((site.etcd.get(KEY), leases(&site.etcd)), (None, 0));
    let ready = site.record();
    assert_eq!(site.history(KEY), [ready, site.value("down"), String::new()]);
    assert_eq!(site.etcd.get("http-services/shop/domain").as_deref(), Some("a.com"));
}

#[test]
fn a_signal_that_ends_the_app_shows_in_the_status() {
    let site = Site::new();
    assert_eq!(site.wrap(&[], "kill -KILL $$").wait(SOON).code(), Some(128 + 9));
    // No name in nix's list of signals.
    assert_eq!(site.wrap(&[], "kill -40 $$").wait(SOON).code(), Some(128));
}

#[test]
fn the_record_is_written_when_the_port_answers() {
    let site = Site::new();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let mut command = site.command_at(&address, &["--service", "shop", "--id", "a"]);
    let announcer = Process::start(&site.folder, "announcer", command.args(["--", "sleep", "60"]));
    until(SOON, "the app", || announcer.log().contains("the app runs"));
    until(SOON, "the lease", || leases(&site.etcd) == 1);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(site.etcd.get(KEY), None);
    let _listener = TcpListener::bind(&address).unwrap();
    site.until_value(&record(&address, ""));
}

#[test]
fn balancers_hear_of_the_drain_before_the_app_is_stopped() {
    let site = Site::new();
    let script = r#"stop() { etcdctl get --print-value-only "$KEY" > seen; exit 3; }
        trap stop TERM; echo > running; while :; do sleep 0.02; done"#;
    let mut announcer = site.wrap(&["--drain", "1s"], script);
    site.until_registered();
    site.until_file("running");
    site.balancer("lb", "it says nothing that makes sense");
    let start = Instant::now();
    announcer.signal(Signal::SIGTERM);
    site.until_value(&site.value("drain"));
    assert!(!site.folder.join("seen").exists());
    let status = announcer.wait(SOON);
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(status.code(), Some(3), "the app's own status");
    assert_eq!(site.until_file("seen"), site.value("drain"), "what stood in the store as the app was stopped");
    assert_eq!(site.history(KEY), [site.record(), site.value("drain"), String::new()]);
    assert_eq!(leases(&site.etcd), 1, "the balancer's");
}

#[test]
fn no_drain_no_wait_but_still_in_order() {
    let site = Site::new();
    let mut announcer =
        site.wrap(&["--drain", "0s", "--stop-signal", "USR1"], "trap 'exit 5' USR1; while :; do sleep 0.02; done");
    site.until_registered();
    let start = Instant::now();
    announcer.signal(Signal::SIGINT);
    assert_eq!(announcer.wait(SOON).code(), Some(5));
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(site.history(KEY), [site.record(), site.value("drain"), String::new()]);
}

#[test]
fn an_app_that_ignores_its_stop_signal_is_killed_with_its_group() {
    let site = Site::new();
    let script =
        "trap '' TERM; (trap '' TERM; while :; do sleep 0.1; done) & echo > running; while :; do sleep 0.1; done";
    let mut announcer = site.wrap(&["--drain", "0s", "--stop-timeout", "500ms"], script);
    site.until_registered();
    site.until_file("running");
    announcer.signal(Signal::SIGTERM);
    assert_eq!(announcer.wait(SOON).code(), Some(128 + 9));
    until(SOON, "the end of the whole group", || announcer.family().is_empty());
    assert_eq!(site.etcd.get(KEY), None);
}

#[test]
fn a_second_signal_does_not_wait() {
    let site = Site::new();
    let mut announcer =
        site.wrap(&["--drain", "1m", "--stop-timeout", "1m"], "trap '' TERM; while :; do sleep 0.05; done");
    site.until_registered();
    site.balancer("lb", &site.applied(0, ""));
    announcer.signal(Signal::SIGTERM);
    site.until_value(&site.value("drain"));
    let start = Instant::now();
    announcer.signal(Signal::SIGTERM);
    assert_eq!(announcer.wait(SOON).code(), Some(128 + 9));
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!((site.etcd.get(KEY), leases(&site.etcd)), (None, 1), "the balancer's");
}

#[test]
fn beside_an_app_it_announces_at_once_and_leaves_in_order() {
    let site = Site::new();
    let mut announcer = site.beside("announcer", &["--drain", "0s", "--weight", "7", "--color", "blue"]);
    let value = |state: &str| record(site.address(), &format!(r#","weight":7,"color":"blue"{state}"#));
    site.until_value(&value(""));
    announcer.signal(Signal::SIGTERM);
    assert_eq!(announcer.wait(SOON).code(), Some(0));
    assert_eq!(site.history(KEY), [value(""), value(r#","state":"drain""#), String::new()]);
    assert_eq!(leases(&site.etcd), 0);
}

#[test]
fn stopped_before_it_was_announced() {
    let site = Site::new();
    let mut command = site.command_at(&format!("127.0.0.1:{}", free_port()), &["--service", "shop", "--id", "a"]);
    let mut announcer = Process::start(&site.folder, "announcer", command.args(["--", "sleep", "60"]));
    until(SOON, "the lease", || leases(&site.etcd) == 1);
    let start = Instant::now();
    announcer.signal(Signal::SIGTERM);
    assert_eq!(announcer.wait(SOON).code(), Some(143));
    assert!(start.elapsed() < Duration::from_secs(10), "nobody has to be told");
    assert_eq!(leases(&site.etcd), 0);
}
