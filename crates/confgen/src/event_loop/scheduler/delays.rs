//! The times that the scheduler's actions wait. Data only.

use std::time::Duration;

/// The times that an action waits for others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delays {
    /// The file follows HAProxy after this, so that a burst of changes is written once.
    pub(super) publish: Duration,
    /// The next file waits this many times as long as the last one took.
    pub(super) publish_rest: u32,
    /// The time between two tries to remove servers that wait for their last connection. `None` leaves it to reconciles.
    pub(super) remove_servers: Option<Duration>,
    /// A restart waits until the store was quiet for this long. The next restart waits for the end of this one.
    pub(super) quiet: Duration,
    /// Changes that never end put a restart off by this at most.
    pub(super) quiet_at_most: Duration,
    /// A HAProxy that doesn't answer is not restarted before this.
    pub(super) unreachable: Duration,
}

/// The delays of the daemon.
pub(super) const DAEMON: Delays = Delays {
    // A check of 10,000 servers takes some 100 ms more, and the documentation promises 500 ms.
    publish: Duration::from_millis(200),
    // HAProxy's checks take a fifth of one processor at most.
    publish_rest: 4,
    remove_servers: Some(Duration::from_millis(200)),
    // Keys that are written one by one, each by an etcdctl of its own, come some 50 ms apart.
    quiet: Duration::from_millis(150),
    quiet_at_most: Duration::from_secs(1),
    // After a start that failed, supervisord takes a second to start HAProxy again. HAProxy itself takes some 100 ms.
    unreachable: Duration::from_millis(1_500),
};

/// The delays of `confgen once`. Its store doesn't change any more.
pub(super) const ONCE: Delays = Delays {
    publish: Duration::ZERO,
    publish_rest: 0,
    remove_servers: None,
    quiet: Duration::ZERO,
    quiet_at_most: Duration::ZERO,
    unreachable: Duration::ZERO,
};
