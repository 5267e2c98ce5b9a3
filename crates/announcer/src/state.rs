//! The life of an announcer, as a pure function. `STATES.md` is printed from it by a test.

use discovery::UpstreamState;

use crate::health::Health;
use crate::record::Want;

/// Where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// The app runs, or will soon, and is not known to work. Nothing is announced.
    Starting,
    /// An upstream works; the records are on their way into the store, for as long as that takes.
    Announcing,
    /// All records stand in the store, under our lease. Balancers may be waited for.
    AwaitingBalancers,
    /// All there was to wait for has happened.
    Announced,
    /// The end was asked for: balancers are told, and the requests in flight finish.
    Draining,
    /// The app was told to end.
    Stopping,
    /// The app was killed.
    Killing,
    /// The app's main process has ended by itself. The records follow, and what else is left of the app is told to end.
    Leaving,
    /// The app is gone; its records follow.
    Withdrawing,
    /// The records are gone; something of the app is still left.
    Clearing,
    /// All is done.
    Done,
}

/// What can happen. Without an app of its own, the announcer is its own app: it works at once, and ends when told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// The first upstream works.
    Healthy,
    /// The records of all upstreams were written.
    Registered,
    /// The balancers that were to be waited for send requests, or none was.
    AllBalancersApplied,
    /// The lease ended, and the records with it; or another hand took a record away.
    RecordsLost,
    /// The first signal.
    Stop,
    /// The second signal.
    Abort,
    /// No balancer sends requests any more, or the wait for that is over.
    Drained,
    /// The app didn't end in time.
    StopTimeout,
    /// The app's main process ended.
    AppExited,
    /// Nothing of the app is left.
    AppGone,
    /// The records and the lease are gone, or the time for it is over.
    Withdrawn,
}

/// What to do about it, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    /// Write the records of all upstreams that work, follow their checks, and write them again whenever the lease was
    /// lost.
    Announce,
    /// Wait for balancers, if that was asked for.
    AwaitBalancers,
    /// Tell systemd that the service is up.
    SayReady,
    /// Write `drain`, then wait for the balancers.
    Drain,
    /// Send the stop signal to the app, and start its time.
    StopApp,
    /// The same for what the app's main process has left behind.
    StopRest,
    /// Send SIGKILL to the app.
    KillApp,
    /// Write `down`, so that balancers see no loss in what follows.
    WriteDown,
    /// Delete the records.
    Delete,
    /// End the lease.
    Revoke,
}

/// The next state, and what to do on the way there. An event that means nothing in a state changes nothing.
pub(crate) fn step(state: State, event: Event) -> (State, &'static [Action]) {
    use {Action as A, Event as E, State as S};
    match (state, event) {
        (S::Starting, E::Healthy) => (S::Announcing, &[A::Announce]),
        (S::Announcing, E::Registered) => (S::AwaitingBalancers, &[A::AwaitBalancers]),
        (S::AwaitingBalancers, E::AllBalancersApplied) => (S::Announced, &[A::SayReady]),
        (S::AwaitingBalancers | S::Announced, E::RecordsLost) => (S::Announcing, &[]),

        // Nothing was announced, so nobody has to be told.
        (S::Starting, E::Stop) => (S::Stopping, &[A::StopApp]),
        // Balancers may still have the records of before the loss.
        (S::Announcing | S::AwaitingBalancers | S::Announced, E::Stop) => (S::Draining, &[A::Drain]),
        (S::Draining, E::Drained) => (S::Stopping, &[A::StopApp]),
        (S::Stopping, E::StopTimeout) => (S::Killing, &[A::KillApp]),
        (S::Leaving | S::Clearing, E::StopTimeout | E::Abort) => (state, &[A::KillApp]),
        (S::Withdrawing | S::Done, E::Abort) => (state, &[]),
        (_, E::Abort) => (S::Killing, &[A::KillApp]),

        // A shell that ends before what it started is no app that has ended.
        (S::Killing, E::AppGone) => (S::Withdrawing, &[A::WriteDown, A::Delete, A::Revoke]),
        // The records say `drain` already.
        (S::Stopping, E::AppGone) => (S::Withdrawing, &[A::Delete, A::Revoke]),

        // Nobody told the app to end: what it leaves behind is no reason to announce it any longer.
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

impl State {
    /// What an upstream's record is to say, going by its checks; None: nothing yet, or nothing else than before.
    pub(crate) fn want_for_health(self, health: Health) -> Option<Want> {
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
    use std::fmt::Write as _;

    use expect_test::expect_file;

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

    fn changes() -> impl Iterator<Item = (State, Event, State, &'static [Action])> {
        let pairs = STATES.into_iter().flat_map(|state| EVENTS.into_iter().map(move |event| (state, event)));
        pairs.filter_map(|(state, event)| {
            let (next, actions) = step(state, event);
            (next != state || !actions.is_empty()).then_some((state, event, next, actions))
        })
    }

    #[test]
    fn the_drawing_is_the_code() {
        let mut drawing = String::from(
            "<!-- Printed by the test `the_drawing_is_the_code`; UPDATE_EXPECT=1 writes it anew. -->\n\
             # The life of an announcer\n\n```mermaid\nstateDiagram-v2\n    [*] --> Starting\n",
        );
        for (state, event, next, _) in changes() {
            writeln!(drawing, "    {state:?} --> {next:?}: {event:?}").unwrap();
        }
        drawing.push_str("    Done --> [*]\n```\n\nEvents that are not listed change nothing.\n\n");
        drawing.push_str("| state | event | next state | actions, in this order |\n|---|---|---|---|\n");
        for (state, event, next, actions) in changes() {
            let actions: Vec<_> = actions.iter().map(|action| format!("{action:?}")).collect();
            writeln!(drawing, "| {state:?} | {event:?} | {next:?} | {} |", actions.join(", ")).unwrap();
        }
        drawing.push_str(
            "\n# The health of an upstream\n\nEach upstream has its own, with `--check-rise 2` and `--check-fall 3` here; \
             the numbers count checks in a row.\nWhat its record says, while the announcer is Announcing, Spreading or \
             Announced:\nnothing while New, `ready` while Up, `down` while Down. In any other state nothing is written \
             because of a check.\n\n",
        );
        drawing.push_str(&health::tests::table());
        expect_file!["../STATES.md"].assert_eq(&drawing);
    }

    #[test]
    fn every_state_leads_to_the_end() {
        // What the world answers to each state, if nobody sends a second signal.
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
}
