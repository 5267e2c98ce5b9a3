//! Addresses: an upstream's socket, the ports of a TCP service, the client networks of `allow` and `preview`.
//!
//! Nothing here resolves a name. Pure: no I/O, no clock.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Refusal, words};

/// An upstream's IP address and port, at least 1. Host names are refused, because HAProxy rejects its whole file if one
/// name doesn't resolve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UpstreamAddress {
    // A `SocketAddr` has 32 bytes, and a balancer may have this 100,000 times.
    ip: IpAddr,
    port: u16,
}

impl UpstreamAddress {
    /// The address for the standard library, always without a scope id.
    pub fn socket_addr(self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }
}

impl TryFrom<SocketAddr> for UpstreamAddress {
    type Error = Refusal;

    fn try_from(address: SocketAddr) -> Result<Self, Refusal> {
        const RULE: &str = "an upstream is an IP address and a port from 1: 172.17.8.101:8000, [fd00::1]:8000";
        // A scope id numbers an interface of the announcer's host. It names another one, or none, on a balancer.
        let scoped = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0 || v6.flowinfo() != 0);
        if address.port() == 0 || scoped {
            return Err(Refusal::new_malformed(&address.to_string(), RULE));
        }
        Ok(Self { ip: address.ip(), port: address.port() })
    }
}

impl FromStr for UpstreamAddress {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        const RULE: &str = "an upstream is an IP address and a port: 172.17.8.101:8000, [fd00::1]:8000";
        // HAProxy reads more than this as an address: `unix@`, `abns@`, a path, a name. The standard library's parser
        // takes none of them.
        let address: SocketAddr = text.parse().map_err(|_| Refusal::new_malformed(text, RULE))?;
        address.try_into()
    }
}

impl TryFrom<String> for UpstreamAddress {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        text.parse()
    }
}

impl From<UpstreamAddress> for String {
    fn from(address: UpstreamAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket_addr().fmt(f)
    }
}

/// One bind of a TCP service's frontend: a port on every IPv4 address (`*:3306`, or just `3306`) or on one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bind {
    /// The port, at least 1.
    pub port: u16,
    /// The address. `None` is `*`, every IPv4 address.
    pub address: Option<IpAddr>,
}

impl Bind {
    fn parse_parts(text: &str) -> Option<Self> {
        let port = text.strip_prefix("*:").unwrap_or(text);
        // Digits only: `u16` would also parse `+80`, which HAProxy doesn't.
        if port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some(Self { address: None, port: port.parse().ok()? });
        }
        let address: SocketAddr = text.parse().ok()?;
        // `ip()` drops a scope id, and HAProxy would bind another address than the one that was written.
        let is_scoped = text.contains('%');
        (!is_scoped).then_some(Self { address: Some(address.ip()), port: address.port() })
    }
}

impl FromStr for Bind {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        const RULE: &str = "a bind is a port from 1, `*:3306`, or an IP address and a port: 10.0.0.5:3306, [::]:3306";
        let bind = Self::parse_parts(text).filter(|bind| bind.port != 0);
        bind.ok_or_else(|| Refusal::new_malformed(text, RULE))
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            None => write!(f, "*:{}", self.port),
            Some(address) => SocketAddr::new(address, self.port).fmt(f),
        }
    }
}

/// Networks in CIDR notation, at least one. A single address is its own network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// The networks in the order they were written, with their host bits cleared.
    pub fn iter(&self) -> impl Iterator<Item = &IpNet> {
        self.0.iter()
    }

    /// True if one of the networks contains the address.
    pub fn contains(&self, address: &IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }
}

impl FromStr for Networks {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        words::parse_list::<Network>(text).map(|networks| Self(networks.into_iter().map(|network| network.0).collect()))
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, network) in self.0.iter().enumerate() {
            write!(f, "{}{network}", if i == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

#[derive(PartialEq)]
struct Network(IpNet);

impl FromStr for Network {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        // Cleared host bits make 10.1.2.3/8 and 10.0.0.0/8 one network, so that a list holds each once.
        let network = text.parse::<IpNet>().map(|network| network.trunc());
        let network = network.or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        network
            .map(Self)
            .map_err(|_| Refusal::new_malformed(text, "a network is written as 10.0.0.0/8, fd00::/8 or one address"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_prints_in_its_shortest_form() {
        for good in ["172.17.8.101:8000", "[fd00::1]:8000"] {
            assert_eq!(good.parse::<UpstreamAddress>().unwrap().to_string(), good);
        }
        assert_eq!("[FD00:0::1]:80".parse::<UpstreamAddress>().unwrap().to_string(), "[fd00::1]:80");
    }

    #[test]
    fn an_address_that_only_haproxy_reads_is_refused() {
        let bad = "10.0.0.1 10.0.0.1:0 10.0.0.1:+1 10.0.0.1:65536 unix@/run/x abns@x /run/haproxy/admin.sock node:80 \
                   fd00::1:80 [fe80::1%1]:80";
        for bad in bad.split_whitespace().chain(["10.0.0.1:80 check", "10.0.0.1:80\n", " 10.0.0.1:80", ""]) {
            assert!(bad.parse::<UpstreamAddress>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_bind_is_a_port_on_one_address_or_on_all() {
        for (written, read) in
            [("3306", "*:3306"), ("*:3306", "*:3306"), ("10.0.0.5:3306", "10.0.0.5:3306"), ("[::]:1", "[::]:1")]
        {
            assert_eq!(written.parse::<Bind>().unwrap().to_string(), read);
        }
        for bad in ["", "0", "*:0", "*", ":80", "65536", "*:+80", "+80", "a:80", "10.0.0.5", "80-90", "[fe80::1%1]:80"]
        {
            assert!(bad.parse::<Bind>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_list_of_networks_has_cidr_and_addresses() {
        assert_eq!("10.1.2.3/8, ::1".parse::<Networks>().unwrap().to_string(), "10.0.0.0/8 ::1/128");
        assert!("10.0.0.0/33".parse::<Networks>().is_err());
        assert!(" , ".parse::<Networks>().is_err());
    }
}
