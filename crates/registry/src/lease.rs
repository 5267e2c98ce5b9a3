//! Leases, and the loop that keeps one.
//!
//! The loop revokes nothing. The program does that, in the order that it needs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::LeaseTimeToLiveOptions;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::backoff::EndpointDelays;
use crate::classification::Failure;
use crate::client::{Client, REQUEST_TIMEOUT, Repeat};
use crate::connect::Connection;
use crate::entry::LeaseId;
use crate::error::{Error, Operation};

/// etcd grants whole seconds, and never fewer than 2.
const MIN_TTL_SECONDS: u64 = 2;

/// A step of the lease loop. A lease of some seconds must outlive a member that became silent.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);

/// Counters of a lease's renewals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseStats {
    /// The number of grants and renewals.
    pub renewed: u64,
    /// The number of attempts that failed, because etcd could not be reached or refused them.
    pub failed: u64,
    /// The time at which the last grant or renewal was requested. The lease lives for its TTL from then on, at least. `None`
    /// without a lease.
    pub renewed_at: Option<Instant>,
    /// True if the last attempt failed.
    pub is_failing: bool,
}

impl Client {
    /// Grants a lease. etcd counts whole seconds and grants at least 2.
    pub async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, Error> {
        let seconds = whole_seconds(ttl);
        // A second attempt may leave a lease that has no key, and ends by itself.
        let granted = self.call_with_repeats(
            &Operation::Grant,
            REQUEST_TIMEOUT,
            Repeat::Always,
            |mut connection: Connection| async move { connection.lease.grant(seconds, None).await },
        );
        Ok(LeaseId(granted.await?.id()))
    }

    /// Revokes a lease, which deletes all its keys. A lease that has ended is no error.
    pub async fn revoke_lease(&self, lease: LeaseId) -> Result<(), Error> {
        let operation = Operation::Revoke(lease);
        let revoked = self.call_with_repeats(
            &operation,
            REQUEST_TIMEOUT,
            Repeat::Always,
            |mut connection: Connection| async move { connection.lease.revoke(lease.0).await },
        );
        match revoked.await {
            Ok(_) | Err(Error::LeaseNotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The keys that hang on a lease, relative to the prefix. `None` if the lease has ended.
    pub async fn lease_keys(&self, lease: LeaseId) -> Result<Option<Vec<String>>, Error> {
        let operation = Operation::TimeToLive(lease);
        let answer = self.call_with_repeats(
            &operation,
            REQUEST_TIMEOUT,
            Repeat::Always,
            |mut connection: Connection| async move {
                connection.lease.time_to_live(lease.0, Some(LeaseTimeToLiveOptions::new().with_keys())).await
            },
        );
        let answer = answer.await?;
        let prefix = &self.config().prefix;
        Ok((answer.ttl() >= 0).then(|| answer.keys().iter().map(|key| prefix.relative_key(key)).collect()))
    }

    /// The remaining time of a lease without a further renewal. `None` if it has ended.
    pub async fn time_to_live(&self, lease: LeaseId) -> Result<Option<Duration>, Error> {
        let operation = Operation::TimeToLive(lease);
        let answer = self.call_with_repeats(
            &operation,
            REQUEST_TIMEOUT,
            Repeat::Always,
            |mut connection: Connection| async move { connection.lease.time_to_live(lease.0, None).await },
        );
        // etcd answers -1 for a lease that has ended.
        Ok(u64::try_from(answer.await?.ttl()).ok().map(Duration::from_secs))
    }

    /// Keeps a lease until `shutdown`, over all failures of etcd.
    ///
    /// The receiver has the lease. It is `None` before the first grant, and between the end of a lease and the next grant.
    /// After the end of a lease its keys are gone, and the program writes them again under the new one. While etcd can't be
    /// reached, the lease stays. The loop revokes nothing at the end.
    pub fn keep_lease(&self, ttl: Duration, shutdown: CancellationToken) -> watch::Receiver<Option<LeaseId>> {
        self.keep_lease_with_stats(ttl, None, shutdown, watch::Sender::default(), Arc::default())
    }

    /// Keeps a lease as [`Client::keep_lease`] does, and updates `stats` at each renewal. Readers poll them.
    ///
    /// `resumed` is a lease of an earlier process. It is renewed instead of the first grant, and the receiver has it once
    /// that succeeds. A notification of `doubt` renews the lease at once instead of at its next time. The program sends it
    /// if a key of the lease has disappeared.
    pub fn keep_lease_with_stats(
        &self,
        ttl: Duration,
        resumed: Option<LeaseId>,
        shutdown: CancellationToken,
        stats: watch::Sender<LeaseStats>,
        doubt: Arc<Notify>,
    ) -> watch::Receiver<Option<LeaseId>> {
        let (publish, held) = watch::channel(None);
        let client = self.clone();
        tokio::spawn(async move {
            shutdown.run_until_cancelled(run_lease_loop(client, ttl, resumed, publish, stats, doubt)).await
        });
        held
    }

    async fn renew_once(&self, lease: LeaseId) -> Result<(), Failure> {
        // A stream for each renewal: an open one answers "ttl 0" for a lease that has ended again and again, and never
        // reconnects.
        let operation = Operation::KeepAlive(lease);
        let renewed = self.call_once(&operation, STEP_TIMEOUT, |mut connection: Connection| async move {
            connection.lease.keep_alive(lease.0).await
        });
        renewed.await.map(drop)
    }

    async fn grant_once(&self, ttl: Duration) -> Result<LeaseId, Failure> {
        let seconds = whole_seconds(ttl);
        let granted = self.call_once(&Operation::Grant, STEP_TIMEOUT, |mut connection: Connection| async move {
            connection.lease.grant(seconds, None).await
        });
        granted.await.map(|granted| LeaseId(granted.id()))
    }
}

/// The result of one step of the loop.
#[derive(Debug)]
enum StepResult {
    Granted(LeaseId),
    Renewed,
    /// The lease has expired or was revoked.
    Ended,
    Failed(Error),
}

/// The next step of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextStep {
    /// Renew the lease after the usual interval.
    RenewLater,
    /// Grant another lease at once.
    GrantNow,
    /// Repeat the step after a delay.
    RetryLater,
}

impl LeaseStats {
    /// The counters after one more step, which was requested at `requested_at`.
    fn after_step(self, result: &StepResult, requested_at: Instant) -> Self {
        match result {
            StepResult::Granted(_) | StepResult::Renewed => {
                Self { renewed: self.renewed + 1, renewed_at: Some(requested_at), is_failing: false, ..self }
            }
            StepResult::Ended => Self { renewed_at: None, is_failing: false, ..self },
            StepResult::Failed(_) => Self { failed: self.failed + 1, is_failing: true, ..self },
        }
    }
}

/// Decides on the lease and the next step. Only etcd's own word ends a lease: after a restart, etcd renews every lease that
/// it finds.
fn decide_next_step(held: Option<LeaseId>, result: &StepResult) -> (Option<LeaseId>, NextStep) {
    match result {
        StepResult::Granted(lease) => (Some(*lease), NextStep::RenewLater),
        StepResult::Renewed => (held, NextStep::RenewLater),
        StepResult::Ended => (None, NextStep::GrantNow),
        StepResult::Failed(_) => (held, NextStep::RetryLater),
    }
}

async fn run_lease_loop(
    client: Client,
    ttl: Duration,
    resumed: Option<LeaseId>,
    publish: watch::Sender<Option<LeaseId>>,
    stats: watch::Sender<LeaseStats>,
    doubt: Arc<Notify>,
) {
    let mut delays = EndpointDelays::new(client.config().endpoints().len());
    let mut held = resumed;
    loop {
        let requested_at = Instant::now();
        let result = match held {
            None => client.grant_once(ttl).await.map(StepResult::Granted),
            Some(lease) => client.renew_once(lease).await.map(|()| StepResult::Renewed),
        };
        let result = result.unwrap_or_else(|failure| match failure.error {
            Error::LeaseNotFound { .. } => StepResult::Ended,
            error => StepResult::Failed(error),
        });
        log_step(&result, stats.borrow().is_failing);
        stats.send_modify(|stats| *stats = stats.after_step(&result, requested_at));
        let (now, next) = decide_next_step(held, &result);
        held = now;
        // A renewal changes nothing for the receivers, so it wakes none.
        // A failure changes no lease, and a lease of an earlier process is published once etcd has confirmed it.
        if !matches!(result, StepResult::Failed(_)) {
            publish.send_if_modified(|published| std::mem::replace(published, now) != now);
        }
        let delay = match next {
            NextStep::RenewLater => {
                delays.reset();
                // A doubt counts only here. In the other steps etcd is asked soon enough.
                let _ = tokio::time::timeout(renewal_delay(ttl, fastrand::f64()), doubt.notified()).await;
                continue;
            }
            NextStep::GrantNow => Duration::ZERO,
            NextStep::RetryLater => delays.next_delay(),
        };
        tokio::time::sleep(delay).await;
    }
}

/// Logs the first failure and the recovery. The failures in between are debug lines.
fn log_step(result: &StepResult, was_failing: bool) {
    match result {
        StepResult::Granted(lease) => tracing::info!(%lease, "lease granted"),
        StepResult::Renewed if was_failing => tracing::info!("etcd answers again, and the lease is alive"),
        StepResult::Renewed => {}
        StepResult::Ended => tracing::warn!("lease ended, granting another one"),
        StepResult::Failed(error) if was_failing => tracing::debug!(%error, "lease renewal fails again"),
        StepResult::Failed(error) => tracing::warn!(%error, "lease renewal failed, retrying"),
    }
}

/// The time until the next renewal. A third of the TTL leaves two more attempts. Up to a fifth less at random, so that
/// clients that began together drift apart.
fn renewal_delay(ttl: Duration, random: f64) -> Duration {
    (ttl / 3).mul_f64(1.0 - 0.2 * random)
}

fn whole_seconds(ttl: Duration) -> i64 {
    // Rounded up: a lease must not end before its TTL.
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
                operation: Operation::Grant,
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
    fn renewals_are_counted() {
        let (first, later) = (Instant::now(), Instant::now() + STEP_TIMEOUT);
        let failed = StepResult::Failed(Error::Silent {
            endpoint: "http://e".into(),
            operation: Operation::Grant,
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
    fn renewals_come_within_a_third_of_the_ttl() {
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
