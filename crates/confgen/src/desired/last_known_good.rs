//! What a confgen remembers from round to round, and over its own restarts.

use std::collections::BTreeMap;

use discovery::ServiceId;
use serde::{Deserialize, Serialize};

/// Good values and held claims. Only what concerns keys that exist is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastKnownGood {
    /// By service, then by key: the last value that was followed.
    good: BTreeMap<String, BTreeMap<String, String>>,
    /// By claim (`a.com/api/`, `:3306`): the service that holds it.
    claims: BTreeMap<String, ServiceId>,
}

impl LastKnownGood {
    pub(super) fn new(good: BTreeMap<String, BTreeMap<String, String>>, claims: BTreeMap<String, ServiceId>) -> Self {
        Self { good, claims }
    }

    /// The last good values of a service, by key.
    pub(super) fn values_of(&self, id: &ServiceId) -> Option<&BTreeMap<String, String>> {
        self.good.get(&id.to_string())
    }

    /// The sections of the services that had a good value.
    pub(super) fn section_names(&self) -> impl Iterator<Item = &String> {
        self.good.keys()
    }

    /// Who holds which claim.
    pub(super) fn claims(&self) -> &BTreeMap<String, ServiceId> {
        &self.claims
    }
}
