//! The runs of a copy's app: start, end, and the fence's time. It decides nothing about slots.

use std::time::{Instant, SystemTime};

use discovery::Timestamp;

use crate::slots::app::{App, AppEvent, AppEventKind};
use crate::slots::fence;
use crate::slots::keeper::Keeper;
use crate::slots::restarts::Verdict;
use crate::slots::state::{Event, State};

/// A run of the app.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Run {
    pub(super) is_killed: bool,
}

impl<A: App> Keeper<A> {
    /// True if the start waits for etcd or for balancers, and not for the app.
    pub(super) fn is_start_waiting(&self) -> bool {
        !self.is_ready_said && (self.run.is_none() || self.app.is_start_waiting())
    }

    pub(super) fn start_run(&mut self) {
        self.run_count += 1;
        self.publish_limit();
        self.app.start(self.run_count);
        self.run = Some(Run::default());
        self.status_line = None;
    }

    /// Applies an event of the current run. Those of earlier runs come too late.
    pub(super) fn apply_app_event(&mut self, event: AppEvent) {
        if event.run != self.run_count || self.run.is_none() {
            return;
        }
        match event.kind {
            AppEventKind::Announced => self.apply(Event::Announced),
            AppEventKind::Ended(status) => self.end_run(status),
            AppEventKind::TakenAway => {
                self.apply(Event::Stop);
                self.end_run(0);
            }
        }
    }

    fn end_run(&mut self, status: u8) {
        self.run = None;
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
        self.facts.rests_until = Some(Timestamp::from_time(SystemTime::now() + pause));
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
        if self.run.is_some() {
            self.app.stop(self.is_stop_awaited);
        }
    }

    pub(super) fn kill_run(&mut self) {
        if let Some(run) = &mut self.run {
            run.is_killed = true;
            self.app.kill();
        }
    }

    /// Time at which the app must be killed. `None` without `--fence`.
    pub(super) fn kill_time(&self) -> Option<Instant> {
        let requested_at = self.lease.stats.borrow().renewed_at;
        self.options.has_fence.then(|| fence::kill_time(requested_at, self.lease.ttl)).flatten()
    }

    /// True if the app runs with `--fence`, isn't killed yet, and its slot's lease may end.
    pub(super) fn is_fence_passed(&self, now: Instant) -> bool {
        let has_live_run = self.run.is_some_and(|run| !run.is_killed);
        // A later lease's time says nothing about the slot. Without a lease there is no time, and the slot is gone.
        let is_lease_lost = *self.lease.id.borrow() != self.held_lease;
        has_live_run && self.options.has_fence && (is_lease_lost || self.kill_time().is_none_or(|time| now >= time))
    }

    /// Tells the app's guard until when the app may run. A passed limit is never moved.
    pub(super) fn publish_limit(&self) {
        let Self { options, lease, outlets, .. } = self;
        if !options.has_fence || !self.state.may_hold_slot() || self.held_lease != *lease.id.borrow() {
            return;
        }
        let limit = fence::guard_time(lease.stats.borrow().renewed_at, lease.ttl);
        outlets.limits.send_if_modified(|sent| limit.is_some() && std::mem::replace(sent, limit) != limit);
    }
}
