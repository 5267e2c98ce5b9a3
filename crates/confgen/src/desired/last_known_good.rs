//! The last known good values and the claims' owners, over confgen's own restarts (`memory.json`). Pure.

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

impl LastKnownGood {
    pub(super) fn new(good: BTreeMap<String, BTreeMap<String, String>>, claims: BTreeMap<String, ServiceId>) -> Self {
        Self { good, claims }
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
