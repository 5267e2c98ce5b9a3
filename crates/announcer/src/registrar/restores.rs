//! The pace at which a record is written again that another hand deletes or writes over. Pure: no clock.

use std::time::{Duration, Instant};

/// The pause before the first restoration. A lease that has ended is noticed within it, and a person's command is over.
const FIRST_PAUSE: Duration = Duration::from_millis(150);

/// The longest pause: whatever deletes the record again and again costs etcd two writes in this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A record that stood for this long starts with the first pause again.
const CALM: Duration = Duration::from_secs(120);

/// The restorations so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RestorePacer {
    in_a_row: u32,
    last: Option<Instant>,
}

impl RestorePacer {
    /// The pause before a record that was lost now is written again.
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
