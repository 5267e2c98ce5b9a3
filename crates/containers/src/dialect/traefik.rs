//! Traefik's labels. A router is a service here. What would decide access or change requests there and isn't understood
//! here refuses the router. Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};

use crate::dialect::rule::{Route, RuleKind, find_hosts, parse_rule};
use crate::draft::{Drafts, FieldName, ServiceDraft};
use crate::fault::LabelFault;

/// The most routers of one container that are read.
const MOST_ROUTERS: usize = 64;

/// Middlewares that neither keep a client out nor change what the app sees. Balancers redirect to https by themselves.
const HARMLESS: [&str; 3] = ["compress", "redirectscheme", "retry"];

type Labels = BTreeMap<String, String>;

/// Drafts of the routers that have a rule.
pub(super) fn read_labels(labels: &Labels) -> Drafts {
    let mut made = Drafts::default();
    if find(labels, "traefik.enable").is_some_and(|(_, value)| value.trim().eq_ignore_ascii_case("false")) {
        return made;
    }
    let mut routers = Vec::new();
    for kind in [RuleKind::Http, RuleKind::Tcp] {
        routers.extend(list_routers(labels, kind).into_iter().take(MOST_ROUTERS));
    }
    // All are read before any is taken, since a refused one may come last.
    let mut refused_hosts = BTreeSet::new();
    let mut read = Vec::new();
    for router in routers {
        match router.read(labels) {
            Ok(draft) => read.push((router.find_route(), draft)),
            Err(fault) => {
                refused_hosts.extend(find_hosts(&router.rule));
                made.faults.push(fault);
            }
        }
    }
    // A second router of the same host would open what the refused one protects, by a middleware for example.
    read.retain(|(route, _)| route.as_ref().is_none_or(|route| route.hosts.is_disjoint(&refused_hosts)));
    // `app` and `app-secure` with one rule are one service here, since a balancer serves http and https.
    let mut routes = Vec::new();
    for (route, draft) in read {
        let target = (route, draft.fields.get(&FieldName::Port).map(|field| field.value.clone()));
        if !routes.contains(&target) {
            routes.push(target);
            made.drafts.push(draft);
        }
    }
    made
}

/// A router with its rule.
struct Router {
    kind: RuleKind,
    name: String,
    label: String,
    rule: String,
}

fn folder(kind: RuleKind) -> &'static str {
    match kind {
        RuleKind::Http => "traefik.http",
        RuleKind::Tcp => "traefik.tcp",
    }
}

fn list_routers(labels: &Labels, kind: RuleKind) -> Vec<Router> {
    let prefix = format!("{}.routers.", folder(kind));
    let below = labels.range(prefix.clone()..).take_while(|(label, _)| label.starts_with(&prefix));
    let rules = below.filter_map(|(label, rule)| {
        let name = label.strip_prefix(&prefix)?.strip_suffix(".rule")?;
        let is_router = !name.is_empty() && !name.contains('.');
        is_router.then(|| Router { kind, name: name.to_owned(), label: label.clone(), rule: rule.clone() })
    });
    let mut routers: Vec<Router> = rules.collect();
    // Of `app` and `app-http` with one rule, the shorter name stays.
    routers.sort_by(|one, other| one.name.cmp(&other.name));
    routers
}

impl Router {
    fn find_route(&self) -> Option<Route> {
        parse_rule(&self.rule, self.kind).ok()
    }

    fn read(&self, labels: &Labels) -> Result<ServiceDraft, LabelFault> {
        let route = parse_rule(&self.rule, self.kind).map_err(|why| LabelFault::new(&self.label, &self.rule, why))?;
        let folder = format!("{}.routers.{}", folder(self.kind), self.name);
        check_middlewares(labels, &folder)?;
        let mut draft = ServiceDraft { folder: folder.clone(), ..ServiceDraft::default() };
        draft.set(FieldName::Service, &folder, &self.name);
        draft.set(FieldName::Domain, &self.label, &join(route.hosts));
        if !route.paths.is_empty() {
            draft.set(FieldName::Path, &self.label, &join(route.paths));
        }
        if self.kind == RuleKind::Tcp {
            self.check_tls(labels, &folder)?;
            draft.set(FieldName::Tls, &self.label, "passthrough");
        }
        self.read_service(labels, &folder, &mut draft)?;
        Ok(draft)
    }

    /// A TCP router is a service here only if the app has the certificate.
    fn check_tls(&self, labels: &Labels, folder: &str) -> Result<(), LabelFault> {
        if self.rule.contains("`*`") {
            let reason =
                "its port is an entry point's, which labels don't have; label it haproxy-discover.type=tcp with .ports";
            return Err(LabelFault::new(&self.label, &self.rule, reason));
        }
        let label = format!("{folder}.tls.passthrough");
        match find(labels, &label) {
            Some((_, value)) if value.trim().eq_ignore_ascii_case("true") => Ok(()),
            _ => Err(LabelFault::missing(&label, "a TCP router by name is passed through here, so it must be true")),
        }
    }

    /// Reads port and check of the router's service: the one that it names, else the only one, else the one of its name.
    fn read_service(&self, labels: &Labels, router: &str, draft: &mut ServiceDraft) -> Result<(), LabelFault> {
        let services = format!("{}.services.", folder(self.kind));
        let below = labels.range(services.clone()..).take_while(|(label, _)| label.starts_with(&services));
        let names: BTreeSet<&str> =
            below.filter_map(|(label, _)| label.strip_prefix(&services)?.split('.').next()).collect();
        let named = find(labels, &format!("{router}.service"));
        let name = match (&named, names.first()) {
            (Some((_, name)), _) => name.trim(),
            (None, Some(only)) if names.len() == 1 => only,
            _ => self.name.as_str(),
        };
        if let Some((label, value)) = &named
            && !names.contains(name)
            && !names.is_empty()
        {
            return Err(LabelFault::new(label, value, "no label of this container describes that service"));
        }
        let server = format!("{services}{name}.loadbalancer");
        if let Some((label, value)) = find(labels, &format!("{server}.server.scheme"))
            && !value.trim().eq_ignore_ascii_case("http")
        {
            let reason = "label it haproxy-discover.tls=reencrypt, or haproxy-discover.set.proto=h2";
            return Err(LabelFault::new(label, value, reason));
        }
        if let Some((label, value)) = find(labels, &format!("{server}.server.port")) {
            draft.set(FieldName::Port, label, value);
        }
        if let Some((label, value)) = find(labels, &format!("{server}.healthcheck.path")) {
            draft.set(FieldName::Check, label, value);
        }
        Ok(())
    }
}

/// Refuses a router with a middleware that may keep clients out.
fn check_middlewares(labels: &Labels, router: &str) -> Result<(), LabelFault> {
    let Some((label, value)) = find(labels, &format!("{router}.middlewares")) else { return Ok(()) };
    for name in value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let own = name.strip_suffix("@docker").unwrap_or(name);
        let prefix = format!("traefik.http.middlewares.{own}.").to_ascii_lowercase();
        let mut kinds = labels.keys().filter_map(|label| {
            let label = label.to_ascii_lowercase();
            label.strip_prefix(&prefix).map(|rest| rest.split('.').next().unwrap_or_default().to_owned())
        });
        let is_harmless = match kinds.next() {
            // It is described elsewhere.
            None => false,
            Some(first) => HARMLESS.contains(&first.as_str()) && kinds.all(|kind| HARMLESS.contains(&kind.as_str())),
        };
        if !is_harmless {
            let reason = "a middleware may decide access, and only redirectscheme, compress and retry are known here; \
                          label the container haproxy-discover.domain and so on instead";
            return Err(LabelFault::new(label, value, reason));
        }
    }
    Ok(())
}

/// A label by its name. Traefik reads names without regard to case.
fn find<'a>(labels: &'a Labels, name: &str) -> Option<(&'a String, &'a String)> {
    labels.get_key_value(name).or_else(|| labels.iter().find(|(label, _)| label.eq_ignore_ascii_case(name)))
}

fn join(words: BTreeSet<String>) -> String {
    words.into_iter().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use crate::container::Container;
    use crate::dialect::Dialect;
    use crate::labels::{LabelRules, Reading};
    use crate::service::LabelCheck;

    fn read(labels: &[(&str, &str)]) -> Reading {
        let labels = labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
        let rules = LabelRules { prefix: "haproxy-discover".to_owned(), dialects: vec![Dialect::Traefik] };
        rules.read(&Container { labels, ..Container::default() })
    }

    #[track_caller]
    fn one(labels: &[(&str, &str)]) -> String {
        let Reading { services, faults } = read(labels);
        assert_eq!((services.len(), faults.as_slice()), (1, [].as_slice()));
        let service = &services[0];
        let settings: Vec<_> = service.settings.iter().map(|setting| format!("{}={setting}", setting.name())).collect();
        format!("{} {:?} {}", service.service, service.port.map(u16::from), settings.join(" "))
    }

    const RULE: (&str, &str) = ("traefik.http.routers.app.rule", "Host(`a.com`) && PathPrefix(`/x`)");

    #[test]
    fn a_router_is_a_service() {
        assert_eq!(one(&[RULE, ("traefik.enable", "true")]), "http-app None domain=a.com path=/x");
        let full = [
            RULE,
            ("traefik.http.routers.app.entrypoints", "websecure"),
            ("traefik.http.routers.app.tls.certresolver", "le"),
            ("traefik.http.services.app.loadbalancer.server.port", "8000"),
            ("traefik.http.services.app.loadbalancer.healthcheck.path", "/health"),
        ];
        assert_eq!(one(&full), "http-app Some(8000) domain=a.com path=/x");
        assert_eq!(read(&full).services[0].check, Some(LabelCheck::Http("/health".to_owned())));
        let disabled = [RULE, ("traefik.enable", "False")];
        assert_eq!(read(&disabled), Reading::default());
        let other = [
            RULE,
            ("traefik.http.routers.app.service", "back"),
            ("traefik.http.services.back.loadbalancer.server.port", "1"),
            ("traefik.http.services.app.loadbalancer.server.port", "2"),
        ];
        assert_eq!(one(&other), "http-app Some(1) domain=a.com path=/x");
    }

    #[test]
    fn routers_of_one_rule_are_one_service() {
        let twice = [
            RULE,
            ("traefik.http.routers.app-http.rule", RULE.1),
            ("traefik.http.routers.app-http.middlewares", "to-https@docker"),
            ("traefik.http.middlewares.to-https.redirectScheme.scheme", "https"),
        ];
        assert_eq!(one(&twice), "http-app None domain=a.com path=/x");
    }

    #[test]
    fn what_protects_a_router_there_is_never_left_out_here() {
        for middleware in ["auth@file", "auth"] {
            let reading = read(&[
                RULE,
                ("traefik.http.routers.app.middlewares", middleware),
                ("traefik.http.middlewares.auth.basicauth.users", "x"),
                ("traefik.http.routers.open.rule", "Host(`A.com`)"),
                ("traefik.http.routers.other.rule", "Host(`b.com`)"),
            ]);
            let names: Vec<_> = reading.services.iter().map(|it| it.service.to_string()).collect();
            assert_eq!(names, ["http-other"], "{middleware}");
            assert!(reading.faults[0].to_string().contains("may decide access"), "{:?}", reading.faults);
        }
        let scheme = read(&[RULE, ("traefik.http.services.app.loadbalancer.server.scheme", "https")]);
        assert!(scheme.services.is_empty() && scheme.faults[0].to_string().contains("reencrypt"));
    }

    #[test]
    fn a_tcp_router_by_name_is_passed_through() {
        let rule = ("traefik.tcp.routers.db.rule", "HostSNI(`db.a.com`)");
        assert_eq!(
            one(&[rule, ("traefik.tcp.routers.db.tls.passthrough", "true")]),
            "http-db None domain=db.a.com tls=passthrough"
        );
        assert!(read(&[rule]).faults[0].to_string().contains("tls.passthrough` is missing"));
        let any = read(&[("traefik.tcp.routers.db.rule", "HostSNI(`*`)")]);
        assert!(any.faults[0].to_string().contains("haproxy-discover.type=tcp"), "{:?}", any.faults);
    }

    #[test]
    fn labels_of_our_own_come_first() {
        let reading = read(&[RULE, ("haproxy-discover.domain", "b.com")]);
        assert_eq!((reading.services.len(), reading.services[0].service.to_string().as_str()), (1, "http-b.com"));
    }
}
