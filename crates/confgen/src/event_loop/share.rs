//! Asks HAProxy how often it chose each server, so that a server that is up and gets nothing is noticed. Decides nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use haproxy::runtime::{self, Socket};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::desired::DesiredState;
use crate::status::Status;
use crate::status::activity::Activities;
pub use crate::status::share::Starving;
use crate::status::share::Tracker;

/// How often the backends are counted. A check needs longer to find a server down and up again, unless a profile says otherwise.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// So many backends are counted in a second. A row takes HAProxy and confgen some 5 µs each, which makes half a percent of one
/// processor. The time that a count takes says less: a busy machine would be watched less.
const BACKENDS_A_SECOND: usize = 500;

/// What a count has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShareChanges {
    /// Sections in which servers came back, or got more weight.
    pub grown: BTreeSet<String>,
    /// Sections with a server that was just found to starve.
    pub starved: BTreeSet<String>,
    /// All servers that starve.
    pub starving: Arc<Starving>,
}

/// Counts until told to stop. The receiver gets what is new.
pub fn spawn_share_counter(
    socket: Socket,
    report: watch::Receiver<Status>,
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
            let settled = Arc::clone(&report.borrow().reconcile.desired);
            let mut moved = std::mem::take(&mut tracker);
            let counting = tokio::task::spawn_blocking(move || {
                let _activity = activities.begin("look", "how often HAProxy chose each server");
                let seen = count_shares(&mut moved, &socket, &settled);
                (moved, seen)
            });
            let Ok((back, seen)) = counting.await else { continue };
            tracker = back;
            // A HAProxy that doesn't answer is noticed elsewhere.
            let Ok((seen, backends)) = seen.inspect_err(|error| tracing::debug!(%error, "can't count requests")) else {
                continue;
            };
            rest = COUNT_EVERY.mul_f64((backends as f64 / BACKENDS_A_SECOND as f64).max(1.0));
            let is_new = !seen.grown.is_empty() || !seen.starved.is_empty() || seen.starving != last;
            last = Arc::clone(&seen.starving);
            if is_new && sender.send(seen).await.is_err() {
                return;
            }
        }
    }));
    receiver
}

/// Returns the number of backends, too.
fn count_shares(
    tracker: &mut Tracker,
    socket: &Socket,
    settled: &DesiredState,
) -> Result<(ShareChanges, usize), runtime::Error> {
    let (pid, backends) = socket.show_backends()?;
    let glance = tracker.observe_backends(pid, &backends, settled);
    let mut found = BTreeSet::new();
    if !glance.due.is_empty() {
        match socket.show_servers_of(&glance.due) {
            Ok((pid, rows)) => found = tracker.count_servers(pid, &rows, Instant::now()),
            // The sections that grew can't wait for another answer.
            Err(error) => tracing::debug!(%error, "can't count the requests of servers"),
        }
    }
    Ok((
        ShareChanges { grown: glance.grown, starved: found, starving: Arc::new(tracker.list_starving()) },
        backends.len(),
    ))
}
