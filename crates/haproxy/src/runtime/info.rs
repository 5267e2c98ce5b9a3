//! The answer to `show info`.

use std::time::Duration;

use crate::version::Version;

/// A running HAProxy process. Of its sixty fields those that somebody here asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// The worker's process id, in its own pid namespace.
    pub pid: u32,
    /// Its release.
    pub version: Version,
    /// Since it started, in whole seconds.
    pub uptime: Duration,
    /// Whether it finishes its last requests and takes no new ones.
    pub stopping: bool,
    /// Whether it accepts new connections of clients.
    pub listening: bool,
    /// Connections in use.
    pub connections: u64,
}

impl Info {
    pub(super) fn parse(answer: &str) -> Option<Self> {
        let field =
            |name: &str| answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim);
        let number = |name: &str| field(name).and_then(|value| value.parse::<u64>().ok()).unwrap_or_default();
        Some(Self {
            pid: field("Pid")?.parse().ok()?,
            version: field("Version")?.parse().ok()?,
            uptime: Duration::from_secs(field("Uptime_sec")?.parse().ok()?),
            stopping: field("Stopping")? != "0",
            // A soft stop leaves the listener for the master, which is the one job that can't be stopped.
            listening: number("Listeners") > number("Unstoppable Jobs"),
            connections: field("CurrConns")?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_fields_by_name() {
        let answer = "Name: HAProxy\nVersion: 2.6.12-1+deb12u2\nPid: 93\nUptime: 0d 0h00m07s\nUptime_sec: 7\n\
                      Maxconn: 10\nCurrConns: 3\nUnstoppable Jobs: 1\nListeners: 6\nStopping: 1\n";
        let expected = Info {
            pid: 93,
            version: Version::new(2, 6, 12),
            uptime: Duration::from_secs(7),
            stopping: true,
            listening: true,
            connections: 3,
        };
        assert_eq!(Info::parse(answer), Some(expected));
        assert_eq!(Info::parse("Permission denied\n"), None);
    }
}
