//! The course of a switch, as a pure function. A test prints it to `SWITCH.md`.

/// The state of a switch. `left` is the number of steps after this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// Nothing is written yet. `--before` runs, if it was given.
    BeforeHook { left: usize },
    /// A step is being written.
    Writing { left: usize },
    /// The step is written, and the balancers have to follow.
    Following { left: usize },
    /// The new color has its share, and is watched.
    Watching { left: usize },
    /// The last step is over. `--after` runs, if it was given.
    AfterHook,
    /// The value from before the switch is being written.
    RollingBack,
    /// That value is written, and the balancers have to follow.
    AwaitingRollback,
    /// Ended before anything was written.
    Unchanged,
    /// Ended: the last step stays active.
    Done,
    /// Ended: the value from before the switch is active again.
    RolledBack,
    /// Ended: the step that was active at the signal stays active.
    Stopped,
    /// Ended: another client wrote `active`, and its value stays.
    Conflict,
    /// Ended: etcd didn't say if a write was done.
    WriteUnknown,
}

/// An event of a switch. A hook that wasn't given passes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// The command of `--before` or `--after` succeeded.
    Passed,
    /// The command of `--before` or `--after` failed.
    Failed,
    /// etcd has made the write.
    Written,
    /// etcd didn't say before --timeout if the write was done.
    WriteUnknown,
    /// All live balancers follow the write.
    Followed,
    /// A balancer refuses the value, or doesn't follow before --timeout.
    NotFollowed,
    /// The step's time is over, and no limit was exceeded.
    StepEnded,
    /// Too many requests failed, or they took too long.
    LimitExceeded,
    /// A limit can't be judged: a balancer's key is gone, or its API can't be asked.
    Unjudged,
    /// Another client wrote the key `active`.
    Conflict,
    /// A signal without --undo-on-interrupt came.
    Interrupted,
    /// A signal with --undo-on-interrupt came.
    UndoRequested,
}

/// An action of a switch. Each action ends with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    /// Write the next step's value.
    WriteStep,
    /// Wait until the balancers follow.
    AwaitBalancers,
    /// Watch the new color for --every.
    Watch,
    /// Run the command of `--after`.
    RunAfter,
    /// Write the value from before the switch.
    WriteRollback,
}

/// Decides the next state and the action there. An event without a meaning in a state changes nothing.
pub(crate) fn step(state: State, event: Event) -> (State, Option<Action>) {
    let (next, action) = decide(state, event);
    debug_assert_eq!(check_invariants(state, next, action), Ok(()), "{state:?} {event:?}");
    (next, action)
}

fn decide(state: State, event: Event) -> (State, Option<Action>) {
    use {Action as A, Event as E, State as S};
    match (state, event) {
        (S::BeforeHook { left }, E::Passed) => (S::Writing { left: left.saturating_sub(1) }, Some(A::WriteStep)),
        (S::BeforeHook { .. }, E::Failed | E::Interrupted | E::UndoRequested) => (S::Unchanged, None),

        // The first sample failed before the write, so the step's requests can't be counted.
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
        // The old value is written already, so a second signal ends the wait for the balancers.
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

/// Checks what has to hold of every transition. The error is the rule that it breaks.
fn check_invariants(from: State, next: State, action: Option<Action>) -> Result<(), &'static str> {
    if from.is_end() && (next, action) != (from, None) {
        return Err("an ended switch does nothing any more");
    }
    if action != next.action().filter(|_| next != from) {
        return Err("an action belongs to the state that it leads to");
    }
    if from.left().zip(next.left()).is_some_and(|(before, after)| after > before || after + 1 < before) {
        return Err("steps are taken one by one");
    }
    if from.is_rollback() && !(next.is_rollback() || next.is_end()) {
        return Err("a rollback never goes forward again");
    }
    if next == State::Unchanged && !matches!(from, State::BeforeHook { .. } | State::Unchanged) {
        return Err("a switch that has begun to write doesn't end as unchanged");
    }
    if next == State::Done && !matches!(from, State::AfterHook | State::Done) {
        return Err("a switch is done only after its last step and its hook");
    }
    Ok(())
}

impl State {
    /// The action on the way into this state. None for an end, and for `--before`, which runs before the first event.
    fn action(self) -> Option<Action> {
        use State as S;
        match self {
            S::Writing { .. } => Some(Action::WriteStep),
            S::Following { .. } | S::AwaitingRollback => Some(Action::AwaitBalancers),
            S::Watching { .. } => Some(Action::Watch),
            S::AfterHook => Some(Action::RunAfter),
            S::RollingBack => Some(Action::WriteRollback),
            S::BeforeHook { .. } => None,
            S::Unchanged | S::Done | S::RolledBack | S::Stopped | S::Conflict | S::WriteUnknown => None,
        }
    }

    /// The number of steps after this one; None if no further step can follow.
    fn left(self) -> Option<usize> {
        use State as S;
        match self {
            S::BeforeHook { left } | S::Writing { left } | S::Following { left } | S::Watching { left } => Some(left),
            S::AfterHook => Some(0),
            _ => None,
        }
    }

    fn is_rollback(self) -> bool {
        matches!(self, Self::RollingBack | Self::AwaitingRollback)
    }

    /// No state follows this one.
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
             ```mermaid\nstateDiagram-v2\n    [*] --> BeforeHook2\n",
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

    #[track_caller]
    fn assert_broken(from: State, next: State, action: Option<Action>, rule: &str) {
        let broken = check_invariants(from, next, action).unwrap_err();
        assert!(broken.contains(rule), "{broken}");
    }

    #[test]
    fn each_rule_of_a_transition_is_checked() {
        use State as S;
        let rollback = Some(Action::WriteRollback);
        assert_broken(S::Done, S::RollingBack, rollback, "an ended switch");
        assert_broken(S::Stopped, S::Stopped, rollback, "an ended switch");
        assert_broken(S::AfterHook, S::RollingBack, None, "an action belongs");
        assert_broken(S::Writing { left: 1 }, S::Following { left: 1 }, rollback, "an action belongs");
        assert_broken(S::Watching { left: 1 }, S::Watching { left: 1 }, Some(Action::Watch), "an action belongs");
        let write = Some(Action::WriteStep);
        assert_broken(S::Watching { left: 1 }, S::Writing { left: 2 }, write, "one by one");
        assert_broken(S::Watching { left: 2 }, S::Writing { left: 0 }, write, "one by one");
        assert_broken(S::Watching { left: 2 }, S::AfterHook, Some(Action::RunAfter), "one by one");
        assert_broken(S::RollingBack, S::Writing { left: 0 }, write, "never goes forward");
        assert_broken(S::Following { left: 0 }, S::Unchanged, None, "doesn't end as unchanged");
        assert_broken(S::Watching { left: 0 }, S::Done, None, "only after its last step");
        assert_broken(S::AwaitingRollback, S::Done, None, "only after its last step");
    }

    #[test]
    fn an_end_is_one_and_every_other_state_waits_for_something() {
        for state in STATES {
            let ways = changes().filter(|(from, ..)| *from == state).count();
            assert_eq!(state.is_end(), ways == 0, "{state:?}");
        }
        // Only a state that asks for a write leads to one.
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
