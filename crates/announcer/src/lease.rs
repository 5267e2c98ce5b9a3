//! The lease that all records of this announcer hang on, and the task that keeps it alive.

use std::sync::Arc;

use registry::{Client, LeaseId, LeaseStats};
use tokio::sync::{Notify, watch};

use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use crate::retry;
use crate::retry::StoreError;

/// The lease of everything we announce, and what renews it.
#[derive(Clone)]
pub(crate) struct Lease {
    pub(crate) client: Client,
    pub(crate) id: watch::Receiver<Option<LeaseId>>,
    /// How its renewal goes.
    pub(crate) stats: watch::Receiver<LeaseStats>,
    /// Has the lease renewed at once: what hung on it is gone.
    pub(crate) renew_now: Arc<Notify>,
    /// Ends the renewal.
    pub(crate) stop_renewal: CancellationToken,
    pub(crate) ttl: Duration,
}

impl Lease {
    /// Has a lease renewed in the background from now on.
    pub(crate) fn keep_alive(client: Client, ttl: Duration) -> Self {
        let (stop_renewal, (counted, stats)) = (CancellationToken::new(), watch::channel(LeaseStats::default()));
        let renew_now = Arc::<Notify>::default();
        let id = client.keep_lease_with_stats(ttl, stop_renewal.clone(), counted, renew_now.clone());
        Self { id, client, stats, renew_now, stop_renewal, ttl }
    }

    pub(crate) async fn revoke(&self, deadline: Instant) -> Result<(), StoreError> {
        self.stop_renewal.cancel();
        let held = *self.id.borrow();
        match held {
            Some(lease) => retry::retry_until(deadline, || self.client.revoke_lease(lease)).await,
            None => Ok(()),
        }
    }
}
