//! A new service after a quiet interval: key written → first answer, beside what HAProxy alone takes to check and to start
//! the very same file. In alternating rounds of one run.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool of the tests, which ships nowhere")]
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a measurement that can't be made ends the run")]

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::http::Request;
use lab::{App, Balancer, Etcd, Setup, write};

/// How many services are there already, with one server each.
const SIZES: [usize; 3] = [10, 1_000, 2_000];
const ROUNDS: usize = 11;
const DEADLINE: Duration = Duration::from_secs(60);
/// How many services come one after another, and how many where each of them takes a restart (HAProxy before 3.4).
const PROBED: usize = 3_000;
const PROBED_WITH_RESTARTS: usize = 30;
/// Longer than confgen's `--restart-interval`, and until the old HAProxy has gone.
const QUIET: Duration = Duration::from_millis(3_000);

fn main() {
    // `cargo test --benches` compiles it and runs it without this flag.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    println!(
        "{:>9} {:>24} {:>24} {:>24} {:>10}",
        "services", "first answer ms", "haproxy -c ms", "HAProxy's start ms", "restarts"
    );
    SIZES.into_iter().for_each(measure);
    probe();
}

/// New services one after another, each asked from 404 until 200.
fn probe() {
    let etcd = Etcd::start();
    let app = App::alone("probe");
    etcd.http_service("first", "first.test", &[&app]);
    let balancer = Balancer::start(&etcd);
    balancer.wait_status(DEADLINE, "first.test", "/", 200);
    balancer.wait_settled(DEADLINE);
    let count = if balancer.adds_backends() { PROBED } else { PROBED_WITH_RESTARTS };
    let (before, mut others, mut times) = (balancer.restarts(), 0, Vec::with_capacity(count));
    for n in 0..count {
        let host = format!("p{n}.test");
        let start = Instant::now();
        etcd.http_service(&format!("p{n}"), &host, &[&app]);
        loop {
            match Request::get(&host, "/").send(balancer.http()).map(|response| response.status) {
                Ok(200) => break,
                Ok(404) => {}
                _ => others += 1,
            }
            assert!(start.elapsed() < DEADLINE, "no answer within {DEADLINE:?}");
            // Shorter than what is measured, and no load of its own.
            sleep(Duration::from_micros(200));
        }
        times.push(millis(start));
    }
    let restarts = balancer.restarts() - before;
    let (first, last) = (times.len().min(100), times.len().saturating_sub(100));
    println!("\n{count} services one after another, key written → 200, in ms (median, 99th percentile, longest)");
    for (name, some) in
        [("all", &times[..]), ("the first hundred", &times[..first]), ("the last hundred", &times[last..])]
    {
        let mut some = some.to_vec();
        some.sort_unstable_by(f64::total_cmp);
        let at = |share: usize| some[(some.len() - 1) * share / 100];
        println!("{name:>20} {:>8.1} {:>8.1} {:>8.1}", at(50), at(99), at(100));
    }
    println!("restarts: {restarts}, answers but 404 and 200: {others}");
}

fn measure(size: usize) {
    let etcd = Etcd::start();
    let app = App::alone("probe");
    etcd.put_all((0..size).flat_map(|s| {
        let below = format!("http-services/s{s}");
        let address = format!("127.1.{}.{}:9", s / 250, s % 250 + 1);
        [("domain", format!("s{s}.test")), ("check", "off".to_owned()), ("upstreams/u", address)]
            .map(|(leaf, value)| (format!("{below}/{leaf}"), value.into_bytes()))
    }));
    let balancer = Balancer::start(&etcd);
    balancer.wait_status(DEADLINE, "s0.test", "/", 503);
    balancer.wait_in_sync(DEADLINE);
    let before = balancer.restarts();
    let (mut ours, mut check, mut start) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        sleep(QUIET);
        ours.push(announce(&etcd, &app, &balancer, round));
        balancer.wait_in_sync(DEADLINE);
        sleep(QUIET);
        check.push(checked(&balancer));
        start.push(started(&balancer));
    }
    let restarts = balancer.restarts() - before;
    println!("{size:>9} {:>24} {:>24} {:>24} {restarts:>10}", row(&mut ours), row(&mut check), row(&mut start));
}

/// Writes a service that was never there, in one transaction, and asks until its app answers.
fn announce(etcd: &Etcd, app: &App, balancer: &Balancer, round: usize) -> f64 {
    let host = format!("new{round}.test");
    let start = Instant::now();
    etcd.http_service(&format!("new{round}"), &host, &[app]);
    let answers = || Request::get(&host, "/").send(balancer.http()).is_ok_and(|response| response.status == 200);
    while !answers() {
        assert!(start.elapsed() < DEADLINE, "no answer within {DEADLINE:?}");
        sleep(Duration::from_millis(1));
    }
    millis(start)
}

fn checked(balancer: &Balancer) -> f64 {
    let start = Instant::now();
    let mut command = Command::new("haproxy");
    command.arg("-c").arg("-f").arg(balancer.folder().join("conf.d")).arg("-f").arg(balancer.haproxy_cfg());
    assert!(command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("haproxy").success());
    millis(start)
}

/// The same file on ports of its own, until it answers.
fn started(balancer: &Balancer) -> f64 {
    let setup = Setup::new();
    let ports = [(balancer.http(), setup.http()), (balancer.https(), setup.https()), (balancer.stats(), setup.stats())];
    let file = ports.iter().fold(balancer.file(), |text, (from, to)| text.replace(&from.to_string(), &to.to_string()));
    let socket = format!("{}/admin.sock", balancer.folder().display());
    write(setup.haproxy_cfg(), file.replace(&socket, &setup.socket().display().to_string()));
    let start = Instant::now();
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(setup.haproxy_cfg()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut haproxy = command.spawn().expect("haproxy");
    while Request::get("new0.test", "/").send(setup.http()).is_err() {
        assert!(start.elapsed() < DEADLINE, "no answer within {DEADLINE:?}");
        sleep(Duration::from_millis(1));
    }
    let took = millis(start);
    haproxy.kill().and_then(|()| haproxy.wait()).expect("the end of HAProxy");
    took
}

fn millis(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1_000.0
}

fn row(times: &mut [f64]) -> String {
    times.sort_unstable_by(f64::total_cmp);
    format!("{:.0} ({:.0}–{:.0})", times[times.len() / 2], times[0], times[times.len() - 1])
}
