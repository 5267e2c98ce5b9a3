//! Whether an app works, going by its checks: pure. `STATES.md` is printed from it by a test.

pub(crate) mod check;

use std::num::NonZeroU32;

/// What is known of an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// It has not worked yet; this many checks in a row passed.
    New(u32),
    /// It works; this many checks in a row failed.
    Up(u32),
    /// It worked once and does no longer; this many checks in a row passed.
    Down(u32),
}

/// How many checks in a row decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Thresholds {
    /// Passed ones, until it works.
    pub(crate) rise: NonZeroU32,
    /// Failed ones, until it doesn't.
    pub(crate) fall: NonZeroU32,
}

impl Health {
    /// Whether requests may be sent there.
    pub(crate) fn is_up(self) -> bool {
        matches!(self, Self::Up(_))
    }
}

/// What is known after one more check. An app that is only starting can't fail: there is nothing to take back.
pub(crate) fn step(health: Health, passed: bool, thresholds: Thresholds) -> Health {
    let (rise, fall) = (thresholds.rise.get(), thresholds.fall.get());
    match (health, passed) {
        (Health::New(before) | Health::Down(before), true) if before.saturating_add(1) >= rise => Health::Up(0),
        (Health::New(before), true) => Health::New(before.saturating_add(1)),
        (Health::New(_), false) => Health::New(0),
        (Health::Up(_), true) => Health::Up(0),
        (Health::Up(before), false) if before.saturating_add(1) >= fall => Health::Down(0),
        (Health::Up(before), false) => Health::Up(before.saturating_add(1)),
        (Health::Down(before), true) => Health::Down(before.saturating_add(1)),
        (Health::Down(_), false) => Health::Down(0),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fmt::Write as _;

    use super::*;

    fn thresholds(rise: u32, fall: u32) -> Thresholds {
        Thresholds { rise: rise.try_into().unwrap(), fall: fall.try_into().unwrap() }
    }

    /// The table for `--check-rise 2 --check-fall 3`.
    pub(crate) fn table() -> String {
        let mut table = String::from("| health | check passes | check fails |\n|---|---|---|\n");
        let all = [0, 1].map(Health::New).into_iter().chain([0, 1, 2].map(Health::Up)).chain([0, 1].map(Health::Down));
        for health in all {
            let after = |passed| step(health, passed, thresholds(2, 3));
            writeln!(table, "| {health:?} | {:?} | {:?} |", after(true), after(false)).unwrap();
        }
        table
    }

    #[test]
    fn one_check_can_be_enough() {
        let once = thresholds(1, 1);
        assert_eq!(step(Health::New(0), true, once), Health::Up(0));
        assert_eq!(step(Health::Up(0), false, once), Health::Down(0));
        assert_eq!(step(Health::Down(0), true, once), Health::Up(0));
    }

    #[test]
    fn what_alternates_changes_nothing() {
        let mut health = Health::Up(0);
        for passed in [false, false, true].into_iter().cycle().take(300) {
            health = step(health, passed, thresholds(2, 3));
            assert!(health.is_up());
        }
    }
}
