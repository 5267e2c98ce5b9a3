//! Leases, and the loop that holds one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::classification::Failure;
use crate::client::{Client, REQUEST, Repeat};
use crate::connect::Connection;
use crate::entry::LeaseId;
use crate::error::{Act, Error};
use crate::retry::Retry;

/// etcd grants whole seconds, and never fewer than 2.
const SHORTEST: u64 = 2;

/// A step of the lease loop, so that even a lease of some seconds lives over a member that went silent.
const STEP: Duration = Duration::from_secs(2);

impl From<i64> for LeaseId {
    fn from(id: i64) -> Self {
        Self(id)
    }
}

/// How the renewal of a lease goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beats {
    /// How often a lease was granted or renewed.
    pub done: u64,
    /// How often that failed, since etcd could not be reached or refused it.
    pub failed: u64,
    /// When the last one that was done was asked for: the lease lives for its TTL from then on, at least.
    pub last: Option<Instant>,
    /// The last one failed.
    pub is_failing: bool,
}

impl Client {
    /// A new lease. etcd counts in whole seconds and grants at least 2.
    pub async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        let seconds = seconds(ttl);
        let run = |mut connection: Connection| async move { connection.lease.grant(seconds, None).await };
        // Doing it twice leaves a lease behind that nobody uses and that ends by itself.
        let granted = self.call(&Act::Grant, REQUEST, Repeat::Harmless, run).await?;
        Ok(LeaseId(granted.id()))
    }

    /// Ends a lease, and every key with it. One that has ended already is fine.
    pub async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        let run = |mut connection: Connection| async move { connection.lease.revoke(lease.0).await };
        match self.call(&Act::Revoke(lease), REQUEST, Repeat::Harmless, run).await {
            Ok(_) | Err(Error::LeaseNotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// How long a lease will live if nobody renews it, None if it has ended.
    pub async fn time_to_live(&self, lease: LeaseId) -> Result<Option<Duration>, Error> {
        let run = |mut connection: Connection| async move { connection.lease.time_to_live(lease.0, None).await };
        let answer = self.call(&Act::TimeToLive(lease), REQUEST, Repeat::Harmless, run).await?;
        Ok(u64::try_from(answer.ttl()).ok().map(Duration::from_secs))
    }

    /// Holds a lease until `shutdown`, for ever trying: `Some` while one is held, a new one after a loss (what hung on
    /// the old one is gone, put it again), None before the first grant and between loss and grant. An unreachable etcd
    /// is no loss. Nothing is revoked at the end: that is for the user, in the order it needs.
    pub fn hold(&self, ttl: Duration, shutdown: CancellationToken) -> watch::Receiver<Option<LeaseId>> {
        self.hold_counted(ttl, shutdown, watch::Sender::default(), Arc::default())
    }

    /// The same, and leaves behind how it goes. At every beat: for looking at, not for waiting on. `doubt` has the lease
    /// renewed at once instead of at its next beat: notify it where a key that hung on the lease is gone.
    pub fn hold_counted(
        &self,
        ttl: Duration,
        shutdown: CancellationToken,
        beats: watch::Sender<Beats>,
        doubt: Arc<Notify>,
    ) -> watch::Receiver<Option<LeaseId>> {
        let (publish, held) = watch::channel(None);
        let client = self.clone();
        tokio::spawn(async move { shutdown.run_until_cancelled(hold(client, ttl, publish, beats, doubt)).await });
        held
    }

    /// Renews a lease once. A stream for each beat: one that is kept open goes on answering "ttl 0" for a lease that
    /// has ended, and never reconnects.
    async fn beat(&self, lease: LeaseId) -> Result<(), Failure> {
        let run = |mut connection: Connection| async move { connection.lease.keep_alive(lease.0).await };
        self.once(&Act::KeepAlive(lease), STEP, run).await.map(drop)
    }

    async fn grant_once(&self, ttl: Duration) -> Result<LeaseId, Failure> {
        let seconds = seconds(ttl);
        let run = |mut connection: Connection| async move { connection.lease.grant(seconds, None).await };
        self.once(&Act::Grant, STEP, run).await.map(|granted| LeaseId(granted.id()))
    }
}

/// What one step of the loop brought.
#[derive(Debug)]
enum Beat {
    Granted(LeaseId),
    Alive,
    Ended,
    Failed(Error),
}

/// What to do after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Renew at the next beat.
    Beat,
    /// The lease is lost: grant another one now.
    Grant,
    /// Try the same again after a back-off.
    Retry,
}

impl Beats {
    /// What is known after one more step, asked for at this moment.
    fn after(self, beat: &Beat, asked: Instant) -> Self {
        match beat {
            Beat::Granted(_) | Beat::Alive => {
                Self { done: self.done + 1, last: Some(asked), is_failing: false, ..self }
            }
            Beat::Ended => Self { last: None, is_failing: false, ..self },
            Beat::Failed(_) => Self { failed: self.failed + 1, is_failing: true, ..self },
        }
    }
}

/// The lease is kept over every failure but etcd's own word that it has ended.
fn step(held: Option<LeaseId>, beat: &Beat) -> (Option<LeaseId>, Next) {
    match beat {
        Beat::Granted(lease) => (Some(*lease), Next::Beat),
        Beat::Alive => (held, Next::Beat),
        Beat::Ended => (None, Next::Grant),
        Beat::Failed(_) => (held, Next::Retry),
    }
}

async fn hold(
    client: Client,
    ttl: Duration,
    publish: watch::Sender<Option<LeaseId>>,
    beats: watch::Sender<Beats>,
    doubt: Arc<Notify>,
) {
    let mut retry = Retry::new(client.config().endpoints().len());
    let mut held = None;
    loop {
        let asked = Instant::now();
        let beat = match held {
            None => client.grant_once(ttl).await.map(Beat::Granted),
            Some(lease) => client.beat(lease).await.map(|()| Beat::Alive),
        };
        let beat = beat.unwrap_or_else(|failure| match failure.error {
            Error::LeaseNotFound { .. } => Beat::Ended,
            error => Beat::Failed(error),
        });
        report(&beat, beats.borrow().is_failing);
        beats.send_modify(|beats| *beats = beats.after(&beat, asked));
        let (now, next) = step(held, &beat);
        held = now;
        publish.send_if_modified(|published| std::mem::replace(published, now) != now);
        let delay = match next {
            Next::Beat => {
                retry.reset();
                // Only a lease that is thought to live can be doubted: any other is asked for soon enough.
                let beat = interval(ttl, fastrand::f64());
                let _ = tokio::time::timeout(beat, doubt.notified()).await;
                continue;
            }
            Next::Grant => Duration::ZERO,
            Next::Retry => retry.next_delay(),
        };
        tokio::time::sleep(delay).await;
    }
}

/// Says what happens once, not at each beat.
fn report(beat: &Beat, was_failing: bool) {
    match beat {
        Beat::Granted(lease) => tracing::info!(%lease, "lease granted"),
        Beat::Alive if was_failing => tracing::info!("etcd answers again, the lease is alive"),
        Beat::Alive => {}
        Beat::Ended => tracing::warn!("the lease has ended, granting another one"),
        Beat::Failed(error) if was_failing => tracing::debug!(%error, "still trying"),
        Beat::Failed(error) => tracing::warn!(%error, "the lease can't be renewed for now, trying on"),
    }
}

/// A third of the TTL leaves two more tries; up to a fifth less, so that those who began together drift apart.
fn interval(ttl: Duration, random: f64) -> Duration {
    (ttl / 3).mul_f64(1.0 - 0.2 * random)
}

fn seconds(ttl: Duration) -> i64 {
    let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
    i64::try_from(seconds.max(SHORTEST)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD: Option<LeaseId> = Some(LeaseId(7));

    #[test]
    fn only_etcds_own_word_ends_a_lease() {
        let unreachable = || Beat::Failed(Error::Silent { endpoint: "http://e".into(), act: Act::Grant, limit: STEP });
        assert_eq!(step(None, &Beat::Granted(LeaseId(7))), (HELD, Next::Beat));
        assert_eq!(step(HELD, &Beat::Alive), (HELD, Next::Beat));
        assert_eq!(step(HELD, &unreachable()), (HELD, Next::Retry));
        assert_eq!(step(None, &unreachable()), (None, Next::Retry));
        assert_eq!(step(HELD, &Beat::Ended), (None, Next::Grant));
    }

    #[test]
    fn beats_are_counted() {
        let (first, later) = (Instant::now(), Instant::now() + STEP);
        let failed = Beat::Failed(Error::Silent { endpoint: "http://e".into(), act: Act::Grant, limit: STEP });
        let granted = Beats::default().after(&Beat::Granted(LeaseId(7)), first);
        let now = granted.after(&failed, later);
        assert_eq!(now, Beats { done: 1, failed: 1, last: Some(first), is_failing: true });
        let alive = now.after(&Beat::Alive, later);
        assert_eq!(alive, Beats { done: 2, failed: 1, last: Some(later), is_failing: false });
        assert_eq!(alive.after(&Beat::Ended, later).last, None, "what has ended was not renewed");
    }

    #[test]
    fn beats_come_within_a_third_of_the_ttl() {
        let ttl = Duration::from_secs(9);
        assert_eq!(interval(ttl, 0.0), Duration::from_secs(3));
        assert!(interval(ttl, 1.0) >= Duration::from_millis(2399));
    }

    #[test]
    fn ttls_are_whole_seconds() {
        assert_eq!(seconds(Duration::ZERO), 2);
        assert_eq!(seconds(Duration::from_millis(2001)), 3);
        assert_eq!(seconds(Duration::MAX), i64::MAX);
    }

    #[test]
    fn a_lease_is_printed_as_etcdctl_prints_it() {
        assert_eq!(LeaseId(0x694d_77aa_9e38_260f).to_string(), "694d77aa9e38260f");
    }
}
