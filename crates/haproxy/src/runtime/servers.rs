//! Parses the answer to `show servers state`, which is also the format of a server state file. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Every server of a running HAProxy, in its order (Management Guide, "show servers state", version 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServersState {
    header: String,
    /// The servers, one for each line.
    pub servers: Vec<ServerState>,
}

/// One server, as HAProxy runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerState {
    /// The name of its backend or listen section.
    pub backend: String,
    /// The server's name.
    pub server: String,
    /// The server's id (`srv_id`), unique in the backend.
    pub id: u32,
    /// The address as HAProxy writes it: an IP address without brackets, a unix socket's path, or `-`.
    pub address: String,
    /// The port. 0 if there is none.
    pub port: u16,
    /// The state that the server's checks give it.
    pub operation: Operation,
    /// The states that commands and the configuration give it.
    pub admin: AdminFlags,
    /// The weight that HAProxy uses now.
    pub weight: u16,
    /// The weight in the configuration.
    pub initial_weight: u16,
    /// Its health checks.
    pub checks: CheckFlags,
    /// Its agent checks.
    pub agent: CheckFlags,
    /// True if HAProxy speaks TLS with it.
    pub uses_tls: bool,
    /// The port that its checks use. 0 if they use that of its traffic.
    pub check_port: u16,
    /// The address that its checks use. `None` if they use that of its traffic.
    pub check_address: Option<IpAddr>,
    line: String,
}

/// The state by the server's checks: `srv_op_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The server is down, or in maintenance.
    Stopped,
    /// The server is up, and warms up (`slowstart`).
    Starting,
    /// The server is up, with its whole weight.
    Running,
    /// The server is up, and going down (soft stop).
    Stopping,
}

/// The admin state: `srv_admin_state`, a set of flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdminFlags(u32);

impl AdminFlags {
    /// True in maintenance, for any reason: a command, the configuration, inherited, unresolved.
    pub fn is_in_maintenance(self) -> bool {
        const FORCED: u32 = 0x01;
        const INHERITED: u32 = 0x02;
        const RESOLUTION: u32 = 0x20;
        // 0x04 and 0x40 only tell the origin of one of these: the configuration, the resolver's host name.
        self.0 & (FORCED | INHERITED | RESOLUTION) != 0
    }

    /// True in maintenance by a command and not by the configuration.
    pub fn is_in_maintenance_by_command(self) -> bool {
        const FORCED: u32 = 0x01;
        const CONFIGURED: u32 = 0x04;
        self.0 & (FORCED | CONFIGURED) == FORCED
    }

    /// True in drain: the server takes requests of sticky clients only.
    pub fn is_in_drain(self) -> bool {
        const FORCED: u32 = 0x08;
        const INHERITED: u32 = 0x10;
        self.0 & (FORCED | INHERITED) != 0
    }
}

/// The state of a server's checks of one kind: `srv_check_state` or `srv_agent_state`, a set of flags.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CheckFlags(u32);

impl CheckFlags {
    /// True if the configuration or the command that added the server says that it is checked.
    pub fn is_configured(self) -> bool {
        const CONFIGURED: u32 = 0x02;
        self.0 & CONFIGURED != 0
    }

    /// True if a command has turned the checks off. A pause in maintenance is another flag.
    pub fn is_disabled(self) -> bool {
        const ENABLED: u32 = 0x04;
        self.is_configured() && self.0 & ENABLED == 0
    }
}

/// The error of a text that is no answer to `show servers state` in its version 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no list of servers' states in version 1")]
pub struct NotServersState;

impl ServersState {
    /// The format's version, which is the whole first line.
    pub(crate) const FORMAT: &str = "1";

    pub(crate) fn parse(answer: &str) -> Option<Self> {
        let mut lines = answer.lines();
        if lines.next()? != Self::FORMAT {
            return None;
        }
        let header = lines.next().filter(|line| line.starts_with("# "))?.to_owned();
        let servers = lines.filter(|line| !line.is_empty()).map(ServerState::parse).collect::<Option<_>>()?;
        Some(Self { header, servers })
    }
}

impl FromStr for ServersState {
    type Err = NotServersState;

    fn from_str(text: &str) -> Result<Self, NotServersState> {
        Self::parse(text).ok_or(NotServersState)
    }
}

impl fmt::Display for ServersState {
    /// Writes the list as HAProxy does, so that HAProxy can read it back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}", Self::FORMAT, self.header)?;
        self.servers.iter().try_for_each(|server| writeln!(f, "{}", server.line))
    }
}

impl ServerState {
    fn parse(line: &str) -> Option<Self> {
        // 2.6 pads the answer to 25 fields, and later releases may add some. The first 23 are read.
        let (mut fields, mut count) = ([""; 23], 0);
        for (place, field) in fields.iter_mut().zip(line.split(' ')) {
            (*place, count) = (field, count + 1);
        }
        let fields = fields.get(..count)?;
        // Positions in version 1 of the format.
        Some(Self {
            backend: (*fields.get(1)?).to_owned(),
            server: (*fields.get(3)?).to_owned(),
            id: fields.get(2)?.parse().ok()?,
            address: (*fields.get(4)?).to_owned(),
            operation: match *fields.get(5)? {
                "0" => Operation::Stopped,
                "1" => Operation::Starting,
                "2" => Operation::Running,
                "3" => Operation::Stopping,
                _ => return None,
            },
            admin: AdminFlags(fields.get(6)?.parse().ok()?),
            weight: fields.get(7)?.parse().ok()?,
            initial_weight: fields.get(8)?.parse().ok()?,
            port: fields.get(18)?.parse().ok()?,
            checks: CheckFlags(fields.get(13)?.parse().ok()?),
            agent: CheckFlags(fields.get(14)?.parse().ok()?),
            // A state file of an older release has no such fields. Nothing that reads one asks for them.
            uses_tls: fields.get(20).is_some_and(|field| *field == "1"),
            check_port: fields.get(21).and_then(|field| field.parse().ok()).unwrap_or_default(),
            check_address: fields.get(22).and_then(|field| field.parse().ok()),
            line: line.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight …";

    fn one(line: &str) -> ServerState {
        let state = ServersState::parse(&format!("1\n{HEADER}\n{line}\n")).unwrap();
        state.servers.into_iter().next().unwrap()
    }

    #[test]
    fn reads_a_server() {
        let server = one("2 http-app 1 app-1 127.0.0.1 2 8 100 50 8 2 0 6 0 0 0 0 - 8001 - 0 0 - - 0");
        assert_eq!((server.backend.as_str(), server.server.as_str()), ("http-app", "app-1"));
        assert_eq!((server.address.as_str(), server.port, server.id), ("127.0.0.1", 8001, 1));
        assert_eq!((server.weight, server.initial_weight), (100, 50));
        assert_eq!(server.operation, Operation::Running);
        assert!(server.admin.is_in_drain() && !server.admin.is_in_maintenance());
    }

    #[test]
    fn reads_how_a_server_is_checked() {
        let server = one("5 b1 1 s1 127.0.0.1 0 0 100 100 16 8 2 0 2 22 0 0 - 9001 - 1 99 127.0.0.9 - 0");
        assert!(server.checks.is_disabled() && !server.agent.is_disabled() && server.agent.is_configured());
        assert_eq!((server.uses_tls, server.check_port), (true, 99));
        assert_eq!(server.check_address, Some([127, 0, 0, 9].into()));
        let plain = one("6 b2 1 s1 127.0.0.1 2 0 100 100 1 1 0 2 0 0 0 0 - 9001 - 0 0 - - 0");
        assert!(!plain.checks.is_configured() && !plain.checks.is_disabled());
        assert_eq!((plain.uses_tls, plain.check_port, plain.check_address), (false, 0, None));
    }

    #[test]
    fn tells_maintenance_from_its_origin() {
        assert!(one("2 b 1 s ::1 0 5 1 1 2 1 0 0 8 0 0 0 - 80 - 0 0 - - 0").admin.is_in_maintenance());
        assert!(one("2 b 1 s - 0 32 1 1 2 1 0 0 8 0 0 0 - 80 - 0 0 - - 0").admin.is_in_maintenance());
        assert!(!one("2 b 1 s ::1 0 64 1 1 2 1 0 0 8 0 0 0 - 80 - 0 0 - - 0").admin.is_in_maintenance());
    }

    #[test]
    fn writes_what_it_read() {
        let text = format!("1\n{HEADER}\n2 b 1 s ::1 0 5 1 1 2 1 0 0 8 0 0 0 - 80 - 0 0 - - 0\n");
        assert_eq!(ServersState::parse(&text).unwrap().to_string(), text);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for text in ["", "2\n# x\n", "1\n2 b 1 s\n", "1\n# x\n2 b 1 s ::1 0 5\n", "Permission denied\n"] {
            assert_eq!(ServersState::parse(text), None, "{text:?}");
        }
    }
}
