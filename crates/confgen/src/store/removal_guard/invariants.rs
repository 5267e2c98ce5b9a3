//! What is always true of the removal guard. Debug builds check it after each change. Pure.

use std::collections::BTreeSet;

use super::{RemovalGuard, UpstreamRemoval};

impl RemovalGuard {
    /// Returns the first violated invariant.
    pub(super) fn check_invariants(&self) -> Result<(), String> {
        if let Some((service, _)) = self.retained.iter().find(|(_, retained)| retained.is_empty()) {
            return Err(format!("{service} is listed as retained without an upstream"));
        }
        let mut lost = BTreeSet::new();
        for UpstreamRemoval { service, id, .. } in self.losses.iter().map(|loss| &loss.removal) {
            if self.retained.get(service).is_some_and(|retained| retained.contains_key(id)) {
                return Err(format!("{service}/{id} is both lost and retained"));
            }
            if !lost.insert((service, id)) {
                return Err(format!("{service}/{id} is lost twice"));
            }
        }
        Ok(())
    }
}
