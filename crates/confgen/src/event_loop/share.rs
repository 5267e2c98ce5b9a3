//! Asks HAProxy how often it chose each server. `status/share.rs` decides which servers starve, and `status/series.rs` keeps the
//! traffic of each service from the same answers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use haproxy::runtime::{self, Socket, Turns};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::desired::DesiredState;
use crate::status::Status;
use crate::status::activity::Activities;
use crate::status::series::SharedSeries;
pub use crate::status::share::Starving;
use crate::status::share::Tracker;

/// A server that goes down and comes up again takes longer than this, unless a profile says otherwise: two checks pass, one half a
/// second or a second after it went down, the other a second later.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// At most this many backends are counted in a second on average. A row takes HAProxy and confgen some 5 µs each, so this is half a
/// percent of one processor. A limit by the time that a count takes would count less on a busy machine.
const BACKENDS_A_SECOND: f64 = 500.0;

/// At most this many servers in use are counted in a second on average. HAProxy walks through a backend's servers for its row, and looks at
/// no socket meanwhile. 10,000 servers take it 8 ms, and up to 80 ms if their memory is in no cache (2.6).
const SERVERS_A_SECOND: f64 = 1_000.0;

/// The differences to the last count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShareChanges {
    /// Sections in which servers came back, or got more weight.
    pub grown: BTreeSet<String>,
    /// Sections with a server that was just found to starve.
    pub starved: BTreeSet<String>,
    /// All servers that starve.
    pub starving: Arc<Starving>,
}

/// Counts until the shutdown. The receiver gets only counts with differences.
pub fn spawn_share_counter(
    socket: Socket,
    status: watch::Receiver<Status>,
    activities: Activities,
    shutdown: CancellationToken,
) -> mpsc::Receiver<ShareChanges> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        let (mut tracker, mut last) = (Tracker::default(), Arc::<Starving>::default());
        let mut rest = COUNT_EVERY;
        loop {
            tokio::time::sleep(rest).await;
            let (socket, activities) = (socket.clone(), activities.clone());
            let (desired, series) = {
                let status = status.borrow();
                (Arc::clone(&status.reconcile.desired), status.series.clone())
            };
            let mut moved = std::mem::take(&mut tracker);
            let counting = tokio::task::spawn_blocking(move || {
                let _activity = activities.begin("look", "how often HAProxy chose each server");
                let changes = count_shares(&mut moved, &socket, &desired, &series);
                (moved, changes)
            });
            let Ok((back, changes)) = counting.await else { continue };
            tracker = back;
            // The observer notices a HAProxy that doesn't answer.
            let Ok((changes, size)) = changes.inspect_err(|error| tracing::debug!(%error, "can't count requests"))
            else {
                continue;
            };
            rest = size.pause();
            let is_new = !changes.grown.is_empty() || !changes.starved.is_empty() || changes.starving != last;
            last = Arc::clone(&changes.starving);
            if is_new && sender.send(changes).await.is_err() {
                return;
            }
        }
    }));
    receiver
}

/// The size of HAProxy's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CountSize {
    backends: usize,
    /// The servers that take requests.
    servers: u64,
}

impl CountSize {
    fn of(rows: &[Turns<'_>]) -> Self {
        Self { backends: rows.len(), servers: rows.iter().map(|row| row.active.saturating_add(row.backup)).sum() }
    }

    /// The pause until the next count.
    fn pause(self) -> Duration {
        let seconds = (self.backends as f64 / BACKENDS_A_SECOND).max(self.servers as f64 / SERVERS_A_SECOND);
        COUNT_EVERY.mul_f64(seconds.max(1.0))
    }
}

fn count_shares(
    tracker: &mut Tracker,
    socket: &Socket,
    desired: &DesiredState,
    series: &SharedSeries,
) -> Result<(ShareChanges, CountSize), runtime::Error> {
    let (glance, size) = socket.read_turns(|pid, rows| {
        let rows: Vec<Turns> = rows.collect();
        series.observe_backends(Instant::now(), pid, &rows);
        (tracker.observe_backends(pid, rows.iter().copied(), desired), CountSize::of(&rows))
    })?;
    let mut found = BTreeSet::new();
    if !glance.due.is_empty() {
        match socket.show_servers_of(&glance.due) {
            Ok((pid, rows)) => found = tracker.count_servers(pid, &rows, Instant::now()),
            // The sections that grew must be requeued now. The servers are asked again a second later.
            Err(error) => tracing::debug!(%error, "can't count the requests of servers"),
        }
    }
    Ok((ShareChanges { grown: glance.grown, starved: found, starving: Arc::new(tracker.list_starving()) }, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_store_is_counted_less_often() {
        let pause = |backends, servers| CountSize { backends, servers }.pause();
        assert_eq!(pause(0, 0), COUNT_EVERY);
        assert_eq!(pause(500, 1_000), COUNT_EVERY);
        assert_eq!(pause(1_000, 1_000), COUNT_EVERY * 2, "many services with an upstream each");
        assert_eq!(pause(1_000, 10_000), COUNT_EVERY * 10, "many upstreams");
    }
}
