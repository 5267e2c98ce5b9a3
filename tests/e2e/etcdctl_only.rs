//! Nothing of ours in front of the app: README's lines for `etcdctl` are all it takes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

use std::process::Command;
use std::time::Duration;

use lab::{App, Balancer, Etcd, PATIENCE, Page, Process, Scratch, light, until};

#[test]
fn a_shell_script_announces_with_etcdctl() {
    let _turn = light();
    let etcd = Etcd::start();
    let mut app = App::alone("node-1");
    let balancer = Balancer::start(&etcd);
    let script =
        Page::read("README.md").block("etcdctl lease grant").replace("172.17.8.101:8000", &app.address.to_string());
    assert!(script.contains(&app.address.to_string()), "{script}");
    let folder = Scratch::new();
    let mut command = Command::new("sh");
    command.args(["-euc", &script]).env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", etcd.endpoints());
    let mut by_hand = Process::start(&folder, "by-hand", &mut command);

    let response = balancer.wait_status(PATIENCE, "shop.example.com", "/", 200);
    assert_eq!(response.app(), "node-1");
    let key = "http-services/shop/upstreams/node-1";
    assert_ne!(etcd.lease_of(key), Some(0), "it hangs on a lease");
    // Longer than the lease of 10 s: the script keeps it alive.
    std::thread::sleep(Duration::from_secs(12));
    assert!(by_hand.running());
    assert_eq!(etcd.get(key), Some(app.address.to_string()));

    by_hand.kill();
    until(PATIENCE, "the end of the lease", || etcd.get(key).is_none());
    // An upstream that vanishes while its app is up may be kept: that is the guard's matter.
    app.kill();
    balancer.wait_status(PATIENCE, "shop.example.com", "/", 503);
}
