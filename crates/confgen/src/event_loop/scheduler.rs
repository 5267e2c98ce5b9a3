//! Decides which action begins next, and when. HAProxy follows a change at once, haproxy.cfg follows HAProxy, and a restart waits
//! for the last change. Pure: no I/O, no clock. A test prints the whole table to SCHEDULE.md.

mod delays;
mod input;
mod invariants;
mod publish_pace;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use registry::Backoff;

use crate::cli::Pacing;
use crate::reconcile::Pending;
use delays::{DAEMON, Delays, ONCE};
use input::Beside;
pub use input::{Action, Effect, End, Input, PublishEnd, RestartEnd, Scope};
use publish_pace::PublishPace;

/// Restarts that may follow another one at once, after a time without any. A service that is deleted and written again key by
/// key can take three: one without it, one for its first key, one for the keys that came during that restart. HAProxy refuses
/// the service's clients until the last one.
const SPARE_RESTARTS: u32 = 2;

/// The restart that waits.
#[derive(Clone, Debug)]
struct WantedRestart {
    reason: String,
    at: Instant,
    /// The time when a restart was first wanted. Since then a reconcile has wanted one every time.
    since: Instant,
    /// One transaction wrote the service that needs it, so that no further key is to be waited for.
    is_complete: bool,
}

/// All timers and flags of confgen's life.
#[derive(Clone, Debug)]
pub struct Scheduler {
    delays: Delays,
    /// A change waits for others for this long.
    min_wait: Duration,
    /// In this time one restart begins at most, except for [`SPARE_RESTARTS`] after a quiet time.
    restart_interval: Duration,
    is_store_known: bool,
    scope: Scope,
    reconcile_at: Option<Instant>,
    /// A transaction has written a service since the last reconcile began.
    has_whole_service: bool,
    /// The reconcile in progress takes in a service that a transaction wrote.
    takes_whole_service: bool,
    /// When local files that changed are read.
    files_at: Option<Instant>,
    restart: Option<WantedRestart>,
    publish_at: Option<Instant>,
    publish_pace: PublishPace,
    remove_servers_at: Option<Instant>,
    requeue: Option<(Instant, BTreeSet<String>)>,
    /// The begin of the action in progress, if there is one besides `beside`.
    began_at: Option<Instant>,
    beside: Option<Beside>,
    earliest_restart_at: Option<Instant>,
    /// The end of the intervals of all restarts so far, one after another.
    restarts_paid_until: Option<Instant>,
    /// Failures since all was well. Each doubles the delay.
    failures: u32,
    /// Some local files couldn't be read or aren't accepted.
    lacks_files: bool,
    is_current: bool,
    /// The begin of the last reconcile after which HAProxy was current.
    current_since: Option<Instant>,
    unsettled_at: Option<Instant>,
}

/// The delays after a failure. Most failures end only when an operator mends something.
const LONGEST_RETRY: Duration = Duration::from_secs(30);
const RETRIES: Backoff = Backoff::new(Duration::from_secs(1), LONGEST_RETRY);

impl Scheduler {
    /// The scheduler of the daemon. Nothing is due before the store is known.
    pub fn new(pacing: &Pacing) -> Self {
        Self {
            delays: DAEMON,
            min_wait: pacing.min_wait,
            restart_interval: pacing.restart_interval,
            is_store_known: false,
            scope: Scope::default(),
            reconcile_at: None,
            has_whole_service: false,
            takes_whole_service: false,
            files_at: None,
            restart: None,
            publish_at: None,
            publish_pace: PublishPace::default(),
            remove_servers_at: None,
            requeue: None,
            began_at: None,
            beside: None,
            earliest_restart_at: None,
            restarts_paid_until: None,
            failures: 0,
            lacks_files: false,
            is_current: false,
            current_since: None,
            unsettled_at: None,
        }
    }

    /// The scheduler of `confgen once`: every action is due at once.
    pub fn once() -> Self {
        let pacing = Pacing { min_wait: Duration::ZERO, restart_interval: Duration::ZERO, resync: Duration::MAX };
        Self { delays: ONCE, ..Self::new(&pacing) }
    }

    /// The next action, and the time when it may begin. `None` while none may begin, and before the store is known.
    pub fn next(&self) -> Option<(Instant, Action)> {
        if !self.is_store_known || self.began_at.is_some() {
            return None;
        }
        let restart = self.restart.as_ref();
        // A restart publishes too, but a restart that has to wait is no reason for a file that lags behind.
        let publish_at = self.publish_at.filter(|at| restart.is_none_or(|restart| restart.at > *at));
        let requeue = self.requeue.as_ref();
        let actions = [
            self.reconcile_at.map(|at| (at, Action::Reconcile(self.scope))),
            self.files_at.map(|at| (at, Action::ReadFiles)),
            restart.map(|restart| (restart.at, Action::Restart { reason: restart.reason.clone() })),
            publish_at.map(|at| (at, Action::Publish)),
            self.remove_servers_at.map(|at| (at, Action::RemoveServers)),
            requeue.map(|(at, sections)| (*at, Action::RequeueServers { sections: sections.clone() })),
        ];
        let may_begin = |action: &Action| self.beside.is_none() || action.beside().is_none();
        // `min_by_key` takes the first of equals, so a change reaches HAProxy before a restart or a file.
        actions.into_iter().flatten().filter(|(_, action)| may_begin(action)).min_by_key(|(at, _)| *at)
    }

    /// The action begins, with all inputs so far.
    pub fn begin(&mut self, now: Instant, action: &Action) {
        self.check_may_begin(action);
        match action {
            Action::Reconcile(_) => (self.reconcile_at, self.scope) = (None, Scope::default()),
            Action::Restart { .. } => (self.restart, self.publish_at) = (None, None),
            Action::Publish => {
                self.publish_at = None;
                self.publish_pace.begin(now);
            }
            Action::ReadFiles => self.files_at = None,
            Action::RemoveServers => self.remove_servers_at = None,
            Action::RequeueServers { .. } => self.requeue = None,
        }
        if matches!(action, Action::Reconcile(_)) {
            self.takes_whole_service = std::mem::take(&mut self.has_whole_service);
        }
        match action.beside() {
            Some(beside) => self.beside = Some(beside),
            None => self.began_at = Some(now),
        }
        self.check_invariants(now);
    }

    /// Takes an input in. `now` never goes back from one call to the next.
    pub fn on(&mut self, now: Instant, input: Input) -> Option<Effect> {
        let effect = self.take_input(now, input);
        self.check_invariants(now);
        effect
    }

    fn take_input(&mut self, now: Instant, input: Input) -> Option<Effect> {
        match input {
            Input::StoreListed => {
                self.is_store_known = true;
                // HAProxy is observed with each listing, with its certificates. `drift.rs` looks for other manual changes sooner.
                self.scope.reobserve = true;
                self.want_reconcile(now);
            }
            Input::StoreChanged | Input::DayBegan => self.want_reconcile(now),
            Input::ServiceWritten => {
                self.has_whole_service = true;
                self.want_reconcile(now);
            }
            Input::FilesChanged => self.files_at = earlier(self.files_at, now + self.min_wait),
            Input::HaproxyChanged => {
                self.scope.reobserve = true;
                self.want_reconcile(now);
            }
            // Only the end of a drain depends on this. A changed HAProxy comes as `HaproxyChanged` too.
            Input::HaproxyUnsettled => self.unsettled_at = Some(now),
            Input::TurnsMissed { sections } => {
                self.requeue.get_or_insert_with(|| (now, BTreeSet::new())).1.extend(sections);
            }
            Input::FilesRead { is_usable } => {
                self.beside = None;
                return self.on_files_read(now, is_usable);
            }
            Input::Finished { end, is_current } => {
                let began_at = self.began_at.take();
                self.is_current = is_current;
                return self.on_finished(now, end, began_at);
            }
            Input::Published(end) => {
                self.beside = None;
                self.publish_pace.end(now, self.delays.publish_rest);
                self.publish_at = self.publish_at.map(|at| self.publish_pace.earliest(at));
                return self.on_published(now, end);
            }
            Input::Restarted { end, is_current } => {
                self.beside = None;
                self.is_current = is_current;
                return self.on_restarted(now, end);
            }
        }
        None
    }

    fn on_finished(&mut self, now: Instant, end: End, began_at: Option<Instant>) -> Option<Effect> {
        match end {
            End::Reconciled { pending, accepts_files } => {
                // From the reconcile's begin: HAProxy may have become another process while it ran.
                self.current_since = began_at.filter(|_| self.is_current).or(self.current_since);
                self.want_rest(now, &pending);
                let is_in_sync = pending.restart.is_none() && accepts_files && !self.lacks_files;
                let is_whole_service = std::mem::take(&mut self.takes_whole_service);
                self.want_restart(now, pending.restart, pending.unreachable, is_whole_service);
                return is_in_sync.then_some(Effect::InSync);
            }
            End::ServersRemoved(pending) => self.want_rest(now, &pending),
            End::Requeued => {}
            End::RequeueRefused => self.want_reconcile(now),
            End::Failed => return self.on_failed(now, false),
        }
        None
    }

    fn on_restarted(&mut self, now: Instant, end: RestartEnd) -> Option<Effect> {
        // A reconcile that ran meanwhile found the old process in need of a restart. Another one finds out what the new one needs.
        let is_wanted_again = self.restart.take().is_some();
        match end {
            RestartEnd::Restarted => {
                self.count_restart(now);
                // The old process may still listen. Until it doesn't, servers can't be removed from it.
                self.want_server_removal(now);
                if is_wanted_again {
                    self.want_reconcile(now);
                }
                (!is_wanted_again && !self.lacks_files).then_some(Effect::InSync)
            }
            // The operator's start of HAProxy is an input of its own.
            RestartEnd::Stopped => Some(Effect::OutOfSync),
            RestartEnd::PartRejected => {
                // HAProxy may have found this by a restart that failed.
                self.count_restart(now);
                self.want_everything(now);
                None
            }
            RestartEnd::Failed => self.on_failed(now, true),
        }
    }

    /// A reconcile follows in any case. It applies the files that can be used.
    fn on_files_read(&mut self, now: Instant, is_usable: bool) -> Option<Effect> {
        self.lacks_files = !is_usable;
        (self.scope.files_read, self.scope.resolve_all) = (true, true);
        let effect = if is_usable { None } else { self.on_failed(now, false) };
        // `--min-wait` has passed before the files were read.
        self.want_reconcile_at(now, now);
        effect
    }

    fn on_published(&mut self, now: Instant, end: PublishEnd) -> Option<Effect> {
        match end {
            PublishEnd::UpToDate => {
                let is_busy = self.restart.is_some() || self.began_at.is_some() || self.is_reload_due();
                if is_busy || self.scope.reobserve {
                    return None;
                }
                self.failures = 0;
                Some(Effect::Rest)
            }
            PublishEnd::PartRejected => {
                self.want_everything(now);
                None
            }
            // The observer of the files says when it is over.
            PublishEnd::Blocked => None,
            PublishEnd::Failed => self.on_failed(now, false),
        }
    }

    /// The failed action is tried again. A restart is not tried more often than one that succeeds.
    fn on_failed(&mut self, now: Instant, is_restart: bool) -> Option<Effect> {
        // The failed action may have consumed these inputs. Process them again.
        (self.scope.reobserve, self.scope.resolve_all) = (true, true);
        let delay = RETRIES.delay_after(self.failures);
        self.failures = self.failures.saturating_add(1);
        if is_restart {
            self.earliest_restart_at = Some(now + delay.max(self.restart_interval));
        }
        self.files_at = earlier(self.files_at, now + delay);
        self.reconcile_at = earlier(self.reconcile_at, now + delay);
        Some(Effect::OutOfSync)
    }

    /// Schedules a reconcile. It doesn't wait for the delay after a failure: the change may be the remedy.
    fn want_reconcile(&mut self, now: Instant) {
        self.want_reconcile_at(now, now + self.min_wait);
    }

    fn want_reconcile_at(&mut self, now: Instant, at: Instant) {
        self.reconcile_at = earlier(self.reconcile_at, at);
        if let Some(restart) = self.restart.as_mut().filter(|restart| !restart.is_complete) {
            let quiet = now + self.min_wait + self.delays.quiet;
            restart.at = restart.at.max(quiet.min(restart.since + self.delays.quiet_at_most));
        }
    }

    /// Schedules a reconcile of all services. HAProxy's verdict changed what is desired of some of them.
    fn want_everything(&mut self, now: Instant) {
        (self.scope.resolve_all, self.scope.reobserve) = (true, true);
        self.want_reconcile(now);
    }

    /// Schedules a restart, or takes the one that waits back. The operator or supervisord may be about to start a HAProxy that
    /// doesn't answer. A service that one transaction wrote waits for no further keys, if this is the first restart after a
    /// quiet time. The next ones wait, so that a script that writes service after service takes few restarts.
    fn want_restart(&mut self, now: Instant, reason: Option<String>, unreachable: bool, is_whole_service: bool) {
        let is_first = self.restart.is_none() && self.restarts_paid_until.is_none_or(|paid| paid <= now);
        let is_complete = self.restart.as_ref().map_or(is_whole_service && is_first, |restart| restart.is_complete);
        let delay = match (unreachable, is_complete) {
            (true, _) => self.delays.unreachable,
            (false, true) => Duration::ZERO,
            (false, false) => self.delays.quiet,
        };
        let soon = now + delay;
        let earliest = self.earliest_restart_at.map_or(soon, |earliest| earliest.max(soon));
        let waits = self.restart.as_ref().map(|restart| (restart.at, restart.since));
        self.restart = reason.map(|reason| WantedRestart {
            reason,
            // A reconcile in between doesn't put off a restart that waits. Only a change does, in `want_reconcile`.
            at: earlier(waits.map(|(at, _)| at), earliest).unwrap_or(earliest),
            since: waits.map_or(now, |(_, since)| since),
            is_complete,
        });
    }

    /// Schedules what an action left besides a restart.
    fn want_rest(&mut self, now: Instant, pending: &Pending) {
        if pending.file {
            // Later changes don't put the file off, or a steady stream of them would keep it from the disk.
            self.publish_at.get_or_insert(self.publish_pace.earliest(now + self.delays.publish));
        }
        if pending.removals {
            self.want_server_removal(now);
        }
    }

    fn want_server_removal(&mut self, now: Instant) {
        self.remove_servers_at = self.delays.remove_servers.map(|delay| now + delay);
    }

    fn count_restart(&mut self, now: Instant) {
        // Each restart costs one interval, and SPARE_RESTARTS of them may be owed. A quiet time pays the debt.
        let paid_until = self.restarts_paid_until.map_or(now, |paid| paid.max(now)) + self.restart_interval;
        self.restarts_paid_until = Some(paid_until);
        self.earliest_restart_at = paid_until.checked_sub(self.restart_interval * SPARE_RESTARTS);
        self.failures = 0;
    }

    /// Local files are known to have changed, and no reconcile has applied them yet.
    pub fn is_reload_due(&self) -> bool {
        self.files_at.is_some() || self.beside == Some(Beside::ReadFiles) || self.scope.files_read
    }

    /// A change over the Runtime API is in progress.
    pub fn is_acting(&self) -> bool {
        self.began_at.is_some()
    }

    /// An action that waits for another program is in progress.
    pub fn is_waiting_beside(&self) -> bool {
        self.beside.is_some()
    }

    /// HAProxy runs all that the last action was given, no action is in progress, and no service waits to be resolved again.
    pub fn is_current(&self) -> bool {
        self.is_current && self.began_at.is_none() && !self.scope.resolve_all
    }

    /// Since HAProxy was last unsettled, a reconcile has observed that HAProxy is current.
    pub fn is_confirmed(&self) -> bool {
        self.current_since >= self.unsettled_at
    }
}

fn earlier(at: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(at.map_or(other, |at| at.min(other)))
}

#[cfg(test)]
mod tests;
