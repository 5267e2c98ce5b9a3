//! `register`, `deregister`, and what their exit codes say.

use crate::site::{KEY, Site, record};

#[test]
fn a_permanent_record_comes_and_goes() {
    let site = Site::new();
    let (code, log) = site.run(&mut site.command(&["register", "--domain", "a.com,b.com"]));
    assert_eq!(code, 0, "{log}");
    assert_eq!(site.etcd.get(KEY), Some(record(site.address(), r#","permanent":true"#)));
    assert_eq!(site.etcd.lease_of(KEY), Some(0));
    assert_eq!(site.etcd.get("http-services/shop/domain").as_deref(), Some("a.com b.com"));

    let (code, log) = site.run(&mut site.command(&["deregister"]));
    assert_eq!((code, site.etcd.get(KEY)), (0, None), "{log}");
    assert_eq!(site.etcd.get("http-services/shop/domain").as_deref(), Some("a.com b.com"), "settings are durable");
    let (code, log) = site.run(&mut site.command(&["deregister"]));
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("nothing was registered"), "{log}");
}

#[test]
fn a_record_with_a_ttl_hangs_on_a_lease() {
    let site = Site::new();
    let (code, log) = site.run(&mut site.command(&["register", "--ttl", "1m"]));
    assert_eq!(code, 0, "{log}");
    assert_eq!(site.etcd.get(KEY), Some(site.record()));
    assert_ne!(site.etcd.lease_of(KEY), Some(0));
}

#[test]
fn an_id_with_another_address_is_left_alone() {
    let site = Site::new();
    site.etcd.put(KEY, "10.0.0.9:80");
    let (code, log) = site.run(&mut site.command(&["register", "--ttl", "1m"]));
    assert_eq!(code, 4, "{log}");
    assert!(log.contains("10.0.0.9:80") && log.contains("--takeover"), "{log}");
    assert_eq!(crate::site::leases(&site.etcd), 0, "the lease that nothing hangs on is revoked");
    let (code, log) = site.run(&mut site.command(&["deregister"]));
    assert_eq!(code, 4, "{log}");
    assert_eq!(site.etcd.get(KEY).as_deref(), Some("10.0.0.9:80"));

    let (code, log) = site.run(&mut site.command(&["register", "--ttl", "1m", "--takeover"]));
    assert_eq!((code, site.etcd.get(KEY)), (0, Some(site.record())), "{log}");
}

#[test]
fn settings_that_say_otherwise_stay_unless_updated() {
    let site = Site::new();
    site.etcd.put("http-services/shop/domain", "old.com");
    let flags = ["register", "--domain", "new.com", "--set", "balance=leastconn"];
    let (code, log) = site.run(&mut site.command(&flags));
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("old.com") && log.contains("new.com") && log.contains("--update"), "{log}");
    assert_eq!(site.etcd.get("http-services/shop/domain").as_deref(), Some("old.com"));
    assert_eq!(site.etcd.get("http-services/shop/balance").as_deref(), Some("leastconn"), "only what is missing");

    let (code, log) = site.run(site.command(&flags).arg("--update"));
    assert_eq!(code, 0, "{log}");
    assert_eq!(site.etcd.get("http-services/shop/domain").as_deref(), Some("new.com"));
}

#[test]
fn exit_codes_say_what_went_wrong() {
    let mut site = Site::new();
    let (code, log) = site.run(site.command(&["register", "--set", "balance=fastest"]).arg("--update"));
    assert_eq!(code, 2, "{log}");
    assert!(log.contains("balance"), "{log}");

    let mut found = std::process::Command::new(env!("CARGO_BIN_EXE_announcer"));
    found.args(["register", "--service", "shop", "--port", "80", "--endpoints", &site.etcd.endpoints()]);
    let (code, log) = site.run(&mut found);
    assert_eq!(code, 2, "{log}");
    assert!(log.contains("127.0.0.1") && log.contains("--interface"), "{log}");

    let (code, log) = site.run(site.command(&["--domain", "a.com"]).args(["--", "/no/such/program"]));
    assert_eq!(code, 127, "{log}");
    let (code, log) = site.run(site.command(&["--domain", "a.com"]).args(["--", "/etc/passwd"]));
    assert_eq!(code, 126, "{log}");

    let mut register = site.command(&["register"]);
    site.etcd.kill(0);
    let (code, log) = site.run(&mut register);
    assert_eq!(code, 3, "{log}");
    assert!(log.contains("can't be reached"), "{log}");
}
