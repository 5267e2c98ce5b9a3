//! Claims: what only one service can have, read off the keys that name it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::{Domain, PathPrefix, Service, ServiceId, Setting, SettingName};

/// A host with a path, or a port: `*:3306` and `10.0.0.5:3306` are one claim.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// A host and a path prefix within it.
    Route(Domain, PathPrefix),
    /// A port.
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
    /// What both want.
    pub claim: Claim,
    /// The other service.
    pub service: ServiceId,
}

impl fmt::Display for ClaimConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is named by {} already", self.claim, self.service)
    }
}

/// The claims that settings make. A path alone claims nothing.
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
    if paths.is_empty() {
        paths.insert(PathPrefix::root());
    }
    let routes = domains.into_iter().flat_map(|domain| {
        let domain = domain.clone();
        paths.iter().map(move |path| Claim::Route(domain.clone(), path.clone()))
    });
    routes.chain(ports).collect()
}

/// The claims that a service with these settings would newly make, and that others make already. Best effort: what is
/// written in the same moment isn't seen, and the balancers decide. Claims that both make already are nobody's news.
pub fn find_claim_conflicts(
    services: &BTreeMap<ServiceId, Arc<Service>>,
    id: &ServiceId,
    settings: &[Setting],
) -> Vec<ClaimConflict> {
    let standing: Vec<&Setting> = services.get(id).map(|it| readable_settings(it)).unwrap_or_default();
    let given: BTreeSet<SettingName> = settings.iter().map(Setting::name).collect();
    let kept = standing.iter().copied().filter(|setting| !given.contains(&setting.name()));
    let wanted = collect_claims(settings.iter().chain(kept));
    let wanted: BTreeSet<_> = wanted.difference(&collect_claims(standing.iter().copied())).cloned().collect();
    let others = services.iter().filter(|(other, service)| *other != id && service.kind() == id.kind);
    let made = others
        .flat_map(|(other, service)| collect_claims(readable_settings(service)).into_iter().map(move |it| (it, other)));
    let rival = |(claim, service): (Claim, &ServiceId)| ClaimConflict { claim, service: service.clone() };
    made.filter(|(claim, _)| wanted.contains(claim)).map(rival).collect()
}

fn readable_settings(service: &Service) -> Vec<&Setting> {
    service.settings().filter_map(|(_, field)| field.value.as_ref().ok()).collect()
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
    fn a_host_with_its_path_or_a_port_is_one_services() {
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
}
