//! Staged files, and what HAProxy makes of them: whose fault it is, where it refuses the whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use discovery::{Kind, ServiceId, Tls};
use haproxy::check::Verdict;
use tempfile::NamedTempFile;

use super::{Publication, PublishOutcome};
use crate::cli::Options;
use crate::desired::DesiredService;
use crate::local_files::bisect::culprits;
use crate::local_files::certificates::first_alert;
use crate::operator_files::filled::PendingEdit;
use crate::operator_files::validate::{Rejection, Validator, alerts, each, named, own_warnings, stubs};
use crate::render::render;
use crate::render::restart_needed::ConfigFingerprint;
use crate::render::view::View;
use crate::state_dir::{StagedConfig, StateDir, TRIAL};

/// Enough to single out half a dozen services of a thousand; a check takes some 50 ms.
const JUDGEMENTS: usize = 120;

/// What is staged, and what HAProxy makes of it.
pub(super) struct Trial<'a> {
    filing: &'a Publication,
    /// Where the files that are filled are staged.
    fills: BTreeMap<PathBuf, PathBuf>,
    cfg: &'a StagedConfig,
}

impl<'a> Trial<'a> {
    /// Of a whole that is staged: the files that are filled, and the generated one.
    pub(super) fn new(
        filing: &'a Publication,
        fills: impl Iterator<Item = (&'a PendingEdit, &'a NamedTempFile)>,
        cfg: &'a StagedConfig,
    ) -> Self {
        let fills = fills.map(|(due, file)| (due.path.clone(), file.path().to_owned())).collect();
        Self { filing, fills, cfg }
    }

    /// The operator's files as they will be, and `last`.
    pub(super) fn files(&self, last: &Path) -> Vec<PathBuf> {
        let mut files = self.operators();
        files.push(last.to_owned());
        files
    }

    /// Their directory, as HAProxy will read it; one by one where some of them are only staged.
    fn operators(&self) -> Vec<PathBuf> {
        if self.fills.is_empty() {
            return vec![self.filing.options.include.clone()];
        }
        each(&self.filing.outside.include, &self.fills)
    }

    /// HAProxy's words, with the files called by the names they will have.
    pub(super) fn named(&self, words: &str) -> String {
        let cfg = named(words, self.cfg.path(), &self.filing.options.haproxy_cfg);
        self.fills.iter().fold(cfg, |words, (path, place)| named(&words, place, path))
    }

    /// Logs what HAProxy warns of since the last time, and whose it is.
    pub(super) fn tell(&self, warnings: &[String]) {
        let include = &self.filing.outside.include;
        let of_them = |line: &str| include.paths().any(|path| line.contains(&path.display().to_string()));
        let warnings: BTreeSet<String> = own_warnings(warnings).iter().map(|line| self.named(line)).collect();
        let mut told = self.filing.told.lock().unwrap_or_else(PoisonError::into_inner);
        for line in warnings.difference(&include.warnings).filter(|line| !told.contains(*line)) {
            let whose = if of_them(line) { "the operator's files" } else { "haproxy -c" };
            tracing::warn!("{whose}: {line}");
        }
        *told = warnings;
    }

    /// Whose fault it is that the whole is refused.
    pub(super) fn blame(&self, output: &str) -> anyhow::Result<PublishOutcome> {
        let include = &self.filing.outside.include;
        let Options { state_dir, haproxy_cfg, .. } = &self.filing.options;
        let judge = Validator { checker: &self.filing.checker, state_dir, cfg: haproxy_cfg };
        if let Err(rejection) = judge.operators(include, std::slice::from_ref(&self.filing.options.include))? {
            return Ok(PublishOutcome::OperatorRefused(rejection));
        }
        if !self.fills.is_empty()
            && let Err(rejection) = judge.operators(include, &self.operators())?
        {
            let some = judge.filled(include, &self.fills)?;
            let all = || self.fills.keys().map(|path| (path.clone(), self.named(rejection.words()))).collect();
            return Ok(PublishOutcome::Unfilled(if some.is_empty() { all() } else { some }));
        }
        if self.verdict(&[])?.is_some() {
            return Ok(PublishOutcome::Refused(output.to_owned()));
        }
        let culprits = self.culprits()?;
        if culprits.is_empty() {
            // With an empty section for each service that they name it is fine: one isn't there.
            return Ok(PublishOutcome::OperatorRefused(Rejection::Haproxy(alerts(output))));
        }
        Ok(PublishOutcome::Culprits(culprits.into_iter().collect()))
    }

    /// Those of the services that HAProxy refuses: of what it hasn't taken yet, if all that it has taken still passes.
    fn culprits(&self) -> anyhow::Result<Vec<(ServiceId, String)>> {
        let settled = &self.filing.settled;
        let services = settled.services().map(|(id, _)| id.clone());
        let (taken, new): (Vec<_>, Vec<_>) = services.partition(|id| settled.is_taken(id));
        let (beside, suspects) =
            if self.verdict(&taken)?.is_none() { (taken, new) } else { (Vec::new(), [taken, new].concat()) };
        culprits(&suspects, JUDGEMENTS, &mut |some| self.verdict(&[&beside, some].concat()))
    }

    /// What HAProxy has against a file with these services alone.
    fn verdict(&self, services: &[ServiceId]) -> anyhow::Result<Option<String>> {
        let filing = self.filing;
        // Of no generation: HAProxy never runs any of it.
        let folder = tempfile::Builder::new().prefix(TRIAL).tempdir_in(&filing.options.state_dir)?;
        let disk = StateDir::at(&filing.options.haproxy_cfg, folder.path());
        let settled = filing.settled.only(services);
        let include = &filing.outside.include;
        let view = View::of(&settled, &filing.site, &include.operator);
        let structure = ConfigFingerprint::of(&view, &include.prints)?;
        let mut rendered = render(&view, &structure, folder.path())?;
        let is_there =
            |name: &str| structure.sections.contains_key(name) || view.stubs.iter().any(|stub| stub.name == name);
        let is_tcp = |id: &ServiceId| {
            let passes_through = |it: &Arc<DesiredService>| it.settings.tls == Tls::Passthrough;
            id.kind == Kind::Tcp || filing.settled.service(id).is_some_and(passes_through)
        };
        rendered.cfg += &stubs(&include.operator, &is_tcp, &is_there);
        let staged = disk.stage(&rendered)?;
        Ok(match filing.checker.check(&self.files(staged.path()))? {
            Verdict::Valid { .. } => None,
            Verdict::Refused { output } => {
                Some(first_alert(&named(&output, staged.path(), &filing.options.haproxy_cfg)))
            }
        })
    }
}
