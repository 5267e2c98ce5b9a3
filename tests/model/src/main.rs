//! The program proof: every model, every property, every seeded bug, as a table. A word takes only what has it in its line.

use std::io::Write as _;
use std::process::ExitCode;

use model::proof::{BUGS, Bug, Depth, MODELS, check_bugs, check_product, draw, format_line};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let depth = if words.iter().any(|word| word == "--small") { Depth::Test } else { Depth::Proof };
    let word = words.iter().find(|word| !word.starts_with("--"));
    let is_asked = |name: &str| word.is_none_or(|word| name.contains(word.as_str()));
    let mut out = std::io::stdout();
    let (mut is_proved, mut states) = (true, 0);
    for model in MODELS.into_iter().filter(|model| is_asked(model)) {
        let outcome = check_product(model, depth);
        is_proved &= outcome.violation.is_none() && outcome.is_complete;
        states += outcome.states;
        let _ = writeln!(out, "{}\n{}", format_line(&outcome), draw(&outcome));
    }
    let bugs: Vec<Bug> = BUGS.into_iter().filter(|bug| is_asked(&format!("{bug:?}"))).collect();
    for outcome in check_bugs(&bugs) {
        is_proved &= outcome.violation.is_some();
        let _ = writeln!(out, "{}", format_line(&outcome));
        if word.is_some() {
            let _ = writeln!(out, "{}", draw(&outcome));
        }
    }
    let _ = writeln!(out, "{states} states of the product as it is");
    if is_proved { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
