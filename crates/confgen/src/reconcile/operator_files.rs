//! Local files in a reconcile. The operator's own files are validated alone first, so that no service is blamed for them. It
//! decides nothing about what is in them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use discovery::ServiceId;
use haproxy::check::Checker;

use super::state::Config;
use super::{Reconciler, Steps};
use crate::cli::Options;
use crate::desired::{HeldNames, Policy};
use crate::local_files::{LocalFiles, LocalPaths};
use crate::operator_files::OperatorFiles;
use crate::operator_files::edit_windows;
use crate::operator_files::filled::{FilledFiles, OtherBackends};
use crate::operator_files::validate::{OperatorVerdict, Rejection, Validator};
use crate::publish::modified_at;
use crate::state_dir::StateDir;
use crate::status::OperatorFilesStatus;

/// Files that change while HAProxy checks them are checked again this often. After that, the observer of the files starts the next
/// try.
const TRIES: usize = 3;

/// Reads and checks all local files again, and takes them over. The reconcile after this must resolve all services. An error if some
/// files can't be read or aren't accepted: the last good ones count. Blocks while HAProxy checks changed files.
pub fn reload_local_files(steps: &mut impl Steps) -> anyhow::Result<()> {
    let reader = steps.run(|reconciler| {
        reconciler.complete_startup()?;
        Ok(reconciler.file_reader())
    })?;
    let (include, rejection) = reader.load_operator_files()?;
    // As before, the verdict counts even if a certificate can't be read below.
    steps.run(move |reconciler| {
        reconciler.files.rejection = rejection;
        Ok(())
    })?;
    let taken = reader.paths.collect_files(&reader.checker)?;
    // An allowlist that can't be read holds up no other file. The last good one counts, and the error is the result.
    let allowed = reader.paths.read_domain_allowlist();
    let outside = LocalFiles {
        operator_files: include,
        allowed_domains: allowed.as_ref().unwrap_or(&reader.known.allowed_domains).clone(),
        ..taken
    };
    steps.run(move |reconciler| {
        let refused = reconciler.take_local_files(outside);
        allowed?;
        refused
    })
}

/// Reads the local files beside changes over the Runtime API. It has copies of all that it needs.
pub(super) struct FileReader {
    paths: LocalPaths,
    checker: Checker,
    options: Options,
    state_dir: StateDir,
    /// The files that count.
    known: Arc<LocalFiles>,
    /// The reason why the operator's files aren't accepted as they were last read.
    rejection: Option<Rejection>,
    held: HeldNames,
}

impl Reconciler {
    pub(super) fn file_reader(&self) -> FileReader {
        let Config { paths, checker, options, state_dir, .. } = &self.config;
        FileReader {
            paths: paths.clone(),
            checker: checker.clone(),
            options: options.clone(),
            state_dir: state_dir.clone(),
            known: Arc::clone(&self.files.local),
            rejection: self.files.rejection.clone(),
            held: self.desired.held_names(),
        }
    }

    /// An error if the operator's files aren't accepted as they are.
    fn take_local_files(&mut self, mut outside: LocalFiles) -> anyhow::Result<()> {
        // A service of a rejected filled file may have changed since the files were read.
        if self.files.local.operator_files.filled.list_rejections().is_empty() {
            outside.operator_files.filled.clear_rejections();
        }
        outside.certificates.log_changes(&self.files.local.certificates);
        outside.pages.log_changes(&self.files.local.pages);
        self.files.site.pages = Arc::clone(&outside.pages);
        self.haproxy.set_certificates(&outside.certificates);
        // A CA file or a profile may be what HAProxy rejected a service for, so each service gets another chance.
        if !self.files.local.is_unedited_since(&outside) {
            self.desired.clear_rejections();
        }
        self.files.local = Arc::new(outside);
        // A publish may come before the next reconcile. It must not give the new files the id of the generation before.
        self.update_fingerprints(&BTreeSet::new(), true)?;
        match &self.files.rejection {
            Some(rejection) => anyhow::bail!("{rejection}"),
            None => Ok(()),
        }
    }

    /// Starts from the operator's files that were accepted last. Files that are broken now have no effect before they are mended.
    pub(super) fn restore_operator_files(&mut self) -> anyhow::Result<()> {
        let taken = self.config.state_dir.load_operator_files()?;
        let include = match taken {
            Some(sources) => self.config.paths.parse_operator_files(sources, &FilledFiles::default()),
            // No file was ever accepted, so the files as they are count, whatever HAProxy says of them.
            None => self.config.paths.read_operator_files(&FilledFiles::default()).unwrap_or_default(),
        };
        Arc::make_mut(&mut self.files.local).operator_files = include;
        // Only with a rejection does the load below ask HAProxy about files that equal the last accepted ones.
        self.files.rejection = Some(Rejection::Confgen("they have not been read yet".into()));
        let (admitted, rejection) = self.file_reader().load_operator_files()?;
        self.files.rejection = rejection;
        Arc::make_mut(&mut self.files.local).operator_files = admitted;
        Ok(())
    }

    /// Tries rejected filled files again if one of their services changed. True if there is one.
    pub(super) fn retry_filled_files(&mut self, touched: &BTreeSet<ServiceId>) -> bool {
        let left = self.files.local.operator_files.filled.rejected_services();
        touched.iter().any(|id| left.contains(id))
            && Arc::make_mut(&mut self.files.local).operator_files.filled.clear_rejections()
    }

    /// A filled file with foreign lines at the time when HAProxy was started. HAProxy may run these lines although it says that it
    /// runs the needed generation.
    pub(super) fn may_run_edited_file(&self) -> Option<PathBuf> {
        let due = self.files.local.operator_files.filled.pending_edits(&self.desired);
        let mut windows = self.files.edit_windows.lock().unwrap_or_else(PoisonError::into_inner);
        // HAProxy is asked only if there is a file to suspect.
        let started_at = if due.is_empty() && windows.is_empty() { None } else { self.haproxy.started_at() }?;
        let foreign = due.into_iter().find(|due| modified_at(due).is_some_and(|saved| saved <= started_at));
        let foreign = foreign.map(|due| due.path);
        foreign.or_else(|| edit_windows::find_suspect(&mut windows, started_at, SystemTime::now()))
    }

    /// To be called when HAProxy was started with confgen's lines.
    pub(super) fn clear_edit_windows(&mut self) {
        self.files.suspect = None;
        self.files.edit_windows.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(super) fn operator_files_status(&self) -> OperatorFilesStatus {
        let OperatorFiles { config: operator, filled: fills, .. } = &self.files.local.operator_files;
        let remarks = operator.remarks.iter().cloned().chain(fills.list_remarks(&self.desired)).collect();
        OperatorFilesStatus {
            refused: self.files.rejection.clone(),
            not_filled: fills.list_unfilled(&self.desired),
            remarks,
            named_sections: operator.referenced_sections(),
            all_backup_profiles: operator.all_backup_profiles.clone(),
            closing_lines: operator.closing_lines.clone(),
            rate_limits: operator.rate_limits(),
        }
    }

    /// The reason why the operator's files aren't accepted as they are.
    pub fn operator_files_rejection(&self) -> Option<&Rejection> {
        self.files.rejection.as_ref()
    }

    /// The operator's sections that send to upstreams too.
    pub(super) fn other_backends(&self) -> OtherBackends {
        self.files.local.operator_files.filled.other_backends()
    }

    pub(super) fn log_operator_files(&mut self) {
        let mut remarks = self.operator_files_status().remarks;
        remarks.extend(self.files.local.operator_files.filled.list_left_blocks(&self.desired));
        for remark in remarks.iter().filter(|remark| !self.logged.remarks.contains(remark)) {
            tracing::warn!(%remark, "the operator's files need attention");
        }
        self.logged.remarks = remarks;
    }

    /// The limits that the store can't exceed.
    pub(super) fn current_policy(&self) -> Policy {
        let operator = &self.files.local.operator_files.config;
        let bound = self.config.options.bound_ports().into_iter().map(|(port, option)| (port..=port, option));
        let stats_domain = self.config.options.stats_domain.iter();
        Policy {
            reserved_ports: bound.chain(operator.tcp_ports()).collect(),
            reserved_sections: operator.reserved_sections(),
            reserved_hosts: stats_domain.map(|host| (host.clone(), "--stats-domain".into())).collect(),
            profiles: operator.profiles.clone(),
            server_profiles: operator.server_profiles.clone(),
            ca_files: self.files.local.authorities.clone(),
            upstream_networks: self.config.options.upstream_networks.clone(),
            tcp_ports: Some(self.config.options.tcp_ports.clone()),
            domain_allowlist: self.files.local.allowed_domains.clone(),
            upstream_bound: self.desired.upstream_bound().cloned(),
        }
    }
}

impl FileReader {
    /// Reads the operator's files and has HAProxy check them if the operator changed them. Returns the files that count, the last
    /// accepted ones if these are rejected, and the rejection.
    fn load_operator_files(&self) -> anyhow::Result<(OperatorFiles, Option<Rejection>)> {
        let known = &self.known.operator_files;
        let (read, verdict) = match self.paths.read_operator_files(&known.filled) {
            Ok(read) if self.rejection.is_none() && read.fingerprints == known.fingerprints => {
                // HAProxy doesn't check unchanged files again, so the warnings of the last check hold.
                return Ok((OperatorFiles { warnings: known.warnings.clone(), ..read }, None));
            }
            Ok(read) => self.validate_operator_files(read)?,
            Err(error) => (known.clone(), Err(Rejection::Confgen(error.to_string()))),
        };
        let warnings = match verdict {
            Ok(warnings) => warnings,
            Err(rejection) => return Ok((known.clone(), Some(rejection))),
        };
        for warning in warnings.difference(&known.warnings) {
            tracing::warn!(%warning, "HAProxy warns about the operator's files");
        }
        self.state_dir.save_operator_files(&read.sources)?;
        Ok((OperatorFiles { warnings, ..read }, None))
    }

    /// Returns HAProxy's verdict, and the files that it is about. The operator may save others while HAProxy checks.
    fn validate_operator_files(&self, mut read: OperatorFiles) -> anyhow::Result<(OperatorFiles, OperatorVerdict)> {
        let Options { state_dir, haproxy_cfg, include, .. } = &self.options;
        let judge = Validator { checker: &self.checker, state_dir, cfg: haproxy_cfg };
        let known = &self.known.operator_files;
        for _ in 0..TRIES {
            let late = read.config.find_late_claims(&known.config, &self.held);
            let verdict = if late.is_empty() {
                judge.validate_operator_files(&read, std::slice::from_ref(include))?
            } else {
                let all: Vec<String> = read.config.conflicts.iter().cloned().chain(late).collect();
                Err(Rejection::Confgen(all.join("; ")))
            };
            match self.paths.read_operator_files(&known.filled) {
                Ok(now) if now.sources != read.sources => read = now,
                _ => return Ok((read, verdict)),
            }
        }
        Ok((read, Err(Rejection::Confgen("they change faster than they can be checked".into()))))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use discovery::Snapshot;

    use super::*;
    use crate::cli::Cli;
    use crate::publish::PublishOutcome;
    use crate::state_dir::OwnFile;
    use crate::store::StoreUpdate;
    use crate::test_support::TempFiles;

    /// confgen's options, with all paths in this folder. HAProxy doesn't run.
    fn options(place: &TempFiles) -> Options {
        let paths = ["haproxy-cfg", "include", "state-dir", "error-pages", "certs", "ca-dir", "runtime-socket"];
        let paths = paths.map(|name| format!("--{name}={}", place.path(name).display()));
        let state = format!("--server-state-file={}", place.path("servers.state").display());
        Cli::parse_from(["confgen".to_owned(), state].into_iter().chain(paths)).common.options
    }

    /// Publishes what the reconciler has, and returns the generation id in haproxy.cfg.
    fn publish(reconciler: &mut Reconciler, place: &TempFiles) -> String {
        let publication = reconciler.publication();
        let outcome = publication.write_if_changed().unwrap();
        assert_eq!(outcome, PublishOutcome::Written);
        reconciler.on_published(&publication, &outcome).unwrap();
        let text = std::fs::read_to_string(place.path("haproxy-cfg")).unwrap();
        let line = text.lines().find_map(|line| line.trim().strip_prefix("setenv CONFGEN_GEN "));
        line.unwrap().to_owned()
    }

    #[test]
    fn a_publish_before_the_next_reconcile_gives_new_local_files_their_own_generation() {
        for (file, content) in [
            ("error-pages/503.html", "<html>closed</html>\n"),
            ("include/own.cfg", "defaults slow\n    mode http\n    timeout server 5m\n"),
        ] {
            let place = TempFiles::with_folders(&["include", "error-pages", "certs", "ca-dir"]);
            let update = StoreUpdate::from_snapshot(&Snapshot::default());
            let mut reconciler =
                Reconciler::open(options(&place), Box::new(|_| BTreeSet::new()), OwnFile::default()).unwrap();
            reconciler.update_desired(&update).unwrap();
            let before = publish(&mut reconciler, &place);

            place.write(file, content);
            reload_local_files(&mut reconciler).unwrap();
            // A publish was due already.
            let early = publish(&mut reconciler, &place);
            assert_ne!(early, before, "{file}: a HAProxy with the old files has this id");
            reconciler.update_desired(&update).unwrap();
            assert_eq!(reconciler.publication().generation.id, early, "{file}: the reconcile needs what was published");
        }
    }
}
