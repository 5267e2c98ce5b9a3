//! What passes confgen's own checks and not HAProxy's: the culprit is left out, everybody else is served.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use lab::{App, Balancer, Etcd, Setup, light, until, write};

const DEADLINE: Duration = Duration::from_secs(30);

/// Fine by itself; a service that takes it has servers with TLS and without an authority, which HAProxy refuses.
pub(crate) const PROFILE: &str = "defaults mine
    mode http
    default-server ssl
    timeout client 1s
    timeout connect 1s
    timeout server 1s
";

#[test]
fn a_service_that_haproxy_refuses_hurts_no_other_service() {
    let _alone = light();
    let etcd = Etcd::start();
    let (shop, blog) = (App::alone("shop-1"), App::alone("blog-1"));
    etcd.http_service("shop", "shop.test", &[&shop]);
    etcd.http_service("old", "old.test", &[&blog]);
    let setup = Setup::new().confgen(&etcd);
    write(setup.folder().join("conf.d/mine.cfg"), PROFILE);
    let balancer = setup.start();
    balancer.wait_status(DEADLINE, "old.test", "/", 200);

    // A service with a good form keeps it; one without is left out.
    etcd.put_all(["old", "new"].map(|service| (format!("http-services/{service}/profile"), b"mine".to_vec())));
    etcd.http_service("new", "new.test", &[&blog]);
    etcd.http_service("blog", "blog.test", &[&blog]);
    balancer.wait_status(DEADLINE, "blog.test", "/", 200);
    balancer.wait_status(DEADLINE, "old.test", "/", 200);
    balancer.wait_status(DEADLINE, "new.test", "/", 404);
    let log = balancer.log("confgen");
    for culprit in
        ["http-services/old/: HAProxy refuses the service", "http-services/new/: HAProxy refuses the service"]
    {
        assert!(log.contains(culprit), "{log}");
    }

    // Mended, it is served, and the file is what HAProxy runs.
    etcd.delete("http-services/new/profile");
    balancer.wait_status(DEADLINE, "new.test", "/", 200);
    etcd.delete("http-services/old/profile");
    balancer.wait_status(DEADLINE, "old.test", "/", 200);
    balancer.wait_in_sync(DEADLINE);
}

/// What a restart was wanted for is refused while that restart waits for the one before: it has no part in it then.
#[test]
fn a_service_that_is_refused_when_its_restart_is_due_waits_for_none() {
    let _alone = light();
    let etcd = Etcd::start();
    let app = App::alone("shop-1");
    etcd.http_service("shop", "shop.test", &[&app]);
    let setup = Setup::new();
    // A check of thousands of services takes as long, and to find the culprit takes five of them.
    let slow = setup.folder().join("slow");
    write(&slow, "#!/bin/sh\ncase \" $* \" in *' -c '*) sleep 0.7 ;; esac\nexec haproxy \"$@\"\n");
    set_permissions(&slow, Permissions::from_mode(0o755)).unwrap();
    let setup = setup.haproxy(&slow).confgen(&etcd).flags(&["--restart-interval", "2s"]);
    write(setup.folder().join("conf.d/mine.cfg"), PROFILE);
    let balancer = setup.start();
    balancer.wait_status(DEADLINE, "shop.test", "/", 200);

    // Three restarts may follow each other at once.
    for name in ["wiki", "news", "blog"] {
        etcd.http_service(name, &format!("{name}.test"), &[&app]);
        balancer.wait_status(DEADLINE, &format!("{name}.test"), "/", 200);
    }
    etcd.put("http-services/shop/profile", "mine");
    until(DEADLINE, "the culprit to be named", || balancer.log("confgen").contains("HAProxy refuses http-shop"));
    balancer.wait_settled(DEADLINE);

    // Written anew, it is judged anew, and its upstreams come and go in either case.
    let upstream = "http-services/shop/upstreams/shop-1";
    etcd.put(upstream, format!(r#"{{"address":"{}","state":"drain"}}"#, app.address));
    until(DEADLINE, "it to be out", || balancer.servers_up("http-shop").is_empty());
    etcd.put(upstream, app.address.to_string());
    balancer.wait_status(DEADLINE, "shop.test", "/", 200);
    balancer.wait_settled(DEADLINE);
    let log = balancer.log("confgen");
    assert!(!log.contains("restart: http-shop"), "{log}");
}

#[test]
fn an_operators_broken_file_is_named_and_stops_no_server() {
    let _alone = light();
    let etcd = Etcd::start();
    let (one, two) = (App::alone("shop-1"), App::alone("shop-2"));
    etcd.http_service("shop", "shop.test", &[&one]);
    let setup = Setup::new().confgen(&etcd);
    let broken = setup.folder().join("conf.d/mine.cfg");
    let balancer = setup.start();
    balancer.wait_servers(DEADLINE, "http-shop", 1);

    write(&broken, "frontend mine\n    bind *:not-a-port\n");
    until(DEADLINE, "the operator's file to be named", || {
        balancer.log("confgen").contains("refuses the operator's own files")
    });
    assert!(!balancer.log("confgen").contains("quarantine"), "no service is to blame");
    // Servers still come, and HAProxy still runs what it ran.
    etcd.http_service("shop", "shop.test", &[&one, &two]);
    balancer.wait_servers(DEADLINE, "http-shop", 2);
    balancer.wait_status(DEADLINE, "shop.test", "/", 200);

    write(&broken, "# mended\n");
    until(DEADLINE, "shop-2 in the file", || balancer.file().contains("server shop-2 "));
    balancer.wait_in_sync(DEADLINE);
}

#[test]
fn a_port_that_can_not_be_bound_hurts_no_other_service() {
    let _alone = light();
    let etcd = Etcd::start();
    let app = App::alone("shop-1");
    etcd.http_service("shop", "shop.test", &[&app]);
    let balancer = Balancer::start(&etcd);
    balancer.wait_status(DEADLINE, "shop.test", "/", 200);

    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    // RFC 5737: an address for documentation, which no host has.
    etcd.put("tcp-services/foreign/ports", "203.0.113.9:3306");
    etcd.put("tcp-services/taken/ports", taken.to_string());
    until(DEADLINE, "both to be named", || {
        let log = balancer.log("confgen");
        log.contains("203.0.113.9:3306: this host has no such address")
            && log.contains(&format!("{taken}: another program holds the port"))
    });
    etcd.http_service("blog", "blog.test", &[&app]);
    balancer.wait_status(DEADLINE, "blog.test", "/", 200);
    balancer.wait_status(DEADLINE, "shop.test", "/", 200);
    balancer.wait_in_sync(DEADLINE);
}
