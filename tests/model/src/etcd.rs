//! etcd as the model has it: revisions, leases, a raft term and a cluster id. Transactions are the product's own
//! ([`registry::Txn`]), and this module gives them etcd's meaning.

use std::collections::{BTreeMap, BTreeSet};

use discovery::{Change, Entry, Snapshot};
use registry::{Committed, Condition, Event, Txn, Write};

/// A store, with the changes since it began. A follower that is behind gets them one revision at a time.
#[derive(Clone, Debug)]
pub struct Etcd {
    /// The cluster id.
    pub cluster: u64,
    /// The raft term.
    pub term: u64,
    /// The newest revision.
    pub revision: i64,
    entries: BTreeMap<String, Entry>,
    leases: BTreeSet<i64>,
    log: Vec<(i64, Vec<Change>)>,
}

impl Etcd {
    /// An empty store. etcd begins with revision 1.
    pub fn new(cluster: u64) -> Self {
        let (entries, leases, log) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        Self { cluster, term: 2, revision: 1, entries, leases, log }
    }

    /// The key's entry.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// All entries.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Grants a lease.
    pub fn grant(&mut self, lease: i64) {
        self.leases.insert(lease);
    }

    /// True until the lease ends.
    pub fn is_alive(&self, lease: i64) -> bool {
        self.leases.contains(&lease)
    }

    /// The leases that live.
    pub fn live_leases(&self) -> &BTreeSet<i64> {
        &self.leases
    }

    /// Ends a lease, and deletes its keys in one revision. Expiry and revocation are the same for etcd's clients.
    pub fn end_lease(&mut self, lease: i64) {
        if self.leases.remove(&lease) {
            let keys: Vec<String> =
                self.entries.values().filter(|entry| entry.lease == lease).map(|entry| entry.key.clone()).collect();
            self.write(&keys.into_iter().map(|key| Write::Delete { key }).collect::<Vec<_>>());
        }
    }

    /// Writes a key, as `etcdctl put` does.
    pub fn put(&mut self, key: &str, value: &str, lease: i64) {
        let lease = (lease != 0).then(|| lease.into());
        self.write(&[Write::Put { key: key.to_owned(), value: value.into(), lease }]);
    }

    /// Deletes a key, as `etcdctl del` does.
    pub fn delete(&mut self, key: &str) {
        self.write(&[Write::Delete { key: key.to_owned() }]);
    }

    /// Runs a transaction. `None` if it names a lease that has ended: etcd refuses that whole.
    pub fn commit(&mut self, txn: &Txn) -> Option<Committed> {
        if !txn.conditions().iter().all(|condition| self.holds(condition)) {
            let found = txn.reads().iter().filter_map(|key| self.entries.get(key).cloned()).collect();
            return Some(Committed { succeeded: false, revision: self.revision, found });
        }
        let has_dead_lease = txn
            .writes()
            .iter()
            .any(|write| matches!(write, Write::Put { lease: Some(lease), .. } if !self.leases.contains(&lease.get())));
        if has_dead_lease {
            return None;
        }
        self.write(txn.writes());
        Some(Committed { succeeded: true, revision: self.revision, found: Vec::new() })
    }

    fn holds(&self, condition: &Condition) -> bool {
        let get = |key: &str| self.entries.get(key);
        match condition {
            Condition::Absent(key) => get(key).is_none(),
            Condition::Present(key) => get(key).is_some(),
            Condition::LeaseIs(key, lease) => get(key).is_some_and(|entry| entry.lease == lease.get()),
            Condition::ModRevisionIs(key, revision) => get(key).is_some_and(|entry| entry.mod_revision == *revision),
            Condition::ValueIs(key, value) => get(key).is_some_and(|entry| entry.value == *value),
        }
    }

    fn write(&mut self, writes: &[Write]) {
        let revision = self.revision + 1;
        let mut changes = Vec::new();
        for write in writes {
            match write {
                Write::Put { key, value, lease } => {
                    let created = self.entries.get(key).map_or(revision, |entry| entry.create_revision);
                    let entry = Entry {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: created,
                        mod_revision: revision,
                        lease: lease.map_or(0, registry::LeaseId::get),
                    };
                    self.entries.insert(key.clone(), entry.clone());
                    changes.push(Change::Put(entry));
                }
                Write::Delete { key } => {
                    let Some(previous) = self.entries.remove(key) else { continue };
                    changes.push(Change::Delete { key: key.clone(), revision, previous: Some(previous) });
                }
            }
        }
        // A transaction that changes nothing makes no revision.
        if !changes.is_empty() {
            self.revision = revision;
            self.log.push((revision, changes));
        }
    }

    /// Every key at the newest revision.
    pub fn snapshot(&self) -> Snapshot {
        let entries = self.entries.values().cloned().collect();
        Snapshot { cluster: self.cluster, revision: self.revision, raft_term: self.term, entries }
    }

    /// The next revision after this one, as the watch delivers it. `None` if the follower has everything.
    pub fn next_after(&self, revision: i64) -> Option<Event> {
        let (revision, changes) = self.log.iter().find(|(other, _)| *other > revision)?;
        Some(Event::Changes { revision: *revision, changes: changes.clone() })
    }

    /// The store is lost, and a new one takes its place. All leases are gone with it.
    #[must_use]
    pub fn wiped(&self) -> Self {
        Self::new(self.cluster + 1)
    }

    /// The store is restored from this backup: an older revision and an older raft term, and the same cluster id.
    #[must_use]
    pub fn restored(&self, backup: &Self) -> Self {
        // `etcdutl snapshot restore` drops no lease, but a backup's leases end before their announcers find them.
        Self { term: self.term, ..backup.clone() }
    }
}
