//! Claims: one host + path, or one port, belongs to one service.
//!
//! Who holds a claim keeps it. Where nobody does, the key that was there first has it (the lower create revision; the
//! name where one transaction wrote both).

use std::collections::{BTreeMap, BTreeSet};

use discovery::{Bind, Domain, ServiceId, Tls};

use super::reading::{Naming, Reading};
use super::{Limits, Route};

/// Every claim with its holder, and those who wanted it too.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    holders: BTreeMap<String, ServiceId>,
    refused: BTreeMap<String, Vec<String>>,
    /// Domains that a service without TLS holds.
    plain: BTreeSet<Domain>,
}

impl Claims {
    /// Claims that were held before.
    pub(super) fn held(holders: BTreeMap<String, ServiceId>) -> Self {
        Self { holders, ..Self::default() }
    }

    /// Gives every claim that a reading makes to one service.
    pub(super) fn decide<'a>(
        readings: impl Iterator<Item = (&'a ServiceId, &'a Reading)>,
        before: &Self,
        limits: &Limits,
    ) -> Self {
        let mut claims = Self::default();
        let mut wanted: BTreeMap<String, Vec<(&Naming, &ServiceId)>> = BTreeMap::new();
        for (id, reading) in readings {
            for route in named_routes(reading) {
                wanted.entry(route_claim(&route)).or_default().push((&reading.domains_by, id));
            }
            if reading.settings.tls == Tls::Off {
                claims.plain.extend(reading.domains.iter().cloned());
            }
            for bind in &reading.ports {
                match not_to_be_had(bind.port, limits) {
                    Some(reason) => claims.refuse(&reading.ports_by, reason),
                    None => wanted.entry(port_claim(*bind)).or_default().push((&reading.ports_by, id)),
                }
            }
        }
        for (claim, mut claimants) in wanted {
            claimants.sort_by_key(|(by, id)| (by.since, *id));
            let holder = before.holders.get(&claim).filter(|holder| claimants.iter().any(|(_, id)| id == holder));
            let Some(holder) = holder.or(claimants.first().map(|(_, id)| *id)).cloned() else { continue };
            for (by, _) in claimants.iter().filter(|(_, id)| **id != holder) {
                claims.refuse(by, format!("{claim} belongs to {holder}, which had it first"));
            }
            claims.holders.insert(claim, holder);
        }
        claims
    }

    fn refuse(&mut self, by: &Naming, reason: String) {
        self.refused.entry(by.key.clone()).or_default().push(reason);
    }

    /// Whether a service without TLS answers for the domain.
    pub(super) fn is_plain(&self, domain: &Domain) -> bool {
        self.plain.contains(domain)
    }

    /// The routes that the service holds, sorted.
    pub(super) fn routes(&self, id: &ServiceId, reading: &Reading) -> Vec<Route> {
        let mut routes: Vec<Route> =
            named_routes(reading).filter(|route| self.holders.get(&route_claim(route)) == Some(id)).collect();
        routes.sort();
        routes
    }

    /// The binds that the service holds, sorted. `*:p` beside `addr:p` would bind twice: the wider one is kept.
    pub(super) fn binds(&self, id: &ServiceId, reading: &Reading) -> Vec<Bind> {
        let everywhere = |bind: &Bind| bind.address.is_none();
        let held = |bind: &&Bind| self.holders.get(&port_claim(**bind)) == Some(id);
        let covered = |bind: &&Bind| {
            !everywhere(bind) && reading.ports.iter().any(|other| everywhere(other) && other.port == bind.port)
        };
        let mut binds: Vec<Bind> = reading.ports.iter().filter(held).filter(|bind| !covered(bind)).copied().collect();
        binds.sort();
        binds
    }

    /// The naming keys of the losers, with the reasons.
    pub(super) fn refused(&self) -> impl Iterator<Item = (&String, &Vec<String>)> {
        self.refused.iter()
    }

    /// Every claim with its holder.
    pub(super) fn holders(&self) -> &BTreeMap<String, ServiceId> {
        &self.holders
    }
}

/// Why no service can have the port.
fn not_to_be_had(port: u16, limits: &Limits) -> Option<String> {
    let outside = limits.tcp_ports.as_ref().filter(|ports| !ports.contains(&port));
    match (limits.reserved_ports.get(&port), outside) {
        (Some(by), _) => Some(format!("port {port} is reserved: {by} binds it")),
        (None, Some(ports)) => Some(format!("port {port} is outside of --tcp-ports {}-{}", ports.start(), ports.end())),
        (None, None) => None,
    }
}

fn named_routes(reading: &Reading) -> impl Iterator<Item = Route> {
    let with_paths =
        |domain| reading.paths.iter().map(move |path| Route { domain: Clone::clone(domain), path: path.clone() });
    reading.domains.iter().flat_map(with_paths)
}

fn route_claim(route: &Route) -> String {
    format!("{}{}", route.domain, route.path.with_boundary())
}

fn port_claim(bind: Bind) -> String {
    format!(":{}", bind.port)
}
