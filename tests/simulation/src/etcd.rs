//! A model of etcd: revisions, leases, a history that can be compacted, wipes and restored states.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use discovery::{Change, Entry, Snapshot, StoreRevision};
use registry::{Committed, Condition, LeaseId, Txn, Write};

use crate::clock::Millis;

/// The store's keys at one revision.
type Keys = BTreeMap<String, Arc<Entry>>;

/// A lease.
#[derive(Clone, Copy, Debug)]
struct Lease {
    ttl: Millis,
    ends_at: Millis,
}

/// The changes of one revision.
#[derive(Clone, Debug)]
struct Revision {
    number: i64,
    changes: Vec<Change>,
}

/// A client's call has no answer, since the client is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreachable;

/// An older state of the store.
#[derive(Clone, Debug)]
struct Backup {
    keys: Keys,
    revision: i64,
    leases: BTreeMap<i64, Lease>,
}

/// The store.
#[derive(Clone, Debug)]
pub struct Etcd {
    cluster: u64,
    term: u64,
    revision: i64,
    keys: Keys,
    history: Vec<Revision>,
    compacted: i64,
    leases: BTreeMap<i64, Lease>,
    next_lease: i64,
    backup: Option<Backup>,
    /// Clients that are cut off.
    cut_off: BTreeSet<usize>,
    /// The number of times that the store was replaced by another or an older one.
    pub resets: u32,
}

impl Etcd {
    /// A store without keys.
    pub fn new() -> Self {
        Self {
            cluster: 7,
            // Elections before the run, so that a store that is created anew has a lower term.
            term: 1_000,
            revision: 1,
            keys: Keys::new(),
            history: Vec::new(),
            compacted: 0,
            leases: BTreeMap::new(),
            next_lease: 100,
            backup: None,
            cut_off: BTreeSet::new(),
            resets: 0,
        }
    }

    /// The store's position.
    pub fn position(&self) -> StoreRevision {
        StoreRevision { cluster: self.cluster, raft_term: self.term, revision: self.revision }
    }

    /// Cuts a client off, or connects it.
    pub fn set_cut_off(&mut self, client: usize, is_cut_off: bool) {
        if is_cut_off {
            self.cut_off.insert(client);
        } else {
            self.cut_off.remove(&client);
        }
    }

    /// True if the client's calls get no answer.
    pub fn is_cut_off(&self, client: usize) -> bool {
        self.cut_off.contains(&client)
    }

    /// Connects all clients.
    pub fn connect_all(&mut self) {
        self.cut_off.clear();
    }

    fn check_reachable(&self, client: usize) -> Result<(), Unreachable> {
        if self.is_cut_off(client) { Err(Unreachable) } else { Ok(()) }
    }

    /// Lists all keys, or those of a folder.
    pub fn list(&self, client: usize, folder: &str) -> Result<Snapshot, Unreachable> {
        self.check_reachable(client)?;
        let entries = self.keys.range(folder.to_owned()..).take_while(|(key, _)| key.starts_with(folder));
        Ok(Snapshot {
            cluster: self.cluster,
            revision: self.revision,
            raft_term: self.term,
            entries: entries.map(|(_, entry)| Entry::clone(entry)).collect(),
        })
    }

    /// A key, without any client's limits.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.keys.get(key).map(|entry| &**entry)
    }

    /// All keys, without any client's limits.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.keys.keys()
    }

    /// The position that a linearizable read tells.
    pub fn read_position(&self, client: usize) -> Result<StoreRevision, Unreachable> {
        self.check_reachable(client).map(|()| self.position())
    }

    /// The changes after a revision, at most so many revisions of them. `None` if they are compacted.
    pub fn changes_since(&self, known: i64, most: usize) -> Option<Vec<Change>> {
        if known < self.compacted {
            return None;
        }
        let start = self.history.partition_point(|revision| revision.number <= known);
        Some(self.history.iter().skip(start).take(most).flat_map(|revision| revision.changes.clone()).collect())
    }

    /// The revision up to which the history is compacted.
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Commits a transaction of a client.
    pub fn commit(&mut self, client: usize, txn: &Txn) -> Result<Committed, Unreachable> {
        self.check_reachable(client)?;
        if !txn.conditions().iter().all(|condition| self.holds(condition)) {
            let keys = txn.reads().iter().collect::<BTreeSet<_>>();
            let found = keys.into_iter().filter_map(|key| self.get(key).cloned()).collect();
            return Ok(Committed { succeeded: false, revision: self.revision, found });
        }
        self.write(txn.writes());
        Ok(Committed { succeeded: true, revision: self.revision, found: Vec::new() })
    }

    fn holds(&self, condition: &Condition) -> bool {
        match condition {
            Condition::Absent(key) => !self.keys.contains_key(key),
            Condition::Present(key) => self.keys.contains_key(key),
            Condition::LeaseIs(key, lease) => self.keys.get(key).is_some_and(|entry| entry.lease == lease.get()),
            Condition::ModRevisionIs(key, revision) => {
                self.keys.get(key).is_some_and(|entry| entry.mod_revision == *revision)
            }
            Condition::ValueIs(key, value) => self.keys.get(key).is_some_and(|entry| entry.value == *value),
        }
    }

    /// Writes keys in one revision, without conditions.
    pub fn write(&mut self, writes: &[Write]) {
        // etcd refuses the whole transaction if its lease is gone.
        let leases = writes.iter().filter_map(|write| match write {
            Write::Put { lease, .. } => *lease,
            Write::Delete { .. } => None,
        });
        if leases.into_iter().any(|lease| !self.leases.contains_key(&lease.get())) {
            return;
        }
        let number = self.revision + 1;
        let mut changes = Vec::new();
        for write in writes {
            match write {
                Write::Put { key, value, lease } => {
                    let create_revision = self.keys.get(key).map_or(number, |entry| entry.create_revision);
                    let entry = Entry {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision,
                        mod_revision: number,
                        lease: lease.map_or(0, LeaseId::get),
                    };
                    self.keys.insert(key.clone(), Arc::new(entry.clone()));
                    changes.push(Change::Put(entry));
                }
                Write::Delete { key } => {
                    if let Some(previous) = self.keys.remove(key) {
                        changes.push(Change::Delete {
                            key: key.clone(),
                            revision: number,
                            previous: Some(Entry::clone(&previous)),
                        });
                    }
                }
            }
        }
        self.note(changes);
    }

    fn note(&mut self, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.revision += 1;
            self.history.push(Revision { number: self.revision, changes });
        }
    }

    /// True if the lease lives, which a write under it needs.
    pub fn has_lease(&self, lease: i64) -> bool {
        self.leases.contains_key(&lease)
    }

    /// The leases that live.
    pub fn living_leases(&self) -> BTreeSet<i64> {
        self.leases.keys().copied().collect()
    }

    /// Grants a lease.
    pub fn grant(&mut self, client: usize, ttl: Millis, now: Millis) -> Result<LeaseId, Unreachable> {
        self.check_reachable(client)?;
        self.next_lease += 1;
        self.leases.insert(self.next_lease, Lease { ttl, ends_at: now + ttl });
        Ok(LeaseId::from(self.next_lease))
    }

    /// Renews a lease. False if it has ended.
    pub fn renew(&mut self, client: usize, lease: LeaseId, now: Millis) -> Result<bool, Unreachable> {
        self.check_reachable(client)?;
        let lease = self.leases.get_mut(&lease.get());
        Ok(lease.map(|lease| lease.ends_at = now + lease.ttl).is_some())
    }

    /// Ends a lease, and deletes its keys.
    pub fn revoke(&mut self, client: usize, lease: LeaseId) -> Result<(), Unreachable> {
        self.check_reachable(client)?;
        self.end_leases(|id, _| id == lease.get());
        Ok(())
    }

    /// Ends the leases that are over.
    pub fn expire(&mut self, now: Millis) {
        self.end_leases(|_, lease| lease.ends_at <= now);
    }

    /// Ends all leases, as after a freeze that was longer than each of them.
    pub fn expire_all(&mut self) {
        self.end_leases(|_, _| true);
    }

    fn end_leases(&mut self, ends: impl Fn(i64, &Lease) -> bool) {
        let ended: BTreeSet<i64> = self.leases.iter().filter(|(id, it)| ends(**id, it)).map(|(id, _)| *id).collect();
        for lease in ended {
            self.leases.remove(&lease);
            // etcd deletes the keys of one lease in one revision.
            let keys = self.keys.values().filter(|entry| entry.lease == lease);
            let writes: Vec<Write> = keys.map(|entry| Write::Delete { key: entry.key.clone() }).collect();
            self.write(&writes);
        }
    }

    /// Forgets all changes up to now.
    pub fn compact(&mut self) {
        self.compacted = self.revision;
        self.history.clear();
    }

    /// Keeps the present state for [`Etcd::restore`].
    pub fn back_up(&mut self) {
        self.backup = Some(Backup { keys: self.keys.clone(), revision: self.revision, leases: self.leases.clone() });
    }

    /// Replaces the store by an empty one.
    pub fn wipe(&mut self, keeps_cluster: bool) {
        self.replace(Backup { keys: Keys::new(), revision: 1, leases: BTreeMap::new() }, keeps_cluster);
    }

    /// Replaces the store by its backup. Its leases count from now on. False without a backup.
    pub fn restore(&mut self, keeps_cluster: bool, now: Millis) -> bool {
        let Some(mut backup) = self.backup.clone() else { return false };
        backup.leases.values_mut().for_each(|lease| lease.ends_at = now + lease.ttl);
        self.replace(backup, keeps_cluster);
        true
    }

    fn replace(&mut self, state: Backup, keeps_cluster: bool) {
        (self.keys, self.revision, self.leases) = (state.keys, state.revision, state.leases);
        self.history.clear();
        self.compacted = self.revision;
        self.resets += 1;
        if keeps_cluster {
            self.term -= 1;
        } else {
            self.cluster += 1;
        }
    }
}
