//! Where a container listens, by Docker's API (Engine API v1.24 and later, `GET /containers/{id}/json`).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use discovery::{UpstreamAddress, UpstreamId};
use serde::Deserialize;

use crate::error::Error;

/// The daemon answers from memory.
const REQUEST: Duration = Duration::from_secs(5);

/// `ID[:PORT]` as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Container {
    /// Its name, or its id or the beginning of that.
    name: UpstreamId,
    /// The port that it listens on.
    port: Option<u16>,
}

impl FromStr for Container {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, port) = match text.split_once(':') {
            None => (text, None),
            Some((name, port)) => {
                let port = port.parse().ok().filter(|port| *port > 0);
                (name, Some(port.ok_or_else(|| format!("{text:?}: the port is a number from 1 to 65535"))?))
            }
        };
        // A container's name follows the same rule as an upstream's; so nothing of it means anything in a URL.
        let name = name.parse().map_err(|refusal: discovery::Refusal| refusal.to_string())?;
        Ok(Self { name, port })
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The container's name.
    pub(crate) id: UpstreamId,
    /// Where it listens.
    pub(crate) address: UpstreamAddress,
}

/// Docker's API.
pub(crate) struct Docker {
    http: reqwest::Client,
    place: String,
}

/// What the API says of a container, as far as it is used.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Inspected {
    name: String,
    state: State,
    config: Config,
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
struct NetworkSettings {
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
    /// The API at `unix:///var/run/docker.sock`; a daemon across the network would be asked without TLS.
    pub(crate) fn at(place: &str) -> Result<Self, Error> {
        let path = place.strip_prefix("unix://").filter(|path| path.starts_with('/'));
        let path = path.ok_or_else(|| Error::Usage(format!("--docker {place}: unix:///PATH is what can be asked")))?;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().unix_socket(path).timeout(REQUEST).no_proxy();
        let client = client.tls_certs_only([]).build();
        let http = client.map_err(|error| Error::Failed(format!("Docker's API: {error}")))?;
        Ok(Self { http, place: place.to_owned() })
    }

    /// Where the container listens.
    pub(crate) async fn find(&self, container: &Container, network: Option<&str>) -> Result<Found, Error> {
        let place = &self.place;
        let failed = |error: reqwest::Error| Error::Refused(format!("Docker's API at {place}: {}", innermost(&error)));
        let response = self.http.get(format!("http://docker/containers/{}/json", container.name)).send().await;
        let response = response.map_err(failed)?;
        match response.status().as_u16() {
            200 => found(&response.json().await.map_err(failed)?, container, network),
            404 => Err(Error::Refused(format!("Docker knows no container {}", container.name))),
            code => Err(Error::Refused(format!("Docker's API at {place} answers {code} for {}", container.name))),
        }
    }
}

/// What is meant, of all that the API says.
fn found(inspected: &Inspected, container: &Container, network: Option<&str>) -> Result<Found, Error> {
    let name = inspected.name.trim_start_matches('/');
    let refused = |words: String| Err(Error::Refused(format!("container {name}: {words}")));
    if !inspected.state.running {
        return refused(format!("is {}, not running", inspected.state.status));
    }
    let networks = inspected.network_settings.networks.iter().flatten();
    let addresses: Vec<(&String, IpAddr)> = networks.filter_map(|(name, it)| Some((name, it.address()?))).collect();
    let wanted: Vec<_> = addresses.iter().filter(|(name, _)| network.is_none_or(|network| *name == network)).collect();
    let names = addresses.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    let address = match (wanted.as_slice(), addresses.is_empty()) {
        ([(_, address)], _) => *address,
        (_, true) => {
            return refused("has no address of its own (host network?): register it with the host's address".into());
        }
        ([], false) => return refused(format!("isn't in that network; it is in {names}")),
        (_, false) => return refused(format!("is in several networks; --network says which: {names}")),
    };
    let exposed = inspected.config.exposed_ports.iter().flatten();
    let exposed: Vec<u16> = exposed.filter_map(|(port, _)| port.strip_suffix("/tcp")?.parse().ok()).collect();
    let port = match (container.port, exposed.as_slice()) {
        (Some(port), _) => port,
        (None, [port]) => *port,
        (None, []) => return refused(format!("exposes no port; say which: --container {name}:PORT")),
        (None, several) => {
            return refused(format!("exposes the ports {several:?}; say which: --container {name}:PORT"));
        }
    };
    let id = name.parse().map_err(|refusal| Error::Refused(format!("container {name}: {refusal}")))?;
    let address = SocketAddr::new(address, port).to_string().parse();
    Ok(Found { id, address: address.map_err(|refusal| Error::Refused(format!("container {name}: {refusal}")))? })
}

impl Network {
    fn address(&self) -> Option<IpAddr> {
        self.address.parse().or_else(|_| self.address_v6.parse()).ok()
    }
}

/// The cause that says something.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspected(networks: &str, ports: &str) -> Inspected {
        let text = format!(
            r#"{{"Name":"/web-1","State":{{"Running":true,"Status":"running"}},
                "Config":{{"ExposedPorts":{ports}}},"NetworkSettings":{{"Networks":{networks}}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    const BRIDGE: &str = r#"{"bridge":{"IPAddress":"172.17.0.2","GlobalIPv6Address":""}}"#;

    #[test]
    fn one_network_and_one_port_need_no_word() {
        let find = |networks: &str, ports: &str, typed: &str, network| {
            found(&inspected(networks, ports), &typed.parse().unwrap(), network)
                .map(|it| format!("{} {}", it.id, it.address))
                .map_err(|error| error.to_string())
        };
        assert_eq!(find(BRIDGE, r#"{"8000/tcp":{},"53/udp":{}}"#, "web-1", None).unwrap(), "web-1 172.17.0.2:8000");
        assert_eq!(find(BRIDGE, "null", "web-1:81", None).unwrap(), "web-1 172.17.0.2:81");
        assert!(find(BRIDGE, "null", "web-1", None).unwrap_err().ends_with("--container web-1:PORT"));
        assert!(find(BRIDGE, r#"{"1/tcp":{},"2/tcp":{}}"#, "web-1", None).unwrap_err().contains("[1, 2]"));
        let two = r#"{"a":{"IPAddress":"10.0.0.2"},"b":{"IPAddress":"10.1.0.2"}}"#;
        assert!(find(two, "null", "web-1:81", None).unwrap_err().ends_with("--network says which: a, b"));
        assert_eq!(find(two, "null", "web-1:81", Some("b")).unwrap(), "web-1 10.1.0.2:81");
        assert!(find(two, "null", "web-1:81", Some("c")).unwrap_err().ends_with("it is in a, b"));
        assert!(find(r#"{"host":{"IPAddress":""}}"#, "null", "x:1", None).unwrap_err().contains("host network?"));
        let stopped = serde_json::from_str(r#"{"Name":"/w","State":{"Status":"exited"}}"#).unwrap();
        assert!(found(&stopped, &"w:1".parse().unwrap(), None).unwrap_err().to_string().contains("is exited"));
    }

    #[test]
    fn nothing_that_is_typed_leads_to_another_request() {
        assert!("web-1:0".parse::<Container>().is_err() && "web-1:x".parse::<Container>().is_err());
        assert!("../info".parse::<Container>().is_err() && "a/b".parse::<Container>().is_err());
    }
}
