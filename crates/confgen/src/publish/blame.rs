//! Finds the cause of a rejection: the operator's files, the filled lines, single services, or the generated file. It replaces no
//! file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use discovery::{Kind, ServiceId, Tls};
use haproxy::check::CheckResult;

use super::{Publication, PublishOutcome};
use crate::cli::Options;
use crate::local_files::trial::{find_culprits, first_alert};
use crate::operator_files::filled::PendingEdit;
use crate::operator_files::validate::{
    CHECK_DEFAULTS, Rejection, Validator, join_alerts, list_with_staged, normalize_warnings, render_stub_backends,
    replace_staged_name,
};
use crate::render::render_config;
use crate::render::restart_needed::{ConfigFingerprint, Generation};
use crate::render::service_texts::ServiceTexts;
use crate::render::view::View;
use crate::state_dir::{StagedConfig, StagedFile, StateDir, TRIAL};

/// The most checks for one rejection. Enough to single out half a dozen services of a thousand. A check takes some 50 ms.
const MOST_CHECKS: usize = 120;

/// The staged files of a publication.
pub(super) struct StagedTrial<'a> {
    publication: &'a Publication,
    /// The staged path of each filled file that has changed.
    staged_fills: BTreeMap<PathBuf, PathBuf>,
    cfg: &'a StagedConfig,
}

impl<'a> StagedTrial<'a> {
    pub(super) fn new(
        publication: &'a Publication,
        fills: impl Iterator<Item = (&'a PendingEdit, &'a StagedFile)>,
        cfg: &'a StagedConfig,
    ) -> Self {
        let staged_fills = fills.map(|(due, file)| (due.path.clone(), file.path().to_owned())).collect();
        Self { publication, staged_fills, cfg }
    }

    /// The arguments of HAProxy: the operator's files in their new form, and `last`.
    pub(super) fn files_with(&self, last: &Path) -> Vec<PathBuf> {
        let mut files = self.operator_paths();
        files.push(last.to_owned());
        files
    }

    /// The operator's directory, or the single files if some of them are staged elsewhere.
    fn operator_paths(&self) -> Vec<PathBuf> {
        if self.staged_fills.is_empty() {
            return vec![self.publication.options.include.clone()];
        }
        list_with_staged(&self.publication.local_files.operator_files, &self.staged_fills)
    }

    /// HAProxy's output with the files' final paths.
    pub(super) fn rename_staged(&self, words: &str) -> String {
        let cfg = replace_staged_name(words, self.cfg.path(), &self.publication.options.haproxy_cfg);
        self.staged_fills.iter().fold(cfg, |words, (path, place)| replace_staged_name(&words, place, path))
    }

    /// Logs the warnings that the last check didn't have.
    pub(super) fn log_warnings(&self, warnings: &[String]) {
        let include = &self.publication.local_files.operator_files;
        let warnings: BTreeSet<String> =
            normalize_warnings(warnings).iter().map(|line| self.rename_staged(line)).collect();
        let mut told = self.publication.logged_warnings.lock().unwrap_or_else(PoisonError::into_inner);
        for line in warnings.difference(&include.warnings).filter(|line| !told.contains(*line)) {
            if include.paths().any(|path| line.contains(&path.display().to_string())) {
                tracing::warn!(warning = %line, "HAProxy warns about the operator's files");
            } else {
                tracing::warn!(warning = %line, "HAProxy warns about the generated file");
            }
        }
        *told = warnings;
    }

    /// The cause of a rejection. `output` is HAProxy's.
    pub(super) fn find_fault(&self, output: &str) -> anyhow::Result<PublishOutcome> {
        let include = &self.publication.local_files.operator_files;
        let Options { state_dir, haproxy_cfg, .. } = &self.publication.options;
        // The operator's files come first: no service is to blame for a file that HAProxy rejects alone.
        let judge = Validator { checker: &self.publication.checker, state_dir, cfg: haproxy_cfg };
        if let Err(rejection) =
            judge.validate_operator_files(include, std::slice::from_ref(&self.publication.options.include))?
        {
            return Ok(PublishOutcome::OperatorFilesRejected(rejection));
        }
        if !self.staged_fills.is_empty()
            && let Err(rejection) = judge.validate_operator_files(include, &self.operator_paths())?
        {
            let mut rejected = judge.validate_filled_files(include, &self.staged_fills)?;
            if rejected.is_empty() {
                // HAProxy accepts each of the files alone, and rejects them together.
                let reason = self.rename_staged(rejection.reason());
                rejected = self.staged_fills.keys().map(|path| (path.clone(), reason.clone())).collect();
            }
            return Ok(PublishOutcome::FilledFilesRejected(rejected));
        }
        // If HAProxy rejects the file even without services, no service can be left out to mend it.
        if self.check_services(&[])?.is_some() {
            return Ok(PublishOutcome::Rejected(output.to_owned()));
        }
        let culprits = self.find_culprits()?;
        if culprits.is_empty() {
            // The single checks have an empty section for each service that the operator's files name. The whole lacks one of them.
            return Ok(PublishOutcome::OperatorFilesRejected(Rejection::Haproxy(join_alerts(output))));
        }
        Ok(PublishOutcome::ServicesRejected(culprits.into_iter().collect()))
    }

    /// The services that HAProxy rejects, each with its complaint.
    fn find_culprits(&self) -> anyhow::Result<Vec<(ServiceId, String)>> {
        let desired = &self.publication.desired;
        let services = desired.services().map(|(id, _)| id.clone());
        let (taken, new): (Vec<_>, Vec<_>) = services.partition(|id| desired.is_accepted(id));
        // If the services that HAProxy accepted before still pass, only the others are suspects.
        let (beside, suspects) =
            if self.check_services(&taken)?.is_none() { (taken, new) } else { (Vec::new(), [taken, new].concat()) };
        find_culprits(&suspects, MOST_CHECKS, &mut |some| self.check_services(&[&beside, some].concat()))
    }

    /// HAProxy's complaint about a file with only these services.
    fn check_services(&self, services: &[ServiceId]) -> anyhow::Result<Option<String>> {
        let publication = self.publication;
        // The trial has a state directory of its own, since HAProxy never runs its generation.
        let folder = tempfile::Builder::new().prefix(TRIAL).tempdir_in(&publication.options.state_dir)?;
        let disk = StateDir::open_read_only(&publication.options.haproxy_cfg, folder.path());
        let desired = publication.desired.restrict_to(services);
        let include = &publication.local_files.operator_files;
        let texts = ServiceTexts::from_desired(&desired, &publication.site)?;
        let view = View::with_maps(&desired, &publication.site, &include.config, Arc::clone(texts.maps()));
        let structure = Arc::new(ConfigFingerprint::from_view(&view, &include.fingerprints)?);
        let generation = Generation::new(Arc::clone(&structure));
        let mut rendered = render_config(&view, &texts, &generation, &BTreeMap::new(), folder.path())?;
        let stubs = render_stub_backends(&include.config, &|id| self.carries_tcp(id), &|name| {
            structure.sections.contains_key(name) || view.stubs.iter().any(|stub| stub.name == name)
        });
        // Otherwise the stubs would take the last `defaults` of the file, which may have rules.
        rendered.cfg.push(&format!("\n{CHECK_DEFAULTS}{stubs}"));
        let staged = disk.stage_config(&rendered)?;
        Ok(match publication.checker.check_files(&self.files_with(staged.path()))? {
            CheckResult::Valid { .. } => None,
            CheckResult::Rejected { output } => {
                Some(first_alert(&replace_staged_name(&output, staged.path(), &publication.options.haproxy_cfg)))
            }
        })
    }

    /// True if the service's section has `mode tcp`. With another mode, HAProxy would reject the operator's line that names it.
    fn carries_tcp(&self, id: &ServiceId) -> bool {
        let desired = self.publication.desired.service(id);
        id.kind == Kind::Tcp || desired.is_some_and(|it| it.settings.tls == Tls::Passthrough)
    }
}
