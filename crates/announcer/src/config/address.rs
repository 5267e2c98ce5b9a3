//! Finds the address at which balancers reach the app. It sends no packet, except to a name server if an endpoint is a
//! name.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use discovery::{Refusal, UpstreamAddress};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    net::if_::{InterfaceFlags, if_nametoindex},
};
use registry::Endpoint;
use tokio::net::{UdpSocket, lookup_host};

/// Source of the announced address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AddressSource {
    /// `--upstream`.
    Given(UpstreamAddress),
    /// `--port`, with an IP address to be found.
    Find {
        /// Port of the app on this host.
        port: u16,
        /// Source of the IP address.
        by: AddressFinder,
    },
}

/// Source of an IP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AddressFinder {
    /// Name from `--interface`.
    Interface(String),
    /// Value of `COREOS_PRIVATE_IPV4`.
    Private(IpAddr),
    /// Source address that the kernel chooses towards etcd. Balancers are in etcd's network.
    TowardsEtcd,
}

impl AddressSource {
    /// Announced port, which is known before the address.
    pub(crate) fn port(&self) -> u16 {
        match self {
            Self::Given(address) => address.socket_addr().port(),
            Self::Find { port, .. } => *port,
        }
    }
}

/// Reason for a missing address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddressError {
    #[error("no network interface {0}: correct --interface, or give --upstream IP:PORT")]
    NoInterface(String),
    #[error("the network interface {0} has no address yet")]
    NoAddress(String),
    #[error("can't list the network interfaces: {0}")]
    Interfaces(Errno),
    #[error("no endpoint of etcd is known")]
    NoEndpoint,
    #[error("can't resolve the host of {endpoint}: {source}")]
    Resolve { endpoint: String, source: io::Error },
    #[error("no route to {endpoint} yet: {source}")]
    NoRoute { endpoint: String, source: io::Error },
    #[error("{from} gives the address {ip}, which balancers refuse; give {}; to balancers on this host whose \
             --upstream-networks has {ip}, announce it with --upstream {}",
            describe_alternatives(offers, *port), SocketAddr::new(*ip, *port))]
    Useless {
        /// Setting or route that gave the address.
        from: &'static str,
        /// Loopback, unspecified or multicast address.
        ip: IpAddr,
        /// Port for the proposals in the message.
        port: u16,
        /// Usable interfaces of this host, each with its best address.
        offers: Vec<(String, IpAddr)>,
    },
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl AddressError {
    /// True if a later attempt may succeed: networks and name servers start in their own time.
    pub(crate) fn is_temporary(&self) -> bool {
        match self {
            Self::NoAddress(_) | Self::Interfaces(_) | Self::Resolve { .. } | Self::NoRoute { .. } => true,
            Self::NoEndpoint | Self::NoInterface(_) | Self::Useless { .. } | Self::Refused(_) => false,
        }
    }
}

/// Finds the address. A temporary error may go away by itself, see [`AddressError::is_temporary`].
pub(crate) async fn find_address(
    source: &AddressSource,
    endpoints: &[Endpoint],
) -> Result<UpstreamAddress, AddressError> {
    let (ip, port) = match source {
        AddressSource::Given(address) => return Ok(*address),
        AddressSource::Find { port, by: AddressFinder::Interface(name) } => (interface_address(name)?, *port),
        AddressSource::Find { port, by: AddressFinder::Private(ip) } => {
            (reject_useless(*ip, "COREOS_PRIVATE_IPV4", *port)?, *port)
        }
        AddressSource::Find { port, by: AddressFinder::TowardsEtcd } => {
            (reject_useless(source_address_to_first(endpoints).await?, "the route to etcd", *port)?, *port)
        }
    };
    Ok(SocketAddr::new(ip, port).try_into()?)
}

/// Refuses a found address that balancers would refuse.
fn reject_useless(ip: IpAddr, from: &'static str, port: u16) -> Result<IpAddr, AddressError> {
    if is_useless(ip) { Err(AddressError::Useless { from, ip, port, offers: list_alternatives() }) } else { Ok(ip) }
}

fn is_useless(ip: IpAddr) -> bool {
    // confgen refuses these unless its --upstream-networks has them.
    ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()
}

/// Interfaces that are up and have an address that other hosts may reach, each with its best address.
fn list_alternatives() -> Vec<(String, IpAddr)> {
    let mut names: Vec<String> = getifaddrs().into_iter().flatten().map(|entry| entry.interface_name).collect();
    names.dedup();
    let mut offers: Vec<(String, IpAddr)> = Vec::new();
    for name in names {
        let is_new = offers.iter().all(|(other, _)| *other != name);
        if let Some(ip) = interface_address(&name).ok().filter(|ip| is_new && !is_useless(*ip)) {
            offers.push((name, ip));
        }
    }
    offers
}

/// Options that would help, in one phrase.
fn describe_alternatives(offers: &[(String, IpAddr)], port: u16) -> String {
    /// A host with many bridges would fill the log with one message.
    const MOST: usize = 3;
    if offers.is_empty() {
        return "--interface NAME, or --upstream IP:PORT with an address of this host that balancers reach".to_owned();
    }
    let most = offers.iter().take(MOST);
    let options: Vec<_> =
        most.map(|(name, ip)| format!("--upstream {} ({name})", SocketAddr::new(*ip, port))).collect();
    format!("{}, or --interface NAME", options.join(" or "))
}

/// Best address of an interface that is up.
fn interface_address(name: &str) -> Result<IpAddr, AddressError> {
    let listed = getifaddrs().map_err(AddressError::Interfaces)?;
    let addresses = listed.filter(|entry| entry.interface_name == name && entry.flags.contains(InterfaceFlags::IFF_UP));
    let ips = addresses.filter_map(|entry| {
        let address = entry.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    match prefer_ipv4(ips) {
        Some(ip) => Ok(ip),
        // An interface may still get its address, by DHCP for example. A missing interface is a mistake.
        None if if_nametoindex(name).is_ok() => Err(AddressError::NoAddress(name.to_owned())),
        None => Err(AddressError::NoInterface(name.to_owned())),
    }
}

/// First IPv4 address, or else the first IPv6 address that is not link-local.
fn prefer_ipv4(ips: impl Iterator<Item = IpAddr>) -> Option<IpAddr> {
    // A link-local address needs a zone, which means nothing on another host.
    let mut ips: Vec<_> = ips.filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())).collect();
    ips.sort_by_key(IpAddr::is_ipv6);
    ips.first().copied()
}

/// Source address towards the first endpoint that has a route.
async fn source_address_to_first(endpoints: &[Endpoint]) -> Result<IpAddr, AddressError> {
    let mut failure = AddressError::NoEndpoint;
    for endpoint in endpoints {
        match source_address_to(endpoint).await {
            Ok(ip) => return Ok(ip),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Source address towards one endpoint. Connecting a UDP socket sends no packet: the kernel only chooses the route.
async fn source_address_to(endpoint: &Endpoint) -> Result<IpAddr, AddressError> {
    let address = match lookup_host((endpoint.host(), endpoint.port())).await {
        Ok(mut addresses) => addresses.next().ok_or_else(|| io::Error::other("the name has no address")),
        Err(error) => Err(error),
    };
    let address = address.map_err(|source| AddressError::Resolve { endpoint: endpoint.to_string(), source })?;
    let route = source_address_of_route(address).await;
    route.map_err(|source| AddressError::NoRoute { endpoint: endpoint.to_string(), source })
}

async fn source_address_of_route(to: SocketAddr) -> io::Result<IpAddr> {
    let unspecified = if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    // The connect of a UDP socket sends nothing. The kernel only chooses the address.
    let socket = UdpSocket::bind((unspecified, 0)).await?;
    socket.connect(to).await?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        etcd: registry::Args,
    }

    async fn found(by: AddressFinder, endpoints: &str) -> Result<String, AddressError> {
        let config = Cli::parse_from(["test", "--endpoints", endpoints]).etcd.resolve().unwrap();
        find_address(&AddressSource::Find { port: 8000, by }, config.endpoints())
            .await
            .map(|address| address.to_string())
    }

    #[tokio::test]
    async fn a_given_address_is_taken_as_it_is() {
        let given = "127.0.0.1:8000".parse().unwrap();
        assert_eq!(find_address(&AddressSource::Given(given), &[]).await.unwrap(), given);
    }

    #[tokio::test]
    async fn an_interface_that_is_named_may_be_loopback() {
        assert_eq!(found(AddressFinder::Interface("lo".into()), "http://e:1").await.unwrap(), "127.0.0.1:8000");
        let error = found(AddressFinder::Interface("nope0".into()), "http://e:1").await.unwrap_err();
        assert!(matches!(&error, AddressError::NoInterface(name) if name == "nope0") && !error.is_temporary());
    }

    #[tokio::test]
    async fn a_found_loopback_address_is_an_error_that_says_what_to_do() {
        for by in [AddressFinder::TowardsEtcd, AddressFinder::Private(Ipv4Addr::LOCALHOST.into())] {
            let error = found(by, "http://127.0.0.1:2379").await.unwrap_err();
            assert!(!error.is_temporary());
            let text = error.to_string();
            assert!(
                text.contains("127.0.0.1") && text.contains("--interface") && text.contains("--upstream"),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_offered_instead_can_be_followed() {
        let offers: Vec<_> = ["10.0.0.5", "fd00::5"].map(|ip| ("eth0".to_owned(), ip.parse().unwrap())).into();
        let offered_here = "--upstream 10.0.0.5:8000 (eth0) or --upstream [fd00::5]:8000 (eth0), or --interface NAME";
        assert_eq!(describe_alternatives(&offers, 8000), offered_here);
        let error =
            AddressError::Useless { from: "the route to etcd", ip: Ipv4Addr::LOCALHOST.into(), port: 8000, offers };
        let text = error.to_string();
        let for_this_host = "balancers on this host whose --upstream-networks has 127.0.0.1, announce it with --upstream 127.0.0.1:8000";
        assert!(text.contains(&format!("give {offered_here};")) && text.ends_with(for_this_host), "{text}");
        assert!(list_alternatives().iter().all(|(_, ip)| !is_useless(*ip)));
    }

    #[tokio::test]
    async fn a_private_address_is_announced() {
        let private = AddressFinder::Private("10.1.2.3".parse().unwrap());
        assert_eq!(found(private, "http://127.0.0.1:2379").await.unwrap(), "10.1.2.3:8000");
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_is_a_matter_of_time_and_the_next_endpoint_is_asked() {
        let error = found(AddressFinder::TowardsEtcd, "http://nowhere.invalid:2379").await.unwrap_err();
        assert!(error.is_temporary() && error.to_string().contains("nowhere.invalid"), "{error}");
        let error =
            found(AddressFinder::TowardsEtcd, "http://nowhere.invalid:2379,http://127.0.0.1:2379").await.unwrap_err();
        assert!(matches!(error, AddressError::Useless { .. }), "{error}");
    }

    #[test]
    fn ipv4_is_preferred_and_link_local_never_taken() {
        let best = |ips: &[&str]| prefer_ipv4(ips.iter().map(|ip| ip.parse().unwrap())).map(|ip| ip.to_string());
        assert_eq!(best(&["fe80::1", "fd00::1", "10.0.0.1"]).as_deref(), Some("10.0.0.1"));
        assert_eq!(best(&["fe80::1", "fd00::1"]).as_deref(), Some("fd00::1"));
        assert_eq!(best(&["fe80::1"]), None);
    }
}
