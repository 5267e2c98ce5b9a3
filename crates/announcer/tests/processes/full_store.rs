//! A stop while etcd refuses to write. The announcer never waits less than the safe time.

use std::time::{Duration, Instant};

use lab::{Etcd, Process, Signal, until};

use crate::admin::Shown;
use crate::site::{KEY, SOON, Site, leases};

/// Enough for etcd to start with, and soon full.
const QUOTA: u64 = 300_000;

/// Says what stands in the store as it is stopped.
const APP: &str = r#"trap 'etcdctl get "$KEY" --print-value-only > seen.new; mv seen.new seen; exit 3' TERM
    while :; do sleep 0.02; done"#;

/// Told to stop; returns how long the app was left alone.
fn stop(announcer: &mut Process) -> Duration {
    let start = Instant::now();
    announcer.signal(Signal::SIGTERM);
    until(SOON * 2, "the stop", || announcer.log().contains("stopping the app"));
    start.elapsed()
}

#[test]
fn a_full_store_takes_no_drain_so_the_record_goes_and_balancers_get_their_time() {
    let site = Site::with(Etcd::with_quota(QUOTA));
    site.balancer("lb", &site.applied(0, ""));
    let mut announcer = site.wrap(&[], APP);
    site.until_registered();
    site.etcd.fill();
    let took = stop(&mut announcer);
    assert!(took >= Duration::from_secs(7), "{took:?}\n{}", announcer.log());
    assert_eq!(announcer.wait(SOON).code(), Some(3), "the app's own status");
    assert_eq!(std::fs::read_to_string(site.folder.join("seen")).unwrap(), "", "deleted before the app was stopped");
    let log = announcer.log();
    assert!(log.contains("database space exceeded") && log.contains("records deleted"), "{log}");
    assert_eq!((site.etcd.get(KEY), leases(&site.etcd)), (None, 1), "the balancer's");
}

#[test]
fn an_app_that_crashes_with_a_full_store_is_withdrawn() {
    let site = Site::with(Etcd::with_quota(QUOTA));
    let mut announcer = site.wrap(&["--ttl", "600s"], "until [ -e go ]; do sleep 0.02; done; exit 9");
    site.until_registered();
    site.etcd.fill();
    lab::write(site.folder.join("go"), "");
    assert_eq!(announcer.wait(SOON).code(), Some(9));
    assert_eq!((site.etcd.get(KEY), leases(&site.etcd)), (None, 0), "{}", announcer.log());
}

#[test]
fn a_record_that_a_full_store_doesnt_take_again_is_said() {
    let site = Site::with(Etcd::with_quota(QUOTA));
    let shown = Shown::start(&site, &["--drain", "0s"]);
    shown.until_ready(200, "announced");
    site.etcd.fill();
    site.etcd.delete(KEY);
    shown.until_ready(503, "database space exceeded");
}

#[test]
fn a_role_that_was_taken_away_leaves_the_lease_to_end_first() {
    let site = Site::new();
    site.guard();
    let flags = ["--user", "shop:word", "--ttl", "2s", "--drain", "60s"];
    let mut announcer = site.wrap(&flags, "exec sleep 60");
    until(SOON, "the registration", || announcer.log().contains(" registered "));
    let upstreams = "/haproxy-discover/http-services/shop/upstreams/";
    site.etcdctl(&format!("--user root:secret role revoke-permission shop --prefix=true {upstreams}"));
    let took = stop(&mut announcer);
    // The lease's 2 s, and what balancers need.
    assert!(took >= Duration::from_secs(9), "{took:?}\n{}", announcer.log());
    assert_eq!(announcer.wait(SOON).code(), Some(143));
    site.etcdctl("--user root:secret auth disable");
    assert_eq!(site.etcd.get(KEY), None, "{}", announcer.log());
}

#[test]
fn a_login_that_no_longer_holds_is_renewed_and_the_drain_is_written() {
    let site = Site::new();
    site.guard();
    site.etcdctl("--user root:secret role grant-permission shop read --prefix=true /haproxy-discover/balancers/");
    let mut announcer = site.wrap(&["--user", "shop:word", "--drain", "60s"], "exec sleep 60");
    until(SOON, "the registration", || announcer.log().contains(" registered "));
    // Each change of a role or user makes all tokens old.
    site.etcdctl("--user root:secret role add another");
    announcer.signal(Signal::SIGTERM);
    assert_eq!(announcer.wait(SOON).code(), Some(143));
    let log = announcer.log();
    assert!(log.contains(r#"state="drain""#) && !log.contains("can't write `drain`"), "{log}");
}
