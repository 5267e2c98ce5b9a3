//! Services: what each holds and is set to, and how many of its upstreams are up.

use std::collections::BTreeMap;

use discovery::{Kind, ServiceId, Tls};
use serde::Serialize;

use super::upstream::{Traffic, UpstreamShown, show_service_upstreams};
use super::{Counted, applied_revision};
use crate::desired::names::preview_section;
use crate::desired::{Preview, Settings};
use crate::status::Status;
use crate::status::figures::Figures;

/// `/api/v1/services`.
#[derive(Debug, Serialize)]
pub struct Services {
    /// Why HAProxy couldn't be asked, if so.
    pub haproxy_error: Option<String>,
    /// The revision that HAProxy follows, but for what is pending.
    pub applied: Option<i64>,
    /// By kind, then by name.
    pub services: Vec<ServiceShown>,
}

/// One service.
#[derive(Debug, Serialize)]
pub struct ServiceShown {
    /// As its section is called: `http-shop`.
    pub id: String,
    /// `http` or `tcp`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// The hosts and paths that it holds, each with each.
    pub routes: Vec<RouteShown>,
    /// The old layout's expression.
    pub url_reg: Option<String>,
    /// The ports that it holds.
    pub ports: Vec<String>,
    /// Its settings, the defaults included, as they would be written.
    pub settings: BTreeMap<&'static str, String>,
    /// A change of it waits for a restart.
    pub pending: bool,
    /// What HAProxy has against it; then it is served in the last form that HAProxy took, or not at all.
    pub refused: Option<String>,
    /// Its upstreams, counted.
    pub upstreams: Census,
    /// What HAProxy has seen of its backend since it started.
    pub haproxy: Option<Traffic>,
    /// The colors that can be previewed.
    pub previews: Vec<ColorShown>,
    /// Lines of the operator's files that name its section: `/etc/haproxy/conf.d/mine.cfg:3`.
    pub named_by: Vec<String>,
}

/// A color that can be previewed.
#[derive(Debug, Serialize)]
pub struct ColorShown {
    /// Its name.
    pub color: String,
    /// Its section: `http-shop:preview-green`.
    pub section: String,
    /// The hosts and paths that lead to it.
    pub routes: Vec<RouteShown>,
    /// How many upstreams it has there: none while it is active, and then it answers 503.
    pub upstreams: usize,
    /// What HAProxy has seen of that section since it started.
    pub haproxy: Option<Traffic>,
}

/// One host and one path prefix.
#[derive(Debug, Serialize)]
pub struct RouteShown {
    /// The host, or `*.` and what it is below of.
    pub host: String,
    /// The prefix; `/` is all paths.
    pub path: String,
}

/// Upstreams, counted.
#[derive(Debug, Default, Serialize)]
pub struct Census {
    /// In all.
    pub total: usize,
    /// Wanted to take requests.
    pub ready: usize,
    /// Getting new requests from HAProxy.
    pub balanced: usize,
}

/// `/api/v1/services/{id}`: one service with its upstreams and what is refused of it.
#[derive(Debug, Serialize)]
pub struct ServiceInFull {
    /// Why HAProxy couldn't be asked, if so.
    pub haproxy_error: Option<String>,
    /// The revision that HAProxy follows, but for what is pending.
    pub applied: Option<i64>,
    /// The service.
    pub service: ServiceShown,
    /// Its upstreams.
    pub upstreams: Vec<UpstreamShown>,
    /// Its keys that are not followed, and why.
    pub quarantine: BTreeMap<String, String>,
}

/// All services of now.
pub fn show_services(report: &Status, counted: &Counted) -> Services {
    let figures = Figures::new(counted);
    let known = report.reconcile.desired.known_services();
    let services = known.map(|id| show_service(report, id, &figures).0).collect();
    Services { haproxy_error: counted.as_ref().err().cloned(), applied: applied_revision(report), services }
}

/// One service of now; none if there is none of that id.
pub fn find_service(report: &Status, counted: &Counted, id: &str) -> Option<ServiceInFull> {
    let id = report.reconcile.desired.known_services().find(|known| known.to_string() == id)?;
    Some(show_in_full(report, id, &Figures::new(counted)))
}

/// The first so many services of now.
pub fn show_first_services(report: &Status, counted: &Counted, most: usize) -> Vec<ServiceInFull> {
    let figures = Figures::new(counted);
    report.reconcile.desired.known_services().take(most).map(|id| show_in_full(report, id, &figures)).collect()
}

fn show_in_full(report: &Status, id: &ServiceId, figures: &Figures) -> ServiceInFull {
    let (service, upstreams) = show_service(report, id, figures);
    let quarantine = report.quarantined_keys(id).map(|(key, reason)| (key.clone(), reason.clone())).collect();
    let haproxy_error = figures.error().map(str::to_owned);
    ServiceInFull { haproxy_error, applied: applied_revision(report), service, upstreams, quarantine }
}

fn show_service(report: &Status, id: &ServiceId, figures: &Figures) -> (ServiceShown, Vec<UpstreamShown>) {
    let settled = &report.reconcile.desired;
    let upstreams = show_service_upstreams(report, figures, id);
    let wanted = settled.service(id);
    let routes = wanted.iter().flat_map(|wanted| &wanted.routes);
    let binds = wanted.iter().flat_map(|wanted| &wanted.binds);
    let route =
        |route: &crate::desired::Route| RouteShown { host: route.domain.to_string(), path: route.path.to_string() };
    let preview = |preview: &Preview| {
        let section = preview_section(id, &preview.color);
        ColorShown {
            color: preview.color.to_string(),
            routes: preview.routes.iter().map(route).collect(),
            upstreams: preview.servers.len(),
            haproxy: figures.find_backend(&section).map(Traffic::from),
            section,
        }
    };
    let shown = ServiceShown {
        id: id.to_string(),
        kind: if id.kind == Kind::Http { "http" } else { "tcp" },
        name: id.name.to_string(),
        routes: routes.map(route).collect(),
        url_reg: wanted.and_then(|it| it.url_reg.as_ref()).map(|(_, regex)| regex.to_string()),
        ports: binds.map(ToString::to_string).collect(),
        settings: wanted.map(|it| show_settings(id.kind, &it.settings)).unwrap_or_default(),
        pending: report.reconcile.pending.contains(id),
        refused: settled.rejection(id).map(str::to_owned),
        upstreams: Census {
            total: upstreams.len(),
            ready: upstreams.iter().filter(|it| it.state == Some("ready")).count(),
            balanced: upstreams.iter().filter(|it| it.balanced == Some(true)).count(),
        },
        haproxy: figures.find_backend(&id.to_string()).map(Traffic::from),
        previews: wanted.iter().flat_map(|wanted| &wanted.previews).map(preview).collect(),
        named_by: list_naming_lines(report, id),
    };
    (shown, upstreams)
}

/// Lines of the operator's files that name the service's section, or one of its previews'.
fn list_naming_lines(report: &Status, id: &ServiceId) -> Vec<String> {
    let named = &report.reconcile.operator_files.named_sections;
    let of_it = named.iter().filter(|(section, _)| crate::desired::names::parse_section(section).as_ref() == Some(id));
    of_it.flat_map(|(_, named)| named.places.clone()).collect()
}

/// The settings that count, by their keys' names.
fn show_settings(kind: Kind, settings: &Settings) -> BTreeMap<&'static str, String> {
    let (http, secure) = (kind == Kind::Http, settings.tls == Tls::Reencrypt);
    let all = [
        ("tls", Some(settings.tls.to_string())),
        ("balance", Some(settings.balance.to_string())),
        ("check", Some(settings.check.to_string())),
        ("sticky", Some(settings.sticky.to_string())),
        ("allow", settings.allow.as_ref().map(ToString::to_string)),
        ("maxconn", settings.maxconn.map(|most| most.to_string())),
        ("slowstart", settings.slowstart.map(|span| span.to_string())),
        ("hsts", settings.hsts.map(|hsts| hsts.to_string())),
        ("proxy-protocol", Some(settings.proxy_protocol.to_string())),
        ("proto", http.then(|| settings.proto.to_string())),
        ("verify", secure.then(|| settings.trust.to_string())),
        ("sni", secure.then(|| settings.sni.to_string())),
        ("profile", settings.profile.as_ref().map(ToString::to_string)),
        ("active", settings.active.as_ref().map(ToString::to_string)),
        ("preview", settings.preview.as_ref().map(ToString::to_string)),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}
