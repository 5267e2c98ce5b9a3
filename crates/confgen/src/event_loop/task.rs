//! The work of an action, and its result. Blocks, and runs on the reconciler's thread.

use std::collections::BTreeSet;

use crate::event_loop::scheduler::{Action, Scope};
use crate::reconcile::{Pending, Reconciler, RestartOutcome};
use crate::store::{Changed, StoreReplica, StoreUpdate};

/// The most services that an action's reason names.
const SERVICES_NAMED: usize = 4;

/// An action of the reconciler's own thread, with all that it needs.
pub enum Task {
    /// Resolve the desired state and apply it over the Runtime API.
    Reconcile {
        /// The store, and its changes since the last reconcile.
        update: StoreUpdate,
        /// Local files and HAProxy, as far as they changed.
        scope: Scope,
    },
    /// Remove servers that waited for their last connection.
    RemoveServers,
    /// Give the servers of these sections their turns again.
    RequeueServers { sections: BTreeSet<String> },
}

impl Task {
    /// Takes the replica's changes if the action is a reconcile. `None` for an action that runs beside the reconciler's tasks.
    pub fn for_action(action: Action, replica: &mut StoreReplica) -> Option<Self> {
        Some(match action {
            Action::Reconcile(scope) => {
                // `None` would be taken for a publish, and this reconcile would never finish.
                #[expect(clippy::expect_used, reason = "the scheduler reconciles only once the store is known")]
                let mut update = replica.take_update().expect("the store is known");
                if scope.resolve_all {
                    update.changed = Changed::All;
                }
                Self::Reconcile { update, scope }
            }
            Action::RemoveServers => Self::RemoveServers,
            Action::RequeueServers { sections } => Self::RequeueServers { sections },
            Action::Publish | Action::Restart { .. } | Action::ReadFiles => return None,
        })
    }

    /// The reason, as the history shows it.
    pub fn describe_reason(&self) -> String {
        match self {
            Self::Reconcile { update, scope } => match &update.changed {
                Changed::All if scope.files_read => "files changed, or what a certificate is worth".into(),
                Changed::All => "the store was listed, or HAProxy is another".into(),
                Changed::Services(services) if services.is_empty() && scope.reobserve => {
                    "HAProxy is another, or was changed over the Runtime API".into()
                }
                Changed::Services(services) => {
                    let mut names: Vec<_> = services.iter().take(SERVICES_NAMED).map(ToString::to_string).collect();
                    if services.len() > SERVICES_NAMED {
                        names.push(format!("{} more", services.len() - SERVICES_NAMED));
                    }
                    names.join(", ")
                }
            },
            Self::RemoveServers => "servers that went".into(),
            Self::RequeueServers { sections } => format!("turns in {} sections", sections.len()),
        }
    }

    pub fn run(self, reconciler: &mut Reconciler) -> anyhow::Result<TaskResult> {
        Ok(match self {
            Self::Reconcile { update, scope } => {
                if scope.reobserve {
                    reconciler.observe_again();
                }
                TaskResult::Reconciled(reconciler.apply_runtime(&update)?)
            }
            Self::RemoveServers => TaskResult::ServersRemoved(reconciler.remove_servers()?),
            Self::RequeueServers { sections } => {
                TaskResult::ServersRequeued { is_refused: !reconciler.requeue_servers(&sections)? }
            }
        })
    }
}

/// The result of a task that didn't fail.
pub enum TaskResult {
    /// HAProxy runs all that it takes without a restart.
    Reconciled(Pending),
    /// No task's, but that of a restart beside them.
    Restarted(RestartOutcome),
    /// Servers were removed as far as their connections allow.
    ServersRemoved(Pending),
    ServersRequeued {
        /// HAProxy complained. What it runs has to be observed again.
        is_refused: bool,
    },
}

impl TaskResult {
    /// The outcome, as the history shows it. `None` if nothing was done.
    pub fn to_history_outcome(&self) -> Option<Result<String, String>> {
        match self {
            Self::Reconciled(pending) | Self::ServersRemoved(pending) => pending.to_history_outcome(),
            Self::Restarted(outcome) => Some(outcome.to_result()),
            Self::ServersRequeued { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reconcile_resolves_all_services_if_the_scheduler_asks_for_it() {
        let all = Scope { resolve_all: true, ..Scope::default() };
        for (scope, expected) in [(all, Changed::All), (Scope::default(), Changed::no_services())] {
            let mut replica = StoreReplica::default();
            replica.apply_listing(discovery::Snapshot::default());
            drop(replica.take_update());
            let Some(Task::Reconcile { update, .. }) = Task::for_action(Action::Reconcile(scope), &mut replica) else {
                panic!("the store is known");
            };
            assert_eq!(update.changed, expected);
        }
    }
}
