//! Claims: one host + path, or one port, belongs to one service. Pure.
//!
//! The owner of a claim keeps it as long as the key that claims it lives. A key that was deleted and written again is a new one: a
//! balancer that saw only the second state of the store must decide as one that saw both. A claim without an owner goes to the key
//! with the lower create revision; if one transaction wrote both keys, to the service with the name that sorts first. A service that
//! passes TLS through claims whole hosts: it gets a host alone, or leaves the host to the services that claim paths of it.

use std::collections::{BTreeMap, BTreeSet};

use discovery::{Bind, Domain, ServiceId, Tls};

use super::shared_map::SharedMap;
use super::{Policy, Route};
use crate::desired::claim_group::ClaimGroup;
use crate::desired::service_input::{KeyOrigin, ServiceInput};

/// The owner of each claim, and the reasons against the other claimants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Claims {
    /// By claim (`a.com/api/`, `:3306`).
    holders: SharedMap<String, ServiceId>,
    /// By claim, the create revision of the owner's key. A claim that an earlier confgen assigned may have none.
    since: SharedMap<String, i64>,
    /// By key.
    refusals: BTreeMap<String, Vec<String>>,
    /// By service, the services that own something that it claims too.
    rivals: BTreeMap<ServiceId, BTreeSet<ServiceId>>,
    /// Domains of services without TLS.
    plain_domains: SharedMap<Domain, ()>,
}

/// By claim, the services that claim it, each with the key that does.
type Claimants<'a> = BTreeMap<String, Vec<(&'a KeyOrigin, &'a ServiceId)>>;

impl Claims {
    /// The claims that a previous confgen assigned. They decide only about the first [`Claims::assign_claims`].
    pub(super) fn from_holders(holders: BTreeMap<String, ServiceId>) -> Self {
        Self { holders: holders.into_iter().collect(), ..Self::default() }
    }

    /// Assigns every claim of these services. `before` are the claims as they were assigned last.
    pub(super) fn assign_claims<'a>(
        inputs: impl Iterator<Item = (&'a ServiceId, &'a ServiceInput)>,
        before: &Self,
        policy: &Policy,
    ) -> Self {
        let mut claims = Self::default();
        let mut claimants = Claimants::new();
        let inputs: Vec<(&ServiceId, &ServiceInput)> = inputs.collect();
        let whole_hosts = resolve_whole_hosts(&inputs, before);
        for (id, input) in inputs {
            claims.collect_routes(id, input, &whole_hosts, policy, &mut claimants);
            claims.collect_ports(id, input, policy, &mut claimants);
            if input.settings.tls == Tls::Off {
                claims.plain_domains.extend(input.claimed_domains().map(|(_, domain)| (domain.clone(), ())));
            }
        }
        for (claim, claimants) in claimants {
            claims.assign_claim(claim, claimants, before);
        }
        claims
    }

    /// Assigns every claim of a group anew. The claims of the other services depend on none of the group's.
    pub(super) fn reassign(&mut self, group: &ClaimGroup, policy: &Policy) {
        let inputs = group.members.iter().map(|(id, input)| (*id, *input));
        let assigned = Self::assign_claims(inputs, self, policy);
        for input in group.inputs() {
            self.forget_claims(input);
        }
        self.rivals.retain(|id, _| !group.contains(id));
        for domain in group.domains() {
            self.plain_domains.remove(*domain);
        }
        self.holders.extend(assigned.holders.iter().map(|(claim, owner)| (claim.clone(), owner.clone())));
        self.since.extend(assigned.since.iter().map(|(claim, since)| (claim.clone(), *since)));
        self.refusals.extend(assigned.refusals);
        self.rivals.extend(assigned.rivals);
        self.plain_domains.extend(assigned.plain_domains.keys().map(|domain| (domain.clone(), ())));
    }

    fn forget_claims(&mut self, input: &ServiceInput) {
        for (origin, domain) in input.claimed_domains() {
            self.refusals.remove(&origin.key);
            for route in routes_of_domain(input, domain) {
                self.forget_claim(&route_claim_key(&route));
            }
        }
        self.refusals.remove(&input.ports_origin.key);
        for bind in &input.ports {
            self.forget_claim(&port_claim_key(*bind));
        }
    }

    fn forget_claim(&mut self, claim: &String) {
        self.holders.remove(claim);
        self.since.remove(claim);
    }

    /// True if the service has the claim, by a key of this create revision.
    fn is_holder(&self, claim: &String, id: &ServiceId, since: i64) -> bool {
        self.holders.get(claim) == Some(id) && self.since.get(claim).is_none_or(|known| *known == since)
    }

    /// Takes over since when the owners have their claims, from claims that were assigned from the persisted store.
    pub(super) fn adopt_ages(&mut self, assigned: &Self) {
        let is_same = |claim: &&String| assigned.holders.get(*claim) == self.holders.get(*claim);
        self.since = self
            .holders
            .keys()
            .filter(is_same)
            .filter_map(|claim| Some((claim.clone(), *assigned.since.get(claim)?)))
            .collect();
    }

    fn collect_routes<'a>(
        &mut self,
        id: &'a ServiceId,
        input: &'a ServiceInput,
        whole_hosts: &BTreeMap<&Domain, HostOwner>,
        policy: &Policy,
        claimants: &mut Claimants<'a>,
    ) {
        for (origin, domain) in input.claimed_domains() {
            if let Some(reason) = reserved_host_reason(domain, policy) {
                self.add_refusal(origin, reason);
            }
        }
        let free = input.claimed_domains().filter(|(_, domain)| reserved_host_reason(domain, policy).is_none());
        for (origin, domain) in free {
            for route in routes_of_domain(input, domain) {
                match whole_hosts.get(domain) {
                    Some(HostOwner::Whole(owner)) if *owner != id => {
                        let reason = format!("{domain} belongs to {owner}, which passes all of it through");
                        self.add_refusal(origin, reason);
                        self.add_rival(id, owner);
                    }
                    Some(HostOwner::Parts(owner)) if input.settings.passes_through() => {
                        let reason = format!("{domain} has another service, and passthrough takes a host whole");
                        self.add_refusal(origin, reason);
                        self.add_rival(id, owner);
                    }
                    _ => claimants.entry(route_claim_key(&route)).or_default().push((origin, id)),
                }
            }
        }
    }

    fn collect_ports<'a>(
        &mut self,
        id: &'a ServiceId,
        input: &'a ServiceInput,
        policy: &Policy,
        claimants: &mut Claimants<'a>,
    ) {
        for bind in &input.ports {
            match unavailable_port_reason(bind.port, policy) {
                Some(reason) => self.add_refusal(&input.ports_origin, reason),
                None => claimants.entry(port_claim_key(*bind)).or_default().push((&input.ports_origin, id)),
            }
        }
    }

    /// Gives one claim to its holder if that still claims it, else to the oldest claimant.
    fn assign_claim(&mut self, claim: String, mut claimants: Vec<(&KeyOrigin, &ServiceId)>, before: &Self) {
        claimants.sort_by_key(|(origin, id)| (origin.since, *id));
        // A new claimant with an older key takes nothing from an owner that serves.
        let holder = claimants.iter().find(|(origin, id)| before.is_holder(&claim, id, origin.since));
        let Some((origin, owner)) = holder.or(claimants.first()).copied() else { return };
        self.since.insert(claim.clone(), origin.since);
        for (origin, id) in claimants.iter().filter(|(_, id)| *id != owner) {
            self.add_refusal(origin, format!("{claim} belongs to {owner}, which had it first"));
            self.add_rival(id, owner);
        }
        self.holders.insert(claim, owner.clone());
    }

    fn add_refusal(&mut self, origin: &KeyOrigin, reason: String) {
        self.refusals.entry(origin.key.clone()).or_default().push(reason);
    }

    fn add_rival(&mut self, id: &ServiceId, owner: &ServiceId) {
        self.rivals.entry(id.clone()).or_default().insert(owner.clone());
    }

    /// The services that own something that this one claims too. `None` if it owns all that it claims.
    pub(super) fn rivals_of(&self, id: &ServiceId) -> Option<&BTreeSet<ServiceId>> {
        self.rivals.get(id)
    }

    /// The reasons why the key's service doesn't own all that the key claims.
    pub(super) fn refusals_of(&self, key: &str) -> Option<&Vec<String>> {
        self.refusals.get(key)
    }

    /// True if a service without TLS answers for the domain.
    pub(super) fn has_plain_service(&self, domain: &Domain) -> bool {
        self.plain_domains.contains_key(domain)
    }

    /// The routes of these domains that the service owns, sorted.
    pub(super) fn held_routes(&self, id: &ServiceId, input: &ServiceInput, domains: &[Domain]) -> Vec<Route> {
        let routes = domains.iter().flat_map(|domain| routes_of_domain(input, domain));
        let mut held: Vec<Route> =
            routes.filter(|route| self.holders.get(&route_claim_key(route)) == Some(id)).collect();
        // Sorted, so that another order of the same words is no change.
        held.sort();
        held
    }

    /// The binds that the service owns, sorted. `addr:p` is left out beside `*:p`, because HAProxy would bind twice. `*` is IPv4
    /// only, so an IPv6 address stays.
    pub(super) fn held_binds(&self, id: &ServiceId, input: &ServiceInput) -> Vec<Bind> {
        let wide_ports: BTreeSet<u16> =
            input.ports.iter().filter(|bind| bind.address.is_none()).map(|bind| bind.port).collect();
        let held = input.ports.iter().filter(|bind| self.holders.get(&port_claim_key(**bind)) == Some(id));
        let mut binds: Vec<Bind> = held
            .filter(|bind| bind.address.is_none_or(|it| !it.is_ipv4()) || !wide_ports.contains(&bind.port))
            .copied()
            .collect();
        binds.sort();
        binds
    }

    /// True unless another service owns the route. A rejected service may serve a route that nothing claims any more.
    pub(super) fn may_serve_route(&self, id: &ServiceId, route: &Route) -> bool {
        self.holders.get(&route_claim_key(route)).is_none_or(|owner| owner == id)
    }

    /// True unless another service owns the port.
    pub(super) fn may_bind(&self, id: &ServiceId, bind: Bind) -> bool {
        self.holders.get(&port_claim_key(bind)).is_none_or(|owner| owner == id)
    }

    /// The keys that don't get all that they claim, with the reasons.
    pub(super) fn refusals(&self) -> impl Iterator<Item = (&String, &Vec<String>)> {
        self.refusals.iter()
    }

    /// Every claim with its owner.
    pub(super) fn holders(&self) -> &SharedMap<String, ServiceId> {
        &self.holders
    }
}

/// The reason why no service can have the host. A wildcard above a reserved host is allowed, because it never gets a host that is
/// named.
fn reserved_host_reason(domain: &Domain, policy: &Policy) -> Option<String> {
    let Domain::Exact(host) = domain else { return None };
    policy.reserved_hosts.get(host).map(|by| format!("{host} is reserved: {by} has it"))
}

/// The owner of a host that a pass-through service claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostOwner<'a> {
    /// A service that passes TLS through.
    Whole(&'a ServiceId),
    /// Services that claim paths of the host. This is the first of them.
    Parts(&'a ServiceId),
}

/// Finds the owner of each host that a pass-through service claims. An owner of one of its paths goes first, then an owner of the
/// whole host, then the oldest key.
fn resolve_whole_hosts<'a>(
    inputs: &[(&'a ServiceId, &'a ServiceInput)],
    before: &Claims,
) -> BTreeMap<&'a Domain, HostOwner<'a>> {
    let whole = inputs.iter().filter(|(_, input)| input.settings.passes_through());
    let hosts: BTreeSet<&Domain> = whole.flat_map(|(_, input)| &input.domains).collect();
    // Without pass-through, no host is claimed as a whole.
    if hosts.is_empty() {
        return BTreeMap::new();
    }
    // By host: the best claimant so far, and its rank.
    let mut best: BTreeMap<&Domain, ((u8, i64, &ServiceId), HostOwner)> = BTreeMap::new();
    // A service without a path claims nothing of its hosts.
    for (id, input) in inputs.iter().filter(|(_, input)| !input.paths.is_empty()) {
        let is_whole = input.settings.passes_through();
        let owner = if is_whole { HostOwner::Whole(id) } else { HostOwner::Parts(id) };
        for (origin, domain) in input.claimed_domains().filter(|(_, domain)| hosts.contains(domain)) {
            let holds = routes_of_domain(input, domain)
                .any(|route| before.is_holder(&route_claim_key(&route), id, origin.since));
            let rank = (if !holds { 2 } else { u8::from(is_whole) }, origin.since, *id);
            if best.get(domain).is_none_or(|(other, _)| rank < *other) {
                best.insert(domain, (rank, owner));
            }
        }
    }
    best.into_iter().map(|(domain, (_, owner))| (domain, owner)).collect()
}

/// The reason against the port for every service. `None` if services may bind it.
fn unavailable_port_reason(port: u16, policy: &Policy) -> Option<String> {
    let outside = policy.tcp_ports.as_ref().filter(|ports| !ports.contains(&port));
    let reserved = policy.reserved_ports.iter().find(|(ports, _)| ports.contains(&port));
    match (reserved, outside) {
        (Some((_, by)), _) => Some(format!("port {port} is reserved: {by} binds it")),
        (None, Some(ports)) => Some(format!("port {port} is outside of --tcp-ports {}-{}", ports.start(), ports.end())),
        (None, None) => None,
    }
}

fn routes_of_domain<'a>(input: &'a ServiceInput, domain: &'a Domain) -> impl Iterator<Item = Route> + 'a {
    input.paths.iter().map(|path| Route { domain: domain.clone(), path: path.clone() })
}

fn route_claim_key(route: &Route) -> String {
    format!("{}{}", route.domain, route.path.with_boundary())
}

fn port_claim_key(bind: Bind) -> String {
    format!(":{}", bind.port)
}

/// The port of a claim. `None` if the claim is for a host.
pub(super) fn claimed_port(claim: &str) -> Option<u16> {
    claim.strip_prefix(':')?.parse().ok()
}
