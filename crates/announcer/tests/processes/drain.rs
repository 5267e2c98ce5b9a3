//! A stop waits for the balancers' word. The balancers are keys that the tests write.

use std::time::{Duration, Instant};

use lab::{Process, Signal, until};

use crate::site::{KEY, SOON, Site};

/// Longer than the fixed wait of an announcer that can't read the balancers' records. So the test can't mistake that
/// wait for an acknowledgement.
const PATIENT: [&str; 2] = ["--drain", "60s"];

/// An announced app, asked to stop: its `drain` stands.
fn draining(site: &Site, flags: &[&str]) -> Process {
    let mut announcer = site.wrap(flags, "exec sleep 60");
    site.until_registered();
    announcer.signal(Signal::SIGTERM);
    until(SOON, "the drain", || announcer.log().contains(" draining "));
    announcer
}

/// Whether the app was told to stop.
fn is_stopping(announcer: &Process) -> bool {
    announcer.log().contains("stopping the app")
}

#[test]
fn the_app_is_stopped_when_the_last_balancer_has_acknowledged() {
    let site = Site::new();
    let (one, other) = (site.applied(0, ""), site.applied(0, ""));
    site.balancer("one", &one);
    site.balancer("other", &other);
    let mut announcer = draining(&site, &PATIENT);
    let written = site.written_at(KEY);
    site.etcd.put("balancers/one", site.applied(written, ""));
    for what in [
        r#","draining":{"http-shop/a":2}"#,
        r#","draining":{"http-shop/a":0}"#,
        r#","held":["http-shop/a"]"#,
        r#","pending":["http-shop"]"#,
        r#","more":["draining"]"#,
    ] {
        site.etcd.put("balancers/other", site.applied(written + 1, what));
    }
    site.etcd.put("balancers/other", site.applied(written - 1, ""));
    site.etcd.put("balancers/other", site.applied(written, "").replace(r#""cluster":""#, r#""cluster":"1"#));
    site.etcd.put("balancers/other", "\u{1}{");
    // Each of them was read by now.
    site.etcd.put("balancers/third", site.applied(written, ""));
    std::thread::sleep(Duration::from_millis(500));
    assert!(!is_stopping(&announcer), "{}", announcer.log());
    let start = Instant::now();
    site.etcd.put("balancers/other", site.applied(written, r#","draining":{"http-shop/b":9,"tcp-shop/a":9}"#));
    until(SOON, "the stop", || is_stopping(&announcer));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(announcer.wait(SOON).code(), Some(143));
    assert_eq!(site.history(KEY), [site.record(), site.value("drain"), String::new()]);
    assert!(announcer.log().contains("every balancer has acknowledged"), "{}", announcer.log());
}

#[test]
fn a_balancer_whose_key_is_gone_is_not_waited_for() {
    let site = Site::new();
    let lease = site.balancer("dies", &site.applied(0, ""));
    let mut announcer = draining(&site, &PATIENT);
    std::thread::sleep(Duration::from_millis(300));
    assert!(!is_stopping(&announcer));
    site.etcd.revoke(lease);
    assert_eq!(announcer.wait(SOON).code(), Some(143));
}

#[test]
fn without_a_balancer_there_is_no_wait() {
    let site = Site::new();
    let start = Instant::now();
    let mut announcer = draining(&site, &PATIENT);
    assert_eq!(announcer.wait(SOON).code(), Some(143));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(announcer.log().contains("no balancer is known"), "{}", announcer.log());
}

#[test]
fn the_wait_ends_with_its_time_and_names_who_is_missing() {
    let site = Site::new();
    site.balancer("mad", "garbage");
    site.balancer("quick", &site.applied(i64::from(u32::MAX), ""));
    let mut announcer = draining(&site, &["--drain", "1s"]);
    let start = Instant::now();
    assert_eq!(announcer.wait(SOON).code(), Some(143));
    assert!(start.elapsed() > Duration::from_millis(500));
    let log = announcer.log();
    assert!(log.contains("not every balancer has acknowledged") && log.contains(r#"missing=["mad"]"#), "{log}");
}

#[test]
fn balancers_that_cant_be_heard_get_the_time_that_they_usually_need() {
    let site = Site::new();
    site.balancer("lb", "never read");
    site.guard();
    let mut announcer = draining_as(&site, "shop:word");
    let start = Instant::now();
    assert_eq!(announcer.wait(SOON * 2).code(), Some(143));
    // A restart of HAProxy within its interval, and idle clients.
    let took = start.elapsed();
    assert!((Duration::from_secs(6)..Duration::from_secs(14)).contains(&took), "{took:?}");
    let log = announcer.log();
    assert!(log.contains("roles forbid user shop listing /haproxy-discover/balancers/"), "{log}");
}

fn draining_as(site: &Site, user: &str) -> Process {
    let mut announcer = site.wrap(&["--drain", "60s", "--user", user], "exec sleep 60");
    until(SOON, "the registration", || announcer.log().contains(" registered "));
    announcer.signal(Signal::SIGTERM);
    until(SOON, "the drain", || announcer.log().contains(" draining "));
    announcer
}

#[test]
fn etcd_lost_in_the_middle_of_a_drain_does_not_cut_it_short_nor_prolong_it() {
    let mut site = Site::new();
    site.balancer("lb", &site.applied(0, ""));
    let mut announcer = draining(&site, &["--drain", "3s"]);
    let start = Instant::now();
    std::thread::sleep(Duration::from_millis(500));
    site.etcd.kill(0);
    until(SOON, "the stop", || is_stopping(&announcer));
    let took = start.elapsed();
    assert!((Duration::from_millis(2500)..Duration::from_secs(7)).contains(&took), "{took:?}");
    assert_eq!(announcer.wait(SOON).code(), Some(143));
    assert!(announcer.log().contains("can't read the balancers' acknowledgements"), "{}", announcer.log());
}
