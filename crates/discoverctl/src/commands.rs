//! The commands. Each has a module with its options, its decision and its answer.

mod accept_store;
mod certs;
mod check;
mod color;
mod config;
mod copies;
mod delete;
mod diff;
mod doctor;
mod explain;
mod export;
mod history;
mod lint;
mod list;
mod overrides;
mod register;
mod rollback;
mod set;
mod show;
mod switch;
mod watch;

use clap::Subcommand;
use discovery::OverrideState;

use crate::context::Context;
use crate::error::{Error, Outcome};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List all services, or a host's upstreams, and their state at each balancer
    #[command(after_long_help = list::EXAMPLES)]
    List(list::List),
    /// Show a service's settings, claims and upstreams, and its state at each balancer
    #[command(after_long_help = show::EXAMPLES)]
    Show(show::Show),
    /// Explain why an upstream gets requests, or why it gets none
    #[command(after_long_help = explain::EXAMPLES)]
    Explain(explain::Explain),
    /// Show the certificate that serves each host, and rejected files
    #[command(after_long_help = certs::EXAMPLES)]
    Certs(certs::Certs),
    /// Print upstreams as they come, go and change
    #[command(after_long_help = watch::EXAMPLES)]
    Watch(watch::Watch),
    /// Check that every balancer sends requests to the upstreams: balanced or not_balanced
    #[command(after_long_help = check::EXAMPLES)]
    Check(check::Check),
    /// Check that something answers at the upstreams' addresses: found or not_found
    #[command(after_long_help = check::VERIFY_EXAMPLES)]
    Verify(check::Verify),
    /// Register an upstream that has no announcer
    #[command(after_long_help = register::EXAMPLES)]
    Register(register::Register),
    /// Delete an upstream's record and override
    #[command(after_long_help = register::DEREGISTER_EXAMPLES)]
    Deregister(register::Deregister),
    /// Write a setting of a service
    #[command(after_long_help = set::EXAMPLES)]
    Set(set::Set),
    /// Delete settings of a service
    #[command(after_long_help = set::UNSET_EXAMPLES)]
    Unset(set::Unset),
    /// Delete a service with all its keys
    #[command(after_long_help = delete::EXAMPLES)]
    Delete(delete::Delete),
    /// Stop sending new clients to upstreams, and wait until no request is open. Sticky clients stay
    #[command(after_long_help = overrides::DRAIN_EXAMPLES)]
    Drain(overrides::TakeOut),
    /// End `drain` and `maint`
    #[command(after_long_help = overrides::READY_EXAMPLES)]
    Ready(overrides::PutBack),
    /// Stop sending requests to upstreams, and wait until no request is open
    #[command(after_long_help = overrides::MAINT_EXAMPLES)]
    Maint(overrides::TakeOut),
    /// Override the weight of an upstream
    #[command(after_long_help = overrides::WEIGHT_EXAMPLES)]
    Weight(overrides::ChangeWeight),
    /// Show the active colors of a service, or set them in one step
    #[command(after_long_help = color::EXAMPLES)]
    Color(color::Color),
    /// Make another color active in steps, and watch each step
    #[command(after_long_help = switch::EXAMPLES)]
    Switch(switch::Switch),
    /// List changes of a service's settings and overrides
    #[command(after_long_help = history::EXAMPLES)]
    History(history::History),
    /// Show the differences between two revisions
    #[command(after_long_help = diff::EXAMPLES)]
    Diff(diff::Diff),
    /// Restore a service's settings and overrides as they were at a revision
    #[command(after_long_help = rollback::EXAMPLES)]
    Rollback(rollback::Rollback),
    /// Find faults of the store, the balancers and the keys, each with its remedy
    #[command(after_long_help = doctor::EXAMPLES)]
    Doctor(doctor::Doctor),
    /// List quarantined keys and other faults, each with its remedy
    #[command(after_long_help = lint::EXAMPLES)]
    Lint(lint::Lint),
    /// Print the durable keys as a YAML document
    #[command(after_long_help = export::EXAMPLES)]
    Export(export::Export),
    /// Write the keys of a document
    #[command(after_long_help = export::IMPORT_EXAMPLES)]
    Import(export::Import),
    /// Accept a wiped or restored store as it is
    #[command(after_long_help = accept_store::EXAMPLES)]
    AcceptStore(accept_store::AcceptStore),
    /// Show the options in effect, each with the flag, variable or file that gives it
    #[command(after_long_help = config::EXAMPLES)]
    Config(config::Config),
}

impl Command {
    #[allow(clippy::cognitive_complexity, reason = "one match, which only passes on")]
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        match self {
            Self::List(it) => it.run(context).await,
            Self::Show(it) => it.run(context).await,
            Self::Explain(it) => it.run(context).await,
            Self::Certs(it) => it.run(context).await,
            Self::Watch(it) => it.run(context).await,
            Self::Check(it) => it.run(context).await,
            Self::Verify(it) => it.run(context).await,
            Self::Register(it) => it.run(context).await,
            Self::Deregister(it) => it.run(context).await,
            Self::Set(it) => it.run(context).await,
            Self::Unset(it) => it.run(context).await,
            Self::Delete(it) => it.run(context).await,
            Self::Drain(it) => it.run(context, OverrideState::Drain).await,
            Self::Ready(it) => it.run(context).await,
            Self::Maint(it) => it.run(context, OverrideState::Maint).await,
            Self::Weight(it) => it.run(context).await,
            Self::Color(it) => it.run(context).await,
            Self::Switch(it) => it.run(context).await,
            Self::History(it) => it.run(context).await,
            Self::Diff(it) => it.run(context).await,
            Self::Rollback(it) => it.run(context).await,
            Self::Doctor(it) => it.run(context).await,
            Self::Lint(it) => it.run(context).await,
            Self::Export(it) => it.run(context).await,
            Self::Import(it) => it.run(context).await,
            Self::AcceptStore(it) => it.run(context).await,
            // `config` must work without a store and without balancers, so `main` runs it before it makes a `Context`.
            Self::Config(_) => Ok(Outcome::Yes),
        }
    }
}
