//! When what may begin: HAProxy follows a change at once, the file follows HAProxy, a restart waits for the last one. Pure:
//! it is told the time.

use std::time::{Duration, Instant};

use registry::{Backoff, Delays};

/// The file follows HAProxy after this, so that a burst of changes is written once; a check of 10,000 servers takes some
/// 100 ms more, and 500 ms is promised.
const FILE_DELAY: Duration = Duration::from_millis(200);
/// How often servers are asked after that wait for their last connection.
const SWEEP_EVERY: Duration = Duration::from_millis(200);

/// A start takes supervisord a second where one has just failed, HAProxy itself some 100 ms.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// A restart waits until the store is quiet for so long: keys that are written one by one, each by an etcdctl of its own, come
/// some 50 ms apart. While HAProxy restarts, no change is followed.
const SETTLES_IN: Duration = Duration::from_millis(150);
/// Changes that never end put a restart off by this at most.
const SETTLES_WITHIN: Duration = Duration::from_secs(1);

/// Restarts that may follow another one at once, after a time without any. A service that is deleted and written again key by
/// key can take three: one without it, one for its first key, one for the keys that came during that restart. Its clients are
/// refused until the last one.
const SPARE: u32 = 2;

/// What may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Follow the store as far as HAProxy takes it while it runs.
    Reconcile,
    /// Write the file and restart HAProxy into it.
    Restart,
    /// Write the file.
    Publish,
    /// Remove servers that had connections left.
    RemoveServers,
    /// Give the servers of some sections their turns again.
    RequeueServers,
}

/// What is due when. One act at a time, but for the file, which is written beside the others.
#[derive(Debug)]
pub struct Scheduler {
    /// How long a change waits for others to join it.
    min_wait: Duration,
    /// In so long there is one restart at most, but for [`SPARE`] after a quiet time.
    restart_interval: Duration,
    reconcile_at: Option<Instant>,
    restart_at: Option<Instant>,
    /// When the restart that is due was wanted first.
    restart_wanted_at: Option<Instant>,
    publish_at: Option<Instant>,
    remove_servers_at: Option<Instant>,
    requeue_at: Option<Instant>,
    /// No restart before this.
    earliest_restart_at: Option<Instant>,
    /// When the restarts so far would be over if they had kept their distance.
    restarts_paid_until: Option<Instant>,
    backoff: Delays,
}

/// A try that fails is repeated soon, then ever more seldom: what it waits for is mostly a person.
fn new_backoff() -> Delays {
    Backoff::new(Duration::from_secs(1), Duration::from_secs(30)).delays()
}

impl Scheduler {
    /// A pace that has nothing to do yet.
    pub fn new(min_wait: Duration, restart_interval: Duration) -> Self {
        let (reconcile_at, restart_at, restart_wanted_at, publish_at, remove_servers_at) =
            (None, None, None, None, None);
        let backoff = new_backoff();
        Self {
            min_wait,
            restart_interval,
            reconcile_at,
            restart_at,
            restart_wanted_at,
            publish_at,
            remove_servers_at,
            requeue_at: None,
            earliest_restart_at: None,
            restarts_paid_until: None,
            backoff,
        }
    }

    /// Something changed. After failed tries it is a reason to try before the delay is over: it may be the remedy.
    pub fn on_change(&mut self, now: Instant) {
        self.reconcile_at = Some(self.reconcile_at.map_or(now + self.min_wait, |at| at.min(now + self.min_wait)));
        if let (Some(at), Some(wanted_at)) = (self.restart_at, self.restart_wanted_at) {
            let settled = (now + self.min_wait + SETTLES_IN).min(wanted_at + SETTLES_WITHIN);
            self.restart_at = Some(at.max(settled));
        }
    }

    /// HAProxy has to be restarted, or no longer has to be. The restart waits for changes that are about to follow. A HAProxy
    /// that doesn't answer may be about to: supervisord, or a person, is given the time to start it.
    pub fn want_restart(&mut self, now: Instant, wanted: bool, silent: bool) {
        let soon = now + if silent { PATIENCE } else { SETTLES_IN };
        let earliest = self.earliest_restart_at.map_or(soon, |earliest| earliest.max(soon));
        self.restart_at = wanted.then(|| self.restart_at.map_or(earliest, |at| at.min(earliest)));
        self.restart_wanted_at = wanted.then(|| self.restart_wanted_at.unwrap_or(now));
    }

    /// The file is no longer what it should be.
    pub fn want_publish(&mut self, now: Instant) {
        self.publish_at.get_or_insert(now + FILE_DELAY);
    }

    /// Servers wait for their last connection.
    pub fn want_server_removal(&mut self, now: Instant) {
        self.remove_servers_at = Some(now + SWEEP_EVERY);
    }

    /// Servers may have been set aside: they are queued again at once.
    pub fn want_requeue(&mut self, now: Instant) {
        self.requeue_at.get_or_insert(now);
    }

    /// What is due next, and when. While a file is being written neither a second one nor a restart begins.
    pub fn next_action(&self, filing: bool) -> Option<(Instant, Action)> {
        let acts = [
            (self.reconcile_at, Action::Reconcile),
            (self.restart_at.filter(|_| !filing), Action::Restart),
            // A restart writes the file, but one that has to wait is no reason for a file that lags behind.
            (
                self.publish_at.filter(|at| !filing && self.restart_at.is_none_or(|restart| restart > *at)),
                Action::Publish,
            ),
            (self.remove_servers_at, Action::RemoveServers),
            (self.requeue_at, Action::RequeueServers),
        ];
        acts.into_iter().filter_map(|(at, act)| Some((at?, act))).min_by_key(|(at, _)| *at)
    }

    /// The act begins: it sees all that has come in so far.
    pub fn on_began(&mut self, act: Action) {
        match act {
            Action::Reconcile => self.reconcile_at = None,
            Action::Restart => (self.restart_at, self.restart_wanted_at, self.publish_at) = (None, None, None),
            Action::Publish => self.publish_at = None,
            Action::RemoveServers => self.remove_servers_at = None,
            Action::RequeueServers => self.requeue_at = None,
        }
    }

    /// HAProxy was restarted.
    pub fn on_restarted(&mut self, now: Instant) {
        let paid_until = self.restarts_paid_until.map_or(now, |paid| paid.max(now)) + self.restart_interval;
        self.restarts_paid_until = Some(paid_until);
        self.earliest_restart_at = paid_until.checked_sub(self.restart_interval * SPARE);
        self.on_recovered();
    }

    /// Everything is as it should be: what fails next is tried again soon.
    pub fn on_recovered(&mut self) {
        self.backoff = new_backoff();
    }

    /// The act failed, and is tried again as if everything had changed. A restart is not tried more often than one
    /// that succeeds.
    pub fn on_failed(&mut self, now: Instant, act: Action) {
        let delay = self.backoff.next().unwrap_or(self.restart_interval);
        if act == Action::Restart {
            self.earliest_restart_at = Some(now + delay.max(self.restart_interval));
        }
        self.reconcile_at = Some(self.reconcile_at.map_or(now + delay, |at| at.min(now + delay)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_change_is_followed_at_once_and_the_file_later() {
        let t = Instant::now();
        let mut pace = Scheduler::new(Duration::ZERO, 2 * SECOND);
        assert_eq!(pace.next_action(false), None);
        pace.on_change(t);
        assert_eq!(pace.next_action(true), Some((t, Action::Reconcile)), "also while the file is being written");
        pace.on_began(Action::Reconcile);
        pace.want_publish(t);
        pace.want_publish(t + SECOND / 10);
        assert_eq!(
            pace.next_action(false),
            Some((t + FILE_DELAY, Action::Publish)),
            "a burst is written once, and not put off"
        );
        assert_eq!(pace.next_action(true), None);
    }

    #[test]
    fn turns_are_given_at_once_also_while_a_file_is_written() {
        let t = Instant::now();
        let mut pace = Scheduler::new(Duration::ZERO, 2 * SECOND);
        pace.want_requeue(t);
        pace.want_requeue(t + SECOND);
        assert_eq!(pace.next_action(true), Some((t, Action::RequeueServers)));
        pace.on_began(Action::RequeueServers);
        assert_eq!(pace.next_action(true), None);
    }

    #[test]
    fn changes_wait_for_each_other_if_so_wished() {
        let t = Instant::now();
        let mut pace = Scheduler::new(SECOND, 2 * SECOND);
        pace.on_change(t);
        pace.on_change(t + SECOND / 2);
        assert_eq!(pace.next_action(false), Some((t + SECOND, Action::Reconcile)));
    }

    #[test]
    fn restarts_keep_their_distance() {
        let t = Instant::now();
        let mut pace = Scheduler::new(Duration::ZERO, 2 * SECOND);
        pace.want_restart(t, true, false);
        assert_eq!(
            pace.next_action(false),
            Some((t + SETTLES_IN, Action::Restart)),
            "after a quiet interval it is at once"
        );
        pace.on_began(Action::Restart);
        pace.on_restarted(t + SECOND);
        pace.want_restart(t + SECOND, true, false);
        for _ in 0..SPARE {
            let next = Some((t + SECOND + SETTLES_IN, Action::Restart));
            assert_eq!(pace.next_action(false), next, "so are some more: a service comes key by key");
            pace.on_began(Action::Restart);
            pace.on_restarted(t + SECOND);
            pace.want_restart(t + SECOND, true, false);
        }
        pace.want_publish(t + SECOND);
        assert_eq!(
            pace.next_action(false),
            Some((t + SECOND + FILE_DELAY, Action::Publish)),
            "the file doesn't wait so long"
        );
        pace.on_began(Action::Publish);
        pace.want_publish(t + 3 * SECOND);
        assert_eq!(pace.next_action(false), Some((t + 3 * SECOND, Action::Restart)), "which writes the file too");
        pace.want_restart(t + SECOND, false, false);
        assert_eq!(pace.next_action(false), Some((t + 3 * SECOND + FILE_DELAY, Action::Publish)));
    }

    #[test]
    fn without_a_quiet_time_there_is_one_restart_an_interval() {
        let t = Instant::now();
        let mut pace = Scheduler::new(Duration::ZERO, 2 * SECOND);
        let mut begun = Vec::new();
        let mut now = t;
        for _ in 0..7 {
            // The store has been quiet for long enough.
            pace.want_restart(now.checked_sub(SETTLES_IN).unwrap(), true, false);
            now = now.max(pace.next_action(false).unwrap().0);
            pace.on_began(Action::Restart);
            begun.push((now - t).as_secs());
            pace.on_restarted(now);
        }
        assert_eq!(begun, [0, 0, 0, 2, 4, 6, 8]);
        let later = now + 3 * SECOND;
        pace.want_restart(later, true, false);
        assert_eq!(pace.next_action(false), Some((later + SETTLES_IN, Action::Restart)));
        pace.on_began(Action::Restart);
        pace.on_restarted(later);
        pace.want_restart(later, true, false);
        assert_eq!(
            pace.next_action(false),
            Some((now + 4 * SECOND, Action::Restart)),
            "half a quiet time saves half of the wait"
        );
    }

    #[test]
    fn a_restart_waits_for_keys_that_come_one_by_one_but_not_for_ever() {
        let t = Instant::now();
        let key = |number: u32| t + number * SECOND / 20;
        let mut pace = Scheduler::new(Duration::ZERO, 2 * SECOND);
        for number in 0..5 {
            pace.on_change(key(number));
            pace.on_began(Action::Reconcile);
            pace.want_restart(key(number), true, false);
        }
        assert_eq!(pace.next_action(false), Some((key(4) + SETTLES_IN, Action::Restart)));
        for number in 5..100 {
            pace.on_change(key(number));
            pace.on_began(Action::Reconcile);
            pace.want_restart(key(number), true, false);
        }
        assert_eq!(pace.next_action(false), Some((t + SETTLES_WITHIN, Action::Restart)));
        pace.want_restart(key(100), false, false);
        assert_eq!(pace.next_action(false), None, "the last key may make it needless");
    }

    #[test]
    fn a_silent_haproxy_is_given_time() {
        let t = Instant::now();
        let mut pace = Scheduler::new(Duration::ZERO, 2 * SECOND);
        pace.want_restart(t, true, true);
        pace.want_restart(t + SECOND, true, true);
        assert_eq!(pace.next_action(false), Some((t + PATIENCE, Action::Restart)), "but not for ever");
    }

    #[test]
    fn failures_are_repeated_ever_more_seldom_and_a_change_comes_sooner() {
        let t = Instant::now();
        let mut pace = Scheduler::new(Duration::ZERO, 2 * SECOND);
        let mut delays = Vec::new();
        for _ in 0..7 {
            pace.on_failed(t, Action::Restart);
            delays.push((pace.next_action(false).unwrap().0 - t).as_secs());
            pace.on_began(Action::Reconcile);
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30]);
        pace.on_change(t);
        assert_eq!(pace.next_action(false), Some((t, Action::Reconcile)), "it may be the remedy");
        pace.on_began(Action::Reconcile);
        pace.want_restart(t, true, false);
        assert_eq!(
            pace.next_action(false),
            Some((t + 30 * SECOND, Action::Restart)),
            "but a restart is not tried more often"
        );
        pace.on_recovered();
        pace.on_failed(t, Action::Publish);
        assert_eq!(pace.next_action(false), Some((t + SECOND, Action::Reconcile)), "what is long over counts no more");
    }
}
