//! What is known of the running HAProxy: all of it asked of itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use discovery::ServiceId;

use super::{Proxy, generation};
use crate::desired::{Settled, Wanted};
use crate::local_files::certificates::Certificates;
use crate::render::restart_needed::{Lack, Structure};
use crate::render::view::has_section;
use crate::runtime::plan::certificates::LiveCertificates;
use crate::runtime::plan::{Listed, Live, MapPaths};
use crate::state_dir::Disk;

/// What is known of the running HAProxy.
pub(super) struct Known {
    pub(super) stamp: String,
    /// What its file lets it be changed to without a restart.
    pub(super) structure: Structure,
    pub(super) maps: MapPaths,
    pub(super) live: Live,
    /// Services whose section it lacks, or has in another kind.
    pub(super) waiting: BTreeSet<ServiceId>,
    /// What it serves TLS with; none where it has no such list.
    pub(super) certificates: Option<LiveCertificates>,
    /// The certificates that it was brought to, if it was.
    pub(super) brought_to: Option<Arc<Certificates>>,
}

impl Known {
    /// What it needs a restart for to serve this; none where it doesn't.
    pub(super) fn lacks(&self, wanted: &Structure) -> Option<Lack> {
        let short = self.live.short();
        let Some(first) = short.first() else { return self.structure.lacks(wanted) };
        let reason = format!("{first} has a server that can't be added while HAProxy runs");
        let lack = self.structure.lacks(wanted).unwrap_or(Lack { reason, services: BTreeSet::new() });
        Some(Lack { services: lack.services.union(short).cloned().collect(), ..lack })
    }

    /// Takes note of which of these services wait for a restart.
    pub(super) fn wait(&mut self, settled: &Settled, touched: &[ServiceId]) {
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

impl Proxy {
    /// What HAProxy runs, in its own words; none when nobody answers or it runs no file of ours. A question that goes
    /// wrong says neither, and is no reason for a restart.
    pub(super) fn look(&self, disk: &Disk) -> anyhow::Result<Option<Known>> {
        let Some(stamp) = generation(&self.socket)? else { return Ok(None) };
        let Some(structure) = disk.structure(&stamp) else { return Ok(None) };
        let Some(maps) = MapPaths::among(&self.socket.maps()?, &stamp) else { return Ok(None) };
        let passthrough = maps.passthrough.as_ref().map(|map| self.socket.map(map)).transpose()?;
        let passthrough = passthrough.unwrap_or_default();
        let listed = Listed { hosts: self.socket.map(&maps.hosts)?, paths: self.socket.map(&maps.paths)?, passthrough };
        let live = Live::observed(&self.socket.servers_state()?, listed);
        let live = live.trusting(structure.authorities.values().cloned()).previewing(structure.previews());
        let (certificates, waiting) = (self.look_at_certificates()?, BTreeSet::new());
        Ok(Some(Known { stamp, structure, maps, live, waiting, certificates, brought_to: None }))
    }
}

/// The service as the file has it: one without a section of its own gets no request.
pub(super) fn served<'a>(settled: &'a Settled, id: &ServiceId) -> Option<&'a Wanted> {
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
