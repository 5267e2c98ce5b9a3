//! The commands. Each has a module with its options, what it decides, and what it shows.

mod accept_store;
mod certs;
mod check;
mod color;
mod config;
mod delete;
mod diff;
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
use crate::error::Error;
use crate::error::Outcome;

/// A command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// All services, and what every balancer makes of them
    #[command(after_long_help = list::EXAMPLES)]
    List(list::List),
    /// One service: settings, claims, upstreams, and what every balancer makes of them
    #[command(after_long_help = show::EXAMPLES)]
    Show(show::Show),
    /// Why an upstream gets requests, or none
    #[command(after_long_help = explain::EXAMPLES)]
    Explain(explain::Explain),
    /// The certificate that serves each host, and the files that are refused
    #[command(after_long_help = certs::EXAMPLES)]
    Certs(certs::Certs),
    /// Upstreams as they come, go and change
    #[command(after_long_help = watch::EXAMPLES)]
    Watch(watch::Watch),
    /// Whether every balancer sends requests there: balanced or not_balanced
    #[command(after_long_help = check::EXAMPLES)]
    Check(check::Check),
    /// Whether something answers there: found or not_found
    #[command(after_long_help = check::VERIFY_EXAMPLES)]
    Verify(check::Verify),
    /// Registers an upstream that no announcer speaks for
    #[command(after_long_help = register::EXAMPLES)]
    Register(register::Register),
    /// Deletes an upstream's record, and what is imposed on it
    #[command(after_long_help = register::DEREGISTER_EXAMPLES)]
    Deregister(register::Deregister),
    /// Writes a setting of a service
    #[command(after_long_help = set::EXAMPLES)]
    Set(set::Set),
    /// Takes settings of a service back
    #[command(after_long_help = set::UNSET_EXAMPLES)]
    Unset(set::Unset),
    /// Deletes a service, all keys of it
    #[command(after_long_help = delete::EXAMPLES)]
    Delete(delete::Delete),
    /// Takes upstreams out: no new clients, sticky ones stay; ends when no request is open
    #[command(after_long_help = overrides::DRAIN_EXAMPLES)]
    Drain(overrides::ChangeState),
    /// Takes `drain` and `maint` back
    #[command(after_long_help = overrides::READY_EXAMPLES)]
    Ready(overrides::ChangeState),
    /// Takes upstreams out: no new request at all; ends when no request is open
    #[command(after_long_help = overrides::MAINT_EXAMPLES)]
    Maint(overrides::ChangeState),
    /// Imposes a weight on an upstream
    #[command(after_long_help = overrides::WEIGHT_EXAMPLES)]
    Weight(overrides::ChangeWeight),
    /// The active colors of a service, or other ones at once
    #[command(after_long_help = color::EXAMPLES)]
    Color(color::Color),
    /// Makes another color active, in steps that are watched
    #[command(after_long_help = switch::EXAMPLES)]
    Switch(switch::Switch),
    /// What has changed in a service's settings and overrides
    #[command(after_long_help = history::EXAMPLES)]
    History(history::History),
    /// What differs between two revisions
    #[command(after_long_help = diff::EXAMPLES)]
    Diff(diff::Diff),
    /// A service's settings and overrides as they were at a revision
    #[command(after_long_help = rollback::EXAMPLES)]
    Rollback(rollback::Rollback),
    /// Everything that is quarantined or odd, and what to do about it
    #[command(after_long_help = lint::EXAMPLES)]
    Lint(lint::Lint),
    /// The durable keys as a YAML document
    #[command(after_long_help = export::EXAMPLES)]
    Export(export::Export),
    /// Writes the keys of a document
    #[command(after_long_help = export::IMPORT_EXAMPLES)]
    Import(export::Import),
    /// Says that a wiped store is meant as it is
    #[command(after_long_help = accept_store::EXAMPLES)]
    AcceptStore(accept_store::AcceptStore),
    /// The options that count, and whether a flag, a variable or a file gives each
    #[command(after_long_help = config::EXAMPLES)]
    Config(config::Config),
}

impl Command {
    /// Does it.
    #[allow(clippy::cognitive_complexity, reason = "one match, which only passes on")]
    pub(crate) async fn run(self, ctl: &Context) -> Result<Outcome, Error> {
        match self {
            Self::List(it) => it.run(ctl).await,
            Self::Show(it) => it.run(ctl).await,
            Self::Explain(it) => it.run(ctl).await,
            Self::Certs(it) => it.run(ctl).await,
            Self::Watch(it) => it.run(ctl).await,
            Self::Check(it) => it.run(ctl).await,
            Self::Verify(it) => it.run(ctl).await,
            Self::Register(it) => it.run(ctl).await,
            Self::Deregister(it) => it.run(ctl).await,
            Self::Set(it) => it.run(ctl).await,
            Self::Unset(it) => it.run(ctl).await,
            Self::Delete(it) => it.run(ctl).await,
            Self::Drain(it) => it.run(ctl, Some(OverrideState::Drain)).await,
            Self::Ready(it) => it.run(ctl, None).await,
            Self::Maint(it) => it.run(ctl, Some(OverrideState::Maint)).await,
            Self::Weight(it) => it.run(ctl).await,
            Self::Color(it) => it.run(ctl).await,
            Self::Switch(it) => it.run(ctl).await,
            Self::History(it) => it.run(ctl).await,
            Self::Diff(it) => it.run(ctl).await,
            Self::Rollback(it) => it.run(ctl).await,
            Self::Lint(it) => it.run(ctl).await,
            Self::Export(it) => it.run(ctl).await,
            Self::Import(it) => it.run(ctl).await,
            Self::AcceptStore(it) => it.run(ctl).await,
            // Asks nobody, so that it works without a store too: `main` runs it.
            Self::Config(_) => Ok(Outcome::Yes),
        }
    }
}
