//! The wanted sections that the running generation lacks or has otherwise. A comparison costs what changed since the last one. Pure.

use std::collections::BTreeSet;

use crate::desired::shared_map::SharedMap;

/// The fingerprints of sections, by name.
type Sections = SharedMap<String, String>;

/// The names of the wanted sections that the running generation lacks or has otherwise.
#[derive(Clone, Debug, Default)]
pub struct SectionDifferences {
    names: BTreeSet<String>,
    /// The wanted sections of the last comparison.
    wanted: Sections,
    /// Sections that changed in the running generation since.
    changed: BTreeSet<String>,
}

impl SectionDifferences {
    /// Notes that a section of the running generation changed.
    pub fn note_changed(&mut self, name: &str) {
        self.changed.insert(name.to_owned());
    }

    /// Compares again. All calls are about one running generation.
    pub(super) fn update(&mut self, running: &Sections, wanted: &Sections) {
        let before = std::mem::replace(&mut self.wanted, wanted.clone());
        let changed = std::mem::take(&mut self.changed);
        let rewritten = wanted.changes_since(&before).map(|(name, _, _)| name);
        for name in rewritten.chain(&changed) {
            let print = wanted.get(name);
            // A section that is no longer wanted does no harm without servers and routes.
            if print.is_none() || print == running.get(name) {
                self.names.remove(name);
            } else if !self.names.contains(name) {
                self.names.insert(name.clone());
            }
        }
    }

    /// The names, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.names.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// After any changes of either side, the differences are those of a first comparison.
        #[test]
        fn a_repeated_comparison_comes_to_the_same_as_a_first_one(
            steps in prop::collection::vec((any::<bool>(), 0..150_u8, prop::option::of(0..2_u8)), 1..200),
        ) {
            let (mut running, mut wanted) = (Sections::default(), Sections::default());
            let mut kept = SectionDifferences::default();
            for (is_running, name, print) in steps {
                let name = format!("http-{name}");
                let side = if is_running { &mut running } else { &mut wanted };
                match print {
                    Some(print) => _ = side.insert(name.clone(), print.to_string()),
                    None => _ = side.remove(&name),
                }
                if is_running {
                    kept.note_changed(&name);
                }
                kept.update(&running, &wanted);
                let mut first = SectionDifferences::default();
                first.update(&running, &wanted);
                prop_assert_eq!(&kept.names, &first.names);
            }
        }
    }
}
