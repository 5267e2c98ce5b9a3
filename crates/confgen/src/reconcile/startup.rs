//! The start of the reconciler: the state directory and the local files. It neither asks etcd nor changes HAProxy.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use discovery::Snapshot;
use haproxy::runtime::Socket;
use program::text::describe_error;

use super::{LeaseLookup, Reconciler};
use crate::cli::Options;
use crate::desired::upstream_bound::SpareRoom;
use crate::desired::{DesiredState, LastKnownGood};
use crate::local_files::LocalFiles;
use crate::local_files::certificates::Certificates;
use crate::local_files::expiry::Expiry;
use crate::local_files::stats_password;
use crate::operator_files::filled::FilledFiles;
use crate::reconcile::release;
use crate::reconcile::state::{Config, Files, Logged, Retention, Standing};
use crate::render::error_pages::ErrorPages;
use crate::render::view::Site;
use crate::runtime::HaproxyControl;
use crate::state_dir;
use crate::state_dir::{OwnFile, StateDir};
use crate::status::ReconcileStatus;
use crate::store::removal_guard::GuardPolicy;
use crate::store::{PersistedStore, StoreReplica, StoreRevision};

impl Reconciler {
    /// Opens the state directory and reads the local files. If the disk is full, the rest of the start follows later. `own_cfg` gets the
    /// stamps of each haproxy.cfg that confgen writes.
    pub fn open(options: Options, lease_lookup: LeaseLookup, own_cfg: OwnFile) -> anyhow::Result<Self> {
        release::check_haproxy_version(&options.build_checker())?;
        let state_dir = StateDir::open(&options.haproxy_cfg, &options.state_dir)?.with_own_cfg(own_cfg);
        match Self::load_local_files(&options) {
            Ok((hash, files)) => {
                let persisted = state_dir.load_state()?;
                let mut reconciler = Self::new(options, lease_lookup, state_dir, hash, files, persisted)?;
                match reconciler.restore_operator_files() {
                    Err(error) if is_disk_full(&error) => {
                        reconciler.files.startup_error = Some(describe_error(error.as_ref()));
                    }
                    restored => restored?,
                }
                Ok(reconciler)
            }
            Err(error) if is_disk_full(&error) => Self::open_without_room(options, lease_lookup, state_dir, &error),
            Err(error) => Err(error),
        }
    }

    /// Creates the directories, the state file and the password, and collects certificates, CA files and error pages.
    fn load_local_files(options: &Options) -> anyhow::Result<(crate::render::stats_hash::Hash, LocalFiles)> {
        let paths = options.local_paths();
        paths.create_directories()?;
        paths.check_fill_files()?;
        state_dir::create_state_file(&options.server_state_file);
        let hash = stats_password::load_password_hash(options.stats_password_file.as_deref(), &options.state_dir)?;
        let files = LocalFiles {
            allowed_domains: paths.read_domain_allowlist()?,
            ..paths.collect_files(&options.build_checker())?
        };
        Ok((hash, files))
    }

    /// Starts although the disk is full. HAProxy then gets changes over the Runtime API only, and the last good files count. The
    /// next reload of the files tries again.
    fn open_without_room(
        options: Options,
        lease_lookup: LeaseLookup,
        state_dir: StateDir,
        error: &anyhow::Error,
    ) -> anyhow::Result<Self> {
        let words = describe_error(error.as_ref());
        tracing::error!(error = %words, "can't write the state directory, using only the Runtime API");
        let paths = options.local_paths();
        let files = LocalFiles { allowed_domains: paths.read_domain_allowlist()?, ..paths.read_unchecked() };
        let (hash, persisted) = (stats_password::read_last_hash(&options.state_dir), state_dir.load_leniently());
        let mut reconciler = Self::new(options, lease_lookup, state_dir, hash, files, persisted)?;
        reconciler.files.startup_error = Some(words);
        if let Ok(Some(sources)) = reconciler.config.state_dir.load_operator_files() {
            let include = reconciler.config.paths.parse_operator_files(sources, &FilledFiles::default());
            Arc::make_mut(&mut reconciler.files.local).operator_files = include;
        }
        Ok(reconciler)
    }

    /// The start couldn't write all that it has to.
    pub fn is_startup_incomplete(&self) -> bool {
        self.files.startup_error.is_some()
    }

    /// Writes what the start couldn't. An error if the disk is still full.
    pub(super) fn complete_startup(&mut self) -> anyhow::Result<()> {
        if self.files.startup_error.is_none() {
            return Ok(());
        }
        let (hash, files) = Self::load_local_files(&self.config.options)?;
        self.files.site.stats_hash = hash;
        let operator_files = self.files.local.operator_files.clone();
        self.files.local = Arc::new(LocalFiles { operator_files, ..files });
        self.restore_operator_files()?;
        self.files.startup_error = None;
        tracing::info!(dir = %self.config.options.state_dir.display(), "the state directory has room again");
        Ok(())
    }

    /// Reads the same files and writes nothing, for `render` and `diff`.
    pub fn open_read_only(options: Options) -> anyhow::Result<Self> {
        let state_dir = StateDir::open_read_only(&options.haproxy_cfg, &options.state_dir);
        let (hash, paths) = (stats_password::read_last_hash(&options.state_dir), options.local_paths());
        // HAProxy's check of certificates writes trial files, and this must write nothing.
        let files = LocalFiles { allowed_domains: paths.read_domain_allowlist()?, ..paths.read_unchecked() };
        let persisted = state_dir.load_leniently();
        Self::new(options, Box::new(|_| BTreeSet::new()), state_dir, hash, files, persisted)
    }

    fn new(
        options: Options,
        lease_lookup: LeaseLookup,
        state_dir: StateDir,
        stats_hash: crate::render::stats_hash::Hash,
        files: LocalFiles,
        (last_known_good, persisted): (LastKnownGood, PersistedStore),
    ) -> anyhow::Result<Self> {
        let marker = options.state_dir.join("restarting");
        let mut haproxy =
            HaproxyControl::new(Socket::new(options.runtime_socket.clone()), options.build_control()?, marker);
        haproxy.set_certificates(&files.certificates);
        files.certificates.log_changes(&Certificates::default());
        files.pages.log_changes(&ErrorPages::default());
        let guard = GuardPolicy { share: options.guard, window: options.guard_window, hold: options.guard_hold };
        let mut reconciler = Self {
            files: Files {
                site: Site { pages: Arc::clone(&files.pages), ..options.build_site(stats_hash) },
                local: Arc::new(files),
                rejection: None,
                edit_windows: Arc::default(),
                suspect: None,
                texts: Arc::default(),
                written: Arc::default(),
                accepted: None,
                published_generations: Default::default(),
                startup_error: None,
            },
            config: Config {
                paths: options.local_paths(),
                checker: options.build_checker(),
                options,
                state_dir,
                lease_lookup,
            },
            desired: DesiredState::from_last_known_good(last_known_good),
            fingerprints: Arc::default(),
            generation: Arc::default(),
            spare_room: SpareRoom::default(),
            haproxy,
            retained: Retention::new(guard, persisted, Instant::now()),
            status: Standing {
                reconcile: ReconcileStatus::default(),
                store_revision: StoreRevision::default(),
                newest_revision: 0,
                old_process_listens: false,
            },
            logged: Logged {
                quarantined: Arc::default(),
                remarks: Vec::new(),
                warnings: Arc::default(),
                expiry: Expiry::default(),
            },
        };
        reconciler.restore_removal_guard();
        Ok(reconciler)
    }

    /// The store of the previous process, for the replica. Empty the second time.
    pub fn take_persisted(&mut self) -> PersistedStore {
        std::mem::take(&mut self.retained.persisted)
    }

    /// A replica of a store that is listed once. It retains keys that the persisted store has, if the store was reset since.
    pub fn replica_of(&mut self, snapshot: Snapshot) -> StoreReplica {
        let mut replica = StoreReplica::from_persisted(self.take_persisted());
        replica.set_listing_time(SystemTime::now());
        replica.apply_listing(snapshot);
        replica.take_reset_events().iter().for_each(|event| tracing::warn!("{event}"));
        replica
    }
}

/// True if the disk takes no more bytes.
fn is_disk_full(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(|io| {
        // A file system that fails is mounted read-only by the kernel, and may be writable again later.
        matches!(io.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
    })
}
