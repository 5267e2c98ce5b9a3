//! What the template is given: the settled services as sections, and the maps that route to them. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use discovery::{
    Balance, Bind, Check, HttpCheck, Kind, Networks, Proto, ProxyProtocol, ServiceId, Sticky, Tls, UrlRegex,
};

use crate::operator::Operator;
use crate::settle::{Server, ServerState, Settled, Wanted};

/// What the flags say about the generated file. All text in it has been checked to stand in a line.
#[derive(Clone, Debug)]
pub struct Site {
    /// Where HTTP is bound.
    pub http_binds: Vec<Bind>,
    /// Where HTTPS is bound.
    pub https_binds: Vec<Bind>,
    /// Where the stats page is bound.
    pub stats_binds: Vec<Bind>,
    /// The Runtime API's socket.
    pub runtime_socket: PathBuf,
    /// The file that keeps the servers' states over a restart.
    pub server_state_file: PathBuf,
    /// The list of certificates.
    pub crt_list: PathBuf,
    /// Where the log goes: a socket's path or `host:port`.
    pub log: String,
    /// Peers whose `X-Forwarded-*` headers are believed.
    pub trusted_proxies: Option<Networks>,
    /// The stats page's user with the crypt(3) hash of the password.
    pub stats_hash: String,
}

/// Everything that the file and the maps are written from.
pub struct View<'a> {
    pub(crate) site: &'a Site,
    pub(crate) operator: &'a Operator,
    pub(crate) http: Vec<Section<'a>>,
    pub(crate) tcp: Vec<Section<'a>>,
    pub(crate) maps: Maps,
    /// Whether there is a `default` service.
    pub(crate) default: bool,
}

/// The maps' contents, a line an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maps {
    /// Host or wildcard → itself: whether the host is known at all.
    pub hosts: String,
    /// Host or wildcard + path prefix with its `/` → backend; the longest prefix counts.
    pub paths: String,
    /// Regular expression → backend; the first match counts.
    pub urls: String,
}

/// A service's section.
pub(crate) struct Section<'a> {
    pub(crate) id: &'a ServiceId,
    pub(crate) wanted: &'a Wanted,
    /// Its servers; a section's structure is what is left without those that can come and go at run time.
    pub(crate) servers: &'a [Server],
}

impl<'a> View<'a> {
    /// Arranges what is wanted.
    pub fn of(settled: &'a Settled, site: &'a Site, operator: &'a Operator) -> Self {
        let of_kind = |kind| {
            let services = settled.services().filter(move |(id, _)| id.kind == kind);
            services.map(|(id, wanted)| Section { id, wanted, servers: &wanted.servers })
        };
        let default = of_kind(Kind::Http).any(|section| section.is_default());
        Self {
            site,
            operator,
            http: of_kind(Kind::Http).collect(),
            tcp: of_kind(Kind::Tcp).filter(|section| has_section(section.id, section.wanted)).collect(),
            maps: maps(settled),
            default,
        }
    }

    /// Whether a `global` line is ours to write: the operator's own beats it.
    pub(crate) fn ours(&self, keyword: &str) -> bool {
        !self.operator.global.contains(keyword)
    }
}

/// Whether the file has a section for the service: a TCP service without a port has nothing to listen on.
pub fn has_section(id: &ServiceId, wanted: &Wanted) -> bool {
    id.kind == Kind::Http || !wanted.binds.is_empty()
}

/// What single services have a say in of the part of the file that all share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    default: bool,
    tcp: bool,
    urls: Vec<(i64, UrlRegex)>,
}

/// What the services of now say of the shared part: another answer means another part.
pub fn shared(settled: &Settled) -> Shared {
    let mut shared = Shared { default: false, tcp: false, urls: Vec::new() };
    for (id, wanted) in settled.services() {
        shared.default |= is_default(id);
        shared.tcp |= id.kind == Kind::Tcp && has_section(id, wanted);
        shared.urls.extend(wanted.url_reg.clone());
    }
    shared
}

fn is_default(id: &ServiceId) -> bool {
    id.kind == Kind::Http && id.name.as_str() == "default"
}

fn maps(settled: &Settled) -> Maps {
    let mut hosts: BTreeMap<String, ()> = BTreeMap::new();
    let mut paths: BTreeMap<String, String> = BTreeMap::new();
    let mut urls: Vec<(i64, String, String)> = Vec::new();
    for (id, wanted) in settled.services() {
        for route in &wanted.routes {
            hosts.insert(route.domain.to_string(), ());
            paths.insert(format!("{}{}", route.domain, route.path.with_boundary()), id.to_string());
        }
        if let Some((since, regex)) = &wanted.url_reg {
            urls.push((*since, id.to_string(), regex.to_string()));
        }
    }
    urls.sort();
    let line = |key: &str, value: &str| format!("{key} {value}\n");
    Maps {
        hosts: hosts.keys().map(|host| line(host, host)).collect(),
        paths: paths.iter().map(|(path, backend)| line(path, backend)).collect(),
        urls: urls.iter().map(|(_, backend, regex)| line(regex, backend)).collect(),
    }
}

/// Networks in rows: HAProxy refuses a line of more than 64 words.
fn rows(networks: Option<&Networks>) -> Vec<String> {
    const PER_LINE: usize = 16;
    let all: Vec<String> = networks.iter().flat_map(|n| n.iter()).map(ToString::to_string).collect();
    all.chunks(PER_LINE).map(|row| row.join(" ")).collect()
}

impl Site {
    /// The trusted proxies in rows of words.
    pub(crate) fn trusted_rows(&self) -> Vec<String> {
        rows(self.trusted_proxies.as_ref())
    }
}

impl Section<'_> {
    fn is_default(&self) -> bool {
        is_default(self.id)
    }

    /// What a person would write above the section: which hosts and paths lead here.
    pub(crate) fn comment(&self) -> String {
        const SHOWN: usize = 4;
        let routes = &self.wanted.routes;
        let mut words: Vec<String> =
            routes.iter().take(SHOWN).map(|route| format!("{}{}", route.domain, route.path)).collect();
        if routes.len() > SHOWN {
            words.push(format!("{} more", routes.len() - SHOWN));
        }
        if let Some((_, regex)) = &self.wanted.url_reg {
            words.push(format!("URLs like {regex}"));
        }
        if self.is_default() {
            words.push("whatever no other service answers for".into());
        }
        if words.is_empty() { "reached by no host or path".into() } else { words.join(", ") }
    }

    pub(crate) fn redirects_to_https(&self) -> bool {
        self.wanted.settings.tls == Tls::Terminate
    }

    pub(crate) fn plain_http_only(&self) -> bool {
        self.wanted.settings.tls == Tls::Off
    }

    pub(crate) fn terminates(&self) -> bool {
        self.wanted.settings.tls == Tls::Terminate
    }

    /// The line's value where it isn't HAProxy's default.
    pub(crate) fn balance(&self) -> Option<Balance> {
        Some(self.wanted.settings.balance).filter(|balance| *balance != Balance::RoundRobin)
    }

    /// Servers can come and go at run time under a hash only if it is consistent.
    pub(crate) fn hashes(&self) -> bool {
        matches!(self.wanted.settings.balance, Balance::Source | Balance::Uri)
    }

    pub(crate) fn allow_rows(&self) -> Vec<String> {
        rows(self.wanted.settings.allow.as_ref())
    }

    pub(crate) fn http_check(&self) -> Option<&HttpCheck> {
        match &self.wanted.settings.check {
            Check::Http(check) => Some(check),
            Check::Tcp | Check::Off => None,
        }
    }

    /// The host that a check asks for: one that the service answers for.
    pub(crate) fn check_host(&self) -> Option<String> {
        self.wanted.routes.iter().find_map(|route| match &route.domain {
            discovery::Domain::Exact(host) => Some(host.to_string()),
            discovery::Domain::Wildcard(_) => None,
        })
    }

    pub(crate) fn hsts(&self) -> Option<String> {
        self.wanted.settings.hsts.map(|hsts| {
            let subdomains = if hsts.include_subdomains { "; includeSubDomains" } else { "" };
            let preload = if hsts.preload { "; preload" } else { "" };
            format!("max-age={}{subdomains}{preload}", hsts.max_age)
        })
    }

    pub(crate) fn sticks_by_cookie(&self) -> bool {
        self.wanted.settings.sticky == Sticky::Cookie
    }

    pub(crate) fn sticks_by_source(&self) -> bool {
        self.wanted.settings.sticky == Sticky::Source
    }

    /// What all servers of the section have in common and differs from the `defaults`.
    pub(crate) fn default_server(&self) -> Option<String> {
        let settings = &self.wanted.settings;
        let mut words = Vec::new();
        if settings.check == Check::Off {
            words.push("no-check".to_owned());
        }
        words.extend(settings.maxconn.map(|most| format!("maxconn {most}")));
        match settings.proto {
            None | Some(Proto::H1) => {}
            Some(Proto::H2) => words.push("proto h2".into()),
        }
        match settings.proxy_protocol {
            ProxyProtocol::Off => {}
            ProxyProtocol::V1 => words.push("send-proxy".into()),
            ProxyProtocol::V2 => words.push("send-proxy-v2".into()),
        }
        words.extend(settings.slowstart.map(|span| format!("slowstart {span}")));
        (!words.is_empty()).then(|| words.join(" "))
    }
}

impl Server {
    /// What follows the address on the server's line. Drained is written as weight 0: HAProxy reads it as its own
    /// `drain` (management manual, `set server state`), and no keyword says it.
    pub(crate) fn options(&self) -> String {
        let weight = if self.state == ServerState::Drain { 0 } else { self.weight };
        let weight =
            if weight == discovery::Weight::DEFAULT.get() { String::new() } else { format!(" weight {weight}") };
        let backup = if self.backup { " backup" } else { "" };
        let disabled = if self.state == ServerState::Maint { " disabled" } else { "" };
        format!("{weight}{backup}{disabled}")
    }
}

/// A frontend's bind as HAProxy reads it: `[::]` takes IPv4 too, unless IPv4 is bound beside it.
pub(crate) fn bind(bind: &Bind, beside: &[Bind]) -> String {
    let v4 = |other: &Bind| other.port == bind.port && other.address.is_none_or(|address| address.is_ipv4());
    match bind.address {
        Some(address) if address.is_ipv6() && address.is_unspecified() => {
            format!("{bind} {}", if beside.iter().any(v4) { "v6only" } else { "v4v6" })
        }
        _ => bind.to_string(),
    }
}
