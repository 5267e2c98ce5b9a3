//! Finds manual changes over the Runtime API, and undoes those that no plan of servers and maps undoes. Decides nothing about when.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use discovery::ServiceId;
use haproxy::runtime::Socket;

use super::HaproxyControl;
use super::observed::{Answers, Observed, ask_runtime_state, served_service, tcp_sections};
use super::plan::{Drift, MapPaths};
use crate::desired::{DesiredService, DesiredState};
use crate::render::restart_needed::ConfigFingerprint;

/// The result of a look for manual changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriftCheck {
    /// HAProxy shows something that confgen did not apply.
    pub is_found: bool,
    /// The last look found the same, and the plan since then has not undone it.
    pub is_repeated: bool,
    /// The number of servers that HAProxy listed.
    pub servers: usize,
    /// The number of map entries that HAProxy listed.
    pub map_entries: usize,
}

/// A look for manual changes. Its questions may be asked beside changes of confgen's, which then wait for nothing.
pub struct DriftLook {
    socket: Socket,
    maps: MapPaths,
    /// The sections of TCP services.
    tcp_sections: BTreeSet<String>,
    /// See [`HaproxyControl::exchanges`].
    exchanges: u64,
}

/// HAProxy's answers to a look.
pub struct DriftAnswers {
    answers: Answers,
    exchanges: u64,
}

impl DriftLook {
    /// Asks HAProxy what it shows. Changes nothing.
    pub fn ask(&self) -> anyhow::Result<DriftAnswers> {
        let answers = ask_runtime_state(&self.socket, &self.maps, &self.tcp_sections)?;
        Ok(DriftAnswers { answers, exchanges: self.exchanges })
    }
}

/// The manual changes that confgen found, and the state to compare the next observation with.
#[derive(Default)]
pub(super) struct KnownDrift {
    /// What confgen had applied to a process before its observed state became stale. `None` if that isn't known.
    applied: Option<Box<Observed>>,
    /// The differences that the last look found.
    found: Drift,
    /// The differences that were logged last.
    logged: Drift,
    /// A change that only a restart undoes, and the process that had it.
    lasting: Option<(String, String)>,
    /// The number of changes that were found, by kind.
    counts: BTreeMap<&'static str, u64>,
}

impl KnownDrift {
    pub(super) fn forget_applied(&mut self) {
        self.applied = None;
    }

    pub(super) fn keep_applied(&mut self, observed: Observed) {
        self.applied = Some(Box::new(observed));
    }

    /// Compares what HAProxy shows now with what was applied to it. Logs and counts the differences.
    pub(super) fn compare(&mut self, observed: Option<&mut Observed>) {
        let applied = self.applied.take();
        let Some(observed) = observed else { return };
        if let Some(applied) = applied.filter(|it| observed.is_certain && it.process == observed.process) {
            let sections = applied.fingerprint.sections.keys();
            let drift = observed.state.find_drift(&applied.state, sections);
            self.take_in(drift);
        }
        self.judge_lasting(observed);
    }

    fn take_in(&mut self, drift: Drift) {
        // Some changes stay until a restart. The log and the metrics have each of them once.
        if !drift.is_empty() && drift != self.logged {
            for (kind, part) in drift.parts() {
                *self.counts.entry(kind).or_default() += part.len() as u64;
            }
            let [frontends, backends, servers, map_entries] = drift.parts().map(|(_, part)| part.len());
            let first = drift.first_name().unwrap_or_default();
            tracing::warn!(
                frontends,
                backends,
                servers,
                map_entries,
                first,
                "HAProxy was changed over the Runtime API"
            );
        }
        self.logged = drift;
    }

    /// A restart that leaves such a change would be followed by another one, and no end of them. It was no manual change then.
    fn judge_lasting(&mut self, observed: &mut Observed) {
        let Some(reason) = &observed.lasting_change else {
            self.lasting = None;
            return;
        };
        match &self.lasting {
            Some((known, process)) if known == reason && *process != observed.process => {
                tracing::warn!(%reason, "a restart has not undone this");
                observed.lasting_change = None;
            }
            Some(_) => {}
            None => self.lasting = Some((reason.clone(), observed.process.clone())),
        }
    }
}

impl HaproxyControl {
    /// The number of manual changes that were found since confgen's start, by kind.
    pub fn drift_counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.drift.counts
    }

    /// Begins a look for manual changes. `None` while the observed state is stale, because the next reconcile observes HAProxy anyway.
    pub fn begin_drift_look(&self) -> Option<DriftLook> {
        let observed = self.observed.as_ref()?;
        Some(DriftLook {
            socket: self.socket.clone(),
            maps: observed.maps.clone(),
            tcp_sections: tcp_sections(&observed.fingerprint),
            exchanges: self.exchanges,
        })
    }

    /// Judges HAProxy's answers. `None` if confgen has changed or observed HAProxy since the look began, because the answers may be
    /// older than that.
    pub fn judge_drift(&mut self, answers: DriftAnswers) -> Option<DriftCheck> {
        let DriftAnswers { answers, exchanges } = answers;
        let observed = self.observed.as_ref().filter(|_| self.exchanges == exchanges)?;
        let (servers, map_entries) = answers.rows;
        // The observer notices another process.
        if answers.process.as_ref() != Some(&observed.process) {
            return Some(DriftCheck { servers, map_entries, ..DriftCheck::default() });
        }
        let drift = answers.into_state().find_drift(&observed.state, observed.fingerprint.sections.keys());
        let is_found = !drift.is_empty();
        let is_repeated = is_found && drift == self.drift.found;
        if !is_found {
            // The same change may be made again, and is another one then.
            self.drift.logged = Drift::default();
        }
        self.drift.found = drift;
        Some(DriftCheck { is_found, is_repeated, servers, map_entries })
    }

    /// Undoes manual changes of facts that confgen itself never changes. Does so once for each observed state. `wanted` are the
    /// fingerprints of `desired`. Returns the number of changes.
    pub fn undo_manual_changes(&mut self, desired: &DesiredState, wanted: &ConfigFingerprint) -> anyhow::Result<usize> {
        let Some(observed) = self.observed.as_mut().filter(|observed| !observed.is_undone) else { return Ok(0) };
        observed.is_undone = true;
        let services = desired.services().filter_map(|(id, _)| Some((id, served_service(desired, id)?)));
        // A section that waits for a restart gets all of this with the restart.
        let services = services.filter(|(id, service)| observed.fingerprint.has_equal_sections(id, service, wanted));
        let services: Vec<(&ServiceId, &DesiredService)> = services.collect();
        let changes = observed.state.undo_manual_changes(&services);
        self.exchanges += 1;
        let complaints = match self.socket.apply_changes(&changes) {
            Ok(complaints) => complaints,
            Err(error) => {
                self.invalidate();
                return Err(error).context("undo manual changes");
            }
        };
        if !complaints.is_empty() {
            // No reason for a restart: HAProxy serves.
            tracing::warn!(complaints = complaints.join("; "), "HAProxy refuses to undo manual changes");
        }
        Ok(changes.len().saturating_sub(complaints.len()))
    }
}
