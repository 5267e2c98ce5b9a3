//! discoverctl: the operator's command line.
//!
//! Architecture invariant: `target`, `edit`, `print` and each command's decisions are pure. Only `context`,
//! `balancer_api`, `docker` and `wait` send requests, and only `config` and `file` read files. After an error no action
//! follows. A write is one transaction on the values that were read.

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

use clap::FromArgMatches;
use program::{options, output};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Cli, completion};
use crate::commands::Command;
use crate::config::Config;
use crate::context::Context;
use crate::error::{Error, Outcome};
use crate::print::{Screen, until_written};

/// The exit code for wrong usage, as `--help` lists it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let command = args::command();
    if let Some(code) = completion::answer_if_asked(&command) {
        return code;
    }
    if let Some(code) = manual::print_if_asked(command.clone(), manual::Completions::Asked(completion::VARIABLE)) {
        return code;
    }
    let code = run_command_line(command).unwrap_or_else(|error| {
        output::print_message(&format!("discoverctl: {error}"));
        ExitCode::from(error.exit_code())
    });
    output::flush_and_return(code)
}

/// Reads the options and runs the command. Returns the exit code.
fn run_command_line(command: clap::Command) -> Result<ExitCode, Error> {
    // The first pass leaves the configuration files out, so that `--help` works although one of them is broken.
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
        // A context needs valid etcd options. `config` has to show invalid ones, too.
        Command::Config(it) => {
            let screen = Screen::new(cli.common.output);
            block_on_command(async { it.run(&screen, config.list_effective(&matches, &command)) })
        }
        _ => {
            let context = Context::new(cli.common)?;
            block_on_command(cli.command.run(&context))
        }
    };
    Ok(match outcome? {
        Outcome::Yes => ExitCode::SUCCESS,
        Outcome::No => ExitCode::from(1),
    })
}

/// Runs a command, and waits until its answer is written.
fn block_on_command(command: impl Future<Output = Result<Outcome, Error>>) -> Result<Outcome, Error> {
    // One thread is enough, because a command mostly waits for answers.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::Failed(format!("no runtime: {error}")))?;
    let outcome = runtime.block_on(async {
        let outcome = command.await;
        // A reader that never reads must not keep Ctrl-C from ending the command.
        let written = tokio::select! {
            written = until_written() => written.map(|_| ()),
            () = wait_for_signal() => Err(Error::Interrupted("the answer isn't read".into())),
        };
        // The command's own error says more than an error of standard output.
        outcome.and_then(|outcome| written.map(|()| outcome))
    });
    // A thread may still wait for a reader of standard output. Dropping the runtime would wait for that thread.
    runtime.shutdown_background();
    outcome
}

/// Waits for Ctrl-C or SIGTERM. A command may have replaced their default handlers, so they no longer end the process
/// by themselves.
async fn wait_for_signal() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
}
