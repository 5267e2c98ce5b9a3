//! What a request costs through the generated file, beside a hand-written one with the same features for the same
//! upstreams, in alternating rounds of one run: requests a second, and HAProxy's CPU time for each. Other work on the machine
//! disturbs the former more.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool of the tests, which ships nowhere")]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a measurement that can't be made ends the run"
)]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::{Balancer, Certificate, Etcd, Process, Scratch, Setup, cpu_seconds, free_port, write};

/// How many services there are; the last one is asked.
const SIZES: [usize; 2] = [10, 1_000];
const ROUNDS: usize = 15;
/// Of each round and way. Short ones in turns find the same machine.
const SECONDS: &str = "1";
const CLIENTS: &str = "30";
const DEADLINE: Duration = Duration::from_secs(60);

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

fn main() {
    // `cargo test --benches` compiles it and runs it without this flag.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    println!(
        "Medians, with the least and the most; ratios are medians of the rounds', below 1 where the generated is dearer"
    );
    println!("{:>9} {:<18} {:<10} {:>22} {:>22} {:>7}", "services", "", "", "generated", "by hand", "ratio");
    SIZES.into_iter().for_each(measure);
}

fn measure(size: usize) {
    let scratch = Scratch::new();
    let certificate = Certificate::of(&["*.test"]);
    certificate.write(scratch.join("test.pem"));
    let (plain, secure) = (free_port(), free_port());
    let upstream = upstream(&scratch, plain, secure);
    let etcd = Etcd::start();
    let setup = Setup::new();
    certificate.write(setup.folder().join("certs/test.pem"));
    etcd.put_all((0..=size).flat_map(|number| {
        let below = format!("http-services/s{number}");
        let (tls, port) = if number == size { ("passthrough", secure) } else { ("both", plain) };
        let leaves = [("domain", host(number)), ("check", "off".to_owned()), ("tls", tls.to_owned())];
        let upstream = ("upstreams/u", format!("127.0.0.1:{port}"));
        leaves.into_iter().chain([upstream]).map(move |(leaf, value)| (format!("{below}/{leaf}"), value.into_bytes()))
    }));
    let balancer = setup.confgen(&etcd).start();
    balancer.wait_status(DEADLINE, &host(0), "/", 200);
    balancer.wait_settled(DEADLINE);
    let by_hand = by_hand(&scratch, size, plain, secure, &balancer);

    for (way, name) in WAYS {
        let rounds = rounds(&balancer, &by_hand, way, size);
        let row = |what: &str, of: fn(&Figures) -> f64, ratio: fn(f64, f64) -> f64| {
            let generated = spread(rounds.iter().map(|pair| of(&pair.0)));
            let by_hand = spread(rounds.iter().map(|pair| of(&pair.1)));
            let ratio = median(&sorted(rounds.iter().map(|pair| ratio(of(&pair.0), of(&pair.1)))));
            println!("{size:>9} {name:<18} {what:<10} {generated:>22} {by_hand:>22} {ratio:>7.2}");
        };
        row("requests/s", |it| it.rate, |generated, by_hand| generated / by_hand);
        row("CPU µs", |it| it.cpu, |generated, by_hand| by_hand / generated);
    }
    drop(upstream);
}

/// What each round comes to, through the generated file and through the hand-written one.
fn rounds(generated: &Balancer, by_hand: &Balancer, way: Way, size: usize) -> Vec<(Figures, Figures)> {
    let round = |number: usize| {
        // Whoever comes second finds a warmer machine: they take turns.
        if number.is_multiple_of(2) {
            let first = figures(generated, way, size);
            (first, figures(by_hand, way, size))
        } else {
            let first = figures(by_hand, way, size);
            (figures(generated, way, size), first)
        }
    };
    // The first one warms up.
    (0..=ROUNDS).map(round).skip(1).collect()
}

fn host(number: usize) -> String {
    format!("s{number}.test")
}

/// What the services lead to: the quickest web server at hand, plain and with TLS.
fn upstream(scratch: &Path, plain: u16, secure: u16) -> Process {
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
fn by_hand(scratch: &Path, size: usize, plain: u16, secure: u16, balancer: &Balancer) -> Balancer {
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
        ("<passed-through>", host(size)),
        ("<map>", map_file.clone()),
        ("<secure>", secure.to_string()),
    ] {
        text = text.replace(word, &value);
    }
    for number in 0..size {
        let _ = write!(text, "\nbackend s{number}\n    server u 127.0.0.1:{plain}\n");
        let _ = writeln!(map, "{}/ s{number}", host(number));
    }
    write(map_file, &map);
    write(setup.haproxy_cfg(), text);
    let balancer = setup.start();
    balancer.wait_status(DEADLINE, &host(0), "/", 200);
    balancer
}

/// One round, every request of which is answered with 200.
fn figures(balancer: &Balancer, way: Way, size: usize) -> Figures {
    let (asked, to, version) = match way {
        Way::Http => (format!("http://{}/", host(size - 1)), balancer.http(), Some("--h1")),
        Way::Tls => (format!("https://{}/", host(size - 1)), balancer.https(), Some("--h1")),
        Way::Http2 => (format!("https://{}/", host(size - 1)), balancer.https(), None),
        Way::PassThrough => (format!("https://{}/", host(size)), balancer.https(), Some("--h1")),
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

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

fn spread(values: impl Iterator<Item = f64>) -> String {
    let sorted = sorted(values);
    let show = |value: f64| if value < 1_000.0 { format!("{value:.1}") } else { format!("{value:.0}") };
    format!("{} ({}–{})", show(median(&sorted)), show(sorted[0]), show(sorted[sorted.len() - 1]))
}
