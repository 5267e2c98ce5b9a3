//! The heartbeat for systemd and for `/live`, and the line of `systemctl status`. It decides nothing.

use std::time::Duration;

use daemon::{admin, systemd};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::state::State;

/// Period towards systemd without a watchdog. systemd's start timeout is extended by three of them.
const PERIOD: Duration = Duration::from_secs(20);

/// Period towards the admin port. `/live` fails after 10 s without a beat.
const ADMIN_PERIOD: Duration = Duration::from_secs(2);

/// Timer of the heartbeat. It never fires without systemd and without an admin port.
pub(crate) struct Heartbeat {
    interval: Option<Interval>,
    admin: Option<admin::Pulse>,
}

impl Heartbeat {
    pub(crate) fn new(admin: Option<admin::Pulse>) -> Self {
        let systemd = systemd::watchdog_interval().or_else(|| systemd::has_notify_socket().then_some(PERIOD));
        let shown = admin.as_ref().map(|_| ADMIN_PERIOD);
        let period = systemd.into_iter().chain(shown).min();
        // A longer watchdog must not delay the extensions of the start timeout.
        let mut interval = period.map(|period| interval(period.min(PERIOD)));
        if let Some(interval) = &mut interval {
            // After a suspend of the host, one beat is enough.
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        Self { interval, admin }
    }

    /// Timer that never fires, for a run of the app whose process beats elsewhere.
    pub(crate) fn silent() -> Self {
        Self { interval: None, admin: None }
    }

    /// Waits until the next beat is due.
    pub(crate) async fn next_beat(&mut self) {
        match &mut self.interval {
            Some(interval) => _ = interval.tick().await,
            None => std::future::pending().await,
        }
    }

    /// Beats. Extends systemd's start timeout if `extends_start`, while the start waits for etcd or for balancers: the app
    /// works, and systemd would stop it at the end of the unit's start timeout.
    pub(crate) fn send_beat(&self, extends_start: bool) {
        if let Some(admin) = &self.admin {
            admin.beat();
        }
        systemd::notify_watchdog();
        if extends_start {
            // Three periods, so that one late beat doesn't end the start.
            systemd::extend_timeout(3 * PERIOD);
        }
    }
}

/// Line of `systemctl status`. `not_healthy` is the number of upstreams that have not worked yet, `blocked_by` the reason
/// why balancers don't follow.
pub(crate) fn describe_state(state: State, keys: &[String], not_healthy: usize, blocked_by: Option<&str>) -> String {
    let what = match state {
        State::Starting => "waiting for the app",
        State::Announcing if not_healthy > 0 => "waiting for more of the app, announcing",
        State::Announcing => "the app works, waiting for etcd to take",
        State::AwaitingBalancers => "waiting for balancers to follow",
        State::Announced => "announced as",
        State::Draining => "draining",
        State::Stopping => "stopping the app",
        State::Killing => "killing the app",
        State::Leaving => "the app has ended, withdrawing",
        State::Withdrawing => "withdrawing",
        State::Clearing => "stopping what the app has left behind",
        State::Done => "withdrawn",
    };
    if let (State::AwaitingBalancers, Some(blocked_by)) = (state, blocked_by) {
        return format!("{what}: {blocked_by}");
    }
    match (state, keys) {
        (State::Starting | State::Stopping | State::Killing | State::Clearing | State::Done, _) | (_, []) => {
            what.to_owned()
        }
        (_, [key]) => format!("{what} {key}"),
        (_, [key, others @ ..]) => format!("{what} {key} and {} more", others.len()),
    }
}
