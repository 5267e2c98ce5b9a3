//! Claims: one host + path, or one port, belongs to one service.
//!
//! Who holds a claim keeps it. Where nobody does, the key that was there first has it (the lower create revision; the
//! name where one transaction wrote both). A service that passes TLS through claims whole hosts: it has each alone, or
//! leaves it to those who have parts of it.

use std::collections::{BTreeMap, BTreeSet};

use discovery::{Bind, Domain, ServiceId, Tls};

use super::{Policy, Route};
use crate::desired::service_input::{KeyOrigin, ServiceInput};

/// Every claim with its holder, and those who wanted it too.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    holders: BTreeMap<String, ServiceId>,
    refusals: BTreeMap<String, Vec<String>>,
    /// By service, the services that own something that it claims too.
    rivals: BTreeMap<ServiceId, BTreeSet<ServiceId>>,
    /// Domains that a service without TLS holds.
    plain_domains: BTreeSet<Domain>,
}

impl Claims {
    /// Claims that were held before.
    pub(super) fn from_holders(holders: BTreeMap<String, ServiceId>) -> Self {
        Self { holders, ..Self::default() }
    }

    /// Gives every claim that a reading makes to one service.
    pub(super) fn assign_claims<'a>(
        readings: impl Iterator<Item = (&'a ServiceId, &'a ServiceInput)>,
        before: &Self,
        limits: &Policy,
    ) -> Self {
        let mut claims = Self::default();
        let mut wanted: BTreeMap<String, Vec<(&KeyOrigin, &ServiceId)>> = BTreeMap::new();
        let readings: Vec<(&ServiceId, &ServiceInput)> = readings.collect();
        let contested = resolve_whole_hosts(&readings, before);
        for (id, reading) in readings {
            for (by, domain) in reading.claimed_domains() {
                if let Some(reason) = reserved_host_reason(domain, limits) {
                    claims.add_refusal(by, reason);
                }
            }
            let is_whole = reading.settings.passes_through();
            for (by, route) in
                named_routes(reading).filter(|(_, route)| reserved_host_reason(&route.domain, limits).is_none())
            {
                match contested.get(&route.domain) {
                    Some(HostOwner::Whole(owner)) if *owner != id => {
                        let reason = format!("{} belongs to {owner}, which passes all of it through", route.domain);
                        claims.add_refusal(by, reason);
                        claims.add_rival(id, owner);
                    }
                    Some(HostOwner::Parts(owner)) if is_whole => {
                        let reason =
                            format!("{} has another service, and passthrough takes a host whole", route.domain);
                        claims.add_refusal(by, reason);
                        claims.add_rival(id, owner);
                    }
                    _ => wanted.entry(route_claim_key(&route)).or_default().push((by, id)),
                }
            }
            if reading.settings.tls == Tls::Off {
                claims.plain_domains.extend(reading.claimed_domains().map(|(_, domain)| domain.clone()));
            }
            for bind in &reading.ports {
                match unavailable_port_reason(bind.port, limits) {
                    Some(reason) => claims.add_refusal(&reading.ports_origin, reason),
                    None => wanted.entry(port_claim_key(*bind)).or_default().push((&reading.ports_origin, id)),
                }
            }
        }
        for (claim, mut claimants) in wanted {
            claimants.sort_by_key(|(by, id)| (by.since, *id));
            let holder = before.holders.get(&claim).filter(|holder| claimants.iter().any(|(_, id)| id == holder));
            let Some(holder) = holder.or(claimants.first().map(|(_, id)| *id)).cloned() else { continue };
            for (by, id) in claimants.iter().filter(|(_, id)| **id != holder) {
                claims.add_refusal(by, format!("{claim} belongs to {holder}, which had it first"));
                claims.add_rival(id, &holder);
            }
            claims.holders.insert(claim, holder);
        }
        claims
    }

    fn add_refusal(&mut self, by: &KeyOrigin, reason: String) {
        self.refusals.entry(by.key.clone()).or_default().push(reason);
    }

    fn add_rival(&mut self, id: &ServiceId, owner: &ServiceId) {
        self.rivals.entry(id.clone()).or_default().insert(owner.clone());
    }

    /// The services that own something that this one claims too.
    pub(super) fn rivals_of(&self, id: &ServiceId) -> Option<&BTreeSet<ServiceId>> {
        self.rivals.get(id)
    }

    /// Why the key doesn't name all that it claims.
    pub(super) fn refusals_of(&self, key: &str) -> Option<&Vec<String>> {
        self.refusals.get(key)
    }

    /// Whether a service without TLS answers for the domain.
    pub(super) fn has_plain_service(&self, domain: &Domain) -> bool {
        self.plain_domains.contains(domain)
    }

    /// The routes of these domains that the service holds, sorted.
    pub(super) fn held_routes(&self, id: &ServiceId, reading: &ServiceInput, domains: &[Domain]) -> Vec<Route> {
        let named = domains.iter().flat_map(|domain| routes_of_domain(reading, domain));
        let mut routes: Vec<Route> =
            named.filter(|route| self.holders.get(&route_claim_key(route)) == Some(id)).collect();
        routes.sort();
        routes
    }

    /// The binds that the service holds, sorted. `*:p` beside `addr:p` would bind twice: the wider one is kept. It is
    /// wider than IPv4 addresses alone.
    pub(super) fn held_binds(&self, id: &ServiceId, reading: &ServiceInput) -> Vec<Bind> {
        let everywhere = |bind: &Bind| bind.address.is_none();
        let held = |bind: &&Bind| self.holders.get(&port_claim_key(**bind)) == Some(id);
        let covered = |bind: &&Bind| {
            bind.address.is_some_and(|address| address.is_ipv4())
                && reading.ports.iter().any(|other| everywhere(other) && other.port == bind.port)
        };
        let mut binds: Vec<Bind> = reading.ports.iter().filter(held).filter(|bind| !covered(bind)).copied().collect();
        binds.sort();
        binds
    }

    /// The naming keys of the losers, with the reasons.
    pub(super) fn refusals(&self) -> impl Iterator<Item = (&String, &Vec<String>)> {
        self.refusals.iter()
    }

    /// Every claim with its holder.
    pub(super) fn holders(&self) -> &BTreeMap<String, ServiceId> {
        &self.holders
    }
}

/// Why no service can have the host. A wildcard above it may be had: it never gets a host that is named.
fn reserved_host_reason(domain: &Domain, limits: &Policy) -> Option<String> {
    let Domain::Exact(host) = domain else { return None };
    limits.reserved_hosts.get(host).map(|by| format!("{host} is reserved: {by} has it"))
}

/// Who has a host that a pass-through service claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostOwner<'a> {
    /// One that passes TLS through.
    Whole(&'a ServiceId),
    /// Those who claim paths of it: the first of them.
    Parts(&'a ServiceId),
}

/// Who has each host that somebody claims as a whole. Whoever holds a path of it keeps that; else whoever holds the whole
/// keeps it; else the first to come has it.
fn resolve_whole_hosts<'a>(
    readings: &[(&'a ServiceId, &'a ServiceInput)],
    before: &Claims,
) -> BTreeMap<&'a Domain, HostOwner<'a>> {
    let whole = readings.iter().filter(|(_, reading)| reading.settings.passes_through());
    let hosts: BTreeSet<&Domain> = whole.flat_map(|(_, reading)| &reading.domains).collect();
    if hosts.is_empty() {
        return BTreeMap::new();
    }
    // By host: the best claimant so far, and its rank.
    let mut best: BTreeMap<&Domain, ((u8, i64, &ServiceId), HostOwner)> = BTreeMap::new();
    for (id, reading) in readings.iter().filter(|(_, reading)| !reading.paths.is_empty()) {
        let is_whole = reading.settings.passes_through();
        let owner = if is_whole { HostOwner::Whole(id) } else { HostOwner::Parts(id) };
        for (by, domain) in reading.claimed_domains().filter(|(_, domain)| hosts.contains(domain)) {
            let holds =
                routes_of_domain(reading, domain).any(|route| before.holders.get(&route_claim_key(&route)) == Some(id));
            let rank = (if !holds { 2 } else { u8::from(is_whole) }, by.since, *id);
            if best.get(domain).is_none_or(|(other, _)| rank < *other) {
                best.insert(domain, (rank, owner));
            }
        }
    }
    best.into_iter().map(|(domain, (_, owner))| (domain, owner)).collect()
}

/// Why no service can have the port.
fn unavailable_port_reason(port: u16, limits: &Policy) -> Option<String> {
    let outside = limits.tcp_ports.as_ref().filter(|ports| !ports.contains(&port));
    let reserved = limits.reserved_ports.iter().find(|(ports, _)| ports.contains(&port));
    match (reserved, outside) {
        (Some((_, by)), _) => Some(format!("port {port} is reserved: {by} binds it")),
        (None, Some(ports)) => Some(format!("port {port} is outside of --tcp-ports {}-{}", ports.start(), ports.end())),
        (None, None) => None,
    }
}

fn named_routes(reading: &ServiceInput) -> impl Iterator<Item = (&KeyOrigin, Route)> {
    reading.claimed_domains().flat_map(|(by, domain)| routes_of_domain(reading, domain).map(move |route| (by, route)))
}

fn routes_of_domain<'a>(reading: &'a ServiceInput, domain: &'a Domain) -> impl Iterator<Item = Route> + 'a {
    reading.paths.iter().map(|path| Route { domain: domain.clone(), path: path.clone() })
}

fn route_claim_key(route: &Route) -> String {
    format!("{}{}", route.domain, route.path.with_boundary())
}

fn port_claim_key(bind: Bind) -> String {
    format!(":{}", bind.port)
}

/// The port that a claim is for; `None` if it is for a host.
pub(super) fn claimed_port(claim: &str) -> Option<u16> {
    claim.strip_prefix(':')?.parse().ok()
}
