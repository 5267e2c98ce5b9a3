//! The store as this confgen knows it: every change so far, and what of it no round has seen yet. Pure.

pub(crate) mod address_owners;
mod persisted;
pub(crate) mod removal_guard;
mod reset;
mod reset_event;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use discovery::{Change, Entry, Key, ServiceId, Snapshot, Topology, Upstream, UpstreamId};
use serde::{Deserialize, Serialize};

use crate::store::address_owners::UpstreamRef;
use crate::store::removal_guard::graceful_removal;

pub use persisted::PersistedStore;
pub use reset::RetainedKeys;
pub use reset_event::{ResetEvent, Wiped};

/// The longest key that is kept: the longest of ours has some 530 bytes.
const LONGEST_KEY: usize = 1024;

/// Where balancers write.
const BALANCERS: &str = "balancers/";

/// A point in a store's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreRevision {
    /// The store's cluster id.
    pub cluster: u64,
    /// Its raft term, as of the last listing.
    pub raft_term: u64,
    /// The revision.
    pub revision: i64,
}

/// What a round is given of the store.
#[derive(Clone, Debug)]
pub struct StoreUpdate {
    /// Everything, as of `position`, with what is held.
    pub topology: Arc<Topology>,
    /// Up to where that is.
    pub position: StoreRevision,
    /// What the rounds before have not seen.
    pub changed: Changed,
    /// Upstreams that said they would go, and went.
    pub goodbyes: BTreeSet<(ServiceId, UpstreamId)>,
    /// What of it the store lacks.
    pub held: Arc<RetainedKeys>,
    /// The newest revision that was heard of.
    pub newest: i64,
}

impl StoreUpdate {
    /// A store of which nothing has been seen before.
    pub fn first(snapshot: &Snapshot) -> Self {
        Self {
            topology: Arc::new(Topology::of(&snapshot.entries)),
            position: StoreRevision::of(snapshot),
            changed: Changed::All,
            goodbyes: BTreeSet::new(),
            held: Arc::default(),
            newest: snapshot.revision,
        }
    }
}

impl StoreRevision {
    fn of(snapshot: &Snapshot) -> Self {
        Self { cluster: snapshot.cluster, raft_term: snapshot.raft_term, revision: snapshot.revision }
    }
}

/// The store, mirrored.
#[derive(Debug)]
pub struct StoreReplica {
    /// What is in the store, and what is held.
    topology: Arc<Topology>,
    /// None where the store was never known.
    position: Option<StoreRevision>,
    /// The newest revision that was heard of, what balancers write included.
    newest: i64,
    /// It was listed, or is to be taken as it is remembered.
    is_known: bool,
    held: Arc<RetainedKeys>,
    changed: Changed,
    goodbyes: BTreeSet<(ServiceId, UpstreamId)>,
    told: Vec<ResetEvent>,
    /// When the store was listed last, by this host's clock.
    listed_at: SystemTime,
}

impl Default for StoreReplica {
    fn default() -> Self {
        Self::remembering(PersistedStore::default())
    }
}

impl StoreReplica {
    /// A mirror that has seen nothing yet, but knows what was.
    pub fn remembering(mut stored: PersistedStore) -> Self {
        let (position, mut held) = (stored.position, std::mem::take(&mut stored.held));
        let topology = stored.topology();
        let there: BTreeSet<&str> = topology.entries().map(|entry| entry.key.as_str()).collect();
        held.retain(|key| there.contains(key));
        Self {
            topology: Arc::new(topology),
            position,
            newest: 0,
            is_known: false,
            held: Arc::new(held),
            changed: Changed::All,
            goodbyes: BTreeSet::new(),
            told: Vec::new(),
            listed_at: SystemTime::UNIX_EPOCH,
        }
    }

    /// The listing that comes next is of this time.
    pub fn stamp(&mut self, now: SystemTime) {
        self.listed_at = now;
    }

    /// Takes what is remembered for what the store says, for want of anything newer. True if there is such a thing, and
    /// that is news.
    pub fn use_persisted(&mut self) -> bool {
        let falls_back = !self.is_known && self.position.is_some();
        self.is_known |= falls_back;
        falls_back
    }

    /// Takes in a listing of the whole store. In a wiped one, the keys that it lacks are held.
    pub fn list(&mut self, snapshot: &Snapshot) {
        let now = StoreRevision::of(snapshot);
        let last = self.position.map(|last| StoreRevision { revision: last.revision.max(self.newest), ..last });
        let wiped = last.and_then(|last| Wiped::between(last, now));
        let last = std::mem::replace(&mut self.topology, Arc::new(topology_of(&snapshot.entries)));
        if wiped.is_some() || !self.held.is_empty() {
            let listed: BTreeSet<&str> = snapshot.entries.iter().map(|entry| entry.key.as_str()).collect();
            self.hold(&last, &listed, wiped.map(|why| (why, now)));
        }
        (self.position, self.newest) = (Some(now), now.revision);
        (self.is_known, self.changed) = (true, Changed::All);
    }

    /// Holds what a wiped store lacks, or what of the held is still lacking.
    fn hold(&mut self, last: &Topology, listed: &BTreeSet<&str>, wiped: Option<(Wiped, StoreRevision)>) {
        let before = self.held.len();
        let held = Arc::make_mut(&mut self.held);
        match wiped {
            Some((_, now)) => *held = RetainedKeys::of(last, listed, now, self.listed_at),
            None => held.retain(|key| !listed.contains(key)),
        }
        let topology = Arc::make_mut(&mut self.topology);
        for entry in last.entries().filter(|entry| held.contains(&entry.key)) {
            topology.apply(&Change::Put(entry.clone()));
        }
        let records = topology.services().iter().flat_map(|(service, keys)| {
            keys.upstreams()
                .filter(|(_, field)| !held.contains(&field.entry.key))
                .filter_map(|(id, field)| Some(((service.clone(), id.clone()), field.value.as_ref().ok()?.address)))
        });
        let moved: Vec<String> = records.flat_map(|(live, address)| held.moved(&live, address)).collect();
        moved.iter().for_each(|key| self.release_key(key));
        match wiped {
            Some((why, noticed)) => {
                let (keys, services) = (self.held.len(), self.held.services());
                self.told.push(ResetEvent::Wiped { why, noticed, keys, services });
            }
            None => self.tell_let_go(before),
        }
        self.check_acceptance();
    }

    /// Takes in changes up to a revision. True if any is about a service, or was meant to be. What balancers say of themselves is none of a
    /// balancer's business: the revision doesn't move, or each would answer each other's writes for ever.
    pub fn apply(&mut self, revision: i64, changes: &[Change]) -> bool {
        if !self.is_known {
            return false;
        }
        self.newest = self.newest.max(revision);
        if !changes.is_empty() && changes.iter().all(|change| change.key().starts_with(BALANCERS)) {
            return false;
        }
        if let Some(position) = &mut self.position {
            position.revision = revision;
        }
        self.goodbyes.extend(changes.iter().filter_map(graceful_removal));
        let mut matter = false;
        for change in changes {
            let Some(change) = bounded(change) else { continue };
            let change = &*change;
            let topology = Arc::make_mut(&mut self.topology);
            let was = topology.unfollowed().get(change.key()).cloned();
            if let Some(id) = topology.apply(change) {
                self.changed.join(id);
                matter = true;
            }
            matter |= was.as_ref() != topology.unfollowed().get(change.key());
        }
        if !self.held.is_empty() {
            matter |= self.release(changes);
        }
        // The removal guard retains upstreams that are not in here, and an acceptance is about them too.
        matter || changes.iter().any(|change| change.key() == Key::AcceptStore.to_string())
    }

    /// Lets go what was written again, what has moved, and everything if an operator says so. True if anything went.
    fn release(&mut self, changes: &[Change]) -> bool {
        let before = self.held.len();
        for change in changes {
            Arc::make_mut(&mut self.held).release_key(change.key());
            if let Some((live, address)) = written(change) {
                self.held.moved(&live, address).iter().for_each(|key| self.release_key(key));
            }
        }
        self.tell_let_go(before);
        if changes.iter().any(|change| change.key() == Key::AcceptStore.to_string()) {
            self.check_acceptance();
        }
        self.held.len() < before
    }

    /// An operator may have said that the store is meant as it is.
    fn check_acceptance(&mut self) {
        let Some(word) = self.topology.accept_store().filter(|_| !self.held.is_empty()) else { return };
        match self.held.is_accepted(word) {
            Ok(()) => {
                let keys: Vec<String> = self.held.keys().cloned().collect();
                keys.iter().for_each(|key| self.release_key(key));
                self.told.push(ResetEvent::Accepted { keys: keys.len() });
            }
            Err(reason) => self.told.push(ResetEvent::NotAccepted(reason)),
        }
    }

    /// A held key goes, and nobody is to keep its upstream.
    fn release_key(&mut self, key: &str) {
        if !Arc::make_mut(&mut self.held).release_key(key) {
            return;
        }
        let gone = Change::Delete { key: key.to_owned(), revision: 0, previous: None };
        if let Some(id) = Arc::make_mut(&mut self.topology).apply(&gone) {
            self.changed.join(id);
        }
        if let Ok(Key::Upstream { service, id, .. }) = key.parse() {
            self.goodbyes.insert((service, id));
        }
    }

    fn tell_let_go(&mut self, before: usize) {
        let left = self.held.len();
        if left < before {
            self.told.push(ResetEvent::LetGo { keys: before - left, left });
        }
    }

    /// The next round has to see everything anew.
    pub fn mark_all_changed(&mut self) {
        self.changed = Changed::All;
    }

    /// Whether the store is known, or taken as it is remembered.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// Whether anything is left that no round has seen.
    pub fn has_news(&self) -> bool {
        self.changed != Changed::nothing()
    }

    /// Up to where the store is known.
    pub fn position(&self) -> StoreRevision {
        self.position.unwrap_or_default()
    }

    /// How many keys there are of services, held ones included.
    pub fn keys(&self) -> usize {
        self.topology.entries().count()
    }

    /// What is to be said of held keys, once.
    pub fn told(&mut self) -> Vec<ResetEvent> {
        std::mem::take(&mut self.told)
    }

    /// What no round has seen yet; they have, from now on. None before the store is known.
    pub fn news(&mut self) -> Option<StoreUpdate> {
        Some(StoreUpdate {
            topology: Arc::clone(&self.topology),
            position: self.position.filter(|_| self.is_known)?,
            changed: std::mem::replace(&mut self.changed, Changed::nothing()),
            goodbyes: std::mem::take(&mut self.goodbyes),
            held: Arc::clone(&self.held),
            newest: self.newest,
        })
    }
}

/// The topology of a listing, without what nothing reads.
fn topology_of(entries: &[Entry]) -> Topology {
    let mut topology = Topology::default();
    for entry in entries.iter().filter(|entry| entry.key.len() <= LONGEST_KEY) {
        topology.apply(&Change::Put(entry.clone().bounded()));
    }
    topology
}

/// The change without what nothing reads; None if its key can't be one of ours.
fn bounded(change: &Change) -> Option<Cow<'_, Change>> {
    match change {
        _ if change.key().len() > LONGEST_KEY => None,
        Change::Put(entry) => Some(Cow::Owned(Change::Put(entry.clone().bounded()))),
        Change::Delete { .. } => Some(Cow::Borrowed(change)),
    }
}

/// The upstream that a change writes, and where it listens.
fn written(change: &Change) -> Option<(UpstreamRef, discovery::UpstreamAddress)> {
    let Change::Put(Entry { key, value, .. }) = change else { return None };
    let Ok(Key::Upstream { service, id, .. }) = key.parse::<Key>() else { return None };
    Some(((service, id), Upstream::parse(value).ok()?.address))
}

/// Which services may have changed since the last time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Any of them.
    All,
    /// These alone.
    Services(BTreeSet<ServiceId>),
}

impl Changed {
    /// Joins a service to what has changed.
    pub fn join(&mut self, id: ServiceId) {
        if let Self::Services(services) = self {
            services.insert(id);
        }
    }

    /// Nothing has changed.
    pub fn nothing() -> Self {
        Self::Services(BTreeSet::new())
    }
}

#[cfg(test)]
mod tests;
