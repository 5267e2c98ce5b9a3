//! The address of a container, from Docker's API (Engine API v1.24 and later, `GET /containers/{id}/json`).
//!
//! Reads only. It starts and changes no container.

mod host_addresses;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;

use discovery::{UpstreamAddress, UpstreamId};
use serde::Deserialize;

use crate::error::Error;
pub(crate) use host_addresses::HostAddresses;

/// Limits a request. The daemon answers from memory.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// `ID[:PORT]` as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContainerArg {
    /// The container's name or id, or the beginning of its id.
    name: UpstreamId,
    /// The port inside the container; None if it wasn't typed.
    port: Option<u16>,
}

/// The kind of address at which balancers reach the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AddressSource {
    /// One of the host's addresses, at the published port.
    Host(HostAddresses),
    /// The container's own address in this network.
    Own(String),
}

impl ContainerArg {
    /// Adds the port of --port.
    ///
    /// # Errors
    /// [`Error::Usage`] if --container has a port too.
    pub(crate) fn with_port(mut self, port: Option<NonZeroU16>) -> Result<Self, Error> {
        if let Some(port) = port {
            if self.port.is_some() {
                return Err(Error::Usage(format!("the port twice: --container {} and --port {port}", self.name)));
            }
            self.port = Some(port.get());
        }
        Ok(self)
    }
}

impl FromStr for ContainerArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, port) = match text.split_once(':') {
            None => (text, None),
            Some((name, port)) => {
                let port = port.parse().ok().filter(|port| *port > 0);
                (name, Some(port.ok_or_else(|| format!("{text:?}: the port is a number from 1 to 65535"))?))
            }
        };
        // A container's name follows the same rule as an upstream's. So it can't change the path of the URL.
        let name = name.parse().map_err(|refusal: discovery::Refusal| refusal.to_string())?;
        Ok(Self { name, port })
    }
}

/// A container's name and address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    /// The container's name as an upstream's id.
    pub(crate) id: UpstreamId,
    /// The address at which balancers reach it.
    pub(crate) address: UpstreamAddress,
}

/// A client of Docker's API.
pub(crate) struct Docker {
    http: reqwest::Client,
    place: String,
}

/// The parts of the API's answer that are read here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Inspected {
    name: String,
    state: State,
    config: Config,
    host_config: HostConfig,
    network_settings: NetworkSettings,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct State {
    running: bool,
    status: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    network_mode: String,
}

/// A port on the host that leads to the container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Binding {
    host_ip: String,
    host_port: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkSettings {
    /// By `8000/tcp`; null for a port that is exposed and not published.
    ports: Option<BTreeMap<String, Option<Vec<Binding>>>>,
    networks: Option<BTreeMap<String, Network>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Network {
    #[serde(rename = "IPAddress")]
    address: String,
    #[serde(rename = "GlobalIPv6Address")]
    address_v6: String,
}

impl Docker {
    /// Opens the API at `unix:///var/run/docker.sock`. Other URLs are refused, because they would be used without TLS.
    pub(crate) fn new(place: &str) -> Result<Self, Error> {
        let path = place.strip_prefix("unix://").filter(|path| path.starts_with('/'));
        let path = path.ok_or_else(|| Error::Usage(format!("--docker {place}: unix:///PATH is what can be asked")))?;
        // The call fails if a provider is installed already. That one is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().unix_socket(path).timeout(REQUEST_TIMEOUT).no_proxy();
        let client = client.tls_certs_only([]).build();
        let http = client.map_err(|error| Error::Failed(format!("Docker's API: {error}")))?;
        Ok(Self { http, place: place.to_owned() })
    }

    /// Finds the address at which balancers reach the container.
    pub(crate) async fn find_listener(
        &self,
        container: &ContainerArg,
        reach: &AddressSource,
    ) -> Result<Listener, Error> {
        let place = &self.place;
        let response = self.http.get(format!("http://docker/containers/{}/json", container.name)).send().await;
        let response = response.map_err(|error| self.refuse(&error))?;
        match response.status().as_u16() {
            200 => {
                let inspected = response.json().await.map_err(|error| self.refuse(&error))?;
                locate_listener(&inspected, container, reach)
            }
            404 => Err(Error::Refused(format!("Docker knows no container {}", container.name))),
            code => Err(Error::Refused(format!("Docker's API at {place} answers {code} for {}", container.name))),
        }
    }

    fn refuse(&self, error: &reqwest::Error) -> Error {
        Error::Refused(format!("Docker's API at {}: {}", self.place, innermost_cause(error)))
    }
}

/// Finds the address in the API's answer.
fn locate_listener(inspected: &Inspected, container: &ContainerArg, reach: &AddressSource) -> Result<Listener, Error> {
    let name = inspected.name.trim_start_matches('/');
    let found = inspected.find_address(container, reach).and_then(|address| {
        let id = name.parse().map_err(|refusal: discovery::Refusal| refusal.to_string())?;
        let address = address.try_into().map_err(|refusal: discovery::Refusal| refusal.to_string())?;
        Ok(Listener { id, address })
    });
    found.map_err(|words| Error::Refused(format!("container {name}: {words}")))
}

impl Inspected {
    fn find_address(&self, container: &ContainerArg, reach: &AddressSource) -> Result<SocketAddr, String> {
        if !self.state.running {
            return Err(format!("is {}, not running", self.state.status));
        }
        match reach {
            AddressSource::Own(network) => self.own_address(container, network),
            AddressSource::Host(host) if self.host_config.network_mode == "host" => self.host_address(container, host),
            AddressSource::Host(host) => self.published_address(container, host),
        }
    }

    /// The port inside the container: the typed one, or the only one that its image exposes.
    fn exposed_port(&self, container: &ContainerArg) -> Result<u16, String> {
        let exposed = self.config.exposed_ports.iter().flatten();
        // UDP ports are left out, because HAProxy's servers are reached by TCP.
        let exposed: Vec<u16> = exposed.filter_map(|(port, _)| tcp_port(port)).collect();
        match (container.port, exposed.as_slice()) {
            (Some(port), _) => Ok(port),
            (None, [port]) => Ok(*port),
            (None, []) => Err("exposes no port; say which with --port".into()),
            (None, several) => Err(format!("exposes the ports {}; say which with --port", join_list(several))),
        }
    }

    /// With `--network host` the app listens at the host's own addresses.
    fn host_address(&self, container: &ContainerArg, host: &HostAddresses) -> Result<SocketAddr, String> {
        let port = self.exposed_port(container)?;
        let ip = host.given.or(host.v4.map(IpAddr::V4)).or(host.v6.map(IpAddr::V6));
        Ok(SocketAddr::new(ip.ok_or_else(no_host_address)?, port))
    }

    /// The container's own address in a network to which the balancers must have a route.
    fn own_address(&self, container: &ContainerArg, network: &str) -> Result<SocketAddr, String> {
        let networks = self.network_settings.networks.iter().flatten();
        let addresses: Vec<(&String, IpAddr)> =
            networks.filter_map(|(name, it)| Some((name, it.parse_address()?))).collect();
        match addresses.iter().find(|(name, _)| *name == network) {
            Some((_, address)) => Ok(SocketAddr::new(*address, self.exposed_port(container)?)),
            None if addresses.is_empty() => Err("has no address of its own; leave --container-network out".into()),
            None => {
                let names: Vec<&str> = addresses.iter().map(|(name, _)| name.as_str()).collect();
                Err(format!("isn't in the network {network}; it is in {}", names.join(", ")))
            }
        }
    }

    fn published_ports(&self) -> Vec<PublishedPort> {
        let mut published = Vec::new();
        for (port, bindings) in self.network_settings.ports.iter().flatten() {
            let sockets: Vec<SocketAddr> = bindings.iter().flatten().filter_map(Binding::to_socket).collect();
            published.extend(tcp_port(port).filter(|_| !sockets.is_empty()).map(|port| (port, sockets)));
        }
        published
    }

    /// The host's address and port that `docker run --publish` leads to the container.
    fn published_address(&self, container: &ContainerArg, host: &HostAddresses) -> Result<SocketAddr, String> {
        let published = self.published_ports();
        let ports: Vec<u16> = published.iter().map(|(port, _)| *port).collect();
        let (port, bindings) = match (container.port, published.as_slice()) {
            (_, []) => {
                let networks = self.network_settings.networks.iter().flatten().map(|(name, _)| name.as_str());
                let networks = networks.collect::<Vec<_>>().join(", ");
                return Err(format!(
                    "publishes no port, and balancers on other hosts don't reach its own address: start it with \
                     `docker run --publish`, or give --container-network if they are in a network of its: {networks}"
                ));
            }
            (None, [one]) => one,
            (None, _) => return Err(format!("publishes the ports {}; say which with --port", join_list(&ports))),
            (Some(port), all) => find_published(all, port)
                .ok_or_else(|| format!("doesn't publish port {port}, but {}", join_list(&ports)))?,
        };
        // 127.0.0.1 would be each balancer's own host.
        let reachable: Vec<&SocketAddr> = bindings.iter().filter(|it| !it.ip().is_loopback()).collect();
        if reachable.is_empty() {
            let (at, outside) = (join_list(bindings), bindings.first().map_or(*port, SocketAddr::port));
            return Err(format!(
                "publishes port {port} at {at} only, which no balancer on another host reaches: publish it with \
                 `--publish {outside}:{port}`"
            ));
        }
        host.choose_address(&reachable).ok_or_else(|| match host.given {
            Some(given) => format!("publishes port {port} at {}, not at {given}", join_list(&reachable)),
            None => no_host_address(),
        })
    }
}

/// A port of the container, and the addresses on the host that lead to it.
type PublishedPort = (u16, Vec<SocketAddr>);

/// Finds the typed port. It is the container's, or if the container has no such port, the host's.
fn find_published(published: &[PublishedPort], port: u16) -> Option<&PublishedPort> {
    let inside = published.iter().find(|(it, _)| *it == port);
    // The port inside the container comes first. An operator may also name the one that is published outside.
    inside.or_else(|| published.iter().find(|(_, bindings)| bindings.iter().any(|it| it.port() == port)))
}

impl Binding {
    fn to_socket(&self) -> Option<SocketAddr> {
        // Docker before 20.10 leaves the address of a port on all IPv4 addresses empty.
        let ip = if self.host_ip.is_empty() { Ok(Ipv4Addr::UNSPECIFIED.into()) } else { self.host_ip.parse() };
        Some(SocketAddr::new(ip.ok()?, self.host_port.parse().ok().filter(|port| *port > 0)?))
    }
}

fn no_host_address() -> String {
    "this host's address isn't known: no address leads to etcd or by the default route; say which with --host-address"
        .into()
}

/// The number in `8000/tcp`; None for another protocol.
fn tcp_port(text: &str) -> Option<u16> {
    text.strip_suffix("/tcp")?.parse().ok()
}

fn join_list<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

impl Network {
    fn parse_address(&self) -> Option<IpAddr> {
        self.address.parse().or_else(|_| self.address_v6.parse()).ok()
    }
}

/// The innermost cause. reqwest's outer errors only repeat the URL.
fn innermost_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A container in these networks, with these exposed and published ports.
    fn inspected(mode: &str, networks: &str, exposed: &str, published: &str) -> Inspected {
        let text = format!(
            r#"{{"Name":"/web-1","State":{{"Running":true,"Status":"running"}},"HostConfig":{{"NetworkMode":"{mode}"}},
                "Config":{{"ExposedPorts":{exposed}}},"NetworkSettings":{{"Networks":{networks},"Ports":{published}}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    const BRIDGE: &str = r#"{"bridge":{"IPAddress":"172.17.0.2","GlobalIPv6Address":""}}"#;
    /// `-p 23151:8000`, as Docker has it where the host has IPv6.
    const PUBLISHED: &str = r#"{"8000/tcp":[{"HostIp":"0.0.0.0","HostPort":"23151"},{"HostIp":"::","HostPort":"23151"}],"9000/tcp":null,"53/udp":[{"HostIp":"0.0.0.0","HostPort":"53"}]}"#;

    fn host() -> HostAddresses {
        HostAddresses { given: None, v4: Some(Ipv4Addr::new(10, 0, 0, 5)), v6: "fd00::5".parse().ok() }
    }

    fn given(address: &str) -> HostAddresses {
        HostAddresses { given: address.parse().ok(), ..host() }
    }

    fn find(inspected: &Inspected, typed: &str, reach: &AddressSource) -> Result<String, String> {
        let found = locate_listener(inspected, &typed.parse().unwrap(), reach);
        found.map(|it| format!("{} {}", it.id, it.address)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_published_port_is_at_the_hosts_address() {
        let one = |published: &str, typed: &str, host: HostAddresses| {
            find(&inspected("bridge", BRIDGE, "{}", published), typed, &AddressSource::Host(host))
        };
        assert_eq!(one(PUBLISHED, "web-1", host()).unwrap(), "web-1 10.0.0.5:23151");
        assert_eq!(one(PUBLISHED, "web-1:8000", host()).unwrap(), "web-1 10.0.0.5:23151");
        assert_eq!(one(PUBLISHED, "web-1:23151", host()).unwrap(), "web-1 10.0.0.5:23151", "the host's port");
        assert_eq!(one(PUBLISHED, "web-1", given("10.9.9.9")).unwrap(), "web-1 10.9.9.9:23151");
        assert_eq!(one(PUBLISHED, "web-1", given("fd00::9")).unwrap(), "web-1 [fd00::9]:23151");
        let six = HostAddresses { v4: None, ..host() };
        assert_eq!(one(PUBLISHED, "web-1", six).unwrap(), "web-1 [fd00::5]:23151");
        assert!(one(PUBLISHED, "web-1", HostAddresses::default()).unwrap_err().ends_with("--host-address"));
        assert!(one(PUBLISHED, "web-1:9000", host()).unwrap_err().contains("doesn't publish port 9000, but 8000"));

        let bound = r#"{"80/tcp":[{"HostIp":"10.1.0.5","HostPort":"8080"}]}"#;
        assert_eq!(one(bound, "web-1", host()).unwrap(), "web-1 10.1.0.5:8080");
        assert_eq!(one(bound, "web-1", given("10.1.0.5")).unwrap(), "web-1 10.1.0.5:8080");
        assert!(one(bound, "web-1", given("10.9.9.9")).unwrap_err().ends_with("at 10.1.0.5:8080, not at 10.9.9.9"));
        let old = r#"{"80/tcp":[{"HostIp":"","HostPort":"8080"}]}"#;
        assert_eq!(one(old, "web-1", host()).unwrap(), "web-1 10.0.0.5:8080");

        let loopback =
            r#"{"8000/tcp":[{"HostIp":"127.0.0.1","HostPort":"23151"},{"HostIp":"::1","HostPort":"23151"}]}"#;
        let refused = one(loopback, "web-1", host()).unwrap_err();
        assert!(
            refused.contains("at 127.0.0.1:23151, [::1]:23151 only") && refused.contains("`--publish 23151:8000`"),
            "{refused}"
        );
        let both = r#"{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":"80"},{"HostIp":"10.1.0.5","HostPort":"8080"}]}"#;
        assert_eq!(one(both, "web-1", host()).unwrap(), "web-1 10.1.0.5:8080");
        let two = r#"{"80/tcp":[{"HostIp":"","HostPort":"1"}],"81/tcp":[{"HostIp":"","HostPort":"2"}]}"#;
        assert!(one(two, "web-1", host()).unwrap_err().ends_with("publishes the ports 80, 81; say which with --port"));
        assert_eq!(one(two, "web-1:81", host()).unwrap(), "web-1 10.0.0.5:2");
        for nothing in ["null", "{}", r#"{"80/tcp":null}"#, r#"{"80/tcp":[]}"#] {
            let refused = one(nothing, "web-1", host()).unwrap_err();
            assert!(
                refused.contains("publishes no port")
                    && refused.ends_with("--container-network if they are in a network of its: bridge"),
                "{refused}"
            );
        }
    }

    #[test]
    fn in_the_hosts_network_it_is_at_the_hosts_address() {
        let one = |exposed: &str, typed: &str| {
            find(&inspected("host", r#"{"host":{"IPAddress":""}}"#, exposed, "{}"), typed, &AddressSource::Host(host()))
        };
        assert_eq!(one("null", "web-1:81").unwrap(), "web-1 10.0.0.5:81");
        assert_eq!(one(r#"{"8000/tcp":{},"53/udp":{}}"#, "web-1").unwrap(), "web-1 10.0.0.5:8000");
        assert!(one("null", "web-1").unwrap_err().ends_with("exposes no port; say which with --port"));
        assert!(one(r#"{"1/tcp":{},"2/tcp":{}}"#, "web-1").unwrap_err().contains("the ports 1, 2;"));
    }

    #[test]
    fn its_own_address_has_to_be_asked_for() {
        let own = |networks: &str, typed: &str, network: &str| {
            find(&inspected("bridge", networks, "null", PUBLISHED), typed, &AddressSource::Own(network.into()))
        };
        assert_eq!(own(BRIDGE, "web-1:81", "bridge").unwrap(), "web-1 172.17.0.2:81");
        let two = r#"{"a":{"IPAddress":"10.0.0.2"},"b":{"IPAddress":"","GlobalIPv6Address":"fd01::2"}}"#;
        assert_eq!(own(two, "web-1:81", "b").unwrap(), "web-1 [fd01::2]:81");
        assert!(own(two, "web-1:81", "c").unwrap_err().ends_with("it is in a, b"));
        assert!(own(BRIDGE, "web-1", "bridge").unwrap_err().ends_with("say which with --port"));
        assert!(
            own(r#"{"host":{"IPAddress":""}}"#, "web-1:1", "host").unwrap_err().contains("has no address of its own")
        );
        let stopped = serde_json::from_str(r#"{"Name":"/w","State":{"Status":"exited"}}"#).unwrap();
        assert!(find(&stopped, "w:1", &AddressSource::Own("a".into())).unwrap_err().contains("is exited"));
    }

    #[test]
    fn a_port_is_said_once() {
        let (port, container) = (NonZeroU16::new(80), "web-1".parse::<ContainerArg>().unwrap());
        assert_eq!(container.clone().with_port(port).unwrap(), "web-1:80".parse().unwrap());
        assert_eq!(container.clone().with_port(None).unwrap(), container);
        assert!("web-1:80".parse::<ContainerArg>().unwrap().with_port(port).is_err());
    }

    #[test]
    fn nothing_that_is_typed_leads_to_another_request() {
        assert!("web-1:0".parse::<ContainerArg>().is_err() && "web-1:x".parse::<ContainerArg>().is_err());
        assert!("../info".parse::<ContainerArg>().is_err() && "a/b".parse::<ContainerArg>().is_err());
    }
}
