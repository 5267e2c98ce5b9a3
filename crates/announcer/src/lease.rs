//! The lease that all records of this announcer hang on, and the task that keeps it alive.

use std::sync::Arc;

use registry::{Beats, Client, LeaseId};
use tokio::sync::{Notify, watch};

use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use crate::retry;
use crate::retry::StoreError;

/// The lease of everything we announce, and what renews it.
#[derive(Clone)]
pub(crate) struct Lease {
    pub(crate) client: Client,
    pub(crate) held: watch::Receiver<Option<LeaseId>>,
    /// How its renewal goes.
    pub(crate) beats: watch::Receiver<Beats>,
    /// Has the lease renewed at once: what hung on it is gone.
    pub(crate) doubt: Arc<Notify>,
    /// Ends the renewal.
    pub(crate) holding: CancellationToken,
    pub(crate) ttl: Duration,
}

impl Lease {
    /// Has a lease renewed in the background from now on.
    pub(crate) fn hold(client: Client, ttl: Duration) -> Self {
        let (holding, (counted, beats)) = (CancellationToken::new(), watch::channel(Beats::default()));
        let doubt = Arc::<Notify>::default();
        let held = client.hold_counted(ttl, holding.clone(), counted, doubt.clone());
        Self { held, client, beats, doubt, holding, ttl }
    }

    pub(crate) async fn revoke(&self, deadline: Instant) -> Result<(), StoreError> {
        self.holding.cancel();
        let held = *self.held.borrow();
        match held {
            Some(lease) => retry::until(deadline, || self.client.revoke(lease)).await,
            None => Ok(()),
        }
    }
}
