//! What etcd and confgen pay for 5,000 announcers, beside the same records without them, and for the agents of 200 hosts.
//!
//! One process stands for all announcers, or all agents. Each has a connection of its own, with announcer's pings, and renews its
//! lease as announcer does: a stream for each beat, up to a fifth before a third of the TTL. An announcer watches its records on one
//! stream. An agent lists its lease's keys. A third row says what watches would cost the agents instead.

use std::process::{Command, id};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions, Error, LeaseTimeToLiveOptions, PutOptions, WatchStream};
use lab::{Balancer, Etcd, PREFIX, cpu_seconds, resident, until};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};

use crate::Options;
use crate::report::Report;
use crate::store::address_of;

/// An announcer each, and announcer's default TTL.
const ANNOUNCERS: Writers =
    Writers { count: 5_000, records_each: 1, ttl: Duration::from_secs(10), follow: Follow::Watch };
/// An agent a host, and the agent's default TTL.
const AGENTS: Writers =
    Writers { count: 200, records_each: 50, ttl: Duration::from_secs(30), follow: Follow::ListKeys };
/// How often an agent lists its lease's keys.
const LISTINGS: Duration = Duration::from_secs(10);
/// How many upstreams each service has.
const UPSTREAMS: usize = 10;
/// How long each row is measured.
const WATCHED: Duration = Duration::from_secs(30);
/// How many connect, or register, at the same time.
const AT_ONCE: usize = 100;
const PATIENCE: Duration = Duration::from_secs(120);

/// Programs that write records.
#[derive(Clone, Copy)]
struct Writers {
    count: usize,
    records_each: usize,
    ttl: Duration,
    follow: Follow,
}

/// How a program notices that another writer changed its records.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    /// A watch for each record. All share one stream.
    Watch,
    /// A listing of the lease's keys every so often.
    ListKeys,
}

impl Follow {
    fn name(self) -> &'static str {
        match self {
            Self::Watch => "a lease each, and a watch for each record",
            Self::ListKeys => "a lease each, and its keys listed",
        }
    }
}

impl Writers {
    fn count_records(self) -> usize {
        self.count * self.records_each
    }

    fn count_services(self) -> usize {
        self.count_records() / UPSTREAMS
    }

    fn key_of(self, n: usize) -> String {
        format!("http-services/s{}/upstreams/u{n}", n % self.count_services())
    }

    /// The numbers of one writer's records.
    fn records_of(self, writer: usize) -> std::ops::Range<usize> {
        writer * self.records_each..(writer + 1) * self.records_each
    }
}

pub fn measure(_: &Options, report: &mut Report) {
    // A connection each on both sides. etcd inherits it.
    let files = format!("--nofile={}:", ANNOUNCERS.count + 1_000);
    let raised = Command::new("prlimit").args(["--pid", &id().to_string(), &files]).status().expect("prlimit");
    assert!(raised.success(), "{} open files aren't allowed here: ulimit -Hn", ANNOUNCERS.count);
    measure_writers(ANNOUNCERS, true, report);
    measure_writers(AGENTS, true, report);
    measure_writers(Writers { follow: Follow::Watch, ..AGENTS }, false, report);
}

/// Measures the records alone, with connections, and with leases. The first two rows are those of other writers if `is_first` is
/// false.
fn measure_writers(writers: Writers, is_first: bool, report: &mut Report) {
    let etcd = Etcd::start();
    etcd.put_all((0..writers.count_records()).map(|n| (writers.key_of(n), address_of(n))));
    etcd.put_all((0..writers.count_services()).flat_map(|s| {
        let below = format!("http-services/s{s}");
        // Nothing listens there, and it isn't checked. HAProxy is not what is measured.
        [(format!("{below}/domain"), format!("s{s}.test").into_bytes()), (format!("{below}/check"), b"off".to_vec())]
    }));
    let balancer = Balancer::start(&etcd);
    balancer.wait_servers(PATIENCE, &format!("http-s{}", writers.count_services() - 1), UPSTREAMS);
    balancer.wait_in_sync(PATIENCE);

    let mut measure_usage = |what: &str| {
        add_usage(report, what, writers, &etcd, &balancer);
    };
    if is_first {
        measure_usage("records without a lease");
    }
    let all = Connected::connect(writers, &etcd.endpoints());
    if is_first {
        measure_usage("+ a connection each");
    }
    let start = Instant::now();
    all.register();
    let registered = start.elapsed().as_secs_f64();
    // No wave of the start is left then: each renews at a moment of its own.
    sleep(writers.ttl);
    let before = etcd.records("http-services/");
    let count = all.count_beats();
    measure_usage(&format!("+ {}", writers.follow.name()));
    let beats = (all.count_beats() - count) as f64 / WATCHED.as_secs_f64();
    assert!(etcd.records("http-services/") == before, "a record went, or was written again");
    let (size, failed) = (Some(writers.count), all.failed.load(Ordering::Relaxed) as f64);
    for (what, figure) in
        [("leases granted, records put, s", registered), ("renewals a second", beats), ("requests that failed", failed)]
    {
        report.add_figure("leases", &format!("{}: {what}", writers.follow.name()), size, figure);
    }
}

/// All writers, with a connection each.
struct Connected {
    writers: Writers,
    runtime: Runtime,
    may_register: watch::Sender<bool>,
    connected: Arc<AtomicU64>,
    registered: Arc<AtomicU64>,
    beats: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
}

impl Connected {
    /// Waits until each has its connection.
    fn connect(writers: Writers, endpoint: &str) -> Self {
        let all = Self {
            writers,
            runtime: Runtime::new().expect("a runtime"),
            may_register: watch::Sender::new(false),
            connected: Arc::default(),
            registered: Arc::default(),
            beats: Arc::default(),
            failed: Arc::default(),
        };
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        for n in 0..writers.count {
            let (endpoint, turns, may_register) = (endpoint.to_owned(), turns.clone(), all.may_register.subscribe());
            let (connected, registered) = (all.connected.clone(), all.registered.clone());
            let (beats, failed) = (all.beats.clone(), all.failed.clone());
            all.runtime.spawn(async move {
                let client = {
                    let _turn = turns.acquire().await;
                    connect(&endpoint).await.expect("a connection")
                };
                connected.fetch_add(1, Ordering::Relaxed);
                let registering = register(&client, writers, n, may_register, &turns).await;
                let (lease, _watches) = registering.expect("a lease and its records");
                registered.fetch_add(1, Ordering::Relaxed);
                if writers.follow == Follow::ListKeys {
                    tokio::spawn(list_keys(client.clone(), lease, failed.clone()));
                }
                loop {
                    tokio::time::sleep((writers.ttl / 3).mul_f64(1.0 - 0.2 * fastrand::f64())).await;
                    let kept = client.lease_client().keep_alive(lease).await;
                    if kept.is_ok() { &beats } else { &failed }.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        until(PATIENCE, "all connections", || all.connected.load(Ordering::Relaxed) == writers.count as u64);
        all
    }

    /// Waits until each has its lease and its records.
    fn register(&self) {
        self.may_register.send_replace(true);
        until(PATIENCE, "all leases", || self.registered.load(Ordering::Relaxed) == self.writers.count as u64);
    }

    fn count_beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }
}

async fn connect(endpoint: &str) -> Result<Client, Error> {
    let options = ConnectOptions::new()
        .with_connect_timeout(Duration::from_secs(10))
        .with_keep_alive(Duration::from_secs(6), Duration::from_secs(3))
        .with_keep_alive_while_idle(true);
    let mut client = Client::connect([endpoint], Some(options)).await?;
    // Connecting is lazy.
    client.status().await?;
    Ok(client)
}

/// Lists the lease's keys for ever. The first time is spread, as the agent's is.
async fn list_keys(client: Client, lease: i64, failed: Arc<AtomicU64>) {
    tokio::time::sleep(LISTINGS.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
    loop {
        let options = LeaseTimeToLiveOptions::new().with_keys();
        if client.lease_client().time_to_live(lease, Some(options)).await.is_err() {
            failed.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(LISTINGS).await;
    }
}

/// Puts the records under a lease, and watches them where that is asked for.
async fn register(
    client: &Client,
    writers: Writers,
    writer: usize,
    mut may_register: watch::Receiver<bool>,
    turns: &Semaphore,
) -> Result<(i64, Option<WatchStream>), Error> {
    let _ = may_register.wait_for(|may| *may).await;
    let _turn = turns.acquire().await;
    let seconds = i64::try_from(writers.ttl.as_secs()).unwrap_or(i64::MAX);
    let lease = client.lease_client().grant(seconds, None).await?.id();
    let mut watches: Option<WatchStream> = None;
    for n in writers.records_of(writer) {
        let key = format!("{PREFIX}{}", writers.key_of(n));
        let options = PutOptions::new().with_lease(lease);
        client.kv_client().put(key.as_str(), address_of(n), Some(options)).await?;
        match (&mut watches, writers.follow) {
            (_, Follow::ListKeys) => {}
            (None, Follow::Watch) => watches = Some(client.watch_client().watch(key, None).await?),
            (Some(stream), Follow::Watch) => {
                stream.watch(key, None).await?;
                stream.message().await?;
            }
        }
    }
    Ok((lease, watches))
}

/// Measures both for a while. CPU is in percent of one core.
fn add_usage(report: &mut Report, what: &str, writers: Writers, etcd: &Etcd, balancer: &Balancer) {
    let programs = [("etcd", etcd.pid(0)), ("confgen", balancer.pid("confgen").expect("confgen runs"))];
    let before = programs.map(|(_, pid)| cpu_seconds(pid));
    let start = Instant::now();
    sleep(WATCHED);
    for ((name, pid), before) in programs.into_iter().zip(before) {
        let share = 100.0 * (cpu_seconds(pid) - before) / start.elapsed().as_secs_f64();
        report.add_figure("leases", &format!("{what}: {name} CPU, %"), Some(writers.count), share);
        let memory = resident(pid) as f64 / f64::from(1 << 20);
        report.add_figure("leases", &format!("{what}: {name}, MiB"), Some(writers.count), memory);
    }
}
