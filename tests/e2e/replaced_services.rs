//! One transaction moves a service's requests to a new service. Every request in between gets an answer.

use std::net::SocketAddr;
use std::time::Duration;

use lab::load::{Kind, Plan, Running};
use lab::{App, Balancer, Etcd, free_port, medium, until};

const SERVED: Duration = Duration::from_secs(30);

/// Light: what is counted is failures.
const RATE: u32 = 50;

/// One replacement: a service that goes with all its keys, and a new one.
struct Case {
    /// The host and the path of each request.
    asked: (&'static str, &'static str),
    /// The keys of both, but for the upstream.
    old: &'static [(&'static str, &'static str)],
    new: &'static [(&'static str, &'static str)],
}

/// The first service's upstream is the old app, the second one's the new app.
const CASES: [Case; 6] = [
    Case {
        asked: ("same.test", "/"),
        old: &[("http-services/same/domain", "same.test")],
        new: &[("http-services/same-2/domain", "same.test")],
    },
    Case {
        asked: ("one.wild.test", "/"),
        old: &[("http-services/one/domain", "one.wild.test")],
        new: &[("http-services/wild/domain", "*.wild.test")],
    },
    Case {
        asked: ("one.narrow.test", "/"),
        old: &[("http-services/broad/domain", "*.narrow.test")],
        new: &[("http-services/narrow/domain", "one.narrow.test")],
    },
    Case {
        asked: ("path.test", "/cart/1"),
        old: &[("http-services/cart/domain", "path.test"), ("http-services/cart/path", "/cart")],
        new: &[("http-services/site/domain", "path.test")],
    },
    Case {
        asked: ("nobody.test", "/old/1"),
        old: &[("http-services/legacy/url_reg", "^/old/[0-9]+")],
        new: &[("http-services/modern/url_reg", "^/old/")],
    },
    Case {
        asked: ("blue.preview.test", "/"),
        old: &[("http-services/shown/domain", "preview.test"), ("http-services/shown/preview", "127.0.0.0/8")],
        new: &[("http-services/shown-2/domain", "blue.preview.test")],
    },
];

/// The key of the upstream beside another key of its service.
fn upstream_key(key: &str) -> String {
    format!("{}/upstreams/1", key.rsplit_once('/').unwrap().0)
}

/// Keeps up a load of each kind on each target while `act` runs. Nothing may be lost, and both apps answer.
fn replace(targets: &[(SocketAddr, &str, &str)], act: impl FnOnce(&[(String, Running)])) {
    let start = |(target, host, path): &(SocketAddr, &str, &str)| {
        [Kind::PerRequest, Kind::KeepAlive].map(|kind| {
            let load = Plan::new(kind, *target, host).path(path).rate(RATE).workers(4).start();
            (format!("{host}{path} at {target}, {kind:?}"), load)
        })
    };
    let loads: Vec<(String, Running)> = targets.iter().flat_map(start).collect();
    until(SERVED, "requests before the change", || loads.iter().all(|(_, load)| load.report().good > 20));
    act(&loads);
    let reports: Vec<_> = loads.into_iter().map(|(what, load)| (what, load.stop())).collect();
    let lost: String = reports
        .iter()
        .filter(|(_, report)| !report.failures.is_empty())
        .map(|(what, report)| format!("{what}: {report}\n"))
        .collect();
    assert!(lost.is_empty(), "requests were lost:\n{lost}");
}

/// Waits until the new app has answered every load.
fn wait_answers(loads: &[(String, Running)], app: &str) {
    until(SERVED, "answers of the new service", || {
        let missing = loads.iter().find(|(_, load)| !load.report().upstreams.contains_key(app));
        missing.map_or(Ok(()), |(what, _)| Err(what.clone()))
    });
}

#[test]
fn a_host_a_path_or_an_expression_goes_to_a_new_service_without_a_loss() {
    let _turn = medium();
    let (etcd, old, new) = (Etcd::start(), App::alone("old"), App::alone("new"));
    let blue = format!(r#"{{"address":"{}","color":"blue"}}"#, old.address);
    for case in &CASES {
        let key = upstream_key(case.old[0].0);
        etcd.exchange(&[], &[case.old, &[(key.as_str(), blue.as_str())]].concat());
    }
    let balancer = Balancer::start(&etcd);
    for Case { asked: (host, path), .. } in &CASES {
        balancer.wait_status(SERVED, host, path, 200);
    }
    balancer.wait_settled(SERVED);
    for Case { asked: (host, path), old: before, new: after } in &CASES {
        let (first, second) = (upstream_key(before[0].0), upstream_key(after[0].0));
        let gone: Vec<&str> = before.iter().map(|(key, _)| *key).chain([first.as_str()]).collect();
        let address = new.address.to_string();
        let come = [*after, &[(second.as_str(), address.as_str())]].concat();
        replace(&[(balancer.http(), host, path)], |loads| {
            etcd.exchange(&gone, &come);
            wait_answers(loads, "new");
            balancer.wait_settled(SERVED);
        });
    }
    // What was kept until the restart is gone after it.
    assert_eq!(balancer.ask("show servers state http-one"), "Can't find backend.");
}

#[test]
fn a_host_goes_to_a_new_default_service_and_back_without_a_loss() {
    let _turn = medium();
    let (etcd, old_app, new_app) = (Etcd::start(), App::alone("old"), App::alone("new"));
    let own = ["http-services/own/domain", "http-services/own/upstreams/1"];
    let any = "http-services/default/upstreams/1";
    let (old, new) = (old_app.address.to_string(), new_app.address.to_string());
    etcd.exchange(&[], &[(own[0], "own.test"), (own[1], old.as_str())]);
    let balancer = Balancer::start(&etcd);
    balancer.wait_status(SERVED, "own.test", "/", 200);
    balancer.wait_settled(SERVED);
    replace(&[(balancer.http(), "own.test", "/")], |loads| {
        etcd.exchange(&own, &[(any, new.as_str())]);
        wait_answers(loads, "new");
        balancer.wait_settled(SERVED);
        let back = [("http-services/own-2/domain", "own.test"), ("http-services/own-2/upstreams/1", old.as_str())];
        etcd.exchange(&[any], &back);
        until(SERVED, "the service that has the host again", || balancer.file().contains("backend http-own-2"));
        balancer.wait_settled(SERVED);
    });
}

#[test]
fn a_port_goes_to_a_new_service_without_a_loss() {
    let _turn = medium();
    let (etcd, old, new) = (Etcd::start(), App::alone("old"), App::alone("new"));
    let port = free_port();
    let (old_address, new_address) = (old.address.to_string(), new.address.to_string());
    let was = [("tcp-services/db/ports", format!("127.0.0.1:{port}")), ("tcp-services/db/upstreams/1", old_address)];
    let was: Vec<(&str, &str)> = was.iter().map(|(key, value)| (*key, value.as_str())).collect();
    etcd.exchange(&[], &was);
    let balancer = Balancer::start(&etcd);
    balancer.wait_servers(SERVED, "tcp-db", 1);
    balancer.wait_settled(SERVED);
    replace(&[(SocketAddr::from(([127, 0, 0, 1], port)), "db.test", "/")], |loads| {
        let gone: Vec<&str> = was.iter().map(|(key, _)| *key).collect();
        let ports = format!("127.0.0.1:{port}");
        let come =
            [("tcp-services/db-2/ports", ports.as_str()), ("tcp-services/db-2/upstreams/1", new_address.as_str())];
        etcd.exchange(&gone, &come);
        // A session stays with the process that has begun it.
        wait_answers(&loads[..1], "new");
        balancer.wait_servers(SERVED, "tcp-db-2", 1);
    });
}
