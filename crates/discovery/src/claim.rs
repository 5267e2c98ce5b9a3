//! Claims: hosts with paths, and ports, of which each can belong to one service.
//!
//! It finds conflicts for a caller that is about to write settings. confgen decides the owner of a claim. Pure: no I/O,
//! no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::{Domain, PathPrefix, Service, ServiceId, Setting, SettingName};

/// A host with a path, or a port. `*:3306` and `10.0.0.5:3306` are one claim.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// A host and a path prefix within it.
    Route(Domain, PathPrefix),
    /// A port on any address. Two services on one port of different addresses are a conflict too.
    Port(u16),
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(domain, path) => write!(f, "{domain}{path}"),
            Self::Port(port) => write!(f, "port {port}"),
        }
    }
}

/// A claim that another service's keys make as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimConflict {
    /// The host with its path, or the port.
    pub claim: Claim,
    /// The other service, which makes the claim already.
    pub service: ServiceId,
}

impl fmt::Display for ClaimConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is named by {} already", self.claim, self.service)
    }
}

/// The claims that settings make. A path claims nothing without a host.
pub fn collect_claims<'a>(settings: impl IntoIterator<Item = &'a Setting>) -> BTreeSet<Claim> {
    let (mut domains, mut paths, mut ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for setting in settings {
        match setting {
            Setting::Domain(list) => domains.extend(list),
            Setting::Path(list) => paths.extend(list.iter().cloned()),
            Setting::Ports(list) => ports.extend(list.iter().map(|bind| Claim::Port(bind.port))),
            _ => {}
        }
    }
    // A service without `path` serves all paths of its hosts.
    if paths.is_empty() {
        paths.insert(PathPrefix::root());
    }
    let routes = domains.into_iter().flat_map(|domain| {
        let domain = domain.clone();
        paths.iter().map(move |path| Claim::Route(domain.clone(), path.clone()))
    });
    routes.chain(ports).collect()
}

/// The claims that a service with these settings would newly make, and that other services of its kind make already.
///
/// The result is a hint for the writer. Another service may write the same claim in the same moment, and the balancers
/// decide then. A claim that the service makes today is not reported again.
pub fn find_claim_conflicts(
    services: &BTreeMap<ServiceId, Arc<Service>>,
    id: &ServiceId,
    settings: &[Setting],
) -> Vec<ClaimConflict> {
    let current: Vec<&Setting> = services.get(id).map(|service| readable_settings(service)).unwrap_or_default();
    let given: BTreeSet<SettingName> = settings.iter().map(Setting::name).collect();
    let unchanged = current.iter().copied().filter(|setting| !given.contains(&setting.name()));
    let claims_before = collect_claims(current.iter().copied());
    let claims_after = collect_claims(settings.iter().chain(unchanged));
    let new: BTreeSet<&Claim> = claims_after.difference(&claims_before).collect();
    let mut conflicts = Vec::new();
    // Services of different kinds can't conflict: HTTP services claim hosts, TCP services claim ports.
    for (other, service) in services.iter().filter(|(other, service)| *other != id && service.kind() == id.kind) {
        let claims = collect_claims(readable_settings(service)).into_iter().filter(|claim| new.contains(claim));
        conflicts.extend(claims.map(|claim| ClaimConflict { claim, service: other.clone() }));
    }
    check_invariants(&conflicts, id);
    conflicts
}

/// Panics in debug builds if a conflict is with the service itself or with another kind, or is reported twice.
fn check_invariants(conflicts: &[ClaimConflict], id: &ServiceId) {
    let is_foreign = |conflict: &ClaimConflict| conflict.service != *id && conflict.service.kind == id.kind;
    debug_assert!(conflicts.iter().all(is_foreign), "{id} conflicts with itself or another kind: {conflicts:?}");
    let distinct: BTreeSet<_> = conflicts.iter().map(|conflict| (&conflict.claim, &conflict.service)).collect();
    debug_assert_eq!(distinct.len(), conflicts.len(), "a conflict is reported twice: {conflicts:?}");
}

fn readable_settings(service: &Service) -> Vec<&Setting> {
    service.settings().filter_map(|(_, entry)| entry.value.as_ref().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Entry, Kind, Topology};

    fn topology(keys: &[(&str, &str)]) -> Topology {
        let entry = |(key, value): &(&str, &str)| Entry {
            key: (*key).into(),
            value: (*value).into(),
            create_revision: 1,
            mod_revision: 1,
            lease: 0,
        };
        Topology::from_entries(&keys.iter().map(entry).collect::<Vec<_>>())
    }

    fn found(topology: &Topology, kind: Kind, name: &str, settings: &[(&str, &str)]) -> Vec<String> {
        let id = ServiceId { kind, name: name.parse().unwrap() };
        let setting = |(name, value): &(&str, &str)| Setting::parse(kind, name.parse().unwrap(), value.as_bytes());
        let settings: Vec<_> = settings.iter().map(|it| setting(it).unwrap()).collect();
        find_claim_conflicts(topology.services(), &id, &settings).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_host_with_its_path_or_a_port_belongs_to_one_service() {
        let all = topology(&[
            ("http-services/shop/domain", "shop.com www.shop.com"),
            ("http-services/api/domain", "shop.com"),
            ("http-services/api/path", "/api"),
            ("tcp-services/db/ports", "10.0.0.5:3306"),
        ]);
        assert_eq!(
            found(&all, Kind::Http, "new", &[("domain", "SHOP.com")]),
            ["shop.com/ is named by http-shop already"]
        );
        assert!(found(&all, Kind::Http, "new", &[("domain", "shop.com"), ("path", "/new")]).is_empty());
        assert_eq!(
            found(&all, Kind::Http, "shop", &[("path", "/api/")]),
            ["shop.com/api is named by http-api already"]
        );
        assert_eq!(found(&all, Kind::Tcp, "new", &[("ports", "3306")]), ["port 3306 is named by tcp-db already"]);
        assert!(found(&all, Kind::Http, "shop", &[("domain", "shop.com")]).is_empty(), "it has it already");
    }

    fn conflict(service: &str) -> ClaimConflict {
        let service = ServiceId { kind: Kind::Tcp, name: service.parse().unwrap() };
        ClaimConflict { claim: Claim::Port(3306), service }
    }

    #[test]
    #[should_panic(expected = "conflicts with itself")]
    fn a_service_that_conflicts_with_itself_panics_in_debug_builds() {
        check_invariants(&[conflict("db")], &conflict("db").service);
    }

    #[test]
    #[should_panic(expected = "reported twice")]
    fn a_conflict_that_is_reported_twice_panics_in_debug_builds() {
        check_invariants(&[conflict("db"), conflict("db")], &conflict("other").service);
    }
}
