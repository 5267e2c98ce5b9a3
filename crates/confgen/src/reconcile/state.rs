//! The parts of the reconciler's state. Data, except for what the removal guard remembers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use discovery::ServiceId;
use haproxy::check::Checker;

use crate::cli::Options;
use crate::desired::DesiredState;
use crate::local_files::expiry::Expiry;
use crate::local_files::{LocalFiles, LocalPaths};
use crate::operator_files::edit_windows::EditWindow;
use crate::operator_files::validate::Rejection;
use crate::render::ConfigText;
use crate::render::service_texts::ServiceTexts;
use crate::render::view::Site;
use crate::state_dir::StateDir;
use crate::status::{ReconcileStatus, Retained, Retainer};
use crate::store::address_owners::UpstreamRef;
use crate::store::removal_guard::{GuardPolicy, RemovalGuard};
use crate::store::{PersistedStore, RetainedKeys, StoreRevision};

/// Asks etcd which of these leases live, within a bounded time. A lease that etcd doesn't answer for counts as dead.
pub type LeaseLookup = Box<dyn Fn(BTreeSet<i64>) -> BTreeSet<i64> + Send>;

/// The parts that never change.
pub struct Config {
    pub options: Options,
    pub paths: LocalPaths,
    pub state_dir: StateDir,
    pub checker: Checker,
    pub lease_lookup: LeaseLookup,
}

/// The local files, as they count.
pub struct Files {
    pub site: Site,
    pub local: Arc<LocalFiles>,
    /// The reason why the operator's files aren't accepted as they are. The last accepted ones count.
    pub rejection: Option<Rejection>,
    /// The times when lines in filled files weren't confgen's.
    pub edit_windows: Arc<Mutex<Vec<EditWindow>>>,
    /// A filled file with such lines that HAProxy may have been started with.
    pub suspect: Option<PathBuf>,
    /// The services' texts as they were rendered last.
    pub texts: Arc<Mutex<ServiceTexts>>,
    /// The file as this process wrote it last. `None` before the first time.
    pub written: Arc<Mutex<Option<ConfigText>>>,
    /// The generation id of the last accepted haproxy.cfg, and the desired state in it. `None` once HAProxy runs it.
    pub accepted: Option<(String, DesiredState)>,
    /// The ids of the last two generations that were published, the last one first. Empty before that.
    pub published_generations: [String; 2],
    /// The reason why the start couldn't write all that it has to. `None` once it has.
    pub startup_error: Option<String>,
}

/// HAProxy is asked at most this often whether retained upstreams are up.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// The pause grows by this with each service that retains upstreams, because HAProxy is asked about each service by itself, and
/// no timer ends the retention. A late answer costs no request: HAProxy sends none to an upstream whose check fails.
const PAUSE_PER_SERVICE: Duration = Duration::from_millis(20);

/// Upstreams that are served although their keys are gone, and the facts that end it.
#[derive(Clone, Debug)]
pub struct Retention {
    /// The losses, and the upstreams that are retained.
    pub guard: RemovalGuard,
    /// Keys that a reset store lacks.
    pub keys: Arc<RetainedKeys>,
    /// The time of the last question to HAProxy about retained upstreams.
    pub health_asked_at: Instant,
    /// The cluster and the revision of the last acceptance that was taken in.
    pub last_acceptance: Option<(u64, i64)>,
    /// The services that the guard retains upstreams of although their settings were deleted. The log has each once.
    pub without_settings: BTreeSet<ServiceId>,
    /// The store of the previous process of confgen.
    pub persisted: PersistedStore,
}

impl Retention {
    /// Nothing is retained yet. `persisted` is the store of the previous process.
    pub fn new(policy: GuardPolicy, persisted: PersistedStore, now: Instant) -> Self {
        Self {
            guard: RemovalGuard::new(policy),
            keys: Arc::default(),
            health_asked_at: now,
            last_acceptance: None,
            without_settings: BTreeSet::new(),
            persisted,
        }
    }

    /// Goes on with the upstreams that the previous process retained, and with the removals that it counted.
    pub fn restore_guard(&mut self, desired: &mut DesiredState, now: Instant, wall_clock: SystemTime) {
        let (kept, lost) = (std::mem::take(&mut self.persisted.kept), std::mem::take(&mut self.persisted.lost));
        self.guard.restore_persisted(now, wall_clock, kept, lost);
        for service in self.guard.services_with_retained() {
            desired.set_retained(&service, self.guard.retained_of(&service));
        }
    }

    /// The upstreams that are served although their keys are gone, each with the reason.
    pub fn list_served(&self, desired: &DesiredState) -> BTreeMap<UpstreamRef, Retained> {
        let reset = Retained { by: Retainer::Reset, since: self.keys.retained_since() };
        let lost = self.keys.served_upstreams(|service, id| desired.record_key(service, id));
        let by_guard = self.guard.retained_since().map(|(name, since)| (name, Retained { by: Retainer::Guard, since }));
        lost.into_iter().map(|name| (name, reset)).chain(by_guard).collect()
    }

    /// True if HAProxy may be asked again about the retained upstreams.
    pub fn is_release_due(&self, now: Instant) -> bool {
        let services = u32::try_from(self.guard.services_with_retained().len()).unwrap_or(u32::MAX);
        let pause = ASK_EVERY.max(PAUSE_PER_SERVICE.saturating_mul(services));
        now.saturating_duration_since(self.health_asked_at) >= pause
    }
}

/// The results of the last reconcile.
pub struct Standing {
    pub reconcile: ReconcileStatus,
    /// The store, as the last reconcile had it.
    pub store_revision: StoreRevision,
    /// The newest revision, balancer records included.
    pub newest_revision: i64,
    /// An old process still listens, and serves the services that it knows.
    pub old_process_listens: bool,
}

/// The last logged facts. The log has each fact once.
pub struct Logged {
    pub quarantined: Arc<BTreeMap<String, String>>,
    /// Remarks on the operator's files.
    pub remarks: Vec<String>,
    /// HAProxy's warnings about all files.
    pub warnings: Arc<Mutex<BTreeSet<String>>>,
    pub expiry: Expiry,
}
