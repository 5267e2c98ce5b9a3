//! The delays between attempts, for all programs. Pure: no I/O, no clock. Random numbers only spread the delays.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// A rule for delays: they double from the first to the longest, and never end.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    has_jitter: bool,
}

impl Backoff {
    /// Delays from `first` to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, has_jitter: false }
    }

    /// Adds up to the whole delay to each delay at random, beyond the longest too. Clients that lost etcd in one instant
    /// then return one by one.
    #[must_use]
    pub const fn with_jitter(self) -> Self {
        Self { has_jitter: true, ..self }
    }

    /// The delay after this many earlier failures in a row, without jitter. It suits a state that is compared and copied.
    pub fn delay_after(self, failures: u32) -> Duration {
        self.first.saturating_mul(2_u32.saturating_pow(failures)).min(self.longest)
    }

    /// The delays after the first failure.
    pub fn delays(self) -> Delays {
        let rule =
            ExponentialBuilder::new().with_min_delay(self.first).with_max_delay(self.longest).without_max_times();
        let rule = if self.has_jitter { rule.with_jitter() } else { rule };
        Delays { rule: self, upcoming: rule.build() }
    }
}

/// The delays of one series of failures.
#[derive(Debug)]
pub struct Delays {
    rule: Backoff,
    upcoming: ExponentialBackoff,
}

impl Delays {
    /// The delay after one more failure.
    pub fn next_delay(&mut self) -> Duration {
        // backon ends after `usize::MAX` delays.
        self.upcoming.next().unwrap_or(self.rule.longest)
    }

    /// Begins with the first delay again, after a success.
    pub fn reset(&mut self) {
        *self = self.rule.delays();
    }
}

impl Iterator for Delays {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.next_delay())
    }
}

/// The delays after every endpoint was tried once. A host that was cut off is served again within two seconds of its
/// reconnection: the longest delay with its jitter, and the connection.
const ROUNDS: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_millis(750)).with_jitter();

/// The most delay before the next endpoint. Without it, all clients that lost one member would reach the next one in one
/// instant.
const MAX_ENDPOINT_DELAY: Duration = Duration::from_millis(100);

/// The delays of one outage: a short one before each further endpoint, then [`ROUNDS`].
pub(crate) struct EndpointDelays {
    endpoints: usize,
    failures: usize,
    rounds: Delays,
}

impl EndpointDelays {
    pub(crate) fn new(endpoints: usize) -> Self {
        Self { endpoints: endpoints.max(1), failures: 0, rounds: ROUNDS.delays() }
    }

    /// The delay after one more failed attempt.
    pub(crate) fn next_delay(&mut self) -> Duration {
        self.failures += 1;
        if self.failures.is_multiple_of(self.endpoints) {
            self.rounds.next_delay()
        } else {
            MAX_ENDPOINT_DELAY.mul_f64(fastrand::f64())
        }
    }

    /// The delay after one more failure that a fresh listing or another watch mends. Zero for the first one.
    pub(crate) fn next_delay_but_first(&mut self) -> Duration {
        let is_first = self.failures == 0;
        let delay = self.next_delay();
        if is_first { Duration::ZERO } else { delay }
    }

    /// Begins again after a success.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.endpoints);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next_delays(delays: &mut EndpointDelays, count: usize) -> Vec<Duration> {
        (0..count).map(|_| delays.next_delay()).collect()
    }

    #[test]
    fn delays_without_jitter_double_to_a_bound_and_begin_again_after_a_reset() {
        let mut delays = Backoff::new(Duration::from_secs(1), Duration::from_secs(30)).delays();
        let seconds: Vec<u64> = delays.by_ref().take(7).map(|delay| delay.as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
        let rule = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        assert_eq!([0, 1, 4, 5, u32::MAX].map(|failures| rule.delay_after(failures).as_secs()), [1, 2, 16, 30, 30]);
        delays.reset();
        assert_eq!(delays.next_delay(), Duration::from_secs(1));
    }

    #[test]
    fn delays_grow_to_a_bound_and_never_end() {
        let mut outage = EndpointDelays::new(1);
        let delays = next_delays(&mut outage, 1000);
        assert!(delays[0] >= ROUNDS.first && delays[0] <= ROUNDS.first * 2);
        assert!(delays[10..].iter().all(|delay| (ROUNDS.longest..=ROUNDS.longest * 2).contains(delay)));
        outage.reset();
        assert!(outage.next_delay() <= ROUNDS.first * 2);
    }

    #[test]
    fn every_endpoint_gets_its_turn_before_the_first_wait() {
        let delays = next_delays(&mut EndpointDelays::new(3), 6);
        assert!(delays[0] <= MAX_ENDPOINT_DELAY && delays[1] <= MAX_ENDPOINT_DELAY && delays[2] >= ROUNDS.first);
        assert!(delays[3] <= MAX_ENDPOINT_DELAY && delays[4] <= MAX_ENDPOINT_DELAY && delays[5] >= ROUNDS.first * 2);
    }

    #[test]
    fn a_thousand_that_lost_etcd_together_come_back_spread_out() {
        let mut second: Vec<_> =
            (0..1000).map(|_| next_delays(&mut EndpointDelays::new(1), 5).iter().sum::<Duration>()).collect();
        second.sort();
        let busiest = second.windows(100).map(|some| some[99] - some[0]).min().expect("windows");
        // Two thousand logins a second are no burden for etcd.
        assert!(busiest > Duration::from_millis(50), "100 of 1000 within {busiest:?}");
    }
}
