//! The simulation's clock. It stands still between steps.

use std::time::{Duration, Instant, SystemTime};

/// Milliseconds since the start of the simulation.
pub type Millis = u64;

/// The time, by all clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    base: Instant,
    now: Millis,
}

impl Clock {
    /// A clock whose first time is some minutes after 0, so that earlier times can be told.
    pub fn start() -> Self {
        Self { base: Instant::now(), now: 1_000_000 }
    }

    /// Moves the clock forward.
    pub fn advance(&mut self, by: Millis) {
        self.now += by;
    }

    /// The time in milliseconds.
    pub fn millis(&self) -> Millis {
        self.now
    }

    /// The monotonic time that production code gets.
    pub fn now(&self) -> Instant {
        self.base + Duration::from_millis(self.now)
    }

    /// The milliseconds of a monotonic time. 0 for one before the start.
    pub fn millis_of(&self, at: Instant) -> Millis {
        u64::try_from(at.saturating_duration_since(self.base).as_millis()).unwrap_or(Millis::MAX)
    }

    /// The wall clock that production code gets. No seed depends on the date.
    pub fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + Duration::from_millis(self.now)
    }
}
