//! What passes confgen's own checks and not HAProxy's: the culprit is left out, everybody else is served.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

use std::time::Duration;

use lab::{App, Balancer, Etcd, Setup, heavy, until, write};

const DEADLINE: Duration = Duration::from_secs(30);

/// A regular expression for Rust, and none for PCRE: nothing to repeat.
const REFUSED: &str = "^*";

#[test]
fn a_service_that_haproxy_refuses_hurts_nobody_else() {
    let _alone = heavy();
    let etcd = Etcd::start();
    let (shop, blog) = (App::alone("shop-1"), App::alone("blog-1"));
    etcd.http_service("shop", "shop.test", &[&shop]);
    etcd.http_service("old", "old.test", &[&blog]);
    let balancer = Balancer::start(&etcd);
    balancer.wait_status(DEADLINE, "old.test", "/", 200);

    // A service with a good form keeps it; one without is left out.
    etcd.put_all([("http-services/old/url_reg", REFUSED), ("http-services/new/url_reg", REFUSED)].map(owned));
    etcd.put("http-services/new/domain", "new.test");
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
    etcd.put("http-services/new/url_reg", "^/new/");
    balancer.wait_status(DEADLINE, "new.test", "/", 503);
    etcd.delete("http-services/old/url_reg");
    balancer.wait_in_sync(DEADLINE);
}

fn owned((key, value): (&str, &str)) -> (String, Vec<u8>) {
    (key.to_owned(), value.as_bytes().to_vec())
}

#[test]
fn an_operators_broken_file_is_named_and_stops_no_server() {
    let _alone = heavy();
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
