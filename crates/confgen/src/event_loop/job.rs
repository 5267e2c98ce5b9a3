//! An act: what it is to do, and what it came to.

use std::collections::BTreeSet;
use std::time::{Instant, SystemTime};

use crate::event_loop::scheduler::Action;
use crate::reconcile::{Pending, Reconciler, RestartOutcome};
use crate::store::Changed;
use crate::store::StoreUpdate;

/// What an act is to do.
pub enum Task {
    /// Follow the store; true: look at the files first.
    Follow(StoreUpdate, bool),
    /// Restart HAProxy, for this reason.
    Restart(String),
    /// Look after what was left behind.
    RemoveServers,
    /// Give the servers of these sections their turns again.
    Requeue(BTreeSet<String>),
}

impl Task {
    /// What for, in words.
    pub fn describe_reason(&self) -> String {
        match self {
            Self::Follow(news, outside) => match &news.changed {
                Changed::All if *outside => "files changed, or what a certificate is worth".into(),
                Changed::All => "the store was listed, or HAProxy is another".into(),
                Changed::Services(services) => {
                    const SHOWN: usize = 4;
                    let mut words: Vec<_> = services.iter().take(SHOWN).map(ToString::to_string).collect();
                    if services.len() > SHOWN {
                        words.push(format!("{} more", services.len() - SHOWN));
                    }
                    words.join(", ")
                }
            },
            Self::Restart(reason) => reason.clone(),
            Self::RemoveServers => "servers that went".into(),
            Self::Requeue(sections) => format!("turns in {} sections", sections.len()),
        }
    }

    /// What kind of activity it is.
    pub fn activity_kind(&self) -> &'static str {
        match self {
            Self::Restart(_) => "restart",
            Self::Follow(..) | Self::RemoveServers | Self::Requeue(_) => "runtime",
        }
    }

    /// Does it.
    pub fn run(self, rounds: &mut Reconciler) -> anyhow::Result<TaskResult> {
        match self {
            Self::Follow(news, outside) => {
                let looked = if outside { rounds.reload_local_files() } else { Ok(()) };
                Ok(TaskResult::Followed(rounds.apply_runtime(&news)?, looked))
            }
            Self::Restart(reason) => rounds.restart_haproxy(&reason).map(TaskResult::Restarted),
            Self::RemoveServers => rounds.remove_servers().map(TaskResult::ServersRemoved),
            Self::Requeue(sections) => rounds.requeue_servers(&sections).map(TaskResult::Requeued),
        }
    }
}

/// What an act came to.
pub enum TaskResult {
    /// With why the operator's files or the certificates couldn't be read, if so: the last ones count.
    Followed(Pending, anyhow::Result<()>),
    /// How the restart went.
    Restarted(RestartOutcome),
    /// What is left.
    ServersRemoved(Pending),
    /// False if HAProxy complained. What it runs has to be observed again.
    Requeued(bool),
}

/// An act that is over, with what rounds are made with.
pub struct Finished {
    /// They go back to the daemon.
    pub reconciler: Reconciler,
    /// Which act it was.
    pub action: Action,
    /// What it came to.
    pub result: anyhow::Result<TaskResult>,
    /// When it began.
    pub began_at: (SystemTime, Instant),
    /// What for.
    pub reason: String,
    /// Up to where the store was known to it.
    pub revision: i64,
}
