//! Leases, and the loop that holds one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::classification::Failure;
use crate::client::{Client, REQUEST_TIMEOUT, Repeat};
use crate::connect::Connection;
use crate::entry::LeaseId;
use crate::error::{Error, Operation};
use crate::retry::Retry;

/// etcd grants whole seconds, and never fewer than 2.
const MIN_TTL_SECONDS: u64 = 2;

/// A step of the lease loop, so that even a lease of some seconds lives over a member that went silent.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);

impl From<i64> for LeaseId {
    fn from(id: i64) -> Self {
        Self(id)
    }
}

/// How the renewal of a lease goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseStats {
    /// How often a lease was granted or renewed.
    pub renewed: u64,
    /// How often that failed, since etcd could not be reached or refused it.
    pub failed: u64,
    /// When the last one that was done was asked for: the lease lives for its TTL from then on, at least.
    pub renewed_at: Option<Instant>,
    /// The last one failed.
    pub is_failing: bool,
}

impl Client {
    /// A new lease. etcd counts in whole seconds and grants at least 2.
    pub async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, Error> {
        let seconds = whole_seconds(ttl);
        let run = |mut connection: Connection| async move { connection.lease.grant(seconds, None).await };
        // Doing it twice leaves a lease behind that nobody uses and that ends by itself.
        let granted = self.call_with_repeats(&Operation::Grant, REQUEST_TIMEOUT, Repeat::Always, run).await?;
        Ok(LeaseId(granted.id()))
    }

    /// Ends a lease, and every key with it. One that has ended already is fine.
    pub async fn revoke_lease(&self, lease: LeaseId) -> Result<(), Error> {
        let run = |mut connection: Connection| async move { connection.lease.revoke(lease.0).await };
        match self.call_with_repeats(&Operation::Revoke(lease), REQUEST_TIMEOUT, Repeat::Always, run).await {
            Ok(_) | Err(Error::LeaseNotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// How long a lease will live if nobody renews it, None if it has ended.
    pub async fn time_to_live(&self, lease: LeaseId) -> Result<Option<Duration>, Error> {
        let run = |mut connection: Connection| async move { connection.lease.time_to_live(lease.0, None).await };
        let answer =
            self.call_with_repeats(&Operation::TimeToLive(lease), REQUEST_TIMEOUT, Repeat::Always, run).await?;
        Ok(u64::try_from(answer.ttl()).ok().map(Duration::from_secs))
    }

    /// Holds a lease until `shutdown`, for ever trying: `Some` while one is held, a new one after a loss (what hung on
    /// the old one is gone, put it again), None before the first grant and between loss and grant. An unreachable etcd
    /// is no loss. Nothing is revoked at the end: that is for the user, in the order it needs.
    pub fn keep_lease(&self, ttl: Duration, shutdown: CancellationToken) -> watch::Receiver<Option<LeaseId>> {
        self.keep_lease_with_stats(ttl, shutdown, watch::Sender::default(), Arc::default())
    }

    /// The same, and leaves behind how it goes. At every beat: for looking at, not for waiting on. `doubt` has the lease
    /// renewed at once instead of at its next beat: notify it where a key that hung on the lease is gone.
    pub fn keep_lease_with_stats(
        &self,
        ttl: Duration,
        shutdown: CancellationToken,
        beats: watch::Sender<LeaseStats>,
        doubt: Arc<Notify>,
    ) -> watch::Receiver<Option<LeaseId>> {
        let (publish, held) = watch::channel(None);
        let client = self.clone();
        tokio::spawn(
            async move { shutdown.run_until_cancelled(run_lease_loop(client, ttl, publish, beats, doubt)).await },
        );
        held
    }

    /// Renews a lease once. A stream for each beat: one that is kept open goes on answering "ttl 0" for a lease that
    /// has ended, and never reconnects.
    async fn renew_once(&self, lease: LeaseId) -> Result<(), Failure> {
        let run = |mut connection: Connection| async move { connection.lease.keep_alive(lease.0).await };
        self.call_once(&Operation::KeepAlive(lease), STEP_TIMEOUT, run).await.map(drop)
    }

    async fn grant_once(&self, ttl: Duration) -> Result<LeaseId, Failure> {
        let seconds = whole_seconds(ttl);
        let run = |mut connection: Connection| async move { connection.lease.grant(seconds, None).await };
        self.call_once(&Operation::Grant, STEP_TIMEOUT, run).await.map(|granted| LeaseId(granted.id()))
    }
}

/// What one step of the loop brought.
#[derive(Debug)]
enum StepResult {
    Granted(LeaseId),
    Renewed,
    Ended,
    Failed(Error),
}

/// What to do after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextStep {
    /// Renew at the next beat.
    RenewLater,
    /// The lease is lost: grant another one now.
    GrantNow,
    /// Try the same again after a back-off.
    RetryLater,
}

impl LeaseStats {
    /// What is known after one more step, asked for at this moment.
    fn after_step(self, beat: &StepResult, asked: Instant) -> Self {
        match beat {
            StepResult::Granted(_) | StepResult::Renewed => {
                Self { renewed: self.renewed + 1, renewed_at: Some(asked), is_failing: false, ..self }
            }
            StepResult::Ended => Self { renewed_at: None, is_failing: false, ..self },
            StepResult::Failed(_) => Self { failed: self.failed + 1, is_failing: true, ..self },
        }
    }
}

/// The lease is kept over every failure but etcd's own word that it has ended.
fn decide_next_step(held: Option<LeaseId>, beat: &StepResult) -> (Option<LeaseId>, NextStep) {
    match beat {
        StepResult::Granted(lease) => (Some(*lease), NextStep::RenewLater),
        StepResult::Renewed => (held, NextStep::RenewLater),
        StepResult::Ended => (None, NextStep::GrantNow),
        StepResult::Failed(_) => (held, NextStep::RetryLater),
    }
}

async fn run_lease_loop(
    client: Client,
    ttl: Duration,
    publish: watch::Sender<Option<LeaseId>>,
    beats: watch::Sender<LeaseStats>,
    doubt: Arc<Notify>,
) {
    let mut retry = Retry::new(client.config().endpoints().len());
    let mut held = None;
    loop {
        let asked = Instant::now();
        let beat = match held {
            None => client.grant_once(ttl).await.map(StepResult::Granted),
            Some(lease) => client.renew_once(lease).await.map(|()| StepResult::Renewed),
        };
        let beat = beat.unwrap_or_else(|failure| match failure.error {
            Error::LeaseNotFound { .. } => StepResult::Ended,
            error => StepResult::Failed(error),
        });
        log_step(&beat, beats.borrow().is_failing);
        beats.send_modify(|beats| *beats = beats.after_step(&beat, asked));
        let (now, next) = decide_next_step(held, &beat);
        held = now;
        publish.send_if_modified(|published| std::mem::replace(published, now) != now);
        let delay = match next {
            NextStep::RenewLater => {
                retry.reset();
                // Only a lease that is thought to live can be doubted: any other is asked for soon enough.
                let beat = renewal_delay(ttl, fastrand::f64());
                let _ = tokio::time::timeout(beat, doubt.notified()).await;
                continue;
            }
            NextStep::GrantNow => Duration::ZERO,
            NextStep::RetryLater => retry.next_delay(),
        };
        tokio::time::sleep(delay).await;
    }
}

/// Says what happens once, not at each beat.
fn log_step(beat: &StepResult, was_failing: bool) {
    match beat {
        StepResult::Granted(lease) => tracing::info!(%lease, "lease granted"),
        StepResult::Renewed if was_failing => tracing::info!("etcd answers again, the lease is alive"),
        StepResult::Renewed => {}
        StepResult::Ended => tracing::warn!("the lease has ended, granting another one"),
        StepResult::Failed(error) if was_failing => tracing::debug!(%error, "still trying"),
        StepResult::Failed(error) => tracing::warn!(%error, "the lease can't be renewed for now, trying on"),
    }
}

/// A third of the TTL leaves two more tries; up to a fifth less, so that those who began together drift apart.
fn renewal_delay(ttl: Duration, random: f64) -> Duration {
    (ttl / 3).mul_f64(1.0 - 0.2 * random)
}

fn whole_seconds(ttl: Duration) -> i64 {
    let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
    i64::try_from(seconds.max(MIN_TTL_SECONDS)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD: Option<LeaseId> = Some(LeaseId(7));

    #[test]
    fn only_etcds_own_word_ends_a_lease() {
        let unreachable = || {
            StepResult::Failed(Error::Silent {
                endpoint: "http://e".into(),
                act: Operation::Grant,
                limit: STEP_TIMEOUT,
            })
        };
        assert_eq!(decide_next_step(None, &StepResult::Granted(LeaseId(7))), (HELD, NextStep::RenewLater));
        assert_eq!(decide_next_step(HELD, &StepResult::Renewed), (HELD, NextStep::RenewLater));
        assert_eq!(decide_next_step(HELD, &unreachable()), (HELD, NextStep::RetryLater));
        assert_eq!(decide_next_step(None, &unreachable()), (None, NextStep::RetryLater));
        assert_eq!(decide_next_step(HELD, &StepResult::Ended), (None, NextStep::GrantNow));
    }

    #[test]
    fn beats_are_counted() {
        let (first, later) = (Instant::now(), Instant::now() + STEP_TIMEOUT);
        let failed = StepResult::Failed(Error::Silent {
            endpoint: "http://e".into(),
            act: Operation::Grant,
            limit: STEP_TIMEOUT,
        });
        let granted = LeaseStats::default().after_step(&StepResult::Granted(LeaseId(7)), first);
        let now = granted.after_step(&failed, later);
        assert_eq!(now, LeaseStats { renewed: 1, failed: 1, renewed_at: Some(first), is_failing: true });
        let alive = now.after_step(&StepResult::Renewed, later);
        assert_eq!(alive, LeaseStats { renewed: 2, failed: 1, renewed_at: Some(later), is_failing: false });
        assert_eq!(alive.after_step(&StepResult::Ended, later).renewed_at, None, "what has ended was not renewed");
    }

    #[test]
    fn beats_come_within_a_third_of_the_ttl() {
        let ttl = Duration::from_secs(9);
        assert_eq!(renewal_delay(ttl, 0.0), Duration::from_secs(3));
        assert!(renewal_delay(ttl, 1.0) >= Duration::from_millis(2399));
    }

    #[test]
    fn ttls_are_whole_seconds() {
        assert_eq!(whole_seconds(Duration::ZERO), 2);
        assert_eq!(whole_seconds(Duration::from_millis(2001)), 3);
        assert_eq!(whole_seconds(Duration::MAX), i64::MAX);
    }

    #[test]
    fn a_lease_is_printed_as_etcdctl_prints_it() {
        assert_eq!(LeaseId(0x694d_77aa_9e38_260f).to_string(), "694d77aa9e38260f");
    }
}
