//! Plans the changes of one server, or its addition. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;

use discovery::Sticky;
use haproxy::runtime::{AdminState, Change, ServerName, ServerOptions};

use super::manual::ServerFacts;
use crate::desired::{DesiredService, Server, ServerState};
use crate::render::server_options;

/// One server as HAProxy runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LiveServer {
    // A `SocketAddr` takes half as much memory again.
    pub(super) ip: IpAddr,
    pub(super) port: u16,
    /// The weight in use. 0 is a drain.
    pub(super) weight: u16,
    pub(super) maint: bool,
    pub(super) drain: bool,
    /// HAProxy's number of the server, which only a restart changes. 0 if HAProxy chose it and confgen hasn't asked.
    pub(super) id: u32,
    /// No longer wanted. In maintenance until its last connection is closed.
    pub(super) leaving: bool,
    /// What confgen never changes, except to undo a manual change.
    pub(super) facts: ServerFacts,
}

/// The servers of a section, by name. The name is shared with the upstream's id.
pub(super) type LiveServers = BTreeMap<Arc<str>, LiveServer>;

impl LiveServer {
    /// The server after the planned changes. A drain leaves the weight as it is, which may be the file's 0.
    pub(super) fn after_plan(before: Option<&Self>, wanted: &Server, service: &DesiredService) -> Self {
        let is_drained = wanted.state == ServerState::Drain;
        let weight = before.filter(|_| is_drained).map_or(wanted.weight, |before| before.weight);
        // A weight of 0 drains a server without a command.
        let drain = is_drained && before.is_none_or(|before| before.drain || before.maint || before.weight != 0);
        let maint = wanted.state == ServerState::Maint;
        let facts = before.map_or_else(|| ServerFacts::of_added(service), |before| before.facts);
        // Without a wanted id HAProxy chooses one. No decision depends on that one.
        let id = before.map_or(wanted.hash_id.map_or(0, NonZeroU32::get), |before| before.id);
        let address = wanted.address.socket_addr();
        Self { ip: address.ip(), port: address.port(), weight, maint, drain, id, leaving: false, facts }
    }

    /// True if the server gets a share of new requests.
    pub(super) fn takes_requests(&self) -> bool {
        !self.maint && !self.drain && self.weight > 0
    }

    /// The weight in the balancing, 0 if the server gets no new request.
    pub(super) fn active_weight(&self) -> u16 {
        if self.takes_requests() { self.weight } else { 0 }
    }

    /// Adds the changes that bring the server to the wanted address, weight and state.
    pub(super) fn plan_server(&self, name: &ServerName, wanted: &Server, changes: &mut Vec<Change>) {
        let address = wanted.address.socket_addr();
        if SocketAddr::new(self.ip, self.port) != address {
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
        changes.extend(state.map(|state| match state {
            AdminState::Ready if wanted.is_unproven && self.maint => Change::ReadyOnceChecked(name.clone()),
            state => Change::SetState(name.clone(), state),
        }));
    }
}

/// True if the server gets no new request after this change.
pub(super) fn stops_requests(change: &Change) -> bool {
    matches!(change, Change::SetState(_, AdminState::Drain | AdminState::Maint) | Change::SetWeight(_, 0))
}

/// `None` if a name can't stand in a command. A server that an operator added over the Runtime API may have such a name, and
/// confgen leaves it alone.
pub(super) fn parse_server_name(section: &str, server: &str) -> Option<ServerName> {
    Some(ServerName { backend: section.parse().ok()?, server: server.parse().ok()? })
}

/// Plans the addition of a section's new servers. With sticky cookies, each server gets its own before its first request. Without
/// it, HAProxy 2.6 tells that server's clients that their cookie has expired.
pub(super) fn plan_additions(section: &str, wanted: &DesiredService, new: Vec<(ServerName, &Server)>) -> Vec<Change> {
    let refresh = section.parse().ok().map(Change::RefreshCookies);
    let refresh = refresh.filter(|_| wanted.settings.sticky == Sticky::Cookie && !new.is_empty());
    let (mut added, mut states) = (Vec::new(), Vec::new());
    for (name, server) in new {
        let state = match admin_state(server) {
            AdminState::Maint => None,
            AdminState::Ready if server.is_unproven => Some(Change::ReadyOnceChecked(name.clone())),
            state => Some(Change::SetState(name.clone(), state)),
        };
        // One command adds a server and makes it ready, unless its cookie or `health down` has to come in between.
        let at_once = admin_state(server);
        let is_plain = refresh.is_none() && !server.is_unproven;
        added.push(build_addition(name, server, wanted, if is_plain { at_once } else { AdminState::Maint }));
        states.extend(state.filter(|_| !is_plain));
    }
    added.into_iter().chain(refresh).chain(states).collect()
}

fn build_addition(name: ServerName, server: &Server, wanted: &DesiredService, state: AdminState) -> Change {
    let (weight, backup, id) = (server.weight, server.backup, server.hash_id);
    let options = ServerOptions { weight, backup, id, ..server_options::options_for(wanted) };
    Change::AddServer(name, server.address.socket_addr(), options, state)
}

fn admin_state(server: &Server) -> AdminState {
    match server.state {
        ServerState::Ready => AdminState::Ready,
        ServerState::Drain => AdminState::Drain,
        ServerState::Maint => AdminState::Maint,
    }
}
