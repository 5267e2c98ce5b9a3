//! Publishes a generation: renders it, has HAProxy check it, and puts its files in place. Blocks, and never restarts HAProxy.

mod blame;
mod difference;

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
use crate::render::restart_needed::Generation;
use crate::render::service_texts::ServiceTexts;
use crate::render::view::{Site, View};
use crate::render::{ConfigText, Rendered, render_config};
use crate::state_dir::{SavedState, StagedFile, StateDir, exchange_file, stage_file};
use crate::store::removal_guard::PersistedUpstream;
use crate::store::{RetainedKeys, StoreRevision};
use blame::StagedTrial;

/// The outcome of one publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishOutcome {
    /// All files had the wanted content.
    Unchanged,
    /// At least one file was replaced.
    Written,
    /// HAProxy rejects the generated file even without services. Its output. The old file stays.
    Rejected(String),
    /// HAProxy rejects these services, for these reasons. It accepts the file without them.
    ServicesRejected(BTreeMap<ServiceId, String>),
    /// The operator's own files are rejected. No service is to blame.
    OperatorFilesRejected(Rejection),
    /// Nothing was written, since HAProxy would not start with the operator's own files.
    Blocked,
    /// HAProxy rejects these filled files with their new lines. Its complaints. The files stay as they are.
    FilledFilesRejected(BTreeMap<PathBuf, String>),
    /// An editor saved this filled file during the publication. confgen has to read it again.
    EditedMeanwhile(PathBuf),
}

impl PublishOutcome {
    /// The outcome in words. `Ok` if the files have the wanted content.
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

/// The time after an edit in which confgen doesn't replace a file, since editors write in several steps.
const QUIET: Duration = Duration::from_millis(500);

/// A publication, with a copy of its whole input. It runs beside reconciles, and their changes must not reach it.
#[derive(Clone)]
pub struct Publication {
    pub(crate) site: Site,
    pub(crate) local_files: Arc<LocalFiles>,
    pub(crate) desired: DesiredState,
    /// Of `desired` and the local files.
    pub(crate) generation: Arc<Generation>,
    /// The services' texts as they were rendered last.
    pub(crate) texts: Arc<Mutex<ServiceTexts>>,
    /// The file as this process wrote it last. `None` before the first time.
    pub(crate) written: Arc<Mutex<Option<ConfigText>>>,
    /// The running HAProxy passes TLS through.
    pub(crate) passed_through: bool,
    /// The shapes that stay in the file although no backend has them, by name.
    pub(crate) kept_shapes: BTreeMap<String, String>,
    pub(crate) store_revision: StoreRevision,
    /// The newest revision that any answer of etcd had.
    pub(crate) newest_revision: i64,
    /// The keys that are retained after a store reset.
    pub(crate) retained_keys: Arc<RetainedKeys>,
    pub(crate) retained_upstreams: Vec<PersistedUpstream>,
    /// The unexpected removals of the last hour that are not retained. The removal guard counts them.
    pub(crate) removed_upstreams: Vec<PersistedUpstream>,
    /// HAProxy's warnings at the last check.
    pub(crate) logged_warnings: Arc<Mutex<BTreeSet<String>>>,
    /// The times in which filled files had an editor's lines.
    pub(crate) edit_windows: Arc<Mutex<Vec<EditWindow>>>,
    /// The lines that the publication changed in haproxy.cfg, for the history. Clones share them.
    pub(crate) difference: Arc<Mutex<Option<Arc<str>>>>,
    /// The operator's files are rejected as they are, so nothing is written.
    pub(crate) is_blocked: bool,
    pub(crate) options: Options,
    pub(crate) state_dir: StateDir,
    pub(crate) checker: Checker,
}

impl Publication {
    pub fn render_config(&self) -> anyhow::Result<Rendered> {
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        texts.update(&self.desired, &self.site).context("render haproxy.cfg")?;
        let operator_files = &self.local_files.operator_files.config;
        let view = View::with_maps(&self.desired, &self.site, operator_files, Arc::clone(texts.maps()))
            .with_previous_passthrough(self.passed_through);
        render_config(&view, &texts, &self.generation, &self.kept_shapes, &self.options.state_dir)
            .context("render haproxy.cfg")
    }

    /// The content of haproxy.cfg. `None` without a file.
    pub fn read_current(&self) -> anyhow::Result<Option<String>> {
        Ok(self.state_dir.read_cfg()?)
    }

    /// The filled files with other lines than the desired ones.
    pub fn pending_edits(&self) -> Vec<PendingEdit> {
        self.local_files.operator_files.filled.pending_edits(&self.desired)
    }

    pub fn quarantined(&self) -> BTreeMap<String, String> {
        self.desired.quarantined_keys()
    }

    /// Saves the state, and replaces the files that have changed, if HAProxy accepts them.
    pub fn write_if_changed(&self) -> anyhow::Result<PublishOutcome> {
        let (rendered, fills) = self.save_and_render()?;
        if fills.is_empty() && self.is_on_disk(&rendered)? {
            return Ok(PublishOutcome::Unchanged);
        }
        self.check_and_commit(&rendered, &fills)
    }

    /// The same, but HAProxy checks unchanged files too. Before a restart that is needed: an operator may have broken another file.
    pub fn check_and_write(&self) -> anyhow::Result<PublishOutcome> {
        let (rendered, fills) = self.save_and_render()?;
        self.check_and_commit(&rendered, &fills)
    }

    fn save_and_render(&self) -> anyhow::Result<(Rendered, Vec<PendingEdit>)> {
        let rendered = self.render_config()?;
        // The state comes before haproxy.cfg. So no claim in a file is forgotten if confgen ends in between.
        let heard =
            StoreRevision { revision: self.newest_revision.max(self.store_revision.revision), ..self.store_revision };
        self.state_dir.save_state(SavedState {
            desired: self.desired.clone(),
            position: heard,
            held: Arc::clone(&self.retained_keys),
            kept: self.retained_upstreams.clone(),
            lost: self.removed_upstreams.clone(),
        })?;
        Ok((rendered, self.pending_edits()))
    }

    /// The lines that the publication changed in haproxy.cfg. `None` if it changed none.
    pub fn take_difference(&self) -> Option<Arc<str>> {
        self.difference.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// True if haproxy.cfg has this content. Then its maps are written again, since an operator may have deleted them.
    fn is_on_disk(&self, rendered: &Rendered) -> anyhow::Result<bool> {
        let same = self.state_dir.is_cfg(&rendered.cfg)?;
        if same {
            self.state_dir.write_maps(rendered)?;
        }
        Ok(same)
    }

    fn check_and_commit(&self, rendered: &Rendered, fills: &[PendingEdit]) -> anyhow::Result<PublishOutcome> {
        // After the state was saved: retained keys and last good values must survive a restart of confgen meanwhile.
        if self.is_blocked {
            return Ok(PublishOutcome::Blocked);
        }
        fills.iter().for_each(wait_for_quiet);
        let filled = fills.iter().map(|due| stage_file(&due.real, [due.after.as_slice()], FILLED_MODE));
        let filled: Vec<StagedFile> = filled.collect::<Result<_, _>>()?;
        let cfg = self.state_dir.stage_config(rendered)?;
        let trial = StagedTrial::new(self, fills.iter().zip(&filled), &cfg);
        match self.checker.check_files(&trial.files_with(cfg.path()))? {
            CheckResult::Valid { warnings } => trial.log_warnings(&warnings),
            CheckResult::Rejected { output } => return trial.find_fault(&trial.rename_staged(&output)),
        }
        // Filled files come just before haproxy.cfg. If HAProxy starts in between, it runs the previous generation and needs a restart.
        for (due, filled) in fills.iter().zip(filled) {
            let saved = modified_at(due);
            if !exchange_file(filled, &due.real, &due.before)? {
                return Ok(PublishOutcome::EditedMeanwhile(due.path.clone()));
            }
            log_filled(due);
            // HAProxy may have started while the file had an editor's lines. `edit_windows` compares the times.
            if let Some(from) = saved.filter(|_| !due.is_ours) {
                let stood = EditWindow { path: due.path.clone(), from, until: SystemTime::now() };
                self.edit_windows.lock().unwrap_or_else(PoisonError::into_inner).push(stood);
            }
        }
        let is_there = self.is_on_disk(rendered)?;
        if !is_there {
            // The file on disk has one piece only, so it costs a comparison of all lines. A file that can't be read differs in nothing
            // that the history could show.
            let before = self.written.lock().unwrap_or_else(PoisonError::into_inner).take();
            let before = before.or_else(|| self.state_dir.read_cfg().ok().flatten().as_deref().map(ConfigText::from));
            self.state_dir.commit(cfg)?;
            let difference = before.and_then(|before| difference::compare_configs(&before, &rendered.cfg));
            *self.written.lock().unwrap_or_else(PoisonError::into_inner) = Some(rendered.cfg.clone());
            *self.difference.lock().unwrap_or_else(PoisonError::into_inner) = difference.map(Arc::from);
        }
        Ok(if is_there && fills.is_empty() { PublishOutcome::Unchanged } else { PublishOutcome::Written })
    }
}

/// The permissions of a new file. A filled file exists, and keeps its own.
const FILLED_MODE: u32 = 0o640;

/// Waits until an editor's last save is half a second old.
fn wait_for_quiet(due: &PendingEdit) {
    let age = modified_at(due).and_then(|saved| SystemTime::now().duration_since(saved).ok());
    if let Some(age) = age.filter(|age| !due.is_ours && *age < QUIET) {
        std::thread::sleep(QUIET - age);
    }
}

/// The time at which the file on disk was saved. `None` if it can't be read.
pub fn modified_at(due: &PendingEdit) -> Option<SystemTime> {
    fs::metadata(&due.real).and_then(|metadata| metadata.modified()).ok()
}

fn log_filled(due: &PendingEdit) {
    for line in &due.edited_lines {
        tracing::warn!(file = %due.path.display(), line, "overwrote an edit of the server lines below this comment");
    }
    tracing::info!(file = %due.path.display(), "filled a file");
}
