//! The store as one request read it.

use discovery::{BalancerRecords, Entry, ServiceId, Snapshot, Topology};

/// Everything below the prefix at one revision.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) cluster: u64,
    /// The revision at which the keys were read.
    pub(crate) revision: i64,
    /// All keys, sorted by name.
    pub(crate) entries: Vec<Entry>,
    /// The services, parsed from the keys.
    pub(crate) topology: Topology,
    /// The live balancers, parsed from the keys.
    pub(crate) balancers: BalancerRecords,
}

/// A value as text. Bytes that are no UTF-8 are replaced, so the text is for people only.
pub(crate) fn lossy_text(entry: &Entry) -> String {
    String::from_utf8_lossy(&entry.value).into_owned()
}

impl Store {
    /// Parses a listing of all keys.
    pub(crate) fn from_snapshot(snapshot: Snapshot) -> Self {
        let topology = Topology::from_entries(&snapshot.entries);
        let balancers = BalancerRecords::from_snapshot(&snapshot);
        let Snapshot { cluster, revision, entries, .. } = snapshot;
        Self { cluster, revision, entries, topology, balancers }
    }

    /// Finds a key by its name, relative to the prefix.
    pub(crate) fn find_entry(&self, key: &str) -> Option<&Entry> {
        self.entries.binary_search_by(|entry| entry.key.as_str().cmp(key)).ok().and_then(|at| self.entries.get(at))
    }

    /// The newest revision of these services' keys; 0 if they have none.
    pub(crate) fn newest_revision_of<'a>(&self, services: impl IntoIterator<Item = &'a ServiceId>) -> i64 {
        let known = services.into_iter().filter_map(|id| self.topology.services().get(id));
        known.flat_map(|service| service.entries()).map(|entry| entry.mod_revision).max().unwrap_or_default()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A store with these keys, all of them without a lease, written one after the other.
    pub(crate) fn store(keys: &[(&str, &str)]) -> Store {
        let entry = |(at, (key, value)): (usize, &(&str, &str))| Entry {
            key: (*key).into(),
            value: (*value).into(),
            create_revision: at as i64 + 1,
            mod_revision: at as i64 + 1,
            lease: 0,
        };
        let mut entries: Vec<Entry> = keys.iter().enumerate().map(entry).collect();
        entries.sort_by(|one, other| one.key.cmp(&other.key));
        Store::from_snapshot(Snapshot { cluster: 7, revision: 20, raft_term: 1, entries })
    }
}
