//! What supervisord runs as `haproxy`: hands the sockets over at a restart, so that no request is lost.

mod args;
mod capture;
mod directory;
mod guard;
mod launch;
mod linger;
mod processes;
mod release;
mod run_dir;
mod signals;
mod state;
mod stop;
mod supervise;

use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;
use program::{options, output};

use args::{Cli, Verb};
use signals::Signals;
use state::Outcome;

/// Something around HAProxy failed: a directory, a lock, a program that can't be started.
const FAILED: u8 = 4;

/// `EX_USAGE` of sysexits.h; clap's own 2 means a refused configuration here.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    if let Some(code) = manual::print_if_asked(Cli::command()) {
        return code;
    }
    let cli: Cli = match options::read(Cli::command(), USAGE) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let code = run(cli).map_or_else(
        |error| {
            tracing::error!("{error:#}");
            FAILED
        },
        Outcome::code,
    );
    output::finish(ExitCode::from(code))
}

fn run(cli: Cli) -> anyhow::Result<Outcome> {
    // First of all, so that a signal means what `--help` says from the beginning.
    let signals = cli.verb.is_none().then(Signals::hold).transpose()?;
    program::log::init("info")?;
    match cli.verb {
        None => supervise::run(cli.start.settings()?, signals.context("signals are held")?),
        Some(Verb::Stop(stop)) => stop::run(&stop).map(|()| Outcome::Stopped),
        Some(Verb::Linger(linger)) => linger::run(&linger).map(|()| Outcome::Stopped),
        Some(Verb::Session { command }) => Err(launch::become_session(&command)),
    }
}
