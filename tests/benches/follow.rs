//! Key written → first answer through HAProxy, and key deleted → last answer, by confgen and by the floor in turns.

use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::http::Request;
use lab::{App, Balancer, Etcd, Pid, cpu_seconds, own_memory, resident};

use crate::Options;
use crate::floor::Floor;
use crate::report::{Report, Row, Samples};
use crate::store::fill_upstreams;

const PATIENCE: Duration = Duration::from_secs(120);

/// confgen counts the servers of each section once after its start, 500 servers at a time every 2 s: 40 s for 10,000.
const START: Duration = Duration::from_secs(45);

/// How long confgen's CPU time is measured without a change. With 10,000 upstreams a look for manual changes comes every 20 s.
const REST: Duration = Duration::from_secs(62);

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
    let (mut ours, mut theirs, mut changes, mut pauses) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    sleep(quiet_time(size));
    for _ in 0..=rounds {
        pauses.push(cpu_during(confgen, quiet_time(size), || ()).1);
        let key = "http-services/probe/upstreams/probe";
        let (came, cpu) = cpu_during(confgen, quiet_time(size), || come(&etcd, key, &app, &balancer));
        changes.push(cpu);
        let (went, cpu) = cpu_during(confgen, quiet_time(size), || go(&etcd, key, &balancer));
        changes.push(cpu);
        ours.push(Trip { came, went });
        let key = "/floor/http-probe/probe";
        let came = come(&etcd, key, &app, &floor.balancer);
        sleep(Duration::from_millis(300));
        theirs.push(Trip { came, went: go(&etcd, key, &floor.balancer) });
    }
    // What time alone costs is no part of a change's cost. In medians, because a look for manual changes may be in any of the times.
    let pause = Samples::new(pauses).median();
    let cpu = Samples::new(changes.into_iter().skip(2).map(|cpu| (cpu - pause) * 1_000.0));
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
    let what = "confgen's CPU for a change, ms".to_owned();
    report.add(Row { bench: "follow", what, size: Some(size), samples: cpu, floor: None });
    report.add_figure("follow", "confgen's CPU at rest, ms a second", Some(size), rest * 1_000.0);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    report.add_figure("follow", "confgen's memory, MiB", Some(size), mib(resident(confgen)));
    report.add_figure("follow", "of that no file's, MiB", Some(size), mib(own_memory(confgen)));
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

/// Writes the key, and returns how long it took until the app answered.
fn come(etcd: &Etcd, key: &str, app: &App, balancer: &Balancer) -> Duration {
    let start = Instant::now();
    etcd.put(key, app.address.to_string());
    ask_until(start, || answers(balancer))
}

/// Deletes the key, and returns how long it took until no app answered.
fn go(etcd: &Etcd, key: &str, balancer: &Balancer) -> Duration {
    let start = Instant::now();
    etcd.delete(key);
    ask_until(start, || !answers(balancer))
}

fn answers(balancer: &Balancer) -> bool {
    let response = Request::get("probe.test", "/").send(balancer.http());
    response.is_ok_and(|response| response.status == 200)
}

/// The CPU time of a process, in seconds, from the beginning of an act until this long after its end.
fn cpu_during<T>(process: Pid, then: Duration, act: impl FnOnce() -> T) -> (T, f64) {
    let before = cpu_seconds(process);
    let result = act();
    sleep(then);
    (result, cpu_seconds(process) - before)
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
