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
use crate::store::{PersistedStore, StoreReplica, StoreRevision, StoreUpdate};

impl Reconciler {
    /// Opens the state directory and reads the local files.
    pub fn open(options: Options, lives: LeaseLookup) -> anyhow::Result<Self> {
        release::vet(&options.checker())?;
        let disk = StateDir::open(&options.haproxy_cfg, &options.state_dir)?;
        match Self::take_over(&options) {
            Ok((hash, outside)) => {
                let remembered = (disk.memory()?, disk.stored()?);
                let mut rounds = Self::of(options, lives, disk, hash, outside, remembered)?;
                match rounds.recall_operators() {
                    Err(error) if is_full(&error) => rounds.unopened = Some(format!("{error:#}")),
                    recalled => recalled?,
                }
                Ok(rounds)
            }
            Err(error) if is_full(&error) => Self::open_without_room(options, lives, disk, &error),
            Err(error) => Err(error),
        }
    }

    /// Makes what HAProxy and confgen need besides the store, and takes over certificates, authorities and error pages.
    fn take_over(options: &Options) -> anyhow::Result<(crate::render::stats_hash::Hash, LocalFiles)> {
        let places = options.places();
        places.prepare()?;
        places.vet_fill()?;
        state_dir::make_state_file(&options.server_state_file);
        let hash = stats_password::password_hash(options.stats_password_file.as_deref(), &options.state_dir)?;
        let outside = LocalFiles { allowed: places.allowed()?, ..places.take_over(&options.checker())? };
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
        let places = options.places();
        let outside = LocalFiles { allowed: places.allowed()?, ..places.glimpse() };
        let (hash, remembered) = (stats_password::last_hash(&options.state_dir), disk.glimpse());
        let mut rounds = Self::of(options, lives, disk, hash, outside, remembered)?;
        rounds.unopened = Some(words);
        if let Ok(Some(sources)) = rounds.disk.operators() {
            let include = rounds.places.include_of(sources, &FilledFiles::default());
            Arc::make_mut(&mut rounds.outside).include = include;
        }
        Ok(rounds)
    }

    /// Whether the start could not write all that it has to.
    pub fn is_unopened(&self) -> bool {
        self.unopened.is_some()
    }

    /// Makes up for what the start could not write. An error if there is still no room.
    pub(super) fn finish_opening(&mut self) -> anyhow::Result<()> {
        if self.unopened.is_none() {
            return Ok(());
        }
        let (hash, outside) = Self::take_over(&self.options)?;
        self.site.stats_hash = hash;
        let include = self.outside.include.clone();
        self.outside = Arc::new(LocalFiles { include, ..outside });
        self.recall_operators()?;
        self.unopened = None;
        tracing::info!("{} has room again", self.options.state_dir.display());
        Ok(())
    }

    /// Looks at the same, and touches nothing: enough to tell what the file would be.
    pub fn glimpse(options: Options) -> anyhow::Result<Self> {
        let disk = StateDir::at(&options.haproxy_cfg, &options.state_dir);
        let (hash, places) = (stats_password::last_hash(&options.state_dir), options.places());
        let outside = LocalFiles { allowed: places.allowed()?, ..places.glimpse() };
        let remembered = disk.glimpse();
        Self::of(options, Box::new(|_| BTreeSet::new()), disk, hash, outside, remembered)
    }

    fn of(
        options: Options,
        lives: LeaseLookup,
        disk: StateDir,
        stats_hash: crate::render::stats_hash::Hash,
        outside: LocalFiles,
        (memory, stored): (LastKnownGood, PersistedStore),
    ) -> anyhow::Result<Self> {
        let marker = options.state_dir.join("restarting");
        let mut proxy = HaproxyControl::new(Socket::new(options.runtime_socket.clone()), options.control()?, marker);
        proxy.set_certificates(&outside.certificates);
        outside.certificates.tell(&Certificates::default());
        outside.pages.tell(&ErrorPages::default());
        let mut rounds = Self {
            site: Site { pages: Arc::clone(&outside.pages), ..options.site(stats_hash) },
            proxy,
            settled: DesiredState::remembering(memory),
            outside: Arc::new(outside),
            structure: ConfigFingerprint::default(),
            quarantined: BTreeMap::new(),
            refused: None,
            remarks: Vec::new(),
            told: Arc::default(),
            stood: Arc::default(),
            suspect: None,
            committed: None,
            guard: RemovalGuard::new(GuardPolicy {
                share: options.guard,
                window: options.guard_window,
                hold: options.guard_hold,
            }),
            lives,
            guarded_at: Instant::now(),
            accepted: None,
            unopened: None,
            position: StoreRevision::default(),
            newest: 0,
            held: Arc::default(),
            stored,
            standing: ReconcileStatus::default(),
            expiry: Expiry::default(),
            shared: false,
            places: options.places(),
            checker: options.checker(),
            options,
            disk,
        };
        rounds.restore_guard();
        Ok(rounds)
    }

    /// The store as it was known before this process; whoever mirrors it takes it.
    pub fn take_stored(&mut self) -> PersistedStore {
        std::mem::take(&mut self.stored)
    }

    /// What the store says, to one who sees it for the first time: what was known before is compared with it.
    pub fn first(&mut self, snapshot: &Snapshot) -> StoreUpdate {
        let mut mirror = StoreReplica::remembering(self.take_stored());
        mirror.stamp(SystemTime::now());
        mirror.list(snapshot);
        mirror.told().iter().for_each(|told| tracing::warn!("{told}"));
        mirror.news().unwrap_or_else(|| StoreUpdate::first(snapshot))
    }
}

/// Whether the error is about a disk that takes nothing more.
fn is_full(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let of = |cause: &(dyn std::error::Error + 'static)| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| matches!(io.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem))
    };
    error.chain().any(of)
}
