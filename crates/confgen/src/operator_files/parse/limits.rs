//! Limits of the whole process that `global` lines set, and that commands over the Runtime API change. Pure: no I/O, no clock.

use std::collections::BTreeMap;

use super::OperatorConfig;

/// The keywords of rates that HAProxy has no limit for without a line.
pub const RATES: [&str; 4] = ["maxconnrate", "maxsessrate", "maxsslrate", "maxcomprate"];

impl OperatorConfig {
    /// The rates that `global` lines limit, by keyword. `None` for a value that only HAProxy knows.
    pub fn rate_limits(&self) -> BTreeMap<&'static str, Option<u64>> {
        let mut limits = BTreeMap::new();
        for (source, words) in &self.directives {
            let [keyword, value, ..] = &words[..] else { continue };
            let Some(known) = RATES.into_iter().find(|rate| rate == keyword) else { continue };
            // Only HAProxy knows whether a condition holds. Of two lines the last counts.
            limits.insert(known, value.parse().ok().filter(|_| !source.is_conditional));
        }
        limits
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;

    #[test]
    fn rates_of_global_lines_are_known_unless_a_condition_decides() {
        let text = "global\n    maxconnrate 5\n    maxsessrate 7\n    maxsessrate 9\n    .if defined(X)\n    maxsslrate 3\n    .endif\n";
        let limits = OperatorConfig::from_texts([("mine.cfg", text)]).rate_limits();
        let expected = [("maxconnrate", Some(5)), ("maxsessrate", Some(9)), ("maxsslrate", None)];
        assert_eq!(limits, expected.into());
    }
}
