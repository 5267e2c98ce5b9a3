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
use haproxy::check::{CheckResult, Checker};

use crate::cli::Options;
use crate::desired::DesiredState;
use crate::local_files::LocalFiles;
use crate::operator_files::edit_windows::EditWindow;
use crate::operator_files::filled::PendingEdit;
use crate::operator_files::validate::Rejection;
use crate::render::restart_needed::ConfigFingerprint;
use crate::render::view::{Site, View};
use crate::render::{Rendered, render_config};
use crate::state_dir::{StagedFile, StateDir, exchange_file, stage_file};
use crate::store::removal_guard::PersistedUpstream;
use crate::store::{PersistedStore, RetainedKeys, StoreRevision};
use blame::StagedTrial;

/// How writing the file went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishOutcome {
    /// It was what it should be.
    Unchanged,
    /// It was replaced.
    Written,
    /// HAProxy refuses the generated file, in its own words. The old one stays.
    Rejected(String),
    /// HAProxy refuses these services, for these reasons; the file would be fine without them.
    ServicesRejected(BTreeMap<ServiceId, String>),
    /// The operator's own files are not taken. Nothing of the store is to blame.
    OperatorFilesRejected(Rejection),
    /// Nothing was written, since HAProxy could not be started with it: the operator's own files are to be mended first.
    Blocked,
    /// HAProxy refuses these files of the operator's as they would be filled, in its own words. They stay as they are.
    FilledFilesRejected(BTreeMap<PathBuf, String>),
    /// Somebody has edited this file meanwhile: it is read anew.
    EditedMeanwhile(PathBuf),
}

impl PublishOutcome {
    /// The same, told apart by whether it is as it should be.
    pub fn to_result(&self) -> Result<String, String> {
        match self {
            Self::Unchanged | Self::Written => Ok(self.to_string()),
            _ => Err(self.to_string()),
        }
    }
}

impl fmt::Display for PublishOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unchanged => f.write_str("haproxy.cfg is as it should be"),
            Self::Written => f.write_str("haproxy.cfg written"),
            Self::Rejected(output) => {
                write!(f, "HAProxy refuses the generated file, the old one stays: {}", output.trim())
            }
            Self::ServicesRejected(culprits) => {
                let names: Vec<String> = culprits.keys().map(ToString::to_string).collect();
                write!(f, "HAProxy refuses {}; going on without", names.join(", "))
            }
            Self::OperatorFilesRejected(rejection) => rejection.fmt(f),
            Self::Blocked => f.write_str("haproxy.cfg waits for the operator's own files to be mended"),
            Self::FilledFilesRejected(refused) => {
                let each: Vec<String> =
                    refused.iter().map(|(path, words)| format!("{}: {words}", path.display())).collect();
                write!(f, "HAProxy refuses what would be filled in, the old lines stay: {}", each.join("; "))
            }
            Self::EditedMeanwhile(path) => write!(f, "{} was edited meanwhile; starting over", path.display()),
        }
    }
}

/// Nobody who has just saved a file is likely to be done with it: editors write in several steps.
const QUIET: Duration = Duration::from_millis(500);

/// A file to be written, with all that it is written from: later changes don't touch it.
#[derive(Clone)]
pub struct Publication {
    pub(crate) site: Site,
    pub(crate) local_files: Arc<LocalFiles>,
    pub(crate) desired: DesiredState,
    pub(crate) fingerprint: ConfigFingerprint,
    /// Whether the HAProxy that runs passes TLS through.
    pub(crate) passed_through: bool,
    pub(crate) store_revision: StoreRevision,
    /// The newest revision that was heard of.
    pub(crate) newest_revision: i64,
    /// What the store lacks, and what the guard keeps.
    pub(crate) retained_keys: Arc<RetainedKeys>,
    pub(crate) retained_upstreams: Vec<PersistedUpstream>,
    /// What was lost of late, and is not retained.
    pub(crate) removed_upstreams: Vec<PersistedUpstream>,
    /// What HAProxy warned of last.
    pub(crate) logged_warnings: Arc<Mutex<BTreeSet<String>>>,
    /// When lines of somebody else's stood in files that are filled.
    pub(crate) edit_windows: Arc<Mutex<Vec<EditWindow>>>,
    /// The operator's files aren't taken as they stand: nothing is written.
    pub(crate) is_blocked: bool,
    pub(crate) options: Options,
    pub(crate) state_dir: StateDir,
    pub(crate) checker: Checker,
}

impl Publication {
    /// The bytes.
    pub fn render_config(&self) -> anyhow::Result<Rendered> {
        let view = View::new(&self.desired, &self.site, &self.local_files.operator_files.config)
            .with_previous_passthrough(self.passed_through);
        render_config(&view, &self.fingerprint, &self.options.state_dir).context("render haproxy.cfg")
    }

    /// haproxy.cfg as it stands.
    pub fn read_current(&self) -> anyhow::Result<Option<String>> {
        Ok(self.state_dir.read_cfg()?)
    }

    /// The files that are to be filled anew.
    pub fn pending_edits(&self) -> Vec<PendingEdit> {
        self.local_files.operator_files.filled.pending_edits(&self.desired)
    }

    /// What is refused, and why.
    pub fn quarantined(&self) -> BTreeMap<String, String> {
        self.desired.quarantined_keys()
    }

    /// Remembers, has HAProxy check what is staged, and commits it: the files that are filled, then haproxy.cfg. Whoever
    /// starts HAProxy in between starts it with the generation of before, which is then known to lack something.
    pub fn write_if_changed(&self) -> anyhow::Result<PublishOutcome> {
        let (rendered, fills) = self.save_and_render()?;
        if fills.is_empty() && self.is_on_disk(&rendered)? {
            return Ok(PublishOutcome::Unchanged);
        }
        self.check_and_commit(&rendered, &fills)
    }

    /// The same before a restart: what lies there already may meet a file that the operator has broken since.
    pub fn check_and_write(&self) -> anyhow::Result<PublishOutcome> {
        let (rendered, fills) = self.save_and_render()?;
        self.check_and_commit(&rendered, &fills)
    }

    /// First, so that no claim in a file is forgotten whenever this is cut short.
    fn save_and_render(&self) -> anyhow::Result<(Rendered, Vec<PendingEdit>)> {
        let rendered = self.render_config()?;
        let heard =
            StoreRevision { revision: self.newest_revision.max(self.store_revision.revision), ..self.store_revision };
        let mut stored = PersistedStore::from_entries(self.desired.entries(), heard)
            .with_retained_keys(RetainedKeys::clone(&self.retained_keys));
        (stored.kept, stored.lost) = (self.retained_upstreams.clone(), self.removed_upstreams.clone());
        self.state_dir.save_state(&self.desired.to_last_known_good(), &stored)?;
        Ok((rendered, self.pending_edits()))
    }

    fn is_on_disk(&self, rendered: &Rendered) -> anyhow::Result<bool> {
        let same = self.state_dir.read_cfg()?.as_deref() == Some(&rendered.cfg);
        if same {
            self.state_dir.write_maps(rendered)?;
        }
        Ok(same)
    }

    fn check_and_commit(&self, rendered: &Rendered, fills: &[PendingEdit]) -> anyhow::Result<PublishOutcome> {
        if self.is_blocked {
            return Ok(PublishOutcome::Blocked);
        }
        fills.iter().for_each(wait_for_quiet);
        let stage = |due: &PendingEdit| stage_file(&due.real, &due.after, FILLED_MODE);
        let filled: Vec<StagedFile> = fills.iter().map(stage).collect::<Result<_, _>>()?;
        let cfg = self.state_dir.stage_config(rendered)?;
        let trial = StagedTrial::new(self, fills.iter().zip(&filled), &cfg);
        match self.checker.check_files(&trial.files_with(cfg.path()))? {
            CheckResult::Valid { warnings } => trial.log_warnings(&warnings),
            CheckResult::Rejected { output } => return trial.find_fault(&trial.rename_staged(&output)),
        }
        for (due, filled) in fills.iter().zip(filled) {
            let saved = modified_at(due);
            if !exchange_file(filled, &due.real, &due.before)? {
                return Ok(PublishOutcome::EditedMeanwhile(due.path.clone()));
            }
            log_filled(due);
            if let Some(from) = saved.filter(|_| !due.is_ours) {
                let stood = EditWindow { path: due.path.clone(), from, until: SystemTime::now() };
                self.edit_windows.lock().unwrap_or_else(PoisonError::into_inner).push(stood);
            }
        }
        let is_there = self.is_on_disk(rendered)?;
        if !is_there {
            self.state_dir.commit(cfg)?;
        }
        Ok(if is_there && fills.is_empty() { PublishOutcome::Unchanged } else { PublishOutcome::Written })
    }
}

/// Never used: a file that is filled is there.
const FILLED_MODE: u32 = 0o640;

/// Somebody who has just saved the file is given the time to finish.
fn wait_for_quiet(due: &PendingEdit) {
    let age = modified_at(due).and_then(|saved| SystemTime::now().duration_since(saved).ok());
    if let Some(age) = age.filter(|age| !due.is_ours && *age < QUIET) {
        std::thread::sleep(QUIET - age);
    }
}

/// When what stands there was saved.
pub fn modified_at(due: &PendingEdit) -> Option<SystemTime> {
    fs::metadata(&due.real).and_then(|metadata| metadata.modified()).ok()
}

fn log_filled(due: &PendingEdit) {
    for line in &due.edited_lines {
        tracing::warn!(
            "{}:{line}: the lines below are confgen's; what somebody wrote there is overwritten",
            due.path.display()
        );
    }
    tracing::info!("{} is filled anew", due.path.display());
}
