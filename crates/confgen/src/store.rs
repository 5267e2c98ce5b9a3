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
use crate::store::removal_guard::parse_graceful_removal;

pub use persisted::PersistedStore;
pub use reset::RetainedKeys;
pub use reset_event::{ResetEvent, ResetReason};

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
    pub store_revision: StoreRevision,
    /// What the rounds before have not seen.
    pub changed: Changed,
    /// Upstreams that said they would go, and went.
    pub graceful_removals: BTreeSet<(ServiceId, UpstreamId)>,
    /// What of it the store lacks.
    pub retained: Arc<RetainedKeys>,
    /// The newest revision that was heard of.
    pub newest_revision: i64,
}

impl StoreUpdate {
    /// A store of which nothing has been seen before.
    pub fn from_snapshot(snapshot: &Snapshot) -> Self {
        Self {
            topology: Arc::new(Topology::from_entries(&snapshot.entries)),
            store_revision: StoreRevision::from_snapshot(snapshot),
            changed: Changed::All,
            graceful_removals: BTreeSet::new(),
            retained: Arc::default(),
            newest_revision: snapshot.revision,
        }
    }
}

impl StoreRevision {
    fn from_snapshot(snapshot: &Snapshot) -> Self {
        Self { cluster: snapshot.cluster, raft_term: snapshot.raft_term, revision: snapshot.revision }
    }
}

/// The store, mirrored.
#[derive(Debug)]
pub struct StoreReplica {
    /// What is in the store, and what is held.
    topology: Arc<Topology>,
    /// None where the store was never known.
    store_revision: Option<StoreRevision>,
    /// The newest revision that was heard of, what balancers write included.
    newest_revision: i64,
    /// It was listed, or is to be taken as it is remembered.
    is_known: bool,
    retained: Arc<RetainedKeys>,
    changed: Changed,
    graceful_removals: BTreeSet<(ServiceId, UpstreamId)>,
    reset_events: Vec<ResetEvent>,
    /// When the store was listed last, by this host's clock.
    listed_at: SystemTime,
}

impl Default for StoreReplica {
    fn default() -> Self {
        Self::from_persisted(PersistedStore::default())
    }
}

impl StoreReplica {
    /// A mirror that has seen nothing yet, but knows what was.
    pub fn from_persisted(mut stored: PersistedStore) -> Self {
        let (store_revision, mut held) = (stored.position, std::mem::take(&mut stored.held));
        let topology = stored.into_topology();
        let there: BTreeSet<&str> = topology.entries().map(|entry| entry.key.as_str()).collect();
        held.retain(|key| there.contains(key));
        Self {
            topology: Arc::new(topology),
            store_revision,
            newest_revision: 0,
            is_known: false,
            retained: Arc::new(held),
            changed: Changed::All,
            graceful_removals: BTreeSet::new(),
            reset_events: Vec::new(),
            listed_at: SystemTime::UNIX_EPOCH,
        }
    }

    /// The listing that comes next is of this time.
    pub fn set_listing_time(&mut self, now: SystemTime) {
        self.listed_at = now;
    }

    /// Takes what is remembered for what the store says, for want of anything newer. True if there is such a thing, and
    /// that is news.
    pub fn use_persisted(&mut self) -> bool {
        let falls_back = !self.is_known && self.store_revision.is_some();
        self.is_known |= falls_back;
        falls_back
    }

    /// Takes in a listing of the whole store. In a wiped one, the keys that it lacks are held.
    pub fn apply_listing(&mut self, snapshot: &Snapshot) {
        let now = StoreRevision::from_snapshot(snapshot);
        let last =
            self.store_revision.map(|last| StoreRevision { revision: last.revision.max(self.newest_revision), ..last });
        let wiped = last.and_then(|last| ResetReason::compare_revisions(last, now));
        let last = std::mem::replace(&mut self.topology, Arc::new(build_topology(&snapshot.entries)));
        if wiped.is_some() || !self.retained.is_empty() {
            let listed: BTreeSet<&str> = snapshot.entries.iter().map(|entry| entry.key.as_str()).collect();
            self.retain_missing_keys(&last, &listed, wiped.map(|why| (why, now)));
        }
        (self.store_revision, self.newest_revision) = (Some(now), now.revision);
        (self.is_known, self.changed) = (true, Changed::All);
    }

    /// Holds what a wiped store lacks, or what of the held is still lacking.
    fn retain_missing_keys(
        &mut self,
        last: &Topology,
        listed: &BTreeSet<&str>,
        wiped: Option<(ResetReason, StoreRevision)>,
    ) {
        let before = self.retained.len();
        let held = Arc::make_mut(&mut self.retained);
        match wiped {
            Some((_, now)) => *held = RetainedKeys::from_reset(last, listed, now, self.listed_at),
            None => held.retain(|key| !listed.contains(key)),
        }
        let topology = Arc::make_mut(&mut self.topology);
        for entry in last.entries().filter(|entry| held.contains(&entry.key)) {
            topology.apply_change(&Change::Put(entry.clone()));
        }
        let records = topology.services().iter().flat_map(|(service, keys)| {
            keys.upstreams()
                .filter(|(_, field)| !held.contains(&field.entry.key))
                .filter_map(|(id, field)| Some(((service.clone(), id.clone()), field.value.as_ref().ok()?.address)))
        });
        let moved: Vec<String> = records.flat_map(|(live, address)| held.reassigned_keys(&live, address)).collect();
        moved.iter().for_each(|key| self.release_key(key));
        match wiped {
            Some((why, noticed)) => {
                let (keys, services) = (self.retained.len(), self.retained.count_services());
                self.reset_events.push(ResetEvent::StoreReset { why, noticed, keys, services });
            }
            None => self.note_released_keys(before),
        }
        self.check_acceptance();
    }

    /// Takes in changes up to a revision. True if any is about a service, or was meant to be. What balancers say of themselves is none of a
    /// balancer's business: the revision doesn't move, or each would answer each other's writes for ever.
    pub fn apply_changes(&mut self, revision: i64, changes: &[Change]) -> bool {
        if !self.is_known {
            return false;
        }
        self.newest_revision = self.newest_revision.max(revision);
        if !changes.is_empty() && changes.iter().all(|change| change.key().starts_with(BALANCERS)) {
            return false;
        }
        if let Some(position) = &mut self.store_revision {
            position.revision = revision;
        }
        self.graceful_removals.extend(changes.iter().filter_map(parse_graceful_removal));
        let mut matter = false;
        for change in changes {
            let Some(change) = bound_change(change) else { continue };
            let change = &*change;
            let topology = Arc::make_mut(&mut self.topology);
            let was = topology.malformed_keys().get(change.key()).cloned();
            if let Some(id) = topology.apply_change(change) {
                self.changed.add_service(id);
                matter = true;
            }
            matter |= was.as_ref() != topology.malformed_keys().get(change.key());
        }
        if !self.retained.is_empty() {
            matter |= self.release_changed_keys(changes);
        }
        // The removal guard retains upstreams that are not in here, and an acceptance is about them too.
        matter || changes.iter().any(|change| change.key() == Key::AcceptStore.to_string())
    }

    /// Lets go what was written again, what has moved, and everything if an operator says so. True if anything went.
    fn release_changed_keys(&mut self, changes: &[Change]) -> bool {
        let before = self.retained.len();
        for change in changes {
            Arc::make_mut(&mut self.retained).remove_key(change.key());
            if let Some((live, address)) = parse_written_upstream(change) {
                self.retained.reassigned_keys(&live, address).iter().for_each(|key| self.release_key(key));
            }
        }
        self.note_released_keys(before);
        if changes.iter().any(|change| change.key() == Key::AcceptStore.to_string()) {
            self.check_acceptance();
        }
        self.retained.len() < before
    }

    /// An operator may have said that the store is meant as it is.
    fn check_acceptance(&mut self) {
        let Some(word) = self.topology.accept_store().filter(|_| !self.retained.is_empty()) else { return };
        match self.retained.check_acceptance(word) {
            Ok(()) => {
                let keys: Vec<String> = self.retained.keys().cloned().collect();
                keys.iter().for_each(|key| self.release_key(key));
                self.reset_events.push(ResetEvent::Accepted { keys: keys.len() });
            }
            Err(reason) => self.reset_events.push(ResetEvent::AcceptanceRejected(reason)),
        }
    }

    /// A held key goes, and nobody is to keep its upstream.
    fn release_key(&mut self, key: &str) {
        if !Arc::make_mut(&mut self.retained).remove_key(key) {
            return;
        }
        let gone = Change::Delete { key: key.to_owned(), revision: 0, previous: None };
        if let Some(id) = Arc::make_mut(&mut self.topology).apply_change(&gone) {
            self.changed.add_service(id);
        }
        if let Ok(Key::Upstream { service, id, .. }) = key.parse() {
            self.graceful_removals.insert((service, id));
        }
    }

    fn note_released_keys(&mut self, before: usize) {
        let left = self.retained.len();
        if left < before {
            self.reset_events.push(ResetEvent::KeysReleased { keys: before - left, left });
        }
    }

    /// Whether anything is left that no round has seen.
    pub fn has_unseen_changes(&self) -> bool {
        self.changed != Changed::no_services()
    }

    /// Up to where the store is known.
    pub fn store_revision(&self) -> StoreRevision {
        self.store_revision.unwrap_or_default()
    }

    /// How many keys there are of services, held ones included.
    pub fn count_keys(&self) -> usize {
        self.topology.entries().count()
    }

    /// What is to be said of held keys, once.
    pub fn take_reset_events(&mut self) -> Vec<ResetEvent> {
        std::mem::take(&mut self.reset_events)
    }

    /// What no round has seen yet; they have, from now on. None before the store is known.
    pub fn take_update(&mut self) -> Option<StoreUpdate> {
        Some(StoreUpdate {
            topology: Arc::clone(&self.topology),
            store_revision: self.store_revision.filter(|_| self.is_known)?,
            changed: std::mem::replace(&mut self.changed, Changed::no_services()),
            graceful_removals: std::mem::take(&mut self.graceful_removals),
            retained: Arc::clone(&self.retained),
            newest_revision: self.newest_revision,
        })
    }
}

/// The topology of a listing, without what nothing reads.
fn build_topology(entries: &[Entry]) -> Topology {
    let mut topology = Topology::default();
    for entry in entries.iter().filter(|entry| entry.key.len() <= LONGEST_KEY) {
        topology.apply_change(&Change::Put(entry.clone().with_bounded_value()));
    }
    topology
}

/// The change without what nothing reads; None if its key can't be one of ours.
fn bound_change(change: &Change) -> Option<Cow<'_, Change>> {
    match change {
        _ if change.key().len() > LONGEST_KEY => None,
        Change::Put(entry) => Some(Cow::Owned(Change::Put(entry.clone().with_bounded_value()))),
        Change::Delete { .. } => Some(Cow::Borrowed(change)),
    }
}

/// The upstream that a change writes, and where it listens.
fn parse_written_upstream(change: &Change) -> Option<(UpstreamRef, discovery::UpstreamAddress)> {
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
    pub fn add_service(&mut self, id: ServiceId) {
        if let Self::Services(services) = self {
            services.insert(id);
        }
    }

    /// Nothing has changed.
    pub fn no_services() -> Self {
        Self::Services(BTreeSet::new())
    }
}

#[cfg(test)]
mod tests;
