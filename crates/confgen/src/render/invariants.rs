//! Checks what the templates rely on. HAProxy would refuse, or silently misread, a file from a view that breaks one of these
//! rules. Pure: no I/O, no clock, and only debug builds and tests run it.

use std::collections::{BTreeMap, BTreeSet};

use super::section::Section;
use super::view::{PASSTHROUGH, View, path_key};

/// Panics if the view breaks an invariant. Does nothing in release builds.
pub(super) fn check_invariants(view: &View) {
    debug_assert_eq!(find_violation(view), None, "a view breaks an invariant");
}

/// The first invariant that the view breaks. `None` if it keeps all.
fn find_violation(view: &View) -> Option<String> {
    find_repeated_section(view)
        .or_else(|| find_repeated_server(view))
        .or_else(|| find_missing_backend(view))
        .or_else(|| find_lost_route(view))
        .or_else(|| find_unknown_host(view))
        .or_else(|| find_wrong_flag(view))
}

fn list_sections<'a>(view: &'a View<'a>) -> impl Iterator<Item = &'a Section<'a>> {
    view.http.iter().chain(&view.passthrough).chain(&view.tcp)
}

/// HAProxy doesn't start with two sections of one name, and a stub stands only for a section that is missing.
fn find_repeated_section(view: &View) -> Option<String> {
    let stubs = view.stubs.iter().map(|stub| stub.name.clone());
    let mut seen = BTreeSet::new();
    let mut names = list_sections(view).map(Section::name).chain(stubs);
    names.find(|name| !seen.insert(name.clone())).map(|name| format!("two sections have the name {name}"))
}

/// HAProxy doesn't start with two servers of one name in a section. Two servers with one id share their place on a hash ring.
fn find_repeated_server(view: &View) -> Option<String> {
    for section in list_sections(view) {
        let (mut names, mut ids) = (BTreeSet::new(), BTreeSet::new());
        for server in section.servers {
            let has_new_id = server.hash_id.is_none_or(|id| ids.insert(id));
            if !names.insert(&server.id) || !has_new_id {
                return Some(format!("{} has two servers with the name or the id of {}", section.name(), server.id));
            }
        }
    }
    None
}

/// A map's value becomes `use_backend`: HAProxy answers 503 if no backend has the name.
fn find_missing_backend(view: &View) -> Option<String> {
    let http: BTreeSet<String> = view.http.iter().map(Section::name).collect();
    let passthrough: BTreeSet<String> = view.passthrough.iter().map(Section::name).collect();
    let is_read_here = |target: &str| http.contains(target) || target == PASSTHROUGH && !passthrough.is_empty();
    let mut missing = entries(&view.maps.paths).filter(|(_, target)| !is_read_here(target));
    let mut missing_urls = entries(&view.maps.urls).filter(|(_, target)| !http.contains(*target));
    let mut missing_tls = entries(&view.maps.passthrough).filter(|(_, target)| !passthrough.contains(*target));
    let (key, target) = missing.next().or_else(|| missing_urls.next()).or_else(|| missing_tls.next())?;
    Some(format!("{key} leads to {target}, which has no section"))
}

/// No other section takes a route away: the claims have one owner each.
fn find_lost_route(view: &View) -> Option<String> {
    let paths: BTreeMap<&str, &str> = entries(&view.maps.paths).collect();
    for section in list_sections(view) {
        let own = if section.wanted.settings.passes_through() { PASSTHROUGH.to_owned() } else { section.name() };
        let routes = section.preview.map_or(&section.wanted.routes, |preview| &preview.routes);
        for key in routes.iter().map(path_key) {
            if paths.get(key.as_str()) != Some(&own.as_str()) {
                return Some(format!("{key} does not lead to {own}"));
            }
        }
    }
    None
}

/// The frontend looks up the host first. It never reads a path below a host that `hosts.map` lacks.
fn find_unknown_host(view: &View) -> Option<String> {
    let hosts: BTreeSet<&str> = entries(&view.maps.hosts).map(|(host, _)| host).collect();
    let keys = entries(&view.maps.paths).chain(entries(&view.maps.passthrough)).map(|(key, _)| key);
    let mut unknown = keys.filter(|key| !hosts.contains(key.split('/').next().unwrap_or(key)));
    unknown.next().map(|key| format!("the host of {key} is not in hosts.map"))
}

/// `default` and `acme` become `str(…)` of a backend. The inner socket has one writer at a time.
fn find_wrong_flag(view: &View) -> Option<String> {
    let has = |name: &str| view.http.iter().any(|section| section.name() == name);
    let acme = view.acme.map(ToString::to_string);
    if view.default && !view.http.iter().any(Section::is_default) {
        return Some("the default service has no section".to_owned());
    }
    if view.lingers && view.passes_through() {
        return Some("the inner socket is kept for the process before, and used".to_owned());
    }
    acme.filter(|name| !has(name)).map(|name| format!("challenges go to {name}, which has no section"))
}

/// The entries of a map: key, blank, value. A regular expression may hold blanks, a value doesn't.
fn entries(map: &str) -> impl Iterator<Item = (&str, &str)> {
    map.lines().filter_map(|line| line.rsplit_once(' '))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::desired::tests::{settle, topology};
    use crate::desired::{DesiredState, Server};
    use crate::operator_files::parse::OperatorConfig;
    use crate::render::tests::site;
    use crate::render::view::{Maps, Site, Stub};

    const STORE: &str = "http-services/a/domain a.com\nhttp-services/a/upstreams/1 10.0.0.1:80\n\
        http-services/a/upstreams/2 10.0.0.2:80\nhttp-services/b/domain b.com\nhttp-services/b/url_reg ^/x\n\
        http-services/c/domain c.com\nhttp-services/c/tls passthrough\nhttp-services/default/upstreams/1 10.0.0.9:80\n\
        tcp-services/d/ports 3306\n";

    /// The violation of a view that `spoil` has changed.
    fn violation_of(spoil: impl FnOnce(&mut View)) -> String {
        let (desired, site, operator) = scene();
        let mut view = View::new(&desired, &site, &operator);
        assert_eq!(find_violation(&view), None);
        spoil(&mut view);
        find_violation(&view).unwrap_or_default()
    }

    fn maps_of<'a>(view: &'a mut View) -> &'a mut Maps {
        Arc::make_mut(&mut view.maps)
    }

    fn scene() -> (DesiredState, Site, OperatorConfig) {
        let desired = settle(&topology(STORE), &Default::default(), &Default::default());
        (desired, site(Path::new("/state")), OperatorConfig::default())
    }

    #[test]
    fn two_sections_of_one_name_are_a_violation() {
        let twice = violation_of(|view| view.http.push(view.http[0]));
        assert_eq!(twice, "two sections have the name http-a");
        let stub = Stub { name: "tcp-d".into(), mode: "tcp", named_by: String::new(), has_table: false };
        assert_eq!(violation_of(|view| view.stubs.push(stub)), "two sections have the name tcp-d");
    }

    #[test]
    fn two_servers_of_one_name_or_id_in_a_section_are_a_violation() {
        let (desired, site, operator) = scene();
        let good = View::new(&desired, &site, &operator).http[0].servers.to_vec();
        let same_name: Vec<Server> = [&good[..], &good[..1]].concat();
        let mut same_id = good;
        same_id.iter_mut().for_each(|server| server.hash_id = std::num::NonZeroU32::new(7));
        for servers in [same_name, same_id] {
            let mut view = View::new(&desired, &site, &operator);
            view.http[0].servers = &servers;
            assert!(find_violation(&view).unwrap().starts_with("http-a has two servers"), "{servers:?}");
        }
    }

    #[test]
    fn a_map_entry_without_a_backend_is_a_violation() {
        let gone = violation_of(|view| maps_of(view).paths.push_str("a.com/x/ http-gone\n"));
        assert_eq!(gone, "a.com/x/ leads to http-gone, which has no section");
        let gone = violation_of(|view| maps_of(view).urls.push_str("^/a b http-gone\n"));
        assert_eq!(gone, "^/a b leads to http-gone, which has no section");
        let gone = violation_of(|view| maps_of(view).passthrough.push_str("a.com http-a\n"));
        assert_eq!(gone, "a.com leads to http-a, which has no section", "it reads requests");
        assert!(violation_of(|view| view.passthrough.clear()).contains("discover-passthrough, which has no section"));
    }

    #[test]
    fn a_route_that_leads_to_another_section_is_a_violation() {
        let taken =
            violation_of(|view| maps_of(view).paths = view.maps.paths.replace("a.com/ http-a", "a.com/ http-b"));
        assert_eq!(taken, "a.com/ does not lead to http-a");
        assert!(violation_of(|view| maps_of(view).paths.clear()).contains("does not lead to"));
    }

    #[test]
    fn a_path_below_an_unknown_host_is_a_violation() {
        let unknown = violation_of(|view| maps_of(view).hosts = view.maps.hosts.replace("b.com b.com\n", ""));
        assert_eq!(unknown, "the host of b.com/ is not in hosts.map");
    }

    #[test]
    fn a_flag_without_its_section_is_a_violation() {
        let default = violation_of(|view| view.http.retain(|section| !section.is_default()));
        assert_eq!(default, "the default service has no section");
        assert!(violation_of(|view| view.lingers = true).contains("is kept for the process before, and used"));
        let id = crate::desired::names::parse_section("http-gone").unwrap();
        let (desired, site, operator) = scene();
        let mut view = View::new(&desired, &site, &operator);
        view.acme = Some(&id);
        assert_eq!(find_violation(&view).unwrap(), "challenges go to http-gone, which has no section");
    }
}
