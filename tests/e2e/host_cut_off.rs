//! A host is cut off the network, and connected again: what its upstreams' clients see of it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use lab::load::{Kind, Plan};
use lab::{App, Etcd, Ground, Host, PATIENCE, Setup, light, until};

/// Longer than HAProxy's checks take: 3 failed ones, 2 s apart.
const TTL: Duration = Duration::from_secs(10);

/// How long a client waits for an answer.
const ANSWERS: Duration = Duration::from_secs(3);

#[test]
#[ignore = "needs namespaces of its own: make test runs it where it may make them"]
fn a_host_that_is_cut_off_is_left_out_and_comes_back() {
    let _turn = light();
    let host = Host::new();
    let etcd = Etcd::at(host.gateway());
    let balancer = Setup::new().confgen(&etcd).start();
    let flags = ["--service", "shop", "--domain", Ground::HOST, "--ttl", "10s"];
    let _apps = ["shop-1", "shop-2"].map(|name| App::announced(name, &etcd, &flags));
    let far = App::announced_on(&host, "shop-3", &etcd, &flags);
    balancer.wait_servers(PATIENCE, "http-shop", 3);
    balancer.wait_in_sync(PATIENCE);
    let is_up = || balancer.servers_up("http-shop").contains(&far.name);
    // One whose connections are still open can't be deleted yet; nothing new is sent to it.
    let is_known = || {
        let table = balancer.ask("show stat");
        table.lines().any(|row| row.starts_with("http-shop,shop-3,") && !row.contains(",MAINT,"))
    };

    let loads = [Kind::PerRequest, Kind::KeepAlive].map(|kind| {
        let mut plan = Plan::new(kind, balancer.http(), Ground::HOST).rate(200);
        plan.timeout = ANSWERS;
        plan.start()
    });
    until(PATIENCE, "answers from there", || loads.iter().all(|it| it.report().upstreams.contains_key("shop-3")));
    assert!(is_up() && is_known());
    host.cut();
    let cut = Instant::now();
    until(PATIENCE, "HAProxy's checks to find it down", || !is_up());
    let down = Instant::now();
    assert!(is_known(), "the checks were quicker than the lease");
    until(TTL + PATIENCE, "it to go with its lease", || !is_known());
    println!("cut off: down after {:.1?}, gone after {:.1?} (TTL {TTL:?})", down - cut, cut.elapsed());

    // What was sent before the checks found it down may have been lost; nobody can know of it any sooner.
    let lost = |at: Duration, started: Instant| started + at > down + ANSWERS;
    host.connect();
    let connected = Instant::now();
    until(PATIENCE, "it to come back", is_up);
    println!("connected: back after {:.1?}", connected.elapsed());
    let before: Vec<u64> = loads.iter().map(|load| load.report().upstreams["shop-3"].answers).collect();
    until(PATIENCE, "answers from there again", || {
        loads.iter().zip(&before).all(|(load, before)| load.report().upstreams["shop-3"].answers > *before)
    });
    for load in loads {
        let report = load.stop();
        println!("{report}");
        let late: Vec<_> = report.failures.iter().filter(|failure| lost(failure.at, report.started)).collect();
        assert!(late.is_empty(), "lost after the checks had found it down: {late:?}\n{report}");
    }
}
