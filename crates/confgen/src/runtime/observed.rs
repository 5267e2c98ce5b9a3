//! What is known of the running HAProxy: all of it asked of itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use discovery::ServiceId;

use super::{HaproxyControl, generation};
use crate::desired::{DesiredService, DesiredState};
use crate::local_files::certificates::Certificates;
use crate::render::restart_needed::{ConfigFingerprint, RestartReason};
use crate::render::view::has_section;
use crate::runtime::plan::certificates::LiveCertificates;
use crate::runtime::plan::{Listed, MapPaths, RuntimeState};
use crate::state_dir::StateDir;

/// What is known of the running HAProxy.
pub(super) struct Observed {
    pub(super) stamp: String,
    /// What its file lets it be changed to without a restart.
    pub(super) structure: ConfigFingerprint,
    pub(super) maps: MapPaths,
    pub(super) live: RuntimeState,
    /// Services whose section it lacks, or has in another kind.
    pub(super) waiting: BTreeSet<ServiceId>,
    /// What it serves TLS with; none where it has no such list.
    pub(super) certificates: Option<LiveCertificates>,
    /// The certificates that it was brought to, if it was.
    pub(super) brought_to: Option<Arc<Certificates>>,
}

impl Observed {
    /// What it needs a restart for to serve this; none where it doesn't.
    pub(super) fn lacks(&self, wanted: &ConfigFingerprint) -> Option<RestartReason> {
        let short = self.live.short();
        let Some(first) = short.first() else { return self.structure.lacks(wanted) };
        let reason = format!("{first} has a server that can't be added while HAProxy runs");
        let lack = self.structure.lacks(wanted).unwrap_or(RestartReason { reason, services: BTreeSet::new() });
        Some(RestartReason { services: lack.services.union(short).cloned().collect(), ..lack })
    }

    /// Takes note of which of these services wait for a restart.
    pub(super) fn wait(&mut self, settled: &DesiredState, touched: &[ServiceId]) {
        for id in touched {
            if settled.service(id).is_some_and(|wanted| !self.structure.fits(id, wanted)) {
                self.waiting.insert(id.clone());
            } else {
                self.waiting.remove(id);
            }
        }
        self.live.awaiting(self.waiting.iter().filter_map(|id| served(settled, id)));
    }
}

impl HaproxyControl {
    /// What HAProxy runs, in its own words; none when nobody answers or it runs no file of ours. A question that goes
    /// wrong says neither, and is no reason for a restart.
    pub(super) fn look(&self, disk: &StateDir) -> anyhow::Result<Option<Observed>> {
        let Some(stamp) = generation(&self.socket)? else { return Ok(None) };
        let Some(structure) = disk.structure(&stamp) else { return Ok(None) };
        let Some(maps) = MapPaths::among(&self.socket.maps()?, &stamp) else { return Ok(None) };
        let passthrough = maps.passthrough.as_ref().map(|map| self.socket.map(map)).transpose()?;
        let passthrough = passthrough.unwrap_or_default();
        let listed = Listed { hosts: self.socket.map(&maps.hosts)?, paths: self.socket.map(&maps.paths)?, passthrough };
        let live = RuntimeState::observed(&self.socket.servers_state()?, listed);
        let live = live.trusting(structure.authorities.values().cloned()).previewing(structure.previews());
        let (certificates, waiting) = (self.look_at_certificates()?, BTreeSet::new());
        Ok(Some(Observed { stamp, structure, maps, live, waiting, certificates, brought_to: None }))
    }
}

/// The service as the file has it: one without a section of its own gets no request.
pub(super) fn served<'a>(settled: &'a DesiredState, id: &ServiceId) -> Option<&'a DesiredService> {
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
            served(&settled, &id).is_some()
        };
        let upstream = "tcp-services/db/upstreams/1 10.0.0.1:3306\n";
        assert!(is_served(&format!("{upstream} tcp-services/db/ports 3306")));
        assert!(!is_served(upstream));
    }
}
