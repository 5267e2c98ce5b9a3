//! The work of an action, and its result. Blocks, and runs on the reconciler's thread.

use std::collections::BTreeSet;

use crate::event_loop::scheduler::{Action, Scope};
use crate::reconcile::{Pending, Reconciler, RestartOutcome};
use crate::status::ActionKind;
use crate::store::{Changed, StoreReplica, StoreUpdate};

/// The most services that an action's reason names.
const SERVICES_NAMED: usize = 4;

/// An action with all that it needs.
pub enum Task {
    /// Resolve the desired state and apply it over the Runtime API.
    Reconcile {
        /// The store, and its changes since the last reconcile.
        update: StoreUpdate,
        /// Local files and HAProxy, as far as they changed.
        scope: Scope,
    },
    /// Publish haproxy.cfg and restart HAProxy into it.
    Restart {
        /// Why the running generation isn't the needed one.
        reason: String,
    },
    /// Remove servers that waited for their last connection.
    RemoveServers,
    /// Give the servers of these sections their turns again.
    RequeueServers { sections: BTreeSet<String> },
}

impl Task {
    /// Takes the replica's changes if the action is a reconcile. `None` for `Publish`, which is no work of the reconciler.
    pub fn for_action(action: Action, replica: &mut StoreReplica) -> Option<Self> {
        Some(match action {
            Action::Reconcile(scope) => {
                let mut update = replica.take_update()?;
                // Local files give every service its policy: profiles, CA files, reserved ports.
                if scope.reload_files || scope.resolve_all {
                    update.changed = Changed::All;
                }
                Self::Reconcile { update, scope }
            }
            Action::Restart { reason } => Self::Restart { reason },
            Action::RemoveServers => Self::RemoveServers,
            Action::RequeueServers { sections } => Self::RequeueServers { sections },
            Action::Publish => return None,
        })
    }

    /// The reason, as the history shows it.
    pub fn describe_reason(&self) -> String {
        match self {
            Self::Reconcile { update, scope } => match &update.changed {
                Changed::All if scope.reload_files => "files changed, or what a certificate is worth".into(),
                Changed::All => "the store was listed, or HAProxy is another".into(),
                Changed::Services(services) => {
                    let mut names: Vec<_> = services.iter().take(SERVICES_NAMED).map(ToString::to_string).collect();
                    if services.len() > SERVICES_NAMED {
                        names.push(format!("{} more", services.len() - SERVICES_NAMED));
                    }
                    names.join(", ")
                }
            },
            Self::Restart { reason } => reason.clone(),
            Self::RemoveServers => "servers that went".into(),
            Self::RequeueServers { sections } => format!("turns in {} sections", sections.len()),
        }
    }

    /// The kind, as the history and the activities have it.
    pub fn kind(&self) -> ActionKind {
        match self {
            Self::Restart { .. } => ActionKind::Restart,
            Self::Reconcile { .. } | Self::RemoveServers | Self::RequeueServers { .. } => ActionKind::Runtime,
        }
    }

    pub fn run(self, reconciler: &mut Reconciler) -> anyhow::Result<TaskResult> {
        Ok(match self {
            Self::Reconcile { update, scope } => {
                if scope.reobserve {
                    reconciler.invalidate_observed();
                }
                let files = if scope.reload_files { reconciler.reload_local_files() } else { Ok(()) };
                TaskResult::Reconciled { pending: reconciler.apply_runtime(&update)?, files }
            }
            Self::Restart { reason } => TaskResult::Restarted(reconciler.restart_haproxy(&reason)?),
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
    Reconciled {
        pending: Pending,
        /// An error if the local files couldn't be read or aren't accepted. The last good ones count.
        files: anyhow::Result<()>,
    },
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
            Self::Reconciled { pending, .. } | Self::ServersRemoved(pending) => pending.to_history_outcome(),
            Self::Restarted(outcome) => Some(outcome.to_result()),
            Self::ServersRequeued { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reconcile_resolves_all_services_if_the_scheduler_or_changed_files_ask_for_it() {
        let all = Scope { resolve_all: true, ..Scope::default() };
        let files = Scope { reload_files: true, ..Scope::default() };
        for (scope, expected) in
            [(all, Changed::All), (files, Changed::All), (Scope::default(), Changed::no_services())]
        {
            let mut replica = StoreReplica::default();
            replica.apply_listing(&discovery::Snapshot::default());
            drop(replica.take_update());
            let Some(Task::Reconcile { update, .. }) = Task::for_action(Action::Reconcile(scope), &mut replica) else {
                panic!("the store is known");
            };
            assert_eq!(update.changed, expected);
        }
    }
}
