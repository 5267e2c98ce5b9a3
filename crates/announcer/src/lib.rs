//! announcer writes where an app listens, only while the app works, and not while it stops.
//!
//! Architecture invariant: `config`, `record`, `health`, `state` and `status` are pure. `event_loop` has the only loop
//! that decides on a run of the app. With `--replicas`, that of `slots` decides when there is a run. Slow work runs in tasks
//! that report to them. `processes::reaper` alone waits for processes, `registrar` alone writes a running announcer's
//! records, and `slots` alone its slots.

mod admin;
mod agent;
mod balancers;
mod child;
mod config;
mod event_loop;
mod health;
mod health_loop;
mod lease;
mod one_shot;
mod processes;
mod record;
mod registrar;
mod retry;
mod slots;
mod state;
mod status;
mod withdraw;

use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;
use daemon::shutdown::Shutdown;
use program::text::describe_error;
use program::{options, output};

use crate::agent::AgentError;
use crate::child::ChildError;
use crate::config::address::AddressError;
use crate::config::cli::{Cli, OneShot};
use crate::config::file::{ConfigFile, FileError};
use crate::config::host::Host;
use crate::config::{Config, ConfigError, Mode};
use crate::one_shot::OneShotError;
use crate::processes::tether;

/// Exit code for wrong usage, as `--help` lists it.
const USAGE: u8 = 2;

/// The pure functions that decide, for the proof of the protocol in `tests/model`. They do no I/O and read no clock.
pub mod decisions {
    pub use crate::balancers::{BalancerStates, Question};
    pub use crate::config::upstream::{Announcement, OverwriteRules};
    pub use crate::health::Health;
    pub use crate::record::{Record, Want};
    pub use crate::registrar::Written;
    pub use crate::registrar::record_set::{Conclusion, KeyObservation, Part, RecordNews, RecordSet};
    pub use crate::state::{Action, Event, State, step};
    pub use crate::withdraw::{WaitVerdict, is_as_written, judge_wait};

    /// The life of a copy of a service with `--replicas`, the choice of slots, and the fence.
    pub mod slots {
        pub use crate::slots::choice::{Opening, Us, find_event, find_opening};
        pub use crate::slots::fence::{check_start, guard_time, kill_time};
        pub use crate::slots::state::{Action, Event, State, step};
        pub use crate::slots::view::{SeenSlot, View};
        pub use crate::slots::write::{Facts, find_given_up, plan_opening, plan_repair};
    }
}

/// Runs the program, and returns its exit code.
pub fn run() -> ExitCode {
    if let Some(code) = tether::run_if_called() {
        return code;
    }
    if let Some(code) = manual::print_if_asked(Cli::command(), manual::Completions::Static) {
        return code;
    }
    let args: Cli = match options::read_options(Cli::command(), USAGE) {
        Ok(args) => args,
        Err(code) => return code,
    };
    let code = run_command(args).unwrap_or_else(|error| {
        tracing::error!("{}", describe_error(error.as_ref()));
        // Only stderr is left if the log could not be set up.
        if !tracing::event_enabled!(tracing::Level::ERROR) {
            output::print_message(&format!("announcer: {}", describe_error(error.as_ref())));
        }
        exit_code(&error)
    });
    output::flush_and_return(ExitCode::from(code))
}

fn run_command(args: Cli) -> anyhow::Result<u8> {
    if let Some(OneShot::Containers(options)) = args.one_shot {
        return agent::run_containers(*options);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before anything else: the kernel discards a SIGTERM to PID 1 without a handler.
    let shutdown = args.one_shot.is_none().then(|| {
        let _entered = runtime.enter();
        Shutdown::on_numbers(&args.stop_signals())
    });
    let shutdown = shutdown.transpose().context("can't handle signals")?;
    daemon::log::init_as(&args.common().log_level, args.common().log_format)?;
    let (host, file) = (Host::from_system(), args.config_file().map(ConfigFile::read).transpose()?);
    if let (Some(OneShot::CheckConfig { .. }), Some(file)) = (&args.one_shot, &file) {
        let upstreams = config::resolve_file(file.clone(), &host, true)?;
        let lines: String = upstreams.iter().map(|upstream| format!("{upstream}\n")).collect();
        output::print_answer(&lines)?;
        return Ok(0);
    }
    let config = args.into_config(&host, file)?;
    runtime.block_on(carry_out(config, shutdown.unwrap_or_default()))
}

async fn carry_out(mut config: Config, shutdown: Shutdown) -> anyhow::Result<u8> {
    match std::mem::replace(&mut config.mode, Mode::Deregister) {
        Mode::Run(life) => match life.replicas {
            Some(options) => event_loop::copy::run_copy(config, *life, options, &shutdown).await,
            None => event_loop::run_announcer(config, *life, &shutdown).await,
        },
        Mode::Register(ttl) => Ok(one_shot::register_records(&config, ttl).await.map(|()| 0)?),
        Mode::Deregister => Ok(one_shot::deregister_records(&config).await.map(|()| 0)?),
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
        Some(OneShotError::IdTaken { .. } | OneShotError::OtherAddress { .. }) => 4,
        None if error.is::<AgentError>() => 2,
        None if error.is::<ConfigError>() || error.is::<FileError>() || error.is::<AddressError>() => 2,
        None if error.is::<daemon::log::LogError>() || error.is::<daemon::admin::Error>() => 2,
        None => 1,
    }
}
