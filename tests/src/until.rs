//! Waiting for something to become true, with a deadline and a reason.

use std::fmt::Display;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a test waits for something that must happen. It is longer than any change takes on a busy machine, where a restart
/// waits for the one before and checks must rise. It is no longer than confgen's longest pause between two tries, and shorter
/// than its other timers, because one of these could bring what the test waits for.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How often a probe is asked again: fine enough to time milliseconds, coarse enough to leave two cores to the others.
const PAUSE: Duration = Duration::from_millis(5);

/// How much longer than a probe the pause after it is, so that a costly probe (all of `/proc`, say) works a core for a fifth of the
/// wait at most.
const REST: u32 = 4;

/// The longest pause. A probe may have waited itself.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// What a probe may answer: `bool`, `Option<T>` or `Result<T, E>`.
pub trait Answer {
    /// What the probe yields once it holds.
    type Value;

    /// The value, or in words why there is none yet.
    ///
    /// # Errors
    /// The reason, shown when the deadline passes.
    fn check(self) -> Result<Self::Value, String>;
}

impl Answer for bool {
    type Value = ();

    fn check(self) -> Result<(), String> {
        self.then_some(()).ok_or_else(|| "not yet".to_owned())
    }
}

impl<T> Answer for Option<T> {
    type Value = T;

    fn check(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing yet".to_owned())
    }
}

impl<T, E: Display> Answer for Result<T, E> {
    type Value = T;

    fn check(self) -> Result<T, String> {
        self.map_err(|error| error.to_string())
    }
}

/// Asks `probe` until it holds, and returns what it yields.
///
/// # Panics
/// When `deadline` passes first, with `what` was waited for and the probe's last answer.
#[track_caller]
pub fn until<A: Answer>(deadline: Duration, what: &str, mut probe: impl FnMut() -> A) -> A::Value {
    let start = Instant::now();
    loop {
        let asked = Instant::now();
        match probe().check() {
            Ok(value) => return value,
            Err(reason) if start.elapsed() >= deadline => panic!("waited {deadline:?} for {what}: {reason}"),
            Err(_) => sleep((REST * asked.elapsed()).clamp(PAUSE, LONGEST_PAUSE)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yields_what_the_probe_found() {
        let mut left = 3;
        let found = until(Duration::from_secs(1), "the countdown", || {
            left -= 1;
            (left == 0).then_some("done")
        });
        assert_eq!(found, "done");
    }

    #[test]
    #[should_panic(expected = "for a door: locked")]
    fn says_what_it_waited_for_and_why_it_failed() {
        until(Duration::from_millis(20), "a door", || Err::<(), _>("locked"));
    }
}
