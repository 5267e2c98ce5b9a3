//! Delays between attempts, and attempts with a deadline. It decides nothing about errors except whether etcd answered.

use std::{sync::Arc, time::Duration};

use registry::Backoff;
use tokio::time::{Instant, sleep_until, timeout_at};

/// Failure of an operation of the store within its deadline.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Error of the last attempt.
    #[error(transparent)]
    Store(Arc<registry::Error>),
    /// No attempt ended before the deadline.
    #[error("etcd didn't answer in time")]
    OutOfTime,
}

impl From<registry::Error> for StoreError {
    fn from(error: registry::Error) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// Delays between attempts at etcd, without end. Their jitter spreads announcers that lost etcd together.
pub(crate) fn store_delays() -> impl Iterator<Item = Duration> {
    Backoff::new(Duration::from_millis(100), Duration::from_millis(750)).with_jitter().delays()
}

/// Delays between looks at this host, without end. A look costs microseconds, and the app's start waits for it.
pub(crate) fn local_delays() -> impl Iterator<Item = Duration> {
    Backoff::new(Duration::from_millis(10), Duration::from_millis(200)).delays()
}

/// Repeats `act` until etcd answers, with success or a refusal, or until the deadline.
pub(crate) async fn retry_until<T, F>(deadline: Instant, mut act: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, registry::Error>>,
{
    let mut delays = store_delays();
    let mut last = StoreError::OutOfTime;
    loop {
        match timeout_at(deadline, act()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if !error.is_unreachable() => return Err(error.into()),
            Ok(Err(error)) => last = error.into(),
            Err(_) => return Err(last),
        }
        let next = Instant::now() + delays.next().unwrap_or_default();
        // No further attempt would fit in.
        if next >= deadline {
            return Err(last);
        }
        sleep_until(next).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_bound_and_never_end() {
        let store: Vec<_> = store_delays().take(1000).collect();
        assert!(store[0] >= Duration::from_millis(100));
        assert!(store.iter().all(|delay| *delay <= Duration::from_secs(4)));
        let local: Vec<_> = local_delays().take(1000).collect();
        assert_eq!((local[0], local[999]), (Duration::from_millis(10), Duration::from_millis(200)));
    }

    #[test]
    fn a_thousand_that_lost_etcd_together_come_back_spread_out() {
        let mut fourth: Vec<Duration> = (0..1000).map(|_| store_delays().take(4).sum()).collect();
        fourth.sort();
        let busiest = fourth.windows(100).map(|some| some[99] - some[0]).min().unwrap();
        assert!(busiest > Duration::from_millis(30), "100 of 1000 within {busiest:?}");
    }

    #[tokio::test]
    async fn an_attempt_that_hangs_ends_with_the_time() {
        let deadline = Instant::now() + Duration::from_millis(20);
        let never = std::future::pending::<Result<(), registry::Error>>;
        let error = retry_until(deadline, never).await.unwrap_err();
        assert!(matches!(error, StoreError::OutOfTime));
        assert!(Instant::now() >= deadline);
    }
}
