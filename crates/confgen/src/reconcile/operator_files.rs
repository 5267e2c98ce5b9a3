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
use crate::operator_files::filled::{Elsewhere, FilledFiles};
use crate::operator_files::validate::{OperatorVerdict, Rejection, Validator};
use crate::publish::saved;
use crate::status::Operators;

/// Who saves a file again and again is waited for so often; then the next look sees to it.
const TRIES: usize = 3;

impl Reconciler {
    /// Looks anew at the operator's files, the certificates, the authorities and the error pages. The next round has to be of everything.
    pub fn reload_local_files(&mut self) -> anyhow::Result<()> {
        self.finish_opening()?;
        let include = self.load_operator_files()?;
        let taken = self.places.take_over(&self.checker)?;
        // A file of claims that can't be read holds up nothing else: the last one that could counts.
        let allowed = self.places.allowed();
        let last = || self.outside.allowed.clone();
        let outside = LocalFiles { include, allowed: allowed.as_ref().map_or_else(|_| last(), Clone::clone), ..taken };
        outside.certificates.tell(&self.outside.certificates);
        outside.pages.tell(&self.outside.pages);
        self.site.pages = Arc::clone(&outside.pages);
        self.proxy.set_certificates(&outside.certificates);
        if !self.outside.is_as(&outside) {
            self.settled.clear_rejections();
        }
        self.outside = Arc::new(outside);
        allowed?;
        match &self.refused {
            Some(rejection) => anyhow::bail!("{rejection}"),
            None => Ok(()),
        }
    }

    /// Starts from what was taken last: files that are broken now have an effect no sooner than when they are mended.
    pub(super) fn recall_operators(&mut self) -> anyhow::Result<()> {
        let taken = self.disk.operators()?;
        let include = match taken {
            Some(sources) => self.places.include_of(sources, &FilledFiles::default()),
            // Nothing better is known, whatever HAProxy makes of it.
            None => self.places.include(&FilledFiles::default()).unwrap_or_default(),
        };
        Arc::make_mut(&mut self.outside).include = include;
        self.refused = Some(Rejection::Confgen("they have not been looked at yet".into()));
        let admitted = self.load_operator_files()?;
        Arc::make_mut(&mut self.outside).include = admitted;
        Ok(())
    }

    /// Reads the operator's files and has HAProxy judge them, where people have changed anything. Gives back those that
    /// count: of files that can't be taken, the ones that were taken last.
    pub(super) fn load_operator_files(&mut self) -> anyhow::Result<OperatorFiles> {
        let known = &self.outside.include;
        let (read, verdict) = match self.places.include(&known.fills) {
            Ok(read) if self.refused.is_none() && read.prints == known.prints => {
                return Ok(OperatorFiles { warnings: known.warnings.clone(), ..read });
            }
            Ok(read) => self.judged(read)?,
            Err(error) => (known.clone(), Err(Rejection::Confgen(error.to_string()))),
        };
        let warnings = match verdict {
            Ok(warnings) => warnings,
            Err(rejection) => {
                self.refused = Some(rejection);
                return Ok(known.clone());
            }
        };
        for warning in warnings.difference(&known.warnings) {
            tracing::warn!("the operator's files: {warning}");
        }
        self.disk.remember_operators(&read.sources)?;
        self.refused = None;
        Ok(OperatorFiles { warnings, ..read })
    }

    /// HAProxy's word on the operator's files, with those that it is about: somebody may be at work on them.
    fn judged(&self, mut read: OperatorFiles) -> anyhow::Result<(OperatorFiles, OperatorVerdict)> {
        let Options { state_dir, haproxy_cfg, include, .. } = &self.options;
        let judge = Validator { checker: &self.checker, state_dir, cfg: haproxy_cfg };
        let held = self.settled.holdings();
        for _ in 0..TRIES {
            let late = read.operator.late_claims(&self.outside.include.operator, &held);
            let verdict = if late.is_empty() {
                judge.operators(&read, std::slice::from_ref(include))?
            } else {
                let all: Vec<String> = read.operator.refused.iter().cloned().chain(late).collect();
                Err(Rejection::Confgen(all.join("; ")))
            };
            let now = self.places.include(&self.outside.include.fills);
            match now {
                Ok(now) if now.sources != read.sources => read = now,
                _ => return Ok((read, verdict)),
            }
        }
        Ok((read, Err(Rejection::Confgen("they change faster than they can be checked".into()))))
    }

    /// A file that HAProxy refused to take filled is tried with what has changed. True if there is one.
    pub(super) fn retry_fills(&mut self, touched: &BTreeSet<ServiceId>) -> bool {
        let left = self.outside.include.fills.left_out();
        touched.iter().any(|id| left.contains(id)) && Arc::make_mut(&mut self.outside).include.fills.retry()
    }

    /// The file that people had changed below its comments when HAProxy was started, if there is one. Where HAProxy lacks
    /// nothing, as its generation says, it may run their lines all the same.
    pub(super) fn may_run_edited_file(&self) -> Option<PathBuf> {
        let due = self.outside.include.fills.due(&self.settled);
        let mut stood = self.stood.lock().unwrap_or_else(PoisonError::into_inner);
        let born = if due.is_empty() && stood.is_empty() { None } else { self.proxy.born() }?;
        let stands = due.into_iter().find(|due| saved(due).is_some_and(|saved| saved <= born)).map(|due| due.path);
        stands.or_else(|| edit_windows::met(&mut stood, born, SystemTime::now()))
    }

    /// HAProxy was started with the right lines.
    pub(super) fn clear_edit_windows(&mut self) {
        self.suspect = None;
        self.stood.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How the operator's files stand.
    pub(super) fn operators(&self) -> Operators {
        let OperatorFiles { operator, fills, .. } = &self.outside.include;
        let remarks = operator.remarks.iter().cloned().chain(fills.remarks(&self.settled)).collect();
        Operators { refused: self.refused.clone(), left: fills.left(), remarks, named: operator.named() }
    }

    /// Whether they are taken as they stand.
    pub fn is_taken(&self) -> bool {
        self.refused.is_none()
    }

    /// Which sections of the operator's send to upstreams too.
    pub fn elsewhere(&self) -> Elsewhere {
        self.outside.include.fills.elsewhere()
    }

    /// Says once what an operator should know of them.
    pub(super) fn tell_operators(&mut self) {
        let remarks = self.operators().remarks;
        for remark in remarks.iter().filter(|remark| !self.remarks.contains(remark)) {
            tracing::warn!("the operator's files: {remark}");
        }
        self.remarks = remarks;
    }

    /// What the store may not ask for.
    pub(super) fn limits(&self) -> Policy {
        let operator = &self.outside.include.operator;
        let bound = self.options.bound_ports().into_iter().map(|(port, option)| (port..=port, option));
        let stats_domain = self.options.stats_domain.iter();
        Policy {
            reserved_ports: bound.chain(operator.ports()).collect(),
            reserved_sections: operator.proxies(),
            reserved_hosts: stats_domain.map(|host| (host.clone(), "--stats-domain".into())).collect(),
            profiles: operator.profiles.clone(),
            server_profiles: operator.server_profiles.clone(),
            authorities: self.outside.authorities.clone(),
            upstream_networks: self.options.upstream_networks.clone(),
            tcp_ports: Some(self.options.tcp_ports.clone()),
            allowed: self.outside.allowed.clone(),
            upstream_bound: self.settled.upstream_bound(),
        }
    }
}
