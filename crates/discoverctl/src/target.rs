//! Names of services, upstreams and hosts, as operators type them: `shop`, `http-shop`, `shop/node-1`, `web-1`. Pure.

pub(crate) mod host;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use discovery::{Kind, ServiceId, ServiceName, SettingName, Topology, UpstreamId};

use crate::error::Error;

/// The least similarity of a name that is worth suggesting (Jaro-Winkler; 1 is equality).
const MIN_SIMILARITY: f64 = 0.75;
/// The most names that an error suggests.
const MAX_SUGGESTIONS: usize = 3;

/// A service as it was typed: `shop` or `http-shop`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceArg(ServiceName);

/// An upstream as it was typed: `shop/node-1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UpstreamArg {
    pub(crate) service: ServiceArg,
    pub(crate) id: UpstreamId,
}

/// A service or an upstream as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TargetArg {
    /// A service with all its upstreams: `shop`.
    Service(ServiceArg),
    /// One upstream of a service: `shop/node-1`.
    Upstream(UpstreamArg),
}

impl FromStr for ServiceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|refusal: discovery::Refusal| refusal.to_string())
    }
}

impl fmt::Display for ServiceArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for UpstreamArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (service, id) = text.split_once('/').ok_or_else(|| format!("{text:?} is no SVC/ID, as shop/node-1 is"))?;
        let id = id.parse().map_err(|refusal: discovery::Refusal| refusal.to_string())?;
        Ok(Self { service: service.parse()?, id })
    }
}

impl FromStr for TargetArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') { text.parse().map(Self::Upstream) } else { text.parse().map(Self::Service) }
    }
}

impl ServiceArg {
    /// Finds the service in the store.
    ///
    /// # Errors
    /// [`Error::Refused`] with similar names, or [`Error::Usage`] if an HTTP and a TCP service have the name.
    pub(crate) fn find_service(&self, topology: &Topology) -> Result<ServiceId, Error> {
        // Before its first copy runs, a service may have stand-bys only.
        let services: BTreeSet<&ServiceId> = topology.services().keys().chain(topology.copies().keys()).collect();
        let [http, tcp] = [Kind::Http, Kind::Tcp].map(|kind| ServiceId { kind, name: self.0.clone() });
        match (services.contains(&http), services.contains(&tcp)) {
            (true, true) => return Err(Error::Usage(format!("{self} is both {http} and {tcp}; say which"))),
            (true, false) => return Ok(http),
            (false, true) => return Ok(tcp),
            (false, false) => {}
        }
        // A service may be called `http-shop` itself, so the whole name comes first.
        let section = self.parse_with_kind().filter(|id| services.contains(id));
        section.ok_or_else(|| {
            let names = services.iter().flat_map(|id| [id.name.to_string(), id.to_string()]);
            Error::Refused(format!("no service {self} in the store{}", suggest_names(self.0.as_str(), names)))
        })
    }

    /// Finds the service, or names both services that a deleted one may have been. The error says why the store has none.
    pub(crate) fn find_with_past(&self, topology: &Topology) -> (Vec<ServiceId>, Option<Error>) {
        match self.find_service(topology) {
            Ok(id) => (vec![id], None),
            Err(error @ Error::Refused(_)) => {
                let section = self.parse_with_kind();
                let kinds = [Kind::Http, Kind::Tcp].map(|kind| ServiceId { kind, name: self.0.clone() });
                (kinds.into_iter().chain(section).collect(), Some(error))
            }
            Err(error) => (Vec::new(), Some(error)),
        }
    }

    /// Finds the service, or names a new one of this kind. Without a kind a new service is an HTTP service.
    pub(crate) fn find_or_name_new(&self, topology: &Topology, kind: Option<Kind>) -> Result<ServiceId, Error> {
        match self.find_service(topology) {
            Ok(id) if kind.is_none_or(|kind| kind == id.kind) => Ok(id),
            // Two services have the name. A kind chooses one of them.
            Err(error @ Error::Usage(_)) if kind.is_none() => Err(error),
            _ => Ok(ServiceId { kind: kind.unwrap_or(Kind::Http), name: self.0.clone() }),
        }
    }

    /// Reads `http-shop` as the section of the service `shop`; None without such a prefix.
    fn parse_with_kind(&self) -> Option<ServiceId> {
        let [http, tcp] = [Kind::Http, Kind::Tcp].map(|kind| (kind, self.0.as_str().strip_prefix(&format!("{kind}-"))));
        let (kind, name) = [http, tcp].into_iter().find_map(|(kind, name)| Some((kind, name?)))?;
        Some(ServiceId { kind, name: name.parse().ok()? })
    }
}

impl UpstreamArg {
    /// Finds the service and the upstream, which has a record or an override.
    pub(crate) fn find_upstream(&self, topology: &Topology) -> Result<(ServiceId, UpstreamId), Error> {
        let service = self.service.find_service(topology)?;
        let Some(known) = topology.services().get(&service) else {
            return Err(Error::Refused(format!("no service {} in the store", self.service)));
        };
        if known.upstream(&self.id).is_some() || known.override_of(&self.id).is_some() {
            return Ok((service, self.id.clone()));
        }
        let names = known.upstreams().map(|(id, _)| id.to_string());
        let hint = suggest_names(self.id.as_str(), names);
        Err(Error::Refused(format!("no upstream {} in {service}{hint}", self.id)))
    }
}

/// Parses the name of a setting.
pub(crate) fn parse_setting_name(text: &str) -> Result<SettingName, String> {
    text.parse().map_err(|refusal: discovery::Refusal| {
        format!("{refusal}{}", suggest_names(text, SettingName::ALL.iter().map(ToString::to_string)))
    })
}

/// Writes the end of an error: `; did you mean shop, shop2?`. Empty if no name is similar.
pub(crate) fn suggest_names(unknown: &str, known: impl Iterator<Item = String>) -> String {
    let mut alike: Vec<(f64, String)> = known.map(|name| (strsim::jaro_winkler(unknown, &name), name)).collect();
    alike.retain(|(score, _)| *score >= MIN_SIMILARITY);
    // Equally similar names are sorted, so that the error is the same each time.
    alike.sort_by(|one, other| other.0.total_cmp(&one.0).then_with(|| one.1.cmp(&other.1)));
    let names: Vec<String> = alike.into_iter().take(MAX_SUGGESTIONS).map(|(_, name)| name).collect();
    if names.is_empty() { String::new() } else { format!("; did you mean {}?", names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use discovery::Entry;

    use super::*;

    fn topology(keys: &[&str]) -> Topology {
        let entry = |key: &&str| Entry {
            key: (*key).into(),
            value: "10.0.0.1:80".into(),
            create_revision: 1,
            mod_revision: 1,
            lease: 0,
        };
        Topology::from_entries(&keys.iter().map(entry).collect::<Vec<_>>())
    }

    #[test]
    fn a_name_is_enough_unless_two_services_bear_it() {
        let all = topology(&[
            "http-services/shop/upstreams/node-1",
            "http-services/db/upstreams/a",
            "tcp-services/db/upstreams/a",
            "http-services/tcp-db/upstreams/a",
            "http-services/new/standby/a",
        ]);
        let find = |name: &str| name.parse::<ServiceArg>().unwrap().find_service(&all).map(|id| id.to_string());
        assert_eq!(find("shop").unwrap(), "http-shop");
        assert_eq!(find("http-shop").unwrap(), "http-shop");
        assert_eq!(find("new").unwrap(), "http-new");
        assert_eq!(find("http-db").unwrap(), "http-db");
        assert_eq!(find("tcp-db").unwrap(), "http-tcp-db", "a service that is called just that comes first");
        assert_eq!(find("db").unwrap_err().to_string(), "db is both http-db and tcp-db; say which");
        assert_eq!(find("shpo").unwrap_err().to_string(), "no service shpo in the store; did you mean shop?");
        assert_eq!(find("zzz").unwrap_err().exit_code(), 4);
        let upstream =
            |name: &str| name.parse::<UpstreamArg>().unwrap().find_upstream(&all).map(|(_, id)| id.to_string());
        assert_eq!(upstream("shop/node-1").unwrap(), "node-1");
        assert!(upstream("shop/node-2").unwrap_err().to_string().ends_with("did you mean node-1?"));
        assert!(parse_setting_name("balanse").unwrap_err().ends_with("; did you mean balance?"));
        assert!("shop".parse::<UpstreamArg>().is_err() && "a b".parse::<ServiceArg>().is_err());
    }
}
