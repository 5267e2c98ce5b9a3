//! Rounds: what the store says is settled, HAProxy follows at once as far as it can, the file follows it, and a restart
//! does the rest. Everything here blocks; `run` keeps it off the runtime, one round at a time.

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
use crate::desired::Settled;
use crate::local_files::expiry::Expiry;
use crate::local_files::{Outside, Places};
use crate::operator_files::edit_windows::Stood;
use crate::operator_files::validate::Rejection;
use crate::publish::{Filed, Filing};
use crate::render::restart_needed::{Lack, Structure};
use crate::render::view::{Site, View};
use crate::runtime::Proxy;
use crate::state_dir::Disk;
use crate::status::Standing;
use crate::store::Changed;
use crate::store::removal_guard::Guard;
use crate::store::{Held, News, Position, Stored};
pub use outcome::{Left, Outcome};

/// What rounds are made with, and what they know.
pub struct Rounds {
    options: Options,
    site: Site,
    places: Places,
    disk: Disk,
    checker: Checker,
    proxy: Proxy,
    outside: Arc<Outside>,
    settled: Settled,
    /// What the file is to be like, but for what HAProxy takes while it runs.
    structure: Structure,
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
    committed: Option<(String, Settled)>,
    guard: Guard,
    /// Which leases live; etcd is asked.
    lives: Lives,
    guarded_at: Instant,
    /// Why the start could not write all that it has to; None once it has.
    unopened: Option<String>,
    /// The cluster and revision of the last acceptance that was taken in.
    accepted: Option<(u64, i64)>,
    /// The store as of the last round, and what of it is held.
    position: Position,
    newest: i64,
    held: Arc<Held>,
    /// The store as it was known before this process.
    stored: Stored,
    standing: Standing,
    expiry: Expiry,
    /// An old process still listens, and answers for services as it knows them.
    shared: bool,
}

/// Asks etcd which of these leases live, within a bounded time. What can't be asked doesn't.
pub type Lives = Box<dyn Fn(BTreeSet<i64>) -> BTreeSet<i64> + Send>;

impl Rounds {
    /// HAProxy may have been restarted, or changed by somebody's hand.
    pub fn doubt(&mut self) {
        self.proxy.doubt();
    }

    /// Decides what is wanted, and of what structure the file is for that.
    pub fn settle(&mut self, news: &News) -> anyhow::Result<()> {
        let touched = self.decide(news);
        self.shape(touched, news.changed == Changed::All).map(drop)
    }

    fn decide(&mut self, news: &News) -> BTreeSet<ServiceId> {
        if news.changed == Changed::All {
            self.settled.limit(self.limits());
        }
        self.settled.update(&news.topology, &news.changed)
    }

    /// Has the structure follow these services, and those of which nothing is left; says which are concerned.
    fn shape(&mut self, mut touched: BTreeSet<ServiceId>, mut whole: bool) -> anyhow::Result<BTreeSet<ServiceId>> {
        touched.extend(self.settled.bury());
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
            let structure = Structure::of(&view, &include.prints).context("render haproxy.cfg")?;
            self.structure = Structure { fills, ..structure };
        }
        if whole || self.outside.include.fills.concern(touched.iter()) {
            self.structure.fills = self.outside.include.fills.prints(&self.settled);
        }
        Ok(touched)
    }

    /// HAProxy follows what it can without a restart; says what is left, and how many changes were made.
    pub fn quick(&mut self, news: &News) -> anyhow::Result<Left> {
        self.tell_expiry();
        let mut touched = self.decide(news);
        touched.extend(self.guard_losses(news));
        touched = self.shape(touched, news.changed == Changed::All)?;
        let doubted = self.proxy.stamp().is_none();
        if doubted || news.changed == Changed::All {
            self.suspect = self.suspected();
        }
        // What is held has to be remembered, also where it makes no difference to HAProxy.
        let held = !Arc::ptr_eq(&std::mem::replace(&mut self.held, Arc::clone(&news.held)), &news.held);
        (self.position, self.newest) = (news.position, news.newest);
        let made = self.proxy.follow(&self.settled, touched.iter(), &self.disk)?;
        if let Some((stamp, file)) = self.committed.take_if(|(stamp, _)| self.proxy.stamp() == Some(stamp)) {
            tracing::trace!("HAProxy runs the file of generation {stamp}");
            self.settled.taken(&file);
        }
        let restart = self.lacking();
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
    fn lacking(&mut self) -> Option<String> {
        let suspect = |path: &PathBuf| {
            let reason = format!("{} was edited by hand, and HAProxy may have been started with it", path.display());
            Lack { reason, services: self.outside.include.fills.asked(path) }
        };
        let lack = self.proxy.lacks(&self.structure).or_else(|| self.suspect.as_ref().map(suspect));
        if self.proxy.follows() {
            self.standing.applied = Some(self.position);
            let mut lacking = lack.as_ref().map(|lack| lack.services.clone()).unwrap_or_default();
            lacking.extend(self.settled.frozen().cloned());
            lacking.extend(self.outside.include.fills.left_out());
            lacking.retain(|id| self.settled.service(id).is_some());
            let mut before = std::mem::replace(&mut self.standing.pending, lacking);
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
            let released = self.shape(released, false)?;
            left.made = self.proxy.follow(&self.settled, released.iter(), &self.disk)?;
            left.file = !released.is_empty();
        }
        left.restart = self.lacking();
        left.sweep = self.proxy.sweep()? || !self.guard.holding().is_empty() || self.shared;
        Ok(left)
    }

    /// Gives the servers of these sections their turns again. Returns false if HAProxy complained.
    pub fn requeue(&mut self, sections: &BTreeSet<String>) -> anyhow::Result<bool> {
        self.proxy.requeue(sections)
    }

    /// Takes in how writing a file went. What a file would be like follows at once: a restart for what is still wanted would
    /// else run under the name of a generation that was refused, and be taken for it.
    pub fn filed(&mut self, filing: &Filing, filed: &Filed) -> anyhow::Result<()> {
        let (touched, whole) = match filed {
            // Until HAProxy runs it, the file may still keep it from starting.
            Filed::Same | Filed::Written => {
                self.committed = Some((filing.structure.stamp(), filing.settled.clone()));
                self.standing.filed = filing.position.revision;
                Arc::make_mut(&mut self.outside).include.fills.wrote(&filing.fills());
                return Ok(());
            }
            Filed::Unfilled(refused) => {
                Arc::make_mut(&mut self.outside).include.fills.leave(refused);
                (BTreeSet::new(), true)
            }
            Filed::Culprits(culprits) => (self.settled.refuse(culprits, &filing.settled), false),
            Filed::Refused(_) | Filed::OperatorRefused(_) | Filed::Outdated(_) | Filed::Waits => return Ok(()),
        };
        // Which of them are left out is seen by a look at everything.
        self.proxy.doubt();
        self.shape(touched, whole).map(drop)
    }

    /// What has to be written, apart from everything that goes on meanwhile.
    pub fn filing(&self) -> Filing {
        Filing {
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
