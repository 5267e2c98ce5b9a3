//! One of three apps dies with its announcer, under 1,000 requests a second of each kind.

use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::load::Kind;
use lab::{Ground, Signal, until};

use crate::Options;
use crate::report::{Report, Row, Samples};

const PATIENCE: Duration = Duration::from_secs(30);

/// Each crash takes a TTL to be over.
const MOST_ROUNDS: usize = 10;

pub fn measure(options: &Options, report: &mut Report) {
    let (mut failing, mut gone, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds.min(MOST_ROUNDS) {
        let mut ground = Ground::new();
        let loads = [Kind::PerRequest, Kind::KeepAlive].map(|kind| ground.load(kind, 1_000));
        sleep(Duration::from_secs(1));
        let dead = ground.apps.remove(0);
        let start = Instant::now();
        for pid in dead.family() {
            let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
        }
        let line = format!("server {} ", dead.name);
        until(PATIENCE, "the dead one to leave the file", || !ground.balancer.file().contains(&line));
        gone.push(start.elapsed().as_secs_f64() * 1_000.0);
        for load in loads {
            let result = load.stop();
            failed.push(result.failures.len() as f64);
            let last = result.failures.iter().map(|failure| result.started + failure.at).max();
            let after = last.map_or(Duration::ZERO, |last| last.saturating_duration_since(start));
            failing.push(after.as_secs_f64() * 1_000.0);
        }
    }
    let row = |what: &str, values: Vec<f64>| Row {
        bench: "failover",
        what: what.to_owned(),
        size: None,
        samples: Samples::new(values),
        floor: None,
    };
    report.add(row("crash → last failed request, ms", failing));
    report.add(row("requests failed by a crash", failed));
    report.add(row("crash → gone from the file, ms", gone));
}
