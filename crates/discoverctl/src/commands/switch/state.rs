//! The course of a switch, as a pure function. `SWITCH.md` is printed from it by a test.

/// Where it stands. `left` counts the steps behind this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// Nothing is written; `--before` runs, if there is one.
    BeforeHook { left: usize },
    /// A step is being written.
    Writing { left: usize },
    /// The balancers are waited for.
    Following { left: usize },
    /// The new color serves its share, and is watched.
    Watching { left: usize },
    /// The last step is over; `--after` runs, if there is one.
    AfterHook,
    /// What was active before is being written again.
    RollingBack,
    /// The balancers are waited for once more.
    AwaitingRollback,
    /// Ended: nothing was written.
    Unchanged,
    /// Ended: the last step stands.
    Done,
    /// Ended: what was active before is active again.
    RolledBack,
    /// Ended: the step stands that stood when it was interrupted.
    Stopped,
    /// Ended: somebody else wrote `active`, and theirs stands.
    Conflict,
    /// Ended: etcd didn't say what became of a write.
    WriteUnknown,
}

/// What can happen. Where there is no `--before` or no `--after`, it passes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// The command succeeded.
    Passed,
    /// The command failed.
    Failed,
    /// The write was done.
    Written,
    /// etcd didn't say, for as long as balancers are waited for.
    WriteUnknown,
    /// All live balancers follow.
    Followed,
    /// A balancer refuses, or doesn't follow in time.
    NotFollowed,
    /// The step's time is over, and nothing was found against it.
    StepEnded,
    /// Too many requests failed, or they took too long.
    LimitExceeded,
    /// It can't be judged: a balancer has gone, or its API can't be asked, and a limit was given.
    Unjudged,
    /// Somebody else wrote `active`.
    Conflict,
    /// A signal, which leaves things as they stand.
    Interrupted,
    /// A signal with `--undo-on-interrupt`.
    UndoRequested,
}

/// What to do about it; each ends in the next event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    /// Write the next step.
    WriteStep,
    /// Wait for the balancers.
    AwaitBalancers,
    /// Watch the new color for a while.
    Watch,
    /// Run `--after`.
    RunAfter,
    /// Write what was active before.
    WriteRollback,
}

/// The next state, and what to do there. An event that means nothing in a state changes nothing.
pub(crate) fn step(state: State, event: Event) -> (State, Option<Action>) {
    use {Action as A, Event as E, State as S};
    match (state, event) {
        (S::BeforeHook { left }, E::Passed) => (S::Writing { left: left.saturating_sub(1) }, Some(A::WriteStep)),
        (S::BeforeHook { .. }, E::Failed | E::Interrupted | E::UndoRequested) => (S::Unchanged, None),

        // Before the write: counting can't begin.
        (S::Writing { .. }, E::Unjudged) => (S::RollingBack, Some(A::WriteRollback)),
        (S::Writing { left }, E::Written) => (S::Following { left }, Some(A::AwaitBalancers)),
        (S::Following { left }, E::Followed) => (S::Watching { left }, Some(A::Watch)),
        (S::Watching { left: 0 }, E::StepEnded) => (S::AfterHook, Some(A::RunAfter)),
        (S::Watching { left }, E::StepEnded) => (S::Writing { left: left - 1 }, Some(A::WriteStep)),
        (S::AfterHook, E::Passed) => (S::Done, None),

        (S::Following { .. }, E::NotFollowed) => (S::RollingBack, Some(A::WriteRollback)),
        (S::Watching { .. }, E::LimitExceeded | E::Unjudged) => (S::RollingBack, Some(A::WriteRollback)),
        (S::AfterHook, E::Failed) => (S::RollingBack, Some(A::WriteRollback)),
        (S::RollingBack, E::Written) => (S::AwaitingRollback, Some(A::AwaitBalancers)),
        // What was active before is written; a second signal doesn't wait for the balancers.
        (S::AwaitingRollback, E::Followed | E::NotFollowed | E::Interrupted | E::UndoRequested) => {
            (S::RolledBack, None)
        }

        (S::Following { .. } | S::Watching { .. } | S::AfterHook, E::Interrupted) => (S::Stopped, None),
        (S::Following { .. } | S::Watching { .. } | S::AfterHook, E::UndoRequested) => {
            (S::RollingBack, Some(A::WriteRollback))
        }

        (S::Writing { .. } | S::RollingBack, E::WriteUnknown) => (S::WriteUnknown, None),
        (
            S::Writing { .. }
            | S::Following { .. }
            | S::Watching { .. }
            | S::AfterHook
            | S::RollingBack
            | S::AwaitingRollback,
            E::Conflict,
        ) => (S::Conflict, None),

        (state, _) => (state, None),
    }
}

#[cfg(test)]
impl State {
    /// Whether nothing comes after it.
    pub(crate) fn is_end(self) -> bool {
        use State as S;
        matches!(self, S::Unchanged | S::Done | S::RolledBack | S::Stopped | S::Conflict | S::WriteUnknown)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::expect_file;

    use super::*;

    const STATES: [State; 16] = [
        State::BeforeHook { left: 2 },
        State::Writing { left: 1 },
        State::Writing { left: 0 },
        State::Following { left: 1 },
        State::Following { left: 0 },
        State::Watching { left: 1 },
        State::Watching { left: 0 },
        State::AfterHook,
        State::RollingBack,
        State::AwaitingRollback,
        State::Unchanged,
        State::Done,
        State::RolledBack,
        State::Stopped,
        State::Conflict,
        State::WriteUnknown,
    ];

    const EVENTS: [Event; 12] = [
        Event::Passed,
        Event::Failed,
        Event::Written,
        Event::WriteUnknown,
        Event::Followed,
        Event::NotFollowed,
        Event::StepEnded,
        Event::LimitExceeded,
        Event::Unjudged,
        Event::Conflict,
        Event::Interrupted,
        Event::UndoRequested,
    ];

    fn changes() -> impl Iterator<Item = (State, Event, State, Option<Action>)> {
        let pairs = STATES.into_iter().flat_map(|state| EVENTS.into_iter().map(move |event| (state, event)));
        pairs.filter_map(|(state, event)| {
            let (next, action) = step(state, event);
            (next != state || action.is_some()).then_some((state, event, next, action))
        })
    }

    /// `Watching1`: what mermaid takes for a name.
    fn name(state: State) -> String {
        format!("{state:?}").replace(" { left: ", "").replace(" }", "")
    }

    #[test]
    fn the_drawing_is_the_code() {
        let mut drawing = String::from(
            "<!-- Printed by the test `the_drawing_is_the_code`; UPDATE_EXPECT=1 writes it anew. -->\n\
             # The course of a switch\n\nOf two steps here; the number behind a state counts the steps that are left.\n\n\
             ```mermaid\nstateDiagram-v2\n    [*] --> Testing2\n",
        );
        for (state, event, next, _) in changes() {
            writeln!(drawing, "    {} --> {}: {event:?}", name(state), name(next)).unwrap();
        }
        for end in STATES.into_iter().filter(|state| state.is_end()) {
            writeln!(drawing, "    {} --> [*]", name(end)).unwrap();
        }
        drawing.push_str("```\n\nEvents that are not listed change nothing.\n\n");
        drawing.push_str("| state | event | next state | action |\n|---|---|---|---|\n");
        for (state, event, next, action) in changes() {
            let action = action.map(|action| format!("{action:?}")).unwrap_or_default();
            writeln!(drawing, "| {} | {event:?} | {} | {action} |", name(state), name(next)).unwrap();
        }
        expect_file!["../../../SWITCH.md"].assert_eq(&drawing);
    }

    #[test]
    fn an_end_is_one_and_every_other_state_waits_for_something() {
        for state in STATES {
            let ways = changes().filter(|(from, ..)| *from == state).count();
            assert_eq!(state.is_end(), ways == 0, "{state:?}");
        }
        // Nothing is written but from a state that says so.
        for (state, event, next, action) in changes() {
            let writes = matches!(next, State::Writing { .. } | State::RollingBack) && next != state;
            assert_eq!(
                writes,
                matches!(action, Some(Action::WriteStep | Action::WriteRollback)),
                "{state:?} {event:?}"
            );
        }
    }

    #[test]
    fn all_is_well_to_the_end() {
        let answers = [Event::Passed, Event::Written, Event::Followed, Event::StepEnded];
        let mut state = State::BeforeHook { left: 3 };
        let mut writes = 0;
        while !state.is_end() {
            let moved = answers.iter().map(|event| step(state, *event)).find(|(next, _)| *next != state);
            let (next, action) = moved.unwrap();
            writes += usize::from(action == Some(Action::WriteStep));
            state = next;
        }
        assert_eq!((state, writes), (State::Done, 3));
    }
}
