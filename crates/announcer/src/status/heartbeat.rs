//! The signs of life: what systemd hears from us besides READY and STOPPING, and what `/live` goes by.

use std::time::Duration;

use daemon::{admin, systemd};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::state::State;

/// How often systemd hears from us without a watchdog.
const PERIOD: Duration = Duration::from_secs(20);

/// How often the admin port does, where there is one.
const ADMIN_PERIOD: Duration = Duration::from_secs(2);

/// When we say that we live; never where nobody listens.
pub(crate) struct Heartbeat {
    interval: Option<Interval>,
    admin: Option<admin::Pulse>,
}

impl Heartbeat {
    pub(crate) fn new(admin: Option<admin::Pulse>) -> Self {
        let systemd = systemd::watchdog_interval().or_else(|| systemd::has_notify_socket().then_some(PERIOD));
        let shown = admin.as_ref().map(|_| ADMIN_PERIOD);
        let period = systemd.into_iter().chain(shown).min().map(|period| period.min(PERIOD));
        let interval = period.map(|period| {
            let mut interval = interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        Self { interval, admin }
    }

    /// The next moment to call [`Self::beat`].
    pub(crate) async fn next_beat(&mut self) {
        match &mut self.interval {
            Some(interval) => _ = interval.tick().await,
            None => std::future::pending().await,
        }
    }

    /// Says that we live, and that a start which waits for etcd or for balancers is no failed start: the app works, and
    /// systemd would stop it at the end of the unit's start time.
    pub(crate) fn send_beat(&self, state: State, all_work: bool) {
        if let Some(admin) = &self.admin {
            admin.beat();
        }
        systemd::notify_watchdog();
        if matches!(state, State::Announcing | State::AwaitingBalancers) && all_work {
            systemd::extend_timeout(3 * PERIOD);
        }
    }
}

/// The line of `systemctl status`. `missing` are the upstreams that have not worked yet; `blocked_by` is what keeps
/// balancers from following.
pub(crate) fn describe_state(state: State, keys: &[String], missing: usize, blocked_by: Option<&str>) -> String {
    let what = match state {
        State::Starting => "waiting for the app",
        State::Announcing if missing > 0 => "waiting for more of the app, announcing",
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
