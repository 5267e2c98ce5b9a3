//! The host's own addresses, and the one of them at which balancers reach a published port. It asks the kernel, not the
//! engine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::time::timeout;

/// Limits the resolution of one name.
const LOOKUP_LIMIT: Duration = Duration::from_secs(3);

/// The host's addresses that balancers on other hosts reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostAddresses {
    /// The address that --host-address gives.
    pub given: Option<IpAddr>,
    /// Without --host-address: the host's IPv4 address towards etcd or the default route.
    pub v4: Option<Ipv4Addr>,
    /// Without --host-address: the host's IPv6 address towards etcd or the default route.
    pub v6: Option<Ipv6Addr>,
}

impl HostAddresses {
    /// The address of a port that is open on all of the host's addresses. IPv4 comes first.
    pub fn main_address(&self) -> Option<IpAddr> {
        self.given.or(self.v4.map(IpAddr::V4)).or(self.v6.map(IpAddr::V6))
    }

    /// Chooses the address of one of these bindings: the typed one, else the binding's own one, else the host's. IPv4
    /// comes first.
    pub(crate) fn choose_address(&self, bindings: &[SocketAddr]) -> Option<SocketAddr> {
        let mut bindings = bindings.to_vec();
        // A binding at one address says where balancers reach it. One at all addresses leaves that to a guess.
        bindings.sort_by_key(|it| (it.is_ipv6(), it.ip().is_unspecified()));
        bindings.into_iter().find_map(|binding| {
            let ip = match self.given {
                Some(given) => {
                    // A port at all addresses is reached at any address of the same family.
                    let fits = if binding.ip().is_unspecified() {
                        binding.is_ipv4() == given.is_ipv4()
                    } else {
                        binding.ip() == given
                    };
                    fits.then_some(given)
                }
                None if !binding.ip().is_unspecified() => Some(binding.ip()),
                None if binding.is_ipv4() => self.v4.map(IpAddr::V4),
                None => self.v6.map(IpAddr::V6),
            };
            Some(SocketAddr::new(ip?, binding.port()))
        })
    }

    /// Finds the addresses that the kernel would use towards these places and the default route. A UDP socket's connect
    /// sends nothing. A typed address makes the search needless.
    pub async fn find_addresses(given: Option<IpAddr>, places: &[(String, u16)]) -> Self {
        let mut found = Self { given, ..Self::default() };
        if given.is_some() {
            return found;
        }
        for (host, port) in places {
            let looked_up = timeout(LOOKUP_LIMIT, tokio::net::lookup_host((host.as_str(), *port))).await;
            let Ok(Ok(addresses)) = looked_up else { continue };
            for address in addresses {
                found.keep_if_first(own_address_towards(address));
            }
        }
        // Addresses of no host, reserved for documentation (RFC 5737, RFC 3849). Only the default route leads there.
        for elsewhere in
            [SocketAddr::from(([192, 0, 2, 1], 9)), (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9).into()]
        {
            found.keep_if_first(own_address_towards(elsewhere));
        }
        found
    }

    /// Keeps the first address of each family that other hosts can reach.
    fn keep_if_first(&mut self, ip: Option<IpAddr>) {
        match ip.filter(|ip| !ip.is_loopback() && !ip.is_unspecified()) {
            Some(IpAddr::V4(v4)) if !v4.is_link_local() => _ = self.v4.get_or_insert(v4),
            Some(IpAddr::V6(v6)) if !v6.is_unicast_link_local() => _ = self.v6.get_or_insert(v6),
            _ => {}
        }
    }
}

fn own_address_towards(there: SocketAddr) -> Option<IpAddr> {
    // The kernel chooses the address with which it would connect.
    let any: IpAddr = if there.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
    socket.connect(there).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
