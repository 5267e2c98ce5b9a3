//! New services one after another, as gateway-api-bench probes routes: each is asked from its write on until 404 turns 200.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::http::Request;
use lab::{App, Balancer, Etcd};

use crate::report::{Report, Row, Samples};
use crate::{Options, adds_backends};

const PATIENCE: Duration = Duration::from_secs(60);

/// How many of the first and of the last services are compared.
const ENDS: usize = 100;

pub fn measure(options: &Options, report: &mut Report) {
    let services = options.services.unwrap_or(if adds_backends() { 3_000 } else { 100 });
    let etcd = Etcd::start();
    let app = App::alone("probe");
    etcd.http_service("first", "first.test", &[&app]);
    let balancer = Balancer::start(&etcd);
    balancer.wait_status(PATIENCE, "first.test", "/", 200);
    balancer.wait_settled(PATIENCE);
    let (restarts, worker) = (balancer.restarts(), balancer.worker());
    let mut answers = BTreeMap::new();
    let times: Vec<f64> = (0..services).map(|number| probe(&etcd, &app, &balancer, number, &mut answers)).collect();
    let row = |what: &str, times: &[f64]| Row {
        bench: "route-probe",
        what: what.to_owned(),
        size: Some(services),
        samples: Samples::new(times.iter().copied()),
        floor: None,
    };
    report.add(row("new service → traffic, ms", &times));
    report.add(row("new service → traffic, first 100, ms", &times[..services.min(ENDS)]));
    report.add(row("new service → traffic, last 100, ms", &times[services.saturating_sub(ENDS)..]));
    report.add_figure("route-probe", "restarts", Some(services), (balancer.restarts() - restarts) as f64);
    let replaced = f64::from(u8::from(balancer.worker() != worker));
    report.add_figure("route-probe", "HAProxy was replaced (1: yes)", Some(services), replaced);
    let other: usize = answers.iter().filter(|(status, _)| !matches!(status, 200 | 404)).map(|(_, count)| count).sum();
    report.add_figure("route-probe", "answers other than 404 and 200", Some(services), other as f64);
}

/// Writes a service in one transaction and asks until its app answers. A connection that fails counts as status 0.
fn probe(etcd: &Etcd, app: &App, balancer: &Balancer, number: usize, answers: &mut BTreeMap<u16, usize>) -> f64 {
    let host = format!("new{number}.test");
    let start = Instant::now();
    etcd.http_service(&format!("new{number}"), &host, &[app]);
    loop {
        let status = Request::get(&host, "/").send(balancer.http()).map_or(0, |response| response.status);
        *answers.entry(status).or_default() += 1;
        if status == 200 {
            return start.elapsed().as_secs_f64() * 1_000.0;
        }
        assert!(start.elapsed() < PATIENCE, "no answer for {host} within {PATIENCE:?}");
        sleep(Duration::from_micros(500));
    }
}
