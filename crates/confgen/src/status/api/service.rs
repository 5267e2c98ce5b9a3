//! Builds the answers about services: their claims, their settings, and the counts of their upstreams. Pure.

use std::collections::BTreeMap;

use discovery::balancer_api::{PreviewColor, Route, Service, ServiceInFull, Services, Upstream, UpstreamCounts};
use discovery::{Kind, ServiceId, Tls};

use super::upstream::{show_service_upstreams, show_traffic};
use super::{Counted, applied_revision};
use crate::desired::names::{parse_section, preview_section};
use crate::desired::{self, Preview, Settings};
use crate::status::Status;
use crate::status::figures::Figures;

/// The answer to `/api/v1/services`.
pub fn show_services(report: &Status, counted: &Counted) -> Services {
    let figures = Figures::new(counted);
    let known = report.reconcile.desired.known_services();
    let services = known.map(|id| show_service(report, id, &figures).0).collect();
    Services { haproxy_error: counted.as_ref().err().cloned(), applied: applied_revision(report), services }
}

/// The answer to `/api/v1/services/{id}`; None if there is no such service.
pub fn find_service(report: &Status, counted: &Counted, id: &str) -> Option<ServiceInFull> {
    let id = report.reconcile.desired.known_services().find(|known| known.to_string() == id)?;
    Some(show_in_full(report, id, &Figures::new(counted)))
}

fn show_in_full(report: &Status, id: &ServiceId, figures: &Figures) -> ServiceInFull {
    let (service, upstreams) = show_service(report, id, figures);
    let quarantine = report.quarantined_keys(id).map(|(key, reason)| (key.clone(), reason.clone())).collect();
    let haproxy_error = figures.error().map(str::to_owned);
    ServiceInFull { haproxy_error, applied: applied_revision(report), service, upstreams, quarantine }
}

/// A service, and its upstreams, which its counts are taken from.
fn show_service(report: &Status, id: &ServiceId, figures: &Figures) -> (Service, Vec<Upstream>) {
    let desired = &report.reconcile.desired;
    let upstreams = show_service_upstreams(report, figures, id);
    let wanted = desired.service(id);
    let routes = wanted.iter().flat_map(|wanted| &wanted.routes);
    let binds = wanted.iter().flat_map(|wanted| &wanted.binds);
    let previews = wanted.iter().flat_map(|wanted| &wanted.previews);
    let service = Service {
        id: id.to_string(),
        kind: if id.kind == Kind::Http { "http" } else { "tcp" }.to_owned(),
        name: id.name.to_string(),
        routes: routes.map(show_route).collect(),
        url_reg: wanted.and_then(|it| it.url_reg.as_ref()).map(|(_, regex)| regex.to_string()),
        ports: binds.map(ToString::to_string).collect(),
        settings: wanted.map(|it| show_settings(id.kind, &it.settings)).unwrap_or_default(),
        pending: report.reconcile.pending.contains(id),
        refused: desired.rejection(id).map(str::to_owned),
        upstreams: UpstreamCounts {
            total: upstreams.len(),
            ready: upstreams.iter().filter(|it| it.state.as_deref() == Some("ready")).count(),
            balanced: upstreams.iter().filter(|it| it.balanced == Some(true)).count(),
        },
        haproxy: figures.find_backend(&id.to_string()).map(show_traffic),
        previews: previews.map(|preview| show_preview(id, preview, figures)).collect(),
        named_by: list_naming_lines(report, id),
    };
    (service, upstreams)
}

fn show_route(route: &desired::Route) -> Route {
    Route { host: route.domain.to_string(), path: route.path.to_string() }
}

fn show_preview(id: &ServiceId, preview: &Preview, figures: &Figures) -> PreviewColor {
    let section = preview_section(id, &preview.color);
    PreviewColor {
        color: preview.color.to_string(),
        routes: preview.routes.iter().map(show_route).collect(),
        upstreams: preview.servers.len(),
        haproxy: figures.find_backend(&section).map(show_traffic),
        section,
    }
}

/// Lists the lines of the operator's files that name the service's section, or a section of its previews.
fn list_naming_lines(report: &Status, id: &ServiceId) -> Vec<String> {
    let named = &report.reconcile.operator_files.named_sections;
    let of_it = named.iter().filter(|(section, _)| parse_section(section).as_ref() == Some(id));
    of_it.flat_map(|(_, named)| named.places.clone()).collect()
}

/// The settings in effect by their keys' names, without those that have no effect on such a service.
fn show_settings(kind: Kind, settings: &Settings) -> BTreeMap<String, String> {
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
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}
