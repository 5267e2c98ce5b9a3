//! Spaces the files while changes never end, since HAProxy checks each of them. Pure: the caller gives the time.

use std::time::{Duration, Instant};

/// A file is written at least this often while changes never end.
const LONGEST_REST: Duration = Duration::from_secs(5);

/// The time that HAProxy's check took, and the rest after it.
#[derive(Clone, Debug, Default)]
pub(super) struct PublishPace {
    /// The begin of the publish in progress.
    began_at: Option<Instant>,
    rest_until: Option<Instant>,
}

impl PublishPace {
    pub(super) fn begin(&mut self, now: Instant) {
        self.began_at = Some(now);
    }

    /// Begins a rest that lasts as many times as long as the publish took.
    pub(super) fn end(&mut self, now: Instant, times: u32) {
        let rest = self.began_at.take().map(|began| now.duration_since(began).saturating_mul(times));
        self.rest_until = rest.map(|rest| now + rest.min(LONGEST_REST));
    }

    /// The earliest begin of the next publish that may not begin before `at`.
    pub(super) fn earliest(&self, at: Instant) -> Instant {
        self.rest_until.map_or(at, |until| at.max(until))
    }
}
