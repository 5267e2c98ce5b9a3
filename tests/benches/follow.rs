//! Key written → first answer through HAProxy, and key deleted → last answer, by confgen and by the floor in turns.

use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::http::Request;
use lab::{App, Balancer, Etcd, cpu_seconds, resident};

use crate::Options;
use crate::floor::Floor;
use crate::report::{Report, Row, Samples};
use crate::store::fill_upstreams;

const PATIENCE: Duration = Duration::from_secs(120);

/// confgen counts the servers of each section once after its start, 500 servers at a time every 2 s: 40 s for 10,000.
const START: Duration = Duration::from_secs(45);

/// How long confgen's CPU time is measured without a change. What time alone costs is no part of a change's cost.
const REST: Duration = Duration::from_secs(30);

/// The probed service has one upstream, so that no turns blur it.
pub fn measure(options: &Options, report: &mut Report) {
    options.sizes.iter().for_each(|size| measure_at(*size, options.rounds, report));
}

fn measure_at(size: usize, rounds: usize, report: &mut Report) {
    let etcd = Etcd::start();
    let app = App::alone("probe");
    fill_upstreams(&etcd, size);
    etcd.put("http-services/probe/domain", "probe.test");
    let balancer = Balancer::start(&etcd);
    balancer.wait_status(PATIENCE, "probe.test", "/", 503);
    balancer.wait_in_sync(PATIENCE);
    let floor = Floor::start_beside(&balancer, &etcd);
    let confgen = balancer.pid("confgen").expect("confgen runs");
    sleep(START);
    let before = cpu_seconds(confgen);
    sleep(REST);
    let rest = (cpu_seconds(confgen) - before) / REST.as_secs_f64();
    let (before, start) = (cpu_seconds(confgen), Instant::now());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..=rounds {
        sleep(quiet_time(size));
        ours.push(come_and_go(&etcd, "http-services/probe/upstreams/probe", &app, &balancer));
        sleep(quiet_time(size));
        theirs.push(come_and_go(&etcd, "/floor/http-probe/probe", &app, &floor.balancer));
    }
    // The last change's file is written too.
    sleep(quiet_time(size));
    // Each round is two changes: the server comes, and goes.
    let changing = cpu_seconds(confgen) - before - rest * start.elapsed().as_secs_f64();
    let cpu = changing * 1_000.0 / (2 * (rounds + 1)) as f64;
    // The first round warms everything up.
    let row = |what: &str, of: fn(&Trip) -> Duration| Row {
        bench: "follow",
        what: what.to_owned(),
        size: Some(size),
        samples: Samples::new(ours.iter().skip(1).map(|trip| millis(of(trip)))),
        floor: Some(Samples::new(theirs.iter().skip(1).map(|trip| millis(of(trip))))),
    };
    report.add(row("announce → traffic, ms", |trip| trip.came));
    report.add(row("withdraw → last answer, ms", |trip| trip.went));
    report.add_figure("follow", "confgen's CPU for a change, ms", Some(size), cpu);
    report.add_figure("follow", "confgen's CPU at rest, ms a second", Some(size), rest * 1_000.0);
    report.add_figure("follow", "confgen's memory, MiB", Some(size), resident(confgen) as f64 / f64::from(1 << 20));
}

/// Longer than the file's delay and HAProxy's check of it, so that each round finds confgen at rest.
fn quiet_time(size: usize) -> Duration {
    Duration::from_millis(700 + size as u64 / 50)
}

/// How long an upstream took to be served, and to be gone.
struct Trip {
    came: Duration,
    went: Duration,
}

/// Writes the key and asks until the app answers, then deletes it and asks until it doesn't.
fn come_and_go(etcd: &Etcd, key: &str, app: &App, balancer: &Balancer) -> Trip {
    let answers = || {
        let response = Request::get("probe.test", "/").send(balancer.http());
        response.is_ok_and(|response| response.status == 200)
    };
    let start = Instant::now();
    etcd.put(key, app.address.to_string());
    let came = ask_until(start, answers);
    sleep(Duration::from_millis(300));
    let start = Instant::now();
    etcd.delete(key);
    let went = ask_until(start, || !answers());
    Trip { came, went }
}

/// Asks every 200 µs until it holds.
fn ask_until(start: Instant, holds: impl Fn() -> bool) -> Duration {
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}");
        sleep(Duration::from_micros(200));
    }
    start.elapsed()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
