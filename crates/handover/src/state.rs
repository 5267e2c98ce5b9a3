//! The life of a start: a table of the next state and action for each state and event, printed to `step.golden`. Pure:
//! no I/O, no clock.

/// The state of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// `haproxy -c` reads the files. Nothing has been started.
    Checking,
    /// The new HAProxy has been started and doesn't answer yet. An old one, if any, serves.
    Starting,
    /// The new HAProxy has taken over.
    Serving,
    /// Every HAProxy finishes its requests.
    Draining,
    /// Every HAProxy has been told to end now.
    Ending,
    /// The start is over, and handover exits.
    Done(Outcome),
}

/// The end of a start, which decides handover's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A signal asked for this end.
    Stopped,
    /// HAProxy ended by itself, with this status.
    Ended(u8),
    /// HAProxy rejected the configuration, and nothing was started.
    Rejected,
    /// The new HAProxy ended or didn't answer in time.
    Unready,
}

/// An event in the life of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// `haproxy -c` accepted the configuration.
    Accepted,
    /// `haproxy -c` rejected the configuration.
    Rejected,
    /// The new HAProxy answers on the runtime socket's path.
    Answered,
    /// The new HAProxy answers over its master, and another one on the runtime socket's path. The new one has inherited
    /// a listener that the path no longer leads to.
    Bypassed,
    /// supervisord was killed, and this process has another parent.
    Orphaned,
    /// The new HAProxy's master ended with this status.
    Ended(u8),
    /// No HAProxy of this socket is left.
    AllEnded,
    /// The time limit of the state has passed.
    Timeout,
    /// A signal asks handover to end. A successor may follow.
    Detach,
    /// A signal asks for the end of HAProxy.
    Finish,
    /// A signal asks for a takeover by a new HAProxy.
    Reload,
}

/// An act that a step asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start the new HAProxy beside the old ones.
    Launch,
    /// Have the old ones finish their requests.
    ReleaseOld,
    /// Have every HAProxy finish its requests.
    FinishAll,
    /// Have every HAProxy end now.
    TerminateAll,
    /// Kill every HAProxy of this socket.
    KillAll,
    /// Kill the new one, and let the old ones be.
    KillNew,
    /// Have the new one finish if an old one serves, and leave that to the watchdog.
    AbandonNew,
    /// Start over with a HAProxy that binds its sockets itself. The present new one then finishes as an old one.
    StartAfresh,
    /// Leave HAProxy to the watchdog, which ends it unless a successor appears.
    LeaveToWatchdog,
    /// Check the files and, if HAProxy accepts them, start over in the same process.
    Reload,
}

impl Outcome {
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Stopped => 0,
            Self::Ended(code) => code,
            Self::Rejected => 2,
            Self::Unready => 3,
        }
    }
}

/// Decides the next state, and the action on the way. A pair that isn't in the table changes nothing.
pub(crate) fn step(state: State, event: Event) -> (State, Option<Action>) {
    let (next, action) = look_up(state, event);
    Step { state, event, next, action }.check_invariants();
    (next, action)
}

fn look_up(state: State, event: Event) -> (State, Option<Action>) {
    use State::{Checking, Done, Draining, Ending, Serving, Starting};
    match (state, event) {
        (Checking, Event::Accepted) => (Starting, Some(Action::Launch)),
        (Checking, Event::Rejected) => (Done(Outcome::Rejected), None),
        (Starting, Event::Answered) => (Serving, Some(Action::ReleaseOld)),
        (Starting, Event::Ended(_)) => (Done(Outcome::Unready), None),
        (Starting, Event::Timeout) => (Done(Outcome::Unready), Some(Action::KillNew)),
        (Serving, Event::Ended(code)) => (Done(Outcome::Ended(code)), None),
        (Serving, Event::Reload) => (Serving, Some(Action::Reload)),
        (Starting, Event::Bypassed) => (Starting, Some(Action::StartAfresh)),
        // The next supervisord starts anew. The watchdog ends a HAProxy that doesn't serve yet.
        (Checking | Starting, Event::Orphaned) => (Done(Outcome::Unready), None),
        // One HAProxy stays: takeovers that are given up one after another must not pile up.
        (Starting, Event::Detach) => (Done(Outcome::Stopped), Some(Action::AbandonNew)),
        (Checking | Serving, Event::Detach) => (Done(Outcome::Stopped), Some(Action::LeaveToWatchdog)),
        (Checking | Starting | Serving, Event::Finish) => (Draining, Some(Action::FinishAll)),
        (Draining | Ending, Event::AllEnded) => (Done(Outcome::Stopped), None),
        // The HAProxys end by themselves, at the latest after their `hard-stop-after`.
        (Draining, Event::Detach) => (Done(Outcome::Stopped), None),
        (Draining, Event::Timeout | Event::Finish) => (Ending, Some(Action::TerminateAll)),
        (Ending, Event::Timeout | Event::Finish | Event::Detach) => (Done(Outcome::Stopped), Some(Action::KillAll)),
        (state, _) => (state, None),
    }
}

/// One step, as the table has it.
#[derive(Debug, Clone, Copy)]
struct Step {
    state: State,
    event: Event,
    next: State,
    action: Option<Action>,
}

impl Step {
    fn check_invariants(&self) {
        debug_assert_eq!(self.find_broken_rule(), None, "{self:?}");
    }

    /// Finds the first rule that the step breaks. `None` if it keeps them all.
    fn find_broken_rule(&self) -> Option<&'static str> {
        let is_failure = matches!(self.next, State::Done(Outcome::Rejected | Outcome::Unready));
        let rules = [
            (
                "a start that is over changes nothing",
                !self.is_over() || (self.next == self.state && self.action.is_none()),
            ),
            ("a start never goes back", self.next.rank() >= self.state.rank()),
            (
                "a failed takeover touches no old HAProxy",
                !is_failure || matches!(self.action, None | Some(Action::KillNew)),
            ),
            (
                "old HAProxys finish once the new one serves",
                self.action != Some(Action::ReleaseOld) || (self.state, self.next) == (State::Starting, State::Serving),
            ),
            (
                "requests are cut off only after a drain",
                !matches!(self.action, Some(Action::TerminateAll | Action::KillAll))
                    || matches!(self.state, State::Draining | State::Ending),
            ),
            ("a HAProxy that is left has a watchdog", !self.leaves_haproxy() || self.has_left_it_to_watchdog()),
        ];
        rules.into_iter().find(|(_, holds)| !holds).map(|(rule, _)| rule)
    }

    fn is_over(&self) -> bool {
        matches!(self.state, State::Done(_))
    }

    /// True if handover ends at a signal, and HAProxy serves on.
    fn leaves_haproxy(&self) -> bool {
        let has_served = matches!(self.state, State::Checking | State::Starting | State::Serving);
        has_served && self.event == Event::Detach
    }

    fn has_left_it_to_watchdog(&self) -> bool {
        matches!(self.action, Some(Action::LeaveToWatchdog | Action::AbandonNew))
    }
}

impl State {
    /// The order in which a start passes its states.
    fn rank(self) -> u8 {
        match self {
            Self::Checking => 0,
            Self::Starting => 1,
            Self::Serving => 2,
            Self::Draining => 3,
            Self::Ending => 4,
            Self::Done(_) => 5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 5] = [State::Checking, State::Starting, State::Serving, State::Draining, State::Ending];
    const EVENTS: [Event; 11] = [
        Event::Accepted,
        Event::Rejected,
        Event::Answered,
        Event::Bypassed,
        Event::Orphaned,
        Event::Ended(7),
        Event::AllEnded,
        Event::Timeout,
        Event::Detach,
        Event::Finish,
        Event::Reload,
    ];

    #[test]
    fn the_whole_table() {
        let mut table = String::new();
        for state in STATES {
            for event in EVENTS {
                let (next, action) = step(state, event);
                if next != state || action.is_some() {
                    let action = action.map(|action| format!("{action:?}")).unwrap_or_default();
                    let line = format!("{:<9} {:<9} → {:<16} {action}", debug(state), debug(event), debug(next));
                    table.push_str(line.trim_end());
                    table.push('\n');
                }
            }
        }
        expect_test::expect_file!["step.golden"].assert_eq(&table);
    }

    fn debug(value: impl std::fmt::Debug) -> String {
        format!("{value:?}")
    }

    #[test]
    fn a_step_that_breaks_a_rule_is_found() {
        use State::{Checking, Done, Draining, Ending, Serving, Starting};
        let stopped = Done(Outcome::Stopped);
        for (state, event, next, action, rule) in [
            (stopped, Event::Finish, stopped, Some(Action::KillAll), "a start that is over changes nothing"),
            (stopped, Event::Reload, Checking, None, "a start that is over changes nothing"),
            (Serving, Event::Reload, Starting, None, "a start never goes back"),
            (
                Starting,
                Event::Ended(1),
                Done(Outcome::Unready),
                Some(Action::FinishAll),
                "a failed takeover touches no old HAProxy",
            ),
            (
                Starting,
                Event::Timeout,
                Starting,
                Some(Action::ReleaseOld),
                "old HAProxys finish once the new one serves",
            ),
            (Serving, Event::Finish, Ending, Some(Action::TerminateAll), "requests are cut off only after a drain"),
            (Serving, Event::Detach, stopped, None, "a HAProxy that is left has a watchdog"),
        ] {
            assert_eq!(Step { state, event, next, action }.find_broken_rule(), Some(rule));
        }
        let kept = Step { state: Draining, event: Event::AllEnded, next: stopped, action: None };
        assert_eq!(kept.find_broken_rule(), None);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "a start never goes back")]
    fn a_broken_rule_ends_a_debug_build() {
        let (state, next) = (State::Serving, State::Starting);
        Step { state, event: Event::Reload, next, action: None }.check_invariants();
    }

    #[test]
    fn nothing_happens_after_the_end() {
        for event in EVENTS {
            let done = State::Done(Outcome::Rejected);
            assert_eq!(step(done, event), (done, None));
        }
    }
}
