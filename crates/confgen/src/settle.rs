//! What is wanted of HAProxy: the topology, less what is refused, with claims, colors and overrides decided.
//!
//! Pure. What HAProxy or this confgen know besides the store comes in as `memory` and `limits`; what is to be known the
//! next time goes out in [`Settled::memory`].

mod claims;
mod memory;
mod reading;
mod servers;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use discovery::{Bind, Domain, Networks, PathPrefix, Profile, ServiceId, Topology, UrlRegex};

pub use memory::Memory;
pub use reading::Settings;
pub use servers::{Server, ServerState};

use claims::Claims;
use reading::Reading;

/// What a store may not ask for, whatever it says.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Ports that are bound already, by whom: a TCP service can't have them.
    pub reserved_ports: BTreeMap<u16, String>,
    /// Names of the operator's own sections: a service whose section would bear one is refused.
    pub reserved_sections: Vec<String>,
    /// The operator's named `defaults` sections: what `profile` may name.
    pub profiles: Vec<Profile>,
    /// Where upstreams may be; none is anywhere but loopback, link-local, multicast and unspecified addresses.
    pub upstream_networks: Option<Networks>,
    /// The ports that TCP services may bind; none is any.
    pub tcp_ports: Option<RangeInclusive<u16>>,
}

/// One service as HAProxy is to serve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The hosts and paths it holds, each with each, sorted.
    pub routes: Vec<Route>,
    /// The old layout's expression, with the revision that ranks it among its like: older ones first.
    pub url_reg: Option<(i64, UrlRegex)>,
    /// The ports it holds, sorted.
    pub binds: Vec<Bind>,
    /// Its settings.
    pub settings: Settings,
    /// Its servers by id. Empty means 503.
    pub servers: Vec<Server>,
}

/// One host and one path prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The host, or all hosts one label below one.
    pub domain: Domain,
    /// The prefix; the root is all paths.
    pub path: PathPrefix,
}

/// The outcome of a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// The services to serve, by kind and name.
    pub services: BTreeMap<ServiceId, Wanted>,
    /// Keys that are not followed, with the reason in words.
    pub quarantined: BTreeMap<String, String>,
    /// What the next round has to know.
    pub memory: Memory,
}

/// Decides what is wanted.
pub fn settle(topology: &Topology, memory: &Memory, limits: &Limits) -> Settled {
    let mut settled = Settled::default();
    let mut readings: BTreeMap<&ServiceId, Reading> = BTreeMap::new();
    for (id, service) in topology.services() {
        let mut reading = reading::read(service, memory.good(id), limits);
        settled.quarantined.append(&mut reading.refused);
        if limits.reserved_sections.contains(&id.to_string()) {
            settled.quarantined.insert(id.folder(), format!("an operator's own section is called {id}"));
        } else {
            readings.insert(id, reading);
        }
    }
    let claims = Claims::decide(&readings, memory, limits);
    for (id, reading) in &readings {
        settled.services.insert((*id).clone(), wanted(id, reading, &claims));
        settled.memory.remember(id, reading.good.clone());
    }
    for (key, reason) in claims.refused() {
        let reasons = settled.quarantined.entry(key).or_default();
        *reasons = if reasons.is_empty() { reason } else { format!("{reasons}; {reason}") };
    }
    settled.memory.hold(claims.into_holders());
    without_hsts_beside_plain_http(&mut settled);
    settled
}

fn wanted(id: &ServiceId, reading: &Reading, claims: &Claims) -> Wanted {
    Wanted {
        routes: claims.routes(id, reading),
        url_reg: reading.url_reg.clone(),
        binds: claims.binds(id, reading),
        settings: reading.settings.clone(),
        servers: if reading.held_back { Vec::new() } else { servers::servers(reading) },
    }
}

/// A browser that has seen HSTS for a host never asks it over HTTP again, so no service may say it for a host on which
/// another one speaks plain HTTP only.
fn without_hsts_beside_plain_http(settled: &mut Settled) {
    let plain: Vec<Domain> = settled
        .services
        .values()
        .filter(|service| service.settings.tls == discovery::Tls::Off)
        .flat_map(|service| service.routes.iter().map(|route| route.domain.clone()))
        .collect();
    for (id, service) in &mut settled.services {
        let clash = service.routes.iter().find(|route| plain.contains(&route.domain));
        if let (Some(_), Some(route)) = (service.settings.hsts, clash) {
            let reason = format!("{} also has a service with tls off, which HSTS would make unreachable", route.domain);
            settled.quarantined.insert(format!("{}hsts", id.folder()), reason);
            service.settings.hsts = None;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
