//! Counts sessions while a drain isn't over. Judges nothing: [`DrainTracker`] does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use discovery::ServiceId;
use haproxy::runtime::Socket;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep_until;

use crate::desired::DesiredState;
use crate::drain::sessions::SessionCounter;
use crate::drain::{DrainContext, DrainTracker, DrainedUpstream, SessionCount};
use crate::operator_files::filled::OtherBackends;

/// A drain's end is known within two counts. Five counts a second are nothing to HAProxy.
const COUNT_EVERY: Duration = Duration::from_millis(200);
/// The pause after a count is this many times as long as the count. Thousands of servers in many old processes make it long.
const REST_FACTOR: u32 = 10;

/// The drains, and the counter of their sessions.
pub struct DrainTask {
    tracker: DrainTracker,
    /// `None` while a count is running, which has the counter.
    counter: Option<SessionCounter>,
    running_count: Option<JoinHandle<(SessionCounter, SessionCount)>>,
    /// The time of the next count. `None` without a drain.
    due: Option<Instant>,
}

impl DrainTask {
    /// No drain yet. The sessions are those of the HAProxy on this socket.
    pub fn new(socket: Socket) -> Self {
        Self {
            tracker: DrainTracker::default(),
            counter: Some(SessionCounter::new(socket)),
            running_count: None,
            due: None,
        }
    }

    /// See [`DrainTracker::update_drains`].
    pub fn update_drains(&mut self, settled: &Arc<DesiredState>, revision: i64, leaving: &[DrainedUpstream]) {
        let now = Instant::now();
        self.tracker.update_drains(now, settled, revision, leaving);
        self.schedule_count(now);
    }

    /// See [`DrainTracker::set_other_backends`].
    pub fn set_other_backends(&mut self, other_backends: OtherBackends, pending: &BTreeSet<ServiceId>) {
        self.tracker.set_other_backends(other_backends, pending);
    }

    /// Waits until a count is due and done, for ever without a drain. Dropping the future loses nothing, because the count goes on
    /// and the next call returns it.
    pub async fn next_count(&mut self) -> SessionCount {
        if let (None, Some(due)) = (&self.running_count, self.due) {
            sleep_until(due.into()).await;
            let services: BTreeSet<ServiceId> = self.tracker.draining_services().into_iter().cloned().collect();
            let everywhere = self.tracker.has_other_sections(&services);
            self.running_count = self.counter.take().map(|mut counter| {
                spawn_blocking(move || {
                    let count = counter.count_sessions(&services, everywhere);
                    (counter, count)
                })
            });
        }
        let (counter, count) = await_task(&mut self.running_count).await;
        self.counter = Some(counter);
        count
    }

    /// Ends drains as [`DrainTracker::apply_count`], and schedules the next count.
    pub fn apply_count(&mut self, count: &SessionCount, context: DrainContext) {
        self.tracker.apply_count(count, context);
        let now = Instant::now();
        self.due = None;
        self.schedule_count(now + COUNT_EVERY.max(now.duration_since(count.at) * REST_FACTOR));
    }

    /// The drains.
    pub fn tracker(&self) -> &DrainTracker {
        &self.tracker
    }

    fn schedule_count(&mut self, at: Instant) {
        // A scheduled count keeps its time, so that changes make counts no more frequent.
        self.due = if self.tracker.draining_services().is_empty() { None } else { Some(self.due.unwrap_or(at)) };
    }
}

/// Waits for the task and takes it, for ever if there is none. A panic in the task goes on in confgen.
pub(crate) async fn await_task<T>(task: &mut Option<JoinHandle<T>>) -> T {
    let Some(running) = task else { return std::future::pending().await };
    let ended = running.await;
    *task = None;
    // A panic in the task is a bug of confgen. systemd starts confgen again.
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
