//! `make bench`: every figure that the documentation quotes, in one program. It prints a table, and writes a JSON file and one
//! HTML page with plots. Compare figures of one run only: ours and the floor take turns in it.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool of the tests, which ships nowhere")]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a measurement that can't be made ends the run"
)]

mod announcer;
mod certificate;
mod churn;
mod cold_start;
mod console;
mod failover;
mod floor;
mod follow;
mod leases;
mod new_service;
mod report;
mod restart;
mod route_probe;
mod store;
mod throughput;

use std::path::PathBuf;
use std::process::Command;

use anyhow::bail;
use clap::Parser;

use report::Report;

/// A benchmark: its name, what it measures, how it runs.
type Bench = (&'static str, &'static str, fn(&Options, &mut Report));

const BENCHES: [Bench; 12] = [
    ("follow", "an upstream announced and withdrawn, CPU and memory, beside the floor", follow::measure),
    ("announcer", "the same by an announcer, its own start and drain included", announcer::measure),
    ("failover", "an app that dies with its announcer, under load", failover::measure),
    ("new-service", "a new service, beside HAProxy's own check and start", new_service::measure),
    ("route-probe", "new services one after another, each asked until 404 turns 200", route_probe::measure),
    ("certificate", "a changed certificate file, beside the Runtime API alone", certificate::measure),
    ("churn", "changes under load: answers beside quiet, failed requests", churn::measure),
    ("restart", "a restart's timeline under load", restart::measure),
    ("cold-start", "confgen's start with a full store, and its restart", cold_start::measure),
    ("console", "the console's first bytes, and its samples beside `--admin off`", console::measure),
    ("leases", "5,000 announcers, agents of 200 hosts: what etcd and confgen pay", leases::measure),
    ("throughput", "a request through the generated file, beside one by hand", throughput::measure),
];

/// Measures haproxy-discover, and what the same work costs at least
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  cargo bench --workspace --bench bench -- --list
  cargo bench --workspace --bench bench -- follow --sizes 10,50000 --rounds 41
  cargo bench --workspace --bench bench -- route-probe --services 3000")]
struct Options {
    /// The benchmarks to run; all without one
    names: Vec<String>,

    /// List the benchmarks and end
    #[arg(long)]
    list: bool,

    /// How many upstreams are in the store
    #[arg(long, value_delimiter = ',', default_value = "10,1000,10000")]
    sizes: Vec<usize>,

    /// How many rounds each figure is measured, at least 10 for one that is quoted
    #[arg(long, default_value_t = 21)]
    rounds: usize,

    /// How many services `route-probe` adds; 3,000 with HAProxy 3.4, which needs no restart for one, and 100 before
    #[arg(long)]
    services: Option<usize>,

    /// How many minutes `console` measures the samples; they fill up within 15
    #[arg(long, default_value_t = 16)]
    minutes: u64,

    /// Where bench.json and bench.html go
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench"))]
    out: PathBuf,

    /// Given by `cargo bench`. `cargo test --benches` runs the program without it, and it does nothing
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if options.list {
        BENCHES.iter().for_each(|(name, about, _)| println!("{name:<12} {about}"));
    }
    if options.list || !options.bench {
        return Ok(());
    }
    if let Some(unknown) = options.names.iter().find(|name| BENCHES.iter().all(|bench| bench.0 != name.as_str())) {
        bail!("there is no benchmark {unknown:?}; --list has their names");
    }
    let mut report = Report::begin(describe_machine());
    let is_wanted = |name: &str| options.names.is_empty() || options.names.iter().any(|wanted| wanted == name);
    for (name, _, measure) in BENCHES.iter().filter(|bench| is_wanted(bench.0)) {
        println!("{name}");
        measure(&options, &mut report);
        // A long run that is cut leaves the figures so far.
        report.write(&options.out)?;
    }
    Ok(())
}

fn describe_machine() -> Vec<(&'static str, String)> {
    let first_line = |program: &str, flag: &str| {
        let output = Command::new(program).arg(flag).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        text.lines().next().unwrap_or_default().to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    vec![
        ("HAProxy", first_line("haproxy", "-v")),
        ("etcd", first_line("etcd", "--version")),
        ("kernel", first_line("uname", "-srm")),
        ("cores", cores.to_string()),
    ]
}

/// Whether HAProxy takes new backends while it runs: 3.4 does.
fn adds_backends() -> bool {
    let output = Command::new("haproxy").arg("-v").output().expect("haproxy -v");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().nth(2).unwrap_or_default();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or_default());
    (numbers.next(), numbers.next()) >= (Some(3), Some(4))
}
