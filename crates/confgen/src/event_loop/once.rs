//! `confgen once`: the daemon's scheduler and tasks, on a store that is listed once. It waits for nothing, and tries nothing
//! again that failed.

use std::time::Instant;

use crate::event_loop::actions::restart_end;
use crate::event_loop::scheduler::{Action, End, Input, PublishEnd, RestartEnd, Scheduler};
use crate::event_loop::task::{Task, TaskResult};
use crate::publish::PublishOutcome;
use crate::reconcile::{Reconciler, RestartOutcome, leaves_part_out, reload_local_files, restart_haproxy};
use crate::store::StoreReplica;

/// A run goes on after this many rejections, without what HAProxy rejected.
const REJECTIONS: usize = 1;

/// Applies the store that the replica has, publishes haproxy.cfg, and restarts HAProxy if needed. Blocks.
pub fn run_once(mut reconciler: Reconciler, mut replica: StoreReplica) -> anyhow::Result<RestartOutcome> {
    let mut scheduler = Scheduler::once();
    scheduler.on(Instant::now(), Input::StoreListed);
    let (mut outcome, mut rejections) = (RestartOutcome::InSync, 0);
    while let Some((_, action)) = scheduler.next() {
        scheduler.begin(Instant::now(), &action);
        let input = match action {
            Action::Publish => publish(&mut reconciler, &mut outcome)?,
            Action::Restart { reason } => {
                outcome = restart_haproxy(&mut reconciler, &reason)?;
                let end = restart_end(&outcome);
                let ends_run = matches!(end, RestartEnd::Stopped | RestartEnd::Failed);
                (!ends_run).then_some(Input::Restarted { end, is_current: true })
            }
            Action::ReadFiles => {
                reload_local_files(&mut reconciler)?;
                Some(Input::FilesRead { is_usable: true })
            }
            action => {
                let Some(task) = Task::for_action(action, &mut replica) else { return Ok(outcome) };
                run_task(&mut reconciler, task, &mut outcome)?
            }
        };
        reconciler.log_quarantine();
        rejections += usize::from(matches!(outcome, RestartOutcome::Rejected(_)));
        let Some(input) = input.filter(|_| rejections <= REJECTIONS) else { return Ok(outcome) };
        scheduler.on(Instant::now(), input);
    }
    Ok(outcome)
}

/// Returns the input for the scheduler. `None` ends the run.
fn run_task(reconciler: &mut Reconciler, task: Task, outcome: &mut RestartOutcome) -> anyhow::Result<Option<Input>> {
    let end = match task.run(reconciler)? {
        TaskResult::Reconciled(pending) => {
            // HAProxy would not start with rejected operator files, so there is nothing to publish.
            if let Some(rejection) = reconciler.operator_files_rejection() {
                *outcome = RestartOutcome::Rejected(PublishOutcome::OperatorFilesRejected(rejection.clone()));
                return Ok(None);
            }
            // A rejection of before is dealt with.
            *outcome = RestartOutcome::InSync;
            End::Reconciled { pending, accepts_files: true }
        }
        TaskResult::ServersRemoved(pending) => End::ServersRemoved(pending),
        TaskResult::ServersRequeued { .. } | TaskResult::Restarted(_) => End::Requeued,
    };
    Ok(Some(Input::Finished { end, is_current: true }))
}

/// Returns the input for the scheduler. `None` ends the run.
fn publish(reconciler: &mut Reconciler, outcome: &mut RestartOutcome) -> anyhow::Result<Option<Input>> {
    let publication = reconciler.publication();
    let published = publication.write_if_changed()?;
    reconciler.on_published(&publication, &published)?;
    let end = match &published {
        PublishOutcome::Unchanged | PublishOutcome::Written => Some(PublishEnd::UpToDate),
        rejected if leaves_part_out(rejected) => Some(PublishEnd::PartRejected),
        _ => None,
    };
    *outcome =
        if end == Some(PublishEnd::UpToDate) { RestartOutcome::InSync } else { RestartOutcome::Rejected(published) };
    Ok(end.map(Input::Published))
}
