//! The keys, good values and claims that changed since an earlier desired state. Pure.
//!
//! Both states share what is unchanged. So a comparison costs what the changed services cost.

use std::collections::BTreeMap;
use std::sync::Arc;

use discovery::Entry;

use super::last_known_good::compare_maps;
use super::{DesiredState, LastKnownGoodChange, ServiceState};

/// The entries that differ between two desired states.
#[derive(Debug, Default)]
pub struct EntryChanges<'a> {
    pub written: Vec<&'a Entry>,
    /// The keys that only the earlier state has.
    pub removed: Vec<&'a str>,
}

impl DesiredState {
    /// The entries that were written or removed since `before`.
    pub fn compare_entries<'a>(&'a self, before: &'a Self) -> EntryChanges<'a> {
        let mut changes = EntryChanges::default();
        for (_, old, new) in self.services.changes_since(&before.services) {
            if old.zip(new).is_some_and(|(old, new)| Arc::ptr_eq(&old.source, &new.source)) {
                continue;
            }
            let entries = |state: Option<&'a ServiceState>| state.into_iter().flat_map(|it| it.source.entries());
            let mut gone: BTreeMap<&str, &Entry> = entries(old).map(|entry| (entry.key.as_str(), entry)).collect();
            changes.written.extend(entries(new).filter(|entry| gone.remove(entry.key.as_str()) != Some(*entry)));
            changes.removed.extend(gone.into_keys());
        }
        changes
    }

    /// The good values and claims that changed since `before`, as [`DesiredState::to_last_known_good`] has them.
    pub fn compare_last_known_good(&self, before: &Self) -> LastKnownGoodChange {
        let mut change = LastKnownGoodChange::default();
        for (id, old, new) in self.services.changes_since(&before.services) {
            let Some(new) = new else {
                change.good.insert(id.to_string(), None);
                continue;
            };
            if old.is_some_and(|old| Arc::ptr_eq(&old.input, &new.input)) {
                continue;
            }
            let values = compare_maps(&old.map(ServiceState::good_values).unwrap_or_default(), &new.good_values());
            // A service without a good value is listed too: its section may be the reason why a name is held.
            if old.is_none() || !values.is_empty() {
                change.good.insert(id.to_string(), Some(values));
            }
        }
        if !Arc::ptr_eq(&self.claims, &before.claims) {
            let holders = self.claims.holders().changes_since(before.claims.holders());
            let changed = holders.filter(|(_, old, new)| old != new);
            change.claims = changed.map(|(claim, _, owner)| (claim.clone(), owner.cloned())).collect();
        }
        change
    }
}
