//! discoverctl: the operator's command line.
//!
//! Architecture invariant: `target`, `edit`, `print` and each command's decisions are pure; `ctl`, `fleet`, `docker` and
//! `wait` alone ask others; `config` and `file` alone read files. An error is never followed by an action: what is written is one transaction on what was read.

// From what was typed to what it means.
mod args;
mod commands;
mod config;
mod file;
mod target;

// What is decided without I/O.
mod document;
mod durable;
mod edit;
mod palette;
mod upstreams;

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

use clap::{ArgMatches, CommandFactory, FromArgMatches};

use crate::commands::{Command, Outcome};
use crate::{args::Cli, config::Config, ctl::Ctl, error::Error, print::Screen};

fn main() -> ExitCode {
    // Every option may stand behind the command too: people write it there.
    let command = Cli::command().mut_args(|arg| arg.global(true));
    if let Some(code) = manual::print_if_asked(command.clone()) {
        return code;
    }
    // Without the operator's files first: a broken one is no reason to refuse `--help`.
    let given = command.clone().get_matches();
    match start(command, &given) {
        Ok(Outcome::Yes) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::from(1),
        Err(error) => {
            eprintln!("discoverctl: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn start(command: clap::Command, given: &ArgMatches) -> Result<Outcome, Error> {
    let config = Config::read()?;
    let mut command = config.apply(command, given);
    let matches = command.get_matches_mut();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let Command::Config(it) = &cli.command {
        return it.run(&Screen::new(cli.common.output), config.counts(&matches, &command));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::Failed(format!("no runtime: {error}")))?;
    let ctl = Ctl::new(cli.common)?;
    runtime.block_on(cli.command.run(&ctl))
}
