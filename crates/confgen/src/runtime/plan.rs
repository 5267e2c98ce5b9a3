//! Plans the Runtime API commands that lead from the observed to the desired state. Pure: no I/O, no clock.
//!
//! A plan is desired minus observed, both ways, for each server and each entry of the maps.

mod answers;
mod backends;
pub(crate) mod certificates;
mod drift;
mod invariants;
mod manual;
mod maps;
mod pending;
mod requeue;
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use discovery::ServiceId;
use haproxy::runtime::{Change, ServerName};

use crate::desired::names::preview_prefix;
use crate::desired::names::preview_section;
use crate::desired::{DesiredService, Server};
use crate::render::server_options;
use crate::render::view::{backend_of, checked_host};
pub use backends::Backends;
use backends::has_named_section;
pub use drift::Drift;
use manual::LiveFrontend;
use maps::{Entries, Maps, Routes, apply_entries, host_of, plan_map, route_key};
pub use maps::{ListedMaps, MapPaths};
pub use pending::PendingClaims;
use requeue::requeue_grown;
use server::{LiveServer, LiveServers, parse_server_name, plan_additions, stops_requests};

/// The part of the observed state that HAProxy changes while it runs: servers and map entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeState {
    /// By section, then by name.
    servers: BTreeMap<String, LiveServers>,
    maps: Maps<String>,
    /// confgen's frontends, among them those of TCP services.
    frontends: BTreeMap<String, LiveFrontend>,
    /// The lines of the map of expressions, which HAProxy reads at its start.
    expressions: Vec<(String, String)>,
    /// The limit of connections of a frontend whose section sets none.
    default_limit: u64,
    /// The path keys of the applied routes of each service. They are removed when the service's routes change.
    routes: BTreeMap<ServiceId, Box<[Box<str>]>>,
    /// The number of those routes of each host. A host stays in its map while it has one.
    host_uses: BTreeMap<String, i64>,
    /// The claims of services that wait for a restart. A service that has their requests now keeps them until then.
    pending: PendingClaims,
    /// Sections that are no longer wanted and keep their servers until the restart.
    kept_sections: BTreeSet<String>,
    /// The files of authorities that HAProxy has loaded. An added server can name no other.
    authorities: BTreeSet<String>,
    /// The sections for previews that HAProxy has. The others come with a restart.
    preview_sections: BTreeSet<String>,
    /// Services with a server that can't be added while HAProxy runs.
    not_addable: BTreeSet<ServiceId>,
    /// The sections with a server that is leaving. Asking all servers costs their number with each change.
    leaving_sections: BTreeSet<String>,
    backends: Backends,
}

/// The services that a plan is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Only the services that changed.
    These,
    /// All that HAProxy or the store has. Entries of the maps that no service wants are removed.
    All,
}

/// The commands, in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Commands that HAProxy executes at once.
    pub changes: Vec<Change>,
    /// Commands that give servers their turns again. The changes may have moved them to `roundrobin`'s next window.
    pub requeues: Vec<Change>,
    /// Servers to delete. HAProxy deletes a server once its last connection is closed.
    pub removals: Vec<ServerName>,
}

impl RuntimeState {
    /// The services with a server that only a restart adds.
    pub fn not_addable(&self) -> &BTreeSet<ServiceId> {
        &self.not_addable
    }

    /// True if HAProxy would treat an added server like one of the file. An added server takes nothing from `default-server`.
    pub fn can_add_servers(&self, wanted: &DesiredService) -> bool {
        let authorities = server_options::options_for(wanted).tls.and_then(|tls| tls.authorities);
        let loaded = authorities.is_none_or(|it| self.authorities.contains(&it.to_string()));
        loaded && !wanted.settings.fixed_servers
    }

    /// Plans the changes to these services. `None` is a service that is gone. The caller leaves out services without a section in
    /// the running HAProxy.
    pub fn plan_changes(
        &self,
        scope: Scope,
        services: &[(&ServiceId, Option<&DesiredService>)],
        maps: &MapPaths,
    ) -> Plan {
        let (mut added, mut changed, mut turns, mut removals) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut published = Vec::new();
        for (id, wanted) in services {
            for (section, servers) in self.desired_sections(id, *wanted) {
                if self.is_needed_until_restart(id, &section, *wanted, servers) {
                    continue;
                }
                added.extend(self.backends.plan_addition(&section));
                if has_named_section(id, *wanted, &section) {
                    published.extend(self.backends.plan_publishing(&section));
                }
                let none = BTreeMap::new();
                let live = self.servers.get(&section).unwrap_or(&none);
                let mut new = Vec::new();
                for server in servers {
                    let Some(name) = parse_server_name(&section, server.id.as_str()) else { continue };
                    match live.get(server.id.as_str()) {
                        Some(live) => live.plan_server(&name, server, &mut changed),
                        None => new.push((name, server)),
                    }
                }
                if let Some(wanted) = wanted.filter(|wanted| self.can_add_servers(wanted)) {
                    // HAProxy would reject the command. Such a server comes with a restart.
                    new.retain(|(_, server)| !is_id_taken(live, server));
                    added.extend(plan_additions(&section, wanted, new));
                    turns.extend(requeue_grown(&section, wanted, live, servers));
                }
                let gone = live.iter().filter(|(name, server)| !server.leaving && !has_server(servers, name));
                removals.extend(gone.filter_map(|(name, _)| parse_server_name(&section, name)));
            }
        }
        let Entries { hosts, paths, passthrough, checks } = self.desired_entries(scope, services);
        let asked: Vec<Change> = maps.checks.iter().flat_map(|map| plan_map(&self.maps.checks, &checks, map)).collect();
        // A server's first check needs the host.
        let (asked, forgotten): (Vec<_>, Vec<_>) = asked.into_iter().partition(adds_entry);
        let through = maps.passthrough.iter().flat_map(|map| plan_map(&self.maps.passthrough, &passthrough, map));
        let mut entries: Vec<Change> = through.collect();
        entries.extend(plan_map(&self.maps.hosts, &hosts, &maps.hosts));
        entries.extend(plan_map(&self.maps.paths, &paths, &maps.paths));
        // A request in between must find a server. So new servers come before the routes that lead to them, and servers become
        // ready before others drain. Removed routes come last.
        let (more, less): (Vec<_>, Vec<_>) = entries.into_iter().partition(adds_entry);
        let (ready, out): (Vec<_>, Vec<_>) = changed.into_iter().partition(|change| !stops_requests(change));
        let changes = [asked, added, published, more, ready, out, less, forgotten].concat();
        let plan = Plan { changes, requeues: turns, removals };
        debug_assert_eq!(plan.check_invariants(maps.checks.as_ref()), Ok(()));
        plan
    }

    /// Notes that HAProxy made the planned changes.
    pub fn mark_applied(&mut self, scope: Scope, services: &[(&ServiceId, Option<&DesiredService>)]) {
        // First, because the maps of before tell which sections get requests until the restart.
        for (id, wanted) in services {
            self.mark_servers_applied(id, *wanted);
        }
        let Entries { hosts, paths, passthrough, checks } = self.desired_entries(scope, services);
        apply_entries(&mut self.maps.checks, checks);
        apply_entries(&mut self.maps.hosts, hosts);
        apply_entries(&mut self.maps.paths, paths);
        apply_entries(&mut self.maps.passthrough, passthrough);
        for (id, wanted) in services {
            let after: Box<[Box<str>]> = self.routes_of(id, *wanted).into_keys().map(|(_, path)| path.into()).collect();
            let before = self.routes.get(*id).filter(|_| scope == Scope::These);
            for path in &after {
                *self.host_uses.entry(host_of(path).to_owned()).or_default() += 1;
            }
            for path in before.into_iter().flatten() {
                let uses = self.host_uses.entry(host_of(path).to_owned()).or_default();
                *uses -= 1;
                if *uses <= 0 {
                    self.host_uses.remove(host_of(path));
                }
            }
            if after.is_empty() {
                self.routes.remove(*id);
            } else {
                self.routes.insert((*id).clone(), after);
            }
        }
        debug_assert_eq!(self.check_invariants(services), Ok(()));
    }

    fn mark_servers_applied(&mut self, id: &ServiceId, wanted: Option<&DesiredService>) {
        let takes_servers = wanted.is_some_and(|wanted| self.can_add_servers(wanted));
        self.not_addable.remove(id);
        let (kept, sections): (Vec<_>, Vec<_>) = self
            .desired_sections(id, wanted)
            .into_iter()
            .partition(|(section, servers)| self.is_needed_until_restart(id, section, wanted, servers));
        for (section, _) in &sections {
            self.kept_sections.remove(section);
            self.backends.mark_applied(section, has_named_section(id, wanted, section));
        }
        self.kept_sections.extend(kept.into_iter().map(|(section, _)| section));
        for (section, wanted_servers) in sections {
            let servers = self.servers.entry(section.clone()).or_default();
            for (_, server) in servers.iter_mut().filter(|(name, _)| !has_server(wanted_servers, name)) {
                // The command for maintenance ends a drain.
                (server.maint, server.drain, server.leaving) = (true, false, true);
            }
            // A service that is gone wants no server.
            let wanted_servers =
                wanted.into_iter().flat_map(|it| wanted_servers.iter().map(move |server| (server, it)));
            for (server, service) in wanted_servers {
                let before = servers.remove(server.id.as_str());
                if before.is_some() || (takes_servers && !is_id_taken(servers, server)) {
                    servers.insert(server.id.shared(), LiveServer::after_plan(before.as_ref(), server, service));
                } else {
                    self.not_addable.insert(id.clone());
                }
            }
            self.update_leaving(section);
        }
    }

    /// Notes whether a server of this section is leaving.
    fn update_leaving(&mut self, section: String) {
        if self.servers.get(&section).is_some_and(|servers| servers.values().any(|server| server.leaving)) {
            self.leaving_sections.insert(section);
        } else {
            self.leaving_sections.remove(&section);
        }
    }

    /// The service's sections with the wanted servers of each: its own section, those for previews that HAProxy has, and those
    /// that still have servers although they are no longer wanted.
    fn desired_sections<'a>(
        &self,
        id: &ServiceId,
        wanted: Option<&'a DesiredService>,
    ) -> BTreeMap<String, &'a [Server]> {
        let prefix = preview_prefix(id);
        let left = self.servers.range(prefix.clone()..).map(|(section, _)| section);
        let empty = self.preview_sections.range(prefix.clone()..);
        let left = left.take_while(|it| it.starts_with(&prefix)).chain(empty.take_while(|it| it.starts_with(&prefix)));
        let mut sections: BTreeMap<String, &[Server]> = left.map(|section| (section.clone(), &[][..])).collect();
        sections.insert(id.to_string(), wanted.map(|wanted| &wanted.servers[..]).unwrap_or_default());
        for preview in wanted.iter().flat_map(|wanted| &wanted.previews) {
            let section = preview_section(id, &preview.color);
            if self.preview_sections.contains(&section) {
                sections.insert(section, &preview.servers);
            }
        }
        sections
    }

    /// The service's routes. A preview whose section HAProxy lacks has none, since it would lead
    /// nowhere.
    fn routes_of(&self, id: &ServiceId, wanted: Option<&DesiredService>) -> Routes {
        let Some(wanted) = wanted else { return Routes::new() };
        let section = backend_of(id, wanted);
        let mut routes: Routes = wanted.routes.iter().map(|it| (route_key(it), section.clone())).collect();
        for preview in &wanted.previews {
            let section = preview_section(id, &preview.color);
            if self.preview_sections.contains(&section) {
                routes.extend(preview.routes.iter().map(|it| (route_key(it), section.clone())));
            }
        }
        routes
    }

    /// The wanted map entries for each key that these services have or had.
    fn desired_entries(&self, scope: Scope, services: &[(&ServiceId, Option<&DesiredService>)]) -> Entries {
        let Maps { hosts, paths, passthrough, checks } = &self.maps;
        let mut entries = match scope {
            Scope::All => Entries {
                hosts: remove_all(hosts),
                paths: remove_all(paths),
                passthrough: remove_all(passthrough),
                checks: remove_all(checks),
            },
            Scope::These => Entries::default(),
        };
        for (id, wanted) in services {
            let host = wanted.and_then(|wanted| checked_host(id, wanted)).map(ToString::to_string);
            for (section, servers) in self.desired_sections(id, *wanted) {
                if self.is_needed_until_restart(id, &section, *wanted, servers) {
                    // Its servers stay, and so do their checks.
                    entries.checks.remove(&section);
                } else {
                    let host = host.clone().filter(|_| has_named_section(id, *wanted, &section));
                    entries.checks.insert(section, host);
                }
            }
        }
        let mut uses: BTreeMap<String, i64> = BTreeMap::new();
        if scope == Scope::These {
            for path in services.iter().filter_map(|(id, _)| self.routes.get(id)).flatten() {
                let host = host_of(path);
                *uses.entry(host.to_owned()).or_default() -= 1;
                entries.paths.insert(path.to_string(), None);
                if passthrough.contains_key(host) {
                    entries.passthrough.insert(host.to_owned(), None);
                }
            }
        }
        for (id, wanted) in services.iter().filter_map(|(id, wanted)| Some((id, (*wanted)?))) {
            for ((host, path), section) in self.routes_of(id, Some(wanted)) {
                entries.paths.insert(path, Some(section));
                if wanted.settings.passes_through() {
                    entries.passthrough.insert(host.clone(), Some(id.to_string()));
                }
                *uses.entry(host).or_default() += 1;
            }
        }
        for (host, change) in uses {
            let before = if scope == Scope::All { 0 } else { self.host_uses.get(&host).copied().unwrap_or_default() };
            entries.hosts.insert(host.clone(), (before + change > 0).then_some(host));
        }
        self.keep_pending_routes(&mut entries);
        entries
    }

    /// Notes that HAProxy deleted the server.
    pub fn mark_removed(&mut self, name: &ServerName) {
        if let Some(servers) = self.servers.get_mut(name.backend.as_str()) {
            servers.remove(name.server.as_str());
            self.update_leaving(name.backend.to_string());
        }
    }

    /// The servers that HAProxy deletes after their last connection.
    pub fn leaving_servers(&self) -> Vec<ServerName> {
        let sections = self.leaving_sections.iter().filter_map(|section| self.servers.get_key_value(section));
        let servers = sections.flat_map(|(section, servers)| servers.iter().map(move |it| (section, it)));
        let leaving = servers.filter(|(_, (_, server))| server.leaving);
        leaving.filter_map(|(section, (name, _))| parse_server_name(section, name)).collect()
    }
}

fn adds_entry(change: &Change) -> bool {
    !matches!(change, Change::RemoveFromMap(..))
}

/// Entries that remove every key of the map.
fn remove_all(map: &BTreeMap<String, String>) -> BTreeMap<String, Option<String>> {
    map.keys().map(|key| (key.clone(), None)).collect()
}

/// True if another running server has the id of this one. HAProxy would refuse the addition, so a restart has to add it.
fn is_id_taken(live: &LiveServers, server: &Server) -> bool {
    let id = server.hash_id.map(NonZeroU32::get);
    id.is_some_and(|id| live.iter().any(|(name, live)| live.id == id && **name != *server.id.as_str()))
}

fn has_server(servers: &[Server], name: &str) -> bool {
    servers.binary_search_by(|server| server.id.as_str().cmp(name)).is_ok()
}

#[cfg(test)]
mod tests;
