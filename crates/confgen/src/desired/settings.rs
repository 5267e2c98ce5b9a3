//! A service's settings, each with its good value or its default. Pure data.

use std::num::NonZeroU32;

use discovery::{Active, Balance, Check, Hsts, Kind, Networks, Profile, Proto, ProxyProtocol, Sni, Span, Sticky, Tls};

use super::Trust;

/// The settings of one service. A setting without a good value has its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The treatment of TLS. `both` unless set. `off` for a TCP service.
    pub tls: Tls,
    /// The balancing algorithm. `roundrobin` unless set.
    pub balance: Balance,
    /// The health check. A TCP connection unless set.
    pub check: Check,
    /// The stickiness of clients. `off` unless set.
    pub sticky: Sticky,
    /// The networks of allowed clients. `None` allows all.
    pub allow: Option<Networks>,
    /// The most connections to one upstream at a time. `None` sets no limit.
    pub maxconn: Option<NonZeroU32>,
    /// The time in which a recovering upstream gets to its whole weight. `None` if it gets there at once.
    pub slowstart: Option<Span>,
    /// The header `Strict-Transport-Security`. `None` if a host of the service also has a service without TLS.
    pub hsts: Option<Hsts>,
    /// The version of the PROXY protocol towards upstreams. `off` unless set.
    pub proxy_protocol: ProxyProtocol,
    /// The HTTP version towards upstreams. HTTP/1.1 unless set.
    pub proto: Proto,
    /// The authorities of upstreams' certificates. The system's unless set.
    pub trust: Trust,
    /// The name that HAProxy requests from an upstream over TLS. The request's host unless set.
    pub sni: Sni,
    /// The operator's `defaults` section for this service.
    pub profile: Option<Profile>,
    /// The profile has options of servers. A server that is added at run time would lack them, so servers need a restart.
    pub fixed_servers: bool,
    /// The active colors with their shares. `None` if the service has no colors.
    pub active: Option<Active>,
    /// The networks of clients that may ask for a color. `None` allows none.
    pub preview: Option<Networks>,
}

impl Default for Settings {
    fn default() -> Self {
        Self::defaults_for(Kind::Http)
    }
}

impl Settings {
    /// True if HAProxy passes TLS on to the upstreams without ending it.
    pub fn passes_through(&self) -> bool {
        self.tls == Tls::Passthrough
    }

    /// True if HAProxy may place servers by a hash of their ids. A profile may override `balance`.
    pub fn hashes_ids(&self) -> bool {
        matches!(self.balance, Balance::Random | Balance::Source | Balance::Uri) || self.profile.is_some()
    }

    pub(super) fn defaults_for(kind: Kind) -> Self {
        Self {
            tls: if kind == Kind::Http { Tls::Both } else { Tls::Off },
            balance: Balance::RoundRobin,
            check: Check::Tcp,
            sticky: Sticky::Off,
            allow: None,
            maxconn: None,
            slowstart: None,
            hsts: None,
            proxy_protocol: ProxyProtocol::Off,
            proto: Proto::H1,
            trust: Trust::System,
            sni: Sni::RequestHost,
            profile: None,
            fixed_servers: false,
            active: None,
            preview: None,
        }
    }
}
