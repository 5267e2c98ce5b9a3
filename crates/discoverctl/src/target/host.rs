//! A host, as operators type it, and the upstreams on it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::FromStr;

use discovery::{HostName, ServiceId, Topology, Upstream, UpstreamId};

use super::suggest_names;
use crate::error::Error;

/// The most hosts that an error lists.
const MAX_LISTED: usize = 20;

/// A host as it was typed: `web-1`, or `10.0.0.7` if its records name no host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostArg(HostName);

/// The upstreams of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostUpstreams {
    pub(crate) name: HostName,
    /// The upstreams with a record on the host.
    pub(crate) present: BTreeSet<(ServiceId, UpstreamId)>,
    /// The upstreams with an override of the whole host. Some may have no record any more.
    pub(crate) taken_out: BTreeSet<(ServiceId, UpstreamId)>,
    /// The addresses of the records, without ports.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// The records in all services that can't be read, by key. One may be of this host.
    pub(crate) unreadable: Vec<String>,
}

impl FromStr for HostArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|refusal: discovery::Refusal| refusal.to_string())
    }
}

impl HostArg {
    /// Finds the host's upstreams.
    ///
    /// # Errors
    /// [`Error::Refused`] with the hosts that exist, if no record and no override names the host.
    pub(crate) fn find_upstreams(&self, topology: &Topology) -> Result<HostUpstreams, Error> {
        let hosts = HostIndex::new(topology);
        let mut found = HostUpstreams {
            name: self.0.clone(),
            present: BTreeSet::new(),
            taken_out: BTreeSet::new(),
            addresses: BTreeSet::new(),
            unreadable: Vec::new(),
        };
        let mut known = BTreeSet::new();
        for (service, keys) in topology.services() {
            for (id, field) in keys.upstreams() {
                let Ok(record) = &field.value else {
                    found.unreadable.push(field.entry.key.clone());
                    continue;
                };
                let host = hosts.host_of(record);
                if host.as_ref() == Some(&self.0) {
                    found.present.insert((service.clone(), id.clone()));
                    found.addresses.insert(record.address.socket_addr().ip());
                }
                known.extend(host);
            }
            for (id, field) in keys.overrides() {
                let host = field.value.as_ref().ok().and_then(|imposed| imposed.host.as_ref());
                if host == Some(&self.0) {
                    found.taken_out.insert((service.clone(), id.clone()));
                }
                known.extend(host.cloned());
            }
        }
        if found.present.is_empty() && found.taken_out.is_empty() {
            return Err(self.refuse_unknown(&known));
        }
        Ok(found)
    }

    fn refuse_unknown(&self, known: &BTreeSet<HostName>) -> Error {
        let names: Vec<String> = known.iter().map(ToString::to_string).collect();
        let hint = suggest_names(self.0.as_str(), names.iter().cloned());
        let listed = names.iter().take(MAX_LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
        let list = match names.len().saturating_sub(MAX_LISTED) {
            _ if names.is_empty() => "no record names a host".to_owned(),
            0 => format!("the hosts are {listed}"),
            more => format!("the hosts are {listed} and {more} more"),
        };
        Error::Refused(format!("no upstream on host {}{hint}; {list}", self.0))
    }
}

/// The hosts that records name, by their addresses.
#[derive(Debug)]
pub(crate) struct HostIndex<'a> {
    by_address: BTreeMap<IpAddr, BTreeSet<&'a HostName>>,
}

impl<'a> HostIndex<'a> {
    pub(crate) fn new(topology: &'a Topology) -> Self {
        let mut by_address: BTreeMap<IpAddr, BTreeSet<&HostName>> = BTreeMap::new();
        let fields = topology.services().values().flat_map(|keys| keys.upstreams());
        for record in fields.filter_map(|(_, field)| field.value.as_ref().ok()) {
            if let Some(host) = &record.host {
                by_address.entry(record.address.socket_addr().ip()).or_default().insert(host);
            }
        }
        Self { by_address }
    }

    /// The host of a record. If the record names none, it is the host that the other records with its address name. If they
    /// name none or several, it is called by the address. `None` for a loopback address, which every host has.
    pub(crate) fn host_of(&self, record: &Upstream) -> Option<HostName> {
        if let Some(host) = &record.host {
            return Some(host.clone());
        }
        let address = record.address.socket_addr().ip();
        if address.is_loopback() {
            return None;
        }
        let mut named = self.by_address.get(&address).into_iter().flatten();
        match (named.next(), named.next()) {
            (Some(host), None) => Some((*host).clone()),
            _ => address.to_string().parse().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::store;

    const KEYS: [(&str, &str); 9] = [
        ("http-services/blog/upstreams/b", "10.0.0.1:81"),
        ("http-services/blog/upstreams/c", "10.0.0.3:80"),
        ("http-services/shop/overrides/gone", r#"{"state":"drain","host":"web-1"}"#),
        ("http-services/shop/overrides/other", r#"{"state":"drain","host":"web-9"}"#),
        ("http-services/shop/upstreams/a", r#"{"address":"10.0.0.1:80","host":"web-1"}"#),
        ("http-services/shop/upstreams/d", r#"{"address":"10.0.0.2:80","host":"web-2"}"#),
        ("http-services/shop/upstreams/e", r#"{"address":"[fd00::7]:80"}"#),
        ("tcp-services/db/upstreams/f", "127.0.0.1:80"),
        ("tcp-services/db/upstreams/odd", "?"),
    ];

    fn find(keys: &[(&str, &str)], host: &str) -> Result<HostUpstreams, String> {
        let store = store(keys);
        host.parse::<HostArg>().unwrap().find_upstreams(&store.topology).map_err(|error| error.to_string())
    }

    fn names(upstreams: &BTreeSet<(ServiceId, UpstreamId)>) -> Vec<String> {
        upstreams.iter().map(|(service, id)| format!("{service}/{id}")).collect()
    }

    #[test]
    fn a_record_without_a_host_is_on_the_host_that_has_its_address() {
        let found = find(&KEYS, "web-1").unwrap();
        assert_eq!(names(&found.present), ["http-blog/b", "http-shop/a"]);
        assert_eq!(names(&found.taken_out), ["http-shop/gone"]);
        assert_eq!(found.addresses, [IpAddr::from([10, 0, 0, 1])].into());
        assert_eq!(found.unreadable, ["tcp-services/db/upstreams/odd"]);
        assert_eq!(names(&find(&KEYS, "10.0.0.3").unwrap().present), ["http-blog/c"]);
        assert_eq!(names(&find(&KEYS, "fd00::7").unwrap().present), ["http-shop/e"]);
        assert_eq!(names(&find(&KEYS, "web-9").unwrap().taken_out), ["http-shop/other"]);
    }

    #[test]
    fn an_address_of_several_named_hosts_gives_no_host_away() {
        let second = ("http-services/zoo/upstreams/z", r#"{"address":"10.0.0.1:82","host":"web-3"}"#);
        let keys = [&KEYS[..], &[second]].concat();
        assert_eq!(names(&find(&keys, "web-1").unwrap().present), ["http-shop/a"]);
        assert_eq!(names(&find(&keys, "10.0.0.1").unwrap().present), ["http-blog/b"]);
    }

    #[test]
    fn an_unknown_host_is_refused_with_those_that_exist() {
        assert_eq!(
            find(&KEYS, "wbe-1").unwrap_err(),
            "no upstream on host wbe-1; did you mean web-1, web-2, web-9?; \
             the hosts are 10.0.0.3, fd00::7, web-1, web-2, web-9"
        );
        assert!(find(&KEYS, "127.0.0.1").is_err(), "every host has it");
        assert_eq!(find(&[], "x").unwrap_err(), "no upstream on host x; no record names a host");
        let many: Vec<(String, String)> = (0..25)
            .map(|at| {
                (
                    format!("http-services/shop/upstreams/u{at}"),
                    format!(r#"{{"address":"10.0.0.1:80","host":"h{at:02}"}}"#),
                )
            })
            .collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let refusal = find(&many, "zzz").unwrap_err();
        assert!(refusal.ends_with("h19 and 5 more"), "{refusal}");
        assert!("a b".parse::<HostArg>().is_err() && "".parse::<HostArg>().is_err());
    }
}
