//! The input of the templates: the services as sections, and the maps that route to them. Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use discovery::{Bind, Check, Host, Kind, Networks, ServiceId, Span, Sticky};

use crate::cli::Rights;
use crate::desired::names::parse_section;
use crate::desired::{DesiredService, DesiredState, Route};
use crate::operator_files::parse::OperatorConfig;
use crate::render::error_pages::ErrorPages;
use crate::render::internal_sockets::InternalSocket;

pub(crate) use crate::render::section::Section;

use crate::desired::names::preview_section;
use crate::render::section::{rows_of, sections_of};

/// The values from the flags, and from the files that they name. Each was checked to fit into a line of haproxy.cfg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Where HAProxy listens for HTTP.
    pub http_binds: Vec<Bind>,
    /// Where HAProxy listens for HTTPS.
    pub https_binds: Vec<Bind>,
    /// Where HAProxy serves the stats page.
    pub stats_binds: Vec<Bind>,
    /// The socket of the Runtime API.
    pub runtime_socket: PathBuf,
    /// The file that keeps the servers' states over a restart.
    pub server_state_file: PathBuf,
    /// The time after which an old process cuts the connections that are left.
    pub hard_stop_after: Span,
    /// The list of certificates.
    pub crt_list: PathBuf,
    /// The target of the log: a socket's path or `host:port`.
    pub log: String,
    /// Proxies that may send `X-Forwarded-*` headers. `None` trusts no proxy.
    pub trusted_proxies: Option<Networks>,
    /// Peers that begin each connection with the PROXY protocol.
    pub proxy_protocol_from: Option<Networks>,
    /// HAProxy passes a client's trace on, or begins one.
    pub has_traces: bool,
    /// The hash of the stats page's password.
    pub stats_hash: crate::render::stats_hash::Hash,
    /// A host that the stats page has to itself.
    pub stats_domain: Option<Host>,
    /// The service that gets the ACME challenges of every host.
    pub acme: Option<ServiceId>,
    /// HAProxy's own rights.
    pub rights: Rights,
    /// The operator's error pages.
    pub pages: Arc<ErrorPages>,
}

/// The whole input of the templates.
pub struct View<'a> {
    pub(crate) site: &'a Site,
    pub(crate) operator: &'a OperatorConfig,
    pub(crate) http: Vec<Section<'a>>,
    /// The HTTP services with `tls passthrough`.
    pub(crate) passthrough: Vec<Section<'a>>,
    pub(crate) tcp: Vec<Section<'a>>,
    /// Empty sections in place of services that an operator's file names and that don't exist.
    pub(crate) stubs: Vec<Stub>,
    pub(crate) maps: Arc<Maps>,
    /// The socket by which connections reach the frontend that terminates TLS, while other TLS is passed through.
    pub(crate) hop: InternalSocket,
    /// A service is the `default` one.
    pub(crate) default: bool,
    /// The service that gets the ACME challenges. `None` without that service.
    pub(crate) acme: Option<&'a ServiceId>,
    /// A service has a stick table of client addresses.
    pub(crate) sticks_by_source: bool,
    /// The socket on which a process receives the stick tables of its predecessor.
    pub(crate) peers: InternalSocket,
    /// HAProxy has a chroot.
    pub(crate) is_shut_in: bool,
    /// The process before may still send connections over `hop`, which this file doesn't use.
    pub(crate) lingers: bool,
}

/// An empty section. HAProxy would not start without it, since a line of an operator's file names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stub {
    /// The section's name, `http-shop`.
    pub(crate) name: String,
    /// `http` or `tcp`.
    pub(crate) mode: &'static str,
    /// The first line that names it: `/etc/haproxy/conf.d/mine.cfg:3`.
    pub(crate) named_by: String,
    /// A line names the section's stick table.
    pub(crate) has_table: bool,
}

/// Stubs for the sections that the operator's files name and that don't exist.
fn list_stubs<'a>(operator: &OperatorConfig, sections: impl Iterator<Item = &'a Section<'a>>) -> Vec<Stub> {
    let referenced = operator.referenced_sections();
    if referenced.is_empty() {
        return Vec::new();
    }
    let there: BTreeSet<String> = sections.map(Section::name).collect();
    // HAProxy rejects a file with a line that names a missing backend. So such a section outlives its service, empty.
    let missing = referenced.into_iter().filter(|(name, _)| !there.contains(name));
    let stubs = missing.map(|(name, named)| Stub {
        mode: if parse_section(&name).is_some_and(|id| id.kind == Kind::Tcp) { "tcp" } else { "http" },
        name,
        named_by: named.places.into_iter().next().unwrap_or_default(),
        has_table: named.has_table,
    });
    stubs.collect()
}

/// The maps' contents, a line an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maps {
    /// Host or wildcard → itself. A host that is not here belongs to no service.
    pub hosts: String,
    /// Host or wildcard and path prefix with its `/` → backend. HAProxy takes the longest prefix.
    pub paths: String,
    /// Regular expression → backend. HAProxy takes the first match.
    pub urls: String,
    /// Host or wildcard of a service with `tls passthrough` → backend.
    pub passthrough: String,
    /// Backend → the host that its HTTP checks ask for.
    pub checks: String,
}

/// The frontend that reads requests.
pub const WEB: &str = "discover-web";

/// The frontend that accepts all TLS while some of it is passed through.
pub const TLS: &str = "discover-tls";

/// The section with the stats page.
pub const STATS: &str = "discover-stats";

/// The most connections of that section at a time.
pub const STATS_MAXCONN: u64 = 2000;

/// The backend for requests to hosts with `tls passthrough`. It redirects HTTP to HTTPS, and answers 421 on a connection that HAProxy
/// terminates.
pub const PASSTHROUGH: &str = "discover-passthrough";

impl<'a> View<'a> {
    /// Arranges the desired services. With this view alone, no process before needs the inner socket.
    pub fn new(desired: &'a DesiredState, site: &'a Site, operator: &'a OperatorConfig) -> Self {
        Self::with_maps(desired, site, operator, Arc::new(Maps::from_desired(desired)))
    }

    /// The same. `maps` are those of the desired services.
    pub fn with_maps(desired: &'a DesiredState, site: &'a Site, operator: &'a OperatorConfig, maps: Arc<Maps>) -> Self {
        let (owner, chroot) = resolve_rights(site, operator);
        let (mut http, mut passthrough, mut tcp) = (Vec::new(), Vec::new(), Vec::new());
        let (mut default, mut sticks_by_source) = (false, false);
        // In one walk: the services lie scattered in memory, and a file is rendered after each change.
        for (id, wanted) in desired.services().filter(|(id, wanted)| has_section(id, wanted)) {
            default |= id.is_default();
            sticks_by_source |= remembers_clients(id, wanted);
            // HAProxy reads no request of a passed-through service, so its sections come in a part of the file with `mode tcp`.
            let sections: &mut Vec<Section> = match id.kind {
                Kind::Http if wanted.settings.passes_through() => &mut passthrough,
                Kind::Http => &mut http,
                Kind::Tcp => &mut tcp,
            };
            sections.extend(sections_of(id, wanted));
        }
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
            maps,
            default,
            acme: site
                .acme
                .as_ref()
                .filter(|id| desired.service(id).is_some_and(|wanted| gets_challenges(id, wanted, site))),
            // Only `with_previous_passthrough` knows the process before.
            lingers: false,
        }
    }

    /// The view for a restart of a HAProxy that passes TLS through, or doesn't.
    #[must_use]
    pub fn with_previous_passthrough(self, passed_through: bool) -> Self {
        Self { lingers: passed_through && !self.passes_through(), ..self }
    }

    pub(crate) fn passes_through(&self) -> bool {
        !self.passthrough.is_empty()
    }

    /// The own sections of services that have a preview. A request can choose a color by header there.
    pub(crate) fn previewed(&self) -> impl Iterator<Item = &Section<'a>> {
        self.http.iter().filter(|section| section.preview.is_none() && section.wanted.settings.preview.is_some())
    }

    /// True if confgen writes this `global` keyword. An operator's line replaces confgen's.
    pub(crate) fn writes_global(&self, keyword: &str) -> bool {
        !self.operator.global_keywords.contains(keyword)
    }
}

/// True if the file has a section for the service. A TCP service without a port has nothing to listen on.
pub fn has_section(id: &ServiceId, wanted: &DesiredService) -> bool {
    id.kind == Kind::Http || !wanted.binds.is_empty()
}

/// A service's share of the common part of the file, beyond its existence. If it changes, the common part changes. `None` if the
/// service has no share.
pub fn shared_part_of(id: &ServiceId, wanted: &DesiredService, site: &Site) -> Option<String> {
    let regex = wanted.url_reg.as_ref().map(|(since, regex)| format!("{since} {regex}"));
    let remembers = remembers_clients(id, wanted).then(|| "remembers its clients".to_owned());
    let previewed = wanted.settings.preview.as_ref().map(|networks| format!("is previewed from {networks}"));
    // The frontend names these two services, so their existence alone is a share.
    let named = (id.is_default() || gets_challenges(id, wanted, site)).then(String::new);
    let share: Vec<String> = named.into_iter().chain(remembers).chain(previewed).chain(regex).collect();
    (!share.is_empty()).then(|| share.join(" "))
}

/// True if ACME's challenges go to the service.
fn gets_challenges(id: &ServiceId, wanted: &DesiredService, site: &Site) -> bool {
    // HAProxy sends no HTTP request to a service with `tls passthrough`.
    site.acme.as_ref() == Some(id) && !wanted.settings.passes_through()
}

/// The user that HAProxy becomes, in words of `bind`, and its chroot. An operator's line counts before a flag.
fn resolve_rights(site: &Site, operator: &OperatorConfig) -> (Option<String>, Option<String>) {
    let user = site.rights.haproxy_user.name().map(|name| format!("user {name}"));
    let chroot = site.rights.chroot.as_ref().map(|dir| dir.display().to_string());
    (operator.user.clone().or(user), operator.chroot.clone().or(chroot))
}

fn remembers_clients(id: &ServiceId, wanted: &DesiredService) -> bool {
    wanted.settings.sticky == Sticky::Source && has_section(id, wanted)
}

impl Maps {
    /// The maps of these services.
    pub fn from_desired(desired: &DesiredState) -> Self {
        let http = desired.services().filter(|(id, _)| id.kind == Kind::Http);
        build_maps(desired, http.flat_map(|(id, wanted)| sections_of(id, wanted)))
    }
}

fn build_maps<'a>(desired: &DesiredState, sections: impl Iterator<Item = Section<'a>>) -> Maps {
    let mut hosts: BTreeMap<String, ()> = BTreeMap::new();
    let mut paths: BTreeMap<String, String> = BTreeMap::new();
    let mut urls: Vec<(i64, String, String)> = Vec::new();
    let mut passthrough: BTreeMap<String, String> = BTreeMap::new();
    for (id, wanted) in desired.services() {
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
    let checks: BTreeMap<String, &Host> =
        sections.filter_map(|section| Some((section.name(), checked_host(section.id, section.wanted)?))).collect();
    // The oldest expression comes first, so that a new service takes no request from an old one.
    urls.sort();
    // Sorted maps give the same bytes for the same store.
    Maps {
        hosts: hosts.keys().map(|host| map_line(host, host)).collect(),
        paths: paths.iter().map(|(path, backend)| map_line(path, backend)).collect(),
        urls: urls.iter().map(|(_, backend, regex)| map_line(regex, backend)).collect(),
        passthrough: passthrough.iter().map(|(host, backend)| map_line(host, backend)).collect(),
        checks: checks.iter().map(|(backend, host)| map_line(backend, host.as_str())).collect(),
    }
}

fn map_line(key: &str, value: &str) -> String {
    format!("{key} {value}\n")
}

/// The route's key in the map of paths.
pub fn path_key(route: &Route) -> String {
    format!("{}{}", route.domain, route.path.with_boundary())
}

/// The host that the service's HTTP checks ask for. `None` if it has no such check, or no host.
pub fn checked_host<'a>(id: &ServiceId, wanted: &'a DesiredService) -> Option<&'a Host> {
    let is_asked = id.kind == Kind::Http && matches!(wanted.settings.check, Check::Http(_));
    wanted.host.as_ref().filter(|_| is_asked)
}

/// The backend for the service's requests that HAProxy reads.
pub fn backend_of(id: &ServiceId, wanted: &DesiredService) -> String {
    if wanted.settings.passes_through() { PASSTHROUGH.to_owned() } else { id.to_string() }
}

impl Site {
    pub(crate) fn trusted_rows(&self) -> Vec<String> {
        rows_of(self.trusted_proxies.as_ref())
    }

    pub(crate) fn proxied_rows(&self) -> Vec<String> {
        rows_of(self.proxy_protocol_from.as_ref())
    }

    /// The condition for a client that speaks TLS, to HAProxy or to a trusted proxy that says so.
    pub(crate) fn over_tls(&self) -> &'static str {
        if self.trusted_proxies.is_some() { "var(txn.scheme) -m str https wss" } else { "ssl_fc" }
    }
}

/// A frontend's bind as HAProxy reads it. `[::]` takes IPv4 too, unless the frontend binds IPv4 on the same port (`beside`).
pub(crate) fn bind(bind: &Bind, beside: &[Bind]) -> String {
    match bind.address {
        Some(address) if address.is_ipv6() && address.is_unspecified() => {
            let has_v4 = beside
                .iter()
                .any(|other| other.port == bind.port && other.address.is_none_or(|address| address.is_ipv4()));
            format!("{bind} {}", if has_v4 { "v6only" } else { "v4v6" })
        }
        _ => bind.to_string(),
    }
}
