//! The way out of the store: `drain` and the wait for the balancers, then the last writes.

use std::time::Duration;

use discovery::UpstreamState;
use registry::{Beats, Client, LeaseId};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    balancers::{Listening, Question},
    group::Want,
    registrar::Registrar,
    retry::{self, StoreError},
    state::Action,
};

/// How long `drain` may take to be written: an election (2 s seen) and a frozen member (noticed after 2 to 5 s) fit in.
pub(crate) const DRAIN_WRITE: Duration = Duration::from_secs(5);

/// The wait after `drain` where balancers can't be heard: 2 s between restarts (confgen's `--restart-interval`), 1 s for
/// a restart, and HAProxy's 4 s `timeout http-keep-alive`, in which an old process sends an idle client's next request to
/// any upstream it knew.
const UNHEARD: Duration = Duration::from_secs(7);

/// How long the last writes may take together, and how long after a second signal.
pub(crate) const WITHDRAW: Duration = Duration::from_secs(5);
pub(crate) const WITHDRAW_IN_HASTE: Duration = Duration::from_secs(2);

/// The lease of everything we announce, and what renews it.
#[derive(Clone)]
pub(crate) struct Lease {
    pub(crate) client: Client,
    pub(crate) held: watch::Receiver<Option<LeaseId>>,
    /// How its renewal goes.
    pub(crate) beats: watch::Receiver<Beats>,
    /// Ends the renewal.
    pub(crate) holding: CancellationToken,
}

impl Lease {
    /// Has a lease renewed in the background from now on.
    pub(crate) fn hold(client: Client, ttl: Duration) -> Self {
        let (holding, (counted, beats)) = (CancellationToken::new(), watch::channel(Beats::default()));
        Self { held: client.hold_counted(ttl, holding.clone(), counted), client, beats, holding }
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

/// Tells the balancers, and waits until none of them sends requests any more, at most this long.
pub(crate) async fn drain(registrar: &Registrar, client: &Client, limit: Duration) {
    let reached = match registrar.reach(Want::Leave(UpstreamState::Drain), Instant::now() + DRAIN_WRITE).await {
        Ok(reached) if reached.ours.is_empty() => {
            return tracing::info!("no record of ours in the store: nothing to drain");
        }
        Ok(reached) => reached,
        Err(error) => {
            return tracing::warn!(
                %error,
                "balancers can't be told to drain: stopping without it, their own checks have to notice"
            );
        }
    };
    let written = Instant::now();
    tracing::info!(records = reached.ours.len(), limit = %humantime::format_duration(limit), "draining");
    let mut listening = Listening::to(client);
    loop {
        let known = &listening.known;
        let missing = known.missing(Question::Acknowledges, &reached);
        if known.is_heard && known.is_empty() {
            return tracing::info!("no balancer is known: nobody to wait for");
        }
        if known.is_heard && missing.is_empty() {
            let took = humantime::format_duration(Duration::from_millis(millis(written.elapsed()))).to_string();
            return tracing::info!(took, "every balancer has acknowledged the drain");
        }
        let end = written + if known.was_heard { limit } else { limit.min(UNHEARD) };
        if Instant::now() >= end {
            return match known.is_heard {
                true => tracing::warn!(?missing, "not every balancer has acknowledged the drain in time"),
                false => tracing::warn!("whether balancers have acknowledged the drain isn't known"),
            };
        }
        let _ = timeout_at(end, listening.next()).await;
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The last writes, in the order of the actions; those that are no writes are not ours. They end in time, whatever
/// etcd does: the lease ends by itself.
pub(crate) async fn withdraw(registrar: &Registrar, lease: &Lease, actions: &[Action], limit: Duration) {
    let deadline = Instant::now() + limit;
    for action in actions {
        let done = match action {
            Action::WriteDown => registrar.reach(Want::Leave(UpstreamState::Down), deadline).await.map(drop),
            Action::Delete => registrar.reach(Want::Gone, deadline).await.map(drop),
            Action::Revoke => lease.revoke(deadline).await,
            _ => Ok(()),
        };
        if let Err(error) = done {
            tracing::warn!(%error, ?action, "the records can't be withdrawn: they stay until their lease ends by itself");
            lease.holding.cancel();
            return;
        }
    }
}
