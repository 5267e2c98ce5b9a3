//! When what may begin: HAProxy follows a change at once, the file follows HAProxy, a restart waits for the last one. Pure:
//! it is told the time.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

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
pub enum Act {
    /// Follow the store as far as HAProxy takes it while it runs.
    Follow,
    /// Write the file and restart HAProxy into it.
    Restart,
    /// Write the file.
    File,
    /// Remove servers that had connections left.
    Sweep,
    /// Give the servers of some sections their turns again.
    Requeue,
}

/// What is due when. One act at a time, but for the file, which is written beside the others.
#[derive(Debug)]
pub struct Scheduler {
    /// How long a change waits for others to join it.
    min_wait: Duration,
    /// In so long there is one restart at most, but for [`SPARE`] after a quiet time.
    restart_interval: Duration,
    follow_at: Option<Instant>,
    restart_at: Option<Instant>,
    /// When the restart that is due was wanted first.
    wanted_at: Option<Instant>,
    file_at: Option<Instant>,
    sweep_at: Option<Instant>,
    requeue_at: Option<Instant>,
    /// No restart before this.
    no_restart_before: Option<Instant>,
    /// When the restarts so far would be over if they had kept their distance.
    paid_until: Option<Instant>,
    retries: ExponentialBackoff,
}

/// A try that fails is repeated soon, then ever more seldom: what it waits for is mostly a person.
fn retries() -> ExponentialBackoff {
    let delays =
        ExponentialBuilder::new().with_min_delay(Duration::from_secs(1)).with_max_delay(Duration::from_secs(30));
    delays.without_max_times().build()
}

impl Scheduler {
    /// A pace that has nothing to do yet.
    pub fn new(min_wait: Duration, restart_interval: Duration) -> Self {
        let (follow_at, restart_at, wanted_at, file_at, sweep_at) = (None, None, None, None, None);
        let retries = retries();
        Self {
            min_wait,
            restart_interval,
            follow_at,
            restart_at,
            wanted_at,
            file_at,
            sweep_at,
            requeue_at: None,
            no_restart_before: None,
            paid_until: None,
            retries,
        }
    }

    /// Something changed. After failed tries it is a reason to try before the delay is over: it may be the remedy.
    pub fn changed(&mut self, now: Instant) {
        self.follow_at = Some(self.follow_at.map_or(now + self.min_wait, |at| at.min(now + self.min_wait)));
        if let (Some(at), Some(wanted_at)) = (self.restart_at, self.wanted_at) {
            let settled = (now + self.min_wait + SETTLES_IN).min(wanted_at + SETTLES_WITHIN);
            self.restart_at = Some(at.max(settled));
        }
    }

    /// HAProxy has to be restarted, or no longer has to be. The restart waits for changes that are about to follow. A HAProxy
    /// that doesn't answer may be about to: supervisord, or a person, is given the time to start it.
    pub fn restart(&mut self, now: Instant, wanted: bool, silent: bool) {
        let soon = now + if silent { PATIENCE } else { SETTLES_IN };
        let earliest = self.no_restart_before.map_or(soon, |earliest| earliest.max(soon));
        self.restart_at = wanted.then(|| self.restart_at.map_or(earliest, |at| at.min(earliest)));
        self.wanted_at = wanted.then(|| self.wanted_at.unwrap_or(now));
    }

    /// The file is no longer what it should be.
    pub fn file(&mut self, now: Instant) {
        self.file_at.get_or_insert(now + FILE_DELAY);
    }

    /// Servers wait for their last connection.
    pub fn sweep(&mut self, now: Instant) {
        self.sweep_at = Some(now + SWEEP_EVERY);
    }

    /// Servers may have been set aside: they are queued again at once.
    pub fn requeue(&mut self, now: Instant) {
        self.requeue_at.get_or_insert(now);
    }

    /// What is due next, and when. While a file is being written neither a second one nor a restart begins.
    pub fn due(&self, filing: bool) -> Option<(Instant, Act)> {
        let acts = [
            (self.follow_at, Act::Follow),
            (self.restart_at.filter(|_| !filing), Act::Restart),
            // A restart writes the file, but one that has to wait is no reason for a file that lags behind.
            (self.file_at.filter(|at| !filing && self.restart_at.is_none_or(|restart| restart > *at)), Act::File),
            (self.sweep_at, Act::Sweep),
            (self.requeue_at, Act::Requeue),
        ];
        acts.into_iter().filter_map(|(at, act)| Some((at?, act))).min_by_key(|(at, _)| *at)
    }

    /// The act begins: it sees all that has come in so far.
    pub fn began(&mut self, act: Act) {
        match act {
            Act::Follow => self.follow_at = None,
            Act::Restart => (self.restart_at, self.wanted_at, self.file_at) = (None, None, None),
            Act::File => self.file_at = None,
            Act::Sweep => self.sweep_at = None,
            Act::Requeue => self.requeue_at = None,
        }
    }

    /// HAProxy was restarted.
    pub fn restarted(&mut self, now: Instant) {
        let paid_until = self.paid_until.map_or(now, |paid| paid.max(now)) + self.restart_interval;
        self.paid_until = Some(paid_until);
        self.no_restart_before = paid_until.checked_sub(self.restart_interval * SPARE);
        self.recovered();
    }

    /// Everything is as it should be: what fails next is tried again soon.
    pub fn recovered(&mut self) {
        self.retries = retries();
    }

    /// The act failed, and is tried again as if everything had changed. A restart is not tried more often than one
    /// that succeeds.
    pub fn failed(&mut self, now: Instant, act: Act) {
        let delay = self.retries.next().unwrap_or(self.restart_interval);
        if act == Act::Restart {
            self.no_restart_before = Some(now + delay.max(self.restart_interval));
        }
        self.follow_at = Some(self.follow_at.map_or(now + delay, |at| at.min(now + delay)));
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
        assert_eq!(pace.due(false), None);
        pace.changed(t);
        assert_eq!(pace.due(true), Some((t, Act::Follow)), "also while the file is being written");
        pace.began(Act::Follow);
        pace.file(t);
        pace.file(t + SECOND / 10);
        assert_eq!(pace.due(false), Some((t + FILE_DELAY, Act::File)), "a burst is written once, and not put off");
        assert_eq!(pace.due(true), None);
    }

    #[test]
    fn turns_are_given_at_once_also_while_a_file_is_written() {
        let t = Instant::now();
        let mut pace = Scheduler::new(Duration::ZERO, 2 * SECOND);
        pace.requeue(t);
        pace.requeue(t + SECOND);
        assert_eq!(pace.due(true), Some((t, Act::Requeue)));
        pace.began(Act::Requeue);
        assert_eq!(pace.due(true), None);
    }

    #[test]
    fn changes_wait_for_each_other_if_so_wished() {
        let t = Instant::now();
        let mut pace = Scheduler::new(SECOND, 2 * SECOND);
        pace.changed(t);
        pace.changed(t + SECOND / 2);
        assert_eq!(pace.due(false), Some((t + SECOND, Act::Follow)));
    }

    #[test]
    fn restarts_keep_their_distance() {
        let t = Instant::now();
        let mut pace = Scheduler::new(Duration::ZERO, 2 * SECOND);
        pace.restart(t, true, false);
        assert_eq!(pace.due(false), Some((t + SETTLES_IN, Act::Restart)), "after a quiet interval it is at once");
        pace.began(Act::Restart);
        pace.restarted(t + SECOND);
        pace.restart(t + SECOND, true, false);
        for _ in 0..SPARE {
            let next = Some((t + SECOND + SETTLES_IN, Act::Restart));
            assert_eq!(pace.due(false), next, "so are some more: a service comes key by key");
            pace.began(Act::Restart);
            pace.restarted(t + SECOND);
            pace.restart(t + SECOND, true, false);
        }
        pace.file(t + SECOND);
        assert_eq!(pace.due(false), Some((t + SECOND + FILE_DELAY, Act::File)), "the file doesn't wait so long");
        pace.began(Act::File);
        pace.file(t + 3 * SECOND);
        assert_eq!(pace.due(false), Some((t + 3 * SECOND, Act::Restart)), "which writes the file too");
        pace.restart(t + SECOND, false, false);
        assert_eq!(pace.due(false), Some((t + 3 * SECOND + FILE_DELAY, Act::File)));
    }

    #[test]
    fn without_a_quiet_time_there_is_one_restart_an_interval() {
        let t = Instant::now();
        let mut pace = Scheduler::new(Duration::ZERO, 2 * SECOND);
        let mut begun = Vec::new();
        let mut now = t;
        for _ in 0..7 {
            // The store has been quiet for long enough.
            pace.restart(now.checked_sub(SETTLES_IN).unwrap(), true, false);
            now = now.max(pace.due(false).unwrap().0);
            pace.began(Act::Restart);
            begun.push((now - t).as_secs());
            pace.restarted(now);
        }
        assert_eq!(begun, [0, 0, 0, 2, 4, 6, 8]);
        let later = now + 3 * SECOND;
        pace.restart(later, true, false);
        assert_eq!(pace.due(false), Some((later + SETTLES_IN, Act::Restart)));
        pace.began(Act::Restart);
        pace.restarted(later);
        pace.restart(later, true, false);
        assert_eq!(pace.due(false), Some((now + 4 * SECOND, Act::Restart)), "half a quiet time saves half of the wait");
    }

    #[test]
    fn a_restart_waits_for_keys_that_come_one_by_one_but_not_for_ever() {
        let t = Instant::now();
        let key = |number: u32| t + number * SECOND / 20;
        let mut pace = Scheduler::new(Duration::ZERO, 2 * SECOND);
        for number in 0..5 {
            pace.changed(key(number));
            pace.began(Act::Follow);
            pace.restart(key(number), true, false);
        }
        assert_eq!(pace.due(false), Some((key(4) + SETTLES_IN, Act::Restart)));
        for number in 5..100 {
            pace.changed(key(number));
            pace.began(Act::Follow);
            pace.restart(key(number), true, false);
        }
        assert_eq!(pace.due(false), Some((t + SETTLES_WITHIN, Act::Restart)));
        pace.restart(key(100), false, false);
        assert_eq!(pace.due(false), None, "the last key may make it needless");
    }

    #[test]
    fn a_silent_haproxy_is_given_time() {
        let t = Instant::now();
        let mut pace = Scheduler::new(Duration::ZERO, 2 * SECOND);
        pace.restart(t, true, true);
        pace.restart(t + SECOND, true, true);
        assert_eq!(pace.due(false), Some((t + PATIENCE, Act::Restart)), "but not for ever");
    }

    #[test]
    fn failures_are_repeated_ever_more_seldom_and_a_change_comes_sooner() {
        let t = Instant::now();
        let mut pace = Scheduler::new(Duration::ZERO, 2 * SECOND);
        let mut delays = Vec::new();
        for _ in 0..7 {
            pace.failed(t, Act::Restart);
            delays.push((pace.due(false).unwrap().0 - t).as_secs());
            pace.began(Act::Follow);
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30]);
        pace.changed(t);
        assert_eq!(pace.due(false), Some((t, Act::Follow)), "it may be the remedy");
        pace.began(Act::Follow);
        pace.restart(t, true, false);
        assert_eq!(pace.due(false), Some((t + 30 * SECOND, Act::Restart)), "but a restart is not tried more often");
        pace.recovered();
        pace.failed(t, Act::File);
        assert_eq!(pace.due(false), Some((t + SECOND, Act::Follow)), "what is long over counts no more");
    }
}
