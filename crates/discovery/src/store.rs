//! What the store holds, as every part of the project passes it on.

/// One key with its value, as etcd keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key below the prefix: `http-services/shop/domain`. Bytes that are no UTF-8 are replaced, so that such a key
    /// is no valid key of ours.
    pub key: String,
    /// The value as it stands, not yet believed in any way.
    pub value: Vec<u8>,
    /// The store's revision at which the key came to be.
    pub create_revision: i64,
    /// The store's revision at which the value was last written.
    pub mod_revision: i64,
    /// The lease the key hangs on; 0 is none.
    pub lease: i64,
}

/// Every key below the prefix at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The store's cluster id. A recreated store may bear the same one.
    pub cluster: u64,
    /// The revision that all entries were read at.
    pub revision: i64,
    /// The store's raft term, which never goes back in a store that lives.
    pub raft_term: u64,
    /// The entries, sorted by key.
    pub entries: Vec<Entry>,
}

/// One event of the watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key was written.
    Put(Entry),
    /// The key went, by a deletion, an expired lease or a revoked one: etcd doesn't tell them apart.
    Delete {
        /// The key below the prefix.
        key: String,
        /// The revision at which it went.
        revision: i64,
        /// The entry as it was before, where the store still had it.
        previous: Option<Entry>,
    },
}

impl Change {
    /// The key below the prefix.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }
}
