//! The program that supervisord runs as `haproxy`. It hands the sockets over at a restart, so that no request is lost.

mod args;
mod capture;
mod directory;
mod guard;
mod launch;
mod linger;
mod memory;
mod processes;
mod release;
mod run_dir;
mod server_state;
mod signals;
mod state;
mod stop;
mod supervise;
mod surplus;

use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;
use program::text::describe_error;
use program::{options, output};

use args::{Cli, Verb};
use signals::Signals;
use state::Outcome;

/// Something around HAProxy failed: a directory, a lock, a program that can't be started.
const FAILED: u8 = 4;

/// `EX_USAGE` of sysexits.h; clap's own 2 means a refused configuration here.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    if let Some(code) = manual::print_if_asked(Cli::command(), manual::Completions::Static) {
        return code;
    }
    let cli: Cli = match options::read_options(Cli::command(), USAGE) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let code = run_verb(cli).map_or_else(
        |error| {
            tracing::error!(error = %describe_error(error.as_ref()), "handover failed");
            FAILED
        },
        Outcome::exit_code,
    );
    output::flush_and_return(ExitCode::from(code))
}

fn run_verb(cli: Cli) -> anyhow::Result<Outcome> {
    // Signals first, so that each one means what `--help` says from the beginning.
    let signals = cli.verb.is_none().then(Signals::hold_back).transpose()?;
    program::log::init_as("info", cli.log_format())?;
    match cli.verb {
        None => supervise::run_haproxy(cli.start.resolve_settings()?, signals.context("signals are held")?),
        Some(Verb::Stop(stop)) => stop::stop_all(&stop).map(|()| Outcome::Stopped),
        Some(Verb::Linger(linger)) => linger::run_watchdog(&linger).map(|()| Outcome::Stopped),
        Some(Verb::Session { command, .. }) => Err(launch::become_session(&command)),
    }
}
