//! What is known of the running HAProxy: all of it asked of itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use discovery::ServiceId;

use super::{HaproxyControl, query_generation};
use crate::desired::{DesiredService, DesiredState};
use crate::local_files::certificates::Certificates;
use crate::render::restart_needed::{ConfigFingerprint, RestartReason};
use crate::render::view::has_section;
use crate::runtime::plan::certificates::LiveCertificates;
use crate::runtime::plan::{ListedMaps, MapPaths, RuntimeState};
use crate::state_dir::StateDir;

/// What is known of the running HAProxy.
pub(super) struct Observed {
    pub(super) generation_id: String,
    /// What its file lets it be changed to without a restart.
    pub(super) fingerprint: ConfigFingerprint,
    pub(super) maps: MapPaths,
    pub(super) state: RuntimeState,
    /// Services whose section it lacks, or has in another kind.
    pub(super) pending: BTreeSet<ServiceId>,
    /// What it serves TLS with; none where it has no such list.
    pub(super) certificates: Option<LiveCertificates>,
    /// The certificates that it was brought to, if it was.
    pub(super) applied_certificates: Option<Arc<Certificates>>,
}

impl Observed {
    /// What it needs a restart for to serve this; none where it doesn't.
    pub(super) fn restart_reason(&self, wanted: &ConfigFingerprint) -> Option<RestartReason> {
        let short = self.state.not_addable();
        let Some(first) = short.first() else { return self.fingerprint.restart_reason(wanted) };
        let reason = format!("{first} has a server that can't be added while HAProxy runs");
        let lack =
            self.fingerprint.restart_reason(wanted).unwrap_or(RestartReason { reason, services: BTreeSet::new() });
        Some(RestartReason { services: lack.services.union(short).cloned().collect(), ..lack })
    }

    /// Takes note of which of these services wait for a restart.
    pub(super) fn update_pending(&mut self, settled: &DesiredState, touched: &[ServiceId]) {
        for id in touched {
            if settled.service(id).is_some_and(|wanted| !self.fingerprint.has_section_for(id, wanted)) {
                self.pending.insert(id.clone());
            } else {
                self.pending.remove(id);
            }
        }
        self.state.set_pending_routes(self.pending.iter().filter_map(|id| served_service(settled, id)));
    }
}

impl HaproxyControl {
    /// What HAProxy runs, in its own words; none when nobody answers or it runs no file of ours. A question that goes
    /// wrong says neither, and is no reason for a restart.
    pub(super) fn observe(&self, disk: &StateDir) -> anyhow::Result<Option<Observed>> {
        let Some(stamp) = query_generation(&self.socket)? else { return Ok(None) };
        let Some(structure) = disk.read_fingerprint(&stamp) else { return Ok(None) };
        let Some(maps) = MapPaths::find_generation(&self.socket.show_maps()?, &stamp) else { return Ok(None) };
        let passthrough = maps.passthrough.as_ref().map(|map| self.socket.show_map(map)).transpose()?;
        let passthrough = passthrough.unwrap_or_default();
        let listed = ListedMaps {
            hosts: self.socket.show_map(&maps.hosts)?,
            paths: self.socket.show_map(&maps.paths)?,
            passthrough,
        };
        let live = RuntimeState::from_answers(&self.socket.show_servers_state()?, listed);
        let live = live
            .with_authorities(structure.authorities.values().cloned())
            .with_preview_sections(structure.preview_sections());
        let (certificates, waiting) = (self.observe_certificates()?, BTreeSet::new());
        Ok(Some(Observed {
            generation_id: stamp,
            fingerprint: structure,
            maps,
            state: live,
            pending: waiting,
            certificates,
            applied_certificates: None,
        }))
    }
}

/// The service as the file has it: one without a section of its own gets no request.
pub(super) fn served_service<'a>(settled: &'a DesiredState, id: &ServiceId) -> Option<&'a DesiredService> {
    settled.service(id).map(|wanted| &**wanted).filter(|wanted| has_section(id, wanted))
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
