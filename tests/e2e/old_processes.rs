//! Old HAProxy processes: they keep their WebSockets over any number of restarts, up to handover's bounds.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use lab::{App, Balancer, Etcd, Pid, Setup, WebSocket, heavy, light, until};
use serde_json::Value;

const SERVED: Duration = Duration::from_secs(60);

/// One HAProxy process, with the WebSockets that it serves.
struct Generation {
    worker: Pid,
    sockets: Vec<WebSocket>,
}

impl Generation {
    /// Opens WebSockets through the process that serves now.
    fn open(balancer: &Balancer, sockets: usize) -> Self {
        let open = || WebSocket::open(balancer.http(), "shop.test", false);
        Self { worker: balancer.worker(), sockets: std::iter::repeat_with(open).take(sockets).collect() }
    }

    /// How many of its WebSockets answer.
    fn count_answers(&mut self, text: &str) -> usize {
        let answers = self.sockets.iter_mut().map(|socket| socket.ask(text));
        answers.filter(|answer| answer.as_deref().is_ok_and(|answer| answer == text)).count()
    }
}

fn balancer(handover_flags: &[&str]) -> (Etcd, App, Balancer) {
    let etcd = Etcd::start();
    let app = App::alone("shop");
    etcd.http_service("shop", "shop.test", &[&app]);
    let balancer = Setup::new().handover_flags(handover_flags).confgen(&etcd).start();
    balancer.wait_status(SERVED, "shop.test", "/", 200);
    balancer.wait_settled(SERVED);
    (etcd, app, balancer)
}

/// `supervisorctl restart haproxy`, until only the next process accepts connections.
fn restart(balancer: &Balancer) {
    let before = balancer.worker();
    balancer.restart();
    until(SERVED, "another process", || balancer.try_ask("show info").is_ok() && balancer.worker() != before);
    // For some milliseconds both accept.
    until(SERVED, "the last process to be an old one", || !is_alive(before) || is_old(balancer, before));
}

fn is_old(balancer: &Balancer, worker: Pid) -> bool {
    let old = old_haproxys(balancer);
    old["list"].as_array().unwrap().iter().any(|it| it["pid"].as_i64() == Some(worker.as_raw().into()))
}

/// `old_haproxys` of the API.
fn old_haproxys(balancer: &Balancer) -> Value {
    let answer = balancer.asked("/api/v1/status").unwrap();
    serde_json::from_str::<Value>(&answer.body).unwrap()["old_haproxys"].take()
}

fn metric(balancer: &Balancer, name: &str) -> u64 {
    let metrics = balancer.asked("/metrics").unwrap().body;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
}

/// Fifty WebSockets over five restarts, where three old processes may live.
#[test]
fn over_the_bound_exactly_the_oldest_with_the_fewest_connections_ends() {
    let _turn = light();
    let (_etcd, _app, balancer) = balancer(&["--old-processes", "3"]);
    let mut generations = Vec::new();
    for sockets in [20, 5, 20] {
        generations.push(Generation::open(&balancer, sockets));
        restart(&balancer);
    }
    for (number, generation) in generations.iter_mut().enumerate() {
        assert_eq!(generation.count_answers("kept"), generation.sockets.len(), "process {number}");
    }
    until(SERVED, "confgen to know the three", || {
        let old = old_haproxys(&balancer);
        let known: Vec<_> =
            old["list"].as_array().unwrap().iter().map(|it| it["connections"].as_u64().unwrap()).collect();
        if known == [20, 5, 20] { Ok(()) } else { Err(old.to_string()) }
    });
    assert_eq!(metric(&balancer, "confgen_old_haproxy_processes"), 3);
    assert_eq!(metric(&balancer, "confgen_old_haproxy_connections"), 45);
    assert!(metric(&balancer, "confgen_old_haproxy_memory_bytes") > 3 << 20);
    assert_eq!(metric(&balancer, "confgen_cut_off_haproxys_total"), 0);
    let page = balancer.asked("/haproxy").unwrap().body;
    assert!(page.contains(&format!("<tr data-process=\"{}\"", generations[0].worker)), "{page}");

    // The fourth old process has as few connections as the second, and is younger.
    generations.push(Generation::open(&balancer, 5));
    restart(&balancer);
    until(SERVED, "the second process to end", || !is_alive(generations[1].worker));
    until(SERVED, "the metric to say so", || metric(&balancer, "confgen_cut_off_haproxys_total") == 1);
    // The fifth has none, and ends by itself.
    restart(&balancer);
    until(SERVED, "three old processes", || old_haproxys(&balancer)["processes"] == 3);
    for (number, generation) in generations.iter_mut().enumerate() {
        let expected = if number == 1 { 0 } else { generation.sockets.len() };
        assert_eq!(generation.count_answers("kept again"), expected, "process {number}: {}", balancer.log("haproxy"));
    }
    assert_eq!(metric(&balancer, "confgen_cut_off_haproxys_total"), 1);
    assert_eq!(metric(&balancer, "confgen_cut_off_connections_total"), 5);
    let log = balancer.log("haproxy");
    let lines: Vec<_> = log.lines().filter(|line| line.contains("too many old HAProxys")).collect();
    assert!(lines.len() == 1 && lines[0].contains("connections=5") && lines[0].contains("old_processes=4"), "{log}");
    assert!(old_haproxys(&balancer)["cut_off"]["last"].is_string());
}

fn is_alive(pid: Pid) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// The memory of a process that its end frees, in MiB.
fn private_mib(pid: Pid) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kilobytes.unwrap_or_default() / 1024.0
}

/// A thousand WebSockets over twenty restarts. `each` are opened before each of the restarts.
fn keep_a_thousand(handover_flags: &[&str], each: [usize; 20]) {
    let (_etcd, _app, balancer) = balancer(handover_flags);
    let began = Instant::now();
    let mut generations = Vec::new();
    for sockets in each {
        generations.push(Generation::open(&balancer, sockets));
        restart(&balancer);
    }
    let took = began.elapsed().as_secs();
    let asked: usize = generations.iter().map(|generation| generation.sockets.len()).sum();
    let answered: usize = generations.iter_mut().map(|generation| generation.count_answers("kept")).sum();
    let running = private_mib(balancer.worker());
    let old: Vec<f64> = generations.iter().map(|it| private_mib(it.worker)).filter(|mib| *mib > 0.0).collect();
    println!(
        "20 restarts in {took} s: {answered} of {asked} WebSockets answer; the running process has {running:.1} MiB, {} old \
         ones have {:.1} MiB together, {:.1} to {:.1} each",
        old.len(),
        old.iter().sum::<f64>(),
        old.iter().copied().fold(f64::MAX, f64::min),
        old.iter().copied().fold(0.0, f64::max),
    );
    assert_eq!((answered, asked), (1000, 1000), "{}", balancer.log("haproxy"));
    assert_eq!(metric(&balancer, "confgen_cut_off_haproxys_total"), 0);
}

#[test]
#[ignore = "twenty restarts with a thousand connections: cargo test --workspace --test e2e -- --ignored old_processes"]
fn a_thousand_web_sockets_of_one_process_survive_twenty_restarts() {
    let _turn = heavy();
    let mut each = [0; 20];
    each[0] = 1000;
    keep_a_thousand(&[], each);
}

#[test]
#[ignore = "twenty restarts with a thousand connections: cargo test --workspace --test e2e -- --ignored old_processes"]
fn a_thousand_web_sockets_of_twenty_processes_survive_twenty_restarts() {
    let _turn = heavy();
    keep_a_thousand(&["--old-processes", "20"], [50; 20]);
}
