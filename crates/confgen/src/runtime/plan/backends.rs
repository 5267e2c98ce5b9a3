//! Plans the addition of backends, and knows those that have to go (HAProxy 3.4). Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};

use discovery::ServiceId;
use haproxy::runtime::Change;

use super::RuntimeState;
use crate::desired::DesiredService;
use crate::desired::names::preview_section;

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

    pub(super) fn unpublished(&self) -> &BTreeSet<String> {
        &self.unpublished
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

impl RuntimeState {
    /// Sets what is known of the backends themselves.
    #[must_use]
    pub fn with_backends(mut self, backends: Backends) -> Self {
        self.backends = backends;
        self
    }

    /// Notes that the next plan has to add this backend.
    pub fn expect_backend(&mut self, name: &str, shape: &str, is_preview: bool) {
        self.backends.expect(name, shape);
        if is_preview {
            self.preview_sections.insert(name.to_owned());
        }
    }

    /// Notes that HAProxy deleted the backend.
    pub fn forget_backend(&mut self, name: &str) {
        self.backends.forget(name);
        self.preview_sections.remove(name);
        self.servers.remove(name);
        self.leaving_sections.remove(name);
        self.kept_sections.remove(name);
    }

    /// Notes that HAProxy doesn't delete the backend now. With `for_good` it never does, and the backend stays as it is.
    pub fn mark_unpublished(&mut self, name: &str, for_good: bool) {
        self.backends.mark_unpublished(name, for_good);
    }

    /// The backends that no service wants any more.
    pub fn leaving_backends(&self) -> &BTreeSet<String> {
        self.backends.leaving()
    }

    /// The backends that HAProxy can delete, once their last stream has ended: no service wants them, and their servers are gone.
    pub fn deletable_backends(&self) -> Vec<String> {
        let is_empty = |name: &&String| self.servers.get(*name).is_none_or(BTreeMap::is_empty);
        self.backends.leaving().iter().filter(is_empty).cloned().collect()
    }
}

/// True if the service, as it is wanted, has a section of this name: its own, or a preview's.
pub(super) fn has_named_section(id: &ServiceId, wanted: Option<&DesiredService>, section: &str) -> bool {
    let has_preview =
        |wanted: &DesiredService| wanted.previews.iter().any(|preview| preview_section(id, &preview.color) == section);
    wanted.is_some_and(|wanted| section == id.to_string() || has_preview(wanted))
}
