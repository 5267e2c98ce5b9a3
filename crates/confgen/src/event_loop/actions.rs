//! Actions: the begin of each, and the consequences of its end.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use program::text::describe_error;

use super::EventLoop;
use crate::drain::task::await_task;
use crate::event_loop::reconciler_thread::{Ended, Finished, Reply, Request};
use crate::event_loop::scheduler::{Action, Effect, End, Input, PublishEnd, RestartEnd};
use crate::event_loop::task::{Task, TaskResult};
use crate::event_loop::{malloc, program_pages};
use crate::publish::{Publication, PublishOutcome};
use crate::reconcile::{Progress, RestartOutcome, leaves_part_out, reload_local_files, restart_haproxy};
use crate::status::{ActionKind, HistoryEntry};

/// The reason of each `Publish`, as the history and the activities show it.
const PUBLISH_REASON: &str = "haproxy.cfg follows HAProxy";

/// A `Publish` that ended.
pub(super) struct Published {
    publication: Publication,
    outcome: anyhow::Result<PublishOutcome>,
    began_at: SystemTime,
    took: Duration,
}

impl EventLoop {
    /// Sends the action to the reconciler, or begins it beside the reconciler. A `Publish` first asks the reconciler for what to
    /// publish.
    pub(super) fn begin_action(&mut self, action: Action) {
        self.scheduler.begin(Instant::now(), &action);
        match action {
            Action::Publish => return self.reconciler.send(Request::Publish),
            Action::ReadFiles => return self.spawn_reading(),
            _ => {}
        }
        let revision = self.replica.store_revision().revision;
        // The reconciler gets each `Published` before this action, so its next status has the revision.
        self.published_meanwhile = None;
        if let Action::Restart { reason } = action {
            self.spawn_restart(reason, revision);
        } else if let Some(task) = Task::for_action(action, &mut self.replica) {
            self.reconciler.send(Request::Run { task, revision });
        }
    }

    /// Restarts HAProxy beside other actions: a frozen supervisord, `haproxy -c` and the start of HAProxy may each take seconds.
    fn spawn_restart(&mut self, reason: String, revision: i64) {
        let (activities, mut steps) = (self.status.borrow().activities.clone(), self.reconciler.step_sender());
        self.restarting = Some(tokio::task::spawn_blocking(move || {
            let kind = ActionKind::Restart;
            let _activity = activities.begin(kind.name(), reason.clone());
            let (began_at, began) = (SystemTime::now(), Instant::now());
            let result = restart_haproxy(&mut steps, &reason).map(TaskResult::Restarted);
            let ended = Ended { kind, reason, revision, result, began_at, took: began.elapsed() };
            steps.send(Request::Ended(Box::new(ended)));
        }));
    }

    /// Reads local files beside other actions: HAProxy checks those that changed.
    fn spawn_reading(&mut self) {
        let (activities, mut steps) = (self.status.borrow().activities.clone(), self.reconciler.step_sender());
        self.reading = Some(tokio::task::spawn_blocking(move || {
            let _activity = activities.begin("look", "local files changed, HAProxy checks them");
            reload_local_files(&mut steps)
        }));
    }

    pub(super) fn on_files_read(&mut self, read: anyhow::Result<()>) {
        match read {
            Ok(()) => self.schedule(Input::FilesRead { is_usable: true }),
            Err(error) => self.fail(Input::FilesRead { is_usable: false }, &describe_error(error.as_ref())),
        }
    }

    pub(super) fn on_reply(&mut self, reply: Reply) {
        match reply {
            Reply::Finished(finished) => self.on_finished(*finished),
            Reply::Publish(publication) => self.spawn_publish(*publication),
        }
    }

    /// Writes the file beside other actions: `haproxy -c` may take seconds.
    fn spawn_publish(&mut self, publication: Publication) {
        let activities = self.status.borrow().activities.clone();
        self.publishing = Some(tokio::task::spawn_blocking(move || {
            let _activity = activities.begin("file", PUBLISH_REASON);
            let (began_at, began) = (SystemTime::now(), Instant::now());
            let outcome = publication.write_if_changed();
            Published { publication, outcome, began_at, took: began.elapsed() }
        }));
    }

    fn on_finished(&mut self, finished: Finished) {
        let Finished { ended: Ended { kind, reason, revision, result, began_at, took }, progress } = finished;
        let outcome = match &result {
            Ok(result) => result.to_history_outcome(),
            Err(error) => Some(Err(describe_error(error.as_ref()))),
        };
        if let Some(outcome) = outcome {
            self.record_action(HistoryEntry { began_at, took, kind, reason, revision, outcome, difference: None });
        }
        self.schedule_next(kind, result, &progress);
        self.update_status(progress);
    }

    fn schedule_next(&mut self, kind: ActionKind, result: anyhow::Result<TaskResult>, progress: &Progress) {
        let Progress { is_current, accepts_operator_files: accepts_files, .. } = *progress;
        let end = match result {
            Ok(TaskResult::Reconciled(pending)) => End::Reconciled { pending, accepts_files },
            Ok(TaskResult::ServersRemoved(pending)) => End::ServersRemoved(pending),
            Ok(TaskResult::ServersRequeued { is_refused: false }) => End::Requeued,
            Ok(TaskResult::ServersRequeued { is_refused: true }) => End::RequeueRefused,
            Ok(TaskResult::Restarted(outcome)) => return self.on_restarted(&outcome, is_current),
            Err(error) => {
                let input = match kind {
                    ActionKind::Restart => Input::Restarted { end: RestartEnd::Failed, is_current },
                    ActionKind::Runtime | ActionKind::File => Input::Finished { end: End::Failed, is_current },
                };
                return self.fail(input, &describe_error(error.as_ref()));
            }
        };
        self.schedule(Input::Finished { end, is_current });
    }

    fn on_restarted(&mut self, outcome: &RestartOutcome, is_current: bool) {
        let (end, problem) = (restart_end(outcome), outcome.to_string());
        let input = Input::Restarted { end, is_current };
        match end {
            RestartEnd::Failed => return self.fail(input, &problem),
            RestartEnd::Restarted => {
                tracing::info!("{outcome}");
                // The restart also wrote haproxy.cfg.
                self.status.send_modify(|status| status.publish_error = None);
            }
            RestartEnd::Stopped | RestartEnd::PartRejected => tracing::warn!("{outcome}"),
        }
        self.schedule_with_problem(input, &problem);
    }

    /// Makes the reconciler's progress visible.
    fn update_status(&mut self, progress: Progress) {
        let Progress { mut status, is_current, store_revision, leaving, other_backends, .. } = progress;
        // The action ended before the reconciler had this publish.
        status.published = self.published_meanwhile.unwrap_or(status.published);
        self.reconciled_revision = store_revision.revision;
        // Begin drains only after the reconcile. A session count from before HAProxy has the drain may miss a request that
        // HAProxy sends in between.
        if is_current {
            self.drains.update_drains(&status.desired, self.reconciled_revision, &leaving);
            self.drains.set_other_backends(other_backends, &status.pending);
        }
        // In one step: a reader that learns that a drain is applied must learn that the drain isn't complete.
        let (open, ended) = (Arc::new(self.drains.tracker().open_drains()), self.drains.tracker().count_ended());
        self.status.send_modify(|report| {
            if report.reconcile.published != status.published {
                self.published_at = Instant::now();
            }
            (report.reconcile, report.draining, report.drains_ended) = (Arc::new(status), open, ended);
            report.has_reconciled = true;
        });
        self.advance_applied();
        self.record_changes();
    }

    pub(super) fn on_published(&mut self, published: Published) {
        self.publishing = None;
        let Published { publication, outcome, began_at, took } = published;
        let revision = publication.store_revision.revision;
        let result =
            outcome.as_ref().map_err(|error| describe_error(error.as_ref())).and_then(PublishOutcome::to_result);
        if !matches!(outcome, Ok(PublishOutcome::Unchanged | PublishOutcome::Blocked)) {
            let (kind, reason, outcome) = (ActionKind::File, PUBLISH_REASON.to_owned(), result.clone());
            let difference = publication.take_difference();
            self.record_action(HistoryEntry { began_at, took, kind, reason, revision, outcome, difference });
        }
        let error = result.err();
        self.status.send_if_modified(|status| std::mem::replace(&mut status.publish_error, error.clone()) != error);
        if let Ok(outcome) = &outcome {
            // Before the next task: a rejected service must not be published again.
            self.reconciler.send(Request::Published(Box::new(publication), outcome.clone()));
        }
        match outcome {
            Ok(outcome @ (PublishOutcome::Unchanged | PublishOutcome::Written)) => {
                tracing::debug!("{outcome}");
                self.published_at = Instant::now();
                self.published_meanwhile = Some(revision);
                self.status.send_modify(|status| Arc::make_mut(&mut status.reconcile).published = revision);
                self.schedule(Input::Published(PublishEnd::UpToDate));
            }
            Ok(rejected) if leaves_part_out(&rejected) => {
                tracing::warn!("{rejected}");
                self.schedule(Input::Published(PublishEnd::PartRejected));
            }
            Ok(PublishOutcome::Blocked) => self.schedule(Input::Published(PublishEnd::Blocked)),
            Ok(rejected) => self.fail(Input::Published(PublishEnd::Failed), &rejected.to_string()),
            Err(error) => self.fail(Input::Published(PublishEnd::Failed), &describe_error(error.as_ref())),
        }
    }

    /// Feeds the scheduler, and carries out the effect.
    pub(super) fn schedule(&mut self, input: Input) {
        self.schedule_with_problem(input, "");
    }

    /// The same for an action that failed.
    fn fail(&mut self, input: Input, problem: &str) {
        tracing::error!(%problem, "out of sync");
        self.schedule_with_problem(input, problem);
    }

    fn schedule_with_problem(&mut self, input: Input, problem: &str) {
        match self.scheduler.on(Instant::now(), input) {
            Some(Effect::InSync) => self.report_in_sync(),
            Some(Effect::OutOfSync) => self.report_out_of_sync(problem),
            // Off the event loop: after a long burst, trimming takes some tens of milliseconds.
            Some(Effect::Rest) => drop(tokio::task::spawn_blocking(release_memory)),
            None => {}
        }
    }

    /// Waits for the actions in progress. They have no consequences any more.
    pub(super) async fn finish_actions(&mut self) {
        let (mut is_acting, mut is_waiting) = (self.scheduler.is_acting(), self.scheduler.is_waiting_beside());
        while is_acting || is_waiting {
            tokio::select! {
                reply = self.reconciler.next_reply() => match reply {
                    Reply::Finished(it) if it.ended.kind == ActionKind::Restart => is_waiting = false,
                    Reply::Finished(_) => is_acting = false,
                    // This publish had begun before the stop, and only its input was missing.
                    Reply::Publish(publication) => self.spawn_publish(*publication),
                },
                _ = await_task(&mut self.publishing) => is_waiting = false,
                _ = await_task(&mut self.reading) => is_waiting = false,
            }
        }
    }
}

/// Gives memory back that confgen needs no longer. Called at rest.
fn release_memory() {
    malloc::trim_heap();
    program_pages::release_program_pages();
}

/// The end of a restart for the scheduler.
pub(super) fn restart_end(outcome: &RestartOutcome) -> RestartEnd {
    match outcome {
        RestartOutcome::Restarted | RestartOutcome::InSync => RestartEnd::Restarted,
        RestartOutcome::Stopped => RestartEnd::Stopped,
        RestartOutcome::Rejected(rejected) if leaves_part_out(rejected) => RestartEnd::PartRejected,
        RestartOutcome::Rejected(_) | RestartOutcome::NotLive(_) => RestartEnd::Failed,
    }
}
