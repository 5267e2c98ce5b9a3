//! Ten copies of an app are replaced, three or four at a time, and nobody notices.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::time::Duration;

use lab::load::{Kind, Plan};
use lab::{Announce, App, Balancer, Etcd, Ground, PATIENCE, heavy_on, until};

/// Requests a second in all, besides the slow ones.
const RATE: u32 = 2_000;

/// How each kind of request travels, and how many slow ones of it are sent a second.
const KINDS: [(Kind, u32); 3] = [(Kind::PerRequest, 5), (Kind::KeepAlive, 10), (Kind::Http2, 10)];

/// What the slowest request takes.
const SLOWEST: Duration = Duration::from_secs(2);

/// The app listens 3 s after its start, and cuts at once what is still under way when it is stopped: only the drain
/// before that keeps requests from being lost.
const APP: [&str; 4] = ["--start-delay", "3000", "--grace", "100"];

fn copy(etcd: &Etcd, id: &str) -> App {
    let flags = ["--service", "shop", "--domain", Ground::HOST];
    App::launch(id, Some(Announce { etcd, flags: &flags }), &APP)
}

/// Until HAProxy finds all ten up, these with their new addresses among them.
#[track_caller]
fn wait_ten(balancer: &Balancer, new: &[App]) {
    balancer.wait_servers(PATIENCE, "http-shop", 10);
    until(PATIENCE, "the new addresses", || {
        let table = balancer.ask("show servers conn http-shop");
        let place = |app: &App| format!(" {} {} ", app.address.ip(), app.address.port());
        new.iter().all(|app| table.contains(&place(app))).then_some(()).ok_or(table)
    });
}

/// Whether a request is under way on the server.
fn is_busy(balancer: &Balancer, server: &str) -> bool {
    balancer.busy_servers("http-shop").iter().any(|busy| busy == server)
}

#[test]
fn ten_copies_are_replaced_also_while_haproxy_restarts_in_the_middle_of_a_drain() {
    let (_turn, Ground { etcd, balancer, apps: mut old, .. }) = heavy_on(|| {
        let mut ground = Ground::build().certificate(&[Ground::HOST]).launch();
        ground.apps = (1..=10).map(|number| copy(&ground.etcd, &format!("shop-{number}"))).collect();
        wait_ten(&ground.balancer, &ground.apps);
        // The process before the service's restart answers 404 for it while both listen.
        ground.balancer.wait_settled(PATIENCE);
        ground
    });

    let plan = |kind| {
        let target = if kind == Kind::Http2 { balancer.https() } else { balancer.http() };
        Plan::new(kind, target, Ground::HOST).from("shop-")
    };
    let fast: Vec<_> = KINDS.iter().map(|(kind, _)| plan(*kind).rate(RATE / 3).start()).collect();
    let path = format!("/slow?ms={}", SLOWEST.as_millis());
    let slow: Vec<_> =
        KINDS.iter().map(|(kind, rate)| plan(*kind).path(&path).rate(*rate).workers(3 * rate).start()).collect();

    for (count, restart) in [(3, false), (3, true), (4, true)] {
        let mut leaving: Vec<App> = old.drain(..count).collect();
        let names: Vec<String> = leaving.iter().map(|app| app.name.clone()).collect();
        until(PATIENCE, "a slow request on each of them", || names.iter().all(|name| is_busy(&balancer, name)));
        leaving.iter_mut().for_each(App::terminate);
        if restart {
            balancer.restart();
        }
        for app in leaving {
            let name = app.name.clone();
            assert!(app.wait().success(), "{name}: nothing was under way when it was stopped");
        }
        let new: Vec<App> = names.iter().map(|name| copy(&etcd, name)).collect();
        wait_ten(&balancer, &new);
        old.extend(new);
    }

    let mut rate = 0.0;
    for load in fast {
        let report = load.stop();
        println!("{report}");
        report.assert_nothing_lost();
        rate += report.rate();
    }
    for load in slow {
        let report = load.stop();
        println!("slow: {report}");
        report.assert_nothing_lost();
        assert!(report.good > 50 && report.latency(0.0) >= SLOWEST, "slow ones were among them:\n{report}");
    }
    assert!(rate > f64::from(RATE) / 2.0, "too light a load: {rate:.0} requests a second");
}
