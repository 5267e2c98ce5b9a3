//! The life of an announcer, as a pure function. A test prints its table to `STATES.md`.

pub(crate) mod message;
#[cfg(test)]
pub(crate) mod pages;

use discovery::UpstreamState;

use crate::health::Health;
use crate::record::Want;

/// State of the announcer's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The app runs or starts, and hasn't worked yet. Nothing is announced.
    Starting,
    /// An upstream works. The records are being written, for as long as that takes.
    Announcing,
    /// All records are stored under our lease. The balancers may be waited for.
    AwaitingBalancers,
    /// All records are stored, and the wait for balancers is over.
    Announced,
    /// A stop was asked for. The records say `drain`, and open requests finish.
    Draining,
    /// The app got its stop signal.
    Stopping,
    /// The app got SIGKILL.
    Killing,
    /// The app's main process ended by itself. The records are withdrawn, and the app's other processes get the stop
    /// signal.
    Leaving,
    /// The app is gone, and its records are being withdrawn.
    Withdrawing,
    /// The records are gone, and some process of the app is left.
    Clearing,
    /// The loop ends.
    Done,
}

/// Input of the life. Without an app of its own, the announcer stands for it: it works at once, and ends with the first
/// signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// An upstream's health changed. The first one works.
    Healthy,
    /// The records of all upstreams are stored.
    Registered,
    /// Every live balancer sends requests, or none is waited for.
    AllBalancersApplied,
    /// The lease ended and the records with it, or another writer took a record away.
    RecordsLost,
    /// First stop signal.
    Stop,
    /// Second stop signal.
    Abort,
    /// Every balancer acknowledged the drain, or the wait is over.
    Drained,
    /// The app didn't end within `--stop-timeout`.
    StopTimeout,
    /// The app's main process ended. Others of its group may still run.
    AppExited,
    /// No process of the app is left.
    AppGone,
    /// The records and the lease are gone, or the time for that is over.
    Withdrawn,
}

/// Work that follows an event. The variants stand in the order in which the event loop carries them out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Write the records of all upstreams that work, follow their checks, and write them again after each loss of the
    /// lease.
    Announce,
    /// Wait for the balancers if `--wait-balancers` is set.
    AwaitBalancers,
    /// Tell systemd READY.
    SayReady,
    /// Write `drain`, then wait for the balancers' acknowledgement.
    Drain,
    /// Send the stop signal to the app, and start its timeout.
    StopApp,
    /// Send the stop signal to the processes that the app's main process left behind, and start their timeout.
    StopRest,
    /// Send SIGKILL to everything of the app.
    KillApp,
    /// Write `down`, so that balancers count the following removal as graceful.
    WriteDown,
    /// Delete the records under our lease.
    Delete,
    /// Revoke the lease, and stop its renewal.
    Revoke,
}

/// Next state, and the actions in their order. An event that means nothing in a state changes nothing.
pub fn step(state: State, event: Event) -> (State, &'static [Action]) {
    let (next, actions) = decide(state, event);
    check_invariants(state, next, actions);
    (next, actions)
}

fn decide(state: State, event: Event) -> (State, &'static [Action]) {
    use {Action as A, Event as E, State as S};
    match (state, event) {
        (S::Starting, E::Healthy) => (S::Announcing, &[A::Announce]),
        (S::Announcing, E::Registered) => (S::AwaitingBalancers, &[A::AwaitBalancers]),
        (S::AwaitingBalancers, E::AllBalancersApplied) => (S::Announced, &[A::SayReady]),
        (S::AwaitingBalancers | S::Announced, E::RecordsLost) => (S::Announcing, &[]),

        // Nothing was announced, so no balancer has to be told.
        (S::Starting, E::Stop) => (S::Stopping, &[A::StopApp]),
        // After a loss, balancers may still serve the earlier records. So Announcing drains too.
        (S::Announcing | S::AwaitingBalancers | S::Announced, E::Stop) => (S::Draining, &[A::Drain]),
        (S::Draining, E::Drained) => (S::Stopping, &[A::StopApp]),
        (S::Stopping, E::StopTimeout) => (S::Killing, &[A::KillApp]),
        (S::Leaving | S::Clearing, E::StopTimeout | E::Abort) => (state, &[A::KillApp]),
        (S::Withdrawing | S::Done, E::Abort) => (state, &[]),
        (_, E::Abort) => (S::Killing, &[A::KillApp]),

        // AppExited doesn't end Killing: a shell ends before the processes that it started.
        (S::Killing, E::AppGone) => (S::Withdrawing, &[A::WriteDown, A::Delete, A::Revoke]),
        // The records say `drain` already, so `down` would be one write more.
        (S::Stopping, E::AppGone) => (S::Withdrawing, &[A::Delete, A::Revoke]),

        // The app ended by itself. The processes that it left behind are no reason to announce it.
        (S::Starting, E::AppExited) => (S::Leaving, &[A::StopRest, A::Revoke]),
        (S::Announcing | S::AwaitingBalancers | S::Announced, E::AppExited) => {
            (S::Leaving, &[A::StopRest, A::WriteDown, A::Delete, A::Revoke])
        }
        (S::Draining, E::AppExited) => (S::Leaving, &[A::StopRest, A::Delete, A::Revoke]),
        (S::Leaving, E::AppGone) => (S::Withdrawing, &[]),
        (S::Leaving, E::Withdrawn) => (S::Clearing, &[]),

        (S::Withdrawing, E::Withdrawn) | (S::Clearing, E::AppGone) => (S::Done, &[]),

        (state, _) => (state, &[]),
    }
}

/// Asserts what holds for every transition.
fn check_invariants(state: State, next: State, actions: &[Action]) {
    debug_assert_eq!(find_violation(state, next, actions), None, "{state:?} to {next:?} with {actions:?}");
}

/// First violated invariant. `None` if all hold.
fn find_violation(state: State, next: State, actions: &[Action]) -> Option<&'static str> {
    let announcing = [Action::Announce, Action::AwaitBalancers, Action::SayReady];
    if state.is_ending() && (!next.is_ending() || actions.iter().any(|action| announcing.contains(action))) {
        return Some("a stop is taken back");
    }
    if state == State::Done && (next != State::Done || !actions.is_empty()) {
        return Some("the end is left");
    }
    // `Action` is declared in the order in which the loop must carry actions out: `down`, deletion, end of the lease.
    if !actions.iter().zip(actions.iter().skip(1)).all(|(one, other)| one < other) {
        return Some("actions are out of order");
    }
    if actions.contains(&Action::Delete) && !actions.contains(&Action::Revoke) {
        return Some("the lease outlives its records");
    }
    let stops = [Action::StopApp, Action::StopRest, Action::KillApp];
    if actions.iter().filter(|action| stops.contains(action)).count() > 1 {
        return Some("the app gets two signals at once");
    }
    // Only a second timeout or signal repeats an action. Everything else would act twice for one cause.
    if next == state && !matches!(actions, [] | [Action::KillApp]) {
        return Some("a state that stays acts");
    }
    None
}

impl State {
    /// True from the first stop signal or the app's end on.
    fn is_ending(self) -> bool {
        !matches!(self, Self::Starting | Self::Announcing | Self::AwaitingBalancers | Self::Announced)
    }

    /// Wanted state of an upstream's record. `None` keeps the last one.
    pub fn want_for_health(self, health: Health) -> Option<Want> {
        match (self, health) {
            (Self::Announcing | Self::AwaitingBalancers | Self::Announced, Health::Up(_)) => {
                Some(Want::Present(UpstreamState::Ready))
            }
            (Self::Announcing | Self::AwaitingBalancers | Self::Announced, Health::Down(_)) => {
                Some(Want::Present(UpstreamState::Down))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect_file;

    use super::pages::{list_changes, print_life};
    use super::*;
    use crate::health;

    const STATES: [State; 11] = [
        State::Starting,
        State::Announcing,
        State::AwaitingBalancers,
        State::Announced,
        State::Draining,
        State::Stopping,
        State::Killing,
        State::Leaving,
        State::Withdrawing,
        State::Clearing,
        State::Done,
    ];

    const EVENTS: [Event; 11] = [
        Event::Healthy,
        Event::Registered,
        Event::AllBalancersApplied,
        Event::RecordsLost,
        Event::Stop,
        Event::Abort,
        Event::Drained,
        Event::StopTimeout,
        Event::AppExited,
        Event::AppGone,
        Event::Withdrawn,
    ];

    #[test]
    fn the_drawing_is_the_code() {
        let changes = list_changes(&STATES, &EVENTS, step);
        let mut drawing = print_life("The life of an announcer", State::Starting, &changes);
        drawing.push_str(
            "\n# The health of an upstream\n\nEach upstream has its own, with `--check-rise 2` and `--check-fall 3` here; \
             the numbers count checks in a row.\nWhat its record says, while the announcer is Announcing, AwaitingBalancers or \
             Announced:\nnothing while New, `ready` while Up, `down` while Down. In any other state nothing is written \
             because of a check.\n\n",
        );
        drawing.push_str(&health::tests::table());
        expect_file!["../STATES.md"].assert_eq(&drawing);
    }

    #[test]
    fn every_state_leads_to_the_end() {
        // The events that follow the actions of each state, without a second signal.
        let answers =
            [Event::Stop, Event::Drained, Event::StopTimeout, Event::AppExited, Event::AppGone, Event::Withdrawn];
        for start in STATES {
            let end = answers.iter().fold(start, |state, event| step(state, *event).0);
            assert_eq!(end, State::Done, "from {start:?}");
        }
    }

    #[test]
    fn nothing_is_announced_after_the_end_was_asked_for() {
        let late = [
            State::Draining,
            State::Stopping,
            State::Killing,
            State::Leaving,
            State::Withdrawing,
            State::Clearing,
            State::Done,
        ];
        for (state, event) in late.into_iter().flat_map(|state| EVENTS.map(|event| (state, event))) {
            let (next, actions) = step(state, event);
            assert!(late.contains(&next), "{state:?} {event:?}");
            assert!(!actions.contains(&Action::Announce) && !actions.contains(&Action::SayReady));
            assert_eq!(
                [Health::New(0), Health::Up(0), Health::Down(0)].map(|health| state.want_for_health(health)),
                [None; 3]
            );
        }
    }

    #[test]
    fn a_check_is_written_only_between_the_first_success_and_the_end() {
        for state in [State::Announcing, State::AwaitingBalancers, State::Announced] {
            assert_eq!(state.want_for_health(Health::New(9)), None, "nothing before the first success");
            assert_eq!(state.want_for_health(Health::Up(2)), Some(Want::Present(UpstreamState::Ready)));
            assert_eq!(state.want_for_health(Health::Down(1)), Some(Want::Present(UpstreamState::Down)));
        }
    }

    #[test]
    fn a_stop_is_never_taken_back() {
        assert_eq!(find_violation(State::Announced, State::Draining, &[Action::Drain]), None);
        let violation = Some("a stop is taken back");
        assert_eq!(find_violation(State::Draining, State::Announced, &[]), violation);
        assert_eq!(find_violation(State::Draining, State::Stopping, &[Action::Announce]), violation);
    }

    #[test]
    fn the_end_is_never_left() {
        assert_eq!(find_violation(State::Done, State::Clearing, &[]), Some("the end is left"));
        assert_eq!(find_violation(State::Done, State::Done, &[Action::KillApp]), Some("the end is left"));
    }

    #[test]
    fn records_are_deleted_before_their_lease_ends() {
        let actions = [Action::WriteDown, Action::Revoke, Action::Delete];
        assert_eq!(find_violation(State::Killing, State::Withdrawing, &actions), Some("actions are out of order"));
        let twice = [Action::Revoke, Action::Revoke];
        assert_eq!(find_violation(State::Killing, State::Withdrawing, &twice), Some("actions are out of order"));
    }

    #[test]
    fn a_deletion_ends_the_lease_too() {
        let violation = Some("the lease outlives its records");
        assert_eq!(find_violation(State::Stopping, State::Withdrawing, &[Action::Delete]), violation);
    }

    #[test]
    fn an_app_gets_one_signal_at_a_time() {
        let violation = Some("the app gets two signals at once");
        let actions = [Action::StopApp, Action::KillApp];
        assert_eq!(find_violation(State::Draining, State::Stopping, &actions), violation);
    }

    #[test]
    fn a_state_that_stays_only_kills() {
        assert_eq!(find_violation(State::Leaving, State::Leaving, &[Action::KillApp]), None);
        assert_eq!(
            find_violation(State::Leaving, State::Leaving, &[Action::StopRest]),
            Some("a state that stays acts")
        );
    }
}
