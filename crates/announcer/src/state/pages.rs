//! The golden pages of all lives in this crate: a diagram, and the table of all changes. Only for tests.

use std::fmt::{Debug, Write as _};

/// A change of state: before, event, after, actions in their order.
pub(crate) type Transition<S, E, A> = (S, E, S, &'static [A]);

/// The transitions that change or do something, for each of these states and events.
pub(crate) fn list_changes<S: Copy + PartialEq, E: Copy, A>(
    states: &[S],
    events: &[E],
    step: fn(S, E) -> (S, &'static [A]),
) -> Vec<Transition<S, E, A>> {
    let pairs = states.iter().flat_map(|state| events.iter().map(|event| (*state, *event)));
    let all = pairs.map(|(state, event)| {
        let (next, actions) = step(state, event);
        (state, event, next, actions)
    });
    all.filter(|(state, _, next, actions)| next != state || !actions.is_empty()).collect()
}

/// A page with the diagram and the table of a life that begins in `first` and ends in `Done`.
pub(crate) fn print_life<S: Debug, E: Debug, A: Debug>(
    title: &str,
    first: S,
    changes: &[Transition<S, E, A>],
) -> String {
    let mut page = format!(
        "<!-- Printed by the test `the_drawing_is_the_code`; UPDATE_EXPECT=1 writes it anew. -->\n\
         # {title}\n\n```mermaid\nstateDiagram-v2\n    [*] --> {first:?}\n"
    );
    for (state, event, next, _) in changes {
        writeln!(page, "    {state:?} --> {next:?}: {event:?}").unwrap();
    }
    page.push_str("    Done --> [*]\n```\n\nEvents that are not listed change nothing.\n\n");
    page + &print_changes(changes)
}

/// The table of all changes.
pub(crate) fn print_changes<S: Debug, E: Debug, A: Debug>(changes: &[Transition<S, E, A>]) -> String {
    let mut table = "| state | event | next state | actions, in this order |\n|---|---|---|---|\n".to_owned();
    for (state, event, next, actions) in changes {
        let actions: Vec<_> = actions.iter().map(|action| format!("{action:?}")).collect();
        writeln!(table, "| {state:?} | {event:?} | {next:?} | {} |", actions.join(", ")).unwrap();
    }
    table
}
