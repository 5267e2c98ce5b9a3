//! The lease of all records of this announcer, and its renewal. `registry` runs the task.

use std::sync::Arc;

use registry::{Client, LeaseId, LeaseStats};
use tokio::sync::{Notify, watch};

use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use crate::retry;
use crate::retry::StoreError;

/// Handle of the lease. Clones refer to one lease.
#[derive(Clone)]
pub(crate) struct Lease {
    pub(crate) client: Client,
    pub(crate) id: watch::Receiver<Option<LeaseId>>,
    /// Counts of renewals, for metrics and `/ready`.
    pub(crate) stats: watch::Receiver<LeaseStats>,
    /// Requests a renewal at once: a record disappeared, so the lease may have ended.
    pub(crate) renew_now: Arc<Notify>,
    /// Cancelled at the end. The lease then ends by itself.
    pub(crate) stop_renewal: CancellationToken,
    pub(crate) ttl: Duration,
}

impl Lease {
    /// Starts to grant and renew a lease in the background.
    pub(crate) fn keep_alive(client: Client, ttl: Duration) -> Self {
        let (stop_renewal, (counted, stats)) = (CancellationToken::new(), watch::channel(LeaseStats::default()));
        let renew_now = Arc::<Notify>::default();
        let id = client.keep_lease_with_stats(ttl, stop_renewal.clone(), counted, renew_now.clone());
        Self { id, client, stats, renew_now, stop_renewal, ttl }
    }

    pub(crate) async fn revoke(&self, deadline: Instant) -> Result<(), StoreError> {
        // First: a renewal task that finds the lease gone would grant a new one.
        self.stop_renewal.cancel();
        let held = *self.id.borrow();
        match held {
            Some(lease) => retry::retry_until(deadline, || self.client.revoke_lease(lease)).await,
            None => Ok(()),
        }
    }
}
