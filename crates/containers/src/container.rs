//! A container as its engine describes it. Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// SIGINT, SIGQUIT, SIGKILL and SIGTERM. An app that gets one of them usually ends.
const STOPPING: [i32; 4] = [2, 3, 9, 15];

/// The engine's own default between the stop signal and SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A container, as one request to the engine shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// The engine's id, 64 hexadecimal digits.
    pub id: String,
    /// The name without the engine's leading `/`.
    pub name: String,
    /// The image as it was named at the start.
    pub image: String,
    /// All labels, those of the image included.
    pub labels: BTreeMap<String, String>,
    /// `NAME=VALUE`, as the container's processes see it.
    pub environment: Vec<String>,
    /// What the engine says that it does.
    pub state: RunState,
    /// The result of its HEALTHCHECK. `None` without one.
    pub health: Option<HealthStatus>,
    /// Time of the last start, in the engine's words. It differs after each start.
    pub started_at: String,
    /// `host`, `bridge`, or a network's name.
    pub network_mode: String,
    /// Its networks, with its address in each. `None` if it has none there.
    pub networks: BTreeMap<String, Option<IpAddr>>,
    /// TCP ports that its image or its start names.
    pub exposed: BTreeSet<u16>,
    /// TCP ports of the container, with the host's addresses that lead to them.
    pub published: BTreeMap<u16, Vec<SocketAddr>>,
    /// The image's or the start's STOPSIGNAL. `None` if none is set, or if its name is unknown here.
    pub stop_signal: Option<i32>,
    /// The start's `--stop-timeout`. `None` if none is set.
    pub stop_timeout: Option<Duration>,
    /// The exit status of its last run. 0 before the first one.
    pub exit_status: u8,
    /// Why the engine alone decides when the container runs. `None` if it starts only when it is told to.
    pub own_life: Option<OwnLife>,
}

/// A reason why the engine starts or removes a container by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnLife {
    /// Its restart policy, in the engine's word: `always`, `unless-stopped`, `on-failure`.
    Restarts(String),
    /// `--rm`: the engine removes it when it ends.
    RemovedAtEnd,
}

/// What a container does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Its processes run.
    Running,
    /// Its processes are frozen. The kernel still accepts connections for them.
    Paused,
    /// No process runs. The engine's word for it: `created`, `exited`, `restarting`, `dead`.
    Stopped(String),
}

/// The result of a HEALTHCHECK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthStatus {
    /// None has passed since the start.
    Starting,
    /// The last one passed.
    Healthy,
    /// As many as `--retries` says failed in a row.
    Unhealthy,
}

impl Container {
    /// True if the signal asks the container's app to end.
    pub fn is_stopped_by(&self, signal: i32) -> bool {
        STOPPING.contains(&signal) || self.stop_signal == Some(signal)
    }

    /// Time between the stop signal and SIGKILL, unless the stop says otherwise.
    pub fn stop_time(&self) -> Duration {
        self.stop_timeout.unwrap_or(STOP_TIMEOUT)
    }

    /// True if it shares the host's network.
    pub fn is_in_host_network(&self) -> bool {
        self.network_mode == "host"
    }
}

impl Default for RunState {
    fn default() -> Self {
        Self::Stopped("unknown".to_owned())
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped(word) => word,
        })
    }
}

/// What the container's starter must change. One line.
impl fmt::Display for OwnLife {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restarts(policy) => {
                write!(
                    f,
                    "the engine would start it without a slot (restart policy {policy}): create it with --restart no"
                )
            }
            Self::RemovedAtEnd => {
                f.write_str("the engine removes it when it ends (--rm), so it can't stand by: create it without --rm")
            }
        }
    }
}

impl fmt::Display for HealthStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        })
    }
}

/// Number of a signal as STOPSIGNAL has it: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`. `None` if it is none on Linux.
pub(crate) fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // glibc keeps the first two real-time signals for itself, so RTMIN is 34.
    if let Some(above) = name.strip_prefix("RTMIN+") {
        return above.parse::<i32>().ok().filter(|above| (0..=30).contains(above)).map(|above| 34 + above);
    }
    let names = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ABRT", 6),
        ("KILL", 9),
        ("USR1", 10),
        ("USR2", 12),
        ("TERM", 15),
        ("WINCH", 28),
        ("PWR", 30),
        ("RTMIN", 34),
    ];
    names.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_read_by_name_and_by_number() {
        for (text, number) in
            [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("SIGWINCH", 28), ("RTMIN", 34)]
        {
            assert_eq!(parse_signal(text), Some(number), "{text}");
        }
        for text in ["", "SIG", "0", "65", "-9", "RTMIN+99", "RTMIN+-1", "NOPE"] {
            assert_eq!(parse_signal(text), None, "{text}");
        }
    }

    #[test]
    fn a_reload_stops_nothing() {
        let nginx = Container { stop_signal: Some(28), ..Container::default() };
        assert!(nginx.is_stopped_by(28) && nginx.is_stopped_by(15) && nginx.is_stopped_by(9));
        assert!(!nginx.is_stopped_by(1) && !Container::default().is_stopped_by(28));
    }
}
