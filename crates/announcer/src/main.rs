//! announcer: says where an app listens, only while it works, and not while it stops.
//!
//! Architecture invariant: `config`, `record` and `state` are pure; `run` holds the only loop and the only `select!`;
//! what takes time runs in tasks that report back to it; `child` alone waits for processes.

mod args;
mod config;
mod host;

mod record;
mod state;

mod report;
mod retry;

mod address;
mod child;
mod health;
mod registrar;
mod terminal;

mod parting;
mod pulse;

mod one_shot;
mod run;

use std::process::ExitCode;

use clap::Parser;

use crate::{
    address::AddressError,
    args::{Cli, OneShot},
    child::ChildError,
    config::{Config, ConfigError, Form},
    host::Host,
    one_shot::OneShotError,
};

fn main() -> ExitCode {
    let args = Cli::parse();
    match start(args) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            tracing::error!("{error:#}");
            // Without a log, which may be what failed, this is all there is.
            if !tracing::event_enabled!(tracing::Level::ERROR) {
                eprintln!("announcer: {error:#}");
            }
            ExitCode::from(exit_code(&error))
        }
    }
}

fn start(args: Cli) -> anyhow::Result<u8> {
    let log_level = match &args.one_shot {
        None => &args.common.log_level,
        Some(OneShot::Register { common, .. } | OneShot::Deregister { common }) => &common.log_level,
    };
    daemon::log::init(log_level)?;
    let config = args.resolve(&Host::look())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(carry_out(config))
}

async fn carry_out(mut config: Config) -> anyhow::Result<u8> {
    match std::mem::replace(&mut config.form, Form::Deregister) {
        Form::Run(life) => run::run(config, *life).await,
        Form::Register(ttl) => Ok(one_shot::register(&config, ttl).await.map(|()| 0)?),
        Form::Deregister => Ok(one_shot::deregister(&config).await.map(|()| 0)?),
    }
}

/// The exit codes that `--help` lists.
fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<ChildError>() {
        return error.exit_code();
    }
    match error.downcast_ref::<OneShotError>() {
        Some(OneShotError::Address(_)) => 2,
        Some(OneShotError::Store(_) | OneShotError::Contended { .. }) => 3,
        Some(OneShotError::Taken { .. } | OneShotError::OtherAddress { .. }) => 4,
        None if error.is::<ConfigError>() || error.is::<AddressError>() || error.is::<daemon::log::LogError>() => 2,
        None => 1,
    }
}
