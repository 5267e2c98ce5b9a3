//! Drains under way: counts while there is one, and asks HAProxy nothing else.

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

/// How often it is counted: a drain's end is known soon, and four questions more a second are nothing to HAProxy.
const COUNT_EVERY: Duration = Duration::from_millis(200);
/// Counts that take long, as of thousands of servers in many old processes, leave HAProxy so many times as long alone.
const REST_FACTOR: u32 = 10;

/// The drains, and whoever counts for them.
pub struct DrainTask {
    tracker: DrainTracker,
    /// None while it counts.
    counter: Option<SessionCounter>,
    running_count: Option<JoinHandle<(SessionCounter, SessionCount)>>,
    /// The next count; none where nothing is on its way out.
    due: Option<Instant>,
}

impl DrainTask {
    /// None yet, of the HAProxys on that socket.
    pub fn new(socket: Socket) -> Self {
        Self {
            tracker: DrainTracker::default(),
            counter: Some(SessionCounter::new(socket)),
            running_count: None,
            due: None,
        }
    }

    /// As [`DrainTracker::follow`].
    pub fn update_drains(&mut self, settled: &Arc<DesiredState>, revision: i64, leaving: &[DrainedUpstream]) {
        let now = Instant::now();
        self.tracker.update_drains(now, settled, revision, leaving);
        self.schedule_count(now);
    }

    /// As [`DrainTracker::elsewhere`].
    pub fn set_other_backends(&mut self, elsewhere: OtherBackends, pending: &BTreeSet<ServiceId>) {
        self.tracker.set_other_backends(elsewhere, pending);
    }

    /// The next count: waits until it is due, for ever if there is nothing to count. Nothing is lost when this is
    /// dropped.
    pub async fn next_count(&mut self) -> SessionCount {
        if let (None, Some(due)) = (&self.running_count, self.due) {
            sleep_until(due.into()).await;
            let services: BTreeSet<ServiceId> = self.tracker.draining_services().into_iter().cloned().collect();
            let everywhere = self.tracker.has_other_sections(&services);
            self.running_count = self.counter.take().map(|mut census| {
                spawn_blocking(move || {
                    let count = census.count_sessions(&services, everywhere);
                    (census, count)
                })
            });
        }
        let (census, count) = await_task(&mut self.running_count).await;
        self.counter = Some(census);
        count
    }

    /// As [`DrainTracker::counted`].
    pub fn apply_count(&mut self, count: &SessionCount, circumstances: DrainContext) {
        self.tracker.apply_count(count, circumstances);
        let now = Instant::now();
        self.due = None;
        self.schedule_count(now + COUNT_EVERY.max(now.duration_since(count.at) * REST_FACTOR));
    }

    /// How it stands.
    pub fn tracker(&self) -> &DrainTracker {
        &self.tracker
    }

    fn schedule_count(&mut self, at: Instant) {
        self.due = if self.tracker.draining_services().is_empty() { None } else { Some(self.due.unwrap_or(at)) };
    }
}

/// Waits for what is under way, for ever if there is nothing. A panic in it is one of confgen's.
pub(crate) async fn await_task<T>(task: &mut Option<JoinHandle<T>>) -> T {
    let Some(running) = task else { return std::future::pending().await };
    let ended = running.await;
    *task = None;
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
