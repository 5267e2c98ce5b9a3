//! A record that another hand deletes, changes or takes: it stands again, or everything that is asked says why not.

use std::time::Duration;

use lab::{Process, Signal, until};

use crate::admin::{OF_A, Shown};
use crate::site::{KEY, SOON, Site, record};

const DOMAIN: &str = "http-services/shop/domain";

/// An announced record with an admin port, as the tests change it.
fn announced(site: &Site, flags: &[&str]) -> Shown {
    let shown = Shown::start(site, flags);
    shown.until_ready(200, "announced");
    shown
}

#[track_caller]
fn until_logged(process: &Process, words: &str) {
    until(SOON, words, || process.log().contains(words).then_some(()).ok_or_else(|| process.log()));
}

#[track_caller]
fn until_restored(site: &Site, shown: &Shown, lease: i64, times: f64) {
    shown.until_metric(&format!("announcer_restorations_total{OF_A}"), times);
    site.until_registered();
    assert_eq!(site.etcd.lease_of(KEY), Some(lease), "the same lease");
    shown.until_ready(200, "announced");
    assert_eq!(shown.metric(&format!("announcer_upstream_registered{OF_A}")), 1.0);
}

#[test]
fn a_deleted_record_is_written_again() {
    let site = Site::new();
    let shown = announced(&site, &["--domain", "a.com"]);
    let lease = site.etcd.lease_of(KEY).unwrap();
    site.etcd.delete(KEY);
    until_restored(&site, &shown, lease, 1.0);
    until_logged(&shown.announcer, "another writer deleted the record, restored it");
    // The whole service, and then all there is.
    for (times, below) in [(2.0, "http-services/shop/"), (3.0, "")] {
        site.etcd.delete_all(below);
        until_restored(&site, &shown, lease, times);
        assert_eq!(site.etcd.get(DOMAIN).as_deref(), Some("a.com"), "{below:?}: a record alone gets no requests");
    }
    // Moved: what stands elsewhere is not the announcer's.
    site.etcd.put("http-services/shop/upstreams/b", site.address().to_string());
    site.etcd.delete(KEY);
    until_restored(&site, &shown, lease, 4.0);
}

#[test]
fn a_record_that_a_person_writes_over_is_written_again() {
    let site = Site::new();
    let shown = announced(&site, &[]);
    let lease = site.etcd.lease_of(KEY).unwrap();
    let heavier = format!(r#"{{"address":"{}","weight":7}}"#, site.address());
    let mut times = 0.0;
    for value in ["10.0.0.9:80", "garbage", &heavier, &site.address().to_string()] {
        site.etcd.put(KEY, value);
        times += 1.0;
        until_restored(&site, &shown, lease, times);
    }
    // With the lease kept, as `etcdctl put --ignore-lease` does.
    site.etcd.put_leased(KEY, heavier, lease);
    until_restored(&site, &shown, lease, times + 1.0);
    until_logged(&shown.announcer, "change weight and state in overrides/ID");
}

#[test]
fn a_record_that_is_deleted_while_the_announcer_does_not_look_is_written_again() {
    let site = Site::new();
    let mut shown = announced(&site, &["--ttl", "60s"]);
    let lease = site.etcd.lease_of(KEY).unwrap();
    shown.announcer.signal(Signal::SIGSTOP);
    site.etcd.delete(KEY);
    site.etcd.put("x", "1");
    site.etcd.compact();
    shown.announcer.signal(Signal::SIGCONT);
    until_restored(&site, &shown, lease, 1.0);
}

/// Waits until one of them has the id and the other says so. Neither may go on writing.
fn until_one_owner(site: &Site, first: &Shown, second: &Shown) {
    first.until_ready(503, &format!("{KEY} belongs to "));
    second.until_ready(200, "announced");
    assert_eq!(first.metric(&format!("announcer_upstream_registered{OF_A}")), 0.0);
    assert_eq!(first.metric(&format!("announcer_upstream_taken{OF_A}")), 1.0);
    until_logged(&first.announcer, "the id is taken");
    let revision = site.etcd.revision();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(site.etcd.revision(), revision, "{}", first.announcer.log());
}

#[test]
fn of_two_announcers_with_one_id_the_later_has_it_and_the_other_says_so() {
    let site = Site::new();
    let first = announced(&site, &["--drain", "0s"]);
    let mut second = announced(&site, &["--drain", "0s"]);
    until_one_owner(&site, &first, &second);
    // Nor does the loss of a lease let them take turns.
    site.etcd.revoke(site.etcd.lease_of(KEY).unwrap());
    until(SOON, "one of them", || {
        let owners = [&first, &second].map(|shown| shown.metric(&format!("announcer_upstream_registered{OF_A}")));
        (owners.iter().sum::<f64>() == 1.0).then_some(()).ok_or(format!("{owners:?}"))
    });
    second.announcer.signal(Signal::SIGTERM);
    assert_eq!(second.announcer.wait(SOON).code(), Some(0));
    first.until_ready(200, "announced");
    site.until_registered();
}

#[test]
fn two_announcers_that_take_over_dont_take_turns() {
    let site = Site::new();
    let first = announced(&site, &["--takeover"]);
    let second = site.command_at("10.0.0.9:80", &["--service", "shop", "--id", "a", "--takeover"]);
    let second = Shown::run(&site, second);
    until_one_owner(&site, &first, &second);
    assert_eq!(site.etcd.get(KEY), Some(record("10.0.0.9:80", "")));
}

#[test]
fn a_permanent_record_of_another_address_is_another_owners() {
    let site = Site::new();
    let shown = announced(&site, &[]);
    site.etcd.put(KEY, r#"{"address":"10.0.0.9:80","permanent":true}"#);
    shown.until_ready(503, &format!("{KEY} belongs to 10.0.0.9:80, which is permanent"));
    site.etcd.delete(KEY);
    shown.until_ready(200, "announced");
    site.until_registered();
}

#[test]
fn what_is_deleted_while_it_drains_stays_away() {
    let site = Site::new();
    site.balancer("lb", &site.applied(0, ""));
    let mut announcer = site.wrap(&["--drain", "60s"], "exec sleep 60");
    site.until_registered();
    announcer.signal(Signal::SIGTERM);
    site.until_value(&site.value("drain"));
    site.etcd.delete(KEY);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(site.etcd.get(KEY), None, "{}", announcer.log());
    site.etcd.put("balancers/lb", site.applied(i64::from(u32::MAX), ""));
    assert_eq!(announcer.wait(SOON).code(), Some(143));
    assert_eq!(site.history(KEY), [site.record(), site.value("drain"), String::new()]);
}

#[test]
fn what_a_person_writes_over_a_drain_is_drained_and_goes() {
    let site = Site::new();
    site.balancer("lb", &site.applied(0, ""));
    let mut announcer = site.wrap(&["--drain", "60s"], "exec sleep 60");
    site.until_registered();
    announcer.signal(Signal::SIGTERM);
    site.until_value(&site.value("drain"));
    site.etcd.put(KEY, site.address().to_string());
    site.until_value(&site.value("drain"));
    site.etcd.put("balancers/lb", site.applied(i64::from(u32::MAX), ""));
    assert_eq!(announcer.wait(SOON).code(), Some(143));
    assert_eq!(site.etcd.get(KEY), None);
}

#[test]
fn a_stop_right_after_a_deletion_still_waits_for_the_balancers() {
    let site = Site::new();
    site.balancer("lb", &site.applied(0, ""));
    let mut announcer = site.wrap(&["--drain", "60s"], "exec sleep 60");
    site.until_registered();
    site.etcd.delete(KEY);
    announcer.signal(Signal::SIGTERM);
    until_logged(&announcer, " draining ");
    std::thread::sleep(Duration::from_secs(1));
    assert!(!announcer.log().contains("stopping the app"), "{}", announcer.log());
    site.etcd.put("balancers/lb", site.applied(i64::from(u32::MAX), ""));
    assert_eq!(announcer.wait(SOON).code(), Some(143));
}

#[test]
fn a_setting_that_another_hand_deletes_or_changes_is_said_and_left() {
    let site = Site::new();
    let shown = announced(&site, &["--domain", "a.com"]);
    shown.until_metric("announcer_settings_differing", 0.0);
    // The first look is what later ones are compared with.
    std::thread::sleep(Duration::from_secs(1));
    site.etcd.delete(DOMAIN);
    shown.until_metric("announcer_settings_differing", 1.0);
    until_logged(&shown.announcer, "another writer deleted a setting");
    shown.until_ready(200, "domain says otherwise than this announcer");
    assert_eq!(site.etcd.get(DOMAIN), None);
    site.etcd.put(DOMAIN, "b.com");
    until_logged(&shown.announcer, "another writer changed a setting");
    assert_eq!(site.etcd.get(DOMAIN).as_deref(), Some("b.com"));
}

#[test]
fn a_role_that_cant_read_the_record_is_said() {
    let site = Site::new();
    site.guard();
    for line in ["role add blind", "role grant-permission blind write --prefix=true /haproxy-discover/http-services/"] {
        site.etcdctl(&format!("--user root:secret {line}"));
    }
    site.etcdctl("--user root:secret user add blind:word");
    site.etcdctl("--user root:secret user grant-role blind blind");
    let shown = Shown::start(&site, &["--user", "blind:word"]);
    shown.until_ready(503, "roles forbid user blind");
    assert_eq!(shown.metric(&format!("announcer_upstream_registered{OF_A}")), 0.0);
    until_logged(&shown.announcer, "can't watch the record");
}
