//! Decides which action begins next, and when. HAProxy follows a change at once, haproxy.cfg follows HAProxy, and a restart waits
//! for the last change. Pure: no I/O, no clock. A test prints the whole table to SCHEDULE.md.

mod delays;
mod input;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use registry::Backoff;

use crate::cli::Pacing;
use crate::reconcile::Pending;
use delays::{DAEMON, Delays, ONCE};
pub use input::{Action, Effect, End, Input, PublishEnd, Scope};

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

/// The action in progress.
#[derive(Clone, Copy, Debug)]
struct InProgress {
    is_restart: bool,
    began_at: Instant,
    /// A transaction wrote a service, and this action takes it in.
    takes_whole_service: bool,
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
    restart: Option<WantedRestart>,
    publish_at: Option<Instant>,
    remove_servers_at: Option<Instant>,
    requeue: Option<(Instant, BTreeSet<String>)>,
    in_progress: Option<InProgress>,
    is_publishing: bool,
    earliest_restart_at: Option<Instant>,
    /// The end of the intervals of all restarts so far, one after another.
    restarts_paid_until: Option<Instant>,
    /// Failures since all was well. Each doubles the delay.
    failures: u32,
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
    pub fn new(pacing: &Pacing, scope: Scope) -> Self {
        Self {
            delays: DAEMON,
            min_wait: pacing.min_wait,
            restart_interval: pacing.restart_interval,
            is_store_known: false,
            scope,
            reconcile_at: None,
            has_whole_service: false,
            restart: None,
            publish_at: None,
            remove_servers_at: None,
            requeue: None,
            in_progress: None,
            is_publishing: false,
            earliest_restart_at: None,
            restarts_paid_until: None,
            failures: 0,
            is_current: false,
            current_since: None,
            unsettled_at: None,
        }
    }

    /// The scheduler of `confgen once`: every action is due at once.
    pub fn once() -> Self {
        let pacing = Pacing { min_wait: Duration::ZERO, restart_interval: Duration::ZERO, resync: Duration::MAX };
        Self { delays: ONCE, ..Self::new(&pacing, Scope::default()) }
    }

    /// The next action, and the time when it may begin. `None` while an action is in progress, or before the store is known.
    pub fn next(&self) -> Option<(Instant, Action)> {
        if !self.is_store_known || self.in_progress.is_some() {
            return None;
        }
        let restart = self.restart.as_ref();
        // A restart publishes too, but a restart that has to wait is no reason for a file that lags behind.
        let publish_at = self.publish_at.filter(|at| restart.is_none_or(|restart| restart.at > *at));
        // While a file is written neither a second one nor a restart begins.
        let (restart, publish_at) = if self.is_publishing { (None, None) } else { (restart, publish_at) };
        let requeue = self.requeue.as_ref();
        let actions = [
            self.reconcile_at.map(|at| (at, Action::Reconcile(self.scope))),
            restart.map(|restart| (restart.at, Action::Restart { reason: restart.reason.clone() })),
            publish_at.map(|at| (at, Action::Publish)),
            self.remove_servers_at.map(|at| (at, Action::RemoveServers)),
            requeue.map(|(at, sections)| (*at, Action::RequeueServers { sections: sections.clone() })),
        ];
        // `min_by_key` takes the first of equals, so a change reaches HAProxy before a restart or a file.
        actions.into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// The action begins, with all inputs so far.
    pub fn begin(&mut self, now: Instant, action: &Action) {
        self.check_may_begin(action);
        match action {
            Action::Reconcile(_) => (self.reconcile_at, self.scope) = (None, Scope::default()),
            Action::Restart { .. } => (self.restart, self.publish_at) = (None, None),
            Action::Publish => self.publish_at = None,
            Action::RemoveServers => self.remove_servers_at = None,
            Action::RequeueServers { .. } => self.requeue = None,
        }
        if *action == Action::Publish {
            self.is_publishing = true;
        } else {
            let takes_whole_service =
                matches!(action, Action::Reconcile(_)) && std::mem::take(&mut self.has_whole_service);
            let is_restart = matches!(action, Action::Restart { .. });
            self.in_progress = Some(InProgress { is_restart, began_at: now, takes_whole_service });
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
                // HAProxy is observed with each listing, so that a manual change over the Runtime API lasts until the next one.
                self.scope.reobserve = true;
                self.want_reconcile(now);
            }
            Input::StoreChanged | Input::DayBegan => self.want_reconcile(now),
            Input::ServiceWritten => {
                self.has_whole_service = true;
                self.want_reconcile(now);
            }
            Input::FilesChanged => {
                self.scope.reload_files = true;
                self.want_reconcile(now);
            }
            Input::HaproxyChanged => {
                self.scope.reobserve = true;
                self.want_reconcile(now);
            }
            // Only the end of a drain depends on this. A changed HAProxy comes as `HaproxyChanged` too.
            Input::HaproxyUnsettled => self.unsettled_at = Some(now),
            Input::TurnsMissed { sections } => {
                self.requeue.get_or_insert_with(|| (now, BTreeSet::new())).1.extend(sections);
            }
            Input::FilesUnusable => return self.on_failed(now, false),
            Input::Finished { end, is_current } => {
                let ended = self.in_progress.take();
                self.is_current = is_current;
                return self.on_finished(now, end, ended);
            }
            Input::Published(end) => {
                self.is_publishing = false;
                return self.on_published(now, end);
            }
        }
        None
    }

    fn on_finished(&mut self, now: Instant, end: End, ended: Option<InProgress>) -> Option<Effect> {
        match end {
            End::Reconciled { pending, accepts_files } => {
                // From the reconcile's begin: HAProxy may have become another process while it ran.
                self.current_since =
                    ended.filter(|_| self.is_current).map(|ended| ended.began_at).or(self.current_since);
                self.want_rest(now, &pending);
                let is_in_sync = pending.restart.is_none() && accepts_files;
                let is_whole_service = ended.is_some_and(|ended| ended.takes_whole_service);
                self.want_restart(now, pending.restart, pending.unreachable, is_whole_service);
                return is_in_sync.then_some(Effect::InSync);
            }
            End::ServersRemoved(pending) => self.want_rest(now, &pending),
            End::Requeued => {}
            End::RequeueRefused => self.want_reconcile(now),
            End::Restarted => {
                self.count_restart(now);
                // The old process may still listen. Until it doesn't, servers can't be removed from it.
                self.want_server_removal(now);
                return Some(Effect::InSync);
            }
            // The operator's start of HAProxy is an input of its own.
            End::Stopped => return Some(Effect::OutOfSync),
            End::PartRejected => {
                // HAProxy may have found this by a restart that failed.
                self.count_restart(now);
                self.want_everything(now);
            }
            End::Failed => return self.on_failed(now, ended.is_some_and(|ended| ended.is_restart)),
        }
        None
    }

    fn on_published(&mut self, now: Instant, end: PublishEnd) -> Option<Effect> {
        match end {
            PublishEnd::UpToDate => {
                let Scope { reload_files, reobserve, .. } = self.scope;
                let is_busy = self.restart.is_some() || self.in_progress.is_some() || reload_files || reobserve;
                if is_busy {
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
        self.scope = Scope { reload_files: true, reobserve: true, resolve_all: true };
        let delay = RETRIES.delay_after(self.failures);
        self.failures = self.failures.saturating_add(1);
        if is_restart {
            self.earliest_restart_at = Some(now + delay.max(self.restart_interval));
        }
        self.reconcile_at = earlier(self.reconcile_at, now + delay);
        Some(Effect::OutOfSync)
    }

    /// Schedules a reconcile. It doesn't wait for the delay after a failure: the change may be the remedy.
    fn want_reconcile(&mut self, now: Instant) {
        self.reconcile_at = earlier(self.reconcile_at, now + self.min_wait);
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
            self.publish_at.get_or_insert(now + self.delays.publish);
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

    /// Local files are known to have changed, and no reconcile has read them yet.
    pub fn is_reload_due(&self) -> bool {
        self.scope.reload_files
    }

    /// An action other than `Publish` is in progress.
    pub fn is_acting(&self) -> bool {
        self.in_progress.is_some()
    }

    /// A `Publish` is in progress.
    pub fn is_publishing(&self) -> bool {
        self.is_publishing
    }

    /// HAProxy runs all that the last action was given, no action is in progress, and no service waits to be resolved again.
    pub fn is_current(&self) -> bool {
        self.is_current && self.in_progress.is_none() && !self.scope.resolve_all
    }

    /// Since HAProxy was last unsettled, a reconcile has observed that HAProxy is current.
    pub fn is_confirmed(&self) -> bool {
        self.current_since >= self.unsettled_at
    }

    fn check_invariants(&self, now: Instant) {
        let is_idle = self.in_progress.is_none() && !self.is_publishing;
        debug_assert!(self.is_store_known || is_idle, "an action is in progress before the store is known");
        let is_restarting = self.in_progress.is_some_and(|action| action.is_restart);
        debug_assert!(!(is_restarting && self.is_publishing), "a restart is in progress while haproxy.cfg is written");
        let latest = now + self.min_wait.max(LONGEST_RETRY);
        debug_assert!(
            self.reconcile_at.is_none_or(|at| at <= latest),
            "a reconcile waits longer than the longest retry"
        );
        let is_in_order = self.restart.as_ref().is_none_or(|restart| restart.at >= restart.since);
        debug_assert!(is_in_order, "a restart is due before it was wanted");
    }

    fn check_may_begin(&self, action: &Action) {
        debug_assert!(self.is_store_known, "{action:?} begins before the store is known");
        debug_assert!(self.in_progress.is_none(), "{action:?} begins beside another action");
        let touches_file = matches!(action, Action::Publish | Action::Restart { .. });
        debug_assert!(!(self.is_publishing && touches_file), "{action:?} begins while haproxy.cfg is written");
    }
}

fn earlier(at: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(at.map_or(other, |at| at.min(other)))
}

#[cfg(test)]
mod tests;
