//! What the template is given: the settled services as sections, and the maps that route to them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use discovery::{Bind, Host, Kind, Networks, ServiceId, Sticky};

use crate::cli::Rights;
use crate::desired::names::parse_section;
use crate::desired::{DesiredService, DesiredState, Route};
use crate::operator_files::parse::{OperatorConfig, ReferencedSection};
use crate::render::error_pages::ErrorPages;
use crate::render::internal_sockets::InternalSocket;

pub(crate) use crate::render::section::Section;

use crate::desired::names::preview_section;
use crate::render::section::{rows_of, sections_of};

/// What the flags, and the files they name, say about the generated file. All text in it has been checked to stand in a line.
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
    /// Peers that begin each connection with the PROXY protocol.
    pub proxy_protocol_from: Option<Networks>,
    /// The hash of the stats page's password.
    pub stats_hash: crate::render::stats_hash::Hash,
    /// A host that the stats page has to itself.
    pub stats_domain: Option<Host>,
    /// The service that gets the ACME challenges of every host.
    pub acme: Option<ServiceId>,
    /// HAProxy's own rights.
    pub rights: Rights,
    /// What clients are shown in place of the built-in errors.
    pub pages: Arc<ErrorPages>,
}

/// Everything that the file and the maps are written from.
pub struct View<'a> {
    pub(crate) site: &'a Site,
    pub(crate) operator: &'a OperatorConfig,
    pub(crate) http: Vec<Section<'a>>,
    /// The services of HTTP whose TLS is passed through.
    pub(crate) passthrough: Vec<Section<'a>>,
    pub(crate) tcp: Vec<Section<'a>>,
    /// Empty sections in place of services that an operator's file names and that are not there.
    pub(crate) stubs: Vec<Stub>,
    pub(crate) maps: Maps,
    /// Where terminated connections come from while TLS is passed through.
    pub(crate) hop: InternalSocket,
    /// Whether there is a `default` service.
    pub(crate) default: bool,
    /// The service that gets the ACME challenges, if it is there.
    pub(crate) acme: Option<&'a ServiceId>,
    /// Whether a service remembers its clients by their addresses.
    pub(crate) sticks_by_source: bool,
    /// Where a process listens for what its predecessor remembers.
    pub(crate) peers: InternalSocket,
    /// Whether HAProxy locks itself into a directory.
    pub(crate) is_shut_in: bool,
    /// Whether the process before may still send connections over the inner hop, which this file has no use for.
    pub(crate) lingers: bool,
}

/// An empty section. Without it HAProxy would not start, since a line of an operator's file names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stub {
    /// The section: `http-shop`.
    pub(crate) name: String,
    /// `http` or `tcp`.
    pub(crate) mode: &'static str,
    /// The first line that names it: `/etc/haproxy/conf.d/mine.cfg:3`.
    pub(crate) named_by: String,
    /// A line names its stick table.
    pub(crate) has_table: bool,
}

/// The sections that the operator's files name, less those that are there.
fn list_stubs<'a>(operator: &OperatorConfig, sections: impl Iterator<Item = &'a Section<'a>>) -> Vec<Stub> {
    let there: BTreeSet<String> = sections.map(Section::name).collect();
    let missing = operator.referenced_sections().into_iter().filter(|(name, _)| !there.contains(name));
    let stub = |(name, named): (String, ReferencedSection)| Stub {
        mode: if parse_section(&name).is_some_and(|id| id.kind == Kind::Tcp) { "tcp" } else { "http" },
        name,
        named_by: named.places.into_iter().next().unwrap_or_default(),
        has_table: named.has_table,
    };
    missing.map(stub).collect()
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
    /// Host or wildcard whose TLS is passed through → backend.
    pub passthrough: String,
}

/// The frontend that reads requests.
pub const WEB: &str = "discover-web";

/// The frontend that TLS comes to while some of it is passed through.
pub const TLS: &str = "discover-tls";

/// Where requests for hosts whose TLS is passed through end: over HTTP they are sent to HTTPS, and on a connection that is
/// terminated here they are misdirected.
pub const PASSTHROUGH: &str = "discover-passthrough";

impl<'a> View<'a> {
    /// Arranges what is wanted.
    pub fn new(settled: &'a DesiredState, site: &'a Site, operator: &'a OperatorConfig) -> Self {
        let of_kind = |kind| {
            let services = settled.services().filter(move |(id, _)| id.kind == kind);
            services.flat_map(|(id, wanted)| sections_of(id, wanted))
        };
        let (owner, chroot) = resolve_rights(site, operator);
        let default = of_kind(Kind::Http).any(|section| section.is_default());
        let sticks_by_source = settled.services().any(|(id, wanted)| remembers_clients(id, wanted));
        let (passthrough, http): (Vec<Section>, Vec<Section>) =
            of_kind(Kind::Http).partition(|section| section.wanted.settings.passes_through());
        let tcp: Vec<Section> = of_kind(Kind::Tcp).filter(|section| has_section(section.id, section.wanted)).collect();
        Self {
            stubs: list_stubs(operator, http.iter().chain(&passthrough).chain(&tcp)),
            sticks_by_source,
            site,
            operator,
            http,
            passthrough,
            hop: InternalSocket::new(&site.runtime_socket, "discover-tls", owner.clone(), chroot.as_deref()),
            peers: InternalSocket::new(&site.runtime_socket, "discover-peers", owner, None),
            is_shut_in: chroot.is_some(),
            tcp,
            maps: build_maps(settled),
            default,
            acme: site
                .acme
                .as_ref()
                .filter(|id| settled.service(id).is_some_and(|wanted| gets_challenges(id, wanted, site))),
            lingers: false,
        }
    }

    /// The same for a HAProxy that has been passing TLS through until now, or hasn't.
    #[must_use]
    pub fn with_previous_passthrough(self, passed_through: bool) -> Self {
        Self { lingers: passed_through && !self.passes_through(), ..self }
    }

    /// Whether there is a service whose TLS is passed through.
    pub(crate) fn passes_through(&self) -> bool {
        !self.passthrough.is_empty()
    }

    /// The services of which a color may be asked for by header.
    pub(crate) fn previewed(&self) -> impl Iterator<Item = &Section<'a>> {
        self.http.iter().filter(|section| section.preview.is_none() && section.wanted.settings.preview.is_some())
    }

    /// Whether a `global` line is ours to write: the operator's own beats it.
    pub(crate) fn writes_global(&self, keyword: &str) -> bool {
        !self.operator.global_keywords.contains(keyword)
    }
}

/// Whether the file has a section for the service: a TCP service without a port has nothing to listen on.
pub fn has_section(id: &ServiceId, wanted: &DesiredService) -> bool {
    id.kind == Kind::Http || !wanted.binds.is_empty()
}

/// What a service has a say in of the part of the file that all share, besides being there: another answer means
/// another part.
pub fn shared_part_of(id: &ServiceId, wanted: &DesiredService, site: &Site) -> Option<String> {
    let regex = wanted.url_reg.as_ref().map(|(since, regex)| format!("{since} {regex}"));
    let remembers = remembers_clients(id, wanted).then(|| "remembers its clients".to_owned());
    let previewed = wanted.settings.preview.as_ref().map(|networks| format!("is previewed from {networks}"));
    let named = (id.is_default() || gets_challenges(id, wanted, site)).then(String::new);
    let share: Vec<String> = named.into_iter().chain(remembers).chain(previewed).chain(regex).collect();
    (!share.is_empty()).then(|| share.join(" "))
}

/// Whether ACME's challenges go to the service. One whose TLS is passed through gets no requests.
fn gets_challenges(id: &ServiceId, wanted: &DesiredService, site: &Site) -> bool {
    site.acme.as_ref() == Some(id) && !wanted.settings.passes_through()
}

/// Who HAProxy becomes, and what it locks itself into, as the flags or the operator's own lines say.
fn resolve_rights(site: &Site, operator: &OperatorConfig) -> (Option<String>, Option<String>) {
    let user = || site.rights.haproxy_user.name().map(|name| format!("user {name}"));
    let chroot = || site.rights.chroot.as_ref().map(|dir| dir.display().to_string());
    (operator.user.clone().or_else(user), operator.chroot.clone().or_else(chroot))
}

fn remembers_clients(id: &ServiceId, wanted: &DesiredService) -> bool {
    wanted.settings.sticky == Sticky::Source && has_section(id, wanted)
}

fn build_maps(settled: &DesiredState) -> Maps {
    let mut hosts: BTreeMap<String, ()> = BTreeMap::new();
    let mut paths: BTreeMap<String, String> = BTreeMap::new();
    let mut urls: Vec<(i64, String, String)> = Vec::new();
    let mut passthrough: BTreeMap<String, String> = BTreeMap::new();
    for (id, wanted) in settled.services() {
        for route in &wanted.routes {
            hosts.insert(route.domain.to_string(), ());
            paths.insert(path_key(route), backend_of(id, wanted));
            if wanted.settings.passes_through() {
                passthrough.insert(route.domain.to_string(), id.to_string());
            }
        }
        for preview in &wanted.previews {
            for route in &preview.routes {
                hosts.insert(route.domain.to_string(), ());
                paths.insert(path_key(route), preview_section(id, &preview.color));
            }
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
        passthrough: passthrough.iter().map(|(host, backend)| line(host, backend)).collect(),
    }
}

/// What leads to a route's section in the map of paths.
pub fn path_key(route: &Route) -> String {
    format!("{}{}", route.domain, route.path.with_boundary())
}

/// Where the requests go that are read here.
pub fn backend_of(id: &ServiceId, wanted: &DesiredService) -> String {
    if wanted.settings.passes_through() { PASSTHROUGH.to_owned() } else { id.to_string() }
}

impl Site {
    /// The trusted proxies in rows of words.
    pub(crate) fn trusted_rows(&self) -> Vec<String> {
        rows_of(self.trusted_proxies.as_ref())
    }

    /// The peers that speak the PROXY protocol, in rows of words.
    pub(crate) fn proxied_rows(&self) -> Vec<String> {
        rows_of(self.proxy_protocol_from.as_ref())
    }

    /// The condition on which the client speaks TLS: to us, or to a trusted proxy that says so.
    pub(crate) fn over_tls(&self) -> &'static str {
        if self.trusted_proxies.is_some() { "var(txn.scheme) -m str https wss" } else { "ssl_fc" }
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
