//! Observes the running HAProxy. Every fact is HAProxy's own answer. Changes nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use discovery::ServiceId;
use haproxy::runtime::{Info, RowKind, Socket, Token};

use super::backends::update_fingerprint;
use super::{GenerationFiles, HaproxyControl, query_generation};
use crate::desired::{DesiredService, DesiredState};
use crate::local_files::certificates::Certificates;
use crate::render::restart_needed::{ConfigFingerprint, RestartReason, SectionDifferences};
use crate::render::view::has_section;
use crate::runtime::plan::certificates::LiveCertificates;
use crate::runtime::plan::{Backends, ListedMaps, MapPaths, PendingClaims, RuntimeState};

/// The observed state of the running HAProxy.
pub(super) struct Observed {
    pub(super) generation_id: String,
    /// The fingerprint of its generation: the settings that only a restart changes.
    pub(super) fingerprint: ConfigFingerprint,
    /// The sections in which the last wanted generation differed from this one.
    pub(super) differences: SectionDifferences,
    pub(super) maps: MapPaths,
    pub(super) state: RuntimeState,
    /// The process that answered, as `<pid>-<start>`.
    pub(super) process: String,
    /// HAProxy can add and delete backends while it runs, and this generation says which.
    pub(super) changes_backends: bool,
    /// No plan of everything has added the backends that this HAProxy lacks.
    pub(super) may_lack_backends: bool,
    /// Services without a fitting section in this generation.
    pub(super) pending: BTreeSet<ServiceId>,
    /// Services with a claim that HAProxy can't serve before a restart: a route, an expression or a port. `pending` is among them.
    pub(super) claiming: BTreeSet<ServiceId>,
    /// `None` if HAProxy runs without confgen's crt-list.
    pub(super) certificates: Option<LiveCertificates>,
    /// The certificates that confgen applied last. `None` before that.
    pub(super) applied_certificates: Option<Arc<Certificates>>,
    /// The manual changes that no plan of servers and maps undoes have been undone.
    pub(super) is_undone: bool,
    /// One process gave all answers, and it takes new connections.
    pub(super) is_certain: bool,
    /// A manual change that only a restart undoes.
    pub(super) lasting_change: Option<String>,
}

/// HAProxy's answers about what changes while it runs.
pub(super) struct Answers {
    /// The process that answered all questions, as `<pid>-<start>`. `None` if two processes answered, or one that finishes its last
    /// requests.
    pub(super) process: Option<String>,
    pub(super) state: RuntimeState,
    /// The names of all backends.
    backends: BTreeSet<String>,
    /// The backends that get no request (3.4).
    unpublished: BTreeSet<String>,
    /// The numbers of servers and of map entries that HAProxy listed.
    pub(super) rows: (usize, usize),
}

impl Observed {
    /// The reason why HAProxy needs a restart to serve this. `None` if it needs none.
    pub(super) fn restart_reason(&mut self, wanted: &ConfigFingerprint) -> Option<RestartReason> {
        let without_services = |reason: String| RestartReason { reason, services: BTreeSet::new() };
        let reason = self.fingerprint.find_restart_reason(wanted, &mut self.differences);
        debug_assert_eq!(reason, self.fingerprint.restart_reason(wanted), "a difference was missed");
        let reason = reason.or_else(|| self.lasting_change.clone().map(without_services));
        let not_addable = self.state.not_addable();
        let Some(first) = not_addable.first() else { return reason };
        let words = format!("{first} has a server that can't be added while HAProxy runs");
        let other = reason.unwrap_or_else(|| without_services(words));
        Some(RestartReason { services: other.services.union(not_addable).cloned().collect(), ..other })
    }

    /// Writes lines about backends into the state directory.
    pub(super) fn take_note(&self, disk: &dyn GenerationFiles, lines: &str) {
        // Without them the next confgen restarts HAProxy, which is no reason to keep a service waiting now.
        if let Err(error) = disk.append_notes(&self.generation_id, &self.process, lines) {
            tracing::warn!(%error, "can't note which backends HAProxy has");
        }
    }

    /// True if confgen has applied exactly these certificates.
    pub(super) fn has_applied(&self, certificates: &Arc<Certificates>) -> bool {
        self.applied_certificates.as_ref().is_some_and(|applied| Arc::ptr_eq(applied, certificates))
    }

    /// Notes which of these services wait for a restart.
    pub(super) fn update_pending(&mut self, desired: &DesiredState, touched: &[ServiceId]) {
        for id in touched {
            let wanted = desired.service(id);
            let is_pending = wanted.is_some_and(|wanted| !self.fingerprint.has_section_for(id, wanted));
            let is_claiming = is_pending || wanted.is_some_and(|wanted| self.lacks_claim(id, wanted));
            for (services, is_in) in [(&mut self.pending, is_pending), (&mut self.claiming, is_claiming)] {
                if is_in {
                    services.insert(id.clone());
                } else {
                    services.remove(id);
                }
            }
        }
        let claiming = self.claiming.iter().filter_map(|id| Some((id, served_service(desired, id)?)));
        self.state.set_pending_claims(PendingClaims::from_services(claiming, &self.fingerprint));
    }

    fn lacks_claim(&self, id: &ServiceId, wanted: &DesiredService) -> bool {
        let lacks_port = wanted.ports().any(|port| !self.fingerprint.has_port(id, port));
        lacks_port || self.fingerprint.lacks_expression(id, wanted)
    }
}

impl HaproxyControl {
    /// Asks HAProxy for all that it runs. `None` if HAProxy doesn't answer, or runs no file of confgen's: both need a restart. A
    /// question that fails midway is an error, which needs none.
    pub(super) fn observe(&self, disk: &dyn GenerationFiles) -> anyhow::Result<Option<Observed>> {
        let Some(generation_id) = query_generation(&self.socket)? else { return Ok(None) };
        let Some(mut fingerprint) = disk.read_fingerprint(&generation_id) else { return Ok(None) };
        let info = self.socket.show_info()?;
        let process = process_of(&info);
        let changes_backends = info.version.adds_backends() && fingerprint.reserved.is_some();
        let Some(maps) = MapPaths::find_generation(&self.socket.show_maps()?, &generation_id) else { return Ok(None) };
        let answers = ask_runtime_state(&self.socket, &maps, &tcp_sections(&fingerprint))?;
        let is_certain = answers.process.as_ref() == Some(&process);
        // A process that finishes its last requests has closed its frontends.
        let lasting_change = if is_certain { find_lasting_change(&answers.state, disk, &generation_id) } else { None };
        let mut backends = Backends::default();
        if changes_backends {
            update_fingerprint(&mut fingerprint, &disk.read_notes(&generation_id, &process)?, &answers.backends);
            backends = Backends::new(answers.unpublished, fingerprint.lasting_sections());
        }
        let state = answers
            .state
            .with_authorities(fingerprint.authorities.values().cloned())
            .with_preview_sections(fingerprint.preview_sections())
            .with_backends(backends);
        Ok(Some(Observed {
            generation_id,
            fingerprint,
            differences: SectionDifferences::default(),
            maps,
            state,
            process,
            changes_backends,
            may_lack_backends: false,
            pending: BTreeSet::new(),
            claiming: BTreeSet::new(),
            certificates: self.observe_certificates()?,
            applied_certificates: None,
            is_undone: false,
            is_certain,
            lasting_change,
        }))
    }
}

/// The names of the generation's TCP sections.
pub(super) fn tcp_sections(fingerprint: &ConfigFingerprint) -> BTreeSet<String> {
    fingerprint.ports.keys().cloned().collect()
}

/// Asks HAProxy for its frontends, servers and map entries. With thousands of servers that takes a tenth of a second.
pub(super) fn ask_runtime_state(
    socket: &Socket,
    maps: &MapPaths,
    tcp_sections: &BTreeSet<String>,
) -> anyhow::Result<Answers> {
    let before = socket.show_info()?;
    let show_optional = |map: &Option<Token>| map.as_ref().map(|map| socket.show_map(map)).transpose();
    let listed = ListedMaps {
        hosts: socket.show_map(&maps.hosts)?,
        paths: socket.show_map(&maps.paths)?,
        passthrough: show_optional(&maps.passthrough)?.unwrap_or_default(),
        checks: show_optional(&maps.checks)?.unwrap_or_default(),
    };
    let expressions = show_optional(&maps.urls)?.unwrap_or_default();
    let servers = socket.show_servers_state()?;
    let counts = (servers.servers.len(), listed.count() + expressions.len());
    let mut state = RuntimeState::from_answers(&servers, listed);
    // Before the next answer: both have megabytes if there are thousands of servers.
    drop(servers);
    let (mut backends, mut unpublished) = (BTreeSet::new(), BTreeSet::new());
    socket.read_facts(|row| {
        state.take_row(&row, tcp_sections);
        if row.kind == RowKind::Backend && row.is_unpublished() {
            unpublished.insert(row.proxy.to_owned());
        }
        if row.kind == RowKind::Backend {
            backends.insert(row.proxy.to_owned());
        }
    })?;
    let after = socket.show_info()?;
    let is_certain = process_of(&before) == process_of(&after) && !after.stopping;
    // HAProxy limits a frontend of the file to the connections of the whole process, if its section sets no limit.
    let default_limit = after.limits.first_connections;
    Ok(Answers {
        process: is_certain.then(|| process_of(&after)),
        backends,
        unpublished,
        rows: counts,
        state: state.with_default_limit(default_limit).with_expressions(expressions),
    })
}

impl Answers {
    /// The state, without what only the state directory knows.
    pub(super) fn into_state(self) -> RuntimeState {
        self.state.with_backends(Backends::new(self.unpublished, BTreeSet::new()))
    }
}

/// Finds a manual change that only a restart undoes.
fn find_lasting_change(state: &RuntimeState, disk: &dyn GenerationFiles, generation_id: &str) -> Option<String> {
    if let Some(name) = state.find_shut_down() {
        return Some(format!("frontend {name} was shut down over the Runtime API"));
    }
    let running = state.expressions().iter().map(|(regex, section)| format!("{regex} {section}\n"));
    let is_changed = running.collect::<String>() != disk.read_expressions(generation_id)?;
    is_changed.then(|| "urls.map was changed over the Runtime API".to_owned())
}

/// The name of a process that no other process of this host has: `<pid>-<start>`.
pub(super) fn process_of(info: &Info) -> String {
    format!("{}-{}", info.pid, info.started)
}

/// The service, if the file has a section for it. A TCP service without a port has none.
pub(super) fn served_service<'a>(desired: &'a DesiredState, id: &ServiceId) -> Option<&'a DesiredService> {
    desired.service(id).map(|wanted| &**wanted).filter(|wanted| has_section(id, wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_withdrawn_is_served_no_longer() {
        use crate::desired::tests::{settle, topology};
        let is_served = |store: &str| {
            let settled = settle(&topology(store), &Default::default(), &Default::default());
            let id = settled.services().next().unwrap().0.clone();
            served_service(&settled, &id).is_some()
        };
        let upstream = "tcp-services/db/upstreams/1 10.0.0.1:3306\n";
        assert!(is_served(&format!("{upstream} tcp-services/db/ports 3306")));
        assert!(!is_served(upstream));
    }
}
