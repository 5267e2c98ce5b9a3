//! Claims that a service gets with the next restart: routes, expressions, ports. Pure: no I/O, no clock.
//!
//! HAProxy has no section that could answer for them before. So the service that has had these requests keeps them until then.

use std::collections::BTreeSet;

use discovery::ServiceId;

use super::RuntimeState;
use super::maps::{Entries, Maps, Routes, host_of, route_key};
use crate::desired::names::parse_section;
use crate::desired::{DesiredService, Server};
use crate::render::restart_needed::ConfigFingerprint;

/// The claims of all services that wait for a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PendingClaims {
    /// The path keys of the routes.
    paths: BTreeSet<String>,
    /// Those with the wildcard above the host. All of `paths` are here and in the next two, too.
    wider_hosts: BTreeSet<String>,
    /// Those with a shorter path.
    wider_paths: BTreeSet<String>,
    /// Those with both.
    wider: BTreeSet<String>,
    /// A service takes requests for hosts that no service names: by its `url_reg`, or as `default`.
    takes_any_host: bool,
    ports: BTreeSet<u16>,
    /// Running sections that get requests by a port or a line of the file, which only a restart changes.
    answering: BTreeSet<String>,
    /// The sections of these services that HAProxy doesn't have. After a restart by hand, a route may still lead to one.
    missing: BTreeSet<String>,
}

impl PendingClaims {
    /// The claims of these services that a HAProxy with this fingerprint can't serve.
    pub fn from_services<'a>(
        services: impl Iterator<Item = (&'a ServiceId, &'a DesiredService)>,
        running: &ConfigFingerprint,
    ) -> Self {
        let mut pending = Self::default();
        for (id, wanted) in services {
            let is_pending = !running.has_section_for(id, wanted);
            pending.takes_any_host |= (is_pending && id.is_default()) || running.lacks_expression(id, wanted);
            pending.ports.extend(wanted.ports().filter(|port| !running.has_port(id, *port)));
            let section = id.to_string();
            if is_pending && !running.sections.contains_key(&section) {
                pending.missing.insert(section);
            }
            let routes = wanted.routes.iter().filter(|_| is_pending);
            pending.paths.extend(routes.map(|route| route_key(route).1));
        }
        pending.widen();
        let by_port = running.ports.iter().filter(|(_, ports)| !ports.is_disjoint(&pending.ports));
        pending.answering = by_port.map(|(section, _)| section.clone()).collect();
        if pending.has_requests() {
            // The file names `default`, and has the expressions.
            pending
                .answering
                .extend(running.shares.keys().filter(|section| !running.ports.contains_key(*section)).cloned());
        }
        pending
    }

    /// Finds the wider path keys.
    fn widen(&mut self) {
        self.wider_hosts = self.paths.iter().flat_map(|key| widen_host(key)).collect();
        self.wider_paths = self.paths.iter().flat_map(|key| shorten_path(key)).collect();
        self.wider = self.wider_hosts.iter().flat_map(|key| shorten_path(key)).collect();
    }

    /// True if nothing is claimed.
    fn is_empty(&self) -> bool {
        self.paths.is_empty() && !self.takes_any_host && self.ports.is_empty()
    }

    /// True if a pending HTTP service claims something.
    fn has_requests(&self) -> bool {
        self.takes_any_host || !self.paths.is_empty()
    }

    /// True if a pending service will get requests that this route takes now.
    fn overlaps(&self, path_key: &str) -> bool {
        if self.takes_any_host || self.paths.is_empty() {
            return self.takes_any_host;
        }
        // Either of the two may be the wider one, in its host and in its path.
        let (hosts, shorter) = (widen_host(path_key), shorten_path(path_key));
        self.wider.contains(path_key)
            || hosts.iter().any(|key| self.wider_paths.contains(key))
            || shorter.iter().any(|key| self.wider_hosts.contains(key))
            || hosts.iter().flat_map(|key| shorten_path(key)).any(|key| self.paths.contains(&key))
    }
}

/// The path key itself, and the one with the wildcard above its host.
fn widen_host(path_key: &str) -> Vec<String> {
    let (host, path) = path_key.split_at(path_key.find('/').unwrap_or(path_key.len()));
    let wildcard = host.split_once('.').map(|(_, parent)| format!("*.{parent}{path}"));
    std::iter::once(path_key.to_owned()).chain(wildcard).collect()
}

/// The path key itself, and those with a shorter path.
fn shorten_path(path_key: &str) -> Vec<String> {
    path_key.match_indices('/').filter_map(|(at, _)| path_key.get(..=at)).map(str::to_owned).collect()
}

impl RuntimeState {
    /// Notes what waits for a restart.
    pub fn set_pending_claims(&mut self, pending: PendingClaims) {
        self.pending = pending;
    }

    /// True if a route or a server is kept until the restart that no service wants any more.
    pub fn keeps_until_restart(&self) -> bool {
        // The sum walks through all services, so it comes last.
        !self.pending.is_empty()
            && (!self.kept_sections.is_empty()
                || self.maps.paths.len() > self.routes.values().map(|paths| paths.len()).sum::<usize>())
    }

    /// The sections that get requests for pending routes until the restart.
    pub fn sections_until_restart(&self) -> BTreeSet<&str> {
        let Maps { paths, passthrough, .. } = &self.maps;
        if !self.pending.has_requests() {
            return BTreeSet::new();
        }
        let by_path = paths.iter().filter(|(key, _)| self.pending.overlaps(key));
        let by_host = passthrough.iter().filter(|(host, _)| self.pending.overlaps(&format!("{host}/")));
        by_path.chain(by_host).map(|(_, section)| section.as_str()).collect()
    }

    /// The services with sections that keep their servers until the restart.
    pub fn services_until_restart(&self) -> impl Iterator<Item = ServiceId> {
        self.kept_sections.iter().filter_map(|section| parse_section(section))
    }

    /// True if a section without wanted servers gets requests until the restart that a pending service will get. Its present servers
    /// stay until then. `wanted` is `None` if the service is gone.
    pub(super) fn is_needed_until_restart(
        &self,
        id: &ServiceId,
        section: &str,
        wanted: Option<&DesiredService>,
        servers: &[Server],
    ) -> bool {
        if self.pending.is_empty() || !servers.is_empty() || self.backends.is_expected(section) {
            return false;
        }
        let still_answers = wanted.is_some_and(|it| id.is_default() || it.url_reg.is_some());
        let by_file = self.pending.answering.contains(section) && !still_answers;
        by_file || self.has_lost_route(section, &self.routes_of(id, wanted))
    }

    /// True if a route leads to the section that is none of these, and a pending service will get its requests.
    fn has_lost_route(&self, section: &str, routes: &Routes) -> bool {
        let is_lost = |key: &str| self.pending.overlaps(key) && !routes.keys().any(|(_, path)| path == key);
        let Maps { paths, passthrough, .. } = &self.maps;
        let mut by_path = paths.iter().filter(|(_, to)| *to == section);
        let mut by_host = passthrough.iter().filter(|(_, to)| *to == section);
        by_path.any(|(key, _)| is_lost(key)) || by_host.any(|(host, _)| is_lost(&format!("{host}/")))
    }

    /// Takes back the removals of routes whose requests a pending service will get.
    pub(super) fn keep_pending_routes(&self, entries: &mut Entries) {
        if !self.pending.has_requests() {
            return;
        }
        let Entries { hosts, paths, passthrough, .. } = entries;
        let leads_somewhere =
            |key: &String| self.maps.paths.get(key).is_none_or(|to| !self.pending.missing.contains(to));
        let is_kept = |key: &String, value: &Option<String>| {
            value.is_none() && self.pending.overlaps(key) && leads_somewhere(key)
        };
        let mut kept = Vec::new();
        paths.retain(|key, value| {
            let keeps = is_kept(key, value);
            kept.extend(keeps.then(|| key.clone()));
            !keeps
        });
        for path in kept.iter().filter(|path| self.maps.paths.contains_key(*path)) {
            let host = host_of(path);
            for entries in [&mut *hosts, &mut *passthrough] {
                if entries.get(host).is_some_and(Option::is_none) {
                    entries.remove(host);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_paths(paths: &[&str]) -> PendingClaims {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let mut pending = PendingClaims { paths, ..Default::default() };
        pending.widen();
        pending
    }

    #[test]
    fn a_route_overlaps_another_if_both_could_take_one_request() {
        for (pending, live, overlaps) in [
            ("a.x.com/", "a.x.com/", true),
            ("*.x.com/", "a.x.com/", true),
            ("a.x.com/", "*.x.com/", true),
            ("a.x.com/", "a.x.com/cart/", true),
            ("a.x.com/cart/", "a.x.com/", true),
            ("*.x.com/cart/", "a.x.com/cart/old/", true),
            ("a.x.com/", "*.x.com/cart/", true),
            ("a.x.com/cart/", "a.x.com/blog/", false),
            ("a.x.com/cart/", "*.x.com/blog/", false),
            ("*.x.com/", "a.x.com/cart/", true),
            ("a.x.com/", "b.x.com/", false),
            ("*.com/", "a.x.com/", false),
            ("x.com/", "a.x.com/", false),
        ] {
            assert_eq!(of_paths(&[pending]).overlaps(live), overlaps, "{pending} and {live}");
        }
        assert!(!PendingClaims::default().overlaps("a.com/"));
        assert!(PendingClaims { takes_any_host: true, ..Default::default() }.overlaps("a.com/"));
    }
}
