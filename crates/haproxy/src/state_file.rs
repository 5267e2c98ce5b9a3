//! The server state file: what a new HAProxy takes over from the old one's servers.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::config::ServerLine;
use crate::runtime::{ServerState, ServersState};

/// A state file without a server. HAProxy warns of a missing or an empty one, not of this.
pub const EMPTY: &str = "1\n";

/// The state file for a configuration with these `server` lines.
///
/// HAProxy takes address and port from the state file, whatever the configuration says, and an old
/// maintenance or drain too: the state of a server is kept only where backend, name, address and port
/// are a line of the new files.
pub fn filter(state: &ServersState, lines: &[ServerLine]) -> String {
    let known: HashSet<_> =
        lines.iter().map(|line| (line.backend.as_str(), line.server.as_str(), line.address, line.port)).collect();
    let stays = |server: &ServerState| {
        let address: Option<IpAddr> = server.address.parse().ok();
        address.is_some_and(|address| {
            known.contains(&(server.backend.as_str(), server.server.as_str(), address, server.port))
        })
    };
    let mut kept = state.clone();
    kept.servers.retain(stays);
    if kept.servers.is_empty() { EMPTY.to_owned() } else { kept.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const STATE: &str = "1\n# be_id be_name srv_id srv_name srv_addr …\n\
        2 http-app 1 one 10.0.0.1 2 8 5 5 2 1 0 2 0 0 0 0 - 8001 - 0 0 - - 0\n\
        2 http-app 2 two fd00::2 0 1 1 1 2 1 0 2 0 0 0 0 - 8002 - 0 0 - - 0\n\
        3 tcp-db 1 one 10.0.0.1 2 0 1 1 2 1 0 2 0 0 0 0 - 8001 - 0 0 - - 0\n\
        3 tcp-db 2 named 10.0.0.4 2 0 1 1 2 1 0 2 0 0 0 0 db.example 3306 - 0 0 - - 0\n\
        3 tcp-db 3 local /run/db.sock 2 0 1 1 2 1 0 2 0 0 0 0 - 0 - 0 0 - - 0\n";

    fn kept(config: &str) -> Vec<String> {
        let filtered = filter(&ServersState::parse(STATE).unwrap(), &config::servers(config));
        let mut lines = filtered.lines();
        assert_eq!(lines.next(), Some("1"));
        lines
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split(' ').skip(1).step_by(2).take(2).collect::<Vec<_>>().join("/"))
            .collect()
    }

    #[test]
    fn keeps_the_lines_of_servers_that_stay() {
        let config = "backend http-app\n server one 10.0.0.1:8001 check\n server two [fd00:0::2]:8002\n\
            listen tcp-db\n server one 10.0.0.1:8001\n";
        assert_eq!(kept(config), ["http-app/one", "http-app/two", "tcp-db/one"]);
    }

    #[test]
    fn drops_each_that_moved() {
        assert_eq!(kept("backend http-app\n server one 10.0.0.1:8009"), Vec::<String>::new(), "another port");
        assert_eq!(kept("backend http-app\n server one 10.0.0.9:8001"), Vec::<String>::new(), "another address");
        assert_eq!(kept("backend http-web\n server one 10.0.0.1:8001"), Vec::<String>::new(), "another backend");
        assert_eq!(kept("backend tcp-db\n server named db.example:3306"), Vec::<String>::new(), "a host name");
    }

    #[test]
    fn without_a_server_only_the_version_is_left() {
        assert_eq!(filter(&ServersState::parse(STATE).unwrap(), &[]), EMPTY);
    }
}
