//! When a copy takes the slot that `choice` gives it, and when it finds itself one too many. Pure: no clock.

use std::time::{Duration, Instant};

use crate::slots::choice::Opening;

/// Time after which a copy that stands by takes slots, from when its stand-by shows in the store. At the start of a whole
/// fleet, all candidates show by then.
const SETTLE: Duration = Duration::from_secs(1);

/// The same for a stand-by that shows again, as after an outage of etcd. Running copies have their slots again by then: their
/// attempts at etcd are at most 1.5 s apart. A longer time would delay the copy of a host that dies with the etcd that this copy
/// was connected to: it finds that out after 5 s or more.
const RETURN_SETTLE: Duration = Duration::from_millis(2500);

/// Times of the openings that a copy saw.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tempo {
    /// Time since when the stand-by shows without a break. `None` while it doesn't.
    shown_since: Option<Instant>,
    /// True once a stand-by has shown.
    was_shown: bool,
    settle: Duration,
    /// This copy's opening, and the time since when it is open.
    opening: Option<(Opening, Instant)>,
    /// Time since when a copy that runs finds no slot. `None` while it doesn't.
    surplus_since: Option<Instant>,
}

impl Tempo {
    /// Notes if our stand-by shows in a view that follows the store.
    pub(crate) fn note_standby(&mut self, is_shown: bool, now: Instant) {
        if is_shown && self.shown_since.is_none() {
            self.settle = if self.was_shown { RETURN_SETTLE } else { SETTLE };
            self.was_shown = true;
        }
        self.shown_since = is_shown.then(|| self.shown_since.unwrap_or(now));
    }

    /// Notes if a copy that runs finds no slot.
    pub(crate) fn note_surplus(&mut self, is_surplus: bool, now: Instant) {
        self.surplus_since = is_surplus.then(|| self.surplus_since.unwrap_or(now));
    }

    /// Time at which a copy without a slot stops. A view may still show slots whose leases have ended, this copy's own among
    /// them, and a stop can't be taken back. `None` while the copy has found a slot.
    pub(crate) fn surplus_time(&self) -> Option<Instant> {
        Some(self.surplus_since? + SETTLE)
    }

    /// Time at which the opening is taken. `settles` is false for a copy that runs, which doesn't wait.
    pub(crate) fn due_time(
        &mut self,
        found: Option<(Opening, Duration)>,
        settles: bool,
        now: Instant,
    ) -> Option<Instant> {
        let Some((opening, delay)) = found else {
            self.opening = None;
            return None;
        };
        // Another revision of an offered slot is the same opening.
        let known =
            self.opening.filter(|(known, _)| (known.number, known.is_claim) == (opening.number, opening.is_claim));
        let since = known.map_or(now, |(_, since)| since);
        self.opening = Some((opening, since));
        let earliest = if settles { self.shown_since.unwrap_or(now) + self.settle } else { now };
        Some(earliest.max(since + delay))
    }

    /// Time from which the copy takes slots. `None` while its stand-by doesn't show.
    pub(crate) fn settle_time(&self) -> Option<Instant> {
        Some(self.shown_since? + self.settle)
    }

    /// True if the stand-by has shown for long enough.
    pub(crate) fn is_settled(&self, now: Instant) -> bool {
        self.settle_time().is_some_and(|time| now >= time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_millis(350);

    fn opening(number: u16, mod_revision: Option<i64>) -> Opening {
        Opening { number: number.to_string().parse().unwrap(), mod_revision, is_claim: false }
    }

    #[test]
    fn a_copy_waits_for_its_turn_from_when_the_slot_became_free() {
        let (mut tempo, start) = (Tempo::default(), Instant::now());
        tempo.note_standby(true, start);
        let later = start + 10 * SETTLE;
        assert_eq!(tempo.due_time(None, true, later), None);
        let found = Some((opening(1, None), DELAY));
        assert_eq!(tempo.due_time(found, true, later), Some(later + DELAY));
        assert_eq!(tempo.due_time(found, true, later + DELAY / 2), Some(later + DELAY), "it was open before");
        let sooner = Some((opening(1, Some(7)), DELAY / 7));
        assert_eq!(tempo.due_time(sooner, true, later + DELAY / 2), Some(later + DELAY / 7), "a better one has gone");
        let other = Some((opening(2, None), DELAY));
        assert_eq!(tempo.due_time(other, true, later + DELAY), Some(later + 2 * DELAY), "another slot");
    }

    #[test]
    fn a_copy_is_one_too_many_only_if_it_stays_so() {
        let (mut tempo, start) = (Tempo::default(), Instant::now());
        assert_eq!(tempo.surplus_time(), None);
        tempo.note_surplus(true, start);
        tempo.note_surplus(true, start + SETTLE / 2);
        assert_eq!(tempo.surplus_time(), Some(start + SETTLE));
        tempo.note_surplus(false, start + SETTLE / 2);
        tempo.note_surplus(true, start + SETTLE);
        assert_eq!(tempo.surplus_time(), Some(start + 2 * SETTLE), "a slot was free meanwhile");
    }

    #[test]
    fn a_copy_that_has_just_come_lets_others_show_first() {
        let (mut tempo, start) = (Tempo::default(), Instant::now());
        let found = Some((opening(1, None), Duration::ZERO));
        tempo.note_standby(true, start);
        assert!(!tempo.is_settled(start));
        assert_eq!(tempo.due_time(found, true, start), Some(start + SETTLE));
        tempo.note_standby(false, start + SETTLE);
        tempo.note_standby(true, start + 2 * SETTLE);
        let again = start + 2 * SETTLE + RETURN_SETTLE;
        assert_eq!(tempo.due_time(found, true, start + 2 * SETTLE), Some(again), "etcd was away");
        assert_eq!(tempo.due_time(found, false, start + 2 * SETTLE), Some(start + 2 * SETTLE), "a running copy");
        assert!(tempo.is_settled(again) && !tempo.is_settled(again - SETTLE));
    }
}
