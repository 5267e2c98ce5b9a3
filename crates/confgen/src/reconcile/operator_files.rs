//! The operator's own files in a round: judged by themselves first, and only then what everything else meets.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use discovery::ServiceId;

use super::Reconciler;
use crate::cli::Options;
use crate::desired::Policy;
use crate::local_files::LocalFiles;
use crate::operator_files::OperatorFiles;
use crate::operator_files::edit_windows;
use crate::operator_files::filled::{FilledFiles, OtherBackends};
use crate::operator_files::validate::{OperatorVerdict, Rejection, Validator};
use crate::publish::modified_at;
use crate::status::OperatorFilesStatus;

/// Who saves a file again and again is waited for so often; then the next look sees to it.
const TRIES: usize = 3;

impl Reconciler {
    /// Looks anew at the operator's files, the certificates, the authorities and the error pages. The next round has to be of everything.
    pub fn reload_local_files(&mut self) -> anyhow::Result<()> {
        self.complete_startup()?;
        let include = self.load_operator_files()?;
        let taken = self.paths.collect_files(&self.checker)?;
        // A file of claims that can't be read holds up nothing else: the last one that could counts.
        let allowed = self.paths.read_domain_allowlist();
        let last = || self.files.allowed_domains.clone();
        let outside = LocalFiles {
            operator_files: include,
            allowed_domains: allowed.as_ref().map_or_else(|_| last(), Clone::clone),
            ..taken
        };
        outside.certificates.log_changes(&self.files.certificates);
        outside.pages.log_changes(&self.files.pages);
        self.site.pages = Arc::clone(&outside.pages);
        self.haproxy.set_certificates(&outside.certificates);
        if !self.files.is_unedited_since(&outside) {
            self.desired.clear_rejections();
        }
        self.files = Arc::new(outside);
        allowed?;
        match &self.rejection {
            Some(rejection) => anyhow::bail!("{rejection}"),
            None => Ok(()),
        }
    }

    /// Starts from what was taken last: files that are broken now have an effect no sooner than when they are mended.
    pub(super) fn restore_operator_files(&mut self) -> anyhow::Result<()> {
        let taken = self.state_dir.load_operator_files()?;
        let include = match taken {
            Some(sources) => self.paths.parse_operator_files(sources, &FilledFiles::default()),
            // Nothing better is known, whatever HAProxy makes of it.
            None => self.paths.read_operator_files(&FilledFiles::default()).unwrap_or_default(),
        };
        Arc::make_mut(&mut self.files).operator_files = include;
        self.rejection = Some(Rejection::Confgen("they have not been looked at yet".into()));
        let admitted = self.load_operator_files()?;
        Arc::make_mut(&mut self.files).operator_files = admitted;
        Ok(())
    }

    /// Reads the operator's files and has HAProxy judge them, where people have changed anything. Gives back those that
    /// count: of files that can't be taken, the ones that were taken last.
    pub(super) fn load_operator_files(&mut self) -> anyhow::Result<OperatorFiles> {
        let known = &self.files.operator_files;
        let (read, verdict) = match self.paths.read_operator_files(&known.filled) {
            Ok(read) if self.rejection.is_none() && read.fingerprints == known.fingerprints => {
                return Ok(OperatorFiles { warnings: known.warnings.clone(), ..read });
            }
            Ok(read) => self.validate_operator_files(read)?,
            Err(error) => (known.clone(), Err(Rejection::Confgen(error.to_string()))),
        };
        let warnings = match verdict {
            Ok(warnings) => warnings,
            Err(rejection) => {
                self.rejection = Some(rejection);
                return Ok(known.clone());
            }
        };
        for warning in warnings.difference(&known.warnings) {
            tracing::warn!("the operator's files: {warning}");
        }
        self.state_dir.save_operator_files(&read.sources)?;
        self.rejection = None;
        Ok(OperatorFiles { warnings, ..read })
    }

    /// HAProxy's word on the operator's files, with those that it is about: somebody may be at work on them.
    fn validate_operator_files(&self, mut read: OperatorFiles) -> anyhow::Result<(OperatorFiles, OperatorVerdict)> {
        let Options { state_dir, haproxy_cfg, include, .. } = &self.options;
        let judge = Validator { checker: &self.checker, state_dir, cfg: haproxy_cfg };
        let held = self.desired.held_names();
        for _ in 0..TRIES {
            let late = read.config.find_late_claims(&self.files.operator_files.config, &held);
            let verdict = if late.is_empty() {
                judge.validate_operator_files(&read, std::slice::from_ref(include))?
            } else {
                let all: Vec<String> = read.config.conflicts.iter().cloned().chain(late).collect();
                Err(Rejection::Confgen(all.join("; ")))
            };
            let now = self.paths.read_operator_files(&self.files.operator_files.filled);
            match now {
                Ok(now) if now.sources != read.sources => read = now,
                _ => return Ok((read, verdict)),
            }
        }
        Ok((read, Err(Rejection::Confgen("they change faster than they can be checked".into()))))
    }

    /// A file that HAProxy refused to take filled is tried with what has changed. True if there is one.
    pub(super) fn retry_filled_files(&mut self, touched: &BTreeSet<ServiceId>) -> bool {
        let left = self.files.operator_files.filled.rejected_services();
        touched.iter().any(|id| left.contains(id))
            && Arc::make_mut(&mut self.files).operator_files.filled.clear_rejections()
    }

    /// The file that people had changed below its comments when HAProxy was started, if there is one. Where HAProxy lacks
    /// nothing, as its generation says, it may run their lines all the same.
    pub(super) fn may_run_edited_file(&self) -> Option<PathBuf> {
        let due = self.files.operator_files.filled.pending_edits(&self.desired);
        let mut stood = self.edit_windows.lock().unwrap_or_else(PoisonError::into_inner);
        let born = if due.is_empty() && stood.is_empty() { None } else { self.haproxy.started_at() }?;
        let stands =
            due.into_iter().find(|due| modified_at(due).is_some_and(|saved| saved <= born)).map(|due| due.path);
        stands.or_else(|| edit_windows::find_suspect(&mut stood, born, SystemTime::now()))
    }

    /// HAProxy was started with the right lines.
    pub(super) fn clear_edit_windows(&mut self) {
        self.suspect_file = None;
        self.edit_windows.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How the operator's files stand.
    pub(super) fn operator_files_status(&self) -> OperatorFilesStatus {
        let OperatorFiles { config: operator, filled: fills, .. } = &self.files.operator_files;
        let remarks = operator.remarks.iter().cloned().chain(fills.list_remarks(&self.desired)).collect();
        OperatorFilesStatus {
            refused: self.rejection.clone(),
            not_filled: fills.list_rejections(),
            remarks,
            named_sections: operator.referenced_sections(),
        }
    }

    /// Whether they are taken as they stand.
    pub fn accepts_operator_files(&self) -> bool {
        self.rejection.is_none()
    }

    /// Which sections of the operator's send to upstreams too.
    pub fn other_backends(&self) -> OtherBackends {
        self.files.operator_files.filled.other_backends()
    }

    /// Says once what an operator should know of them.
    pub(super) fn log_operator_files(&mut self) {
        let remarks = self.operator_files_status().remarks;
        for remark in remarks.iter().filter(|remark| !self.logged_remarks.contains(remark)) {
            tracing::warn!("the operator's files: {remark}");
        }
        self.logged_remarks = remarks;
    }

    /// What the store may not ask for.
    pub(super) fn current_policy(&self) -> Policy {
        let operator = &self.files.operator_files.config;
        let bound = self.options.bound_ports().into_iter().map(|(port, option)| (port..=port, option));
        let stats_domain = self.options.stats_domain.iter();
        Policy {
            reserved_ports: bound.chain(operator.tcp_ports()).collect(),
            reserved_sections: operator.reserved_sections(),
            reserved_hosts: stats_domain.map(|host| (host.clone(), "--stats-domain".into())).collect(),
            profiles: operator.profiles.clone(),
            server_profiles: operator.server_profiles.clone(),
            ca_files: self.files.authorities.clone(),
            upstream_networks: self.options.upstream_networks.clone(),
            tcp_ports: Some(self.options.tcp_ports.clone()),
            domain_allowlist: self.files.allowed_domains.clone(),
            upstream_bound: self.desired.upstream_bound().cloned(),
        }
    }
}
