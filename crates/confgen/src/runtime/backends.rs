//! Backends that HAProxy adds and deletes while it runs (3.4 on): which ones, and confgen's notes of them. Pure: no I/O, no clock.
//!
//! HAProxy names its backends, and not their shapes. So confgen notes each addition in the state directory before it asks for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use discovery::ServiceId;

use super::HaproxyControl;
use super::observed::{Observed, served_service};
use crate::desired::DesiredState;
use crate::desired::names::parse_section;
use crate::render::restart_needed::ConfigFingerprint;
use crate::render::section::sections_of;

/// The fingerprint of a backend of unknown shape. No section has it, so the service of such a backend needs a restart.
const UNKNOWN: &str = "?";

/// A backend that HAProxy is about to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewBackend {
    pub(super) name: String,
    /// The `defaults` section that it takes.
    pub(super) shape: String,
    /// The fingerprint of its section.
    print: String,
    passes_through: bool,
    is_preview: bool,
}

impl Observed {
    /// True if HAProxy lacks one of the service's wanted sections.
    pub(super) fn lacks_section(&self, desired: &DesiredState, id: &ServiceId) -> bool {
        let sections = served_service(desired, id).map(|service| sections_of(id, service));
        sections.into_iter().flatten().any(|section| !self.fingerprint.sections.contains_key(&section.name()))
    }

    /// The wanted backends that HAProxy lacks and can add, because it has their shape.
    pub(super) fn find_new_backends(
        &self,
        desired: &DesiredState,
        touched: &[ServiceId],
        wanted: &ConfigFingerprint,
    ) -> Vec<NewBackend> {
        // If the common part differs, a restart is due anyway, and a shape may mean something else.
        if !self.changes_backends || self.fingerprint.common != wanted.common {
            return Vec::new();
        }
        let mut new: Vec<NewBackend> = Vec::new();
        for id in touched {
            let Some(service) = served_service(desired, id) else { continue };
            if !self.state.can_add_servers(service) {
                continue;
            }
            let passes_through = service.settings.passes_through();
            let mut has_own = self.fingerprint.has_section_for(id, service);
            for section in sections_of(id, service) {
                let (name, shape) = (section.name(), section.shape_name());
                let is_preview = section.preview.is_some();
                let is_addable = !self.fingerprint.sections.contains_key(&name)
                    && wanted.can_be_added(&name)
                    && self.fingerprint.has_shape(&shape, wanted)
                    && (!passes_through || self.fingerprint.passes_through())
                    // The frontend leads from the service's own backend to a preview.
                    && (!is_preview || has_own);
                let Some(print) = wanted.sections.get(&name).filter(|_| is_addable) else { continue };
                has_own |= !is_preview;
                new.push(NewBackend { name, shape, print: print.clone(), passes_through, is_preview });
            }
        }
        new
    }

    /// Notes that HAProxy is about to have these backends.
    pub(super) fn expect_backends(&mut self, new: &[NewBackend]) {
        for backend in new {
            self.fingerprint.sections.insert(backend.name.clone(), backend.print.clone());
            self.differences.note_changed(&backend.name);
            if backend.passes_through {
                self.fingerprint.passthrough.insert(backend.name.clone());
            }
            self.state.expect_backend(&backend.name, &backend.shape, backend.is_preview);
        }
    }

    /// Notes that HAProxy deleted the backend.
    pub(super) fn forget_backend(&mut self, name: &str) {
        self.fingerprint.sections.remove(name);
        self.differences.note_changed(name);
        self.fingerprint.passthrough.remove(name);
        self.state.forget_backend(name);
    }
}

impl HaproxyControl {
    /// The shapes that the running HAProxy has. A file with them keeps them over a restart that nothing of confgen's caused. Empty if
    /// HAProxy adds no backends, or if a restart is due that changes what they mean.
    pub fn running_shapes(&self, wanted: &ConfigFingerprint) -> BTreeMap<String, String> {
        let observed = self.observed.as_ref();
        let observed = observed.filter(|it| it.changes_backends && it.fingerprint.common == wanted.common);
        observed.map(|it| it.fingerprint.shapes.clone()).unwrap_or_default()
    }
}

/// Lines for the state directory about backends that HAProxy is about to add.
pub(super) fn note_additions(new: &[NewBackend]) -> String {
    new.iter().fold(String::new(), |mut text, backend| {
        let mode = if backend.passes_through { "tcp" } else { "http" };
        // Writing to a string can't fail.
        let _ = writeln!(text, "{} {} {mode}", backend.name, backend.print);
        text
    })
}

/// A line for the state directory about a backend that HAProxy deleted.
pub(super) fn note_deletion(name: &str) -> String {
    format!("{name} -\n")
}

/// Brings a generation's fingerprint to the backends that HAProxy has now. `notes` is what confgen noted since HAProxy's start.
pub(super) fn update_fingerprint(fingerprint: &mut ConfigFingerprint, notes: &str, live: &BTreeSet<String>) {
    // The last note of a backend counts. A killed confgen may have left half of a line.
    let whole = notes.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let noted: BTreeMap<&str, &str> = whole.lines().filter_map(|line| line.split_once(' ')).collect();
    for (name, note) in noted {
        fingerprint.sections.remove(name);
        fingerprint.passthrough.remove(name);
        if let Some((print, mode)) = note.split_once(' ') {
            fingerprint.sections.insert(name.to_owned(), print.to_owned());
            if mode == "tcp" {
                fingerprint.passthrough.insert(name.to_owned());
            }
        }
    }
    fingerprint.sections.retain(|name, _| live.contains(name));
    fingerprint.passthrough.retain(|name| live.contains(name));
    for name in live {
        let is_ours = parse_section(name).is_some() && fingerprint.can_be_added(name);
        if is_ours && !fingerprint.sections.contains_key(name) {
            fingerprint.sections.insert(name.clone(), UNKNOWN.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn prints(fingerprint: &ConfigFingerprint) -> Vec<(&str, &str)> {
        fingerprint.sections.iter().map(|(name, print)| (&**name, &**print)).collect()
    }

    fn started() -> ConfigFingerprint {
        ConfigFingerprint {
            sections: [("http-a", "1"), ("http-b", "1")]
                .map(|(name, print)| (name.to_owned(), print.to_owned()))
                .into_iter()
                .collect(),
            reserved: Some(names(&["http-mine"])),
            ..ConfigFingerprint::default()
        }
    }

    #[test]
    fn noted_backends_count_if_haproxy_has_them() {
        let mut running = started();
        let notes = "http-c 7 http\nhttp-d 8 tcp\nhttp-e 9 http\nhttp-a -\nhttp-a 2 http\nhttp-f 1 ht";
        update_fingerprint(&mut running, notes, &names(&["http-a", "http-b", "http-c", "http-d"]));
        assert_eq!(prints(&running), [("http-a", "2"), ("http-b", "1"), ("http-c", "7"), ("http-d", "8")]);
        assert_eq!(running.passthrough, names(&["http-d"]));
    }

    #[test]
    fn a_backend_that_was_deleted_by_hand_is_missing() {
        let mut running = started();
        update_fingerprint(&mut running, "", &names(&["http-b"]));
        assert_eq!(prints(&running), [("http-b", "1")]);
    }

    #[test]
    fn a_backend_that_was_added_by_hand_has_no_known_shape() {
        let mut running = started();
        update_fingerprint(&mut running, "", &names(&["http-a", "http-b", "http-mine", "http-x", "mine"]));
        assert_eq!(
            prints(&running),
            [("http-a", "1"), ("http-b", "1"), ("http-x", "?")],
            "the operator's is not confgen's"
        );
    }
}
