//! Acts: begun one at a time, off the runtime, but for the file's, which is written beside the others; and what their ends
//! lead to.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::EventLoop;
use crate::drain::task::await_task;
use crate::event_loop::job::{Finished, Task, TaskResult};
use crate::event_loop::malloc;
use crate::event_loop::scheduler::Action;
use crate::publish::{Publication, PublishOutcome};
use crate::reconcile::{Pending, Reconciler, RestartOutcome};
use crate::status;
use crate::status::ActionKind;
use crate::store::Changed;

/// A file that was written, or wasn't.
pub(super) struct Published {
    publication: Publication,
    outcome: anyhow::Result<PublishOutcome>,
    at: (SystemTime, Instant),
}

impl EventLoop {
    pub(super) fn begin_action(&mut self, act: Action) {
        let Some(mut rounds) = self.reconciler.take() else { return };
        self.scheduler.on_began(act);
        if act == Action::Publish {
            let (filing, activities) = (rounds.publication(), self.status.borrow().activities.clone());
            self.reconciler = Some(rounds);
            self.publishing = Some(tokio::task::spawn_blocking(move || {
                let _activity = activities.begin("file", "haproxy.cfg follows HAProxy");
                let at = (SystemTime::now(), Instant::now());
                let filed = filing.write_if_changed();
                Published { publication: filing, outcome: filed, at }
            }));
            return;
        }
        self.action_began_at = Instant::now();
        let job: Task = match act {
            Action::Reconcile => match self.follow_task(&mut rounds) {
                Some(job) => job,
                None => return self.reconciler = Some(rounds),
            },
            Action::Restart => Task::Restart(self.restart.take().unwrap_or_default()),
            Action::RequeueServers => Task::Requeue(std::mem::take(&mut self.requeued)),
            Action::Publish | Action::RemoveServers => Task::RemoveServers,
        };
        let written = self.last_published.take();
        let (reason, revision) = (job.describe_reason(), self.replica.store_revision().revision);
        let (activities, kind) = (self.status.borrow().activities.clone(), job.activity_kind());
        self.acting = Some(tokio::task::spawn_blocking(move || {
            let _activity = activities.begin(kind, reason.clone());
            let at = (SystemTime::now(), Instant::now());
            let taken_in = written.map_or(Ok(()), |(filing, filed)| rounds.on_published(&filing, &filed));
            rounds.log_quarantine();
            let done = taken_in.and_then(|()| job.run(&mut rounds));
            Finished { reconciler: rounds, action: act, result: done, began_at: at, reason, revision }
        }));
    }

    /// A look at what no act has seen yet.
    fn follow_task(&mut self, rounds: &mut Reconciler) -> Option<Task> {
        let mut news = self.replica.take_update()?;
        if std::mem::take(&mut self.observed_stale) {
            rounds.invalidate_observed();
        }
        let outside = std::mem::take(&mut self.files_changed);
        if outside {
            news.changed = Changed::All;
        }
        Some(Task::Follow(news, outside))
    }

    pub(super) fn end_action(&mut self, acted: Finished) {
        let Finished { reconciler: mut rounds, action: act, result: done, began_at: at, reason, revision } = acted;
        let (kind, told) = match &done {
            Ok(TaskResult::Restarted(outcome)) => (ActionKind::Restart, Some(outcome.to_result())),
            Ok(TaskResult::Followed(left, _) | TaskResult::ServersRemoved(left)) => {
                (ActionKind::Runtime, left.to_history_outcome())
            }
            Ok(TaskResult::Requeued(_)) => (ActionKind::Runtime, None),
            Err(error) => (
                if act == Action::Restart { ActionKind::Restart } else { ActionKind::Runtime },
                Some(Err(format!("{error:#}"))),
            ),
        };
        if let Some(outcome) = told {
            self.record_action(status::HistoryEntry {
                began_at: at.0,
                took: at.1.elapsed(),
                kind,
                reason,
                revision,
                outcome,
            });
        }
        let has_looked = matches!(done, Ok(TaskResult::Followed(..)));
        self.on_finished(act, done, rounds.accepts_operator_files());
        rounds.log_quarantine();
        if has_looked && rounds.is_current() {
            self.observed_current_at = Some(self.action_began_at);
        }
        self.update_status(rounds);
    }

    /// Has follow what an act's end asks for.
    fn on_finished(&mut self, act: Action, done: anyhow::Result<TaskResult>, taken: bool) {
        let now = Instant::now();
        match done {
            Ok(TaskResult::Followed(left, looked)) => {
                self.scheduler.want_restart(now, left.restart.is_some(), left.unreachable);
                self.schedule_pending(now, &left);
                if left.restart.is_none() && taken {
                    self.report_in_sync();
                }
                self.restart = left.restart;
                if let Err(error) = looked {
                    self.on_failed(act, &format!("{error:#}"));
                }
            }
            Ok(TaskResult::ServersRemoved(left)) => self.schedule_pending(now, &left),
            Ok(TaskResult::Requeued(true)) => {}
            // A server that this knew is gone, and HAProxy is to be observed.
            Ok(TaskResult::Requeued(false)) => self.scheduler.on_change(now),
            Ok(TaskResult::Restarted(outcome @ (RestartOutcome::Restarted | RestartOutcome::InSync))) => {
                tracing::info!("{outcome}");
                self.scheduler.on_restarted(now);
                // The old process may still listen.
                self.scheduler.want_server_removal(now);
                self.report_in_sync();
                // It has written the file too.
                self.status.send_modify(|report| report.publish_error = None);
            }
            // Its start by whoever stopped it is seen, and it finds the file ready.
            Ok(TaskResult::Restarted(RestartOutcome::Stopped)) => {
                tracing::warn!("{}", RestartOutcome::Stopped);
                self.report_out_of_sync(&RestartOutcome::Stopped.to_string());
            }
            Ok(TaskResult::Restarted(RestartOutcome::Rejected(
                filed @ (PublishOutcome::ServicesRejected(_) | PublishOutcome::FilledFilesRejected(_)),
            ))) => {
                tracing::warn!("{filed}");
                // It may have been found out by a restart that failed.
                self.scheduler.on_restarted(now);
                self.mark_all_changed();
            }
            Ok(TaskResult::Restarted(outcome)) => self.on_failed(act, &outcome.to_string()),
            Err(error) => self.on_failed(act, &format!("{error:#}")),
        }
    }

    /// Takes the rounds back, and tells how they stand.
    fn update_status(&mut self, rounds: Reconciler) {
        let mut standing = rounds.to_status();
        if let Some((filing, Ok(_))) = self.last_published.as_ref().map(|(filing, filed)| (filing, filed.to_result())) {
            standing.published = filing.store_revision.revision;
        }
        (self.is_current, self.applied_up_to) = (rounds.is_current(), rounds.position().revision);
        if self.is_current {
            self.drains.update_drains(&standing.desired, self.applied_up_to, &rounds.leaving_upstreams());
            self.drains.set_other_backends(rounds.other_backends(), &standing.pending);
        }
        self.reconciler = Some(rounds);
        // At once: who reads that a drain is applied has to read that it isn't over.
        let (open, over) = (Arc::new(self.drains.tracker().open_drains()), self.drains.tracker().count_ended());
        self.status.send_modify(|report| {
            if report.reconcile.published != standing.published {
                self.published_at = Instant::now();
            }
            (report.reconcile, report.draining, report.drains_ended) = (Arc::new(standing), open, over);
            report.has_reconciled = true;
        });
        self.advance_applied();
    }

    fn schedule_pending(&mut self, now: Instant, left: &Pending) {
        if left.file {
            self.scheduler.want_publish(now);
        }
        if left.removals {
            self.scheduler.want_server_removal(now);
        }
    }

    pub(super) fn on_published(&mut self, Published { publication: filing, outcome: filed, at }: Published) {
        let revision = filing.store_revision.revision;
        let outcome = filed.as_ref().map_err(|error| format!("{error:#}")).and_then(PublishOutcome::to_result);
        if !matches!(filed, Ok(PublishOutcome::Unchanged | PublishOutcome::Blocked)) {
            let reason = "haproxy.cfg follows HAProxy".to_owned();
            self.record_action(status::HistoryEntry {
                began_at: at.0,
                took: at.1.elapsed(),
                kind: ActionKind::File,
                reason,
                revision,
                outcome,
            });
        }
        let unfiled = filed.as_ref().map_err(|error| format!("{error:#}")).and_then(PublishOutcome::to_result).err();
        self.status.send_if_modified(|report| std::mem::replace(&mut report.publish_error, unfiled.clone()) != unfiled);
        if let Ok(filed) = &filed {
            self.last_published = Some((filing, filed.clone()));
        }
        match filed {
            Ok(filed @ (PublishOutcome::Unchanged | PublishOutcome::Written)) => {
                tracing::debug!("{filed}");
                self.published_at = Instant::now();
                self.status.send_modify(|report| Arc::make_mut(&mut report.reconcile).published = revision);
                let due = self.restart.is_some() || self.acting.is_some() || self.observed_stale || self.files_changed;
                if !due {
                    self.scheduler.on_recovered();
                    tokio::task::spawn_blocking(malloc::give_back);
                }
            }
            Ok(filed @ (PublishOutcome::ServicesRejected(_) | PublishOutcome::FilledFilesRejected(_))) => {
                tracing::warn!("{filed}");
                self.mark_all_changed();
            }
            // Their next look says when it is over.
            Ok(PublishOutcome::Blocked) => {}
            Ok(refused) => self.on_failed(Action::Publish, &refused.to_string()),
            Err(error) => self.on_failed(Action::Publish, &format!("{error:#}")),
        }
    }

    /// Services are left out, or were found to be another: what is wanted is decided anew.
    fn mark_all_changed(&mut self) {
        self.replica.mark_all_changed();
        self.observed_stale = true;
        self.scheduler.on_change(Instant::now());
    }

    fn on_failed(&mut self, act: Action, reason: &str) {
        tracing::error!("out of sync: {reason}");
        self.report_out_of_sync(reason);
        // What a look had seen may not have been taken in.
        self.replica.mark_all_changed();
        (self.observed_stale, self.files_changed) = (true, true);
        self.scheduler.on_failed(Instant::now(), act);
    }

    /// Waits for what is under way.
    pub(super) async fn finish_actions(&mut self) {
        if self.acting.is_some() {
            let _ = await_task(&mut self.acting).await;
        }
        if self.publishing.is_some() {
            let _ = await_task(&mut self.publishing).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use haproxy::runtime::Socket;

    use super::*;
    use crate::cli::Pacing;
    use crate::drain::task::DrainTask;

    #[test]
    fn a_failed_act_is_tried_again_with_everything_it_was_to_take_in() {
        let second = Duration::from_secs(1);
        let pacing = Pacing { resync: second, min_wait: Duration::ZERO, restart_interval: second };
        let drains = DrainTask::new(Socket::new("/no/such/socket"));
        let mut daemon = EventLoop::new(None, drains, &pacing);
        daemon.replica.apply_listing(&discovery::Snapshot::default());
        drop(daemon.replica.take_update());
        daemon.on_failed(Action::Reconcile, "the operator's directory can't be listed");
        assert_eq!(daemon.replica.take_update().unwrap().changed, Changed::All);
        assert!(daemon.observed_stale && daemon.files_changed);
        assert!(daemon.scheduler.next_action(false).is_some());
        assert!(daemon.status.borrow().out_of_sync.is_some());
    }
}
