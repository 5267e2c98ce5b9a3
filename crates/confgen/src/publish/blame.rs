//! Staged files, and what HAProxy makes of them: whose fault it is, where it refuses the whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use discovery::{Kind, ServiceId, Tls};
use haproxy::check::CheckResult;

use super::{Publication, PublishOutcome};
use crate::cli::Options;
use crate::desired::DesiredService;
use crate::local_files::trial::{find_culprits, first_alert};
use crate::operator_files::filled::PendingEdit;
use crate::operator_files::validate::{
    Rejection, Validator, join_alerts, list_with_staged, normalize_warnings, render_stub_backends, replace_staged_name,
};
use crate::render::render_config;
use crate::render::restart_needed::ConfigFingerprint;
use crate::render::view::View;
use crate::state_dir::{StagedConfig, StagedFile, StateDir, TRIAL};

/// Enough to single out half a dozen services of a thousand; a check takes some 50 ms.
const JUDGEMENTS: usize = 120;

/// What is staged, and what HAProxy makes of it.
pub(super) struct StagedTrial<'a> {
    publication: &'a Publication,
    /// Where the files that are filled are staged.
    staged_fills: BTreeMap<PathBuf, PathBuf>,
    cfg: &'a StagedConfig,
}

impl<'a> StagedTrial<'a> {
    /// Of a whole that is staged: the files that are filled, and the generated one.
    pub(super) fn new(
        publication: &'a Publication,
        fills: impl Iterator<Item = (&'a PendingEdit, &'a StagedFile)>,
        cfg: &'a StagedConfig,
    ) -> Self {
        let staged_fills = fills.map(|(due, file)| (due.path.clone(), file.path().to_owned())).collect();
        Self { publication, staged_fills, cfg }
    }

    /// The operator's files as they will be, and `last`.
    pub(super) fn files_with(&self, last: &Path) -> Vec<PathBuf> {
        let mut files = self.operator_paths();
        files.push(last.to_owned());
        files
    }

    /// Their directory, as HAProxy will read it; one by one where some of them are only staged.
    fn operator_paths(&self) -> Vec<PathBuf> {
        if self.staged_fills.is_empty() {
            return vec![self.publication.options.include.clone()];
        }
        list_with_staged(&self.publication.local_files.operator_files, &self.staged_fills)
    }

    /// HAProxy's words, with the files called by the names they will have.
    pub(super) fn rename_staged(&self, words: &str) -> String {
        let cfg = replace_staged_name(words, self.cfg.path(), &self.publication.options.haproxy_cfg);
        self.staged_fills.iter().fold(cfg, |words, (path, place)| replace_staged_name(&words, place, path))
    }

    /// Logs what HAProxy warns of since the last time, and whose it is.
    pub(super) fn log_warnings(&self, warnings: &[String]) {
        let include = &self.publication.local_files.operator_files;
        let of_them = |line: &str| include.paths().any(|path| line.contains(&path.display().to_string()));
        let warnings: BTreeSet<String> =
            normalize_warnings(warnings).iter().map(|line| self.rename_staged(line)).collect();
        let mut told = self.publication.logged_warnings.lock().unwrap_or_else(PoisonError::into_inner);
        for line in warnings.difference(&include.warnings).filter(|line| !told.contains(*line)) {
            let whose = if of_them(line) { "the operator's files" } else { "haproxy -c" };
            tracing::warn!("{whose}: {line}");
        }
        *told = warnings;
    }

    /// Whose fault it is that the whole is refused.
    pub(super) fn find_fault(&self, output: &str) -> anyhow::Result<PublishOutcome> {
        let include = &self.publication.local_files.operator_files;
        let Options { state_dir, haproxy_cfg, .. } = &self.publication.options;
        let judge = Validator { checker: &self.publication.checker, state_dir, cfg: haproxy_cfg };
        if let Err(rejection) =
            judge.validate_operator_files(include, std::slice::from_ref(&self.publication.options.include))?
        {
            return Ok(PublishOutcome::OperatorFilesRejected(rejection));
        }
        if !self.staged_fills.is_empty()
            && let Err(rejection) = judge.validate_operator_files(include, &self.operator_paths())?
        {
            let some = judge.validate_filled_files(include, &self.staged_fills)?;
            let all = || {
                self.staged_fills.keys().map(|path| (path.clone(), self.rename_staged(rejection.reason()))).collect()
            };
            return Ok(PublishOutcome::FilledFilesRejected(if some.is_empty() { all() } else { some }));
        }
        if self.check_services(&[])?.is_some() {
            return Ok(PublishOutcome::Rejected(output.to_owned()));
        }
        let culprits = self.find_culprits()?;
        if culprits.is_empty() {
            // With an empty section for each service that they name it is fine: one isn't there.
            return Ok(PublishOutcome::OperatorFilesRejected(Rejection::Haproxy(join_alerts(output))));
        }
        Ok(PublishOutcome::ServicesRejected(culprits.into_iter().collect()))
    }

    /// Those of the services that HAProxy refuses: of what it hasn't taken yet, if all that it has taken still passes.
    fn find_culprits(&self) -> anyhow::Result<Vec<(ServiceId, String)>> {
        let settled = &self.publication.desired;
        let services = settled.services().map(|(id, _)| id.clone());
        let (taken, new): (Vec<_>, Vec<_>) = services.partition(|id| settled.is_accepted(id));
        let (beside, suspects) =
            if self.check_services(&taken)?.is_none() { (taken, new) } else { (Vec::new(), [taken, new].concat()) };
        find_culprits(&suspects, JUDGEMENTS, &mut |some| self.check_services(&[&beside, some].concat()))
    }

    /// What HAProxy has against a file with these services alone.
    fn check_services(&self, services: &[ServiceId]) -> anyhow::Result<Option<String>> {
        let filing = self.publication;
        // Of no generation: HAProxy never runs any of it.
        let folder = tempfile::Builder::new().prefix(TRIAL).tempdir_in(&filing.options.state_dir)?;
        let disk = StateDir::open_read_only(&filing.options.haproxy_cfg, folder.path());
        let settled = filing.desired.restrict_to(services);
        let include = &filing.local_files.operator_files;
        let view = View::new(&settled, &filing.site, &include.config);
        let structure = ConfigFingerprint::from_view(&view, &include.fingerprints)?;
        let mut rendered = render_config(&view, &structure, folder.path())?;
        let is_there =
            |name: &str| structure.sections.contains_key(name) || view.stubs.iter().any(|stub| stub.name == name);
        let is_tcp = |id: &ServiceId| {
            let passes_through = |it: &Arc<DesiredService>| it.settings.tls == Tls::Passthrough;
            id.kind == Kind::Tcp || filing.desired.service(id).is_some_and(passes_through)
        };
        rendered.cfg += &render_stub_backends(&include.config, &is_tcp, &is_there);
        let staged = disk.stage_config(&rendered)?;
        Ok(match filing.checker.check_files(&self.files_with(staged.path()))? {
            CheckResult::Valid { .. } => None,
            CheckResult::Rejected { output } => {
                Some(first_alert(&replace_staged_name(&output, staged.path(), &filing.options.haproxy_cfg)))
            }
        })
    }
}
