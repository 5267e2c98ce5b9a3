//! What each fault costs: three hosts, requests at both balancers, every lost one counted.

mod host;
mod programs;
mod replicas;
mod store;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use lab::load::{Kind, Plan, Report, Running};
use lab::{Hosts, Machine, heavy, servers_up, until};

/// Requests a second, at each of the two balancers.
const RATE: u32 = 500;

/// While a host is dead, each request that meets it waits for `timeout connect`: so many are under way at once.
const WORKERS: u32 = 600;

/// For whatever has to be so again by itself.
const MENDS: Duration = Duration::from_secs(120);

/// Until a host is left out, at the latest: HAProxy's checks alone find a dead one in 9.4 s, and a frozen one's lease ends after 10 s.
const FALL: Duration = Duration::from_secs(12);

/// The app's share of requests that one of three hosts has.
const SHARE: u32 = 3;

/// Hurts the hosts once, waits until they are whole again, and says what it cost.
type Hurt = fn(&Hosts) -> Row;

/// By the names that `LAB_FAULTS` takes. Last what leaves a host prepared for it.
const FAULTS: [(&str, Hurt); 12] = [
    ("power", host::power_cut),
    ("balancer-power", host::balancer_power_cut),
    ("freeze", host::frozen),
    ("leader", store::leader_cut_off),
    ("confgen", programs::confgen_killed),
    ("app", programs::app_stopped),
    ("upgrade", programs::upgraded),
    ("cut-off", store::balancer_cut_off_from_etcd),
    ("disk", programs::disk_full),
    ("clock", host::clock_jumps),
    ("replicas", replicas::host_dies),
    ("quorum", replicas::quorum_lost),
];

/// Those that `make test` looks at, wherever it can.
const ALWAYS: [Hurt; 2] = [programs::app_stopped, programs::confgen_killed];

/// One fault, hurt and mended.
struct Row {
    what: &'static str,
    /// At each balancer: failed requests, and how many there may be at most; no bound where it was dead itself.
    failed: [(usize, Option<usize>); 2],
    sent: u64,
    /// In words, with what was measured.
    converged: String,
}

/// Both loads.
struct Loads([Running; 2]);

impl Loads {
    fn start(hosts: &Hosts) -> Self {
        let kinds = [Kind::PerRequest, Kind::KeepAlive].into_iter().zip(hosts.balancers());
        let start =
            |(kind, balancer)| Plan::new(kind, hosts.web(balancer), Hosts::DOMAIN).rate(RATE).workers(WORKERS).start();
        let loads: Vec<Running> = kinds.map(start).collect();
        let Ok(loads) = loads.try_into() else { panic!("two balancers") };
        let loads = Self(loads);
        // Some are on their way before anything happens.
        until(MENDS, "the loads", || loads.0.iter().all(|it| it.report().good > u64::from(RATE)));
        loads
    }

    /// Ends them, and holds them against what may be lost at each.
    fn row(self, what: &'static str, bounds: [Option<usize>; 2], converged: String) -> Row {
        let reports = self.0.map(Running::stop);
        for report in &reports {
            println!("{what}: {report}");
        }
        let failed = |index: usize| (reports[index].failures.len(), bounds[index]);
        Row { what, failed: [failed(0), failed(1)], sent: reports.iter().map(|it: &Report| it.sent).sum(), converged }
    }
}

/// Changes a weight in the store by way of one host, and waits until HAProxy has it on these: how long that took.
#[track_caller]
fn follows(hosts: &Hosts, by: &Machine, balancers: &[Machine], weight: u32) -> Duration {
    let begun = Instant::now();
    let put = format!(r#"put /haproxy-discover/http-services/shop/overrides/host1-8000 '{{"weight":{weight}}}'"#);
    until(MENDS, "a write to the store", || hosts.etcdctl(by, &put));
    for balancer in balancers {
        until(MENDS, &format!("{} to follow", balancer.name()), || {
            let up = servers_up(balancer);
            if up.get("host1-8000") == Some(&weight) { Ok(()) } else { Err(format!("{up:?}")) }
        });
    }
    begun.elapsed()
}

/// What a host may cost whose end only HAProxy's checks find out.
fn most_of_one_host() -> usize {
    RATE as usize / SHARE as usize * FALL.as_secs() as usize
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn always_an_app_stops_and_confgen_is_killed() {
    let _turn = heavy();
    hurt(&Hosts::up(), &ALWAYS);
}

#[test]
#[ignore = "needs Docker: make lab-test"]
fn what_each_fault_costs() {
    let _turn = heavy();
    let wanted = std::env::var("LAB_FAULTS").unwrap_or_default();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.split(',').any(|it| it == name);
    let faults: Vec<Hurt> = FAULTS.iter().filter(|(name, _)| is_wanted(name)).map(|(_, fault)| *fault).collect();
    assert!(!faults.is_empty(), "LAB_FAULTS={wanted}: the names are {:?}", FAULTS.map(|(name, _)| name));
    let begun = Instant::now();
    let hosts = Hosts::up();
    println!("three hosts are up after {:.0?}", begun.elapsed());
    hurt(&hosts, &faults);
}

/// One after another; what each cost is shown before it is judged.
#[track_caller]
fn hurt(hosts: &Hosts, faults: &[Hurt]) {
    let rows: Vec<Row> = faults.iter().map(|fault| fault(hosts)).collect();
    println!("{}", table(&rows));
    for row in &rows {
        let is_bounded = |(failed, most): &(usize, Option<usize>)| most.is_none_or(|most| *failed <= most);
        assert!(row.failed.iter().all(is_bounded), "{}: {:?}", row.what, row.failed);
    }
}

fn table(rows: &[Row]) -> String {
    let bound = |most: Option<usize>| most.map_or("all".to_owned(), |most| most.to_string());
    let mut table =
        "| fault | failed at `host1`, `host2` | at most | of | converged |\n|---|---|---|---|---|\n".to_owned();
    for Row { what, failed: [(one, most), (two, other)], sent, converged } in rows {
        let (most, other) = (bound(*most), bound(*other));
        writeln!(table, "| {what} | {one}, {two} | {most}, {other} | {sent} | {converged} |").unwrap();
    }
    table
}
