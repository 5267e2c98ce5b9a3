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
use crate::operator_files::edit_windows::Stood;
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
pub use outcome::{Left, Outcome};

/// What rounds are made with, and what they know.
pub struct Reconciler {
    options: Options,
    site: Site,
    places: LocalPaths,
    disk: StateDir,
    checker: Checker,
    proxy: HaproxyControl,
    outside: Arc<LocalFiles>,
    settled: DesiredState,
    /// What the file is to be like, but for what HAProxy takes while it runs.
    structure: ConfigFingerprint,
    quarantined: BTreeMap<String, String>,
    /// Why the operator's files aren't taken as they stand; those that were taken last count.
    refused: Option<Rejection>,
    /// What was said of them.
    remarks: Vec<String>,
    /// What HAProxy warned of in all files, the last time.
    told: Arc<Mutex<BTreeSet<String>>>,
    /// When lines in files that are filled weren't confgen's.
    stood: Arc<Mutex<Vec<Stood>>>,
    /// HAProxy may have been started with them in this file.
    suspect: Option<PathBuf>,
    /// The last file that HAProxy found fine, by its generation, until it runs it.
    committed: Option<(String, DesiredState)>,
    guard: RemovalGuard,
    /// Which leases live; etcd is asked.
    lives: LeaseLookup,
    guarded_at: Instant,
    /// Why the start could not write all that it has to; None once it has.
    unopened: Option<String>,
    /// The cluster and revision of the last acceptance that was taken in.
    accepted: Option<(u64, i64)>,
    /// The store as of the last round, and what of it is held.
    position: StoreRevision,
    newest: i64,
    held: Arc<RetainedKeys>,
    /// The store as it was known before this process.
    stored: PersistedStore,
    standing: ReconcileStatus,
    expiry: Expiry,
    /// An old process still listens, and answers for services as it knows them.
    shared: bool,
}

/// Asks etcd which of these leases live, within a bounded time. What can't be asked doesn't.
pub type LeaseLookup = Box<dyn Fn(BTreeSet<i64>) -> BTreeSet<i64> + Send>;

impl Reconciler {
    /// HAProxy may have been restarted, or changed by somebody's hand.
    pub fn doubt(&mut self) {
        self.proxy.doubt();
    }

    /// Decides what is wanted, and of what structure the file is for that.
    pub fn settle(&mut self, news: &StoreUpdate) -> anyhow::Result<()> {
        let touched = self.decide(news);
        self.update_fingerprints(touched, news.changed == Changed::All).map(drop)
    }

    fn decide(&mut self, news: &StoreUpdate) -> BTreeSet<ServiceId> {
        let most_files = self.proxy.most_files();
        let in_all = most_files.and_then(|most| upstream_bound::in_all(most, self.outside.include.operator.maxconn));
        let counts = news.topology.services().iter().map(|(id, service)| self.settled.server_count(id, service));
        let bound = in_all.and_then(|in_all| UpstreamBound::of(counts, in_all));
        let is_rebound = bound != self.settled.upstream_bound();
        let changed = if is_rebound { &Changed::All } else { &news.changed };
        if *changed == Changed::All {
            self.settled.limit(Policy { upstream_bound: bound, ..self.limits() });
        }
        self.settled.update(&news.topology, changed)
    }

    /// Has the structure follow these services, and those of which nothing is left; says which are concerned.
    fn update_fingerprints(
        &mut self,
        mut touched: BTreeSet<ServiceId>,
        mut whole: bool,
    ) -> anyhow::Result<BTreeSet<ServiceId>> {
        touched.extend(self.settled.drop_removed());
        whole |= self.retry_fills(&touched);
        for id in &touched {
            if whole {
                break;
            }
            let wanted = self.settled.service(id).map(|wanted| &**wanted);
            whole = !self.structure.update(id, wanted, &self.site).context("render haproxy.cfg")?;
        }
        if whole {
            let include = &self.outside.include;
            let view = View::of(&self.settled, &self.site, &include.operator);
            let fills = std::mem::take(&mut self.structure.fills);
            let structure = ConfigFingerprint::of(&view, &include.prints).context("render haproxy.cfg")?;
            self.structure = ConfigFingerprint { fills, ..structure };
        }
        if whole || self.outside.include.fills.concern(touched.iter()) {
            self.structure.fills = self.outside.include.fills.prints(&self.settled);
        }
        Ok(touched)
    }

    /// HAProxy follows what it can without a restart; says what is left, and how many changes were made.
    pub fn apply_runtime(&mut self, news: &StoreUpdate) -> anyhow::Result<Left> {
        self.tell_expiry();
        let mut touched = self.decide(news);
        touched.extend(self.guard_losses(news));
        touched = self.update_fingerprints(touched, news.changed == Changed::All)?;
        let doubted = self.proxy.stamp().is_none();
        if doubted || news.changed == Changed::All {
            self.suspect = self.may_run_edited_file();
        }
        // What is held has to be remembered, also where it makes no difference to HAProxy.
        let held = !Arc::ptr_eq(&std::mem::replace(&mut self.held, Arc::clone(&news.held)), &news.held);
        (self.position, self.newest) = (news.position, news.newest);
        let made = self.proxy.follow(&self.settled, touched.iter(), &self.disk)?;
        if let Some((stamp, file)) = self.committed.take_if(|(stamp, _)| self.proxy.stamp() == Some(stamp)) {
            tracing::trace!("HAProxy runs the file of generation {stamp}");
            self.settled.taken(&file);
        }
        let restart = self.restart_reason();
        if restart.is_none() {
            if doubted {
                touched.extend(self.settled.services().map(|(id, _)| id.clone()));
            }
            self.settled.runs(touched.iter());
        }
        Ok(Left {
            made,
            file: doubted || held || news.changed == Changed::All || !touched.is_empty(),
            // HAProxy would not start: what it runs is the best there is.
            restart: restart.filter(|_| self.refused.is_none()),
            silent: self.proxy.is_silent(),
            sweep: self.proxy.sweep()? || !self.guard.holding().is_empty() || self.shared,
        })
    }

    /// Why a restart is needed, if it is; takes note of what HAProxy has come to.
    fn restart_reason(&mut self) -> Option<String> {
        let suspect = |path: &PathBuf| {
            let reason = format!("{} was edited by hand, and HAProxy may have been started with it", path.display());
            RestartReason { reason, services: self.outside.include.fills.asked(path) }
        };
        let lack = self.proxy.lacks(&self.structure).or_else(|| self.suspect.as_ref().map(suspect));
        if self.proxy.follows() {
            self.standing.applied = Some(self.position);
            let mut restart_reason = lack.as_ref().map(|lack| lack.services.clone()).unwrap_or_default();
            restart_reason.extend(self.settled.frozen().cloned());
            restart_reason.extend(self.outside.include.fills.left_out());
            restart_reason.retain(|id| self.settled.service(id).is_some());
            let mut before = std::mem::replace(&mut self.standing.pending, restart_reason);
            before.retain(|id| self.settled.service(id).is_some());
            // What a restart has brought is there once the process before has let go of the listening sockets.
            self.shared = !before.is_subset(&self.standing.pending) && self.proxy.is_shared();
            if self.shared {
                self.standing.pending.append(&mut before);
            }
            self.standing.unrouted = self.proxy.unrouted(&self.settled, &self.standing.pending);
            self.standing.reached_meanwhile = self.proxy.reached_meanwhile();
        }
        lack.map(|lack| lack.reason)
    }

    /// Removes servers that were waiting for their last connection, and lets go what was kept and is no longer up. Says
    /// what is left, as a quick round does.
    pub fn sweep(&mut self) -> anyhow::Result<Left> {
        let mut left = Left::default();
        if !self.guard.holding().is_empty() && self.is_release_due() {
            let released = self.guard_release(&BTreeSet::new());
            let released = self.update_fingerprints(released, false)?;
            left.made = self.proxy.follow(&self.settled, released.iter(), &self.disk)?;
            left.file = !released.is_empty();
        }
        left.restart = self.restart_reason();
        left.sweep = self.proxy.sweep()? || !self.guard.holding().is_empty() || self.shared;
        Ok(left)
    }

    /// Gives the servers of these sections their turns again. Returns false if HAProxy complained.
    pub fn requeue(&mut self, sections: &BTreeSet<String>) -> anyhow::Result<bool> {
        self.proxy.requeue(sections)
    }

    /// Takes in how writing a file went. What a file would be like follows at once: a restart for what is still wanted would
    /// else run under the name of a generation that was refused, and be taken for it.
    pub fn filed(&mut self, filing: &Publication, filed: &PublishOutcome) -> anyhow::Result<()> {
        let (touched, whole) = match filed {
            // Until HAProxy runs it, the file may still keep it from starting.
            PublishOutcome::Same | PublishOutcome::Written => {
                self.committed = Some((filing.structure.stamp(), filing.settled.clone()));
                self.standing.filed = filing.position.revision;
                Arc::make_mut(&mut self.outside).include.fills.wrote(&filing.fills());
                return Ok(());
            }
            PublishOutcome::Unfilled(refused) => {
                Arc::make_mut(&mut self.outside).include.fills.leave(refused);
                (BTreeSet::new(), true)
            }
            PublishOutcome::Culprits(culprits) => (self.settled.refuse(culprits, &filing.settled), false),
            PublishOutcome::Refused(_)
            | PublishOutcome::OperatorRefused(_)
            | PublishOutcome::Outdated(_)
            | PublishOutcome::Waits => return Ok(()),
        };
        // Which of them are left out is seen by a look at everything.
        self.proxy.doubt();
        self.update_fingerprints(touched, whole).map(drop)
    }

    /// What has to be written, apart from everything that goes on meanwhile.
    pub fn filing(&self) -> Publication {
        Publication {
            site: self.site.clone(),
            outside: Arc::clone(&self.outside),
            settled: self.settled.clone(),
            structure: self.structure.clone(),
            passed_through: self.proxy.passes_through(),
            position: self.position,
            newest: self.newest,
            held: Arc::clone(&self.held),
            kept: self.guard.kept(Instant::now()),
            lost: self.guard.remembered(Instant::now()),
            told: Arc::clone(&self.told),
            stood: Arc::clone(&self.stood),
            is_waiting: self.refused.is_some(),
            options: self.options.clone(),
            disk: self.disk.clone(),
            checker: self.checker.clone(),
        }
    }
}
