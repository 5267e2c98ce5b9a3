//! When the next round may begin. Pure: it is told the time.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// How a round ended, as far as the pace is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// HAProxy runs what is wanted; nothing had to be restarted.
    Quiet,
    /// HAProxy runs what is wanted, after a restart.
    Restarted,
    /// It doesn't, and has to be tried again.
    Failed,
}

/// One round at a time; what arrives meanwhile joins the next.
#[derive(Debug)]
pub struct Pace {
    /// How long a change waits for others to join it.
    min_wait: Duration,
    /// Restarts are at least this far apart.
    restart_interval: Duration,
    /// When the oldest change that no round has seen came in.
    waiting_since: Option<Instant>,
    /// No round before this.
    not_before: Option<Instant>,
    /// When what failed is tried again, if nothing changes until then.
    retry_at: Option<Instant>,
    retries: ExponentialBackoff,
}

/// A try that fails is repeated soon, then ever more seldom: what it waits for is mostly a person.
fn retries() -> ExponentialBackoff {
    let delays =
        ExponentialBuilder::new().with_min_delay(Duration::from_secs(1)).with_max_delay(Duration::from_secs(30));
    delays.without_max_times().build()
}

impl Pace {
    /// A pace that has nothing to do yet.
    pub fn new(min_wait: Duration, restart_interval: Duration) -> Self {
        Self { min_wait, restart_interval, waiting_since: None, not_before: None, retry_at: None, retries: retries() }
    }

    /// Something changed. After failed tries it is a reason to try before the delay is over: it may be the remedy.
    pub fn changed(&mut self, now: Instant) {
        self.waiting_since.get_or_insert(now);
    }

    /// When the next round is due; none while there is nothing to do.
    pub fn due(&self) -> Option<Instant> {
        let change = self.waiting_since.map(|since| since + self.min_wait);
        let due = [change, self.retry_at].into_iter().flatten().min()?;
        Some(self.not_before.map_or(due, |earliest| earliest.max(due)))
    }

    /// A round begins: it sees all that has come in so far.
    pub fn began(&mut self) {
        self.waiting_since = None;
        self.retry_at = None;
    }

    /// The round has ended.
    pub fn ended(&mut self, now: Instant, ending: Ending) {
        match ending {
            Ending::Quiet => self.not_before = None,
            Ending::Restarted => self.not_before = Some(now + self.restart_interval),
            Ending::Failed => {
                let delay = self.retries.next().unwrap_or(self.restart_interval).max(self.restart_interval);
                self.not_before = Some(now + self.restart_interval);
                self.retry_at = Some(now + delay);
                return;
            }
        }
        self.retries = retries();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_change_waits_for_others_then_for_the_last_restart() {
        let t = Instant::now();
        let mut pace = Pace::new(SECOND / 10, 2 * SECOND);
        assert_eq!(pace.due(), None);
        pace.changed(t);
        pace.changed(t + SECOND / 20);
        assert_eq!(pace.due(), Some(t + SECOND / 10));
        pace.began();
        pace.changed(t + SECOND);
        pace.ended(t + SECOND, Ending::Restarted);
        assert_eq!(pace.due(), Some(t + 3 * SECOND));
        pace.began();
        pace.ended(t + 3 * SECOND, Ending::Quiet);
        pace.changed(t + 3 * SECOND);
        assert_eq!(pace.due(), Some(t + 3 * SECOND + SECOND / 10));
    }

    #[test]
    fn failures_are_repeated_ever_more_seldom_and_a_change_comes_sooner() {
        let t = Instant::now();
        let mut pace = Pace::new(Duration::ZERO, SECOND);
        let mut delays = Vec::new();
        for _ in 0..7 {
            pace.began();
            pace.ended(t, Ending::Failed);
            delays.push((pace.due().unwrap() - t).as_secs());
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30]);
        pace.changed(t);
        assert_eq!(pace.due(), Some(t + SECOND), "the remedy is tried at once, but for the interval");
    }
}
