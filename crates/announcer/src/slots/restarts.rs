//! Counts the app's ends, and decides when it starts again here. Pure: no clock.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Time in which ends count together.
pub(crate) const WINDOW: Duration = Duration::from_secs(300);

/// Pause before the first restart. It doubles with each one.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Longest pause before a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Pause of a copy after its first crash loop. It doubles with each one.
const FIRST_REST: Duration = Duration::from_secs(10);

/// Longest pause after a crash loop. The app starts at least this often while no other host takes its slot.
const LONGEST_REST: Duration = Duration::from_secs(300);

/// Ends of the app that it caused itself.
#[derive(Clone, Debug)]
pub(crate) struct Restarts {
    /// `--max-restarts`
    most: u32,
    /// Ends within the window, since the last crash loop.
    ends: VecDeque<Instant>,
    /// Crash loops in a row.
    loops: u32,
    last_end: Option<Instant>,
}

/// Decision after an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Start again here after this pause.
    Restart(Duration),
    /// Leave the slot to another host, and take none for this time.
    Rest(Duration),
}

impl Restarts {
    /// `most` restarts within [`WINDOW`] are no crash loop.
    pub(crate) fn new(most: u32) -> Self {
        Self { most, ends: VecDeque::new(), loops: 0, last_end: None }
    }

    /// Counts an end, and decides. A copy without a slot (`holds_slot` is false) always rests.
    pub(crate) fn record_end(&mut self, now: Instant, holds_slot: bool) -> Verdict {
        if self.last_end.is_some_and(|last| now.saturating_duration_since(last) > 2 * WINDOW) {
            self.loops = 0;
        }
        self.last_end = Some(now);
        self.ends.retain(|end| now.saturating_duration_since(*end) <= WINDOW);
        self.ends.push_back(now);
        let restarts = u32::try_from(self.ends.len()).unwrap_or(u32::MAX);
        if holds_slot && restarts <= self.most {
            return Verdict::Restart(doubled(FIRST_PAUSE, restarts - 1).min(LONGEST_PAUSE));
        }
        self.ends.clear();
        self.loops = self.loops.saturating_add(1);
        Verdict::Rest(doubled(FIRST_REST, self.loops - 1).min(LONGEST_REST))
    }
}

fn doubled(pause: Duration, times: u32) -> Duration {
    pause.saturating_mul(2u32.saturating_pow(times))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_app_starts_again_a_few_times_and_then_elsewhere() {
        let (mut restarts, mut now) = (Restarts::new(3), Instant::now());
        let mut end = |after: Duration| {
            now += after;
            restarts.record_end(now, true)
        };
        let millis = |pause| Verdict::Restart(Duration::from_millis(pause));
        assert_eq!([end(SECOND), end(SECOND), end(SECOND)], [millis(200), millis(400), millis(800)]);
        assert_eq!(end(SECOND), Verdict::Rest(FIRST_REST), "the fourth end in a row");
        let again: Vec<_> = (0..4).map(|_| end(SECOND)).collect();
        assert_eq!(again[3], Verdict::Rest(FIRST_REST * 2), "a second loop");
        let pauses: Vec<_> = (0..80).map(|_| end(SECOND)).collect();
        assert_eq!(pauses[79], Verdict::Rest(LONGEST_REST));
    }

    #[test]
    fn ends_far_apart_are_no_loop() {
        let (mut restarts, mut now) = (Restarts::new(1), Instant::now());
        for _ in 0..20 {
            now += WINDOW + SECOND;
            assert_eq!(restarts.record_end(now, true), Verdict::Restart(FIRST_PAUSE));
        }
    }

    #[test]
    fn a_calm_time_resets_the_rests() {
        let (mut restarts, now) = (Restarts::new(0), Instant::now());
        assert_eq!(restarts.record_end(now, true), Verdict::Rest(FIRST_REST), "--max-restarts 0");
        assert_eq!(restarts.record_end(now + SECOND, true), Verdict::Rest(FIRST_REST * 2));
        assert_eq!(restarts.record_end(now + 3 * WINDOW, true), Verdict::Rest(FIRST_REST));
    }

    #[test]
    fn a_copy_without_a_slot_is_not_restarted() {
        assert_eq!(Restarts::new(3).record_end(Instant::now(), false), Verdict::Rest(FIRST_REST));
    }
}
