//! The last known good values and the claims' owners, over confgen's own restarts (`state.json`). Pure.

use std::collections::BTreeMap;

use discovery::ServiceId;
use serde::{Deserialize, Serialize};

/// Good values and claims. They live as long as their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastKnownGood {
    /// By service, then by key: the last value that counted.
    good: BTreeMap<String, BTreeMap<String, String>>,
    /// By claim (`a.com/api/`, `:3306`): the owner.
    claims: BTreeMap<String, ServiceId>,
}

/// The changes of good values and claims since they were written last. `None` is a value, or an owner, that is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastKnownGoodChange {
    /// By service. `None` if the service is gone.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) good: BTreeMap<String, Option<BTreeMap<String, Option<String>>>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) claims: BTreeMap<String, Option<ServiceId>>,
}

/// Compares two maps. `None` is a key that `after` lacks.
pub(super) fn compare_maps<T: Clone + PartialEq>(
    before: &BTreeMap<String, T>,
    after: &BTreeMap<String, T>,
) -> BTreeMap<String, Option<T>> {
    let gone = before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), None));
    let written = after.iter().filter(|(key, value)| before.get(*key) != Some(value));
    gone.chain(written.map(|(key, value)| (key.clone(), Some(value.clone())))).collect()
}

fn apply_values<T>(values: &mut BTreeMap<String, T>, changes: BTreeMap<String, Option<T>>) {
    for (key, value) in changes {
        match value {
            Some(value) => _ = values.insert(key, value),
            None => _ = values.remove(&key),
        }
    }
}

impl LastKnownGood {
    pub(super) fn new(good: BTreeMap<String, BTreeMap<String, String>>, claims: BTreeMap<String, ServiceId>) -> Self {
        Self { good, claims }
    }

    /// Applies changes since these values and claims were written.
    pub fn apply_change(&mut self, change: LastKnownGoodChange) {
        for (section, values) in change.good {
            match values {
                Some(values) => apply_values(self.good.entry(section).or_default(), values),
                None => _ = self.good.remove(&section),
            }
        }
        apply_values(&mut self.claims, change.claims);
    }

    /// The last good values of a service, by key. `None` if it had none.
    pub(super) fn values_of(&self, id: &ServiceId) -> Option<&BTreeMap<String, String>> {
        self.good.get(&id.to_string())
    }

    /// The section names of the services that had a good value.
    pub(super) fn section_names(&self) -> impl Iterator<Item = &String> {
        self.good.keys()
    }

    /// The owner of each claim.
    pub(super) fn claims(&self) -> &BTreeMap<String, ServiceId> {
        &self.claims
    }
}
