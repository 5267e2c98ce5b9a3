//! confgen follows the store, renders haproxy.cfg, has HAProxy check it, and applies it.
//!
//! Data goes one way: store → desired → { runtime/plan, render → publish } → HAProxy and haproxy.cfg. ARCHITECTURE.md has the
//! layers and what each folder does. Modules import only from the layers below them.

mod cli;
mod commands;
mod config;
mod desired;
mod drain;
mod event_loop;
mod local_files;
mod operator_files;
mod publish;
mod reconcile;
mod render;
mod runtime;
mod state_dir;
mod status;
mod store;
#[cfg(test)]
mod test_support;

use std::process::ExitCode;

use clap::CommandFactory;
use daemon::shutdown::Shutdown;
use program::text::describe_error;
use program::{options, output};

use cli::{Cli, Command, Common};

/// The stages that decide, for the model of the protocol and the seeded simulation. They read no clock. Only
/// [`HaproxyControl`](decisions::HaproxyControl) does I/O, over the socket that its caller gives it.
pub mod decisions {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::Arc;

    use clap::Parser;

    use crate::cli::Cli;
    use crate::operator_files::parse::OperatorConfig;
    use crate::render::render_config;
    use crate::render::stats_hash::Hash;
    use crate::render::view::View;

    pub use crate::cli::Pacing;
    pub use crate::desired::{
        DesiredService, DesiredState, LastKnownGood, Policy, Preview, Route, Server, ServerState,
    };
    pub use crate::drain::{DrainContext, DrainTracker, DrainedUpstream, OldProcess, SessionCount};
    pub use crate::event_loop::scheduler::{Action, Effect, End, Input, PublishEnd, RestartEnd, Scheduler, Scope};
    pub use crate::reconcile::Pending;
    pub use crate::reconcile::applied::note_applied;
    pub use crate::reconcile::mass_removal::pass::{Evidence, GuardPass, Health};
    pub use crate::reconcile::state::Retention;
    pub use crate::render::Rendered;
    pub use crate::render::restart_needed::{ConfigFingerprint, Generation, RestartReason};
    pub use crate::render::service_texts::ServiceTexts;
    pub use crate::render::view::Site;
    pub use crate::runtime::{DriftCheck, GenerationFiles, HaproxyControl};
    pub use crate::state_dir::{Error as StateDirError, SavedState};
    pub use crate::status::balancer_record::{is_stored, to_balancer_record};
    pub use crate::status::{ReconcileStatus, Retained, Retainer, Status};
    pub use crate::store::address_owners::{AddressOwners, UpstreamRef, address_was_reassigned};
    pub use crate::store::removal_guard::{
        ClusterRevision, GuardPolicy, MassRemoval, Moment, PersistedUpstream, RemovalGuard, RetainedUpstream,
        ServerHealth, UpstreamCounts, UpstreamRemoval,
    };
    pub use crate::store::{
        Changed, PersistedStore, RetainedKeys, StoreReplica, StoreRevision, StoreUpdate, bound_entry,
    };
    pub use haproxy::runtime::Streams;

    /// The site of an installation without options.
    ///
    /// # Errors
    /// If a variable of the environment is no valid option.
    pub fn default_site() -> Result<Site, String> {
        // Flags and variables are what an installation has, so the defaults come from them.
        let cli = Cli::try_parse_from(["confgen"]).map_err(|error| error.to_string())?;
        Ok(cli.common.options.build_site(Hash::Sha256("0".repeat(64))))
    }

    /// The fingerprints of a desired state without operator files.
    ///
    /// # Errors
    /// If a template can't be rendered.
    pub fn fingerprint(desired: &DesiredState, site: &Site) -> Result<ConfigFingerprint, String> {
        let operator = OperatorConfig::default();
        ConfigFingerprint::from_view(&View::new(desired, site, &operator), &[]).map_err(|error| error.to_string())
    }

    /// Renders the files of a generation without operator files. `texts` are those of the previous one.
    ///
    /// # Errors
    /// If a template can't be rendered.
    pub fn render_generation(
        desired: &DesiredState,
        site: &Site,
        texts: &mut ServiceTexts,
        generation: &Generation,
        passed_through: bool,
        kept_shapes: &BTreeMap<String, String>,
    ) -> Result<Rendered, String> {
        // Texts of unchanged services are kept, as in the daemon.
        texts.update(desired, site).map_err(|error| error.to_string())?;
        let operator = OperatorConfig::default();
        let view = View::with_maps(desired, site, &operator, Arc::clone(texts.maps()))
            .with_previous_passthrough(passed_through);
        render_config(&view, texts, generation, kept_shapes, Path::new("/state")).map_err(|error| error.to_string())
    }
}

/// Runs the program, and returns its exit code.
pub fn run() -> ExitCode {
    if let Some(code) = manual::print_if_asked(Cli::command(), manual::Completions::Static) {
        return code;
    }
    // Before the runtime, because malloc's settings must be made before there is a second thread.
    event_loop::malloc::share_heap();
    let cli: Cli = match options::read_options(Cli::command(), commands::USAGE) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::print_message(&format!("confgen: start: {error}"));
            return output::flush_and_return(ExitCode::FAILURE);
        }
    };
    // As a task, so that a thread of the runtime that reads a watch event runs the event loop next. The main thread would have to be
    // woken.
    let ended = runtime.block_on(async { tokio::spawn(run_command(cli)).await });
    let result = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    let code = result.unwrap_or_else(|error| {
        tracing::error!("{}", describe_error(error.as_ref()));
        // The log itself may have failed to start. Then standard error is the only place.
        if !tracing::event_enabled!(tracing::Level::ERROR) {
            output::print_message(&format!("confgen: {}", describe_error(error.as_ref())));
        }
        commands::exit_code(&error)
    });
    // A stop during the start does not wait for `haproxy -c`. No task that is cut off leaves half a file, because files are
    // replaced atomically.
    runtime.shutdown_background();
    output::flush_and_return(code)
}

async fn run_command(cli: Cli) -> anyhow::Result<ExitCode> {
    // This comes first, because the kernel discards a SIGTERM to PID 1 that has no handler. The commands end by the signal.
    let shutdown = cli.command.is_none().then(Shutdown::on_signals).transpose()?;
    let common = cli.command.as_ref().map_or(&cli.common, Command::common);
    daemon::log::init_as(&common.log_level, common.log_format)?;
    match cli.command {
        None => {
            let Common { store, options, pacing, .. } = cli.common;
            let store = store.resolve()?;
            let admin = status::admin::Port::bind(cli.admin.resolve()?).await?;
            event_loop::run(store, options, pacing, admin, &cli.hooks, shutdown.unwrap_or_default()).await?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Once(common)) => commands::run_once(common).await,
        Some(Command::Render { at_revision, common }) => commands::print_config(common, at_revision).await,
        Some(Command::Diff(common)) => commands::print_diff(common).await,
    }
}
