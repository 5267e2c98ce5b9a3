//! What a service is set to, once every key's value is known.

use std::num::NonZeroU32;

use discovery::{Active, Balance, Check, Hsts, Kind, Networks, Profile, Proto, ProxyProtocol, Sni, Span, Sticky, Tls};

use super::Trust;

/// What a service is set to; what is unset has the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How TLS is treated: `both` unless set; a TCP service's is `off`.
    pub tls: Tls,
    /// How requests are spread: in turns unless set.
    pub balance: Balance,
    /// How HAProxy checks: by connecting unless set.
    pub check: Check,
    /// How a client stays: not unless set.
    pub sticky: Sticky,
    /// Who may come in; none is everybody.
    pub allow: Option<Networks>,
    /// Connections to one upstream.
    pub maxconn: Option<NonZeroU32>,
    /// How long a recovering upstream takes to its whole weight.
    pub slowstart: Option<Span>,
    /// `Strict-Transport-Security`.
    pub hsts: Option<Hsts>,
    /// The PROXY protocol towards upstreams.
    pub proxy_protocol: ProxyProtocol,
    /// The HTTP version towards upstreams: HTTP/1.1 unless set.
    pub proto: Proto,
    /// What upstreams' certificates are checked against: the system's authorities unless set.
    pub trust: Trust,
    /// The name that an upstream is asked for over TLS: the request's host unless set.
    pub sni: Sni,
    /// The operator's `defaults` section.
    pub profile: Option<Profile>,
    /// The profile says something of servers, which none that is added while HAProxy runs would take over.
    pub fixed_servers: bool,
    /// The active colors.
    pub active: Option<Active>,
    /// Who may reach a color by its name; none is nobody.
    pub preview: Option<Networks>,
}

impl Default for Settings {
    fn default() -> Self {
        Self::defaults_for(Kind::Http)
    }
}

impl Settings {
    /// Whether TLS goes to the upstreams as it comes.
    pub fn passes_through(&self) -> bool {
        self.tls == Tls::Passthrough
    }

    /// Whether HAProxy may place servers by a hash of their ids. A profile may say `balance` in the service's place.
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
