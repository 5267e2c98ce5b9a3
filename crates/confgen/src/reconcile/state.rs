//! The parts of the reconciler's state. Data only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

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
use crate::status::ReconcileStatus;
use crate::store::removal_guard::RemovalGuard;
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

/// Upstreams that are served although their keys are gone, and the facts that end it.
pub struct Retention {
    pub guard: RemovalGuard,
    /// Keys that a reset store lacks.
    pub keys: Arc<RetainedKeys>,
    pub health_asked_at: Instant,
    /// The cluster and the revision of the last acceptance that was taken in.
    pub last_acceptance: Option<(u64, i64)>,
    /// The services that the guard retains upstreams of although their settings were deleted. The log has each once.
    pub without_settings: BTreeSet<ServiceId>,
    /// The store of the previous process of confgen.
    pub persisted: PersistedStore,
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
