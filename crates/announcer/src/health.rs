//! An app's health, from the results of its checks. Pure. A test prints the table to `STATES.md`.

pub(crate) mod check;

use std::num::NonZeroU32;

/// Health with a count of checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Has not worked yet. This many checks in a row passed.
    New(u32),
    /// Works. This many checks in a row failed.
    Up(u32),
    /// Worked once and fails now. This many checks in a row passed.
    Down(u32),
}

/// Number of equal results in a row that change the health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// `--check-rise`: passes until the app counts as working.
    pub rise: NonZeroU32,
    /// `--check-fall`: failures until it counts as down.
    pub fall: NonZeroU32,
}

impl Health {
    /// True if requests may be sent to the upstream.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Up(_))
    }
}

/// Health after one more check. An app that is starting can't fail, because its record isn't written yet.
pub fn step(health: Health, passed: bool, thresholds: Thresholds) -> Health {
    let (rise, fall) = (thresholds.rise.get(), thresholds.fall.get());
    let next = match (health, passed) {
        (Health::New(before) | Health::Down(before), true) if before.saturating_add(1) >= rise => Health::Up(0),
        (Health::New(before), true) => Health::New(before.saturating_add(1)),
        (Health::New(_), false) => Health::New(0),
        (Health::Up(_), true) => Health::Up(0),
        (Health::Up(before), false) if before.saturating_add(1) >= fall => Health::Down(0),
        (Health::Up(before), false) => Health::Up(before.saturating_add(1)),
        (Health::Down(before), true) => Health::Down(before.saturating_add(1)),
        (Health::Down(_), false) => Health::Down(0),
    };
    check_invariants(next, thresholds);
    next
}

/// Asserts that no count reaches the threshold that it is compared with.
fn check_invariants(health: Health, thresholds: Thresholds) {
    debug_assert!(is_below_thresholds(health, thresholds), "{health:?} with {thresholds:?}");
}

fn is_below_thresholds(health: Health, thresholds: Thresholds) -> bool {
    match health {
        Health::New(passes) | Health::Down(passes) => passes < thresholds.rise.get(),
        Health::Up(failures) => failures < thresholds.fall.get(),
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
    pub fn table() -> String {
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

    #[test]
    fn a_count_at_its_threshold_violates_the_invariant() {
        assert!(is_below_thresholds(Health::New(1), thresholds(2, 3)));
        for health in [Health::New(2), Health::Up(3), Health::Down(2)] {
            assert!(!is_below_thresholds(health, thresholds(2, 3)), "{health:?}");
        }
    }
}
