//! Several upstreams of one announcer.

use std::{net::TcpListener, process::Command, time::Duration};

use lab::{Etcd, Process, Signal, until};

use crate::site::{HOST, KEY, SOON, Site, leases, record};

const OTHER: &str = "tcp-services/db/upstreams/b";

/// A file that announces the site's address as `http-shop/a` and another one as `tcp-db/b`, which is up while the file
/// `db-works` is there.
fn file(site: &Site, other: &TcpListener) -> String {
    let db_works = site.folder.join("db-works");
    let accepting = other.try_clone().unwrap();
    std::thread::spawn(move || accepting.incoming().for_each(drop));
    let text = format!(
        r#"
        [[announce]]
        service = "shop"
        domain = ["a.com", "b.com"]
        id = "a"
        host-name = "{HOST}"
        upstream = "{}"

        [[announce]]
        type = "tcp"
        service = "db"
        ports = 3306
        set = {{ balance = "leastconn", maxconn = 100 }}
        id = "b"
        host-name = "{HOST}"
        upstream = "{}"
        check = ["tcp", "exec:test -e {}"]
        check-interval = "50ms"
        check-fall = 2
        "#,
        site.address(),
        other.local_addr().unwrap(),
        db_works.display(),
    );
    let path = site.folder.join("announcer.toml");
    lab::write(&path, text);
    path.display().to_string()
}

fn announcer(site: &Site, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_announcer"));
    command.args(flags).args(["--endpoints", &site.etcd.endpoints()]);
    command
}

#[test]
fn several_upstreams_share_a_lease_and_a_transaction() {
    let site = Site::with(Etcd::unrecorded());
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let file = file(&site, &other);
    lab::write(site.folder.join("db-works"), "");
    let mut command = announcer(&site, &["--config", &file, "--ttl", "2s", "--drain", "10s"]);
    let mut process = Process::start(&site.folder, "announcer", &mut command);
    let address = other.local_addr().unwrap().to_string();
    let is = |value: &str| until(SOON, value, || site.etcd.get(OTHER).is_some_and(|stands| stands == value));
    site.until_registered();
    is(&record(&address, ""));
    for (key, value) in [
        ("http-services/shop/domain", "a.com b.com"),
        ("tcp-services/db/ports", "*:3306"),
        ("tcp-services/db/balance", "leastconn"),
        ("tcp-services/db/maxconn", "100"),
    ] {
        assert_eq!(site.etcd.get(key).as_deref(), Some(value), "{key}");
    }
    assert_eq!((leases(&site.etcd), site.etcd.lease_of(KEY)), (1, site.etcd.lease_of(OTHER)));
    until(SOON, "two watches on one stream", || {
        let count = |what: &str| site.etcd.metric(&format!("etcd_debugging_mvcc_{what}_total"));
        let counts = (count("watch_stream"), count("watcher"));
        if counts == (1.0, 2.0) { Ok(()) } else { Err(format!("{counts:?}")) }
    });

    // One upstream is down, and the other still works.
    let written = site.written_at(KEY);
    std::fs::remove_file(site.folder.join("db-works")).unwrap();
    is(&record(&address, r#","state":"down""#));
    assert_eq!(site.written_at(KEY), written);

    // After a loss they come back together, each as it is.
    site.etcd.revoke(site.etcd.lease_of(KEY).unwrap());
    site.until_registered();
    is(&record(&address, r#","state":"down""#));
    assert_eq!(site.written_at(KEY), site.written_at(OTHER), "one transaction");
    lab::write(site.folder.join("db-works"), "");
    is(&record(&address, ""));

    // Both upstreams drain together.
    let lease = site.balancer("lb", &site.applied(0, ""));
    process.signal(Signal::SIGTERM);
    is(&record(&address, r#","state":"drain""#));
    assert_eq!(site.written_at(KEY), site.written_at(OTHER), "one transaction");
    site.etcd.put("balancers/lb", site.applied(site.written_at(KEY), r#","draining":{"tcp-db/b":1}"#));
    std::thread::sleep(Duration::from_millis(300));
    assert!(process.running(), "one of them is still draining");
    site.etcd.put_leased("balancers/lb", site.applied(site.written_at(KEY), ""), lease);
    assert_eq!(process.wait(SOON).code(), Some(0));
    site.etcd.revoke(lease);
    assert_eq!((site.etcd.get(KEY), site.etcd.get(OTHER), leases(&site.etcd)), (None, None, 0));
}

#[test]
fn roles_that_allow_one_of_them_do_not_keep_it_from_being_announced() {
    let site = Site::new();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let file = file(&site, &other);
    lab::write(site.folder.join("db-works"), "");
    site.guard();
    let mut command = announcer(&site, &["--config", &file, "--user", "shop:word"]);
    let process = Process::start(&site.folder, "announcer", &mut command);
    until(SOON, "the one", || process.log().contains(" registered "));
    until(SOON, "a word about the other", || process.log().contains("roles forbid user shop"));
    let log = process.log();
    assert!(log.contains(&format!("/haproxy-discover/{OTHER}")), "{log}");
    site.etcdctl("--user root:secret auth disable");
    assert_eq!(site.etcd.get(KEY), Some(site.record()));
}

#[test]
fn one_shot_forms_take_a_file_too() {
    let site = Site::new();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let file = file(&site, &other);
    let (code, log) = site.run(&mut announcer(&site, &["register", "--config", &file, "--ttl", "1m"]));
    assert_eq!(code, 0, "{log}");
    assert_eq!(site.written_at(KEY), site.written_at(OTHER), "one transaction");
    let (code, log) = site.run(&mut announcer(&site, &["deregister", "--config", &file]));
    assert_eq!((code, site.etcd.get(KEY), site.etcd.get(OTHER)), (0, None, None), "{log}");
}

#[test]
fn a_file_can_be_checked() {
    let site = Site::new();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let file = file(&site, &other);
    let check = |file: &str| site.run(Command::new(env!("CARGO_BIN_EXE_announcer")).args(["check-config", file]));
    let (code, said) = check(&file);
    assert_eq!(code, 0, "{said}");
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].starts_with("http-services/shop/upstreams/a port "), "{said}");
    assert!(lines[1].starts_with(OTHER) && lines[1].contains(", tcp, exec:test -e "), "{said}");
    lab::write(site.folder.join("bad.toml"), "[[announce]]\nservice = 'shop'\nprot = 8000\n");
    let (code, said) = check(&site.folder.join("bad.toml").display().to_string());
    assert_eq!(code, 2);
    assert!(said.contains("bad.toml line 3: there is no key `prot`; did you mean `port"), "{said}");
    let (code, _) = check("/no/such/file");
    assert_eq!(code, 2);
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../units/announcer.toml");
    let (code, said) = check(example);
    assert_eq!(code, 0, "the example is right: {said}");
}
