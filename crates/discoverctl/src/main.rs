//! discoverctl: the operator's command line.
//!
//! Architecture invariant: `target`, `edit`, `print` and each command's decisions are pure; `context`, `balancer_api`, `docker` and
//! `wait` alone ask others; `config` and `file` alone read files. An error is never followed by an action: what is written is one transaction on what was read.

mod args;
mod balancer_api;
mod colors;
mod commands;
mod config;
mod context;
mod durable_keys;
mod edit;
mod error;
mod file;
mod print;
mod progress;
mod shared_options;
mod store;
mod target;
mod upstreams;
mod verdict;
mod wait;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use program::{options, output};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Cli;
use crate::commands::Command;
use crate::config::Config;
use crate::context::Context;
use crate::error::Error;
use crate::error::Outcome;
use crate::print::{Screen, until_written};

/// The exit code for wrong usage, as `--help` lists it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    // Every option may stand behind the command too: people write it there.
    let command = Cli::command().mut_args(|arg| arg.global(true));
    if let Some(code) = manual::print_if_asked(command.clone()) {
        return code;
    }
    let code = run_command_line(command).unwrap_or_else(|error| {
        output::print_message(&format!("discoverctl: {error}"));
        ExitCode::from(error.exit_code())
    });
    output::flush_and_return(code)
}

/// Reads the options, and carries the command out. Returns the exit code.
fn run_command_line(command: clap::Command) -> Result<ExitCode, Error> {
    // Without the operator's files first: a broken one is no reason to refuse `--help`.
    let given = match options::read_matches(command.clone(), USAGE) {
        Ok(given) => given,
        Err(code) => return Ok(code),
    };
    let config = Config::read()?;
    let command = config.apply_defaults(command, &given);
    let matches = match options::read_matches(command.clone(), USAGE) {
        Ok(matches) => matches,
        Err(code) => return Ok(code),
    };
    let cli = Cli::from_arg_matches(&matches).map_err(|error| Error::Usage(error.to_string()))?;
    let outcome = match &cli.command {
        Command::Config(it) => {
            let screen = Screen::new(cli.common.output);
            block_on_command(async { it.run(&screen, config.list_effective(&matches, &command)) })
        }
        _ => {
            let ctl = Context::new(cli.common)?;
            block_on_command(cli.command.run(&ctl))
        }
    };
    Ok(match outcome? {
        Outcome::Yes => ExitCode::SUCCESS,
        Outcome::No => ExitCode::from(1),
    })
}

/// Carries a command out, and waits until its answer is written.
fn block_on_command(command: impl Future<Output = Result<Outcome, Error>>) -> Result<Outcome, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::Failed(format!("no runtime: {error}")))?;
    let outcome = runtime.block_on(async {
        let outcome = command.await;
        let written = tokio::select! {
            written = until_written() => written.map(|_| ()),
            () = wait_for_signal() => Err(Error::Interrupted("the answer isn't read".into())),
        };
        // The command's own error says more.
        outcome.and_then(|outcome| written.map(|()| outcome))
    });
    // A thread may still wait for a reader.
    runtime.shutdown_background();
    outcome
}

/// Waits for Ctrl-C or SIGTERM: a command may have taken both from their default.
async fn wait_for_signal() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
}
