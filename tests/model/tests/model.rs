//! The product keeps its promises in every state of the small models, and every seeded bug is found.

use std::fmt::Write as _;
use std::path::Path;

use model::proof::{BUGS, Depth, MODELS, Outcome, check_bugs, check_product, draw};

/// The generated part of the page begins here, and goes on to its end.
const BEGIN: &str = "<!-- generated: UPDATE_EXPECT=1 cargo test --workspace --profile proof --test model -->\n";

#[test]
fn the_product_keeps_every_promise_in_the_small_models() {
    for model in MODELS {
        let outcome = check_product(model, Depth::Test);
        assert_eq!(outcome.violation, None, "{}: {}", outcome.model, draw(&outcome));
        assert!(outcome.is_complete, "{}: not finished", outcome.model);
        assert!(outcome.states > 1000, "{} has {} states", outcome.model, outcome.states);
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a person looks at the page before it is committed")]
fn every_seeded_bug_is_found_and_drawn() {
    let found: Vec<Outcome> = check_bugs(&BUGS);
    for outcome in &found {
        assert!(outcome.violation.is_some(), "{:?} is not found among {} states", outcome.bug, outcome.states);
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/internals/proof.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let (head, drawn) = text.split_once(BEGIN).unwrap();
    let expected = draw_all(&found);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&page, format!("{head}{BEGIN}{expected}")).unwrap();
    } else {
        assert_eq!(drawn, expected, "UPDATE_EXPECT=1 draws the page again");
    }
}

fn draw_all(found: &[Outcome]) -> String {
    let mut text = String::new();
    for outcome in found {
        let bug = outcome.bug.map_or("", |bug| bug.describe());
        let _ = write!(text, "\n### {bug}\n\n```text\n{}```\n", draw(outcome));
    }
    text
}
