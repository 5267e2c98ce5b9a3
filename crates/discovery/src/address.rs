//! Addresses: where an upstream listens, what a TCP service binds, which networks may come in.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Refusal, words};

/// Where an upstream listens: an IP address and a port of at least 1. Host names are refused, since one that doesn't
/// resolve makes HAProxy refuse its whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UpstreamAddress(SocketAddr);

impl UpstreamAddress {
    /// The address as the standard library knows it.
    pub fn socket_addr(self) -> SocketAddr {
        self.0
    }
}

impl TryFrom<SocketAddr> for UpstreamAddress {
    type Error = Refusal;

    fn try_from(address: SocketAddr) -> Result<Self, Refusal> {
        const RULE: &str = "an upstream is an IP address and a port from 1: 172.17.8.101:8000, [fd00::1]:8000";
        let scoped = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0 || v6.flowinfo() != 0);
        if address.port() == 0 || scoped {
            return Err(Refusal::new_malformed(&address.to_string(), RULE));
        }
        Ok(Self(address))
    }
}

impl FromStr for UpstreamAddress {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        const RULE: &str = "an upstream is an IP address and a port: 172.17.8.101:8000, [fd00::1]:8000";
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
        self.0.fmt(f)
    }
}

/// What a frontend binds: a port on every IPv4 address (`*:3306`, or just `3306`) or on one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bind {
    /// The port, at least 1.
    pub port: u16,
    /// The address; none is `*`.
    pub address: Option<IpAddr>,
}

impl FromStr for Bind {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        const RULE: &str = "a bind is a port from 1, `*:3306`, or an IP address and a port: 10.0.0.5:3306, [::]:3306";
        let refused = || Refusal::new_malformed(text, RULE);
        let all_digits = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
        let bind = match text.strip_prefix("*:").unwrap_or(text) {
            port if all_digits(port) => Self { address: None, port: port.parse().map_err(|_| refused())? },
            _ => {
                let address: SocketAddr = text.parse().map_err(|_| refused())?;
                // `address` may have carried a scope id, which is dropped here and would bind elsewhere.
                if text.contains('%') {
                    return Err(refused());
                }
                Self { address: Some(address.ip()), port: address.port() }
            }
        };
        if bind.port == 0 { Err(refused()) } else { Ok(bind) }
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

/// Networks in CIDR notation; a single address is its own network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// The networks in the order they were written.
    pub fn iter(&self) -> impl Iterator<Item = &IpNet> {
        self.0.iter()
    }

    /// Whether one of them contains the address.
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
    fn an_upstream_is_printed_anew() {
        for good in ["172.17.8.101:8000", "[fd00::1]:8000"] {
            assert_eq!(good.parse::<UpstreamAddress>().unwrap().to_string(), good);
        }
        assert_eq!("[FD00:0::1]:80".parse::<UpstreamAddress>().unwrap().to_string(), "[fd00::1]:80");
    }

    #[test]
    fn what_haproxy_would_swallow_is_refused() {
        let bad = "10.0.0.1 10.0.0.1:0 10.0.0.1:+1 10.0.0.1:65536 unix@/run/x abns@x /run/haproxy/admin.sock node:80 \
                   fd00::1:80 [fe80::1%1]:80";
        for bad in bad.split_whitespace().chain(["10.0.0.1:80 check", "10.0.0.1:80\n", " 10.0.0.1:80", ""]) {
            assert!(bad.parse::<UpstreamAddress>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn binds() {
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
    fn networks() {
        assert_eq!("10.1.2.3/8, ::1".parse::<Networks>().unwrap().to_string(), "10.0.0.0/8 ::1/128");
        assert!("10.0.0.0/33".parse::<Networks>().is_err());
        assert!(" , ".parse::<Networks>().is_err());
    }
}
