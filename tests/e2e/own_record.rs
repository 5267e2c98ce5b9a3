//! What clients see of a record that another hand takes away, and what the announcer says of one that balancers refuse.

use std::process::Command;

use lab::http::Request;
use lab::load::{Kind, Plan};
use lab::{App, Balancer, Etcd, Ground, PATIENCE, Process, Scratch, bin, free_port, light, until};

const FLAGS: [&str; 4] = ["--service", "shop", "--domain", "shop.test"];

#[test]
fn a_service_whose_keys_were_deleted_serves_again() {
    let _turn = light();
    let Ground { etcd, balancer, apps: _apps, .. } =
        Ground::build().announced("shop", "shop.test", &["shop-1"], &[]).start();
    for below in ["http-services/shop/upstreams/shop-1", "http-services/shop/", "http-services/"] {
        etcd.delete_all(below);
        until(PATIENCE, "the record", || etcd.get("http-services/shop/upstreams/shop-1"));
        balancer.wait_in_sync(PATIENCE);
        balancer.wait_status(PATIENCE, "shop.test", "/", 200);
    }
}

/// etcd takes no `drain`, and no acknowledgement either: the record is deleted, and the app stopped when balancers have had
/// their time.
#[test]
fn a_stop_with_a_full_store_loses_no_request() {
    let _turn = light();
    let etcd = Etcd::with_quota(1_000_000);
    let balancer = Balancer::start(&etcd);
    let [_stays, leaves] = ["shop-1", "shop-2"].map(|name| App::announced(name, &etcd, &FLAGS));
    balancer.wait_servers(PATIENCE, "http-shop", 2);
    // The process before the service's restart answers 404 for it while both listen.
    balancer.wait_settled(PATIENCE);
    let loads =
        [Kind::PerRequest, Kind::KeepAlive].map(|kind| Plan::new(kind, balancer.http(), "shop.test").rate(100).start());
    until(PATIENCE, "answers", || loads.iter().all(|load| load.report().upstreams.contains_key("shop-2")));
    etcd.fill();
    assert!(leaves.stop().success());
    assert_eq!(etcd.get("http-services/shop/upstreams/shop-2"), None);
    for load in loads {
        let report = load.stop();
        assert!(report.failures.is_empty(), "{report}");
    }
}

#[test]
fn an_announcer_says_that_a_balancer_refuses_its_record_and_why() {
    let _turn = light();
    let etcd = Etcd::start();
    let _balancer = Balancer::start(&etcd);
    let (folder, admin) = (Scratch::new(), format!("127.0.0.1:{}", free_port()));
    let mut command = Command::new(bin("announcer"));
    // An address that no --upstream-networks of the lab has, as loopback is in none unless it is named.
    command.args(FLAGS).args(["--id", "a", "--upstream", "192.0.2.7:80", "--drain", "0s", "--admin", &admin]);
    let announcer = Process::start(&folder, "announcer", command.args(["--endpoints", &etcd.endpoints()]));
    until(PATIENCE, "/ready to say so", || {
        let answer =
            Request::get("localhost", "/ready").send(admin.parse().unwrap()).map_err(|error| error.to_string())?;
        let says = answer.body.contains("refuses http-services/shop/upstreams/a: ");
        if answer.status == 503 && says { Ok(()) } else { Err(answer.body) }
    });
    let metrics = Request::get("localhost", "/metrics").send(admin.parse().unwrap()).unwrap().body;
    let refused = r#"announcer_upstream_refused{service="http-shop",upstream="a"} 1"#;
    assert!(metrics.lines().any(|line| line == refused), "{metrics}");
    assert!(announcer.log().contains("a balancer refuses the record"), "{}", announcer.log());
}
