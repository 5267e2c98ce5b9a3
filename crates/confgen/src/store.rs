//! confgen's copy of the store, and the changes that no reconcile has seen yet. Pure: no I/O, no clock.

pub(crate) mod address_owners;
mod followed;
mod persisted;
pub(crate) mod removal_guard;
mod reset;
mod reset_event;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use discovery::{Change, Entry, Key, KeyLimits, ResetReason, ServiceId, Snapshot, Topology, Upstream, UpstreamId};

use crate::store::address_owners::UpstreamRef;
use crate::store::followed::{bound_change, concerns_no_service, is_followed};
use crate::store::removal_guard::parse_graceful_removal;

pub use discovery::StoreRevision;
pub use followed::bound_entry;
pub use persisted::{PersistedStore, StoreChange};
pub use reset::RetainedKeys;
pub use reset_event::ResetEvent;

/// The most keys that the replica keeps. 200,000 refused records below one service once took 434 MiB. HAProxy has
/// room for some 50,000 upstreams with the `LimitNOFILE` of its unit.
pub const KEY_LIMITS: KeyLimits = KeyLimits {
    services: 20_000,
    upstreams_per_service: 20_000,
    upstreams: 100_000,
    others: 2_000,
    with_copies: false,
};

/// The store as a reconcile gets it.
#[derive(Clone, Debug)]
pub struct StoreUpdate {
    /// All keys as of `store_revision`, retained ones included.
    pub topology: Arc<Topology>,
    /// The revision of the last change that concerns confgen.
    pub store_revision: StoreRevision,
    /// The services with keys that changed since the previous update.
    pub changed: Changed,
    /// Upstreams that were removed gracefully since the previous update. The removal guard doesn't retain them.
    pub graceful_removals: BTreeSet<(ServiceId, UpstreamId)>,
    /// The keys of `topology` that the store lacks since a reset.
    pub retained: Arc<RetainedKeys>,
    /// The newest revision that etcd told, balancer records included.
    pub newest_revision: i64,
}

impl StoreUpdate {
    /// The update of a one-shot command, which has no earlier one to compare with.
    pub fn from_snapshot(snapshot: &Snapshot) -> Self {
        Self {
            topology: Arc::new(build_topology(snapshot.entries.clone(), &Topology::default())),
            store_revision: StoreRevision::from_snapshot(snapshot),
            changed: Changed::All,
            graceful_removals: BTreeSet::new(),
            retained: Arc::default(),
            newest_revision: snapshot.revision,
        }
    }
}

/// confgen's copy of the store.
#[derive(Clone, Debug)]
pub struct StoreReplica {
    /// The store's keys and the retained ones.
    topology: Arc<Topology>,
    /// `None` if neither etcd nor the state directory has told it yet.
    store_revision: Option<StoreRevision>,
    /// The newest revision that etcd told, balancer records included.
    newest_revision: i64,
    /// The store was listed, or the persisted store stands in for it.
    is_known: bool,
    retained: Arc<RetainedKeys>,
    changed: Changed,
    graceful_removals: BTreeSet<(ServiceId, UpstreamId)>,
    reset_events: Vec<ResetEvent>,
    /// The time of the last listing, by this host's clock.
    listed_at: SystemTime,
}

impl Default for StoreReplica {
    fn default() -> Self {
        Self::from_persisted(PersistedStore::default())
    }
}

impl StoreReplica {
    /// Starts from the persisted store. The replica isn't known until etcd answers or [`StoreReplica::use_persisted`] is called.
    pub fn from_persisted(mut stored: PersistedStore) -> Self {
        let (store_revision, mut retained) = (stored.position, std::mem::take(&mut stored.held));
        let topology = stored.into_topology().with_limits(KEY_LIMITS);
        let keys: BTreeSet<&str> = topology.entries().map(|entry| entry.key.as_str()).collect();
        // An edited state.json may name a retained key without an entry.
        retained.retain(|key| keys.contains(key));
        Self {
            topology: Arc::new(topology),
            store_revision,
            newest_revision: 0,
            is_known: false,
            retained: Arc::new(retained),
            changed: Changed::All,
            graceful_removals: BTreeSet::new(),
            reset_events: Vec::new(),
            listed_at: SystemTime::UNIX_EPOCH,
        }
    }

    /// Sets the time of the next [`StoreReplica::apply_listing`], by this host's clock.
    pub fn set_listing_time(&mut self, now: SystemTime) {
        self.listed_at = now;
    }

    /// Serves the persisted store while etcd can't be reached. Returns true if that makes the replica known.
    pub fn use_persisted(&mut self) -> bool {
        // etcd's own answer is newer, and must never be replaced by the file.
        let falls_back = !self.is_known && self.store_revision.is_some();
        self.is_known |= falls_back;
        falls_back
    }

    /// Replaces the replica by a listing of all keys. If the store was reset, the keys that it lacks are retained.
    pub fn apply_listing(&mut self, snapshot: Snapshot) {
        let now = StoreRevision::from_snapshot(&snapshot);
        // The newest revision counts: after a restore, the store may lack nothing but balancer records.
        let known = self
            .store_revision
            .map(|known| StoreRevision { revision: known.revision.max(self.newest_revision), ..known });
        let reset = known.and_then(|known| known.compare(now).err());
        let needs_keys = reset.is_some() || !self.retained.is_empty();
        let keys = snapshot.entries.iter().filter(|_| needs_keys || cfg!(debug_assertions));
        let listed: BTreeSet<String> = keys.map(|entry| entry.key.clone()).collect();
        let now_kept = build_topology(snapshot.entries, &self.topology);
        let last = std::mem::replace(&mut self.topology, Arc::new(now_kept));
        if needs_keys {
            let listed = listed.iter().map(String::as_str).collect();
            self.retain_missing_keys(&last, &listed, reset.map(|reason| (reason, now)));
        }
        (self.store_revision, self.newest_revision) = (Some(now), now.revision);
        // Every listing has all services decided anew, in case that an event was lost.
        (self.is_known, self.changed) = (true, Changed::All);
        debug_assert_eq!(self.check_invariants(listed.iter().map(String::as_str)), Ok(()));
    }

    /// Retains the keys that a reset store lacks. Without a reset, releases the retained keys that were listed.
    fn retain_missing_keys(
        &mut self,
        last: &Topology,
        listed: &BTreeSet<&str>,
        reset: Option<(ResetReason, StoreRevision)>,
    ) {
        let before = self.retained.len();
        let retained = Arc::make_mut(&mut self.retained);
        match reset {
            Some((_, now)) => *retained = RetainedKeys::from_reset(last, listed, now, self.listed_at),
            None => retained.retain(|key| !listed.contains(key)),
        }
        let topology = Arc::make_mut(&mut self.topology);
        for entry in last.entries().filter(|entry| retained.contains(&entry.key)) {
            // What served before a reset goes on, even if the new store is full.
            topology.force_entry(entry);
        }
        let records = topology.services().iter().flat_map(|(service, keys)| {
            keys.upstreams()
                .filter(|(_, record)| !retained.contains(&record.entry.key))
                .filter_map(|(id, record)| Some(((service.clone(), id.clone()), record.value.as_ref().ok()?.address)))
        });
        let reassigned: Vec<String> =
            records.flat_map(|(live, address)| retained.reassigned_keys(&live, address)).collect();
        reassigned.iter().for_each(|key| self.release_key(key));
        match reset {
            Some((reason, noticed)) => {
                let (keys, services) = (self.retained.len(), self.retained.count_services());
                self.reset_events.push(ResetEvent::StoreReset { reason, noticed, keys, services });
            }
            None => self.note_released_keys(before),
        }
        self.check_acceptance();
    }

    /// Applies the changes up to a revision. Returns true if a reconcile has to see them.
    pub fn apply_changes(&mut self, revision: i64, changes: &[Change]) -> bool {
        if !self.is_known {
            return false;
        }
        self.newest_revision = self.newest_revision.max(revision);
        // Each balancer acknowledges the store's revision with a write. If those writes moved the revision, the balancers would
        // answer each other for ever.
        if !changes.is_empty() && changes.iter().all(|change| concerns_no_service(change.key())) {
            return false;
        }
        if let Some(known) = &mut self.store_revision {
            known.revision = revision;
        }
        self.graceful_removals.extend(changes.iter().filter_map(parse_graceful_removal));
        let mut is_relevant = false;
        for change in changes {
            let Some(change) = bound_change(change) else { continue };
            is_relevant |= self.apply_change(&change);
        }
        if !self.retained.is_empty() {
            is_relevant |= self.release_changed_keys(changes);
        }
        let written = changes.iter().filter(|change| matches!(change, Change::Put(_))).map(Change::key);
        debug_assert_eq!(self.check_invariants(written), Ok(()));
        // The removal guard's upstreams aren't in the replica, but an acceptance releases them too.
        is_relevant || changes.iter().any(|change| change.key() == Key::AcceptStore.to_string())
    }

    /// Returns true if the change is about a service, or is a malformed key that comes, goes or changes.
    fn apply_change(&mut self, change: &Change) -> bool {
        let topology = Arc::make_mut(&mut self.topology);
        // One key is compared, since a copy of the whole list would cost its length with each batch.
        let before = topology.malformed_keys().get(change.key()).cloned();
        let left_out_before = topology.left_out().has_other_keys();
        let service = topology.apply_change(change);
        let is_relevant = service.is_some()
            || before.as_ref() != topology.malformed_keys().get(change.key())
            || left_out_before != topology.left_out().has_other_keys();
        if let Some(id) = service {
            self.changed.add_service(id);
        }
        is_relevant
    }

    /// Releases retained keys that were written again, or at an address that has another record. Releases all if an operator
    /// accepts the store. Returns true if a key was released.
    fn release_changed_keys(&mut self, changes: &[Change]) -> bool {
        let before = self.retained.len();
        // All written keys come first. A key that is written later in the same batch is in the topology already, and would be taken out
        // of it if an earlier record with its address released it.
        for change in changes {
            Arc::make_mut(&mut self.retained).remove_key(change.key());
        }
        for change in changes {
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

    /// Releases all retained keys if `control/accept-store` is about this reset.
    fn check_acceptance(&mut self) {
        let Some(acceptance) = self.topology.accept_store().filter(|_| !self.retained.is_empty()) else { return };
        match self.retained.check_acceptance(acceptance) {
            Ok(()) => {
                let keys: Vec<String> = self.retained.keys().cloned().collect();
                keys.iter().for_each(|key| self.release_key(key));
                self.reset_events.push(ResetEvent::Accepted { keys: keys.len() });
            }
            Err(reason) => self.reset_events.push(ResetEvent::AcceptanceRejected(reason)),
        }
    }

    /// Removes a retained key from the topology. Its upstream counts as removed gracefully, so that the removal guard doesn't
    /// retain it in turn.
    fn release_key(&mut self, key: &str) {
        if !Arc::make_mut(&mut self.retained).remove_key(key) {
            return;
        }
        // The store has no such key, so its removal has no revision.
        let removal = Change::Delete { key: key.to_owned(), revision: 0, previous: None };
        if let Some(id) = Arc::make_mut(&mut self.topology).apply_change(&removal) {
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

    /// All keys that the replica has.
    pub fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    /// True if services changed since the last [`StoreReplica::take_update`].
    pub fn has_unseen_changes(&self) -> bool {
        self.changed != Changed::no_services()
    }

    /// The revision that counts as applied without a reconcile. `None` if there are changes that no reconcile has seen: announcers
    /// wait for those.
    pub fn revision_without_changes(&self) -> Option<StoreRevision> {
        (!self.has_unseen_changes()).then(|| self.store_revision())
    }

    /// The revision of the last change that concerns confgen. All zero before the store is known.
    pub fn store_revision(&self) -> StoreRevision {
        self.store_revision.unwrap_or_default()
    }

    /// Counts the services' keys, retained ones included.
    pub fn count_keys(&self) -> usize {
        self.topology.entries().count()
    }

    /// Takes what happened to retained keys since the last call, for the log.
    pub fn take_reset_events(&mut self) -> Vec<ResetEvent> {
        std::mem::take(&mut self.reset_events)
    }

    /// Takes the changes that no reconcile has seen. `None` before the store is known.
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

    /// Returns the first violated invariant. `stored` are keys that the store has now.
    fn check_invariants<'a>(&self, mut stored: impl Iterator<Item = &'a str>) -> Result<(), String> {
        if self.is_known && self.store_revision.is_none() {
            return Err("the replica is known, but has no revision".into());
        }
        if self.retained.is_empty() {
            return Ok(());
        }
        if let Some(key) = stored.find(|key| self.retained.contains(key)) {
            return Err(format!("{key} is retained, but the store has it"));
        }
        let entries: BTreeSet<&str> = self.topology.entries().map(|entry| entry.key.as_str()).collect();
        match self.retained.keys().find(|key| !entries.contains(key.as_str())) {
            Some(key) => Err(format!("{key} is retained without an entry")),
            None => Ok(()),
        }
    }
}

/// Builds the topology of a listing within the limits. Keys that `last` keeps stay.
fn build_topology(mut entries: Vec<Entry>, last: &Topology) -> Topology {
    entries.retain(|entry| is_followed(&entry.key));
    Topology::from_listing(entries, KEY_LIMITS, last)
}

/// The upstream that a change writes, and its address. `None` for a removal, another key, or a rejected record.
fn parse_written_upstream(change: &Change) -> Option<(UpstreamRef, discovery::UpstreamAddress)> {
    let Change::Put(Entry { key, value, .. }) = change else { return None };
    let Ok(Key::Upstream { service, id, .. }) = key.parse::<Key>() else { return None };
    Some(((service, id), Upstream::parse(value).ok()?.address))
}

/// The services with keys that may have changed since the previous update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Every service, after a listing or a failed action.
    All,
    /// These services only.
    Services(BTreeSet<ServiceId>),
}

impl Changed {
    /// Adds a service, unless all are in already.
    pub fn add_service(&mut self, id: ServiceId) {
        if let Self::Services(services) = self {
            services.insert(id);
        }
    }

    /// The value of an update without changes.
    pub fn no_services() -> Self {
        Self::Services(BTreeSet::new())
    }
}

#[cfg(test)]
mod tests;
