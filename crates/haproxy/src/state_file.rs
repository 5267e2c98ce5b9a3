//! Makes the server state file, from which a new HAProxy takes over the states of the old one's servers. Pure.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::config::ServerLine;
use crate::runtime::{Operation, ServerState, ServersState};

/// A state file without a server. HAProxy warns about a missing or an empty file, and not of this one.
pub const EMPTY: &str = "1\n";

/// Makes the state file for a configuration with these `server` lines.
///
/// HAProxy takes address and port from the state file, whatever the configuration says, and an old maintenance or drain
/// too. So a server's state is kept only if a line of the new files has its backend, name, address and port.
///
/// HAProxy (2.6) also takes a server as down that nothing checks any more, and never takes it up again. So a stopped
/// server that is no longer checked is left out too, unless a command put it into maintenance.
pub fn filter_servers(state: &ServersState, lines: &[ServerLine]) -> String {
    let known = KnownServers::of_lines(lines);
    let mut kept = state.clone();
    kept.servers.retain(|server| known.may_keep(server));
    let text = if kept.servers.is_empty() { EMPTY.to_owned() } else { kept.to_string() };
    debug_assert_eq!(find_broken_rule(&text, state, &known), None);
    text
}

/// The servers of the new files, each with whether it is checked.
struct KnownServers<'a>(HashMap<(&'a str, &'a str, IpAddr, u16), bool>);

impl<'a> KnownServers<'a> {
    fn of_lines(lines: &'a [ServerLine]) -> Self {
        let keyed = lines
            .iter()
            .map(|line| ((line.backend.as_str(), line.server.as_str(), line.address, line.port), line.checked));
        Self(keyed.collect())
    }

    /// True if the new server is checked. `None` if no line has that server with its address and port.
    fn is_checked(&self, server: &ServerState) -> Option<bool> {
        let address = server.address.parse().ok()?;
        self.0.get(&(server.backend.as_str(), server.server.as_str(), address, server.port)).copied()
    }

    fn may_keep(&self, server: &ServerState) -> bool {
        let may_rise = server.operation != Operation::Stopped || server.admin.is_in_maintenance_by_command();
        self.is_checked(server).is_some_and(|is_checked| is_checked || may_rise)
    }
}

/// Finds the first rule that a state file breaks. `None` if it keeps them all.
fn find_broken_rule(text: &str, state: &ServersState, known: &KnownServers<'_>) -> Option<&'static str> {
    if text == EMPTY {
        return None;
    }
    let Ok(written) = text.parse::<ServersState>() else { return Some("HAProxy can read the file") };
    let old = state.to_string();
    let old: HashSet<&str> = old.lines().collect();
    let rules = [
        ("every line is one of the old HAProxy's", text.lines().all(|line| old.contains(line))),
        (
            "every server is one of the new files",
            written.servers.iter().all(|server| known.is_checked(server).is_some()),
        ),
    ];
    rules.into_iter().find(|(_, holds)| !holds).map(|(rule, _)| rule)
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
        let filtered = filter_servers(&ServersState::parse(STATE).unwrap(), &config::parse_servers(config));
        let mut lines = filtered.lines();
        assert_eq!(lines.next(), Some("1"));
        lines
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split(' ').skip(1).step_by(2).take(2).collect::<Vec<_>>().join("/"))
            .collect()
    }

    #[test]
    fn keeps_the_lines_of_servers_that_stay() {
        let config = "backend http-app\n server one 10.0.0.1:8001 check\n server two [fd00:0::2]:8002 check\n\
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
    fn drops_the_stopped_that_nothing_would_start() {
        let state = |operation: u8, admin: u8| {
            let line = format!("2 b 1 s 10.0.0.1 {operation} {admin} 1 1 2 1 0 2 0 0 0 0 - 80 - 0 0 - - 0");
            ServersState::parse(&format!("1\n# header\n{line}\n")).unwrap()
        };
        let kept = |state, options| {
            let lines = config::parse_servers(&format!("backend b\n server s 10.0.0.1:80 {options}"));
            filter_servers(&state, &lines) != EMPTY
        };
        assert!(kept(state(0, 0), "check"), "down");
        assert!(!kept(state(0, 0), ""), "down, but no longer checked");
        assert!(kept(state(0, 1), ""), "maintenance by command");
        assert!(!kept(state(0, 5), ""), "disabled in the old file");
        assert!(kept(state(2, 8), ""), "drained");
    }

    #[test]
    fn a_file_that_breaks_a_rule_is_found() {
        let state = ServersState::parse(STATE).unwrap();
        let lines = config::parse_servers("backend http-app\n server one 10.0.0.1:8001 check\n");
        let known = KnownServers::of_lines(&lines);
        assert_eq!(find_broken_rule(&filter_servers(&state, &lines), &state, &known), None);
        assert_eq!(find_broken_rule("", &state, &known), Some("HAProxy can read the file"));
        let foreign = STATE.replace("10.0.0.1 2 8", "10.0.0.1 2 0");
        assert_eq!(find_broken_rule(&foreign, &state, &known), Some("every line is one of the old HAProxy's"));
        assert_eq!(find_broken_rule(STATE, &state, &known), Some("every server is one of the new files"));
    }

    #[test]
    fn without_a_server_only_the_version_is_left() {
        assert_eq!(filter_servers(&ServersState::parse(STATE).unwrap(), &[]), EMPTY);
    }
}
