//! The load generator sees what is lost, and nothing else: without that, a zero of it would mean nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use lab::load::{Kind, Plan, Report};
use lab::{App, Balancer, Certificate, PATIENCE, Setup, heavy_on, write};

const RATE: u32 = 2_000;

/// HAProxy in front of the apps, both configured by hand, without any part of the project.
fn by_hand(setup: Setup, apps: &[App]) -> Balancer {
    let certificate = setup.folder().join("certs/shop.pem");
    Certificate::of(&["shop.test"]).write(&certificate);
    let servers: String = apps.iter().map(|app| format!("  server {} {} check\n", app.name, app.address)).collect();
    let file = format!(
        "global\n  stats socket {} mode 600 level admin expose-fd listeners\n  hard-stop-after 10s\n\
         defaults\n  mode http\n  timeout connect 1s\n  timeout client 10s\n  timeout server 10s\n\
         frontend web\n  bind {}\n  bind {} ssl crt {} alpn h2,http/1.1\n  default_backend apps\n\
         backend apps\n{servers}",
        setup.socket().display(),
        setup.http(),
        setup.https(),
        certificate.display(),
    );
    write(setup.haproxy_cfg(), file);
    setup.plain().start()
}

fn under_load(kind: Kind, act: impl FnOnce(&Balancer)) -> Report {
    let (_turn, (balancer, _apps)) = heavy_on(|| {
        let apps = ["shop-1", "shop-2", "shop-3"].map(App::alone);
        let balancer = by_hand(Setup::new(), &apps);
        balancer.wait_servers(PATIENCE, "apps", 3);
        (balancer, apps)
    });
    let target = if kind == Kind::Http2 { balancer.https() } else { balancer.http() };
    let load = Plan::new(kind, target, "shop.test").rate(RATE).from("shop-").start();
    std::thread::sleep(Duration::from_secs(1));
    act(&balancer);
    std::thread::sleep(Duration::from_secs(3));
    let report = load.stop();
    println!("{kind:?}: {report}");
    report
}

#[test]
fn loses_nothing_while_nothing_happens() {
    for kind in [Kind::PerRequest, Kind::KeepAlive, Kind::Http2] {
        let report = under_load(kind, |_| ());
        report.assert_nothing_lost();
        report.assert_pace(RATE);
        assert_eq!(report.sent, report.good);
        assert_eq!(report.upstreams.len(), 3, "all three apps answer:\n{report}");
    }
}

#[test]
fn sees_what_a_plain_restart_loses() {
    for kind in [Kind::PerRequest, Kind::KeepAlive, Kind::Http2] {
        let report = under_load(kind, Balancer::restart);
        assert!(!report.failures.is_empty(), "a plain restart closes the ports for a while:\n{report}");
        assert_eq!(report.sent, report.good + report.failures.len() as u64);
    }
}
