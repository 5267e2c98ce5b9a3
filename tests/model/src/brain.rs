//! One confgen: its replica, desired state, drains, removal guard and state directory. Every decision here is a call of the product.
//! This module only carries results from one stage to the next, as confgen's event loop does, and has no clock: the drains'
//! times are those of the facts that the model brings.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

use confgen::decisions::{
    Changed, DesiredState, DrainContext, DrainTracker, Evidence, GuardPass, GuardPolicy, Health, LastKnownGood,
    PersistedStore, Policy, ReconcileStatus, Retention, SavedState, ServerHealth, ServerState, SessionCount, Status,
    StoreReplica, StoreRevision, note_applied, to_balancer_record,
};
use discovery::{BalancerRecord, ServiceId, Snapshot, UpstreamId};
use registry::Event;

/// The time at which HAProxy gets every drain. Facts name their times from here.
pub static BASE: LazyLock<Instant> = LazyLock::new(|| Instant::now() + Duration::from_secs(100_000));

/// The guard of the model: more than half, as by default.
const GUARD: GuardPolicy = GuardPolicy { share: 50, window: Duration::from_secs(60), hold: None };

/// The facts of a reconcile: HAProxy's answers, and etcd's about leases.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Facts {
    /// Upstreams whose check passes. `None` if HAProxy doesn't answer.
    pub up: Option<BTreeSet<String>>,
    /// Upstreams that HAProxy has.
    pub present: BTreeSet<String>,
    /// Leases that live, as etcd answers.
    pub leases: BTreeSet<i64>,
    /// HAProxy takes commands.
    pub answers: bool,
    /// The services that wait for a restart of HAProxy.
    pub pending: BTreeSet<ServiceId>,
    /// An old process still listens.
    pub old_listens: bool,
}

impl Evidence for Facts {
    fn ask_health(&self, services: &BTreeSet<ServiceId>) -> Health {
        let Some(up) = &self.up else { return Health(None) };
        let mut all = BTreeMap::new();
        for service in services {
            let prefix = format!("{service}/");
            let of = self.present.iter().filter_map(|name| {
                let health = if up.contains(name) { ServerHealth::Up } else { ServerHealth::Down };
                Some((name.strip_prefix(&prefix)?.to_owned(), health))
            });
            all.insert(service.clone(), of.collect());
        }
        Health(Some(all))
    }

    fn find_live_leases(&self, leases: BTreeSet<i64>) -> BTreeSet<i64> {
        leases.intersection(&self.leases).copied().collect()
    }
}

/// confgen's memory, and what its state directory has.
#[derive(Clone)]
pub struct Brain {
    replica: StoreReplica,
    desired: DesiredState,
    tracker: DrainTracker,
    retained: Retention,
    status: ReconcileStatus,
    seen: StoreRevision,
    reconciled: i64,
    newest: i64,
    is_current: bool,
    resolve_all: bool,
    drained: u64,
    /// The last revision of this store that the watch delivered. `None` while the watch is interrupted.
    pub followed: Option<i64>,
    /// A reconcile is due.
    pub is_due: bool,
    saved: (LastKnownGood, PersistedStore),
    publishing: Option<SavedState>,
}

/// All of it, each part once: the status and the drains have one desired state. [`crate::intern`] tells brains apart by this.
impl fmt::Debug for Brain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { replica, desired, tracker, retained, status, seen, saved, publishing, .. } = self;
        let ReconcileStatus { applied, published, pending, retained: shown, reset_lost, .. } = status;
        let flags = (self.is_current, self.resolve_all, self.is_due, self.followed);
        let numbers = (self.reconciled, self.newest, self.drained);
        write!(f, "{replica:?} {desired:?} {tracker:?} {retained:?} {seen:?} {saved:?} {publishing:?} ")?;
        write!(f, "{applied:?} {published} {pending:?} {shown:?} {reset_lost:?} {flags:?} {numbers:?}")
    }
}

impl Default for Brain {
    fn default() -> Self {
        Self::started(LastKnownGood::default(), PersistedStore::default())
    }
}

impl Brain {
    /// A confgen that starts with this state directory.
    fn started(good: LastKnownGood, store: PersistedStore) -> Self {
        let saved = (good.clone(), store.clone());
        let mut desired = DesiredState::from_last_known_good(good);
        let mut retained = Retention::new(GUARD, store, *BASE);
        retained.restore_guard(&mut desired, *BASE, SystemTime::UNIX_EPOCH);
        if retained.persisted.position.is_some() {
            desired.set_policy(Policy::default());
            desired.assume_topology(&retained.persisted.clone().into_topology());
        }
        let replica = StoreReplica::from_persisted(std::mem::take(&mut retained.persisted));
        Self {
            replica,
            desired,
            tracker: DrainTracker::default(),
            retained,
            status: ReconcileStatus::default(),
            seen: StoreRevision::default(),
            reconciled: 0,
            newest: 0,
            is_current: false,
            resolve_all: false,
            drained: 0,
            followed: None,
            is_due: false,
            saved,
            publishing: None,
        }
    }

    /// The next process of this confgen. It has the state directory alone, or not even that.
    #[must_use]
    pub fn restarted(&self, has_state_dir: bool) -> Self {
        let (good, store) = if has_state_dir { self.saved.clone() } else { Default::default() };
        Self::started(good, store)
    }

    /// The same with a state directory that forgets the keys that are retained since a reset (a seeded bug).
    #[must_use]
    pub fn restarted_without_held(&self) -> Self {
        let (good, mut store) = self.saved.clone();
        store.held = Default::default();
        Self::started(good, store)
    }

    /// The watch delivers a revision.
    pub fn apply(&mut self, event: &Event) {
        let Event::Changes { revision, changes } = event else { return };
        self.is_due |= self.replica.apply_changes(*revision, changes);
        self.note_store_event(*revision);
    }

    /// The watch begins anew, with a listing.
    pub fn list(&mut self, snapshot: &Snapshot) {
        self.replica.set_listing_time(SystemTime::UNIX_EPOCH);
        self.replica.apply_listing(snapshot.clone());
        self.is_due = true;
        self.note_store_event(snapshot.revision);
    }

    fn note_store_event(&mut self, revision: i64) {
        (self.followed, self.newest) = (Some(revision), revision);
        self.seen = self.replica.store_revision();
        self.replica.take_reset_events();
        self.advance_applied();
    }

    fn advance_applied(&mut self) {
        // The scheduler's part of the condition: no reconcile is due that has to resolve everything.
        if let Some(applied) = self.replica.revision_without_changes().filter(|_| self.is_current && !self.resolve_all)
        {
            self.status.applied = Some(applied);
        }
    }

    /// Goes on with the persisted store while etcd can't be reached.
    pub fn use_persisted(&mut self) {
        if self.replica.use_persisted() {
            self.is_due = true;
        }
    }

    /// One reconcile. If HAProxy takes no commands, it has to be repeated.
    pub fn reconcile(&mut self, facts: &Facts) {
        self.is_due = false;
        let Some(mut update) = self.replica.take_update() else { return };
        if std::mem::take(&mut self.resolve_all) {
            update.changed = Changed::All;
        }
        if update.changed == Changed::All {
            self.desired.set_policy(Policy::default());
        }
        self.desired.update_services(&update.topology, &update.changed);
        let later = *BASE + Duration::from_secs(2);
        let (desired, retained) = (&mut self.desired, &mut self.retained);
        let wall_clock = SystemTime::UNIX_EPOCH;
        GuardPass { desired, retained, evidence: facts, now: later, wall_clock }.retain_removed(&update);
        self.retained.health_asked_at = *BASE;
        self.desired.drop_removed();
        self.retained.keys = Arc::clone(&update.retained);
        self.is_current = facts.answers;
        if !facts.answers {
            (self.resolve_all, self.is_due) = (true, true);
            return;
        }
        self.desired.mark_running(self.desired.services().map(|(id, _)| id.clone()).collect::<Vec<_>>().iter());
        self.settle(update.store_revision, facts);
    }

    /// HAProxy has what is desired.
    fn settle(&mut self, revision: StoreRevision, facts: &Facts) {
        let desired = &self.desired;
        let is_served = |id: &ServiceId| desired.service(id).is_some();
        note_applied(&mut self.status, revision, facts.pending.clone(), is_served, || facts.old_listens);
        self.status.desired = Arc::new(self.desired.clone());
        self.status.retained = self.retained.list_served(&self.desired);
        self.status.reset_lost = self.retained.keys.summarize_loss();
        self.reconciled = revision.revision;
        self.tracker.update_drains(*BASE, &self.status.desired, self.reconciled, &[]);
        self.advance_applied();
    }

    /// Asks HAProxy about retained upstreams, and releases those whose check fails.
    pub fn release(&mut self, facts: &Facts) {
        let later = *BASE + Duration::from_secs(2);
        let (desired, retained) = (&mut self.desired, &mut self.retained);
        let wall_clock = SystemTime::UNIX_EPOCH;
        GuardPass { desired, retained, evidence: facts, now: later, wall_clock }.release_retained(&BTreeSet::new());
        self.retained.health_asked_at = *BASE;
        self.desired.drop_removed();
        self.settle(self.replica.store_revision(), facts);
    }

    /// A publish begins, with everything as of now.
    pub fn begin_publish(&mut self) {
        let position = StoreRevision { revision: self.newest.max(self.reconciled), ..self.seen };
        self.publishing = Some(SavedState {
            desired: self.desired.clone(),
            position,
            held: Arc::clone(&self.retained.keys),
            kept: self.retained.guard.persist_retained(*BASE),
            lost: self.retained.guard.persist_losses(*BASE),
        });
    }

    /// The revision and the server states of the file that is being written, or that a publish would write.
    pub fn draft(&self) -> (i64, &DesiredState) {
        (self.reconciled, self.publishing.as_ref().map_or(&self.desired, |it| &it.desired))
    }

    /// The file and the state directory are written. `revision` is that of the publish's begin.
    pub fn end_publish(&mut self, revision: i64) {
        if let Some(state) = self.publishing.take() {
            self.saved = state.to_loaded();
            self.status.published = revision;
        }
    }

    /// True if the state directory differs from what a publish would write.
    pub fn is_saved(&self) -> bool {
        let mut fresh = self.clone();
        fresh.begin_publish();
        fresh.publishing.is_some_and(|state| state.to_loaded() == self.saved)
    }

    /// Counts sessions. `published_at` is after the count if the file was written since it began.
    pub fn count(&mut self, count: &SessionCount, process: Option<(u32, Instant)>, is_confirmed: bool, file: File) {
        let published_revision = match file {
            File::AsWritten { .. } => DrainContext::usable_file_revision(self.status.published, self.reconciled),
            File::Unchecked => i64::MAX,
        };
        let published_at = match file {
            File::AsWritten { since_begin: true } => count.at + Duration::from_millis(1),
            _ => *BASE - Duration::from_secs(50),
        };
        self.tracker.apply_count(count, DrainContext { published_revision, published_at, process, is_confirmed });
        self.drained = self.tracker.count_ended();
    }

    /// The upstreams whose drain isn't over.
    pub fn open_drains(&self) -> usize {
        self.tracker.open_drains().len()
    }

    /// The balancer record of now.
    pub fn record(&self) -> BalancerRecord {
        let status = Status {
            seen: self.seen,
            reconcile: Arc::new(self.status.clone()),
            draining: Arc::new(self.tracker.open_drains()),
            ..Status::default()
        };
        to_balancer_record(&status).fit_into_key()
    }

    /// The state that HAProxy should have of an upstream. `None` if it should have none.
    pub fn wanted(&self, service: &ServiceId, id: &UpstreamId) -> Option<ServerState> {
        state_in(&self.desired, service, id)
    }

    /// The desired state.
    pub fn desired(&self) -> &DesiredState {
        &self.desired
    }

    /// The removal guard.
    pub fn retention(&self) -> &Retention {
        &self.retained
    }

    /// The replica.
    pub fn replica(&self) -> &StoreReplica {
        &self.replica
    }

    /// The revision that counts as applied, of the store with this cluster id.
    pub fn applied(&self) -> Option<StoreRevision> {
        self.status.applied
    }

    /// True if HAProxy runs all that the last reconcile was given.
    pub fn is_current(&self) -> bool {
        self.is_current
    }

    /// The revision of the file on disk.
    pub fn published(&self) -> i64 {
        self.status.published
    }

    /// The revision of the last reconcile.
    pub fn reconciled(&self) -> i64 {
        self.reconciled
    }
}

/// The state of an upstream in a desired state.
pub fn state_in(desired: &DesiredState, service: &ServiceId, id: &UpstreamId) -> Option<ServerState> {
    let service = desired.service(service)?;
    service.servers.iter().find(|server| server.id == *id).map(|server| server.state)
}

/// How a count's file is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum File {
    /// By its revision, which counts if the file is older than the count.
    AsWritten {
        /// The file was written after the count began.
        since_begin: bool,
    },
    /// Not at all (a seeded bug).
    Unchecked,
}
