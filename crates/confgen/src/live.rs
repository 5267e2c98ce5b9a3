//! What HAProxy runs, as far as it can be changed without a restart, and the changes that lead to what is wanted. Pure.
//!
//! Desired minus current, both ways: per server, and per entry of the maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use discovery::{Check, Proto, ProxyProtocol, ServiceId, Sticky};
use haproxy::runtime::{AdminState, Change, ServerName, ServerOptions, ServersState, Token};

use crate::settle::{Route, Server, ServerState, Settings, Wanted};

/// One server as HAProxy runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveServer {
    address: SocketAddr,
    /// The weight in use; 0 is a drain.
    weight: u16,
    maint: bool,
    drain: bool,
    /// On its way out: in maintenance until its last connection is closed.
    leaving: bool,
}

/// Servers and map entries. A server that isn't in here doesn't run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// By section, then by name.
    servers: BTreeMap<String, BTreeMap<String, LiveServer>>,
    hosts: BTreeMap<String, String>,
    paths: BTreeMap<String, String>,
    /// By service: the routes that were made, as host and path key. What to take away when they change.
    routes: BTreeMap<ServiceId, BTreeSet<(String, String)>>,
    /// How many of those routes each host has: it stays in its map while there is one.
    uses: BTreeMap<String, i64>,
}

/// What a map is to hold for some of its keys.
type Entries = BTreeMap<String, Option<String>>;

/// Whether some services are looked at, or all that the running HAProxy has: then what nobody wants goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// These services alone.
    These,
    /// Everything.
    All,
}

/// The running maps' paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapPaths {
    /// Host or wildcard → itself.
    pub hosts: Token,
    /// Host or wildcard + path prefix → section.
    pub paths: Token,
}

/// What to do, in this order: changes, then removals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// What HAProxy does at once.
    pub changes: Vec<Change>,
    /// Servers that go when their last connection is closed.
    pub removals: Vec<ServerName>,
}

impl Live {
    /// What an answer to `show servers state` and the maps' contents say. Of a host that stands in a map twice, the first
    /// entry counts, as in HAProxy.
    pub fn observed(state: &ServersState, hosts: Vec<(String, String)>, paths: Vec<(String, String)>) -> Self {
        let mut live = Self::default();
        for server in &state.servers {
            // One without an IP address and a port is none of ours.
            let Ok(ip) = server.address.parse() else { continue };
            let (maint, drain) = (server.admin.maintenance(), server.admin.drain());
            let address = SocketAddr::new(ip, server.port);
            let seen = LiveServer { address, weight: server.weight, maint, drain, leaving: false };
            live.servers.entry(server.backend.clone()).or_default().insert(server.server.clone(), seen);
        }
        let first = |entries: Vec<(String, String)>| entries.into_iter().rev().collect();
        (live.hosts, live.paths) = (first(hosts), first(paths));
        live
    }

    /// The steps to what is wanted of some services, or of all there are; none of it where one is gone. Whatever has no
    /// section in the running HAProxy must be left out by the caller.
    pub fn steps(&self, scope: Scope, services: &[(&ServiceId, Option<&Wanted>)], maps: &MapPaths) -> Steps {
        let (mut added, mut changed, mut removals) = (Vec::new(), Vec::new(), Vec::new());
        for (id, wanted) in services {
            let none = BTreeMap::new();
            let section = id.to_string();
            let live = self.servers.get(&section).unwrap_or(&none);
            let before = added.len();
            for server in wanted.iter().flat_map(|wanted| &wanted.servers) {
                let Some(name) = server_name(&section, server.id.as_str()) else { continue };
                match (live.get(server.id.as_str()), wanted) {
                    (Some(live), _) => live.steps(&name, server, &mut changed),
                    (None, Some(wanted)) => added.push(add(name, server, &wanted.settings)),
                    (None, None) => {}
                }
            }
            if added.len() > before && wanted.is_some_and(|wanted| wanted.settings.sticky == Sticky::Cookie) {
                added.extend(section.parse().ok().map(Change::RefreshCookies));
            }
            let gone = live.iter().filter(|(name, server)| !server.leaving && !has(*wanted, name));
            removals.extend(gone.filter_map(|(name, _)| server_name(&section, name)));
        }
        let (hosts, paths) = self.entries(scope, services);
        let mut entries = map_steps(&self.hosts, hosts, &maps.hosts);
        entries.extend(map_steps(&self.paths, paths, &maps.paths));
        // New servers before the hosts that lead to them, and both before anything is taken away.
        let (more, less): (Vec<_>, Vec<_>) = entries.into_iter().partition(|c| !matches!(c, Change::RemoveFromMap(..)));
        Steps { changes: [added, more, changed, less].concat(), removals }
    }

    /// Believes that the steps to this were made.
    pub fn made(&mut self, scope: Scope, services: &[(&ServiceId, Option<&Wanted>)]) {
        let (hosts, paths) = self.entries(scope, services);
        settle_entries(&mut self.hosts, hosts);
        settle_entries(&mut self.paths, paths);
        for (id, wanted) in services {
            let servers = self.servers.entry(id.to_string()).or_default();
            for (_, server) in servers.iter_mut().filter(|(name, _)| !has(*wanted, name)) {
                (server.maint, server.leaving) = (true, true);
            }
            for server in wanted.iter().flat_map(|wanted| &wanted.servers) {
                let before = servers.get(server.id.as_str());
                servers.insert(server.id.to_string(), LiveServer::after(before, server));
            }
            let after = wanted.map(routes_of).unwrap_or_default();
            let before = std::mem::take(self.routes.entry((*id).clone()).or_default());
            let before = if scope == Scope::All { BTreeSet::new() } else { before };
            for (host, _) in &before {
                *self.uses.entry(host.clone()).or_default() -= 1;
            }
            for (host, _) in &after {
                *self.uses.entry(host.clone()).or_default() += 1;
            }
            self.routes.insert((*id).clone(), after);
        }
        self.routes.retain(|_, routes| !routes.is_empty());
        self.uses.retain(|_, uses| *uses > 0);
    }

    /// What the two maps are to hold for these services: a value, or nothing, for each key that they touch.
    fn entries(&self, scope: Scope, services: &[(&ServiceId, Option<&Wanted>)]) -> (Entries, Entries) {
        let gone = |map: &BTreeMap<String, String>| match scope {
            Scope::All => map.keys().map(|key| (key.clone(), None)).collect(),
            Scope::These => Entries::new(),
        };
        let (mut hosts, mut paths) = (gone(&self.hosts), gone(&self.paths));
        let mut uses: BTreeMap<String, i64> = BTreeMap::new();
        if scope == Scope::These {
            for (host, path) in services.iter().filter_map(|(id, _)| self.routes.get(id)).flatten() {
                *uses.entry(host.clone()).or_default() -= 1;
                paths.insert(path.clone(), None);
            }
        }
        for (id, wanted) in services {
            for (host, path) in wanted.map(routes_of).unwrap_or_default() {
                *uses.entry(host).or_default() += 1;
                paths.insert(path, Some(id.to_string()));
            }
        }
        for (host, change) in uses {
            let before = if scope == Scope::All { 0 } else { self.uses.get(&host).copied().unwrap_or_default() };
            hosts.insert(host.clone(), (before + change > 0).then_some(host));
        }
        (hosts, paths)
    }

    /// A server is gone for good.
    pub fn removed(&mut self, name: &ServerName) {
        if let Some(servers) = self.servers.get_mut(name.backend.as_str()) {
            servers.remove(name.server.as_str());
        }
    }

    /// The servers that are on their way out.
    pub fn leaving(&self) -> Vec<ServerName> {
        let of_section = |(section, servers): (&String, &BTreeMap<String, LiveServer>)| {
            let leaving: Vec<ServerName> = servers
                .iter()
                .filter(|(_, server)| server.leaving)
                .filter_map(|(name, _)| server_name(section, name))
                .collect();
            leaving
        };
        self.servers.iter().flat_map(of_section).collect()
    }
}

impl LiveServer {
    /// The server after the steps to what is wanted. A drain leaves the weight as it is: it may be the file's 0.
    fn after(before: Option<&Self>, wanted: &Server) -> Self {
        let drain = wanted.state == ServerState::Drain;
        let weight = before.filter(|_| drain).map_or(wanted.weight, |before| before.weight);
        let maint = wanted.state == ServerState::Maint;
        Self { address: wanted.address.socket(), weight, maint, drain, leaving: false }
    }

    fn steps(&self, name: &ServerName, wanted: &Server, changes: &mut Vec<Change>) {
        let address = wanted.address.socket();
        if self.address != address {
            changes.push(Change::SetAddress(name.clone(), address));
        }
        let drained = self.drain || self.weight == 0;
        let state = match wanted.state {
            ServerState::Ready => (self.maint || self.drain).then_some(AdminState::Ready),
            ServerState::Drain => (self.maint || !drained).then_some(AdminState::Drain),
            ServerState::Maint => (!self.maint).then_some(AdminState::Maint),
        };
        if wanted.state != ServerState::Drain && self.weight != wanted.weight {
            changes.push(Change::SetWeight(name.clone(), wanted.weight));
        }
        changes.extend(state.map(|state| Change::SetState(name.clone(), state)));
    }
}

fn has(wanted: Option<&Wanted>, name: &str) -> bool {
    wanted.is_some_and(|wanted| wanted.servers.iter().any(|server| server.id.as_str() == name))
}

/// Names that HAProxy runs have come from us, or from somebody else's hand: those that are no words are left alone.
fn server_name(section: &str, server: &str) -> Option<ServerName> {
    Some(ServerName { backend: section.parse().ok()?, server: server.parse().ok()? })
}

fn add(name: ServerName, server: &Server, settings: &Settings) -> Change {
    let options = ServerOptions {
        weight: server.weight,
        check: settings.check != Check::Off,
        backup: server.backup,
        maxconn: settings.maxconn,
        h2: settings.proto == Some(Proto::H2),
        send_proxy: match settings.proxy_protocol {
            ProxyProtocol::Off => None,
            ProxyProtocol::V1 => Some(1),
            ProxyProtocol::V2 => Some(2),
        },
        slowstart: settings.slowstart.map(Into::into),
    };
    let state = match server.state {
        ServerState::Ready => AdminState::Ready,
        ServerState::Drain => AdminState::Drain,
        ServerState::Maint => AdminState::Maint,
    };
    Change::AddServer(name, server.address.socket(), options, state)
}

/// A service's routes as host and path key.
fn routes_of(wanted: &Wanted) -> BTreeSet<(String, String)> {
    let route = |route: &Route| (route.domain.to_string(), format!("{}{}", route.domain, route.path.with_boundary()));
    wanted.routes.iter().map(route).collect()
}

fn map_steps(live: &BTreeMap<String, String>, wanted: Entries, map: &Token) -> Vec<Change> {
    let step = |(key, value): (String, Option<String>)| {
        let token: Token = key.parse().ok()?;
        match (live.get(&key), value) {
            (Some(live), Some(value)) if *live == value => None,
            (Some(_), Some(value)) => Some(Change::SetInMap(map.clone(), token, value.parse().ok()?)),
            (None, Some(value)) => Some(Change::AddToMap(map.clone(), token, value.parse().ok()?)),
            (Some(_), None) => Some(Change::RemoveFromMap(map.clone(), token)),
            (None, None) => None,
        }
    };
    wanted.into_iter().filter_map(step).collect()
}

fn settle_entries(live: &mut BTreeMap<String, String>, wanted: Entries) {
    for (key, value) in wanted {
        match value {
            Some(value) => live.insert(key, value),
            None => live.remove(&key),
        };
    }
}

#[cfg(test)]
mod tests;
