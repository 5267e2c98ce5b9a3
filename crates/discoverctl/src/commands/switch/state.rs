//! The course of a switch, as a pure function. `SWITCH.md` is printed from it by a test.

/// Where it stands. `left` counts the steps behind this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// Nothing is written; `--before` runs, if there is one.
    Testing { left: usize },
    /// A step is being written.
    Writing { left: usize },
    /// The balancers are waited for.
    Following { left: usize },
    /// The new color serves its share, and is watched.
    Watching { left: usize },
    /// The last step is over; `--after` runs, if there is one.
    Proving,
    /// What was active before is being written again.
    GoingBack,
    /// The balancers are waited for once more.
    Returning,
    /// Ended: nothing was written.
    Unchanged,
    /// Ended: the last step stands.
    Done,
    /// Ended: what was active before is active again.
    WentBack,
    /// Ended: the step stands that stood when it was interrupted.
    Stopped,
    /// Ended: somebody else wrote `active`, and theirs stands.
    Overtaken,
    /// Ended: etcd didn't say what became of a write.
    Lost,
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
    Unknown,
    /// All live balancers follow.
    Followed,
    /// A balancer refuses, or doesn't follow in time.
    NotFollowed,
    /// The step's time is over, and nothing was found against it.
    Over,
    /// Too many requests failed, or they took too long.
    Bad,
    /// It can't be judged: a balancer has gone, or its API can't be asked, and a limit was given.
    Blind,
    /// Somebody else wrote `active`.
    Overtaken,
    /// A signal, which leaves things as they stand.
    Interrupted,
    /// A signal with `--undo-on-interrupt`.
    Undo,
}

/// What to do about it; each ends in the next event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    /// Write the next step.
    WriteStep,
    /// Wait for the balancers.
    Await,
    /// Watch the new color for a while.
    Watch,
    /// Run `--after`.
    RunAfter,
    /// Write what was active before.
    WriteBack,
}

/// The next state, and what to do there. An event that means nothing in a state changes nothing.
pub(crate) fn step(state: State, event: Event) -> (State, Option<Action>) {
    use {Action as A, Event as E, State as S};
    match (state, event) {
        (S::Testing { left }, E::Passed) => (S::Writing { left: left.saturating_sub(1) }, Some(A::WriteStep)),
        (S::Testing { .. }, E::Failed | E::Interrupted | E::Undo) => (S::Unchanged, None),

        // Before the write: counting can't begin.
        (S::Writing { .. }, E::Blind) => (S::GoingBack, Some(A::WriteBack)),
        (S::Writing { left }, E::Written) => (S::Following { left }, Some(A::Await)),
        (S::Following { left }, E::Followed) => (S::Watching { left }, Some(A::Watch)),
        (S::Watching { left: 0 }, E::Over) => (S::Proving, Some(A::RunAfter)),
        (S::Watching { left }, E::Over) => (S::Writing { left: left - 1 }, Some(A::WriteStep)),
        (S::Proving, E::Passed) => (S::Done, None),

        (S::Following { .. }, E::NotFollowed) => (S::GoingBack, Some(A::WriteBack)),
        (S::Watching { .. }, E::Bad | E::Blind) => (S::GoingBack, Some(A::WriteBack)),
        (S::Proving, E::Failed) => (S::GoingBack, Some(A::WriteBack)),
        (S::GoingBack, E::Written) => (S::Returning, Some(A::Await)),
        // What was active before is written; a second signal doesn't wait for the balancers.
        (S::Returning, E::Followed | E::NotFollowed | E::Interrupted | E::Undo) => (S::WentBack, None),

        (S::Following { .. } | S::Watching { .. } | S::Proving, E::Interrupted) => (S::Stopped, None),
        (S::Following { .. } | S::Watching { .. } | S::Proving, E::Undo) => (S::GoingBack, Some(A::WriteBack)),

        (S::Writing { .. } | S::GoingBack, E::Unknown) => (S::Lost, None),
        (
            S::Writing { .. } | S::Following { .. } | S::Watching { .. } | S::Proving | S::GoingBack | S::Returning,
            E::Overtaken,
        ) => (S::Overtaken, None),

        (state, _) => (state, None),
    }
}

#[cfg(test)]
impl State {
    /// Whether nothing comes after it.
    pub(crate) fn is_end(self) -> bool {
        use State as S;
        matches!(self, S::Unchanged | S::Done | S::WentBack | S::Stopped | S::Overtaken | S::Lost)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::expect_file;

    use super::*;

    const STATES: [State; 16] = [
        State::Testing { left: 2 },
        State::Writing { left: 1 },
        State::Writing { left: 0 },
        State::Following { left: 1 },
        State::Following { left: 0 },
        State::Watching { left: 1 },
        State::Watching { left: 0 },
        State::Proving,
        State::GoingBack,
        State::Returning,
        State::Unchanged,
        State::Done,
        State::WentBack,
        State::Stopped,
        State::Overtaken,
        State::Lost,
    ];

    const EVENTS: [Event; 12] = [
        Event::Passed,
        Event::Failed,
        Event::Written,
        Event::Unknown,
        Event::Followed,
        Event::NotFollowed,
        Event::Over,
        Event::Bad,
        Event::Blind,
        Event::Overtaken,
        Event::Interrupted,
        Event::Undo,
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
            let writes = matches!(next, State::Writing { .. } | State::GoingBack) && next != state;
            assert_eq!(writes, matches!(action, Some(Action::WriteStep | Action::WriteBack)), "{state:?} {event:?}");
        }
    }

    #[test]
    fn all_is_well_to_the_end() {
        let answers = [Event::Passed, Event::Written, Event::Followed, Event::Over];
        let mut state = State::Testing { left: 3 };
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
