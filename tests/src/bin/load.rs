//! The load generator, for use by hand.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool of the tests, which ships nowhere")]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use lab::load::{Expect, Kind, Plan};

/// Sends requests at a fixed rate, and counts what is lost. The exit code is 1 when anything was.
#[derive(Parser)]
struct Args {
    /// Where to
    target: SocketAddr,
    /// The host asked for
    #[arg(long, default_value = "localhost")]
    host: String,
    /// The path asked for
    #[arg(long, default_value = "/")]
    path: String,
    /// How requests travel
    #[arg(long, value_enum, default_value = "keep-alive")]
    kind: KindArg,
    /// Requests a second
    #[arg(long, default_value_t = 2_000)]
    rate: u32,
    /// Requests under way at once, at most
    #[arg(long, default_value_t = 30)]
    workers: u32,
    /// Seconds
    #[arg(long = "for", default_value_t = 10.0)]
    seconds: f64,
    /// Take any body; else only the sample web app's
    #[arg(long)]
    any: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum KindArg {
    PerRequest,
    KeepAlive,
    PerHandshake,
    Http2,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let kind = match args.kind {
        KindArg::PerRequest => Kind::PerRequest,
        KindArg::KeepAlive => Kind::KeepAlive,
        KindArg::PerHandshake => Kind::PerHandshake,
        KindArg::Http2 => Kind::Http2,
    };
    let mut plan = Plan::new(kind, args.target, &args.host).path(&args.path).rate(args.rate).workers(args.workers);
    if args.any {
        plan.expect = Expect::Any;
    }
    let report = plan.run(Duration::from_secs_f64(args.seconds));
    print!("{report}");
    if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
