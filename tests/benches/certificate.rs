//! A changed certificate file → the first handshake with it, beside the Runtime API alone.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::http::Request;
use lab::{Balancer, Certificate, Etcd, Setup};

use crate::Options;
use crate::floor::Floor;
use crate::report::{Report, Row, Samples};
use crate::store::fill_upstreams;

const PATIENCE: Duration = Duration::from_secs(60);
const HOST: &str = "probe.test";

pub fn measure(options: &Options, report: &mut Report) {
    for size in &options.sizes {
        report.add(measure_at(*size, options.rounds));
    }
}

fn measure_at(size: usize, rounds: usize) -> Row {
    let etcd = Etcd::start();
    fill_upstreams(&etcd, size);
    etcd.put("http-services/probe/domain", HOST);
    etcd.put("http-services/probe/tls", "both");
    let setup = Setup::new();
    let file = setup.folder().join("certs/probe.pem");
    Certificate::of(&[HOST]).write(&file);
    let balancer = setup.confgen(&etcd).start();
    balancer.wait_status(PATIENCE, HOST, "/", 503);
    balancer.wait_settled(PATIENCE);
    let floor = Floor::start_beside(&balancer, &etcd);
    let loaded = loaded_file(&floor.balancer);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..=rounds {
        sleep(Duration::from_millis(900));
        let certificate = Certificate::of(&[HOST]);
        let start = Instant::now();
        certificate.write(&file);
        ours.push(shown_after(&balancer, start, &certificate));
        sleep(Duration::from_millis(900));
        let certificate = Certificate::of(&[HOST]);
        let start = Instant::now();
        let command = format!("set ssl cert {loaded} <<\n{}\n\n", certificate.pem.trim());
        tell(&floor.balancer.socket(), &command);
        tell(&floor.balancer.socket(), &format!("commit ssl cert {loaded}\n"));
        theirs.push(shown_after(&floor.balancer, start, &certificate));
    }
    Row {
        bench: "certificate",
        what: "certificate file → handshake, ms".to_owned(),
        size: Some(size),
        samples: Samples::new(ours.into_iter().skip(1)),
        floor: Some(Samples::new(theirs.into_iter().skip(1))),
    }
}

/// Shakes hands until this certificate is shown. Milliseconds.
fn shown_after(balancer: &Balancer, start: Instant, certificate: &Certificate) -> f64 {
    let is_shown = || {
        let response = Request::get(HOST, "/").tls(HOST).send(balancer.https());
        response.is_ok_and(|response| response.certificate.as_ref() == Some(&certificate.der))
    };
    while !is_shown() {
        assert!(start.elapsed() < PATIENCE, "not shown within {PATIENCE:?}");
        sleep(Duration::from_millis(1));
    }
    start.elapsed().as_secs_f64() * 1_000.0
}

/// The name under which HAProxy knows the probe's certificate: the copy that confgen made.
fn loaded_file(balancer: &Balancer) -> String {
    let list = balancer.ask("show ssl cert");
    let found = list.lines().find(|line| line.contains("probe"));
    found.unwrap_or_else(|| panic!("no certificate of the probe in {list}")).trim().to_owned()
}

fn tell(socket: &Path, command: &str) {
    let mut stream = UnixStream::connect(socket).expect("HAProxy's socket");
    stream.write_all(command.as_bytes()).expect("a command sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let is_good = answer.contains("Success") || answer.contains("Transaction");
    assert!(is_good, "HAProxy said {answer:?}");
}
