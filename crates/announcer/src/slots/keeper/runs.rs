//! The runs of a copy's app: start, end, and the fence's time. It decides nothing about slots.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use daemon::shutdown::Shutdown;
use discovery::Timestamp;
use tokio::{sync::mpsc, task::JoinSet};

use crate::child::ChildError;
use crate::event_loop;
use crate::event_loop::surroundings::Surroundings;
use crate::slots::fence;
use crate::slots::keeper::{Keeper, Parts};
use crate::slots::restarts::Verdict;
use crate::slots::state::{Event, State};
use crate::state;
use crate::status::heartbeat::Heartbeat;

/// Exit status of a run that failed without an app's status.
const FAILED: u8 = 1;

/// Message that the run of this number has announced its app.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Announced(pub(super) u64);

/// A run of the app.
pub(super) struct Run {
    shutdown: Shutdown,
    pub(super) is_killed: bool,
    /// Ends the task that waits for the announcement.
    _watcher: JoinSet<()>,
}

impl Keeper {
    /// True if the start waits for etcd or for balancers, and not for the app.
    pub(super) fn is_start_waiting(&self) -> bool {
        let run = self.parts.surroundings.sources.borrow().clone();
        let is_waiting = run.is_none_or(|run| {
            matches!(run.loop_status.borrow().state, state::State::Announcing | state::State::AwaitingBalancers)
        });
        !self.is_ready_said && (self.run.is_none() || is_waiting)
    }

    pub(super) fn start_run(&mut self) {
        let Parts { config, parameters, surroundings, messages, first_signal, .. } = &self.parts;
        let shutdown = Shutdown { first_signal: first_signal.clone(), ..Shutdown::default() };
        self.run_count += 1;
        surroundings.sources.send_replace(None);
        let mut watcher = JoinSet::new();
        watcher.spawn(report_announced(surroundings.clone(), Announced(self.run_count), messages.clone()));
        let (config, parameters, surroundings) = (config.clone(), parameters.clone(), surroundings.clone());
        let told = shutdown.clone();
        self.publish_limit();
        self.runs.spawn(async move {
            event_loop::run_once(&config, parameters, &surroundings, Heartbeat::silent(), &told).await
        });
        self.run = Some(Run { shutdown, is_killed: false, _watcher: watcher });
        self.status_line = None;
    }

    pub(super) fn end_run(&mut self, ended: anyhow::Result<u8>) {
        self.run = None;
        self.parts.surroundings.sources.send_replace(None);
        let status = ended.unwrap_or_else(|error| {
            tracing::error!(error = %program::text::describe_error(error.as_ref()), "can't run the app");
            error.downcast_ref::<ChildError>().map_or(FAILED, ChildError::exit_code)
        });
        // An earlier crash says nothing about the end of a copy that stands by.
        self.exit_status = if self.state.is_ending() { status } else { 0 };
        if self.state.awaits_run_end() {
            return self.apply(Event::RunEnded);
        }
        let now = Instant::now();
        let (event, pause) = match self.restarts.record_end(now, self.state == State::Holding) {
            Verdict::Restart(pause) => (Event::Crashed, pause),
            Verdict::Rest(pause) => (Event::CrashLoop, pause),
        };
        self.parts.facts.rests_until = Some(Timestamp::from_time(SystemTime::now() + pause));
        self.apply(event);
        if matches!(self.state, State::Pausing | State::Resting) {
            self.state_end = Some(now + pause);
            let pause = humantime::format_duration(pause);
            match event {
                Event::Crashed => tracing::warn!(status, %pause, "the app has ended, starting it again"),
                _ => tracing::warn!(status, %pause, "the app ends too often here, leaving the slot to another host"),
            }
        }
    }

    pub(super) fn stop_run(&mut self) {
        if let Some(run) = &self.run {
            run.shutdown.drain.cancel();
        }
    }

    pub(super) fn kill_run(&mut self) {
        if let Some(run) = &mut self.run {
            run.is_killed = true;
            run.shutdown.drain.cancel();
            run.shutdown.abort.cancel();
        }
    }

    /// Time at which the app must be killed. `None` without `--fence`.
    pub(super) fn kill_time(&self) -> Option<Instant> {
        let Parts { options, lease, parameters, .. } = &self.parts;
        let requested_at = lease.stats.borrow().renewed_at;
        options.has_fence.then(|| fence::kill_time(requested_at, parameters.ttl)).flatten()
    }

    /// True if the app runs with `--fence`, isn't killed yet, and its slot's lease may end.
    pub(super) fn is_fence_passed(&self, now: Instant) -> bool {
        let has_live_run = self.run.as_ref().is_some_and(|run| !run.is_killed);
        // A later lease's time says nothing about the slot. Without a lease there is no time, and the slot is gone.
        let is_lease_lost = *self.parts.lease.id.borrow() != self.held_lease;
        has_live_run
            && self.parts.options.has_fence
            && (is_lease_lost || self.kill_time().is_none_or(|time| now >= time))
    }

    /// Tells the app's guard until when the app may run. A passed limit is never moved.
    pub(super) fn publish_limit(&self) {
        let Parts { options, lease, parameters, limits, .. } = &self.parts;
        if !options.has_fence || !self.state.may_hold_slot() || self.held_lease != *lease.id.borrow() {
            return;
        }
        let limit = fence::guard_time(lease.stats.borrow().renewed_at, parameters.ttl);
        limits.send_if_modified(|sent| limit.is_some() && std::mem::replace(sent, limit) != limit);
    }
}

/// Reports once that the run has announced its app.
async fn report_announced(surroundings: Arc<Surroundings>, message: Announced, messages: mpsc::Sender<Announced>) {
    let mut sources = surroundings.sources.subscribe();
    let Ok(mut status) = sources.wait_for(Option::is_some).await.map(|found| found.clone().map(|run| run.loop_status))
    else {
        return;
    };
    if let Some(status) = &mut status
        && status.wait_for(|status| status.state == state::State::Announced).await.is_ok()
    {
        let _ = messages.send(message).await;
    }
}
