//! What supervisord runs as `haproxy`: hands the sockets over at a restart, so that no request is lost.

mod args;
mod capture;
mod directory;
mod guard;
mod haproxys;
mod launch;
mod linger;
mod place;
mod release;
mod serve;
mod signals;
mod step;
mod stop;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Verb};
use step::Outcome;

/// Something around HAProxy failed: a directory, a lock, a program that can't be started.
const FAILED: u8 = 4;

/// `EX_USAGE` of sysexits.h; clap's own 2 means a refused configuration here.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    if let Some(code) = manual::print_if_asked(Cli::command()) {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // supervisord may be gone, and the pipe with it; the complaint about that would go the same way.
        .log_internal_errors(false)
        .init();
    match run(cli) {
        Ok(outcome) => ExitCode::from(outcome.code()),
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<Outcome> {
    match cli.verb {
        None => serve::run(cli.start.settings()?),
        Some(Verb::Stop(stop)) => stop::run(&stop).map(|()| Outcome::Stopped),
        Some(Verb::Linger(linger)) => linger::run(&linger).map(|()| Outcome::Stopped),
        Some(Verb::Session { command }) => Err(launch::become_session(&command)),
    }
}
