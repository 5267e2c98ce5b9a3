//! Addresses as `bind` takes them (configuration manual, `bind` and chapter 11, "Address formats").

use std::ops::RangeInclusive;

/// What one address of a `bind` line binds of TCP's ports.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// This one, or these.
    Ports(RangeInclusive<u16>),
    /// None: a socket of another kind.
    None,
    /// It can't be told.
    Unknown,
}

/// Families without a port of TCP's.
const OTHERS: [&str; 13] =
    ["unix", "uxst", "uxdg", "abns", "abnsz", "sockpair", "rhttp", "rev", "udp", "udp4", "udp6", "quic4", "quic6"];

/// Reads one address; the last colon is the port's, brackets or not.
pub(super) fn bound(address: &str) -> Bound {
    if address.starts_with('/') || address.starts_with("dgram+") {
        return Bound::None;
    }
    let address = address.strip_prefix("stream+").unwrap_or(address);
    let (family, rest) = address.split_once('@').unwrap_or(("", address));
    if OTHERS.contains(&family) {
        return Bound::None;
    }
    let port = rest.rsplit_once(':').map(|(_, port)| port);
    port.filter(|_| family != "fd").and_then(range).map_or(Bound::Unknown, Bound::Ports)
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first > 0 && first <= last).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_an_address() {
        for (address, first, last) in [
            (":80", 80, 80),
            ("*:80", 80, 80),
            ("10.0.0.1:8000-8010", 8000, 8010),
            ("[::]:80", 80, 80),
            ("[fd00::1]:80", 80, 80),
            ("::1:8080", 8080, 8080),
            (":::80", 80, 80),
            ("ipv4@:80", 80, 80),
            ("ipv6@fd00::1:80", 80, 80),
            ("tcp4@*:80", 80, 80),
            ("stream+ipv4@*:80", 80, 80),
            ("mptcp@:80", 80, 80),
            ("lb.example.com:80", 80, 80),
            ("${IP}:80", 80, 80),
        ] {
            assert_eq!(bound(address), Bound::Ports(first..=last), "{address}");
        }
        for address in ["/run/x.sock", "unix@/run/x:80", "abns@x:80", "quic4@:443", "udp@:514", "dgram+ipv4@:514"] {
            assert_eq!(bound(address), Bound::None, "{address}");
        }
        for address in ["fd@7", "fd@a:7", "10.0.0.1", ":", ":0", ":${PORT}", "$ALL", ":9-8", ":65536", ":+80"] {
            assert_eq!(bound(address), Bound::Unknown, "{address}");
        }
    }
}
