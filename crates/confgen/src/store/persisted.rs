//! The replica in `state.json`: confgen serves it while etcd can't be reached, and compares the first listing with it. Pure. Its
//! values are checked like those of the store, because the file may have been edited.

use std::collections::BTreeMap;

use discovery::{Entry, Topology};
use serde::{Deserialize, Serialize};

use super::{RetainedKeys, StoreRevision};
use crate::store::removal_guard::PersistedUpstream;

/// The service keys as of a store revision. A field that an older confgen did not write has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PersistedStore {
    /// The revision of the keys. `None` if the store was never known.
    pub position: Option<StoreRevision>,
    /// The keys that are retained since a reset.
    pub held: RetainedKeys,
    /// The upstreams that the removal guard retains.
    pub kept: Vec<PersistedUpstream>,
    /// The upstreams that lost their keys within the last hour and are not retained.
    pub lost: Vec<PersistedUpstream>,
    entries: Vec<PersistedEntry>,
}

/// The changes of a persisted store since it was written last. `None` is a part without a change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreChange {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<StoreRevision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<RetainedKeys>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<Vec<PersistedUpstream>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<Vec<PersistedUpstream>>,
    /// Keys that were written, with their whole entries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    written: Vec<PersistedEntry>,
    /// Keys that are gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    removed: Vec<String>,
}

impl StoreChange {
    /// The change of these keys alone: those that were written, and those that are gone. No key is in both.
    pub fn from_entries<'a>(
        written: impl IntoIterator<Item = &'a Entry>,
        removed: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let written = written.into_iter().map(PersistedEntry::from).collect();
        Self { written, removed: removed.into_iter().map(str::to_owned).collect(), ..Self::default() }
    }
}

/// An entry of the store, with its value as readable as possible.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PersistedEntry {
    key: String,
    value: Value,
    #[serde(default)]
    create_revision: i64,
    #[serde(default)]
    mod_revision: i64,
    #[serde(default)]
    lease: i64,
}

/// A value of the store. One that isn't UTF-8 is rejected anyway, but the reason must stay the same after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    Bytes(Vec<u8>),
}

impl PersistedStore {
    /// The store at this revision, without retained keys and upstreams.
    pub fn from_entries<'a>(entries: impl Iterator<Item = &'a Entry>, position: StoreRevision) -> Self {
        Self { position: Some(position), entries: entries.map(PersistedEntry::from).collect(), ..Self::default() }
    }

    /// Adds the keys that are retained since a reset.
    #[must_use]
    pub fn with_retained_keys(self, held: RetainedKeys) -> Self {
        Self { held, ..self }
    }

    /// The store after these changes, in their order. The order of its entries is that of their keys then.
    #[must_use]
    pub fn apply_changes(mut self, changes: impl IntoIterator<Item = StoreChange>) -> Self {
        let mut entries: BTreeMap<String, PersistedEntry> =
            self.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        for change in changes {
            let StoreChange { position, held, kept, lost, written, removed } = change;
            self.position = position.or(self.position);
            self.held = held.unwrap_or(self.held);
            self.kept = kept.unwrap_or(self.kept);
            self.lost = lost.unwrap_or(self.lost);
            for key in &removed {
                entries.remove(key);
            }
            entries.extend(written.into_iter().map(|entry| (entry.key.clone(), entry)));
        }
        self.entries = entries.into_values().collect();
        self
    }

    /// Parses the keys anew. An older confgen may have written values without a bound on their length.
    pub fn into_topology(self) -> Topology {
        let entries: Vec<Entry> = self.entries.into_iter().map(|line| Entry::from(line).with_bounded_value()).collect();
        Topology::from_entries(&entries)
    }
}

impl From<&Entry> for PersistedEntry {
    fn from(entry: &Entry) -> Self {
        let Entry { key, value, create_revision, mod_revision, lease } = entry.clone();
        // JSON has no byte strings. Nearly all values are text.
        let value = String::from_utf8(value).map_or_else(|error| Value::Bytes(error.into_bytes()), Value::Text);
        Self { key, value, create_revision, mod_revision, lease }
    }
}

impl From<PersistedEntry> for Entry {
    fn from(line: PersistedEntry) -> Self {
        let value = match line.value {
            Value::Text(text) => text.into_bytes(),
            Value::Bytes(bytes) => bytes,
        };
        let PersistedEntry { key, create_revision, mod_revision, lease, .. } = line;
        Self { key, value, create_revision, mod_revision, lease }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_persisted_store_reads_back_as_it_was() {
        let entry = |key: &str, value: &[u8], lease| Entry {
            key: key.into(),
            value: value.into(),
            create_revision: 3,
            mod_revision: 4,
            lease,
        };
        let known = Topology::from_entries(&[
            entry("http-services/a/domain", b"a.com", 0),
            entry("http-services/a/path", b"\xff\x00", 0),
            entry("http-services/a/upstreams/1", b"10.0.0.1:80", 77),
        ]);
        let position = StoreRevision { cluster: u64::MAX, raft_term: 2, revision: 9 };
        let stored = PersistedStore::from_entries(known.entries(), position);
        let again: PersistedStore = serde_json::from_slice(&serde_json::to_vec(&stored).unwrap()).unwrap();
        assert_eq!((again.position, again.into_topology()), (Some(position), known));
    }

    #[test]
    fn an_older_or_a_meddled_with_file_is_taken_as_far_as_it_goes() {
        let terse = r#"{"entries":[{"key":"http-services/a/upstreams/1","value":"10.0.0.1:80 check\n"},
            {"key":"nonsense/\u0000","value":""}],"later":7}"#;
        let stored: PersistedStore = serde_json::from_str(terse).unwrap();
        assert_eq!((stored.position, stored.held.len()), (None, 0));
        let topology = stored.into_topology();
        assert!(topology.services().values().flat_map(|it| it.upstreams()).all(|(_, field)| field.value.is_err()));
        assert_eq!(serde_json::from_str::<PersistedStore>("{}").unwrap(), PersistedStore::default());
    }
}
