//! A restart's timeline: how long answers take before, during and after it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::Ground;
use lab::load::Kind;

use crate::Options;
use crate::report::{Report, Row, Samples, Timeline};

/// Requests a second, with a connection each: they meet every moment of a takeover.
const LOAD: u32 = 500;
const MOST_ROUNDS: usize = 10;

pub fn measure(options: &Options, report: &mut Report) {
    let ground = Ground::new();
    let (mut took, mut slowest, mut failed) = (Vec::new(), Vec::new(), 0);
    for round in 0..options.rounds.min(MOST_ROUNDS) {
        let load = ground.load(Kind::PerRequest, LOAD);
        sleep(Duration::from_secs(1));
        let start = Instant::now();
        ground.balancer.restart();
        let end = Instant::now();
        sleep(Duration::from_secs(1));
        let result = load.stop();
        failed += result.failures.len();
        took.push(millis(end - start));
        slowest.push(millis(result.latency(1.0)));
        if round == 0 {
            let moment = |time: Instant| millis(time - result.started);
            report.timelines.push(Timeline {
                title: format!("A restart under {LOAD} requests a second"),
                points: result.answers().map(|(at, took)| (millis(at), millis(took))).collect(),
                marks: vec![(moment(start), "restart".to_owned()), (moment(end), "done".to_owned())],
            });
        }
    }
    let row = |what: &str, values: Vec<f64>| Row {
        bench: "restart",
        what: what.to_owned(),
        size: None,
        samples: Samples::new(values),
        floor: None,
    };
    report.add(row("supervisorctl restart haproxy, ms", took));
    report.add(row("slowest answer meanwhile, ms", slowest));
    report.add_figure("restart", "requests failed by restarts", None, failed as f64);
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
