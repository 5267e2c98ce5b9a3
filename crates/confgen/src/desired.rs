//! The desired state: the services, servers and routes that HAProxy should serve, decided from the keys, the policy, the last known
//! good values and HAProxy's rejections.
//!
//! Pure: no I/O, no clock. [`DesiredState::to_last_known_good`] returns what the next confgen must know.

mod claim_group;
mod claims;
pub(crate) mod domain_allowlist;
mod explain;
pub(crate) mod fingerprint;
mod good_records;
mod good_values;
mod invariants;
mod last_known_good;
pub(crate) mod names;
pub(crate) mod pairs;
mod passthrough;
mod previews;
mod quarantine;
mod records;
mod rejected;
mod resolve;
mod saved_changes;
mod servers;
mod service;
mod service_input;
mod service_states;
mod settings;
pub(crate) mod shared_map;
pub(crate) mod upstream_bound;
mod upstream_tls;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use discovery::{Host, Kind, LeftOutKeys, Networks, Profile, Service, ServiceId, Sticky, Topology, UpstreamId};

use crate::desired::domain_allowlist::DomainAllowlist;
use crate::store::removal_guard::{RetainedUpstream, UpstreamCounts, UpstreamRemoval};

pub use explain::{ServiceExplanation, UpstreamExplanation};
pub use last_known_good::{LastKnownGood, LastKnownGoodChange};
pub use servers::{Server, ServerState};
pub use service::{DesiredService, Preview, Route};
#[cfg(test)]
pub(crate) use service_input::MAX_ROUTES;
pub use settings::Settings;
pub use upstream_tls::{Authorities, Authority, Trust};

use crate::store::Changed;
use claim_group::ClaimGroup;
use claims::Claims;
use pairs::is_same;
use service_input::ServiceInput;
use service_states::ServiceStates;
use upstream_bound::UpstreamBound;

/// The limits from flags and local files. The store can't exceed them.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Ports that a TCP service can't have, each with the option or file that binds it.
    pub reserved_ports: Vec<(RangeInclusive<u16>, String)>,
    /// The names of the operator's sections, each with its file and line. A service that needs a section of such a name is
    /// quarantined.
    pub reserved_sections: BTreeMap<String, String>,
    /// Hosts that no service can have, each with the option that takes it.
    pub reserved_hosts: BTreeMap<Host, String>,
    /// The operator's named `defaults` sections, which `profile` can name.
    pub profiles: Vec<Profile>,
    /// The profiles with options of servers. A server that is added at run time takes nothing from them.
    pub server_profiles: BTreeSet<Profile>,
    /// The files of `--ca-dir`, which `verify` can name.
    pub ca_files: Authorities,
    /// The networks of upstreams. `None` allows all addresses except loopback, link-local, multicast and unspecified ones.
    pub upstream_networks: Option<Networks>,
    /// The ports that TCP services may bind. `None` allows all.
    pub tcp_ports: Option<RangeInclusive<u16>>,
    /// The hosts that services may claim. `None` allows all.
    pub domain_allowlist: Option<DomainAllowlist>,
    /// The number of upstreams that HAProxy has room for. `None` if all have room.
    pub upstream_bound: Option<UpstreamBound>,
}

/// The sections and ports that services have, which the operator's files can't have too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldNames {
    /// Sections, such as `http-shop`, of services that are served or had a good value before this process.
    pub sections: BTreeSet<String>,
    /// Sections that are served now and have no stick table.
    pub without_stick_table: BTreeSet<String>,
    /// The ports of TCP services, with the section of each.
    pub ports: BTreeMap<u16, String>,
}

/// The desired state, kept between reconciles so that a change costs what its own service costs. Every decision is a function of
/// topology, policy and last known good values. Reusing an unchanged decision changes none. A clone is cheap, because it shares
/// its parts.
#[derive(Clone, Debug, Default)]
pub struct DesiredState {
    policy: Arc<Policy>,
    services: ServiceStates,
    claims: Arc<Claims>,
    /// False until the claims were assigned from the keys of all services.
    claims_are_assigned: bool,
    /// Good values from before this process, for services that were not read yet.
    last_known_good: Arc<LastKnownGood>,
    /// Services with a name that isn't allowed. None of them is in `services`.
    forbidden: BTreeMap<ServiceId, Forbidden>,
    /// Keys that look like a service's or an upstream's but can't be parsed, with the reason.
    malformed_keys: Arc<BTreeMap<String, Box<str>>>,
    /// The account of the keys that the replica has no room for.
    left_out_keys: Arc<LeftOutKeys>,
    /// Upstreams that lost their records since the last [`DesiredState::take_removals`].
    removals: Vec<UpstreamRemoval>,
    /// Services without a key, until [`DesiredState::drop_removed`].
    removed_services: BTreeSet<ServiceId>,
    /// Upstreams that the removal guard retains. No inner map is empty.
    retained: BTreeMap<ServiceId, BTreeMap<UpstreamId, RetainedUpstream>>,
}

/// A service with its desired form before and after. `None` if there is none to serve.
pub type ServiceChange<'a> = (&'a ServiceId, Option<&'a Arc<DesiredService>>, Option<&'a Arc<DesiredService>>);

#[derive(Clone, Debug)]
struct Forbidden {
    source: Arc<Service>,
    reason: String,
}

#[derive(Clone, Debug)]
struct ServiceState {
    source: Arc<Service>,
    input: Arc<ServiceInput>,
    /// `None` if HAProxy rejects the service and never accepted it in another form.
    desired: Option<Arc<DesiredService>>,
    /// HAProxy's reason against the service with its present keys.
    rejection: Option<String>,
    /// HAProxy also rejects the last accepted form with the present servers.
    servers_rejected: bool,
    /// The form that HAProxy ran last, or the one in the last file that it accepted.
    last_accepted: Option<Arc<DesiredService>>,
    /// The form in the last file that HAProxy accepted. HAProxy runs some forms with which it would reject the file.
    last_in_file: Option<Arc<DesiredService>>,
}

impl DesiredState {
    /// A state without services, from the good values and claims of the previous confgen.
    pub fn from_last_known_good(good: LastKnownGood) -> Self {
        let claims = Arc::new(Claims::from_holders(good.claims().clone()));
        Self { claims, last_known_good: Arc::new(good), ..Self::default() }
    }

    /// The bound that the last decisions obeyed. `None` if all upstreams have room.
    pub fn upstream_bound(&self) -> Option<&UpstreamBound> {
        self.policy.upstream_bound.as_ref()
    }

    /// Replaces the policy. The next update must be of [`Changed::All`].
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = Arc::new(policy);
    }

    /// Reads the changed services and decides again whatever that may affect. Returns the services with a changed desired form.
    /// Services that are gone or forbidden are among them, and no longer in [`DesiredState::services`].
    pub fn update_services(&mut self, topology: &Topology, changed: &Changed) -> BTreeSet<ServiceId> {
        self.malformed_keys = Arc::clone(topology.malformed_keys());
        self.left_out_keys = Arc::clone(topology.left_out());
        let earlier_removals = self.removals.len();
        let before = match changed {
            Changed::All => {
                // A retained upstream outlives the keys of its service.
                self.current_sources(topology.services().keys().chain(self.services.keys()).chain(self.retained.keys()))
            }
            Changed::Services(services) => self.current_sources(services.iter()),
        };
        // The policy may have changed too, so all services are read anew.
        let reads_all = *changed == Changed::All;
        let mut is_renamed = reads_all;
        let earlier = before.keys().filter_map(|id| Some((id.clone(), Arc::clone(&self.services.get(id)?.input))));
        let earlier: Vec<(ServiceId, Arc<ServiceInput>)> = earlier.collect();
        for id in before.keys() {
            is_renamed |= self.read_service(topology, id, reads_all);
        }
        if reads_all {
            // Every key was read. From now on a good value lives as long as its key.
            self.last_known_good = Arc::default();
        }
        self.record_previous_owners(earlier_removals, &before);
        let mut affected: BTreeSet<ServiceId> = before.into_keys().collect();
        // Most changes are about upstreams. They touch no claim, and so no other service.
        if is_renamed && !reads_all && self.claims_are_assigned {
            self.reassign_claims(&mut affected, &earlier);
        } else if is_renamed {
            self.claims = Arc::new(self.assign_all_claims());
            self.claims_are_assigned = true;
            affected.extend(self.services.keys().cloned());
        }
        debug_assert_eq!(self.check_claims_of_all(), Ok(()));
        let changed = affected.iter().filter(|id| self.resolve_service(id)).cloned().collect();
        debug_assert_eq!(self.check_invariants(&affected), Ok(()));
        changed
    }

    fn assign_all_claims(&self) -> Claims {
        let inputs = self.services.iter().map(|(id, it)| (id, &*it.input));
        Claims::assign_claims(inputs, &self.claims, &self.policy)
    }

    /// Assigns the claims of the changed services anew, and of those that share a host or a port with them. Adds the services that
    /// must be resolved again.
    fn reassign_claims(&mut self, changed: &mut BTreeSet<ServiceId>, earlier: &[(ServiceId, Arc<ServiceInput>)]) {
        let group = ClaimGroup::find(&self.services, changed.iter(), earlier.iter().map(|(id, input)| (id, &**input)));
        Arc::make_mut(&mut self.claims).reassign(&group, &self.policy);
        let members: Vec<ServiceId> = group.members.into_keys().cloned().collect();
        // The accepted form of a rejected service may serve what its keys no longer claim, and what a changed service now does.
        let rejected = self.services.troubled().filter(|(_, it)| it.rejection.is_some()).map(|(id, _)| id.clone());
        changed.extend(members.into_iter().chain(rejected));
    }

    /// Takes the persisted store in, so that the first listing is compared with it. The last known good values and claims stay until
    /// that listing.
    pub fn assume_topology(&mut self, topology: &Topology) {
        // Reading all keys would drop both, but the persisted keys are not what etcd has.
        let (good, claims) = (Arc::clone(&self.last_known_good), Arc::clone(&self.claims));
        self.update_services(topology, &Changed::All);
        let assigned = std::mem::replace(&mut self.claims, claims);
        Arc::make_mut(&mut self.claims).adopt_ages(&assigned);
        (self.last_known_good, self.claims_are_assigned) = (good, false);
    }

    /// Takes the upstreams that lost their records since the last call.
    pub fn take_removals(&mut self) -> Vec<UpstreamRemoval> {
        std::mem::take(&mut self.removals)
    }

    /// Counts the upstreams with a record, in all and of these services.
    pub fn count_upstreams(&self, services: &BTreeSet<ServiceId>) -> UpstreamCounts {
        let counts = services.iter().filter_map(|id| Some((id.clone(), self.services.get(id)?.count_records())));
        UpstreamCounts {
            services: counts.collect(),
            all: self.services.values().map(ServiceState::count_records).sum(),
        }
    }

    /// Serves these upstreams of the service without records, and no others. Returns true if the service's desired form changed.
    pub fn set_retained(&mut self, id: &ServiceId, upstreams: BTreeMap<UpstreamId, RetainedUpstream>) -> bool {
        if upstreams.is_empty() {
            self.retained.remove(id);
        } else {
            self.retained.insert(id.clone(), upstreams);
        }
        let is_changed = self.resolve_service(id);
        debug_assert_eq!(self.check_invariants([id]), Ok(()));
        is_changed
    }

    /// Forgets the services that have neither a key nor a retained upstream, and returns them.
    pub fn drop_removed(&mut self) -> Vec<ServiceId> {
        let dropped: Vec<ServiceId> =
            self.removed_services.iter().filter(|id| !self.retained.contains_key(*id)).cloned().collect();
        for id in &dropped {
            self.removed_services.remove(id);
            self.services.remove(id);
        }
        dropped
    }

    /// A copy with these services only, to have HAProxy judge a file with them.
    pub fn restrict_to(&self, services: &[ServiceId]) -> Self {
        let mut some = self.clone();
        some.services.restrict_to(services);
        some
    }

    /// The account of the keys that are not followed because there are too many.
    pub fn left_out_keys(&self) -> &LeftOutKeys {
        &self.left_out_keys
    }

    /// The services to serve, by kind and name. An unchanged service stays the same `Arc`.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceId, &Arc<DesiredService>)> {
        self.services.iter().filter_map(|(id, it)| Some((id, it.desired.as_ref()?)))
    }

    /// The services with another desired form than in `before`, with the form in either. Costs what changed in between if one
    /// state came from the other.
    pub fn changes_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = ServiceChange<'a>> {
        let changes = self.services.changes_since(&before.services);
        let forms = changes.map(|(id, old, new)| (id, old.and_then(desired_form), new.and_then(desired_form)));
        forms.filter(|(_, old, new)| !is_same(*old, *new))
    }

    /// `None` if the service is gone, forbidden, or rejected without an accepted form.
    pub fn service(&self, id: &ServiceId) -> Option<&Arc<DesiredService>> {
        self.services.get(id)?.desired.as_ref()
    }

    /// The sections and ports that services have now, and the sections that they had before this process.
    pub fn held_names(&self) -> HeldNames {
        // A TCP service without a port has no section.
        let with_section = || self.services().filter(|(id, it)| id.kind == Kind::Http || !it.binds.is_empty());
        let sections = with_section().map(|(id, _)| id.to_string());
        let without_stick_table = with_section().filter(|(_, it)| it.settings.sticky != Sticky::Source);
        let claims = self.claims.holders().iter();
        let ports = claims.filter_map(|(claim, id)| Some((claims::claimed_port(claim)?, id.to_string())));
        HeldNames {
            sections: sections.chain(self.last_known_good.section_names().cloned()).collect(),
            without_stick_table: without_stick_table.map(|(id, _)| id.to_string()).collect(),
            ports: ports.collect(),
        }
    }

    /// The good values and claims, for the next confgen.
    pub fn to_last_known_good(&self) -> LastKnownGood {
        let good = self.services.iter().map(|(id, it)| (id.to_string(), it.good_values()));
        let claims = self.claims.holders().iter().map(|(claim, owner)| (claim.clone(), owner.clone()));
        LastKnownGood::new(good.collect(), claims.collect())
    }
}

fn desired_form(state: &ServiceState) -> Option<&Arc<DesiredService>> {
    state.desired.as_ref()
}

impl ServiceState {
    fn count_records(&self) -> usize {
        self.input.upstreams.len()
    }

    /// The values that count, by key.
    fn good_values(&self) -> BTreeMap<String, String> {
        self.input.good_values.collect(&self.source)
    }
}

#[cfg(test)]
pub(crate) mod tests;
