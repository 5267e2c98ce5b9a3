//! What systemd hears from us, besides READY and STOPPING.

use std::time::Duration;

use daemon::systemd;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::state::State;

/// How often systemd hears from us without a watchdog.
const PERIOD: Duration = Duration::from_secs(20);

/// When systemd is to hear from us; never where it doesn't listen.
pub(crate) struct Pulse(Option<Interval>);

impl Pulse {
    pub(crate) fn new() -> Self {
        let watchdog = systemd::watchdog_interval().map(|watchdog| watchdog.min(PERIOD));
        let period = watchdog.or_else(|| systemd::listens().then_some(PERIOD));
        Self(period.map(|period| {
            let mut interval = interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        }))
    }

    /// The next moment to call [`beat`].
    pub(crate) async fn tick(&mut self) {
        match &mut self.0 {
            Some(interval) => _ = interval.tick().await,
            None => std::future::pending().await,
        }
    }
}

/// Says that we live, and that a start which waits for etcd is no failed start: the app works, and systemd would stop
/// it at the end of the unit's start time.
pub(crate) fn beat(state: State) {
    systemd::watchdog();
    if state == State::Announcing {
        systemd::extend_timeout(3 * PERIOD);
    }
}

/// The line of `systemctl status`.
pub(crate) fn describe(state: State, key: Option<&str>) -> String {
    let what = match state {
        State::Starting => "waiting for the app",
        State::Announcing => "the app works, waiting for etcd to take",
        State::Announced => "announced as",
        State::Draining => "draining",
        State::Stopping => "stopping the app",
        State::Killing => "killing the app",
        State::Withdrawing => "withdrawing",
        State::Done => "withdrawn",
    };
    match (state, key) {
        (State::Announcing | State::Announced | State::Draining | State::Withdrawing, Some(key)) => {
            format!("{what} {key}")
        }
        _ => what.to_owned(),
    }
}
