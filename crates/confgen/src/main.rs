//! confgen: follows the store, renders haproxy.cfg, has HAProxy validate it, and applies it.
//!
//! Data goes one way: topology → settle → { live, structure, view → render } → HAProxy and disk. `settle`, `view`,
//! `render`, `structure`, `live`, `guard`, `bisect` and `pace` are pure; `disk`, `certs`, `stats`, `ports` and `outside`
//! touch the host; `proxy` is the running HAProxy; `filing` writes the file; `round` puts a round together; `run` is the
//! daemon and has the only `select!`; `commands` are the one-shot forms.

mod args;

mod settle;

mod operator;
mod view;

mod render;
mod structure;

mod bisect;
mod guard;
mod live;
mod pace;

mod certs;
mod disk;
mod outside;
mod ports;
mod stats;

mod commands;
mod filing;
mod proxy;
mod round;
mod run;

use std::process::ExitCode;

use clap::Parser;
use daemon::shutdown::Shutdown;

use args::{Cli, Command, Common};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let common = cli.command.as_ref().map_or(&cli.common, Command::common);
    if let Err(error) = daemon::log::init(&common.log_level) {
        eprintln!("confgen: {error}");
        return ExitCode::from(commands::USAGE);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("confgen: start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(start(cli)) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            commands::exit_code(&error)
        }
    }
}

async fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        None => {
            let Common { store, options, pacing, .. } = cli.common;
            run::run(store.resolve()?, options, pacing, Shutdown::on_signals()?).await?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Once(common)) => commands::once(common).await,
        Some(Command::Render { at_revision, common }) => commands::render(common, at_revision).await,
        Some(Command::Diff(common)) => commands::diff(common).await,
    }
}
