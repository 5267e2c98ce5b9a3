//! Acts: begun one at a time, off the runtime, but for the file's, which is written beside the others; and what their ends
//! lead to.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::EventLoop;
use crate::drain::task::finished;
use crate::event_loop::job::{Acted, Done, Job};
use crate::event_loop::malloc;
use crate::event_loop::scheduler::Act;
use crate::publish::{Publication, PublishOutcome};
use crate::reconcile::{Left, Outcome, Reconciler};
use crate::status;
use crate::status::Kind;
use crate::store::Changed;

/// A file that was written, or wasn't.
pub(super) struct Wrote {
    filing: Publication,
    filed: anyhow::Result<PublishOutcome>,
    at: (SystemTime, Instant),
}

impl EventLoop {
    pub(super) fn begin(&mut self, act: Act) {
        let Some(mut rounds) = self.rounds.take() else { return };
        self.pace.began(act);
        if act == Act::File {
            let (filing, activities) = (rounds.filing(), self.report.borrow().activities.clone());
            self.rounds = Some(rounds);
            self.filing = Some(tokio::task::spawn_blocking(move || {
                let _activity = activities.begin("file", "haproxy.cfg follows HAProxy");
                let at = (SystemTime::now(), Instant::now());
                let filed = filing.write();
                Wrote { filing, filed, at }
            }));
            return;
        }
        self.began = Instant::now();
        let job: Job = match act {
            Act::Follow => match self.follow(&mut rounds) {
                Some(job) => job,
                None => return self.rounds = Some(rounds),
            },
            Act::Restart => Job::Restart(self.restart.take().unwrap_or_default()),
            Act::Requeue => Job::Requeue(std::mem::take(&mut self.requeued)),
            Act::File | Act::Sweep => Job::Sweep,
        };
        let written = self.written.take();
        let (reason, revision) = (job.reason(), self.mirror.position().revision);
        let (activities, kind) = (self.report.borrow().activities.clone(), job.kind());
        self.acting = Some(tokio::task::spawn_blocking(move || {
            let _activity = activities.begin(kind, reason.clone());
            let at = (SystemTime::now(), Instant::now());
            let taken_in = written.map_or(Ok(()), |(filing, filed)| rounds.filed(&filing, &filed));
            rounds.tell_quarantine();
            let done = taken_in.and_then(|()| job.run(&mut rounds));
            Acted { rounds, act, done, at, reason, revision }
        }));
    }

    /// A look at what no act has seen yet.
    fn follow(&mut self, rounds: &mut Reconciler) -> Option<Job> {
        let mut news = self.mirror.news()?;
        if std::mem::take(&mut self.doubt) {
            rounds.doubt();
        }
        let outside = std::mem::take(&mut self.outside_changed);
        if outside {
            news.changed = Changed::All;
        }
        Some(Job::Follow(news, outside))
    }

    pub(super) fn end(&mut self, acted: Acted) {
        let Acted { mut rounds, act, done, at, reason, revision } = acted;
        let (kind, told) = match &done {
            Ok(Done::Restarted(outcome)) => (Kind::Restart, Some(outcome.result())),
            Ok(Done::Followed(left, _) | Done::Swept(left)) => (Kind::Runtime, left.told()),
            Ok(Done::Requeued(_)) => (Kind::Runtime, None),
            Err(error) => {
                (if act == Act::Restart { Kind::Restart } else { Kind::Runtime }, Some(Err(format!("{error:#}"))))
            }
        };
        if let Some(outcome) = told {
            self.note(status::Done { at: at.0, took: at.1.elapsed(), kind, reason, revision, outcome });
        }
        let has_looked = matches!(done, Ok(Done::Followed(..)));
        self.on_finished(act, done, rounds.is_taken());
        rounds.tell_quarantine();
        if has_looked && rounds.is_current() {
            self.confirmed = Some(self.began);
        }
        self.publish(rounds);
    }

    /// Has follow what an act's end asks for.
    fn on_finished(&mut self, act: Act, done: anyhow::Result<Done>, taken: bool) {
        let now = Instant::now();
        match done {
            Ok(Done::Followed(left, looked)) => {
                self.pace.restart(now, left.restart.is_some(), left.silent);
                self.left(now, &left);
                if left.restart.is_none() && taken {
                    self.in_sync();
                }
                self.restart = left.restart;
                if let Err(error) = looked {
                    self.failed(act, &format!("{error:#}"));
                }
            }
            Ok(Done::Swept(left)) => self.left(now, &left),
            Ok(Done::Requeued(true)) => {}
            // A server that this knew is gone, and HAProxy is to be observed.
            Ok(Done::Requeued(false)) => self.pace.changed(now),
            Ok(Done::Restarted(outcome @ (Outcome::Restarted | Outcome::InSync))) => {
                tracing::info!("{outcome}");
                self.pace.restarted(now);
                // The old process may still listen.
                self.pace.sweep(now);
                self.in_sync();
                // It has written the file too.
                self.report.send_modify(|report| report.unfiled = None);
            }
            // Its start by whoever stopped it is seen, and it finds the file ready.
            Ok(Done::Restarted(Outcome::Stopped)) => {
                tracing::warn!("{}", Outcome::Stopped);
                self.out_of_sync(&Outcome::Stopped.to_string());
            }
            Ok(Done::Restarted(Outcome::Refused(
                filed @ (PublishOutcome::Culprits(_) | PublishOutcome::Unfilled(_)),
            ))) => {
                tracing::warn!("{filed}");
                // It may have been found out by a restart that failed.
                self.pace.restarted(now);
                self.mark_all_changed();
            }
            Ok(Done::Restarted(outcome)) => self.failed(act, &outcome.to_string()),
            Err(error) => self.failed(act, &format!("{error:#}")),
        }
    }

    /// Takes the rounds back, and tells how they stand.
    fn publish(&mut self, rounds: Reconciler) {
        let mut standing = rounds.standing();
        if let Some((filing, Ok(_))) = self.written.as_ref().map(|(filing, filed)| (filing, filed.result())) {
            standing.filed = filing.position.revision;
        }
        (self.current, self.given) = (rounds.is_current(), rounds.position().revision);
        if self.current {
            self.drains.follow(&standing.settled, self.given, &rounds.leaving());
            self.drains.elsewhere(rounds.elsewhere(), &standing.pending);
        }
        self.rounds = Some(rounds);
        // At once: who reads that a drain is applied has to read that it isn't over.
        let (open, over) = (Arc::new(self.drains.draining().open()), self.drains.draining().over());
        self.report.send_modify(|report| {
            if report.standing.filed != standing.filed {
                self.filed_at = Instant::now();
            }
            (report.standing, report.draining, report.drained) = (Arc::new(standing), open, over);
            report.begun = true;
        });
        self.advance_applied();
    }

    fn left(&mut self, now: Instant, left: &Left) {
        if left.file {
            self.pace.file(now);
        }
        if left.sweep {
            self.pace.sweep(now);
        }
    }

    pub(super) fn filed(&mut self, Wrote { filing, filed, at }: Wrote) {
        let revision = filing.position.revision;
        let outcome = filed.as_ref().map_err(|error| format!("{error:#}")).and_then(PublishOutcome::result);
        if !matches!(filed, Ok(PublishOutcome::Same | PublishOutcome::Waits)) {
            let reason = "haproxy.cfg follows HAProxy".to_owned();
            self.note(status::Done { at: at.0, took: at.1.elapsed(), kind: Kind::File, reason, revision, outcome });
        }
        let unfiled = filed.as_ref().map_err(|error| format!("{error:#}")).and_then(PublishOutcome::result).err();
        self.report.send_if_modified(|report| std::mem::replace(&mut report.unfiled, unfiled.clone()) != unfiled);
        if let Ok(filed) = &filed {
            self.written = Some((filing, filed.clone()));
        }
        match filed {
            Ok(filed @ (PublishOutcome::Same | PublishOutcome::Written)) => {
                tracing::debug!("{filed}");
                self.filed_at = Instant::now();
                self.report.send_modify(|report| Arc::make_mut(&mut report.standing).filed = revision);
                let due = self.restart.is_some() || self.acting.is_some() || self.doubt || self.outside_changed;
                if !due {
                    self.pace.recovered();
                    tokio::task::spawn_blocking(malloc::give_back);
                }
            }
            Ok(filed @ (PublishOutcome::Culprits(_) | PublishOutcome::Unfilled(_))) => {
                tracing::warn!("{filed}");
                self.mark_all_changed();
            }
            // Their next look says when it is over.
            Ok(PublishOutcome::Waits) => {}
            Ok(refused) => self.failed(Act::File, &refused.to_string()),
            Err(error) => self.failed(Act::File, &format!("{error:#}")),
        }
    }

    /// Services are left out, or were found to be another: what is wanted is decided anew.
    fn mark_all_changed(&mut self) {
        self.mirror.mark_all_changed();
        self.doubt = true;
        self.pace.changed(Instant::now());
    }

    fn failed(&mut self, act: Act, reason: &str) {
        tracing::error!("out of sync: {reason}");
        self.out_of_sync(reason);
        // What a look had seen may not have been taken in.
        self.mirror.mark_all_changed();
        (self.doubt, self.outside_changed) = (true, true);
        self.pace.failed(Instant::now(), act);
    }

    /// Waits for what is under way.
    pub(super) async fn finish(&mut self) {
        if self.acting.is_some() {
            let _ = finished(&mut self.acting).await;
        }
        if self.filing.is_some() {
            let _ = finished(&mut self.filing).await;
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
        let drains = DrainTask::of(Socket::new("/no/such/socket"));
        let mut daemon = EventLoop::new(None, drains, &pacing);
        daemon.mirror.list(&discovery::Snapshot::default());
        drop(daemon.mirror.news());
        daemon.failed(Act::Follow, "the operator's directory can't be listed");
        assert_eq!(daemon.mirror.news().unwrap().changed, Changed::All);
        assert!(daemon.doubt && daemon.outside_changed);
        assert!(daemon.pace.due(false).is_some());
        assert!(daemon.report.borrow().out_of_sync.is_some());
    }
}
