//! How long to wait before the next attempt.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// The first wait after every endpoint was tried once.
const FIRST: Duration = Duration::from_millis(200);

/// The longest wait before its jitter: a host that was cut off is served again within two seconds of its reconnection.
const LONGEST: Duration = Duration::from_millis(750);

/// The most that the step to another endpoint is put off: those who lost the same member must not all arrive at the
/// next one in one instant.
const STEP: Duration = Duration::from_millis(100);

/// The delays of one outage: a short step to each further endpoint, then rounds that grow to [`LONGEST`], for ever.
pub(crate) struct Retry {
    endpoints: usize,
    failures: usize,
    delays: ExponentialBackoff,
}

impl Retry {
    pub(crate) fn new(endpoints: usize) -> Self {
        Self { endpoints: endpoints.max(1), failures: 0, delays: delays() }
    }

    /// The wait after one more failed attempt.
    pub(crate) fn next_delay(&mut self) -> Duration {
        self.failures += 1;
        if self.failures.is_multiple_of(self.endpoints) {
            // backon adds up to the whole delay as jitter, after the cap.
            self.delays.next().unwrap_or(LONGEST)
        } else {
            STEP.mul_f64(fastrand::f64())
        }
    }

    /// None after a first failure that a fresh start mends.
    pub(crate) fn next_delay_but_first(&mut self) -> Duration {
        let is_first = self.failures == 0;
        let delay = self.next_delay();
        if is_first { Duration::ZERO } else { delay }
    }

    /// Something worked: the next failure is a first one again.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.endpoints);
    }
}

fn delays() -> ExponentialBackoff {
    ExponentialBuilder::new().with_min_delay(FIRST).with_max_delay(LONGEST).without_max_times().with_jitter().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(retry: &mut Retry, count: usize) -> Vec<Duration> {
        (0..count).map(|_| retry.next_delay()).collect()
    }

    #[test]
    fn delays_grow_to_a_bound_and_never_end() {
        let mut retry = Retry::new(1);
        let delays = next(&mut retry, 1000);
        assert!(delays[0] >= FIRST && delays[0] <= FIRST * 2);
        assert!(delays[10..].iter().all(|delay| (LONGEST..=LONGEST * 2).contains(delay)));
        retry.reset();
        assert!(retry.next_delay() <= FIRST * 2);
    }

    #[test]
    fn every_endpoint_gets_its_turn_before_the_first_wait() {
        let delays = next(&mut Retry::new(3), 6);
        assert!(delays[0] <= STEP && delays[1] <= STEP && delays[2] >= FIRST);
        assert!(delays[3] <= STEP && delays[4] <= STEP && delays[5] >= FIRST * 2);
    }

    #[test]
    fn a_thousand_that_lost_etcd_together_come_back_spread_out() {
        let mut second: Vec<_> = (0..1000).map(|_| next(&mut Retry::new(1), 5).iter().sum::<Duration>()).collect();
        second.sort();
        let busiest = second.windows(100).map(|some| some[99] - some[0]).min().expect("windows");
        // Two thousand logins a second are no burden for etcd.
        assert!(busiest > Duration::from_millis(50), "100 of 1000 within {busiest:?}");
    }
}
