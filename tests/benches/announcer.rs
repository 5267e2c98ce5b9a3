//! The announcer's own time on top of confgen's: its start, its app's, and the drain.

use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::http::Request;
use lab::{Announce, App, Balancer, Etcd};

use crate::Options;
use crate::report::{Report, Row, Samples};

const PATIENCE: Duration = Duration::from_secs(60);

/// Longer than confgen's `--restart-interval`, so that no round waits for the one before.
const QUIET: Duration = Duration::from_millis(2_500);

/// How long nothing may answer before an upstream counts as gone.
const GONE: Duration = Duration::from_millis(500);

pub fn measure(options: &Options, report: &mut Report) {
    let etcd = Etcd::start();
    let balancer = Balancer::start(&etcd);
    etcd.put("http-services/probe/domain", "probe.test");
    balancer.wait_status(PATIENCE, "probe.test", "/", 503);
    let (mut came, mut went) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        sleep(QUIET);
        let start = Instant::now();
        let flags = ["--service", "probe", "--domain", "probe.test"];
        let mut app = App::launch("probe", Some(Announce { etcd: &etcd, flags: &flags }), &[]);
        came.push(first_answer(&balancer, start).as_secs_f64() * 1_000.0);
        sleep(QUIET);
        let start = Instant::now();
        app.terminate();
        went.push(last_answer(&balancer, start).as_secs_f64() * 1_000.0);
        app.process().wait(PATIENCE);
    }
    let row = |what: &str, times: Vec<f64>| Row {
        bench: "announcer",
        what: what.to_owned(),
        size: None,
        samples: Samples::new(times),
        floor: None,
    };
    report.add(row("announcer started → first answer, ms", came));
    report.add(row("announcer told to stop → last answer, ms", went));
}

fn is_served(balancer: &Balancer) -> bool {
    let response = Request::get("probe.test", "/").send(balancer.http());
    response.is_ok_and(|response| response.status == 200 && response.app() == "probe")
}

fn first_answer(balancer: &Balancer, start: Instant) -> Duration {
    while !is_served(balancer) {
        assert!(start.elapsed() < PATIENCE, "no answer within {PATIENCE:?}");
        sleep(Duration::from_millis(1));
    }
    start.elapsed()
}

fn last_answer(balancer: &Balancer, start: Instant) -> Duration {
    let mut last = start;
    while last.elapsed() < GONE {
        assert!(start.elapsed() < PATIENCE, "it answers for {PATIENCE:?}");
        let asked = Instant::now();
        if is_served(balancer) {
            last = asked;
        }
        sleep(Duration::from_millis(1));
    }
    last - start
}
