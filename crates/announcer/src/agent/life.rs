//! The life of one record of a container. Pure: no I/O, no clock. A test prints its whole table to `CONTAINERS.md`.

use discovery::UpstreamState;

use crate::record::Want;

/// Where a container's service stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// The container runs, and its app has not worked yet. There is no record.
    Starting,
    /// The container is paused, or was told to stop, before its app worked. There is no record.
    Held,
    /// The app works. The record says `ready`.
    Serving,
    /// The app worked once and fails now. The record says `down`.
    Failing,
    /// The container is paused. The record says `down`.
    Paused,
    /// The container was told to stop. The record says `drain`.
    Draining,
    /// The container has ended. The record is to be deleted.
    Leaving,
    /// There is no record, and none will come.
    Gone,
}

/// Something that happened to a container, or to its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LifeEvent {
    /// HEALTHCHECK and the agent's check both pass.
    Healthy,
    /// One of them fails.
    Unhealthy,
    /// A signal that usually ends an app was sent to the container.
    StopSignal,
    /// The container still runs long after that.
    Survived,
    /// The container was paused.
    Paused,
    /// The container was unpaused.
    Resumed,
    /// The container has ended, was removed, or no longer has this service.
    Died,
    /// The record was deleted.
    Removed,
}

/// Something that the agent does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LifeAction {
    /// Write the record as the new state has it.
    Write,
    /// Report `Survived` if the container still runs after its stop time.
    AwaitEnd,
    /// End the checks.
    EndChecks,
}

impl Life {
    /// What the record should be. `None` leaves the store alone.
    pub(crate) fn want(self) -> Option<Want> {
        match self {
            Self::Starting | Self::Held | Self::Gone => None,
            Self::Serving => Some(Want::Present(UpstreamState::Ready)),
            Self::Failing | Self::Paused => Some(Want::Present(UpstreamState::Down)),
            Self::Draining => Some(Want::Present(UpstreamState::Drain)),
            Self::Leaving => Some(Want::Absent),
        }
    }

    /// The life of a record that an earlier agent left in this state.
    pub(crate) fn from_record(state: UpstreamState) -> Self {
        match state {
            UpstreamState::Ready => Self::Serving,
            UpstreamState::Down => Self::Failing,
            UpstreamState::Drain => Self::Draining,
        }
    }

    /// True if the container has ended for this record.
    pub(crate) fn has_ended(self) -> bool {
        matches!(self, Self::Leaving | Self::Gone)
    }

    /// True if the agent has the record in the store, as far as it depends on this life.
    fn has_record(self) -> bool {
        matches!(self, Self::Serving | Self::Failing | Self::Paused | Self::Draining)
    }
}

/// The next state, and what to do.
pub(crate) fn step(life: Life, event: LifeEvent) -> (Life, &'static [LifeAction]) {
    let (after, actions) = decide(life, event);
    check_invariants(life, after, actions);
    (after, actions)
}

fn decide(life: Life, event: LifeEvent) -> (Life, &'static [LifeAction]) {
    use LifeAction::{AwaitEnd, EndChecks, Write};
    match (life, event) {
        (Life::Starting | Life::Failing, LifeEvent::Healthy) => (Life::Serving, &[Write]),
        (Life::Serving, LifeEvent::Unhealthy) => (Life::Failing, &[Write]),

        (Life::Starting | Life::Held, LifeEvent::StopSignal) => (Life::Held, &[AwaitEnd]),
        (Life::Draining, LifeEvent::StopSignal) => (Life::Draining, &[AwaitEnd]),
        (Life::Serving | Life::Failing | Life::Paused, LifeEvent::StopSignal) => (Life::Draining, &[Write, AwaitEnd]),
        // The app has ignored the signal, and may serve again once its checks pass.
        (Life::Held, LifeEvent::Survived) => (Life::Starting, &[]),
        (Life::Draining, LifeEvent::Survived) => (Life::Failing, &[Write]),

        (Life::Starting, LifeEvent::Paused) => (Life::Held, &[]),
        (Life::Serving | Life::Failing, LifeEvent::Paused) => (Life::Paused, &[Write]),
        (Life::Held, LifeEvent::Resumed) => (Life::Starting, &[]),
        (Life::Paused, LifeEvent::Resumed) => (Life::Failing, &[]),

        (Life::Starting | Life::Held, LifeEvent::Died) => (Life::Gone, &[EndChecks]),
        (Life::Serving | Life::Failing | Life::Paused | Life::Draining, LifeEvent::Died) => {
            (Life::Leaving, &[Write, EndChecks])
        }
        (Life::Leaving, LifeEvent::Removed) => (Life::Gone, &[]),
        (life, _) => (life, &[]),
    }
}

fn check_invariants(before: Life, after: Life, actions: &[LifeAction]) {
    debug_assert_eq!(find_violation(before, after, actions), None, "{before:?} → {after:?} {actions:?}");
}

/// First violated invariant. `None` if all hold.
fn find_violation(before: Life, after: Life, actions: &[LifeAction]) -> Option<&'static str> {
    if before.has_ended() && !after.has_ended() {
        return Some("a container that has ended comes back");
    }
    if before.has_record() && !after.has_record() && after != Life::Leaving {
        return Some("a record is forgotten");
    }
    if before.want() != after.want() && after.want().is_some() && !actions.contains(&LifeAction::Write) {
        return Some("a change is not written");
    }
    if !before.has_ended() && after.has_ended() && !actions.contains(&LifeAction::EndChecks) {
        return Some("checks outlive the container");
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::state::pages::{list_changes, print_changes};

    const LIVES: [Life; 8] = [
        Life::Starting,
        Life::Held,
        Life::Serving,
        Life::Failing,
        Life::Paused,
        Life::Draining,
        Life::Leaving,
        Life::Gone,
    ];

    const EVENTS: [LifeEvent; 8] = [
        LifeEvent::Healthy,
        LifeEvent::Unhealthy,
        LifeEvent::StopSignal,
        LifeEvent::Survived,
        LifeEvent::Paused,
        LifeEvent::Resumed,
        LifeEvent::Died,
        LifeEvent::Removed,
    ];

    fn table() -> String {
        let mut page = String::from(
            "# The life of a container's record\n\nA test writes this page from `src/agent/life.rs`. Other events \
             change nothing. A container that starts again begins a new life.\n\n| state | record |\n|---|---|\n",
        );
        for life in LIVES {
            let want = match life.want() {
                None => "untouched".to_owned(),
                Some(Want::Present(state)) => format!("{state:?}").to_lowercase(),
                Some(other) => format!("{other:?}").to_lowercase(),
            };
            writeln!(page, "| {life:?} | {want} |").unwrap();
        }
        page.push('\n');
        page + &print_changes(&list_changes(&LIVES, &EVENTS, step)) + &crate::agent::standing::tests::table()
    }

    #[test]
    fn the_table_is_the_page() {
        expect_test::expect_file!["../../CONTAINERS.md"].assert_eq(&table());
    }

    #[test]
    fn every_life_ends() {
        for life in LIVES {
            let (after, _) = step(life, LifeEvent::Died);
            assert_eq!(step(after, LifeEvent::Removed).0, Life::Gone, "{life:?}");
        }
    }

    #[test]
    fn each_invariant_can_be_violated() {
        use LifeAction::{EndChecks, Write};
        for (before, after, actions, words) in [
            (Life::Leaving, Life::Serving, [Write].as_slice(), "a container that has ended comes back"),
            (Life::Draining, Life::Starting, &[], "a record is forgotten"),
            (Life::Starting, Life::Serving, &[EndChecks], "a change is not written"),
            (Life::Serving, Life::Leaving, &[Write], "checks outlive the container"),
        ] {
            assert_eq!(find_violation(before, after, actions), Some(words));
        }
    }
}
