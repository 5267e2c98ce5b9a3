//! Parses the answer to `show info`. Pure.

use std::time::Duration;

use crate::version::Version;

/// A running HAProxy process, by those of its sixty fields that this project uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// The worker's process id, in its own pid namespace.
    pub pid: u32,
    /// The release that it runs.
    pub version: Version,
    /// The time since its start, in whole seconds.
    pub uptime: Duration,
    /// The time of its start, in seconds since 1970. With the pid it tells processes apart.
    pub started: u64,
    /// True after a soft stop: it finishes its last requests and takes no new ones.
    pub stopping: bool,
    /// True if it accepts new connections of clients.
    pub listening: bool,
    /// The client connections in use.
    pub connections: u64,
    /// The limits of the whole process.
    pub limits: Limits,
}

/// Limits of the whole process that commands change: `set maxconn global` and `set rate-limit`. A rate of 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// The most client connections at a time.
    pub connections: u64,
    /// The most that the process began with. `set maxconn global 0` sets it again.
    pub first_connections: u64,
    /// Connections a second.
    pub connection_rate: u64,
    /// Sessions a second.
    pub session_rate: u64,
    /// TLS sessions a second.
    pub tls_rate: u64,
    /// Bytes that are compressed in a second.
    pub compression_rate: u64,
}

impl Info {
    pub(super) fn parse(answer: &str) -> Option<Self> {
        Some(Self {
            pid: find_field(answer, "Pid")?.parse().ok()?,
            version: find_field(answer, "Version")?.parse().ok()?,
            uptime: Duration::from_secs(find_field(answer, "Uptime_sec")?.parse().ok()?),
            started: read_number(answer, "Start_time_sec"),
            stopping: find_field(answer, "Stopping")? != "0",
            // A soft stop leaves the listener for the master. It is the one job that can't be stopped.
            listening: read_number(answer, "Listeners") > read_number(answer, "Unstoppable Jobs"),
            connections: find_field(answer, "CurrConns")?.parse().ok()?,
            limits: Limits {
                connections: read_number(answer, "Maxconn"),
                first_connections: read_number(answer, "Hard_maxconn"),
                connection_rate: read_number(answer, "ConnRateLimit"),
                session_rate: read_number(answer, "SessRateLimit"),
                tls_rate: read_number(answer, "SslRateLimit"),
                compression_rate: read_number(answer, "CompressBpsRateLim"),
            },
        })
    }
}

fn find_field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim)
}

/// Reads a number, 0 if the answer has none of that name.
fn read_number(answer: &str, name: &str) -> u64 {
    find_field(answer, name).and_then(|value| value.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_fields_by_name() {
        let answer = "Name: HAProxy\nVersion: 2.6.12-1+deb12u2\nPid: 93\nUptime: 0d 0h00m07s\nUptime_sec: 7\nStart_time_sec: 1796009819\n\
                      Maxconn: 10\nHard_maxconn: 500\nConnRateLimit: 5\nCompressBpsRateLim: 8192\nCurrConns: 3\nUnstoppable Jobs: 1\nListeners: 6\nStopping: 1\n";
        let expected = Info {
            pid: 93,
            version: Version::new(2, 6, 12),
            uptime: Duration::from_secs(7),
            started: 1_796_009_819,
            stopping: true,
            listening: true,
            connections: 3,
            limits: Limits {
                connections: 10,
                first_connections: 500,
                connection_rate: 5,
                compression_rate: 8192,
                ..Limits::default()
            },
        };
        assert_eq!(Info::parse(answer), Some(expected));
        assert_eq!(Info::parse("Permission denied\n"), None);
    }
}
