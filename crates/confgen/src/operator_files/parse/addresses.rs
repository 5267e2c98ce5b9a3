//! Addresses as `bind` takes them (configuration manual, `bind` and chapter 11, "Address formats"). Pure: it looks up no host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::Path;

/// One address of a `bind` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// TCP ports of an address.
    Tcp(Address, RangeInclusive<u16>),
    /// The path of a unix socket, as the line has it.
    Path(String),
    /// No TCP port and no path: UDP, an abstract socket, a pair of sockets.
    None,
    /// An inherited socket, or a port from the environment. Only HAProxy knows it.
    Unknown,
}

/// The address of a TCP listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// Every IPv4 address.
    AnyV4,
    /// Every IPv6 address. Every IPv4 address too, unless the line says `v6only`.
    AnyV6,
    Ip(IpAddr),
    /// A host name, or an address from the environment.
    Unknown,
}

/// Families without a TCP port or a path.
const OTHERS: [&str; 11] =
    ["abns", "abnsz", "sockpair", "rhttp", "rev", "udp", "udp4", "udp6", "quic4", "quic6", "quic"];

/// Families with a path as their address.
const UNIX: [&str; 3] = ["unix", "uxst", "uxdg"];

/// Reads one address.
pub(super) fn parse_bound(address: &str) -> Bound {
    let is_datagram = address.starts_with("dgram+");
    let address = address.strip_prefix("stream+").or(address.strip_prefix("dgram+")).unwrap_or(address);
    if address.starts_with('/') {
        return Bound::Path(address.to_owned());
    }
    let (family, rest) = address.split_once('@').unwrap_or(("", address));
    if UNIX.contains(&family) {
        return Bound::Path(rest.to_owned());
    }
    // The family may be in a variable too. No address and port has a slash.
    if family.is_empty() && rest.starts_with('$') && rest.contains('/') {
        return Bound::Path(rest.to_owned());
    }
    if is_datagram || OTHERS.contains(&family) {
        return Bound::None;
    }
    // The last colon separates the port, also behind an IPv6 address without brackets.
    let Some((host, ports)) = rest.rsplit_once(':').filter(|_| family != "fd") else { return Bound::Unknown };
    match parse_range(ports) {
        Some(ports) => Bound::Tcp(parse_host(family, host), ports),
        None => Bound::Unknown,
    }
}

/// The text with the defaults of its unknown variables, `${NAME-default}`. `None` if there are none.
pub(super) fn fill_defaults(text: &str) -> Option<String> {
    let (before, rest) = text.split_once("${")?;
    let (variable, after) = rest.split_once('}')?;
    let rest = fill_defaults(after);
    match variable.split_once('-') {
        Some((_, default)) => Some(format!("{before}{default}{}", rest.as_deref().unwrap_or(after))),
        None => rest.map(|rest| format!("{before}${{{variable}}}{rest}")),
    }
}

fn parse_host(family: &str, host: &str) -> Address {
    let is_v6 = family.ends_with('6');
    match host.trim_start_matches('[').trim_end_matches(']') {
        "" | "*" if is_v6 => Address::AnyV6,
        "" | "*" => Address::AnyV4,
        "localhost" if !is_v6 => Address::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        text => match text.parse() {
            Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => Address::AnyV4,
            Ok(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => Address::AnyV6,
            Ok(address) => Address::Ip(address.to_canonical()),
            Err(_) => Address::Unknown,
        },
    }
}

fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (parse_port(first)?, parse_port(last)?);
    (first > 0 && first <= last).then_some(first..=last)
}

fn parse_port(text: &str) -> Option<u16> {
    // The standard library would accept `+80`, which HAProxy rejects.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// True if a path in the operator's words may be this path. A variable without a known value may be any text. A relative path may
/// begin anywhere, since only HAProxy knows its directory.
pub(super) fn may_be_path(written: &str, path: &Path) -> bool {
    let path = path.to_string_lossy();
    let Some((before, rest)) = written.split_once('$') else {
        return if written.starts_with('/') {
            written == path
        } else {
            path.ends_with(&format!("/{}", written.trim_start_matches("./")))
        };
    };
    // Only the text before the first and behind the last variable is known.
    let last = rest.rsplit('$').next().unwrap_or_default();
    let after = match last.split_once('}') {
        Some((_, after)) => after,
        None => last.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_'),
    };
    let says_something = !before.is_empty() || !after.is_empty();
    says_something && path.starts_with(before) && path.ends_with(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Address {
        Address::Ip(text.parse().unwrap())
    }

    #[test]
    fn every_form_of_an_address_is_read() {
        for (address, host, first, last) in [
            (":80", Address::AnyV4, 80, 80),
            ("*:80", Address::AnyV4, 80, 80),
            ("0.0.0.0:80", Address::AnyV4, 80, 80),
            ("10.0.0.1:8000-8010", ip("10.0.0.1"), 8000, 8010),
            ("[::]:80", Address::AnyV6, 80, 80),
            ("[fd00::1]:80", ip("fd00::1"), 80, 80),
            ("::1:8080", ip("::1"), 8080, 8080),
            ("::ffff:10.0.0.1:80", ip("10.0.0.1"), 80, 80),
            (":::80", Address::AnyV6, 80, 80),
            ("ipv4@:80", Address::AnyV4, 80, 80),
            ("ipv6@*:80", Address::AnyV6, 80, 80),
            ("ipv6@fd00::1:80", ip("fd00::1"), 80, 80),
            ("tcp4@*:80", Address::AnyV4, 80, 80),
            ("stream+ipv4@*:80", Address::AnyV4, 80, 80),
            ("mptcp@:80", Address::AnyV4, 80, 80),
            ("localhost:80", ip("127.0.0.1"), 80, 80),
            ("lb.example.com:80", Address::Unknown, 80, 80),
            ("${IP}:80", Address::Unknown, 80, 80),
        ] {
            assert_eq!(parse_bound(address), Bound::Tcp(host, first..=last), "{address}");
        }
        for (address, path) in [
            ("/run/x.sock", "/run/x.sock"),
            ("unix@/run/x:80", "/run/x:80"),
            ("uxst@x.sock", "x.sock"),
            ("stream+unix@/run/x", "/run/x"),
            ("${DIR}/x.sock", "${DIR}/x.sock"),
        ] {
            assert_eq!(parse_bound(address), Bound::Path(path.into()), "{address}");
        }
        for address in ["abns@x:80", "quic4@:443", "udp@:514", "dgram+ipv4@:514", "sockpair@4"] {
            assert_eq!(parse_bound(address), Bound::None, "{address}");
        }
        for address in ["fd@7", "fd@a:7", "10.0.0.1", ":", ":0", ":${PORT}", "$ALL", ":9-8", ":65536", ":+80"] {
            assert_eq!(parse_bound(address), Bound::Unknown, "{address}");
        }
    }

    #[test]
    fn a_path_is_compared_as_far_as_it_is_known() {
        let may_be = |written: &str| may_be_path(written, Path::new("/run/haproxy/admin.sock"));
        for same in ["/run/haproxy/admin.sock", "admin.sock", "./haproxy/admin.sock", "${DIR}/admin.sock", "/run/$X"] {
            assert!(may_be(same), "{same}");
        }
        for other in ["/run/haproxy/mine.sock", "mine.sock", "n.sock", "${DIR}/mine.sock", "/tmp/${X}", "${X}"] {
            assert!(!may_be(other), "{other}");
        }
    }

    #[test]
    fn a_variable_may_have_its_default() {
        for (text, filled) in [
            ("*:80", None),
            ("*:${PORT}", None),
            ("${HOST-10.0.0.1}:80", Some("10.0.0.1:80")),
            ("${HOST}:${PORT-80}", Some("${HOST}:80")),
            ("${A-:80},${B}", Some(":80,${B}")),
            ("${A", None),
        ] {
            assert_eq!(fill_defaults(text).as_deref(), filled, "{text}");
        }
    }
}
