//! confgen's start with a full store: from nothing to a served upstream, and from a kill until it is in sync again.

use std::time::{Duration, Instant};

use lab::{App, Balancer, Etcd};

use crate::Options;
use crate::new_service::start_copy;
use crate::report::{Report, Row, Samples};
use crate::store::fill_upstreams;

const PATIENCE: Duration = Duration::from_secs(120);
const MOST_ROUNDS: usize = 10;

pub fn measure(options: &Options, report: &mut Report) {
    for size in &options.sizes {
        measure_at(*size, options.rounds.min(MOST_ROUNDS), report);
    }
}

fn measure_at(size: usize, rounds: usize, report: &mut Report) {
    let etcd = Etcd::start();
    let app = App::alone("probe");
    fill_upstreams(&etcd, size);
    etcd.http_service("probe", "new0.test", &[&app]);
    let (mut cold, mut alone, mut warm) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let start = Instant::now();
        let balancer = Balancer::start(&etcd);
        balancer.wait_status(PATIENCE, "new0.test", "/", 200);
        cold.push(start.elapsed().as_secs_f64() * 1_000.0);
        balancer.wait_settled(PATIENCE);
        alone.push(start_copy(&balancer));
        let start = Instant::now();
        let before = balancer.pid("confgen");
        balancer.kill("confgen");
        lab::until(PATIENCE, "the next confgen to be in sync", || {
            balancer.pid("confgen") != before && balancer.asked("/ready").is_ok_and(|answer| answer.status == 200)
        });
        warm.push(start.elapsed().as_secs_f64() * 1_000.0);
    }
    let row = |what: &str, values: Vec<f64>, floor: Option<Vec<f64>>| Row {
        bench: "cold-start",
        what: what.to_owned(),
        size: Some(size),
        samples: Samples::new(values),
        floor: floor.map(Samples::new),
    };
    report.add(row("cold start beside HAProxy's own, ms", cold, Some(alone)));
    report.add(row("confgen killed → in sync, ms", warm, None));
}
