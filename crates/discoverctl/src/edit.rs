//! Edits: keys with the value that was read and the value to write.
//!
//! Pure: an edit becomes transactions. It sends none.

use std::collections::BTreeMap;

use discovery::{Entry, Key, Topology};
use registry::{Condition, Txn};

use crate::store::Store;

/// The most keys of one transaction. etcd accepts 128 operations, and as many conditions (`--max-txn-ops`). The entry of the
/// change log and the old entries that it replaces take up to 17 of them.
const MAX_KEYS: usize = 110;

/// Changes of keys, decided on the values that were read. None of them is made if one of these keys was changed since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edit {
    changes: BTreeMap<String, Change>,
}

/// The change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The entry that was read; None if there was none.
    pub(crate) before: Option<Entry>,
    /// The value to write; None deletes the key.
    pub(crate) after: Option<String>,
}

impl Edit {
    /// Writes a key without a lease. A key that has this value and no lease is left alone.
    pub(crate) fn put(&mut self, store: &Store, key: &Key, value: impl Into<String>) {
        let (key, value) = (key.to_string(), value.into());
        let before = store.find_entry(&key).cloned();
        // A key that keeps its lease would go with it.
        if before.as_ref().is_none_or(|entry| entry.value != value.as_bytes() || entry.lease != 0) {
            self.changes.insert(key, Change { before, after: Some(value) });
        }
    }

    /// Deletes a key; a key that is absent is ignored.
    pub(crate) fn delete(&mut self, store: &Store, key: &str) {
        if let Some(entry) = store.find_entry(key) {
            self.changes.insert(key.to_owned(), Change { before: Some(entry.clone()), after: None });
        }
    }

    /// The topology after the edit.
    pub(crate) fn apply_to(&self, topology: &Topology) -> Topology {
        let mut after = topology.clone();
        for (key, change) in &self.changes {
            after.apply_change(&match &change.after {
                Some(value) => discovery::Change::Put(Entry {
                    key: key.clone(),
                    value: value.clone().into_bytes(),
                    create_revision: change.before.as_ref().map_or(0, |entry| entry.create_revision),
                    // etcd gives the revision with the write.
                    mod_revision: 0,
                    lease: 0,
                }),
                None => discovery::Change::Delete { key: key.clone(), revision: 0, previous: None },
            });
        }
        after
    }

    /// The changes by key, relative to the prefix.
    pub(crate) fn changes(&self) -> impl Iterator<Item = (&String, &Change)> {
        self.changes.iter()
    }

    /// Turns the edit into transactions, each with the keys that it changes: one for each 110 keys.
    pub(crate) fn to_transactions(&self) -> Vec<(Vec<&str>, Txn)> {
        let changes: Vec<_> = self.changes.iter().collect();
        changes.chunks(MAX_KEYS).map(|part| (list_keys(part), to_transaction(part))).collect()
    }
}

fn list_keys<'a>(changes: &[(&'a String, &Change)]) -> Vec<&'a str> {
    changes.iter().map(|(key, _)| key.as_str()).collect()
}

fn to_transaction(changes: &[(&String, &Change)]) -> Txn {
    changes.iter().fold(Txn::new(), |txn, (key, change)| change.add_to(txn, key))
}

impl Change {
    fn add_to(&self, txn: Txn, key: &str) -> Txn {
        let txn = txn.only_if(match &self.before {
            // A key that another client wrote since the read must not be overwritten.
            Some(entry) => Condition::ModRevisionIs(key.to_owned(), entry.mod_revision),
            None => Condition::Absent(key.to_owned()),
        });
        match &self.after {
            Some(value) => txn.put(key, value.as_str(), None),
            None => txn.delete(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use discovery::Snapshot;

    use super::*;

    #[test]
    fn what_says_so_already_is_left_alone() {
        let entry = |key: &str, lease| Entry {
            key: key.into(),
            value: "both".into(),
            create_revision: 1,
            mod_revision: 3,
            lease,
        };
        let entries = vec![entry("http-services/a/tls", 0), entry("http-services/b/tls", 7)];
        let store = Store::from_snapshot(Snapshot { cluster: 1, revision: 9, raft_term: 1, entries });
        let mut edit = Edit::default();
        let key = |text: &str| text.parse::<Key>().unwrap();
        edit.put(&store, &key("http-services/a/tls"), "both");
        edit.delete(&store, "http-services/c/tls");
        assert_eq!(edit.changes().count(), 0);
        edit.put(&store, &key("http-services/b/tls"), "both");
        edit.put(&store, &key("http-services/c/tls"), "off");
        let wanted = Txn::new()
            .only_if(Condition::ModRevisionIs("http-services/b/tls".into(), 3))
            .put("http-services/b/tls", "both", None)
            .only_if(Condition::Absent("http-services/c/tls".into()))
            .put("http-services/c/tls", "off", None);
        assert_eq!(edit.to_transactions(), [(vec!["http-services/b/tls", "http-services/c/tls"], wanted)]);
    }
}
