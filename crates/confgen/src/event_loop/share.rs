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
const BACKENDS_A_SECOND: usize = 500;

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
            let Ok((changes, backends)) = changes.inspect_err(|error| tracing::debug!(%error, "can't count requests"))
            else {
                continue;
            };
            rest = COUNT_EVERY.mul_f64((backends as f64 / BACKENDS_A_SECOND as f64).max(1.0));
            let is_new = !changes.grown.is_empty() || !changes.starved.is_empty() || changes.starving != last;
            last = Arc::clone(&changes.starving);
            if is_new && sender.send(changes).await.is_err() {
                return;
            }
        }
    }));
    receiver
}

/// Returns the number of backends too.
fn count_shares(
    tracker: &mut Tracker,
    socket: &Socket,
    desired: &DesiredState,
    series: &SharedSeries,
) -> Result<(ShareChanges, usize), runtime::Error> {
    let (glance, backends) = socket.read_turns(|pid, rows| {
        let rows: Vec<Turns> = rows.collect();
        series.observe_backends(Instant::now(), pid, &rows);
        (tracker.observe_backends(pid, rows.iter().copied(), desired), rows.len())
    })?;
    let mut found = BTreeSet::new();
    if !glance.due.is_empty() {
        match socket.show_servers_of(&glance.due) {
            Ok((pid, rows)) => found = tracker.count_servers(pid, &rows, Instant::now()),
            // The sections that grew must be requeued now. The servers are asked again a second later.
            Err(error) => tracing::debug!(%error, "can't count the requests of servers"),
        }
    }
    Ok((ShareChanges { grown: glance.grown, starved: found, starving: Arc::new(tracker.list_starving()) }, backends))
}
