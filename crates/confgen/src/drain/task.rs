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
use crate::drain::{Count, DrainContext, DrainTracker, Upstream};
use crate::operator_files::filled::Elsewhere;

/// How often it is counted: a drain's end is known soon, and four questions more a second are nothing to HAProxy.
const COUNT_EVERY: Duration = Duration::from_millis(200);
/// Counts that take long, as of thousands of servers in many old processes, leave HAProxy so many times as long alone.
const REST: u32 = 10;

/// The drains, and whoever counts for them.
pub struct DrainTask {
    draining: DrainTracker,
    /// None while it counts.
    census: Option<SessionCounter>,
    counting: Option<JoinHandle<(SessionCounter, Count)>>,
    /// The next count; none where nothing is on its way out.
    due: Option<Instant>,
}

impl DrainTask {
    /// None yet, of the HAProxys on that socket.
    pub fn of(socket: Socket) -> Self {
        Self { draining: DrainTracker::default(), census: Some(SessionCounter::new(socket)), counting: None, due: None }
    }

    /// As [`DrainTracker::follow`].
    pub fn follow(&mut self, settled: &Arc<DesiredState>, revision: i64, leaving: &[Upstream]) {
        let now = Instant::now();
        self.draining.follow(now, settled, revision, leaving);
        self.plan(now);
    }

    /// As [`DrainTracker::elsewhere`].
    pub fn elsewhere(&mut self, elsewhere: Elsewhere, pending: &BTreeSet<ServiceId>) {
        self.draining.elsewhere(elsewhere, pending);
    }

    /// The next count: waits until it is due, for ever if there is nothing to count. Nothing is lost when this is
    /// dropped.
    pub async fn count(&mut self) -> Count {
        if let (None, Some(due)) = (&self.counting, self.due) {
            sleep_until(due.into()).await;
            let services: BTreeSet<ServiceId> = self.draining.services().into_iter().cloned().collect();
            let everywhere = self.draining.is_elsewhere(&services);
            self.counting = self.census.take().map(|mut census| {
                spawn_blocking(move || {
                    let count = census.count(&services, everywhere);
                    (census, count)
                })
            });
        }
        let (census, count) = finished(&mut self.counting).await;
        self.census = Some(census);
        count
    }

    /// As [`DrainTracker::counted`].
    pub fn counted(&mut self, count: &Count, circumstances: DrainContext) {
        self.draining.counted(count, circumstances);
        let now = Instant::now();
        self.due = None;
        self.plan(now + COUNT_EVERY.max(now.duration_since(count.at) * REST));
    }

    /// How it stands.
    pub fn draining(&self) -> &DrainTracker {
        &self.draining
    }

    fn plan(&mut self, at: Instant) {
        self.due = if self.draining.services().is_empty() { None } else { Some(self.due.unwrap_or(at)) };
    }
}

/// Waits for what is under way, for ever if there is nothing. A panic in it is one of confgen's.
pub(crate) async fn finished<T>(task: &mut Option<JoinHandle<T>>) -> T {
    let Some(running) = task else { return std::future::pending().await };
    let ended = running.await;
    *task = None;
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
