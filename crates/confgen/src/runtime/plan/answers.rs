//! Reads HAProxy's answers into the state that plans compare with. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use haproxy::runtime::{ServerState, ServersState};

use super::manual::ServerFacts;
use super::maps::Maps;
use super::server::{LiveServer, LiveServers};
use super::{ListedMaps, RuntimeState};

impl RuntimeState {
    /// Reads the answers to `show servers state` and `show map`. If a key is in a map twice, the first entry counts, as in HAProxy.
    pub fn from_answers(state: &ServersState, maps: ListedMaps) -> Self {
        let mut live = Self::default();
        // HAProxy lists one backend after another.
        for of_backend in state.servers.chunk_by(|one, next| one.backend == next.backend) {
            let servers = of_backend.iter().filter_map(|it| Some((it.server.as_str().into(), LiveServer::read(it)?)));
            let servers: LiveServers = servers.collect();
            let Some(first) = of_backend.first().filter(|_| !servers.is_empty()) else { continue };
            match live.servers.entry(first.backend.clone()) {
                // A map that is collected at once has fuller nodes than one that grows.
                Entry::Vacant(place) => _ = place.insert(servers),
                Entry::Occupied(mut place) => place.get_mut().extend(servers),
            }
        }
        let ListedMaps { hosts, paths, passthrough, checks } = maps;
        live.maps = Maps {
            hosts: first_entries(hosts),
            paths: first_entries(paths),
            passthrough: first_entries(passthrough),
            checks: first_entries(checks),
        };
        live
    }

    /// Sets the files of authorities that HAProxy has loaded.
    #[must_use]
    pub fn with_authorities(mut self, authorities: impl Iterator<Item = String>) -> Self {
        self.authorities = authorities.collect();
        self
    }

    /// Sets the sections for previews that HAProxy has.
    #[must_use]
    pub fn with_preview_sections<'a>(mut self, sections: impl Iterator<Item = &'a String>) -> Self {
        self.preview_sections = sections.cloned().collect();
        self
    }
}

impl LiveServer {
    /// `None` for a server without an IP address. confgen makes none, so such a server is the operator's.
    fn read(server: &ServerState) -> Option<Self> {
        Some(Self {
            ip: server.address.parse().ok()?,
            port: server.port,
            weight: server.weight,
            maint: server.admin.is_in_maintenance(),
            drain: server.admin.is_in_drain(),
            id: server.id,
            leaving: false,
            facts: ServerFacts::from_state(server),
        })
    }
}

/// The first entry of each key.
fn first_entries(entries: Vec<(String, String)>) -> BTreeMap<String, String> {
    entries.into_iter().rev().collect()
}
