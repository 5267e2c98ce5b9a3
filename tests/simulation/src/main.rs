//! Runs seeds of the simulation, or replays one with its log.
#![allow(clippy::print_stdout, reason = "a tool of the tests, which ships nowhere: it prints what it found")]

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use simulation::{Bug, Failure, Setup, Step, generate, log_of, run, run_seeds, shrink};

/// Run seeds of the simulation, or replay one
#[derive(Debug, Parser)]
struct Args {
    /// Replay this seed, with its log
    #[arg(long)]
    seed: Option<u64>,
    /// Run so many seeds
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// Begin with this seed
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Take so many steps for each seed
    #[arg(long, default_value_t = 500)]
    steps: usize,
    /// Use so many threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Switch a seeded bug on, by its name
    #[arg(long)]
    bug: Option<String>,
    /// Print the log of all steps of a replay, and drop none
    #[arg(long)]
    log: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let bug = match args.bug.as_deref().map(|name| (name, find_bug(name))) {
        Some((name, None)) => {
            println!("no bug is called {name}; there are {:?}", Bug::ALL);
            return ExitCode::from(2);
        }
        other => other.and_then(|(_, bug)| bug),
    };
    match args.seed {
        Some(seed) => replay(seed, args.steps, bug, args.log),
        None => run_all(&args, bug),
    }
}

fn find_bug(name: &str) -> Option<Bug> {
    Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name)
}

fn run_all(args: &Args, bug: Option<Bug>) -> ExitCode {
    let began = Instant::now();
    let seeds = args.first..args.first.saturating_add(args.seeds);
    match run_seeds(seeds, args.steps, args.threads, bug) {
        None => {
            println!("{} seeds of {} steps in {:.1?}: all invariants hold", args.seeds, args.steps, began.elapsed());
            ExitCode::SUCCESS
        }
        Some(found) => {
            let (setup, list) = generate(found.seed, args.steps);
            println!("seed {} fails at step {}: {}", found.seed, found.failure.at, found.failure.what);
            show_shrunk(setup, &list, bug, &found.failure);
            println!("\nreplay it: make simulate SEED={}", found.seed);
            ExitCode::FAILURE
        }
    }
}

fn replay(seed: u64, steps: usize, bug: Option<Bug>, shows_log: bool) -> ExitCode {
    let (setup, list) = generate(seed, steps);
    println!("seed {seed}: {setup:?}");
    match run(setup, &list, bug, false) {
        Ok(()) => {
            println!("all invariants hold in {steps} steps");
            if shows_log {
                log_of(setup, &list, bug).iter().for_each(|line| println!("{line}"));
            }
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("fails at step {}: {}", failure.at, failure.what);
            if shows_log {
                log_of(setup, &list, bug).iter().for_each(|line| println!("{line}"));
            } else {
                show_shrunk(setup, &list, bug, &failure);
            }
            ExitCode::FAILURE
        }
    }
}

/// Prints the fewest steps that fail alike, and what they do.
fn show_shrunk(setup: Setup, list: &[Step], bug: Option<Bug>, failure: &Failure) {
    let (fewest, last) = shrink(setup, list, bug, failure);
    println!("\n{} of its steps fail alike: {}", fewest.len(), last.what);
    fewest.iter().for_each(|step| println!("    {step:?}"));
    if let Err(failure) = run(setup, &fewest, bug, true) {
        println!("\nwhat they do:");
        failure.log.iter().for_each(|line| println!("{line}"));
    }
}
