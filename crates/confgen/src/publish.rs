//! The files that follow HAProxy: rendered, checked by HAProxy itself, and put in place by a rename. Blocks.

mod blame;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use discovery::ServiceId;
use haproxy::check::{Checker, Verdict};
use tempfile::NamedTempFile;

use crate::cli::Options;
use crate::desired::DesiredState;
use crate::local_files::LocalFiles;
use crate::operator_files::edit_windows::Stood;
use crate::operator_files::filled::PendingEdit;
use crate::operator_files::validate::Rejection;
use crate::render::restart_needed::ConfigFingerprint;
use crate::render::view::{Site, View};
use crate::render::{Rendered, render};
use crate::state_dir::{StateDir, exchange, staged};
use crate::store::removal_guard::Kept;
use crate::store::{PersistedStore, RetainedKeys, StoreRevision};
use blame::Trial;

/// How writing the file went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishOutcome {
    /// It was what it should be.
    Same,
    /// It was replaced.
    Written,
    /// HAProxy refuses the generated file, in its own words. The old one stays.
    Refused(String),
    /// HAProxy refuses these services, for these reasons; the file would be fine without them.
    Culprits(BTreeMap<ServiceId, String>),
    /// The operator's own files are not taken. Nothing of the store is to blame.
    OperatorRefused(Rejection),
    /// Nothing was written, since HAProxy could not be started with it: the operator's own files are to be mended first.
    Waits,
    /// HAProxy refuses these files of the operator's as they would be filled, in its own words. They stay as they are.
    Unfilled(BTreeMap<PathBuf, String>),
    /// Somebody has edited this file meanwhile: it is read anew.
    Outdated(PathBuf),
}

impl PublishOutcome {
    /// The same, told apart by whether it is as it should be.
    pub fn result(&self) -> Result<String, String> {
        match self {
            Self::Same | Self::Written => Ok(self.to_string()),
            _ => Err(self.to_string()),
        }
    }
}

impl fmt::Display for PublishOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same => f.write_str("haproxy.cfg is as it should be"),
            Self::Written => f.write_str("haproxy.cfg written"),
            Self::Refused(output) => {
                write!(f, "HAProxy refuses the generated file, the old one stays: {}", output.trim())
            }
            Self::Culprits(culprits) => {
                let names: Vec<String> = culprits.keys().map(ToString::to_string).collect();
                write!(f, "HAProxy refuses {}; going on without", names.join(", "))
            }
            Self::OperatorRefused(rejection) => rejection.fmt(f),
            Self::Waits => f.write_str("haproxy.cfg waits for the operator's own files to be mended"),
            Self::Unfilled(refused) => {
                let each: Vec<String> =
                    refused.iter().map(|(path, words)| format!("{}: {words}", path.display())).collect();
                write!(f, "HAProxy refuses what would be filled in, the old lines stay: {}", each.join("; "))
            }
            Self::Outdated(path) => write!(f, "{} was edited meanwhile; starting over", path.display()),
        }
    }
}

/// Nobody who has just saved a file is likely to be done with it: editors write in several steps.
const QUIET: Duration = Duration::from_millis(500);

/// A file to be written, with all that it is written from: later changes don't touch it.
#[derive(Clone)]
pub struct Publication {
    pub(crate) site: Site,
    pub(crate) outside: Arc<LocalFiles>,
    pub(crate) settled: DesiredState,
    pub(crate) structure: ConfigFingerprint,
    /// Whether the HAProxy that runs passes TLS through.
    pub(crate) passed_through: bool,
    pub(crate) position: StoreRevision,
    /// The newest revision that was heard of.
    pub(crate) newest: i64,
    /// What the store lacks, and what the guard keeps.
    pub(crate) held: Arc<RetainedKeys>,
    pub(crate) kept: Vec<Kept>,
    /// What was lost of late, and is not retained.
    pub(crate) lost: Vec<Kept>,
    /// What HAProxy warned of last.
    pub(crate) told: Arc<Mutex<BTreeSet<String>>>,
    /// When lines of somebody else's stood in files that are filled.
    pub(crate) stood: Arc<Mutex<Vec<Stood>>>,
    /// The operator's files aren't taken as they stand: nothing is written.
    pub(crate) is_waiting: bool,
    pub(crate) options: Options,
    pub(crate) disk: StateDir,
    pub(crate) checker: Checker,
}

impl Publication {
    /// The bytes.
    pub fn render(&self) -> anyhow::Result<Rendered> {
        let view = View::of(&self.settled, &self.site, &self.outside.include.operator).after(self.passed_through);
        render(&view, &self.structure, &self.options.state_dir).context("render haproxy.cfg")
    }

    /// haproxy.cfg as it stands.
    pub fn on_disk(&self) -> anyhow::Result<Option<String>> {
        Ok(self.disk.cfg()?)
    }

    /// The files that are to be filled anew.
    pub fn fills(&self) -> Vec<PendingEdit> {
        self.outside.include.fills.due(&self.settled)
    }

    /// What is refused, and why.
    pub fn quarantined(&self) -> BTreeMap<String, String> {
        self.settled.quarantined()
    }

    /// Remembers, has HAProxy check what is staged, and commits it: the files that are filled, then haproxy.cfg. Whoever
    /// starts HAProxy in between starts it with the generation of before, which is then known to lack something.
    pub fn write(&self) -> anyhow::Result<PublishOutcome> {
        let (rendered, fills) = self.remembered()?;
        if fills.is_empty() && self.is_on_disk(&rendered)? {
            return Ok(PublishOutcome::Same);
        }
        self.check_and_commit(&rendered, &fills)
    }

    /// The same before a restart: what lies there already may meet a file that the operator has broken since.
    pub fn write_surely(&self) -> anyhow::Result<PublishOutcome> {
        let (rendered, fills) = self.remembered()?;
        self.check_and_commit(&rendered, &fills)
    }

    /// First, so that no claim in a file is forgotten whenever this is cut short.
    fn remembered(&self) -> anyhow::Result<(Rendered, Vec<PendingEdit>)> {
        let rendered = self.render()?;
        let heard = StoreRevision { revision: self.newest.max(self.position.revision), ..self.position };
        let mut stored = PersistedStore::new(self.settled.entries(), heard).retaining(RetainedKeys::clone(&self.held));
        (stored.kept, stored.lost) = (self.kept.clone(), self.lost.clone());
        self.disk.remember(&self.settled.memory(), &stored)?;
        Ok((rendered, self.fills()))
    }

    fn is_on_disk(&self, rendered: &Rendered) -> anyhow::Result<bool> {
        let same = self.disk.cfg()?.as_deref() == Some(&rendered.cfg);
        if same {
            self.disk.maps(rendered)?;
        }
        Ok(same)
    }

    fn check_and_commit(&self, rendered: &Rendered, fills: &[PendingEdit]) -> anyhow::Result<PublishOutcome> {
        if self.is_waiting {
            return Ok(PublishOutcome::Waits);
        }
        fills.iter().for_each(wait_for_quiet);
        let stage = |due: &PendingEdit| staged(&due.real, &due.will, FILLED_MODE);
        let filled: Vec<NamedTempFile> = fills.iter().map(stage).collect::<Result<_, _>>()?;
        let cfg = self.disk.stage(rendered)?;
        let trial = Trial::new(self, fills.iter().zip(&filled), &cfg);
        match self.checker.check(&trial.files(cfg.path()))? {
            Verdict::Valid { warnings } => trial.tell(&warnings),
            Verdict::Refused { output } => return trial.blame(&trial.named(&output)),
        }
        for (due, filled) in fills.iter().zip(filled) {
            let saved = saved(due);
            if !exchange(filled, &due.real, &due.was)? {
                return Ok(PublishOutcome::Outdated(due.path.clone()));
            }
            tell_filled(due);
            if let Some(from) = saved.filter(|_| !due.is_ours) {
                let stood = Stood { path: due.path.clone(), from, until: SystemTime::now() };
                self.stood.lock().unwrap_or_else(PoisonError::into_inner).push(stood);
            }
        }
        let is_there = self.is_on_disk(rendered)?;
        if !is_there {
            self.disk.commit(cfg)?;
        }
        Ok(if is_there && fills.is_empty() { PublishOutcome::Same } else { PublishOutcome::Written })
    }
}

/// Never used: a file that is filled is there.
const FILLED_MODE: u32 = 0o640;

/// Somebody who has just saved the file is given the time to finish.
fn wait_for_quiet(due: &PendingEdit) {
    let age = saved(due).and_then(|saved| SystemTime::now().duration_since(saved).ok());
    if let Some(age) = age.filter(|age| !due.is_ours && *age < QUIET) {
        std::thread::sleep(QUIET - age);
    }
}

/// When what stands there was saved.
pub fn saved(due: &PendingEdit) -> Option<SystemTime> {
    fs::metadata(&due.real).and_then(|metadata| metadata.modified()).ok()
}

fn tell_filled(due: &PendingEdit) {
    for line in &due.by_hand {
        tracing::warn!(
            "{}:{line}: the lines below are confgen's; what somebody wrote there is overwritten",
            due.path.display()
        );
    }
    tracing::info!("{} is filled anew", due.path.display());
}
