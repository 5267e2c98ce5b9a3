//! What a request costs through the generated file, beside a hand-written one with the same features for the same
//! upstreams, in alternating rounds of one run: requests a second, and HAProxy's CPU time for each. Other work on the machine
//! disturbs the former more.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::{Balancer, Certificate, Etcd, Process, Scratch, Setup, cpu_seconds, free_port, write};

use crate::Options;
use crate::report::{Report, Row, Samples};

/// How many services there are; the last one is asked.
const SIZES: [usize; 2] = [10, 1_000];
const MOST_ROUNDS: usize = 15;
/// Of each round and way. Short ones in turns find the same machine.
const SECONDS: &str = "1";
const CLIENTS: &str = "30";
const PATIENCE: Duration = Duration::from_secs(60);

/// How a request travels: over which port, to which host, with which flags of h2load.
#[derive(Clone, Copy)]
enum Way {
    Http,
    Tls,
    Http2,
    PassThrough,
}

const WAYS: [(Way, &str); 4] = [
    (Way::Http, "HTTP/1.1"),
    (Way::Tls, "HTTP/1.1 over TLS"),
    (Way::Http2, "HTTP/2"),
    (Way::PassThrough, "pass-through"),
];

/// What one round comes to.
#[derive(Clone, Copy)]
struct Figures {
    /// Requests a second.
    rate: f64,
    /// HAProxy's CPU time for a request, in microseconds.
    cpu: f64,
}

pub fn measure(options: &Options, report: &mut Report) {
    SIZES.into_iter().for_each(|size| measure_at(size, options.rounds.min(MOST_ROUNDS), report));
}

fn measure_at(size: usize, count: usize, report: &mut Report) {
    let scratch = Scratch::new();
    let certificate = Certificate::of(&["*.test"]);
    certificate.write(scratch.join("test.pem"));
    let (plain, secure) = (free_port(), free_port());
    let upstream = start_upstream(&scratch, plain, secure);
    let etcd = Etcd::start();
    let setup = Setup::new();
    certificate.write(setup.folder().join("certs/test.pem"));
    etcd.put_all((0..=size).flat_map(|number| {
        let below = format!("http-services/s{number}");
        let (tls, port) = if number == size { ("passthrough", secure) } else { ("both", plain) };
        let leaves = [("domain", host_of(number)), ("check", "off".to_owned()), ("tls", tls.to_owned())];
        let upstream = ("upstreams/u", format!("127.0.0.1:{port}"));
        leaves.into_iter().chain([upstream]).map(move |(leaf, value)| (format!("{below}/{leaf}"), value.into_bytes()))
    }));
    let balancer = setup.confgen(&etcd).start();
    balancer.wait_status(PATIENCE, &host_of(0), "/", 200);
    balancer.wait_settled(PATIENCE);
    let by_hand = start_by_hand(&scratch, size, plain, secure, &balancer);

    for (way, name) in WAYS {
        let rounds = run_rounds(&balancer, &by_hand, way, size, count);
        let row = |what: &str, of: fn(&Figures) -> f64| Row {
            bench: "throughput",
            what: format!("{name}: {what}"),
            size: Some(size),
            samples: Samples::new(rounds.iter().map(|pair| of(&pair.0))),
            floor: Some(Samples::new(rounds.iter().map(|pair| of(&pair.1)))),
        };
        report.add(row("requests/s", |figures| figures.rate));
        report.add(row("HAProxy's CPU, µs", |figures| figures.cpu));
    }
    drop(upstream);
}

/// What each round comes to, through the generated file and through the hand-written one.
fn run_rounds(
    generated: &Balancer,
    by_hand: &Balancer,
    way: Way,
    size: usize,
    count: usize,
) -> Vec<(Figures, Figures)> {
    let round = |number: usize| {
        // The second one finds a warmer machine, so they take turns.
        if number.is_multiple_of(2) {
            let first = run_round(generated, way, size);
            (first, run_round(by_hand, way, size))
        } else {
            let first = run_round(by_hand, way, size);
            (run_round(generated, way, size), first)
        }
    };
    // The first one warms up.
    (0..=count).map(round).skip(1).collect()
}

fn host_of(number: usize) -> String {
    format!("s{number}.test")
}

/// What the services lead to: the quickest web server at hand, plain and with TLS.
fn start_upstream(scratch: &Path, plain: u16, secure: u16) -> Process {
    let pem = scratch.join("test.pem").display().to_string();
    write(
        scratch.join("upstream.cfg"),
        format!(
            "defaults\n    mode http\n    timeout client 1m\n    timeout http-keep-alive 1m\nfrontend web\n    \
             bind 127.0.0.1:{plain}\n    bind 127.0.0.1:{secure} ssl crt {pem}\n    \
             http-request return status 200 content-type text/plain string ok\n"
        ),
    );
    let mut command = Command::new("haproxy");
    Process::start(scratch, "upstream", command.arg("-db").arg("-f").arg(scratch.join("upstream.cfg")))
}

/// The hand-written file, in a HAProxy that is started as the generated one's is: in a session of its own, for one, to
/// which Linux gives its share of the CPU.
fn start_by_hand(scratch: &Path, size: usize, plain: u16, secure: u16, balancer: &Balancer) -> Balancer {
    let setup = Setup::new();
    let file = balancer.file();
    let log = file.lines().map(str::trim_start).find(|line| line.starts_with("log 127")).expect("the log's line");
    let (mut text, mut map) = (include_str!("by_hand.cfg").to_owned(), String::new());
    let map_file = scratch.join("hosts.map").display().to_string();
    for (word, value) in [
        ("<log>", log.to_owned()),
        ("<socket>", setup.socket().display().to_string()),
        ("<https>", setup.https().to_string()),
        ("<http>", setup.http().to_string()),
        ("<inner>", scratch.join("inner.sock").display().to_string()),
        ("<certificate>", scratch.join("test.pem").display().to_string()),
        ("<passed-through>", host_of(size)),
        ("<map>", map_file.clone()),
        ("<secure>", secure.to_string()),
    ] {
        text = text.replace(word, &value);
    }
    for number in 0..size {
        let _ = write!(text, "\nbackend s{number}\n    server u 127.0.0.1:{plain}\n");
        let _ = writeln!(map, "{}/ s{number}", host_of(number));
    }
    write(map_file, &map);
    write(setup.haproxy_cfg(), text);
    let balancer = setup.start();
    balancer.wait_status(PATIENCE, &host_of(0), "/", 200);
    balancer
}

/// One round, every request of which is answered with 200.
fn run_round(balancer: &Balancer, way: Way, size: usize) -> Figures {
    let (asked, to, version) = match way {
        Way::Http => (format!("http://{}/", host_of(size - 1)), balancer.http(), Some("--h1")),
        Way::Tls => (format!("https://{}/", host_of(size - 1)), balancer.https(), Some("--h1")),
        Way::Http2 => (format!("https://{}/", host_of(size - 1)), balancer.https(), None),
        Way::PassThrough => (format!("https://{}/", host_of(size)), balancer.https(), Some("--h1")),
    };
    let mut command = Command::new("h2load");
    command.args(["--clients", CLIENTS, "--duration", SECONDS, "--threads", "1"]).args(version);
    let worker = balancer.worker();
    let before = cpu_seconds(worker);
    let output = command.arg(format!("--connect-to={to}")).arg(asked).output().expect("h2load");
    let seconds = cpu_seconds(worker) - before;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = |line: &str, before: &str| -> Option<f64> {
        let line = text.lines().find(|it| it.starts_with(line))?;
        line.split(before).next()?.split_whitespace().next_back()?.parse().ok()
    };
    let (done, good) = (number("requests:", " done"), number("status codes:", " 2xx"));
    let done = done.filter(|done| *done > 0.0 && Some(*done) == good);
    let done = done.unwrap_or_else(|| panic!("not all of them were answered with 200:\n{text}"));
    Figures { rate: number("finished in", " req/s").expect("a rate in what h2load says"), cpu: seconds * 1e6 / done }
}
