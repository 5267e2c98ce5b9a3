//! Changes under load: the slowest answers beside those of a quiet time, in turns, and the requests that failed.

use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use lab::load::{Kind, Report as LoadReport};
use lab::{Etcd, Ground};

use crate::Options;
use crate::report::{Report, Row, Samples};
use crate::store::{address_of, fill_upstreams};

const PATIENCE: Duration = Duration::from_secs(120);

/// Changes a second.
const RATES: [u32; 3] = [1, 10, 100];

/// Requests a second over kept connections.
const LOAD: u32 = 500;

/// How long each round lasts. It has 2,500 requests, so a p99.9 needs the requests of all rounds together.
const ROUND: Duration = Duration::from_secs(5);
const MOST_ROUNDS: usize = 10;

pub fn measure(options: &Options, report: &mut Report) {
    for size in &options.sizes {
        measure_at(*size, options.rounds.min(MOST_ROUNDS), report);
    }
}

fn measure_at(size: usize, rounds: usize, report: &mut Report) {
    let ground = Ground::new();
    fill_upstreams(&ground.etcd, size);
    ground.balancer.wait_servers(PATIENCE, "http-s0", size.min(10));
    ground.balancer.wait_settled(PATIENCE);
    for rate in RATES {
        let (mut busy, mut quiet, mut failed) = (Vec::new(), Vec::new(), 0);
        for _ in 0..rounds {
            let load = ground.load(Kind::KeepAlive, LOAD);
            sleep(ROUND);
            let still = load.stop();
            let load = ground.load(Kind::KeepAlive, LOAD);
            change_for(ROUND, rate, size, &ground.etcd);
            let moving = load.stop();
            failed += still.failures.len() + moving.failures.len();
            quiet.extend(answer_millis(&still));
            busy.extend(answer_millis(&moving));
        }
        let [busy, quiet] = [busy, quiet].map(|all| Samples::new([Samples::new(all).percentile(0.999)]));
        report.add(Row {
            bench: "churn",
            what: format!("p99.9 at {rate} changes/s beside quiet, ms"),
            size: Some(size),
            samples: busy,
            floor: Some(quiet),
        });
        report.add_figure("churn", &format!("failed at {rate} changes/s"), Some(size), failed as f64);
    }
}

/// How long each good answer took.
fn answer_millis(report: &LoadReport) -> impl Iterator<Item = f64> {
    report.answers().map(|(_, took)| took.as_secs_f64() * 1_000.0)
}

/// Moves upstreams of other services to another address and back, by the clock.
fn change_for(duration: Duration, rate: u32, size: usize, etcd: &Etcd) {
    let start = Instant::now();
    let due = |number: u32| start + Duration::from_secs(1) * number / rate;
    // Four writers, since a write may take longer than the time until the next is due.
    scope(|writers| {
        for first in 0..4 {
            writers.spawn(move || {
                for number in (first..).step_by(4).take_while(|number| due(*number) < start + duration) {
                    sleep(due(number).saturating_duration_since(Instant::now()));
                    let n = number as usize * 7 % size;
                    etcd.put(&format!("http-services/s{}/upstreams/u{n}", n / 10), address_of(n + number as usize % 2));
                }
            });
        }
    });
}
