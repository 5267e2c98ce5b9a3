//! Rounds: what the store says is settled, HAProxy follows at once as far as it can, the file follows it, and a restart
//! does the rest. Everything here blocks; `event_loop` keeps it off the runtime, one round at a time.

mod log;
mod mass_removal;
mod operator_files;
mod outcome;
mod release;
mod restart;
mod startup;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::Context;
use discovery::ServiceId;
use haproxy::check::Checker;

use crate::cli::Options;
use crate::desired::upstream_bound::{self, UpstreamBound};
use crate::desired::{DesiredState, Policy};
use crate::local_files::expiry::Expiry;
use crate::local_files::{LocalFiles, LocalPaths};
use crate::operator_files::edit_windows::EditWindow;
use crate::operator_files::validate::Rejection;
use crate::publish::{Publication, PublishOutcome};
use crate::render::restart_needed::{ConfigFingerprint, RestartReason};
use crate::render::view::{Site, View};
use crate::runtime::HaproxyControl;
use crate::state_dir::StateDir;
use crate::status::ReconcileStatus;
use crate::store::Changed;
use crate::store::removal_guard::RemovalGuard;
use crate::store::{PersistedStore, RetainedKeys, StoreRevision, StoreUpdate};
pub use outcome::{Pending, RestartOutcome};

/// What rounds are made with, and what they know.
pub struct Reconciler {
    options: Options,
    site: Site,
    paths: LocalPaths,
    state_dir: StateDir,
    checker: Checker,
    haproxy: HaproxyControl,
    files: Arc<LocalFiles>,
    desired: DesiredState,
    /// What the file is to be like, but for what HAProxy takes while it runs.
    fingerprints: ConfigFingerprint,
    quarantined: BTreeMap<String, String>,
    /// Why the operator's files aren't taken as they stand; those that were taken last count.
    rejection: Option<Rejection>,
    /// What was said of them.
    logged_remarks: Vec<String>,
    /// What HAProxy warned of in all files, the last time.
    logged_warnings: Arc<Mutex<BTreeSet<String>>>,
    /// When lines in files that are filled weren't confgen's.
    edit_windows: Arc<Mutex<Vec<EditWindow>>>,
    /// HAProxy may have been started with them in this file.
    suspect_file: Option<PathBuf>,
    /// The last file that HAProxy found fine, by its generation, until it runs it.
    accepted_file: Option<(String, DesiredState)>,
    removal_guard: RemovalGuard,
    /// Which leases live; etcd is asked.
    lease_lookup: LeaseLookup,
    health_asked_at: Instant,
    /// Why the start could not write all that it has to; None once it has.
    startup_error: Option<String>,
    /// The cluster and revision of the last acceptance that was taken in.
    last_acceptance: Option<(u64, i64)>,
    /// The store as of the last round, and what of it is held.
    position: StoreRevision,
    newest: i64,
    retained_keys: Arc<RetainedKeys>,
    /// The store as it was known before this process.
    persisted: PersistedStore,
    status: ReconcileStatus,
    expiry: Expiry,
    /// An old process still listens, and answers for services as it knows them.
    old_process_listens: bool,
}

/// Asks etcd which of these leases live, within a bounded time. What can't be asked doesn't.
pub type LeaseLookup = Box<dyn Fn(BTreeSet<i64>) -> BTreeSet<i64> + Send>;

impl Reconciler {
    /// HAProxy may have been restarted, or changed by somebody's hand.
    pub fn invalidate_observed(&mut self) {
        self.haproxy.invalidate();
    }

    /// Decides what is wanted, and of what structure the file is for that.
    pub fn update_desired(&mut self, news: &StoreUpdate) -> anyhow::Result<()> {
        let touched = self.resolve_desired(news);
        self.update_fingerprints(touched, news.changed == Changed::All).map(drop)
    }

    fn resolve_desired(&mut self, news: &StoreUpdate) -> BTreeSet<ServiceId> {
        let most_files = self.haproxy.max_open_files();
        let in_all =
            most_files.and_then(|most| upstream_bound::max_upstreams(most, self.files.operator_files.config.maxconn));
        let bound = in_all.and_then(|in_all| self.bound_upstreams(news, in_all));
        let is_rebound = bound.as_ref() != self.desired.upstream_bound();
        let changed = if is_rebound { &Changed::All } else { &news.changed };
        if *changed == Changed::All {
            self.desired.set_policy(Policy { upstream_bound: bound, ..self.current_policy() });
        }
        self.desired.update_services(&news.topology, changed)
    }

    /// The bound on upstreams if only so many fit. `None` if all have room.
    fn bound_upstreams(&mut self, news: &StoreUpdate, in_all: usize) -> Option<UpstreamBound> {
        let services = news.topology.services().iter();
        let counts: Vec<(&ServiceId, usize)> =
            services.map(|(id, service)| (id, self.desired.count_servers(id, service))).collect();
        if counts.iter().map(|(_, count)| count).sum::<usize>() <= in_all {
            self.haproxy.forget_served_upstreams();
            return None;
        }
        UpstreamBound::from_counts(counts.into_iter(), in_all, &self.haproxy.served_upstreams())
    }

    /// Has the structure follow these services, and those of which nothing is left; says which are concerned.
    fn update_fingerprints(
        &mut self,
        mut touched: BTreeSet<ServiceId>,
        mut whole: bool,
    ) -> anyhow::Result<BTreeSet<ServiceId>> {
        touched.extend(self.desired.drop_removed());
        whole |= self.retry_filled_files(&touched);
        for id in &touched {
            if whole {
                break;
            }
            let wanted = self.desired.service(id).map(|wanted| &**wanted);
            whole = !self.fingerprints.update_service(id, wanted, &self.site).context("render haproxy.cfg")?;
        }
        if whole {
            let include = &self.files.operator_files;
            let view = View::new(&self.desired, &self.site, &include.config);
            let fills = std::mem::take(&mut self.fingerprints.fills);
            let structure = ConfigFingerprint::from_view(&view, &include.fingerprints).context("render haproxy.cfg")?;
            self.fingerprints = ConfigFingerprint { fills, ..structure };
        }
        if whole || self.files.operator_files.filled.mentions_any(touched.iter()) {
            self.fingerprints.fills = self.files.operator_files.filled.fingerprint_blocks(&self.desired);
        }
        Ok(touched)
    }

    /// HAProxy follows what it can without a restart; says what is left, and how many changes were made.
    pub fn apply_runtime(&mut self, news: &StoreUpdate) -> anyhow::Result<Pending> {
        self.log_expiring_certificates();
        let mut touched = self.resolve_desired(news);
        touched.extend(self.retain_removed(news));
        touched = self.update_fingerprints(touched, news.changed == Changed::All)?;
        let doubted = self.haproxy.generation_id().is_none();
        if doubted || news.changed == Changed::All {
            self.suspect_file = self.may_run_edited_file();
        }
        // What is held has to be remembered, also where it makes no difference to HAProxy.
        let held =
            !Arc::ptr_eq(&std::mem::replace(&mut self.retained_keys, Arc::clone(&news.retained)), &news.retained);
        (self.position, self.newest) = (news.store_revision, news.newest_revision);
        let made = self.haproxy.apply_desired(&self.desired, touched.iter(), &self.state_dir)?;
        if let Some((stamp, file)) =
            self.accepted_file.take_if(|(stamp, _)| self.haproxy.generation_id() == Some(stamp))
        {
            tracing::trace!("HAProxy runs the file of generation {stamp}");
            self.desired.mark_accepted(&file);
        }
        let restart = self.restart_reason();
        if restart.is_none() {
            if doubted {
                touched.extend(self.desired.services().map(|(id, _)| id.clone()));
            }
            self.desired.mark_running(touched.iter());
        }
        Ok(Pending {
            changes: made,
            file: doubted || held || news.changed == Changed::All || !touched.is_empty(),
            // HAProxy would not start: what it runs is the best there is.
            restart: restart.filter(|_| self.rejection.is_none()),
            unreachable: self.haproxy.is_unreachable(),
            removals: self.haproxy.remove_leaving()?
                || !self.removal_guard.services_with_retained().is_empty()
                || self.old_process_listens,
        })
    }

    /// Why a restart is needed, if it is; takes note of what HAProxy has come to.
    fn restart_reason(&mut self) -> Option<String> {
        let suspect = |path: &PathBuf| {
            let reason = format!("{} was edited by hand, and HAProxy may have been started with it", path.display());
            RestartReason { reason, services: self.files.operator_files.filled.services_in(path) }
        };
        let lack = self.haproxy.restart_reason(&self.fingerprints).or_else(|| self.suspect_file.as_ref().map(suspect));
        if self.haproxy.is_synced() {
            self.status.applied = Some(self.position);
            let mut restart_reason = lack.as_ref().map(|lack| lack.services.clone()).unwrap_or_default();
            restart_reason.extend(self.desired.services_with_rejected_servers().cloned());
            restart_reason.extend(self.files.operator_files.filled.rejected_services());
            restart_reason.retain(|id| self.desired.service(id).is_some());
            let mut before = std::mem::replace(&mut self.status.pending, restart_reason);
            before.retain(|id| self.desired.service(id).is_some());
            // What a restart has brought is there once the process before has let go of the listening sockets.
            self.old_process_listens = !before.is_subset(&self.status.pending) && self.haproxy.is_another_listening();
            if self.old_process_listens {
                self.status.pending.append(&mut before);
            }
            self.status.unrouted = self.haproxy.find_unrouted(&self.desired, &self.status.pending);
            self.status.reached_until_restart = self.haproxy.services_reached_until_restart();
        }
        lack.map(|lack| lack.reason)
    }

    /// Removes servers that were waiting for their last connection, and lets go what was kept and is no longer up. Says
    /// what is left, as a quick round does.
    pub fn remove_servers(&mut self) -> anyhow::Result<Pending> {
        let mut left = Pending::default();
        if !self.removal_guard.services_with_retained().is_empty() && self.is_release_due() {
            let released = self.release_retained(&BTreeSet::new());
            let released = self.update_fingerprints(released, false)?;
            left.changes = self.haproxy.apply_desired(&self.desired, released.iter(), &self.state_dir)?;
            left.file = !released.is_empty();
        }
        left.restart = self.restart_reason();
        left.removals = self.haproxy.remove_leaving()?
            || !self.removal_guard.services_with_retained().is_empty()
            || self.old_process_listens;
        Ok(left)
    }

    /// Gives the servers of these sections their turns again. Returns false if HAProxy complained.
    pub fn requeue_servers(&mut self, sections: &BTreeSet<String>) -> anyhow::Result<bool> {
        self.haproxy.requeue_sections(sections)
    }

    /// Takes in how writing a file went. What a file would be like follows at once: a restart for what is still wanted would
    /// else run under the name of a generation that was refused, and be taken for it.
    pub fn on_published(&mut self, filing: &Publication, filed: &PublishOutcome) -> anyhow::Result<()> {
        let (touched, whole) = match filed {
            // Until HAProxy runs it, the file may still keep it from starting.
            PublishOutcome::Unchanged | PublishOutcome::Written => {
                self.accepted_file = Some((filing.fingerprint.generation_id(), filing.desired.clone()));
                self.status.published = filing.store_revision.revision;
                Arc::make_mut(&mut self.files).operator_files.filled.mark_written(&filing.pending_edits());
                return Ok(());
            }
            PublishOutcome::FilledFilesRejected(refused) => {
                Arc::make_mut(&mut self.files).operator_files.filled.mark_rejected(refused);
                (BTreeSet::new(), true)
            }
            PublishOutcome::ServicesRejected(culprits) => {
                (self.desired.reject_services(culprits, &filing.desired), false)
            }
            PublishOutcome::Rejected(_)
            | PublishOutcome::OperatorFilesRejected(_)
            | PublishOutcome::EditedMeanwhile(_)
            | PublishOutcome::Blocked => return Ok(()),
        };
        // Which of them are left out is seen by a look at everything.
        self.haproxy.invalidate();
        self.update_fingerprints(touched, whole).map(drop)
    }

    /// What has to be written, apart from everything that goes on meanwhile.
    pub fn publication(&self) -> Publication {
        Publication {
            site: self.site.clone(),
            local_files: Arc::clone(&self.files),
            desired: self.desired.clone(),
            fingerprint: self.fingerprints.clone(),
            passed_through: self.haproxy.passes_through(),
            store_revision: self.position,
            newest_revision: self.newest,
            retained_keys: Arc::clone(&self.retained_keys),
            retained_upstreams: self.removal_guard.persist_retained(Instant::now()),
            removed_upstreams: self.removal_guard.persist_losses(Instant::now()),
            logged_warnings: Arc::clone(&self.logged_warnings),
            edit_windows: Arc::clone(&self.edit_windows),
            is_blocked: self.rejection.is_some(),
            options: self.options.clone(),
            state_dir: self.state_dir.clone(),
            checker: self.checker.clone(),
        }
    }
}
