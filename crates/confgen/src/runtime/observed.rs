//! Observes the running HAProxy. Every fact is HAProxy's own answer. Changes nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use discovery::ServiceId;
use haproxy::runtime::{RowKind, Token};

use super::backends::update_fingerprint;
use super::{HaproxyControl, query_generation};
use crate::desired::{DesiredService, DesiredState};
use crate::local_files::certificates::Certificates;
use crate::render::restart_needed::{ConfigFingerprint, RestartReason};
use crate::render::view::has_section;
use crate::runtime::plan::certificates::LiveCertificates;
use crate::runtime::plan::{Backends, ListedMaps, MapPaths, PendingClaims, RuntimeState};
use crate::state_dir::StateDir;

/// The observed state of the running HAProxy.
pub(super) struct Observed {
    pub(super) generation_id: String,
    /// The fingerprint of its generation: the settings that only a restart changes.
    pub(super) fingerprint: ConfigFingerprint,
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
}

impl Observed {
    /// The reason why HAProxy needs a restart to serve this. `None` if it needs none.
    pub(super) fn restart_reason(&self, wanted: &ConfigFingerprint) -> Option<RestartReason> {
        let not_addable = self.state.not_addable();
        let Some(first) = not_addable.first() else { return self.fingerprint.restart_reason(wanted) };
        let reason = format!("{first} has a server that can't be added while HAProxy runs");
        let other =
            self.fingerprint.restart_reason(wanted).unwrap_or(RestartReason { reason, services: BTreeSet::new() });
        Some(RestartReason { services: other.services.union(not_addable).cloned().collect(), ..other })
    }

    /// Writes lines about backends into the state directory.
    pub(super) fn take_note(&self, disk: &StateDir, lines: &str) {
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
    pub(super) fn observe(&self, disk: &StateDir) -> anyhow::Result<Option<Observed>> {
        let Some(generation_id) = query_generation(&self.socket)? else { return Ok(None) };
        let Some(mut fingerprint) = disk.read_fingerprint(&generation_id) else { return Ok(None) };
        let info = self.socket.show_info()?;
        let process = format!("{}-{}", info.pid, info.started);
        let changes_backends = info.version.adds_backends() && fingerprint.reserved.is_some();
        let mut backends = Backends::default();
        if changes_backends {
            let (_, rows) = self.socket.show_backends()?;
            let rows: Vec<_> = rows.into_iter().filter(|row| row.kind == RowKind::Backend).collect();
            let unpublished = rows.iter().filter(|row| row.is_unpublished()).map(|row| row.proxy.clone()).collect();
            let live: BTreeSet<String> = rows.into_iter().map(|row| row.proxy).collect();
            update_fingerprint(&mut fingerprint, &disk.read_notes(&generation_id, &process)?, &live);
            backends = Backends::new(unpublished, fingerprint.lasting_sections());
        }
        let Some(maps) = MapPaths::find_generation(&self.socket.show_maps()?, &generation_id) else { return Ok(None) };
        let show_optional = |map: &Option<Token>| map.as_ref().map(|map| self.socket.show_map(map)).transpose();
        let listed = ListedMaps {
            hosts: self.socket.show_map(&maps.hosts)?,
            paths: self.socket.show_map(&maps.paths)?,
            passthrough: show_optional(&maps.passthrough)?.unwrap_or_default(),
            checks: show_optional(&maps.checks)?.unwrap_or_default(),
        };
        let state = RuntimeState::from_answers(&self.socket.show_servers_state()?, listed)
            .with_authorities(fingerprint.authorities.values().cloned())
            .with_preview_sections(fingerprint.preview_sections())
            .with_backends(backends);
        Ok(Some(Observed {
            generation_id,
            fingerprint,
            maps,
            state,
            process,
            changes_backends,
            may_lack_backends: false,
            pending: BTreeSet::new(),
            claiming: BTreeSet::new(),
            certificates: self.observe_certificates()?,
            applied_certificates: None,
        }))
    }
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
