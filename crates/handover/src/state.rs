//! What handover does when something happens: a pure table, printed whole into `step.golden`.

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// HAProxy reads the files; nothing has been started.
    Checking,
    /// The new HAProxy has been started and doesn't answer yet; an old one serves.
    Starting,
    /// The new HAProxy serves.
    Serving,
    /// Every HAProxy finishes its requests.
    Draining,
    /// Every HAProxy has been told to end now.
    Ending,
    /// Nothing more to do.
    Done(Outcome),
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As it was told to.
    Stopped,
    /// HAProxy ended by itself, with this status.
    Ended(u8),
    /// HAProxy refuses the configuration.
    Rejected,
    /// The new HAProxy ended or didn't answer in time.
    Unready,
}

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// HAProxy takes the configuration.
    Accepted,
    /// It doesn't.
    Rejected,
    /// The new HAProxy answers.
    Answered,
    /// The new HAProxy answers over its master, and another one on the runtime socket's path: what it inherited is a listener
    /// that the path no longer leads to.
    Bypassed,
    /// supervisord is gone.
    Orphaned,
    /// The new HAProxy's master ended with this status.
    Ended(u8),
    /// No HAProxy of this socket is left.
    AllEnded,
    /// The state's time is over.
    Timeout,
    /// Told to go, perhaps for a successor.
    Detach,
    /// Told to end HAProxy.
    Finish,
    /// Told to hand over to a new HAProxy.
    Reload,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start the new HAProxy beside the old ones.
    Launch,
    /// Have the old ones finish their requests.
    ReleaseOld,
    /// Have every one finish its requests.
    FinishAll,
    /// Have every one end now.
    TerminateAll,
    /// Kill every one.
    KillAll,
    /// Kill the new one, and let the old ones be.
    KillNew,
    /// Have the new one finish if an old one serves, and leave that to the watchdog.
    AbandonNew,
    /// Have the new one finish, and begin anew with one that binds its sockets itself.
    StartAfresh,
    /// Leave HAProxy to the watchdog, which ends it unless a successor appears.
    LeaveToWatchdog,
    /// Check the files, and begin anew in their favour.
    Reload,
}

impl Outcome {
    /// The exit status.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Stopped => 0,
            Self::Ended(code) => code,
            Self::Rejected => 2,
            Self::Unready => 3,
        }
    }
}

/// The next state, and what is to be done on the way. What isn't in the table changes nothing.
pub(crate) fn step(state: State, event: Event) -> (State, Option<Action>) {
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
        // They end by themselves, at the latest after their hard-stop-after.
        (Draining, Event::Detach) => (Done(Outcome::Stopped), None),
        (Draining, Event::Timeout | Event::Finish) => (Ending, Some(Action::TerminateAll)),
        (Ending, Event::Timeout | Event::Finish | Event::Detach) => (Done(Outcome::Stopped), Some(Action::KillAll)),
        (state, _) => (state, None),
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
    fn nothing_happens_after_the_end() {
        for event in EVENTS {
            let done = State::Done(Outcome::Rejected);
            assert_eq!(step(done, event), (done, None));
        }
    }
}
