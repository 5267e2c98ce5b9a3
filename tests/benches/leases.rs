//! Five thousand leases: what etcd and confgen pay for as many announcers, beside the same records without them.
//!
//! One process stands for all announcers. Each has a connection of its own, with announcer's pings, and renews its lease
//! as announcer does: a stream for each beat, up to a fifth before a third of the TTL.

use std::process::{Command, id};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions, Error, PutOptions};
use lab::{Balancer, Etcd, PREFIX, Pid, cpu_seconds, resident, until};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};

use crate::Options;
use crate::report::Report;
use crate::store::address_of;

const LEASES: usize = 5_000;
const SERVICES: usize = 500;
/// announcer's default.
const TTL: Duration = Duration::from_secs(10);
/// How long each row is measured.
const WATCHED: Duration = Duration::from_secs(30);
/// How many connect, or register, at the same time.
const AT_ONCE: usize = 100;
const PATIENCE: Duration = Duration::from_secs(120);

pub fn measure(_: &Options, report: &mut Report) {
    // A connection each on both sides. etcd inherits it.
    let files = format!("--nofile={}:", LEASES + 1_000);
    let raised = Command::new("prlimit").args(["--pid", &id().to_string(), &files]).status().expect("prlimit");
    assert!(raised.success(), "{LEASES} open files aren't allowed here: ulimit -Hn");

    let etcd = Etcd::start();
    etcd.put_all((0..LEASES).map(|n| (key_of(n), address_of(n))));
    etcd.put_all((0..SERVICES).flat_map(|s| {
        let below = format!("http-services/s{s}");
        // Nothing listens there, and it isn't checked. HAProxy is not what is measured.
        [(format!("{below}/domain"), format!("s{s}.test").into_bytes()), (format!("{below}/check"), b"off".to_vec())]
    }));
    let balancer = Balancer::start(&etcd);
    balancer.wait_servers(PATIENCE, &format!("http-s{}", SERVICES - 1), LEASES / SERVICES);
    balancer.wait_in_sync(PATIENCE);

    let mut measure_usage = |what: &str| {
        add_usage(report, what, etcd.pid(0), balancer.pid("confgen").expect("confgen runs"));
    };
    measure_usage("records without a lease");
    let crowd = Crowd::connect(&etcd.endpoints());
    measure_usage("+ a connection each");
    let start = Instant::now();
    crowd.register();
    let registered = start.elapsed().as_secs_f64();
    // No wave of the start is left then: each renews at a moment of its own.
    sleep(TTL);
    let before = etcd.records("http-services/");
    let count = crowd.count_beats();
    measure_usage("+ a lease each");
    let beats = (crowd.count_beats() - count) as f64 / WATCHED.as_secs_f64();
    assert!(etcd.records("http-services/") == before, "a record went, or was written again");
    report.add_figure("leases", "leases granted, records put, s", Some(LEASES), registered);
    report.add_figure("leases", "renewals a second", Some(LEASES), beats);
    report.add_figure("leases", "renewals that failed", Some(LEASES), crowd.failed.load(Ordering::Relaxed) as f64);
}

/// All of them.
struct Crowd {
    runtime: Runtime,
    may_register: watch::Sender<bool>,
    connected: Arc<AtomicU64>,
    registered: Arc<AtomicU64>,
    beats: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
}

impl Crowd {
    /// Waits until each has its connection.
    fn connect(endpoint: &str) -> Self {
        let crowd = Self {
            runtime: Runtime::new().expect("a runtime"),
            may_register: watch::Sender::new(false),
            connected: Arc::default(),
            registered: Arc::default(),
            beats: Arc::default(),
            failed: Arc::default(),
        };
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        for n in 0..LEASES {
            let (endpoint, turns, may_register) = (endpoint.to_owned(), turns.clone(), crowd.may_register.subscribe());
            let (connected, registered) = (crowd.connected.clone(), crowd.registered.clone());
            let (beats, failed) = (crowd.beats.clone(), crowd.failed.clone());
            crowd.runtime.spawn(async move {
                let client = {
                    let _turn = turns.acquire().await;
                    connect(&endpoint).await.expect("a connection")
                };
                connected.fetch_add(1, Ordering::Relaxed);
                let lease = register(&client, n, may_register, &turns).await.expect("a lease and a record");
                registered.fetch_add(1, Ordering::Relaxed);
                loop {
                    tokio::time::sleep((TTL / 3).mul_f64(1.0 - 0.2 * fastrand::f64())).await;
                    let kept = client.lease_client().keep_alive(lease).await;
                    if kept.is_ok() { &beats } else { &failed }.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        until(PATIENCE, "all connections", || crowd.connected.load(Ordering::Relaxed) == LEASES as u64);
        crowd
    }

    /// Waits until each has its lease and its record.
    fn register(&self) {
        self.may_register.send_replace(true);
        until(PATIENCE, "all leases", || self.registered.load(Ordering::Relaxed) == LEASES as u64);
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

async fn register(
    client: &Client,
    n: usize,
    mut may_register: watch::Receiver<bool>,
    turns: &Semaphore,
) -> Result<i64, Error> {
    let _ = may_register.wait_for(|may| *may).await;
    let _turn = turns.acquire().await;
    let seconds = i64::try_from(TTL.as_secs()).unwrap_or(i64::MAX);
    let lease = client.lease_client().grant(seconds, None).await?.id();
    let options = PutOptions::new().with_lease(lease);
    client.kv_client().put(format!("{PREFIX}{}", key_of(n)), address_of(n), Some(options)).await?;
    Ok(lease)
}

fn key_of(n: usize) -> String {
    format!("http-services/s{}/upstreams/u{n}", n % SERVICES)
}

/// Measures both for a while. CPU is in percent of one core.
fn add_usage(report: &mut Report, what: &str, etcd: Pid, confgen: Pid) {
    let before = [etcd, confgen].map(cpu_seconds);
    let start = Instant::now();
    sleep(WATCHED);
    for (name, pid, before) in [("etcd", etcd, before[0]), ("confgen", confgen, before[1])] {
        let share = 100.0 * (cpu_seconds(pid) - before) / start.elapsed().as_secs_f64();
        report.add_figure("leases", &format!("{what}: {name} CPU, %"), Some(LEASES), share);
        let memory = resident(pid) as f64 / f64::from(1 << 20);
        report.add_figure("leases", &format!("{what}: {name}, MiB"), Some(LEASES), memory);
    }
}
