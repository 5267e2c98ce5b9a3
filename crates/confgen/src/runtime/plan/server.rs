//! One server: as HAProxy runs it, and the changes that make it what is wanted, or add it.

use std::net::SocketAddr;
use std::num::NonZeroU32;

use discovery::Sticky;
use haproxy::runtime::{AdminState, Change, ServerName, ServerOptions};

use crate::desired::{DesiredService, Server, ServerState};
use crate::render::server_options;

/// One server as HAProxy runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LiveServer {
    pub(super) address: SocketAddr,
    /// The weight in use; 0 is a drain.
    pub(super) weight: u16,
    pub(super) maint: bool,
    pub(super) drain: bool,
    /// Its id, which nothing but a restart changes.
    pub(super) id: u32,
    /// On its way out: in maintenance until its last connection is closed.
    pub(super) leaving: bool,
}

impl LiveServer {
    /// The server after the steps to what is wanted. A drain leaves the weight as it is: it may be the file's 0.
    pub(super) fn after_plan(before: Option<&Self>, wanted: &Server) -> Self {
        let drain = wanted.state == ServerState::Drain;
        let weight = before.filter(|_| drain).map_or(wanted.weight, |before| before.weight);
        let maint = wanted.state == ServerState::Maint;
        // HAProxy chooses an id where none is asked for, and nobody needs to know which.
        let id = before.map_or(wanted.hash_id.map_or(0, NonZeroU32::get), |before| before.id);
        Self { address: wanted.address.socket_addr(), weight, maint, drain, id, leaving: false }
    }

    /// Whether the server takes a part of new requests.
    pub(super) fn takes_requests(&self) -> bool {
        !self.maint && !self.drain && self.weight > 0
    }

    pub(super) fn plan_server(&self, name: &ServerName, wanted: &Server, changes: &mut Vec<Change>) {
        let address = wanted.address.socket_addr();
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
        changes.extend(state.map(|state| match state {
            AdminState::Ready if wanted.is_unproven && self.maint => Change::ReadyOnceChecked(name.clone()),
            state => Change::SetState(name.clone(), state),
        }));
    }
}

/// Whether a server takes no new request after this.
pub(super) fn stops_requests(change: &Change) -> bool {
    matches!(change, Change::SetState(_, AdminState::Drain | AdminState::Maint) | Change::SetWeight(_, 0))
}

/// Names that HAProxy runs have come from us, or from somebody else's hand: those that are no words are left alone.
pub(super) fn parse_server_name(section: &str, server: &str) -> Option<ServerName> {
    Some(ServerName { backend: section.parse().ok()?, server: server.parse().ok()? })
}

/// New servers of a section. With sticky cookies, each gets its own before its first request: HAProxy would take an answer
/// without one for the end of the client's (2.6).
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
        // One command is enough if nothing has to come in between.
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
