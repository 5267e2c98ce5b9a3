//! The colors of a service that can be previewed, and their hosts: `<color>.<host>` for each exact host of the service. Pure.

use std::collections::{BTreeMap, BTreeSet};

use discovery::{Color, Domain, Host, ServiceId};

use super::Policy;
use crate::desired::service_input::{KeyOrigin, MAX_ROUTES, ServiceInput};

/// The bound on a service's colors. Announcers name the colors, and each color takes a section of HAProxy.
const MAX_COLORS: usize = 16;

impl ServiceInput {
    /// Names a host for each color below each exact host. A host that the service can't have is left out with a reason.
    pub(super) fn name_previews(&mut self, id: &ServiceId, policy: &Policy) {
        if self.settings.preview.is_none() {
            return;
        }
        let colors = self.known_colors();
        let own_hosts: Vec<Host> = self.domains.iter().filter_map(exact_host).cloned().collect();
        if let Some(reason) = self.preview_conflict(&own_hosts, colors.len()) {
            self.settings.preview = None;
            self.refuse_preview(&reason);
            return;
        }
        let mut reasons: Vec<String> =
            self.domains.iter().filter(|it| exact_host(it).is_none()).map(wildcard_reason).collect();
        let own_domains: BTreeSet<&Domain> = self.domains.iter().collect();
        let mut named = BTreeSet::new();
        let mut previews: BTreeMap<Color, Vec<Domain>> = BTreeMap::new();
        for color in colors {
            // A color without a host gets a section too, because clients may ask for it by the header.
            let hosts = previews.entry(color.clone()).or_default();
            for host in &own_hosts {
                match build_preview_domain(&color, host, id, policy) {
                    Ok(domain) if own_domains.contains(&domain) => {
                        reasons.push(format!("{domain} leads to no color: the service's own `domain` has it"));
                    }
                    // Hosts are lower case, so colors that differ in case only would share one.
                    Ok(domain) if named.insert(domain.clone()) => hosts.push(domain),
                    Ok(domain) => {
                        reasons.push(format!("{domain} leads to another color already"));
                    }
                    Err(reason) => reasons.push(reason),
                }
            }
        }
        self.previews = previews;
        if let Some(reason) = summarize_reasons(&reasons) {
            self.refuse_preview(&reason);
        }
    }

    /// Adds a reason to those against the value of `preview` itself.
    fn refuse_preview(&mut self, reason: &str) {
        let reasons = self.refusals.entry(self.previews_origin.key.clone()).or_default();
        *reasons = if reasons.is_empty() { reason.to_owned() } else { format!("{reasons}; {reason}") };
    }

    /// The colors of the service's upstreams, and those that `active` names.
    fn known_colors(&self) -> BTreeSet<Color> {
        let announced = self.upstreams.iter().filter_map(|(_, upstream)| upstream.color.as_ref());
        let active = self.settings.active.iter().flat_map(|active| active.iter().map(|(color, _)| color));
        announced.chain(active).cloned().collect()
    }

    /// The reason why the service can have no preview at all. `None` if it can.
    fn preview_conflict(&self, own_hosts: &[Host], colors: usize) -> Option<String> {
        // Without any host, clients ask for a color by a header. With wildcards only, they would expect a host.
        if let (Some(domain), []) = (self.domains.first(), own_hosts) {
            return Some(wildcard_reason(domain));
        }
        if colors > MAX_COLORS {
            return Some(format!("{colors} colors; {MAX_COLORS} are the most that can be previewed; none is"));
        }
        let (hosts, paths) = (own_hosts.len().saturating_mul(colors), self.paths.len());
        let routes = self.domains.len().saturating_add(hosts).saturating_mul(paths);
        (routes > MAX_ROUTES)
            .then(|| format!("{hosts} hosts for previews with {paths} paths each; {MAX_ROUTES} routes are the most"))
    }

    /// The hosts and wildcards that the service names, those of previews included, each with its key.
    pub(super) fn claimed_domains(&self) -> impl Iterator<Item = (&KeyOrigin, &Domain)> {
        let own = self.domains.iter().map(|domain| (&self.domains_origin, domain));
        own.chain(self.previews.values().flatten().map(|domain| (&self.previews_origin, domain)))
    }
}

/// The error is the reason why the color has no host below this one: a color may hold letters that no host does.
fn build_preview_domain(color: &Color, host: &Host, id: &ServiceId, policy: &Policy) -> Result<Domain, String> {
    let name = format!("{color}.{host}");
    let host: Host = name.parse().map_err(|error| format!("{name} leads to no color: {error}"))?;
    let domain = Domain::Exact(host);
    let allowed = policy.domain_allowlist.as_ref().map_or(Ok(()), |it| it.check_domain(&id.name, &domain));
    allowed.map(|()| domain)
}

fn exact_host(domain: &Domain) -> Option<&Host> {
    match domain {
        Domain::Exact(host) => Some(host),
        Domain::Wildcard(_) => None,
    }
}

fn wildcard_reason(domain: &Domain) -> String {
    format!("{domain}: there are no previews of a wildcard; name a host in `domain`")
}

/// Joins the first reasons. A service may name hundreds of hosts.
fn summarize_reasons(reasons: &[String]) -> Option<String> {
    const SHOWN: usize = 3;
    let more = reasons.len().checked_sub(SHOWN).filter(|more| *more > 0).map(|more| format!("{more} more"));
    let all: Vec<String> = reasons.iter().take(SHOWN).cloned().chain(more).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

#[cfg(test)]
mod tests {
    use crate::desired::tests::{settle, topology};
    use crate::desired::{DesiredService, DesiredState, LastKnownGood, Policy, Preview};

    const SHOP: &str = "\
http-services/shop/domain shop.test www.shop.test
http-services/shop/active blue
http-services/shop/preview 10.0.0.0/8
http-services/shop/upstreams/b {\"address\":\"10.0.0.1:80\",\"color\":\"blue\"}
http-services/shop/upstreams/g {\"address\":\"10.0.0.2:80\",\"color\":\"green\",\"weight\":7}
http-services/shop/upstreams/plain 10.0.0.3:80
";
    const KEY: &str = "http-services/shop/preview";

    fn settled(lines: &str) -> DesiredState {
        settle(&topology(lines), &LastKnownGood::default(), &Policy::default())
    }

    fn shop(settled: &DesiredState) -> &DesiredService {
        settled.services().find(|(id, _)| id.to_string() == "http-shop").unwrap().1
    }

    /// Each color with its hosts and paths, and its servers as they stand in the file.
    fn table(settled: &DesiredState) -> Vec<String> {
        let line = |it: &Preview| {
            let routes: Vec<String> = it.routes.iter().map(|it| format!("{}{}", it.domain, it.path)).collect();
            let servers: Vec<String> = it.servers.iter().map(|it| format!("{}{}", it.id, it.options())).collect();
            format!("{} [{}] [{}]", it.color, routes.join(" "), servers.join(", "))
        };
        shop(settled).previews.iter().map(line).collect()
    }

    #[test]
    fn each_color_has_a_host_below_each_host_and_its_upstreams() {
        let first = settled(SHOP);
        assert_eq!(
            table(&first),
            [
                "blue [blue.shop.test/ blue.www.shop.test/] [b]",
                "green [green.shop.test/ green.www.shop.test/] [g weight 7]"
            ]
        );
        assert!(first.quarantined_keys().is_empty());
        // A client that asks for a color gets it, whatever is active, and what share it has.
        for active in ["shop/active green", "shop/active blue=90 green=10", "x/path /y"] {
            let other = settled(&SHOP.replace("shop/active blue", active));
            assert_eq!(table(&other), table(&first), "{active}");
        }
        let paths = settled(&format!("{SHOP}http-services/shop/path /a /b"));
        assert_eq!(table(&paths)[1].matches(".shop.test/").count(), 4);
    }

    #[test]
    fn a_previewed_upstream_is_drained_as_any_other() {
        let with = |more: &str| table(&settled(&format!("{SHOP}http-services/shop/{more}")))[1].clone();
        assert!(with("overrides/g {\"state\":\"drain\"}").ends_with("[g weight 0]"));
        assert!(with("overrides/g {\"weight\":3}").ends_with("[g weight 3]"));
        let going = SHOP.replace("\"weight\":7", "\"state\":\"drain\"");
        assert!(table(&settled(&going))[1].ends_with("[g disabled]"));
        let held = format!("{SHOP}http-services/shop/allow nonsense");
        assert!(table(&settled(&held))[1].ends_with("[]"), "a gate without a value lets nobody in here either");
    }

    #[test]
    fn a_service_that_cant_be_previewed_is_refused_with_the_reason() {
        for (store, reason) in [
            (
                SHOP.replace("shop.test www.shop.test", "*.shop.test"),
                "*.shop.test: there are no previews of a wildcard",
            ),
            (format!("{SHOP}http-services/shop/tls passthrough"), "passthrough sees neither a header nor"),
            (format!("{SHOP}http-services/shop/sslpass"), "passthrough sees neither a header nor"),
            (SHOP.replace("10.0.0.0/8", "10.0.0.0/40"), "a network is written as"),
        ] {
            let settled = settled(&store);
            let wanted = shop(&settled);
            assert!(wanted.previews.is_empty() && wanted.settings.preview.is_none(), "{store}");
            assert_eq!(wanted.servers.len(), 3, "the service itself is served: {store}");
            assert!(settled.quarantined_keys()[KEY].contains(reason), "{:?}", settled.quarantined_keys());
        }
        let many: String = (0..20)
            .map(|n| {
                format!("http-services/shop/upstreams/c{n} {{\"address\":\"10.0.1.{n}:80\",\"color\":\"c{n}\"}}\n")
            })
            .collect();
        let settled = settled(&format!("{SHOP}{many}"));
        assert!(shop(&settled).previews.is_empty());
        assert_eq!(settled.quarantined_keys()[KEY], "22 colors; 16 are the most that can be previewed; none is");
        let tcp = self::settled("tcp-services/db/ports 3306\ntcp-services/db/preview 10.0.0.0/8");
        assert_eq!(tcp.quarantined_keys().len(), 1);
    }

    #[test]
    fn a_host_that_cant_be_had_is_left_out_alone() {
        // A wildcard beside a host, a color whose host the service names itself, and one that is no label.
        let store = SHOP.replace("www.shop.test", "*.shop.test green.shop.test").replace("\"blue\"", "\"a_-\"");
        let settled = settled(&store);
        assert_eq!(
            table(&settled),
            [
                "a_- [] [b]",
                "blue [blue.green.shop.test/ blue.shop.test/] []",
                "green [green.green.shop.test/] [g weight 7]"
            ]
        );
        let reason = &settled.quarantined_keys()[KEY];
        assert!(reason.starts_with("*.shop.test: there are no previews of a wildcard"), "{reason}");
        assert!(reason.contains("a_-.shop.test leads to no color") && reason.ends_with("1 more"), "{reason}");
        assert_eq!(shop(&settled).routes.len(), 3);
        let cases = self::settled(&SHOP.replace("\"green\"", "\"Blue\""));
        assert_eq!(table(&cases)[0], "Blue [blue.shop.test/ blue.www.shop.test/] [g weight 7]");
        assert_eq!(table(&cases)[1], "blue [] [b]", "two that differ in case alone");
    }

    #[test]
    fn a_previews_hosts_are_claims_like_any_other() {
        let other = "http-services/other/domain green.shop.test\n";
        let first = settled(&format!("{other}{SHOP}"));
        assert_eq!(table(&first)[1], "green [green.www.shop.test/] [g weight 7]");
        assert_eq!(first.quarantined_keys()[KEY], "green.shop.test/ belongs to http-other, which had it first");
        let second = settled(&format!("{SHOP}{other}"));
        assert!(second.quarantined_keys().contains_key("http-services/other/domain"));
        // The service that holds the host keeps it.
        let later = settle(&topology(&format!("{other}{SHOP}")), &second.to_last_known_good(), &Policy::default());
        assert_eq!(table(&later), table(&second));
        // A passed-through host belongs to its service with all paths, or to the services that claimed parts of it before.
        let through = format!("{other}http-services/other/tls passthrough\n");
        let whole = settled(&format!("{through}{SHOP}"));
        let reason = "green.shop.test belongs to http-other, which passes all of it through";
        assert_eq!(whole.quarantined_keys()[KEY], reason);
        let parts = settled(&format!("{SHOP}{through}"));
        assert_eq!(table(&parts)[1], "green [green.shop.test/ green.www.shop.test/] [g weight 7]");
        assert_eq!(parts.quarantined_keys().len(), 1);
    }

    #[test]
    fn a_color_claims_nothing_that_the_service_may_not_have() {
        let limits = |file: &str| Policy {
            reserved_hosts: [("blue.shop.test".parse().unwrap(), "--stats-domain".to_owned())].into(),
            domain_allowlist: Some(crate::desired::domain_allowlist::DomainAllowlist::parse(file).unwrap()),
            ..Policy::default()
        };
        let store = topology(SHOP);
        let narrow = settle(&store, &LastKnownGood::default(), &limits("shop shop.test www.shop.test"));
        assert_eq!(table(&narrow), ["blue [] [b]", "green [] [g weight 7]"], "it can still be asked for by header");
        let reason = &narrow.quarantined_keys()[KEY];
        assert!(reason.starts_with("blue.shop.test: --domains-file doesn't give it to shop"), "{reason}");
        let wide = settle(&store, &LastKnownGood::default(), &limits("shop shop.test *.shop.test *.www.shop.test"));
        assert_eq!(table(&wide)[0], "blue [blue.www.shop.test/] [b]");
        assert_eq!(wide.quarantined_keys()[KEY], "blue.shop.test is reserved: --stats-domain has it");
    }

    #[test]
    fn a_service_without_a_host_is_previewed_by_header() {
        let store = SHOP.replace("http-services/shop/domain shop.test www.shop.test\n", "");
        let settled = settled(&store);
        assert_eq!(table(&settled), ["blue [] [b]", "green [] [g weight 7]"]);
        assert!(settled.quarantined_keys().is_empty());
    }
}
