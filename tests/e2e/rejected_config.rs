//! What passes confgen's own checks and not HAProxy's: the culprit is left out, everybody else is served.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt as _;

use lab::{App, Ground, PATIENCE, light, until, write};

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
    let _turn = light();
    let build = Ground::build().http("shop", "shop.test", &["shop-1"]).http("old", "old.test", &["blog-1"]);
    let ground = build.file("conf.d/mine.cfg", PROFILE).start();
    let (Ground { etcd, balancer, .. }, blog) = (&ground, ground.app("blog-1"));

    // A service with a good form keeps it; one without is left out.
    etcd.put_all(["old", "new"].map(|service| (format!("http-services/{service}/profile"), b"mine".to_vec())));
    etcd.http_service("new", "new.test", &[blog]);
    etcd.http_service("blog", "blog.test", &[blog]);
    balancer.wait_status(PATIENCE, "blog.test", "/", 200);
    balancer.wait_status(PATIENCE, "old.test", "/", 200);
    balancer.wait_status(PATIENCE, "new.test", "/", 404);
    let log = balancer.log("confgen");
    for culprit in [
        "key=http-services/old/ reason=HAProxy refuses the service",
        "key=http-services/new/ reason=HAProxy refuses the service",
    ] {
        assert!(log.contains(culprit), "{log}");
    }

    // Mended, it is served, and the file is what HAProxy runs.
    etcd.delete("http-services/new/profile");
    balancer.wait_status(PATIENCE, "new.test", "/", 200);
    etcd.delete("http-services/old/profile");
    balancer.wait_status(PATIENCE, "old.test", "/", 200);
    balancer.wait_in_sync(PATIENCE);
}

/// What a restart was wanted for is refused while that restart waits for the one before: it has no part in it then.
#[test]
fn a_service_that_is_refused_when_its_restart_is_due_waits_for_none() {
    let _turn = light();
    let build = Ground::build().http("shop", "shop.test", &["shop-1"]).file("conf.d/mine.cfg", PROFILE);
    // A check of thousands of services takes as long, and to find the culprit takes five of them.
    let slow = build.setup.folder().join("slow");
    write(&slow, "#!/bin/sh\ncase \" $* \" in *' -c '*) sleep 0.7 ;; esac\nexec haproxy \"$@\"\n");
    set_permissions(&slow, Permissions::from_mode(0o755)).unwrap();
    let build = build.with(|setup| setup.haproxy(&slow)).flags(&["--restart-interval", "2s"]);
    let Ground { etcd, balancer, apps, .. } = build.start();

    // Three restarts may follow each other at once.
    for name in ["wiki", "news", "blog"] {
        etcd.http_service(name, &format!("{name}.test"), &[&apps[0]]);
        balancer.wait_status(PATIENCE, &format!("{name}.test"), "/", 200);
    }
    etcd.put("http-services/shop/profile", "mine");
    balancer.wait_logged("HAProxy refuses http-shop");
    balancer.wait_settled(PATIENCE);

    // Written anew, it is judged anew, and its upstreams come and go in either case.
    let upstream = "http-services/shop/upstreams/shop-1";
    etcd.put(upstream, format!(r#"{{"address":"{}","state":"drain"}}"#, apps[0].address));
    until(PATIENCE, "it to be out", || balancer.servers_up("http-shop").is_empty());
    etcd.put(upstream, apps[0].address.to_string());
    balancer.wait_status(PATIENCE, "shop.test", "/", 200);
    balancer.wait_settled(PATIENCE);
    let log = balancer.log("confgen");
    assert!(!log.contains("restarting HAProxy reason=http-shop"), "{log}");
}

#[test]
fn an_operators_broken_file_is_named_and_stops_no_server() {
    let _turn = light();
    let Ground { etcd, balancer, apps, .. } = Ground::build().http("shop", "shop.test", &["shop-1"]).start();
    let broken = balancer.folder().join("conf.d/mine.cfg");

    write(&broken, "frontend mine\n    bind *:not-a-port\n");
    balancer.wait_logged("refuses the operator's own files");
    assert!(!balancer.log("confgen").contains("quarantine"), "no service is to blame");
    // Servers still come, and HAProxy still runs what it ran.
    let two = App::alone("shop-2");
    etcd.http_service("shop", "shop.test", &[&apps[0], &two]);
    balancer.wait_servers(PATIENCE, "http-shop", 2);
    balancer.wait_status(PATIENCE, "shop.test", "/", 200);

    write(&broken, "# mended\n");
    until(PATIENCE, "shop-2 in the file", || balancer.file().contains("server shop-2 "));
    balancer.wait_in_sync(PATIENCE);
}

#[test]
fn a_port_that_can_not_be_bound_hurts_no_other_service() {
    let _turn = light();
    let Ground { etcd, balancer, apps, .. } = Ground::build().http("shop", "shop.test", &["shop-1"]).start();

    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    // RFC 5737: an address for documentation, which no host has.
    etcd.put("tcp-services/foreign/ports", "203.0.113.9:3306");
    etcd.put("tcp-services/taken/ports", taken.to_string());
    until(PATIENCE, "both to be named", || {
        let log = balancer.log("confgen");
        log.contains("203.0.113.9:3306: this host has no such address")
            && log.contains(&format!("{taken}: another program holds the port"))
    });
    etcd.http_service("blog", "blog.test", &[&apps[0]]);
    balancer.wait_status(PATIENCE, "blog.test", "/", 200);
    balancer.wait_status(PATIENCE, "shop.test", "/", 200);
    balancer.wait_in_sync(PATIENCE);
}
