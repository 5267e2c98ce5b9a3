//! The address of an etcd member. Pure: no I/O, no name is resolved.

use std::fmt;
use std::net::Ipv6Addr;

/// etcd's client port, for an endpoint that names none.
const DEFAULT_PORT: u16 = 2379;

/// The scheme, host and port of one etcd member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub(crate) tls: bool,
    /// With the brackets of an IPv6 address.
    host: String,
    port: u16,
}

impl Endpoint {
    /// The host's name or address. An IPv6 address has no brackets here.
    pub fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The port, 2379 by default.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Parses `[http[s]://]host[:port][/]`. Without a scheme it uses TLS if `with_tls`, as etcdctl does.
    pub(crate) fn parse(text: &str, with_tls: bool) -> Result<Self, &'static str> {
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some(_) => return Err("only http:// and https:// are known"),
            None => (with_tls, text),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match authority.rsplit_once(':') {
            // In `[::1]` the last colon belongs to the address.
            Some((host, port)) if !port.ends_with(']') => {
                let port = port.parse().ok().filter(|port| *port != 0);
                (host, port.ok_or("the port must be a number from 1 to 65535")?)
            }
            _ => (authority, DEFAULT_PORT),
        };
        let ipv6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).map(str::parse::<Ipv6Addr>);
        let is_name = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c));
        if !matches!(ipv6, Some(Ok(_))) && !is_name {
            return Err("the host must be a name, an IPv4 address or an IPv6 address in brackets");
        }
        Ok(Self { tls, host: host.to_owned(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_read_as_etcdctl_reads_it() {
        let read = |text, with_tls| Endpoint::parse(text, with_tls).expect("valid").to_string();
        assert_eq!(read("etcd-1", false), "http://etcd-1:2379");
        assert_eq!(read("10.0.0.1:2380/", false), "http://10.0.0.1:2380");
        assert_eq!(read("[::1]:99", true), "https://[::1]:99");
        assert_eq!(read("http://b:2", true), "http://b:2");
        assert_eq!(Endpoint::parse("[::1]:99", false).expect("valid").host(), "::1");
    }

    #[test]
    fn an_ambiguous_endpoint_is_refused() {
        for wrong in
            ["unix:///run/etcd", "http://a:b", "a:0", "a:99999", "u@h", "a/b", "http://", "::1", "a b", "[a]:1"]
        {
            assert!(Endpoint::parse(wrong, false).is_err(), "{wrong}");
        }
    }
}
