//! The environment variables that the operator's `global` lines set for the lines behind them. Pure: no I/O.

use std::collections::BTreeMap;

use haproxy::config::ConfigWord;

use super::LOCAL_PEER;

/// Environment variables by name.
pub type Environment = BTreeMap<String, String>;

/// Changes the environment as a `global` line does for the lines behind it.
pub(super) fn set_variables(environment: &mut Environment, words: &[ConfigWord]) {
    let (Some(keyword), names) = (words.first(), words.get(1..).unwrap_or_default()) else { return };
    match (keyword.text.as_str(), names) {
        ("setenv", [name, value, ..]) => {
            // A value that isn't known here is better unknown than old.
            if value.has_unknown_variable {
                environment.remove(&name.text);
            } else {
                environment.insert(name.text.clone(), value.text.clone());
            }
        }
        ("presetenv", [name, value, ..]) if !value.has_unknown_variable => {
            environment.entry(name.text.clone()).or_insert_with(|| value.text.clone());
        }
        // HAProxy ignores the line beside `-L`. The names are the same then, or the operator's line would be of no use.
        ("localpeer", [name, ..]) if !name.has_unknown_variable => {
            environment.insert(LOCAL_PEER.to_owned(), name.text.clone());
        }
        ("unsetenv", names) => names.iter().for_each(|name| _ = environment.remove(&name.text)),
        _ => {}
    }
}
