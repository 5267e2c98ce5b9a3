//! Three announcers of which two run the app are restarted one by one, and no request is lost.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use lab::load::{Kind, Plan};
use lab::{Announce, App, Etcd, Ground, PATIENCE, medium, until};

/// Requests a second of each kind.
const RATE: u32 = 300;

/// The app listens a second after its start, and cuts at once what is still under way when it is stopped.
const APP: [&str; 4] = ["--start-delay", "1000", "--grace", "100"];

fn copy(etcd: &Etcd, id: &str) -> App {
    let flags = ["--service", "shop", "--domain", Ground::HOST, "--replicas", "2", "--host-name", id];
    App::launch(id, Some(Announce { etcd, flags: &flags }), &APP)
}

/// The ids below a folder of the service.
fn ids(etcd: &Etcd, folder: &str) -> Vec<String> {
    let keys = etcd.keys(&format!("http-services/shop/{folder}/"));
    keys.iter().map(|key| key.rsplit('/').next().unwrap().to_owned()).collect()
}

#[test]
fn a_rolling_restart_of_two_copies_on_three_hosts_loses_nothing() {
    let _turn = medium();
    let Ground { etcd, balancer, .. } = Ground::build().certificate(&[Ground::HOST]).launch();
    let names = ["web-1", "web-2", "web-3"];
    let mut copies: Vec<App> = names.iter().map(|name| copy(&etcd, name)).collect();
    balancer.wait_servers(PATIENCE, "http-shop", 2);
    balancer.wait_settled(PATIENCE);
    until(PATIENCE, "one that stands by", || ids(&etcd, "standby").len() == 1);

    let loads: Vec<_> = [Kind::PerRequest, Kind::KeepAlive, Kind::Http2]
        .into_iter()
        .map(|kind| {
            let target = if kind == Kind::Http2 { balancer.https() } else { balancer.http() };
            Plan::new(kind, target, Ground::HOST).from("web-").rate(RATE).start()
        })
        .collect();
    for (index, name) in names.iter().enumerate() {
        let ran = ids(&etcd, "upstreams").iter().any(|id| id == name);
        copies[index].terminate();
        let stopped = std::mem::replace(&mut copies[index], copy(&etcd, &format!("{name}-again")));
        assert!(stopped.wait().success(), "{name}: nothing was under way when it was stopped");
        balancer.wait_servers(PATIENCE, "http-shop", 2);
        until(PATIENCE, &format!("one that stands by after {name}, which ran: {ran}"), || {
            let (standby, upstreams) = (ids(&etcd, "standby"), ids(&etcd, "upstreams"));
            if standby.len() == 1 && upstreams.len() == 2 { Ok(()) } else { Err(format!("{standby:?} {upstreams:?}")) }
        });
    }
    for load in loads {
        let report = load.stop();
        println!("{report}");
        report.assert_nothing_lost();
    }
}
