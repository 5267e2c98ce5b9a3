//! Whose id it is, and whose settings.

use std::time::Duration;

use lab::{Process, Signal, until};

use crate::site::{KEY, SOON, Site, record};

const OTHER: &str = "10.0.0.9:80";

#[test]
fn an_id_with_another_address_is_waited_for() {
    let site = Site::new();
    let lease = site.etcd.grant(600);
    site.etcd.put_leased(KEY, OTHER, lease);
    let announcer = site.beside("announcer", &[]);
    until(SOON, "a word about it", || {
        let log = announcer.log();
        log.contains("the id is taken") && log.contains(OTHER)
    });
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(site.etcd.get(KEY).as_deref(), Some(OTHER));
    assert_eq!(announcer.log().matches("the id is taken").count(), 1, "said once");
    site.etcd.revoke(lease);
    site.until_registered();
}

#[test]
fn takeover_does_not_wait_and_the_other_leaves_it_alone() {
    let site = Site::new();
    let mut command = site.command_at(OTHER, &["--service", "shop", "--id", "a", "--drain", "0s"]);
    let mut first = Process::start(&site.folder, "first", &mut command);
    site.until_value(&record(OTHER, ""));
    let _second = site.beside("second", &["--takeover"]);
    site.until_registered();
    first.signal(Signal::SIGTERM);
    assert_eq!(first.wait(SOON).code(), Some(0));
    assert_eq!(site.history(KEY), [record(OTHER, ""), site.record()], "neither drained nor deleted");
    assert!(first.log().contains("no longer ours"), "{}", first.log());
}

#[test]
fn the_same_address_is_taken_over_at_once() {
    let site = Site::new();
    let lease = site.etcd.grant(600);
    site.etcd.put_leased(KEY, site.address().to_string(), lease);
    let mut announcer = site.beside("announcer", &["--drain", "0s"]);
    until(SOON, "our own lease", || site.etcd.lease_of(KEY).is_some_and(|now| now != lease));
    site.etcd.revoke(lease);
    site.until_registered();
    announcer.signal(Signal::SIGTERM);
    announcer.wait(SOON);
    assert_eq!(site.etcd.get(KEY), None);
}

#[test]
fn a_difference_is_said_once_even_if_the_lease_is_lost() {
    let site = Site::new();
    site.etcd.put("http-services/shop/domain", "old.com");
    let announcer = site.beside("announcer", &["--domain", "new.com", "--ttl", "2s"]);
    site.until_registered();
    site.etcd.revoke(site.etcd.lease_of(KEY).unwrap());
    until(SOON, "the loss", || announcer.log().contains("registering again"));
    site.until_registered();
    assert_eq!(announcer.log().matches("setting differs in the store").count(), 1, "{}", announcer.log());
    assert_eq!(site.etcd.get("http-services/shop/domain").as_deref(), Some("old.com"));
}

#[test]
fn roles_that_forbid_settings_leave_the_upstream() {
    let site = Site::new();
    site.etcd.put("http-services/shop/domain", "old.com");
    site.guard();
    let flags = ["--domain", "new.com", "--tls", "off", "--user", "shop:word", "--drain", "0s"];
    let mut announcer = site.beside("announcer", &flags);
    until(SOON, "both differences", || {
        let log = announcer.log();
        let differs = log.contains(r#"stored="old.com""#) && log.contains(r#"stored="nothing""#);
        differs && log.contains("roles forbid") && log.contains(" registered ")
    });
    announcer.signal(Signal::SIGTERM);
    assert_eq!(announcer.wait(SOON).code(), Some(0), "a lease of one's own may be revoked");
    site.etcdctl("--user root:secret auth disable");
    assert_eq!(site.etcd.get("http-services/shop/domain").as_deref(), Some("old.com"));
    assert_eq!(site.etcd.get(KEY), None);
}

#[test]
fn a_host_that_another_service_names_is_not_claimed() {
    let site = Site::new();
    site.etcd.put("http-services/old/domain", "shop.com www.shop.com");
    let flags = ["--domain", "www.shop.com", "--tls", "off", "--ttl", "2s"];
    let announcer = site.beside("announcer", &flags);
    site.until_registered();
    let (domain, tls) = ("http-services/shop/domain", "http-services/shop/tls");
    assert_eq!((site.etcd.get(domain), site.etcd.get(tls).as_deref()), (None, Some("off")), "{}", announcer.log());
    assert!(announcer.log().contains("www.shop.com/ is named by http-old already"), "{}", announcer.log());
    // It is looked again with each lease.
    site.etcd.put("http-services/old/domain", "shop.com");
    site.etcd.revoke(site.etcd.lease_of(KEY).unwrap());
    until(SOON, "the domain", || site.etcd.get(domain).is_some_and(|domain| domain == "www.shop.com"));
}
