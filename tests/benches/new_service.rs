//! A new service after a quiet interval: key written → first answer, beside what HAProxy alone takes to check and to start
//! the very same file, in turns.

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::http::Request;
use lab::{App, Balancer, Etcd, Setup, write};

use crate::Options;
use crate::report::{Report, Row, Samples};
use crate::store::fill_services;

/// How many services are there already, with one server each.
const SIZES: [usize; 3] = [10, 1_000, 2_000];
const MOST_ROUNDS: usize = 11;
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than confgen's `--restart-interval`, and until the old HAProxy has gone.
const QUIET: Duration = Duration::from_millis(3_000);

pub fn measure(options: &Options, report: &mut Report) {
    SIZES.into_iter().for_each(|size| measure_at(size, options.rounds.min(MOST_ROUNDS), report));
}

fn measure_at(size: usize, rounds: usize, report: &mut Report) {
    let etcd = Etcd::start();
    let app = App::alone("probe");
    fill_services(&etcd, size);
    let balancer = Balancer::start(&etcd);
    balancer.wait_status(PATIENCE, "s0.test", "/", 503);
    balancer.wait_in_sync(PATIENCE);
    let restarts = balancer.restarts();
    let (mut ours, mut alone) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        sleep(QUIET);
        ours.push(announce_service(&etcd, &app, &balancer, round));
        balancer.wait_in_sync(PATIENCE);
        sleep(QUIET);
        alone.push(check_file(&balancer) + start_copy(&balancer));
    }
    let restarts = (balancer.restarts() - restarts) as f64;
    report.add(Row {
        bench: "new-service",
        what: "new service after quiet → traffic, ms".to_owned(),
        size: Some(size),
        samples: Samples::new(ours),
        floor: Some(Samples::new(alone)),
    });
    report.add_figure("new-service", "restarts for so many new services", Some(rounds), restarts);
}

/// Writes a service that was never there, in one transaction, and asks until its app answers.
fn announce_service(etcd: &Etcd, app: &App, balancer: &Balancer, round: usize) -> f64 {
    let host = format!("new{round}.test");
    let start = Instant::now();
    etcd.http_service(&format!("new{round}"), &host, &[app]);
    let answers = || Request::get(&host, "/").send(balancer.http()).is_ok_and(|response| response.status == 200);
    while !answers() {
        assert!(start.elapsed() < PATIENCE, "no answer within {PATIENCE:?}");
        sleep(Duration::from_millis(1));
    }
    elapsed_millis(start)
}

fn check_file(balancer: &Balancer) -> f64 {
    let start = Instant::now();
    let mut command = Command::new("haproxy");
    command.arg("-c").arg("-f").arg(balancer.folder().join("conf.d")).arg("-f").arg(balancer.haproxy_cfg());
    assert!(command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("haproxy").success());
    elapsed_millis(start)
}

/// The same file on ports of its own, until it answers.
pub fn start_copy(balancer: &Balancer) -> f64 {
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
        assert!(start.elapsed() < PATIENCE, "no answer within {PATIENCE:?}");
        sleep(Duration::from_millis(1));
    }
    let took = elapsed_millis(start);
    haproxy.kill().and_then(|()| haproxy.wait()).expect("the end of HAProxy");
    took
}

fn elapsed_millis(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1_000.0
}
