//! The way out of the store: `drain` and the wait for the balancers, then the last writes.

use std::time::Duration;

use discovery::UpstreamState;
use registry::{Client, LeaseId};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    registrar::Registrar,
    retry::{self, StoreError},
    state::Action,
};

/// How long `drain` may take to be written: an election (2 s seen) and a frozen member (noticed after 2 to 5 s) fit in.
pub(crate) const DRAIN_WRITE: Duration = Duration::from_secs(5);

/// The wait after `drain`, until balancers acknowledge it themselves: 2 s between restarts (confgen's
/// `--restart-interval`), 1 s for a restart, and HAProxy's 4 s `timeout http-keep-alive`, in which an old process sends
/// an idle client's next request to any upstream it knew.
pub(crate) const DRAIN_WAIT: Duration = Duration::from_secs(7);

/// How long the last writes may take together, and how long after a second signal.
pub(crate) const WITHDRAW: Duration = Duration::from_secs(5);
pub(crate) const WITHDRAW_IN_HASTE: Duration = Duration::from_secs(2);

/// The lease of everything we announce, and what renews it.
#[derive(Clone)]
pub(crate) struct Lease {
    pub(crate) client: Client,
    pub(crate) held: watch::Receiver<Option<LeaseId>>,
    /// Ends the renewal.
    pub(crate) holding: CancellationToken,
}

impl Lease {
    /// Has a lease renewed in the background from now on.
    pub(crate) fn hold(client: Client, ttl: Duration) -> Self {
        let holding = CancellationToken::new();
        Self { held: client.hold(ttl, holding.clone()), client, holding }
    }

    async fn revoke(&self, deadline: Instant) -> Result<(), StoreError> {
        self.holding.cancel();
        let held = *self.held.borrow();
        match held {
            Some(lease) => retry::until(deadline, || self.client.revoke(lease)).await,
            None => Ok(()),
        }
    }
}

/// Tells the balancers and gives them the time to act on it.
pub(crate) async fn drain(registrar: &Registrar, wait: Duration) {
    match registrar.write(UpstreamState::Drain, Instant::now() + DRAIN_WRITE).await {
        Ok(true) => {
            tracing::info!(key = registrar.key(), wait = %humantime::format_duration(wait), "draining");
            sleep(wait).await;
        }
        Ok(false) => tracing::info!(key = registrar.key(), "no record of ours in the store: nothing to drain"),
        Err(error) => tracing::warn!(
            key = registrar.key(),
            %error,
            "balancers can't be told to drain: stopping without it, their own checks have to notice"
        ),
    }
}

/// The last writes, in the order of the actions; those that are no writes are not ours. They end in time, whatever
/// etcd does: the lease ends by itself.
pub(crate) async fn withdraw(registrar: Option<&Registrar>, lease: &Lease, actions: &[Action], limit: Duration) {
    let deadline = Instant::now() + limit;
    for action in actions {
        let done = match (action, registrar) {
            (Action::WriteDown, Some(registrar)) => registrar.write(UpstreamState::Down, deadline).await.map(drop),
            (Action::Delete, Some(registrar)) => registrar.delete(deadline).await.map(drop),
            (Action::Revoke, _) => lease.revoke(deadline).await,
            _ => Ok(()),
        };
        if let Err(error) = done {
            tracing::warn!(%error, ?action, "the record can't be withdrawn: it stays until its lease ends by itself");
            lease.holding.cancel();
            return;
        }
    }
}
