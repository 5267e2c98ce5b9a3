//! The first bytes of the console's pages, and what its samples cost.

use std::io::{Read as _, Write as _, copy, sink};
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::{Balancer, Etcd, Setup, cpu_seconds, own_memory};

use crate::Options;
use crate::report::{Report, Row, Samples};
use crate::store::fill_upstreams;

const PATIENCE: Duration = Duration::from_secs(120);

/// All requests within half a second share HAProxy's figures. Each round has its own.
const APART: Duration = Duration::from_millis(600);

/// confgen counts the servers of each section once after its start, 500 servers at a time every 2 s: 40 s for 10,000.
const START: Duration = Duration::from_secs(45);

const PAGES: [(&str, &str); 4] = [
    ("the first page", "/"),
    ("a search, by requests", "/?q=s7&sort=requests"),
    ("a service", "/services/http-s0"),
    ("the problems as JSON", "/api/v1/problems"),
];

pub fn measure(options: &Options, report: &mut Report) {
    options.sizes.iter().for_each(|size| measure_pages(*size, options.rounds, report));
    if let Some(largest) = options.sizes.iter().max() {
        measure_samples(*largest, Duration::from_secs(60 * options.minutes), report);
    }
}

/// A page comes in one piece, so its first bytes come once it is whole. The floor is HAProxy's own answer to `show stat`, from which
/// the page is made.
fn measure_pages(size: usize, rounds: usize, report: &mut Report) {
    let etcd = Etcd::start();
    let last = fill(&etcd, size);
    let balancer = Balancer::start(&etcd);
    balancer.wait_servers(PATIENCE, &last.0, last.1);
    balancer.wait_in_sync(PATIENCE);
    for (name, path) in PAGES {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        // The first round warms everything up.
        for round in 0..=rounds {
            sleep(APART);
            let page = time_first_bytes(balancer.admin(), path);
            sleep(APART);
            let start = Instant::now();
            balancer.ask("show stat");
            if round > 0 {
                ours.push(page.as_secs_f64() * 1_000.0);
                theirs.push(start.elapsed().as_secs_f64() * 1_000.0);
            }
        }
        // The aim is 100 ms at 10,000 upstreams.
        let (what, floor) = (format!("first bytes of {name}, ms"), Some(Samples::new(theirs)));
        report.add(Row { bench: "console", what, size: Some(size), samples: Samples::new(ours), floor });
    }
}

/// Returns the section of the last service, and the number of its servers.
fn fill(etcd: &Etcd, size: usize) -> (String, usize) {
    fill_upstreams(etcd, size);
    let last = size - 1;
    (format!("http-s{}", last / 10), last % 10 + 1)
}

fn time_first_bytes(address: SocketAddr, path: &str) -> Duration {
    let mut stream = TcpStream::connect(address).expect("the admin port");
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let start = Instant::now();
    stream.write_all(request.as_bytes()).expect("a request");
    let mut first = *b"HTTP/1.1 200";
    stream.read_exact(&mut first).expect("an answer");
    let took = start.elapsed();
    assert_eq!(&first, b"HTTP/1.1 200", "{path}");
    copy(&mut stream, &mut sink()).expect("the rest");
    took
}

/// Two balancers of one store run side by side, one of them without an admin port, which keeps no samples.
fn measure_samples(size: usize, time: Duration, report: &mut Report) {
    let etcd = Etcd::start();
    let last = fill(&etcd, size);
    let named = |name: &str| Setup::new().confgen(&etcd).flags(&["--node", name]);
    let both =
        [("with samples", named("with").start()), ("with --admin off", named("without").without_admin().start())];
    both.iter().for_each(|(_, balancer)| balancer.wait_servers(PATIENCE, &last.0, last.1));
    sleep(START);
    let pid = |balancer: &Balancer| balancer.pid("confgen").expect("confgen runs");
    let before = both.each_ref().map(|(_, balancer)| cpu_seconds(pid(balancer)));
    sleep(time);
    for ((name, balancer), before) in both.iter().zip(before) {
        let cpu = (cpu_seconds(pid(balancer)) - before) / time.as_secs_f64();
        report.add_figure("console", &format!("confgen's CPU at rest {name}, ms a second"), Some(size), cpu * 1_000.0);
        let memory = own_memory(pid(balancer)) as f64 / f64::from(1 << 20);
        report.add_figure("console", &format!("confgen's own memory {name}, MiB"), Some(size), memory);
    }
}
