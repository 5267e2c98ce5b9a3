//! Key written → first answer through HAProxy, by confgen and by the floor (`floor.rs`), in alternating rounds of one run.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool of the tests, which ships nowhere")]
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a measurement that can't be made ends the run")]

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::http::Request;
use lab::{App, Balancer, Etcd, Process, Scratch, Setup, bin, until, write};

/// How many upstreams stand in the store, ten a service. The probed service has one, so that no turns blur it. Numbers on the
/// command line replace these: `cargo bench --package lab --bench follow -- 50000`.
const SIZES: [usize; 3] = [10, 1_000, 10_000];
const ROUNDS: usize = 21;
const DEADLINE: Duration = Duration::from_secs(60);
/// Longer than the file's delay and HAProxy's check of 10,000 servers: each round finds confgen at rest.
const QUIET: Duration = Duration::from_millis(900);

fn main() {
    // `cargo test --benches` compiles it and runs it without this flag.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let titles = ["upstreams", "confgen ms", "floor ms", "ratio", "confgen CPU ms a change", "RSS MiB", "p99 ratio"];
    println!(
        "{:>9} {:>22} {:>22} {:>6} {:>24} {:>8} {:>12}",
        titles[0], titles[1], titles[2], titles[3], titles[4], titles[5], titles[6]
    );
    println!("{:>9} {:>22} {:>22}", "", "median (least–most)", "median (least–most)");
    let asked: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let sizes = if asked.is_empty() { SIZES.to_vec() } else { asked };
    sizes.into_iter().for_each(measure);
}

fn measure(size: usize) {
    let etcd = Etcd::start();
    let app = App::alone("probe");
    etcd.put_all((0..size).map(|n| {
        let key = format!("http-services/s{}/upstreams/u{n}", n / 10);
        // Nobody listens there, and nobody checks it: only the number counts.
        (key, format!("127.{}.{}.{}:9", 1 + n / 62_500, n / 250 % 250, n % 250 + 1).into_bytes())
    }));
    etcd.put_all((0..size / 10).flat_map(|s| {
        let below = format!("http-services/s{s}");
        [(format!("{below}/domain"), format!("s{s}.test").into_bytes()), (format!("{below}/check"), b"off".to_vec())]
    }));
    etcd.put("http-services/probe/domain", "probe.test");
    let balancer = Balancer::start(&etcd);
    balancer.wait_status(DEADLINE, "probe.test", "/", 503);
    balancer.wait_in_sync(DEADLINE);
    let floor = Floor::beside(&balancer, &etcd);
    let before = usage(&balancer);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let one = announce(&etcd, "http-services/probe/upstreams/probe", &app, &balancer);
        let other = announce(&etcd, "/floor/http-probe/probe", &app, &floor.balancer);
        // The first one warms everything up.
        if round > 0 {
            ours.push(one);
            theirs.push(other);
        }
    }
    let (cpu, resident) = usage(&balancer);
    // Each round is two changes: the server comes, and goes.
    let cpu = (cpu - before.0).as_secs_f64() * 1_000.0 / (2 * (ROUNDS + 1)) as f64;
    let ratio = median(&mut ours) / median(&mut theirs);
    let (ours_row, theirs_row) = (row(&mut ours), row(&mut theirs));
    // With some twenty rounds the p99 is the slowest one. Both are sorted by now.
    let tail = ours[ours.len() * 99 / 100] / theirs[theirs.len() * 99 / 100];
    println!("{size:>9} {ours_row:>22} {theirs_row:>22} {ratio:>6.2} {cpu:>24.1} {resident:>8.1} {tail:>12.2}");
}

/// Writes the key and asks until the app answers, then deletes it and waits until it doesn't. Milliseconds.
fn announce(etcd: &Etcd, key: &str, app: &App, balancer: &Balancer) -> f64 {
    sleep(QUIET);
    let answers = || {
        let response = Request::get("probe.test", "/").send(balancer.http());
        response.is_ok_and(|response| response.status == 200)
    };
    let start = Instant::now();
    etcd.put(key, app.address.to_string());
    while !answers() {
        assert!(start.elapsed() < DEADLINE, "no answer within {DEADLINE:?}");
        sleep(Duration::from_micros(200));
    }
    let took = start.elapsed();
    etcd.delete(key);
    until(DEADLINE, "the upstream to be gone", || !answers());
    took.as_secs_f64() * 1_000.0
}

/// The same configuration on a HAProxy of its own, changed by nothing but the floor.
struct Floor {
    balancer: Balancer,
    _process: Process,
    _folder: Scratch,
}

impl Floor {
    fn beside(ours: &Balancer, etcd: &Etcd) -> Self {
        let setup = Setup::new().plain();
        let moved = |text: String| {
            let ports = [(ours.http(), setup.http()), (ours.https(), setup.https()), (ours.stats(), setup.stats())];
            let text = ports.iter().fold(text, |text, (from, to)| text.replace(&from.to_string(), &to.to_string()));
            // The maps and certificates stay where they are; the socket is the floor's own.
            let socket = format!("{}/admin.sock", ours.folder().display());
            text.replace(&socket, &format!("{}/admin.sock", setup.folder().display()))
        };
        write(setup.haproxy_cfg(), moved(ours.file()));
        let balancer = setup.start();
        let folder = Scratch::new();
        let mut command = Command::new(bin("floor"));
        command.args(["--endpoint", &etcd.endpoints()]);
        command.arg("--socket").arg(balancer.folder().join("admin.sock"));
        let process = Process::start(&folder, "floor", &mut command);
        let log = folder.join("floor.log");
        until(DEADLINE, "the floor to watch", || {
            std::fs::read_to_string(&log).is_ok_and(|log| log.contains("watching"))
        });
        Self { balancer, _process: process, _folder: folder }
    }
}

/// confgen's own CPU time so far, and its resident memory in MiB.
fn usage(balancer: &Balancer) -> (Duration, f64) {
    let pid = balancer.pid("confgen").expect("confgen runs");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its figures");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    // proc(5): utime and stime are fields 14 and 15, in ticks of 10 ms; rss is field 24, in pages of 4 KiB.
    let number = |field: usize| fields[field - 3].parse::<u64>().expect("a number");
    let cpu = Duration::from_millis((number(14) + number(15)) * 10);
    (cpu, number(24) as f64 * 4.0 / 1024.0)
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

fn row(times: &mut [f64]) -> String {
    let median = median(times);
    format!("{median:.1} ({:.1}–{:.1})", times[0], times[times.len() - 1])
}
