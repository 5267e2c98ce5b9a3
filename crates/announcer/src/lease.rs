//! The lease of all records of this announcer, and its renewal. `registry` runs the task.

use std::sync::Arc;

use registry::{Client, LeaseId, LeaseStats};
use tokio::sync::{Notify, watch};

use tokio::time::{Duration, Instant, timeout_at};
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
        Self::resume(client, ttl, None)
    }

    /// The same with the lease of an earlier process, as long as etcd has it.
    pub(crate) fn resume(client: Client, ttl: Duration, resumed: Option<LeaseId>) -> Self {
        let (stop_renewal, (counted, stats)) = (CancellationToken::new(), watch::channel(LeaseStats::default()));
        let renew_now = Arc::<Notify>::default();
        let id = client.keep_lease_with_stats(ttl, resumed, stop_renewal.clone(), counted, renew_now.clone());
        Self { id, client, stats, renew_now, stop_renewal, ttl }
    }

    /// A lease that another process holds and renews. Its keys may be changed under it.
    pub(crate) fn of_agent(client: Client, lease: LeaseId) -> Self {
        let (_, stats) = watch::channel(LeaseStats::default());
        let (_, id) = watch::channel(Some(lease));
        Self {
            id,
            client,
            stats,
            renew_now: Arc::default(),
            stop_renewal: CancellationToken::new(),
            ttl: Duration::ZERO,
        }
    }

    /// Renews the lease now, and waits for that until the deadline.
    pub(crate) async fn renew_once(&self, deadline: Instant) {
        let mut stats = self.stats.clone();
        let before = stats.borrow().renewed;
        self.renew_now.notify_one();
        let _ = timeout_at(deadline, stats.wait_for(|stats| stats.renewed > before)).await;
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
