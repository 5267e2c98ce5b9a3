//! Plans the addition of backends, and knows those that have to go (HAProxy 3.4). Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};

use haproxy::runtime::Change;

/// The part of the observed state that concerns the backends themselves, by section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    /// The backends that get no request, wherever a map leads.
    unpublished: BTreeSet<String>,
    /// The backends that the next plan adds, with their shapes.
    expected: BTreeMap<String, String>,
    /// The backends that no service wants any more.
    leaving: BTreeSet<String>,
    /// The backends that are never deleted. `None` if HAProxy deletes none while it runs.
    lasting: Option<BTreeSet<String>>,
}

impl Backends {
    /// The backends of a HAProxy that adds and deletes some while it runs.
    pub fn new(unpublished: BTreeSet<String>, lasting: BTreeSet<String>) -> Self {
        Self { unpublished, lasting: Some(lasting), ..Self::default() }
    }

    pub(super) fn leaving(&self) -> &BTreeSet<String> {
        &self.leaving
    }

    pub(super) fn expect(&mut self, name: &str, shape: &str) {
        self.expected.insert(name.to_owned(), shape.to_owned());
        // HAProxy sends an added backend nothing before it is published.
        self.unpublished.insert(name.to_owned());
    }

    /// True if the next plan adds this backend.
    pub(super) fn is_expected(&self, name: &str) -> bool {
        self.expected.contains_key(name)
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.unpublished.remove(name);
        self.leaving.remove(name);
    }

    pub(super) fn mark_unpublished(&mut self, name: &str, for_good: bool) {
        self.unpublished.insert(name.to_owned());
        if for_good {
            self.leaving.remove(name);
        }
    }

    pub(super) fn plan_addition(&self, section: &str) -> Option<Change> {
        let shape = self.expected.get(section)?;
        Some(Change::AddBackend(section.parse().ok()?, shape.parse().ok()?))
    }

    pub(super) fn plan_publishing(&self, section: &str) -> Option<Change> {
        self.unpublished.get(section)?.parse().ok().map(Change::PublishBackend)
    }

    /// Notes that HAProxy made the planned changes of this section.
    pub(super) fn mark_applied(&mut self, section: &str, is_wanted: bool) {
        self.expected.remove(section);
        if is_wanted {
            self.forget(section);
        } else if self.lasting.as_ref().is_some_and(|lasting| !lasting.contains(section)) {
            self.leaving.insert(section.to_owned());
        }
    }
}
