//! Reads HAProxy's answers into the state that plans compare with. Pure: no I/O, no clock.

use std::collections::BTreeMap;

use haproxy::runtime::ServersState;

use super::manual::ServerFacts;
use super::maps::Maps;
use super::server::LiveServer;
use super::{ListedMaps, RuntimeState};

impl RuntimeState {
    /// Reads the answers to `show servers state` and `show map`. If a key is in a map twice, the first entry counts, as in HAProxy.
    pub fn from_answers(state: &ServersState, maps: ListedMaps) -> Self {
        let mut live = Self::default();
        for server in &state.servers {
            // confgen only makes servers with an IP address. One by name is the operator's.
            let Ok(ip) = server.address.parse() else { continue };
            let (maint, drain) = (server.admin.is_in_maintenance(), server.admin.is_in_drain());
            let (port, weight, id) = (server.port, server.weight, server.id);
            let facts = ServerFacts::from_state(server);
            let seen = LiveServer { ip, port, weight, maint, drain, id, leaving: false, facts };
            live.servers.entry(server.backend.clone()).or_default().insert(server.server.as_str().into(), seen);
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

/// The first entry of each key.
fn first_entries(entries: Vec<(String, String)>) -> BTreeMap<String, String> {
    entries.into_iter().rev().collect()
}
