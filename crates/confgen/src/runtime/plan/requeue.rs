//! Plans to give servers their turns again after a change of weights. Pure: no I/O, no clock.

use discovery::Balance;
use haproxy::runtime::Change;

use super::RuntimeState;
use super::server::{LiveServer, LiveServers, parse_server_name};
use crate::desired::{DesiredService, Server, ServerState};

/// A larger section is not queued again after a change. HAProxy walks through all servers of the backend for each server (2.6:
/// 1 ms for 100 servers, 41 ms for 1,000).
const MAX_REQUEUED: usize = 250;

impl RuntimeState {
    /// Plans to give the section's servers their turns again, with the weights that they have.
    pub fn plan_requeue(&self, section: &str) -> Vec<Change> {
        let servers = self.servers.get(section).into_iter().flatten();
        requeue_all(section, servers.filter(|(_, live)| live.takes_requests()).map(|(id, live)| (&**id, live.weight)))
    }
}

/// Gives a section's servers their turns again if their weights together may grow. Growth makes `roundrobin` pass over servers.
pub(super) fn requeue_grown(
    section: &str,
    wanted: &DesiredService,
    live: &LiveServers,
    servers: &[Server],
) -> Vec<Change> {
    let grows = |server: &Server| {
        let before = live.get(server.id.as_str());
        LiveServer::after_plan(before, server, wanted).active_weight() > before.map_or(0, LiveServer::active_weight)
    };
    if wanted.settings.balance != Balance::RoundRobin || !servers.iter().any(grows) {
        return Vec::new();
    }
    let ready = servers.iter().filter(|server| server.state == ServerState::Ready && server.weight > 0);
    requeue_all(section, ready.map(|server| (server.id.as_str(), server.weight)))
}

/// Gives these servers their turns again. Returns no change if one server gets every turn, or if there are too many.
fn requeue_all<'a>(section: &str, servers: impl Iterator<Item = (&'a str, u16)>) -> Vec<Change> {
    let requeue = |(id, weight)| Some(Change::Requeue(parse_server_name(section, id)?, weight));
    let queued: Vec<Change> = servers.filter_map(requeue).collect();
    if (2..=MAX_REQUEUED).contains(&queued.len()) { queued } else { Vec::new() }
}
