//! Paces the restoration of a record that another writer deletes or overwrites. Pure: no clock.

use std::time::{Duration, Instant};

/// Pause before the first restoration. It is long enough to notice that the lease ended, and for an operator's command
/// to finish.
const FIRST_PAUSE: Duration = Duration::from_millis(150);

/// Longest pause. A writer that deletes the record again and again costs etcd two writes in this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Time without a loss after which the pauses start anew.
const CALM: Duration = Duration::from_secs(120);

/// Losses in a row, and the last one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RestorePacer {
    in_a_row: u32,
    last: Option<Instant>,
}

impl RestorePacer {
    /// Pause before a record that was lost at `now` is restored. It doubles with each loss.
    pub(crate) fn next_pause(&mut self, now: Instant) -> Duration {
        let is_calm = self.last.is_none_or(|last| now.saturating_duration_since(last) > CALM);
        self.in_a_row = if is_calm { 0 } else { self.in_a_row.saturating_add(1) };
        self.last = Some(now);
        FIRST_PAUSE.saturating_mul(2u32.saturating_pow(self.in_a_row)).min(LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_that_comes_again_and_again_is_answered_ever_more_slowly() {
        let (mut restores, now) = (RestorePacer::default(), Instant::now());
        let pauses: Vec<_> = (0..40).map(|_| restores.next_pause(now)).collect();
        assert_eq!((pauses[0], pauses[1], pauses[39]), (FIRST_PAUSE, FIRST_PAUSE * 2, LONGEST_PAUSE));
        assert_eq!(restores.next_pause(now + CALM * 2), FIRST_PAUSE);
    }
}
