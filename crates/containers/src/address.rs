//! The address at which balancers on other hosts reach a container. Pure: no I/O, no clock.

use std::net::{IpAddr, SocketAddr};

use discovery::UpstreamAddress;

use crate::container::Container;
use crate::host_addresses::HostAddresses;

/// The kind of address that balancers reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// One of the host's addresses, at the published port.
    Host(HostAddresses),
    /// The container's own address in this network.
    Network(String),
}

/// The reason why balancers reach no address of a container, and the way out. One line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AddressRefusal(String);

/// Finds the address of a container's port. Without a port it must have just one. `port_option` is the option or label that
/// would name it.
///
/// # Errors
/// If balancers on other hosts would not reach the port, or if the port isn't clear.
pub fn find_address(
    container: &Container,
    port: Option<u16>,
    reach: &Reach,
    port_option: &str,
) -> Result<UpstreamAddress, AddressRefusal> {
    let port = Port { port, option: port_option };
    let found = match reach {
        Reach::Network(network) => own_address(container, port, network),
        Reach::Host(host) if container.is_in_host_network() => host_address(container, port, host),
        Reach::Host(host) => published_address(container, port, host),
    };
    let address: Result<UpstreamAddress, _> = found.map_err(AddressRefusal)?.try_into();
    address.map_err(|refusal| AddressRefusal(refusal.to_string()))
}

/// The port as asked for, and the option that would name it.
#[derive(Clone, Copy)]
struct Port<'a> {
    port: Option<u16>,
    option: &'a str,
}

/// A port of the container, and the addresses on the host that lead to it.
type PublishedPort<'a> = (u16, &'a [SocketAddr]);

/// The port inside the container: the named one, or the only one that its image exposes.
fn exposed_port(container: &Container, port: Port<'_>) -> Result<u16, String> {
    let exposed: Vec<u16> = container.exposed.iter().copied().collect();
    match (port.port, exposed.as_slice()) {
        (Some(port), _) => Ok(port),
        (None, [port]) => Ok(*port),
        (None, []) => Err(format!("exposes no port; say which with {}", port.option)),
        (None, several) => Err(format!("exposes the ports {}; say which with {}", join_list(several), port.option)),
    }
}

/// With `--network host` the app listens at the host's own addresses.
fn host_address(container: &Container, port: Port<'_>, host: &HostAddresses) -> Result<SocketAddr, String> {
    let port = exposed_port(container, port)?;
    Ok(SocketAddr::new(host.main_address().ok_or_else(no_host_address)?, port))
}

/// The container's own address in a network to which the balancers must have a route.
fn own_address(container: &Container, port: Port<'_>, network: &str) -> Result<SocketAddr, String> {
    let addresses: Vec<(&String, IpAddr)> =
        container.networks.iter().filter_map(|(name, address)| Some((name, (*address)?))).collect();
    match addresses.iter().find(|(name, _)| *name == network) {
        Some((_, address)) => Ok(SocketAddr::new(*address, exposed_port(container, port)?)),
        None if addresses.is_empty() => Err("has no address of its own; leave --container-network out".into()),
        None => {
            let names: Vec<&str> = addresses.iter().map(|(name, _)| name.as_str()).collect();
            Err(format!("isn't in the network {network}; it is in {}", names.join(", ")))
        }
    }
}

/// The host's address and port that `docker run --publish` leads to the container.
fn published_address(container: &Container, port: Port<'_>, host: &HostAddresses) -> Result<SocketAddr, String> {
    let published: Vec<PublishedPort<'_>> =
        container.published.iter().map(|(port, bindings)| (*port, bindings.as_slice())).collect();
    let ports: Vec<u16> = published.iter().map(|(port, _)| *port).collect();
    let (port, bindings) = match (port.port, published.as_slice()) {
        (_, []) => {
            let networks: Vec<&str> = container.networks.keys().map(String::as_str).collect();
            return Err(format!(
                "publishes no port, and balancers on other hosts don't reach its own address: start it with \
                 `docker run --publish`, or give --container-network if they are in a network of its: {}",
                networks.join(", ")
            ));
        }
        (None, [one]) => *one,
        (None, _) => {
            return Err(format!("publishes the ports {}; say which with {}", join_list(&ports), port.option));
        }
        (Some(port), all) => find_published(all, port)
            .ok_or_else(|| format!("doesn't publish port {port}, but {}", join_list(&ports)))?,
    };
    // 127.0.0.1 would be each balancer's own host.
    let reachable: Vec<SocketAddr> = bindings.iter().filter(|it| !it.ip().is_loopback()).copied().collect();
    if reachable.is_empty() {
        let (at, outside) = (join_list(bindings), bindings.first().map_or(port, SocketAddr::port));
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

/// Finds the named port. It is the container's, or if the container has no such port, the host's.
fn find_published<'a>(published: &[PublishedPort<'a>], port: u16) -> Option<PublishedPort<'a>> {
    let inside = published.iter().find(|(it, _)| *it == port);
    // The port inside the container comes first. An operator may also name the one that is published outside.
    inside.or_else(|| published.iter().find(|(_, bindings)| bindings.iter().any(|it| it.port() == port))).copied()
}

fn no_host_address() -> String {
    "this host's address isn't known: no address leads to etcd or by the default route; say which with --host-address"
        .into()
}

fn join_list<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn host() -> HostAddresses {
        HostAddresses { given: None, v4: Some(Ipv4Addr::new(10, 0, 0, 5)), v6: "fd00::5".parse().ok() }
    }

    fn given(address: &str) -> HostAddresses {
        HostAddresses { given: address.parse().ok(), ..host() }
    }

    /// A container in the bridge's network, with these published ports.
    fn publishing(ports: &[(u16, &[&str])]) -> Container {
        let published =
            ports.iter().map(|(port, at)| (*port, at.iter().map(|at| at.parse().unwrap()).collect())).collect();
        let networks = [("bridge".to_owned(), "172.17.0.2".parse().ok())].into();
        Container { published, networks, network_mode: "bridge".to_owned(), ..Container::default() }
    }

    fn find(container: &Container, port: Option<u16>, reach: &Reach) -> Result<String, String> {
        let found = find_address(container, port, reach, "--port");
        found.map(|address| address.to_string()).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn a_published_port_is_at_the_hosts_address() {
        let both = publishing(&[(8000, &["0.0.0.0:23151", "[::]:23151"])]);
        let at = |container: &Container, port, host| find(container, port, &Reach::Host(host));
        assert_eq!(at(&both, None, host()).unwrap(), "10.0.0.5:23151");
        assert_eq!(at(&both, Some(8000), host()).unwrap(), "10.0.0.5:23151");
        assert_eq!(at(&both, Some(23151), host()).unwrap(), "10.0.0.5:23151", "the host's port");
        assert_eq!(at(&both, None, given("10.9.9.9")).unwrap(), "10.9.9.9:23151");
        assert_eq!(at(&both, None, given("fd00::9")).unwrap(), "[fd00::9]:23151");
        assert_eq!(at(&both, None, HostAddresses { v4: None, ..host() }).unwrap(), "[fd00::5]:23151");
        assert!(at(&both, None, HostAddresses::default()).unwrap_err().ends_with("--host-address"));
        assert!(at(&both, Some(9000), host()).unwrap_err().contains("doesn't publish port 9000, but 8000"));

        let bound = publishing(&[(80, &["10.1.0.5:8080"])]);
        assert_eq!(at(&bound, None, host()).unwrap(), "10.1.0.5:8080");
        assert_eq!(at(&bound, None, given("10.1.0.5")).unwrap(), "10.1.0.5:8080");
        assert!(at(&bound, None, given("10.9.9.9")).unwrap_err().ends_with("at 10.1.0.5:8080, not at 10.9.9.9"));
        let mixed = publishing(&[(80, &["127.0.0.1:80", "10.1.0.5:8080"])]);
        assert_eq!(at(&mixed, None, host()).unwrap(), "10.1.0.5:8080");
        let two = publishing(&[(80, &["0.0.0.0:1"]), (81, &["0.0.0.0:2"])]);
        assert!(at(&two, None, host()).unwrap_err().ends_with("publishes the ports 80, 81; say which with --port"));
        assert_eq!(at(&two, Some(81), host()).unwrap(), "10.0.0.5:2");
    }

    #[test]
    fn a_port_that_no_other_host_reaches_is_refused() {
        let reach = Reach::Host(host());
        let refused = find(&publishing(&[(8000, &["127.0.0.1:23151", "[::1]:23151"])]), None, &reach).unwrap_err();
        assert!(
            refused.contains("at 127.0.0.1:23151, [::1]:23151 only") && refused.contains("`--publish 23151:8000`"),
            "{refused}"
        );
        let refused = find(&publishing(&[]), None, &reach).unwrap_err();
        assert!(
            refused.contains("publishes no port")
                && refused.ends_with("--container-network if they are in a network of its: bridge"),
            "{refused}"
        );
    }

    #[test]
    fn in_the_hosts_network_it_is_at_the_hosts_address() {
        let one = |exposed: &[u16], port| {
            let container = Container {
                network_mode: "host".to_owned(),
                exposed: exposed.iter().copied().collect(),
                ..Container::default()
            };
            find(&container, port, &Reach::Host(host()))
        };
        assert_eq!(one(&[], Some(81)).unwrap(), "10.0.0.5:81");
        assert_eq!(one(&[8000], None).unwrap(), "10.0.0.5:8000");
        assert!(one(&[], None).unwrap_err().ends_with("exposes no port; say which with --port"));
        assert!(one(&[1, 2], None).unwrap_err().contains("the ports 1, 2;"));
    }

    #[test]
    fn its_own_address_has_to_be_asked_for() {
        let own =
            |container: &Container, port, network: &str| find(container, port, &Reach::Network(network.to_owned()));
        let one = publishing(&[(8000, &["0.0.0.0:1"])]);
        assert_eq!(own(&one, Some(81), "bridge").unwrap(), "172.17.0.2:81");
        let networks = [("a".to_owned(), "10.0.0.2".parse().ok()), ("b".to_owned(), "fd01::2".parse().ok())].into();
        let two = Container { networks, ..Container::default() };
        assert_eq!(own(&two, Some(81), "b").unwrap(), "[fd01::2]:81");
        assert!(own(&two, Some(81), "c").unwrap_err().ends_with("it is in a, b"));
        assert!(own(&one, None, "bridge").unwrap_err().ends_with("say which with --port"));
        let none = Container { networks: [("host".to_owned(), None)].into(), ..Container::default() };
        assert!(own(&none, Some(1), "host").unwrap_err().contains("has no address of its own"));
    }
}
