//! The start of the reconciler. It loads the state directory and reads the local files.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use discovery::Snapshot;
use haproxy::runtime::Socket;

use super::{LeaseLookup, Reconciler};
use crate::cli::Options;
use crate::desired::{DesiredState, LastKnownGood};
use crate::local_files::LocalFiles;
use crate::local_files::certificates::Certificates;
use crate::local_files::expiry::Expiry;
use crate::local_files::stats_password;
use crate::operator_files::filled::FilledFiles;
use crate::reconcile::release;
use crate::render::error_pages::ErrorPages;
use crate::render::restart_needed::ConfigFingerprint;
use crate::render::view::Site;
use crate::runtime::HaproxyControl;
use crate::state_dir;
use crate::state_dir::StateDir;
use crate::status::ReconcileStatus;
use crate::store::removal_guard::{GuardPolicy, RemovalGuard};
use crate::store::{PersistedStore, StoreReplica, StoreRevision};

impl Reconciler {
    /// Opens the state directory and reads the local files.
    pub fn open(options: Options, lives: LeaseLookup) -> anyhow::Result<Self> {
        release::check_haproxy_version(&options.build_checker())?;
        let disk = StateDir::open(&options.haproxy_cfg, &options.state_dir)?;
        match Self::load_local_files(&options) {
            Ok((hash, outside)) => {
                let remembered = (disk.load_last_known_good()?, disk.load_store()?);
                let mut rounds = Self::new(options, lives, disk, hash, outside, remembered)?;
                match rounds.restore_operator_files() {
                    Err(error) if is_disk_full(&error) => rounds.startup_error = Some(format!("{error:#}")),
                    recalled => recalled?,
                }
                Ok(rounds)
            }
            Err(error) if is_disk_full(&error) => Self::open_without_room(options, lives, disk, &error),
            Err(error) => Err(error),
        }
    }

    /// Makes what HAProxy and confgen need besides the store, and takes over certificates, authorities and error pages.
    fn load_local_files(options: &Options) -> anyhow::Result<(crate::render::stats_hash::Hash, LocalFiles)> {
        let places = options.local_paths();
        places.create_directories()?;
        places.check_fill_files()?;
        state_dir::create_state_file(&options.server_state_file);
        let hash = stats_password::load_password_hash(options.stats_password_file.as_deref(), &options.state_dir)?;
        let outside = LocalFiles {
            allowed_domains: places.read_domain_allowlist()?,
            ..places.collect_files(&options.build_checker())?
        };
        Ok((hash, outside))
    }

    /// Starts although the disk has no room: HAProxy follows the store over the Runtime API. Everything else counts as it was
    /// taken over last, and certificates stay as HAProxy has them. The next looks at the files try again.
    fn open_without_room(
        options: Options,
        lives: LeaseLookup,
        disk: StateDir,
        error: &anyhow::Error,
    ) -> anyhow::Result<Self> {
        let words = format!("{error:#}");
        tracing::error!("{words}; confgen starts without writing, and HAProxy follows over the Runtime API");
        let places = options.local_paths();
        let outside = LocalFiles { allowed_domains: places.read_domain_allowlist()?, ..places.read_unchecked() };
        let (hash, remembered) = (stats_password::read_last_hash(&options.state_dir), disk.load_leniently());
        let mut rounds = Self::new(options, lives, disk, hash, outside, remembered)?;
        rounds.startup_error = Some(words);
        if let Ok(Some(sources)) = rounds.state_dir.load_operator_files() {
            let include = rounds.paths.parse_operator_files(sources, &FilledFiles::default());
            Arc::make_mut(&mut rounds.files).operator_files = include;
        }
        Ok(rounds)
    }

    /// Whether the start could not write all that it has to.
    pub fn is_startup_incomplete(&self) -> bool {
        self.startup_error.is_some()
    }

    /// Makes up for what the start could not write. An error if there is still no room.
    pub(super) fn complete_startup(&mut self) -> anyhow::Result<()> {
        if self.startup_error.is_none() {
            return Ok(());
        }
        let (hash, outside) = Self::load_local_files(&self.options)?;
        self.site.stats_hash = hash;
        let include = self.files.operator_files.clone();
        self.files = Arc::new(LocalFiles { operator_files: include, ..outside });
        self.restore_operator_files()?;
        self.startup_error = None;
        tracing::info!("{} has room again", self.options.state_dir.display());
        Ok(())
    }

    /// Looks at the same, and touches nothing: enough to tell what the file would be.
    pub fn open_read_only(options: Options) -> anyhow::Result<Self> {
        let disk = StateDir::open_read_only(&options.haproxy_cfg, &options.state_dir);
        let (hash, places) = (stats_password::read_last_hash(&options.state_dir), options.local_paths());
        let outside = LocalFiles { allowed_domains: places.read_domain_allowlist()?, ..places.read_unchecked() };
        let remembered = disk.load_leniently();
        Self::new(options, Box::new(|_| BTreeSet::new()), disk, hash, outside, remembered)
    }

    fn new(
        options: Options,
        lives: LeaseLookup,
        disk: StateDir,
        stats_hash: crate::render::stats_hash::Hash,
        outside: LocalFiles,
        (memory, stored): (LastKnownGood, PersistedStore),
    ) -> anyhow::Result<Self> {
        let marker = options.state_dir.join("restarting");
        let mut proxy =
            HaproxyControl::new(Socket::new(options.runtime_socket.clone()), options.build_control()?, marker);
        proxy.set_certificates(&outside.certificates);
        outside.certificates.log_changes(&Certificates::default());
        outside.pages.log_changes(&ErrorPages::default());
        let mut rounds = Self {
            site: Site { pages: Arc::clone(&outside.pages), ..options.build_site(stats_hash) },
            haproxy: proxy,
            desired: DesiredState::from_last_known_good(memory),
            files: Arc::new(outside),
            fingerprints: ConfigFingerprint::default(),
            quarantined: BTreeMap::new(),
            rejection: None,
            logged_remarks: Vec::new(),
            logged_warnings: Arc::default(),
            edit_windows: Arc::default(),
            suspect_file: None,
            accepted_file: None,
            removal_guard: RemovalGuard::new(GuardPolicy {
                share: options.guard,
                window: options.guard_window,
                hold: options.guard_hold,
            }),
            lease_lookup: lives,
            health_asked_at: Instant::now(),
            last_acceptance: None,
            startup_error: None,
            position: StoreRevision::default(),
            newest: 0,
            retained_keys: Arc::default(),
            persisted: stored,
            status: ReconcileStatus::default(),
            expiry: Expiry::default(),
            old_process_listens: false,
            paths: options.local_paths(),
            checker: options.build_checker(),
            options,
            state_dir: disk,
        };
        rounds.restore_removal_guard();
        Ok(rounds)
    }

    /// The store as it was known before this process; whoever replicas it takes it.
    pub fn take_persisted(&mut self) -> PersistedStore {
        std::mem::take(&mut self.persisted)
    }

    /// A replica of a store that is listed once. It retains keys that the persisted store has, if the store was reset since.
    pub fn replica_of(&mut self, snapshot: &Snapshot) -> StoreReplica {
        let mut replica = StoreReplica::from_persisted(self.take_persisted());
        replica.set_listing_time(SystemTime::now());
        replica.apply_listing(snapshot);
        replica.take_reset_events().iter().for_each(|told| tracing::warn!("{told}"));
        replica
    }
}

/// Whether the error is about a disk that takes nothing more.
fn is_disk_full(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let of = |cause: &(dyn std::error::Error + 'static)| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| matches!(io.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem))
    };
    error.chain().any(of)
}
