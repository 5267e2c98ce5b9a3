//! What is wanted of HAProxy: the topology, less what is refused, with claims, colors and overrides decided.
//!
//! Pure. What this confgen knows besides the store comes in as [`LastKnownGood`] and [`Policy`]; what is to be known the next time
//! goes out in [`DesiredState::memory`].

mod claims;
pub(crate) mod domain_allowlist;
mod explain;
pub(crate) mod fingerprint;
mod last_known_good;
pub(crate) mod names;
mod passthrough;
mod previews;
mod quarantine;
mod records;
mod rejected;
mod resolve;
mod servers;
mod service;
mod service_input;
mod settings;
pub(crate) mod upstream_bound;
mod upstream_tls;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use discovery::{Host, Kind, Networks, Profile, Service, ServiceId, Sticky, Topology, UpstreamId};

use crate::desired::domain_allowlist::DomainAllowlist;
use crate::store::removal_guard::{RetainedUpstream, UpstreamCounts, UpstreamRemoval};

pub use explain::{ServiceExplanation, UpstreamExplanation};
pub use last_known_good::LastKnownGood;
pub use servers::{Server, ServerState};
pub use service::{DesiredService, Preview, Route};
#[cfg(test)]
pub(crate) use service_input::MAX_ROUTES;
pub use settings::Settings;
pub use upstream_tls::{Authorities, Authority, Trust};

use crate::store::Changed;
use claims::Claims;
use service_input::ServiceInput;
use upstream_bound::UpstreamBound;

/// What a store may not ask for, whatever it says.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Ports that are bound already, by whom: a TCP service can't have them.
    pub reserved_ports: Vec<(RangeInclusive<u16>, String)>,
    /// The names of the operator's sections, each with its file and line. A service whose section would have such a name is
    /// quarantined.
    pub reserved_sections: BTreeMap<String, String>,
    /// Hosts that are taken already, by what: no service can have them.
    pub reserved_hosts: BTreeMap<Host, String>,
    /// The operator's named `defaults` sections: what `profile` may name.
    pub profiles: Vec<Profile>,
    /// Those of them that say something of servers.
    pub server_profiles: BTreeSet<Profile>,
    /// The files of authorities: what `verify` may name.
    pub ca_files: Authorities,
    /// Where upstreams may be; none is anywhere but loopback, link-local, multicast and unspecified addresses.
    pub upstream_networks: Option<Networks>,
    /// The ports that TCP services may bind; none is any.
    pub tcp_ports: Option<RangeInclusive<u16>>,
    /// The hosts that services may claim; none is any.
    pub domain_allowlist: Option<DomainAllowlist>,
    /// The upstreams that HAProxy has room for. `None` if all have room.
    pub upstream_bound: Option<UpstreamBound>,
}

/// The sections and ports that services have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldNames {
    /// The sections' names: `http-shop`.
    pub sections: BTreeSet<String>,
    /// Those of them that are served now and have no stick table.
    pub without_stick_table: BTreeSet<String>,
    /// The ports of TCP services, with the section of each.
    pub ports: BTreeMap<u16, String>,
}

/// What was decided, kept so that a change costs what its own service costs. Every decision is a function of the
/// topology, the limits and what was remembered; being kept changes none of them. A clone costs little: it shares.
#[derive(Clone, Debug, Default)]
pub struct DesiredState {
    policy: Policy,
    services: BTreeMap<ServiceId, ServiceState>,
    claims: Arc<Claims>,
    /// Good values from before this process, for services that it has not read yet.
    last_known_good: Arc<LastKnownGood>,
    /// Services that may not be here, with the reason.
    forbidden: BTreeMap<ServiceId, Forbidden>,
    /// Keys that were meant for a service or an upstream and are none, with the reason.
    malformed_keys: Arc<BTreeMap<String, Box<str>>>,
    /// Upstreams whose keys have gone since they were last asked for.
    removals: Vec<UpstreamRemoval>,
    /// Services without a key, until they are buried.
    removed_services: BTreeSet<ServiceId>,
    /// Upstreams without a key that are served all the same.
    retained: BTreeMap<ServiceId, BTreeMap<UpstreamId, RetainedUpstream>>,
}

#[derive(Clone, Debug)]
struct Forbidden {
    source: Arc<Service>,
    reason: String,
}

#[derive(Clone, Debug)]
struct ServiceState {
    source: Arc<Service>,
    input: Arc<ServiceInput>,
    /// None where HAProxy refuses the service, and never took it in another form.
    desired: Option<Arc<DesiredService>>,
    /// What HAProxy says against it as it stands in the store.
    rejection: Option<String>,
    /// HAProxy refuses its last good form with the servers of now, too.
    servers_rejected: bool,
    /// Its form in the last file that HAProxy took.
    last_accepted: Option<Arc<DesiredService>>,
}

impl DesiredState {
    /// Nothing settled yet, but what was remembered.
    pub fn from_last_known_good(memory: LastKnownGood) -> Self {
        let claims = Arc::new(Claims::from_holders(memory.claims().clone()));
        Self { claims, last_known_good: Arc::new(memory), ..Self::default() }
    }

    /// The bound on upstreams that counts.
    pub fn upstream_bound(&self) -> Option<&UpstreamBound> {
        self.policy.upstream_bound.as_ref()
    }

    /// Takes new limits. The next update has to be of everything.
    pub fn set_policy(&mut self, limits: Policy) {
        self.policy = limits;
    }

    /// Decides anew what has changed. Says for which services the outcome is another one; those that are gone, or that
    /// the limits forbid, are among them and no longer in [`DesiredState::services`].
    pub fn update_services(&mut self, topology: &Topology, changed: &Changed) -> BTreeSet<ServiceId> {
        self.malformed_keys = Arc::clone(topology.malformed_keys());
        let mut touched = BTreeSet::new();
        let mut renamed = *changed == Changed::All;
        let departed = self.removals.len();
        let before = match changed {
            Changed::All => {
                self.current_sources(topology.services().keys().chain(self.services.keys()).chain(self.retained.keys()))
            }
            Changed::Services(services) => self.current_sources(services.iter()),
        };
        match changed {
            Changed::All => {
                for id in before.keys() {
                    renamed |= self.read_service(topology, id, true);
                    touched.insert(id.clone());
                }
                // All that there is has been read: a value lives on with its key alone.
                self.last_known_good = Arc::default();
            }
            Changed::Services(services) => {
                for id in services {
                    renamed |= self.read_service(topology, id, false);
                    touched.insert(id.clone());
                }
            }
        }
        self.record_previous_owners(departed, &before);
        if renamed {
            let readings = self.services.iter().map(|(id, it)| (id, &*it.input));
            self.claims = Arc::new(Claims::assign_claims(readings, &self.claims, &self.policy));
            touched.extend(self.services.keys().cloned());
        }
        touched.retain(|id| self.resolve_service(id));
        touched
    }

    /// Takes the store as it was before this process, to compare the first listing with. What is remembered besides stays
    /// remembered until then.
    pub fn assume_topology(&mut self, topology: &Topology) {
        let (remembered, claims) = (Arc::clone(&self.last_known_good), Arc::clone(&self.claims));
        self.update_services(topology, &Changed::All);
        (self.last_known_good, self.claims) = (remembered, claims);
    }

    /// The upstreams whose keys have gone since this was last asked.
    pub fn take_removals(&mut self) -> Vec<UpstreamRemoval> {
        std::mem::take(&mut self.removals)
    }

    /// How many upstreams there are, in all and of these services.
    pub fn count_upstreams(&self, services: &BTreeSet<ServiceId>) -> UpstreamCounts {
        let count = |it: &ServiceState| it.input.upstreams.len();
        let of = services.iter().filter_map(|id| Some((id.clone(), count(self.services.get(id)?))));
        UpstreamCounts { services: of.collect(), all: self.services.values().map(count).sum() }
    }

    /// These upstreams of the service are served although they have no key. True if that changes anything.
    pub fn set_retained(&mut self, id: &ServiceId, upstreams: BTreeMap<UpstreamId, RetainedUpstream>) -> bool {
        if upstreams.is_empty() {
            self.retained.remove(id);
        } else {
            self.retained.insert(id.clone(), upstreams);
        }
        self.resolve_service(id)
    }

    /// Forgets the services of which nothing is left, neither a key nor an upstream that is kept. Says which.
    pub fn drop_removed(&mut self) -> Vec<ServiceId> {
        let buried: Vec<ServiceId> =
            self.removed_services.iter().filter(|id| !self.retained.contains_key(*id)).cloned().collect();
        for id in &buried {
            self.removed_services.remove(id);
            self.services.remove(id);
        }
        buried
    }

    /// The same with these services alone.
    pub fn restrict_to(&self, services: &[ServiceId]) -> Self {
        let mut some = self.clone();
        some.services.retain(|id, _| services.contains(id));
        some
    }

    /// The services to serve, by kind and name. One that didn't change is the very same `Arc`.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceId, &Arc<DesiredService>)> {
        self.services.iter().filter_map(|(id, it)| Some((id, it.desired.as_ref()?)))
    }

    /// One service; none if it is gone or forbidden.
    pub fn service(&self, id: &ServiceId) -> Option<&Arc<DesiredService>> {
        self.services.get(id)?.desired.as_ref()
    }

    /// The sections and ports that services have now, and those that they had before this process.
    pub fn held_names(&self) -> HeldNames {
        let has_section =
            |(id, wanted): &(&ServiceId, &Arc<DesiredService>)| id.kind == Kind::Http || !wanted.binds.is_empty();
        let sections = self.services().filter(has_section).map(|(id, _)| id.to_string());
        let without_table = self.services().filter(has_section).filter(|(_, it)| it.settings.sticky != Sticky::Source);
        let ports = self.claims.holders().iter();
        let ports = ports.filter_map(|(claim, id)| Some((claims::claimed_port(claim)?, id.to_string())));
        HeldNames {
            sections: sections.chain(self.last_known_good.section_names().cloned()).collect(),
            without_stick_table: without_table.map(|(id, _)| id.to_string()).collect(),
            ports: ports.collect(),
        }
    }

    /// What has to be remembered over a restart of confgen.
    pub fn to_last_known_good(&self) -> LastKnownGood {
        let good = self.services.iter().map(|(id, it)| (id.to_string(), it.input.good_values.clone()));
        LastKnownGood::new(good.collect(), self.claims.holders().clone())
    }
}

#[cfg(test)]
pub(crate) mod tests;
