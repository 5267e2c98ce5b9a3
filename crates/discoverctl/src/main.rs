//! discoverctl: the operator's command line.
//!
//! Architecture invariant: `target`, `edit`, `print` and each command's decisions are pure; `ctl`, `fleet`, `docker` and
//! `wait` alone ask others. An error is never followed by an action: what is written is one transaction on what was read.

// From what was typed to what it means.
mod args;
mod commands;
mod target;

// What is decided without I/O.
mod document;
mod durable;
mod edit;
mod palette;
mod upstreams;
mod verdict;

// Whom is asked: the store, the balancers' API, and both until they agree.
mod ctl;
mod docker;
mod fleet;
mod past;
mod progress;
mod store;
mod wait;

// What is said.
mod error;
mod print;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::{args::Cli, commands::Outcome, ctl::Ctl, error::Error};

fn main() -> ExitCode {
    // Every option may stand behind the command too: people write it there.
    let command = Cli::command().mut_args(|arg| arg.global(true));
    if let Some(code) = manual::print_if_asked(command.clone()) {
        return code;
    }
    let cli = match Cli::from_arg_matches(&command.get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match start(cli) {
        Ok(Outcome::Yes) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::from(1),
        Err(error) => {
            eprintln!("discoverctl: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn start(cli: Cli) -> Result<Outcome, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::Failed(format!("no runtime: {error}")))?;
    let ctl = Ctl::new(cli.common)?;
    runtime.block_on(cli.command.run(&ctl))
}
