//! A package's upgrade puts another HAProxy in the place of the program that runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::rename;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use lab::load::{Kind, Plan};
use lab::{App, Balancer, Etcd, PATIENCE, Setup, heavy, until};

/// Requests a second of each kind.
const RATE: u32 = 1_000;

/// Replaces the program as dpkg does.
fn install(haproxy: &str, program: &Path) {
    let new = program.with_extension("dpkg-new");
    symlink(haproxy, &new).unwrap();
    rename(new, program).unwrap();
}

/// `2.6.12-1+deb12u2`, as the program says.
fn release(haproxy: &str) -> String {
    let output = Command::new(haproxy).arg("-v").output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().nth(2).unwrap().to_owned()
}

/// A field of `show info`.
fn info(balancer: &Balancer, field: &str) -> String {
    let answer = balancer.ask("show info");
    let value = answer.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(": "));
    value.unwrap_or_else(|| panic!("no {field} in {answer}")).to_owned()
}

/// Waits until these and no others take requests.
#[track_caller]
fn wait_up(balancer: &Balancer, wanted: &[&str]) {
    until(PATIENCE, &format!("{wanted:?} to take requests"), || {
        let up = balancer.servers_up("http-shop");
        if up == wanted { Ok(()) } else { Err(format!("{up:?}")) }
    });
}

/// What runs serves on and follows the store; the next restart, an operator's or confgen's, brings the other release in
/// with the sockets and the servers' states, and back again.
#[test]
#[ignore = "needs a second HAProxy, whose path is in OTHER_HAPROXY: make test-haproxy"]
fn the_next_restart_brings_another_release_in_and_loses_nothing() {
    let _turn = heavy();
    let path = Command::new("sh").args(["-c", "command -v haproxy"]).output().unwrap().stdout;
    let this = String::from_utf8(path).unwrap().trim().to_owned();
    let other = std::env::var("OTHER_HAPROXY").expect("OTHER_HAPROXY, the path of another HAProxy");
    assert_ne!(release(&this), release(&other), "{this} and {other} are of one release");

    let etcd = Etcd::start();
    let apps = ["shop-1", "shop-2", "shop-3"].map(App::alone);
    etcd.http_service("shop", "shop.test", &[&apps[0], &apps[1]]);
    let setup = Setup::new();
    let program = setup.folder().join("haproxy");
    install(&other, &program);
    let balancer = setup.haproxy(&program).confgen(&etcd).start();
    wait_up(&balancer, &["shop-1", "shop-2"]);
    balancer.wait_in_sync(PATIENCE);
    let start = |kind| Plan::new(kind, balancer.http(), "shop.test").rate(RATE).start();
    let loads = [Kind::PerRequest, Kind::KeepAlive].map(|kind| (kind, start(kind)));

    for (from, to) in [(&other, &this), (&this, &other)] {
        install(to, &program);
        let pid = info(&balancer, "Pid");
        // Followed by the one that runs, whose program is gone from the disk.
        etcd.http_service("shop", "shop.test", &[&apps[0], &apps[1], &apps[2]]);
        wait_up(&balancer, &["shop-1", "shop-2", "shop-3"]);
        etcd.put("http-services/shop/overrides/shop-2", r#"{"state":"drain"}"#);
        wait_up(&balancer, &["shop-1", "shop-3"]);
        until(PATIENCE, "the drain in the file", || {
            let file = balancer.file();
            file.lines().any(|line| line.contains("server shop-2 ") && line.contains("weight 0"))
        });
        assert_eq!((info(&balancer, "Pid"), info(&balancer, "Version")), (pid, release(from)), "it was restarted");

        if to == &this {
            balancer.restart();
        } else {
            // A section of its own comes with a restart alone.
            etcd.http_service("blog", "blog.test", &[&apps[0]]);
            balancer.wait_status(PATIENCE, "blog.test", "/", 200);
        }
        until(PATIENCE, &format!("HAProxy {} to serve", release(to)), || info(&balancer, "Version") == release(to));
        wait_up(&balancer, &["shop-1", "shop-3"]);
        // Followed by the new one.
        etcd.delete("http-services/shop/overrides/shop-2");
        wait_up(&balancer, &["shop-1", "shop-2", "shop-3"]);
        etcd.delete("http-services/shop/upstreams/shop-3");
        wait_up(&balancer, &["shop-1", "shop-2"]);
        balancer.wait_in_sync(PATIENCE);
    }

    for (kind, load) in loads {
        let report = load.stop();
        println!("{kind:?}: {report}");
        report.assert_nothing_lost();
    }
}
