//! etcd in every state, while the app goes on.

use std::time::{Duration, Instant};

use lab::{Process, Signal, until};

use crate::site::{KEY, SOON, Site, leases};

/// A short lease, so that the tests are; its renewal comes within a third of it.
const TTL: [&str; 2] = ["--ttl", "2s"];

/// Asserts that the process has logged this text so many times.
#[track_caller]
fn logged(process: &Process, what: &str, times: usize) {
    let log = process.log();
    assert_eq!(log.matches(what).count(), times, "{what:?} in\n{log}");
}

/// The lines of all warnings so far.
fn warnings(process: &Process) -> Vec<String> {
    process.log().lines().filter(|line| line.contains(" WARN ")).map(str::to_owned).collect()
}

#[test]
fn a_revoked_lease_is_replaced_and_the_record_with_it() {
    let site = Site::new();
    let mut announcer = site.wrap(&TTL, "exec sleep 60");
    site.until_registered();
    let family = announcer.family();
    let lease = site.etcd.lease_of(KEY).unwrap();
    site.etcd.revoke(lease);
    let start = Instant::now();
    site.until_registered();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_ne!(site.etcd.lease_of(KEY), Some(lease));
    assert_eq!(announcer.family(), family, "the app never noticed");
    site.balancer("lb", &site.applied(0, ""));
    announcer.signal(Signal::SIGTERM);
    site.until_value(&site.value("drain"));
}

#[test]
fn etcd_killed_and_back() {
    let mut site = Site::new();
    let mut announcer = site.wrap(&TTL, "exec sleep 60");
    site.until_registered();
    site.etcd.kill(0);
    until(SOON, "a word about it", || announcer.log().contains("lease renewal failed"));
    std::thread::sleep(Duration::from_secs(3));
    assert!(announcer.running());
    logged(&announcer, " WARN ", 1);
    site.etcd.restart(0);
    site.until_registered();
    // The record may be that of before, whose lease etcd renews as it starts; it must not go with that.
    std::thread::sleep(Duration::from_secs(3));
    site.until_registered();
    // etcd gives the lease its 2 s again as it starts. On a busy machine the announcer may come too late for that, or wait for an
    // answer too long once more. Then it says that the lease has ended, or that another outage began.
    let (log, warned) = (announcer.log(), warnings(&announcer));
    let count = |words: &str| log.matches(words).count();
    let outages = 1 + count("etcd answers again") + count("lease ended, granting another one");
    assert!(count("lease renewal failed, retrying") <= outages, "each outage is told once:\n{log}");
    let known =
        ["lease renewal failed, retrying", "lease ended, granting another one", "the lease has ended, registering"];
    assert!(warned.iter().all(|line| known.iter().any(|words| line.contains(words))), "{log}");
}

#[test]
fn a_wiped_store_gets_everything_anew() {
    let mut site = Site::new();
    let _announcer = site.wrap(&["--ttl", "2s", "--domain", "a.com"], "exec sleep 60");
    site.until_registered();
    site.etcd.wipe();
    site.until_registered();
    assert_eq!(site.etcd.get("http-services/shop/domain").as_deref(), Some("a.com"));
}

#[test]
fn a_store_frozen_past_the_ttl() {
    let mut site = Site::new();
    let mut announcer = site.wrap(&TTL, "exec sleep 60");
    site.until_registered();
    let before = site.etcd.lease_of(KEY);
    site.etcd.freeze(0);
    std::thread::sleep(Duration::from_secs(4));
    assert!(announcer.running());
    site.etcd.thaw(0);
    until(SOON, "the record under a lease that lives", || {
        let now = site.etcd.lease_of(KEY);
        now.is_some() && now != before
    });
    site.until_registered();
}

#[test]
fn etcd_away_at_the_start_delays_the_record_not_the_app() {
    let mut site = Site::new();
    let endpoints = site.etcd.endpoints();
    site.etcd.kill(0);
    let mut command = site.command_at(&site.address().to_string(), &["--service", "shop", "--id", "a"]);
    command.args(["--endpoints", &endpoints, "--", "sh", "-c", "echo > running; exec sleep 60"]);
    let announcer = Process::start(&site.folder, "announcer", &mut command);
    site.until_file("running");
    until(SOON, "a word about it", || announcer.log().contains("can't be reached"));
    std::thread::sleep(Duration::from_secs(2));
    logged(&announcer, " WARN ", 1);
    site.etcd.restart(0);
    site.until_registered();
}

#[test]
fn etcd_away_at_the_end_bounds_the_wait_and_says_so() {
    let mut site = Site::new();
    let mut announcer = site.wrap(&[], "trap 'exit 3' TERM; while :; do sleep 0.05; done");
    site.until_registered();
    site.etcd.kill(0);
    let start = Instant::now();
    announcer.signal(Signal::SIGTERM);
    assert_eq!(announcer.wait(Duration::from_secs(60)).code(), Some(3), "still the app's status");
    // 5 s for the drain, 15 s for balancers that lose the lease's keys meanwhile, and 5 s for the withdrawal.
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
    assert!(start.elapsed() > Duration::from_secs(15), "the lease could end first: {:?}", start.elapsed());
    let log = announcer.log();
    assert!(log.contains("can't write `drain`") && log.contains("their lease ends by itself"), "{log}");
}

#[test]
fn an_app_that_crashes_without_etcd_is_not_held_up() {
    let mut site = Site::new();
    let mut announcer = site.wrap(&[], "until [ -e go ]; do sleep 0.02; done; exit 9");
    site.until_registered();
    site.etcd.kill(0);
    lab::write(site.folder.join("go"), "");
    assert_eq!(announcer.wait(Duration::from_secs(20)).code(), Some(9));
}

#[test]
fn a_killed_announcer_leaves_its_record_to_the_lease() {
    let site = Site::new();
    let mut announcer = site.wrap(&TTL, "exec sleep 60");
    site.until_registered();
    let start = Instant::now();
    announcer.kill();
    until(SOON, "the end of the record", || site.etcd.get(KEY).is_none());
    assert!(start.elapsed() < Duration::from_secs(2 + 2), "TTL + 2 s: {:?}", start.elapsed());
    assert_eq!(leases(&site.etcd), 0);
}
