//! How soon HAProxy follows: an announcement, a withdrawal, a crash. Medians over rounds of one run.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool of the tests, which ships nowhere")]
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a measurement that can't be made ends the run")]

use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::http::Request;
use lab::load::Kind;
use lab::{App, Balancer, Etcd, Ground, Signal, until};

/// Alternating rounds of coming and going.
const ROUNDS: usize = 11;

/// Each crash takes a TTL to be over.
const CRASHES: usize = 3;

/// Longer than confgen's `--restart-interval`, so that no round waits for the one before.
const QUIET: Duration = Duration::from_millis(2_500);

const DEADLINE: Duration = Duration::from_secs(30);

/// How long nothing may answer before an upstream counts as gone.
const GONE: Duration = Duration::from_millis(500);

fn main() {
    // `cargo test --benches` compiles it and runs it without this flag.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    println!("{:<52} {:>10} {:>10} {:>10}", "milliseconds", "median", "least", "most");
    by_hand();
    by_announcer();
    crash();
}

/// An app that runs already; its key is written and deleted.
fn by_hand() {
    let etcd = Etcd::start();
    let app = App::alone("probe");
    let balancer = Balancer::start(&etcd);
    etcd.put("http-services/probe/domain", "probe.test");
    balancer.wait_status(DEADLINE, "probe.test", "/", 503);
    let (mut announced, mut withdrawn) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        sleep(QUIET);
        let start = Instant::now();
        etcd.put("http-services/probe/upstreams/probe", app.address.to_string());
        announced.push(first_answer(&balancer, start));
        balancer.wait_in_sync(DEADLINE);
        sleep(QUIET);
        let start = Instant::now();
        etcd.delete("http-services/probe/upstreams/probe");
        withdrawn.push(last_answer(&balancer, start));
        balancer.wait_in_sync(DEADLINE);
    }
    row("key written → first answer", &mut announced);
    row("key deleted → last answer", &mut withdrawn);
}

/// The announcer's own time on top: its start, its app's, and the drain.
fn by_announcer() {
    let etcd = Etcd::start();
    let balancer = Balancer::start(&etcd);
    etcd.put("http-services/probe/domain", "probe.test");
    balancer.wait_status(DEADLINE, "probe.test", "/", 503);
    let (mut announced, mut withdrawn) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        sleep(QUIET);
        let start = Instant::now();
        let flags = ["--service", "probe", "--domain", "probe.test"];
        let mut app = App::launch("probe", Some(lab::Announce { etcd: &etcd, flags: &flags }), &[]);
        announced.push(first_answer(&balancer, start));
        balancer.wait_in_sync(DEADLINE);
        sleep(QUIET);
        let start = Instant::now();
        app.terminate();
        withdrawn.push(last_answer(&balancer, start));
        app.process().wait(DEADLINE);
        balancer.wait_in_sync(DEADLINE);
    }
    row("announcer started → first answer", &mut announced);
    row("announcer asked to stop → last answer", &mut withdrawn);
}

/// One of three apps dies with its announcer, under 1,000 requests a second of each kind.
fn crash() {
    let (mut failing, mut gone, mut failed) = (Vec::new(), Vec::new(), 0);
    for _ in 0..CRASHES {
        let mut ground = Ground::new();
        let loads = [Kind::PerRequest, Kind::KeepAlive].map(|kind| ground.load(kind, 1_000));
        sleep(Duration::from_secs(1));
        let dead = ground.apps.remove(0);
        let start = Instant::now();
        for pid in dead.family() {
            let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
        }
        let line = format!("server {} ", dead.name);
        until(DEADLINE, "the dead one to leave the file", || !ground.balancer.file().contains(&line));
        gone.push(start.elapsed());
        for load in loads {
            let report = load.stop();
            failed += report.failures.len();
            let last = report.failures.iter().map(|failure| report.started + failure.at).max();
            failing.push(last.map_or(Duration::ZERO, |last| last.saturating_duration_since(start)));
        }
    }
    row("crash → last failed request (0: none failed)", &mut failing);
    row("crash → gone from the file (TTL 10 s)", &mut gone);
    println!("{failed} requests failed over {CRASHES} crashes of one upstream of three");
}

fn ask(balancer: &Balancer) -> bool {
    let response = Request::get("probe.test", "/").send(balancer.http());
    response.is_ok_and(|response| response.status == 200 && response.app() == "probe")
}

fn first_answer(balancer: &Balancer, start: Instant) -> Duration {
    let deadline = start + DEADLINE;
    while !ask(balancer) {
        assert!(Instant::now() < deadline, "no answer within {DEADLINE:?}");
        sleep(Duration::from_millis(1));
    }
    start.elapsed()
}

fn last_answer(balancer: &Balancer, start: Instant) -> Duration {
    let mut last = start;
    while last.elapsed() < GONE {
        assert!(start.elapsed() < DEADLINE, "it answers for {DEADLINE:?}");
        let asked = Instant::now();
        if ask(balancer) {
            last = asked;
        }
        sleep(Duration::from_millis(1));
    }
    last - start
}

fn row(name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let millis = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1_000.0);
    let [median, least, most] = [times.len() / 2, 0, times.len() - 1].map(|index| millis(times[index]));
    println!("{name:<52} {median:>10} {least:>10} {most:>10}");
}
