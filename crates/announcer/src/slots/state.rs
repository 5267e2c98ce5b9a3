//! The life of a copy of a service with `--replicas`, as a pure function. A run of the app is a part of it, and `state`
//! has the life of one run. A test prints the table to `SLOTS.md`.

use discovery::StandbyReason;

/// State of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The app doesn't run. The copy takes a free slot if it is the best one for it.
    StandingBy,
    /// The app ended too often here. The copy takes no slot until its pause is over.
    Resting,
    /// The app starts beside the copy of a leaving slot, to take that slot over.
    Succeeding,
    /// The slot is ours, and the app runs.
    Holding,
    /// The slot is ours, and the app starts again after a pause, because it has ended by itself.
    Pausing,
    /// The app runs without a slot: the lease has ended, or the slot is still its predecessor's.
    Seeking,
    /// A stop was asked for. The slot is offered to a copy that stands by, and the app still serves.
    Offering,
    /// The app is being stopped, because the service has enough copies without it. The copy stands by then.
    Yielding,
    /// The app got SIGKILL, because its lease may end. The copy stands by then.
    Fencing,
    /// The app is being stopped, and the process ends with it.
    Stopping,
    /// The lease is being revoked, and the slot and the stand-by end with it.
    Releasing,
    /// The loop ends.
    Done,
}

/// Input of the life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A slot can be taken, and this copy is the one to take it.
    SlotFree,
    /// A slot is offered, and this copy is the one to start for it.
    SlotOffered,
    /// An offered slot names this copy as its successor.
    SlotPromised,
    /// A slot is ours in the store.
    SlotOurs,
    /// No slot is ours in the store any more, or etcd has ended the lease.
    SlotLost,
    /// The service has enough other copies, and all of them are older.
    Surplus,
    /// Another copy has the offered slot, no copy stands by for it, or the wait is over.
    HandedOver,
    /// The app works, and its records are stored.
    Announced,
    /// The app ended by itself, and may start again here.
    Crashed,
    /// The app ended by itself too often.
    CrashLoop,
    /// A pause after a crash or a crash loop is over.
    PauseOver,
    /// With `--fence`: the lease may end, or the slot is lost.
    FencePassed,
    /// The app is gone and its records are withdrawn, as asked.
    RunEnded,
    /// First stop signal.
    Stop,
    /// Second stop signal.
    Abort,
    /// The lease is revoked, or the time for that is over.
    Released,
}

/// Work that follows an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Write the slot under our lease, if it is still as it was seen.
    TakeSlot,
    /// Name this copy as the successor in an offered slot, if that is still as it was seen.
    ClaimSlot,
    /// Start the app.
    StartApp,
    /// Write `leaving` into our slot, and wait for a successor. With `--fence`, the wait is over at once.
    OfferSlot,
    /// Wait before the app starts again. Ever longer waits follow crash loops.
    Pause,
    /// Stop the app politely: drain, stop signal, withdrawal.
    StopApp,
    /// Send SIGKILL to everything of the app.
    KillApp,
    /// Revoke the lease.
    Release,
}

/// Next state, and the actions in their order. An event that means nothing in a state changes nothing.
pub fn step(state: State, event: Event) -> (State, &'static [Action]) {
    let (next, actions) = decide(state, event);
    debug_assert_eq!(find_violation(state, next, actions), None, "{state:?} to {next:?} with {actions:?}");
    (next, actions)
}

fn decide(state: State, event: Event) -> (State, &'static [Action]) {
    use {Action as A, Event as E, State as S};
    match (state, event) {
        (S::StandingBy | S::Succeeding | S::Seeking, E::SlotFree) => (state, &[A::TakeSlot]),
        (S::StandingBy, E::SlotOffered) => (S::StandingBy, &[A::ClaimSlot]),
        (S::StandingBy, E::SlotOurs) => (S::Holding, &[A::StartApp]),
        (S::StandingBy, E::SlotPromised) => (S::Succeeding, &[A::StartApp]),
        (S::Resting, E::PauseOver) => (S::StandingBy, &[]),

        // The predecessor goes on until the successor works. After that, the slot is taken from it.
        (S::Succeeding, E::Announced) => (S::Seeking, &[]),
        (S::Succeeding | S::Seeking, E::SlotOurs) => (S::Holding, &[]),
        // The slot went to another copy. Seeking finds another one, or stops.
        (S::Succeeding, E::SlotLost) => (S::Seeking, &[]),
        (S::Seeking, E::Surplus) => (S::Yielding, &[A::StopApp]),
        // Another host takes the offered slot, or a free one.
        (S::Succeeding | S::Seeking, E::Crashed | E::CrashLoop) => (S::Resting, &[A::Pause]),

        // Without `--fence` the app goes on: no other copy may run.
        (S::Holding, E::SlotLost) => (S::Seeking, &[]),
        (S::Holding | S::Seeking | S::Succeeding, E::FencePassed) => (S::Fencing, &[A::KillApp]),
        (S::Holding, E::Crashed) => (S::Pausing, &[A::Pause]),
        (S::Holding, E::CrashLoop) => (S::Resting, &[A::Pause]),
        (S::Pausing, E::PauseOver) => (S::Holding, &[A::StartApp]),
        (S::Pausing, E::SlotLost | E::FencePassed) => (S::StandingBy, &[]),

        (S::Holding, E::Stop) => (S::Offering, &[A::OfferSlot]),
        (S::Offering, E::HandedOver | E::SlotLost) => (S::Stopping, &[A::StopApp]),
        (S::Offering, E::FencePassed) => (S::Stopping, &[A::KillApp]),
        (S::Offering, E::Crashed | E::CrashLoop) => (S::Releasing, &[A::Release]),

        (S::Yielding | S::Fencing, E::RunEnded) => (S::StandingBy, &[]),
        (S::Yielding | S::Fencing, E::Stop) => (S::Stopping, &[]),
        (S::Yielding | S::Stopping, E::FencePassed) => (state, &[A::KillApp]),
        (S::Stopping, E::RunEnded) => (S::Releasing, &[A::Release]),

        (S::StandingBy | S::Resting | S::Pausing, E::Stop | E::Abort) => (S::Releasing, &[A::Release]),
        (S::Succeeding | S::Seeking, E::Stop) => (S::Stopping, &[A::StopApp]),
        (S::Releasing | S::Done, E::Abort) => (state, &[]),
        (_, E::Abort) => (S::Stopping, &[A::KillApp]),
        (S::Releasing, E::Released) => (S::Done, &[]),

        (state, _) => (state, &[]),
    }
}

/// First violated invariant. `None` if all hold.
fn find_violation(state: State, next: State, actions: &[Action]) -> Option<&'static str> {
    let has = |action| actions.contains(&action);
    if state.is_ending() && (!next.is_ending() || has(Action::StartApp) || has(Action::TakeSlot)) {
        return Some("a stop is taken back");
    }
    if has(Action::StartApp) && (state.runs_app() || !next.runs_app()) {
        return Some("an app starts beside another one");
    }
    if has(Action::StartApp) && !matches!(next, State::Holding | State::Succeeding) {
        return Some("an app starts without a slot");
    }
    if (has(Action::StopApp) || has(Action::KillApp)) && !(state.runs_app() && next.runs_app()) {
        return Some("an app is stopped that doesn't run");
    }
    if has(Action::Release) && (next != State::Releasing || next.runs_app()) {
        return Some("the slot is released while the app runs");
    }
    // A copy that gives up its slot while its app runs must stop that app.
    if state.may_hold_slot()
        && next.runs_app()
        && !next.may_hold_slot()
        && next != State::Seeking
        && !has(Action::KillApp)
    {
        return Some("the app runs on without a slot");
    }
    if next == state && !matches!(actions, [] | [Action::TakeSlot | Action::ClaimSlot | Action::KillApp]) {
        return Some("a state that stays acts");
    }
    None
}

impl State {
    /// True from the first stop signal on.
    pub fn is_ending(self) -> bool {
        matches!(self, Self::Offering | Self::Stopping | Self::Releasing | Self::Done)
    }

    /// True while the app runs, starts or stops.
    pub fn runs_app(self) -> bool {
        match self {
            Self::Succeeding | Self::Holding | Self::Seeking | Self::Offering => true,
            Self::Yielding | Self::Fencing | Self::Stopping => true,
            Self::StandingBy | Self::Resting | Self::Pausing | Self::Releasing | Self::Done => false,
        }
    }

    /// True if the end of the app is what was asked for, and no crash.
    pub fn awaits_run_end(self) -> bool {
        matches!(self, Self::Yielding | Self::Fencing | Self::Stopping)
    }

    /// True if a slot under our lease may stay. In the other states it is given up, or makes [`Event::SlotOurs`].
    pub fn may_hold_slot(self) -> bool {
        matches!(self, Self::Holding | Self::Pausing | Self::Offering | Self::Stopping)
    }

    /// True if a slot that turns out to be ours is what the copy wants.
    pub fn wants_slot(self) -> bool {
        matches!(self, Self::StandingBy | Self::Succeeding | Self::Seeking)
    }

    /// Reason in the copy's stand-by. `None` without a stand-by.
    pub fn standby_reason(self) -> Option<StandbyReason> {
        match self {
            // A successor keeps it: others see by it that the successor lives.
            Self::StandingBy | Self::Succeeding => Some(StandbyReason::NoSlot),
            Self::Resting => Some(StandbyReason::CrashLoop),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::expect_file;

    use super::*;
    use crate::state::pages::{list_changes, print_life};

    const STATES: [State; 12] = [
        State::StandingBy,
        State::Resting,
        State::Succeeding,
        State::Holding,
        State::Pausing,
        State::Seeking,
        State::Offering,
        State::Yielding,
        State::Fencing,
        State::Stopping,
        State::Releasing,
        State::Done,
    ];

    const EVENTS: [Event; 16] = [
        Event::SlotFree,
        Event::SlotOffered,
        Event::SlotPromised,
        Event::SlotOurs,
        Event::SlotLost,
        Event::Surplus,
        Event::HandedOver,
        Event::Announced,
        Event::Crashed,
        Event::CrashLoop,
        Event::PauseOver,
        Event::FencePassed,
        Event::RunEnded,
        Event::Stop,
        Event::Abort,
        Event::Released,
    ];

    fn transitions() -> impl Iterator<Item = (State, Event, State, &'static [Action])> {
        STATES.into_iter().flat_map(|state| EVENTS.map(|event| (state, event))).map(|(state, event)| {
            let (next, actions) = step(state, event);
            (state, event, next, actions)
        })
    }

    #[test]
    fn the_drawing_is_the_code() {
        let changes = list_changes(&STATES, &EVENTS, step);
        let mut drawing = print_life("The life of a copy with `--replicas`", State::StandingBy, &changes);
        drawing.push_str("\n| state | the app runs | its slot may stay | its stand-by says |\n|---|---|---|---|\n");
        for state in STATES {
            let yes = |is: bool| if is { "yes" } else { "" };
            let reason = state.standby_reason().map_or("", |reason| match reason {
                StandbyReason::CrashLoop => "`crash-loop`",
                _ => "`no-slot`",
            });
            writeln!(drawing, "| {state:?} | {} | {} | {reason} |", yes(state.runs_app()), yes(state.may_hold_slot()))
                .unwrap();
        }
        expect_file!["../../SLOTS.md"].assert_eq(&drawing);
    }

    #[test]
    fn every_state_leads_to_the_end() {
        let answers = [Event::Stop, Event::HandedOver, Event::RunEnded, Event::Released];
        for start in STATES {
            let end = answers.iter().fold(start, |state, event| step(state, *event).0);
            assert_eq!(end, State::Done, "from {start:?}");
        }
    }

    #[test]
    fn only_a_slot_or_a_promise_starts_the_app() {
        for (state, event, _, actions) in transitions() {
            if actions.contains(&Action::StartApp) {
                let is_restart = (state, event) == (State::Pausing, Event::PauseOver);
                assert!(is_restart || matches!(event, Event::SlotOurs | Event::SlotPromised), "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn a_fence_kills_in_every_state_in_which_the_app_may_serve() {
        for state in STATES.into_iter().filter(|state| state.runs_app()) {
            let (_, actions) = step(state, Event::FencePassed);
            // In Fencing the app has got SIGKILL already.
            assert_eq!(actions == [Action::KillApp], state != State::Fencing, "{state:?}");
        }
    }

    #[test]
    fn a_lost_slot_stops_no_app_by_itself() {
        for state in [State::Holding, State::Succeeding, State::Seeking] {
            let (next, actions) = step(state, Event::SlotLost);
            assert!(next.runs_app() && actions.is_empty(), "{state:?}");
        }
    }

    #[test]
    fn violations_are_found() {
        for (state, next, actions, violation) in [
            (State::Offering, State::Holding, &[][..], "a stop is taken back"),
            (State::Stopping, State::Stopping, &[Action::TakeSlot], "a stop is taken back"),
            (State::Holding, State::Holding, &[Action::StartApp], "an app starts beside another one"),
            (State::StandingBy, State::Seeking, &[Action::StartApp], "an app starts without a slot"),
            (State::StandingBy, State::Yielding, &[Action::StopApp], "an app is stopped that doesn't run"),
            (State::Holding, State::Stopping, &[Action::Release], "the slot is released while the app runs"),
            (State::Holding, State::Succeeding, &[], "the app runs on without a slot"),
            (State::Holding, State::Yielding, &[], "the app runs on without a slot"),
            (State::Seeking, State::Seeking, &[Action::StopApp], "a state that stays acts"),
        ] {
            assert_eq!(find_violation(state, next, actions), Some(violation), "{state:?} to {next:?}");
        }
    }
}
