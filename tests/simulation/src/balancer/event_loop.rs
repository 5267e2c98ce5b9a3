//! confgen between two events, in the order of `confgen/src/event_loop/`. The scheduler says what is due.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use confgen::decisions::{
    Action, Changed, DrainContext, DrainTracker, End, Input, OldProcess, Pacing, PublishEnd, RestartEnd, Scheduler,
    SessionCount, Site, Status, StoreReplica, StoreUpdate,
};
use discovery::Change;
use haproxy::runtime::Streams;

use super::publish::{Outcome, Publication, RestartOutcome};
use super::record::RecordKeeper;
use super::{Context, Disk, Reconciler};
use crate::bugs::Bug;
use crate::clock::{Clock, Millis};
use crate::etcd::Etcd;
use crate::follower::{Event, Follower};
use crate::haproxy::SharedHaproxy;
use crate::values::is_rejected_value;

/// confgen observes HAProxy this often.
const OBSERVE_EVERY: Millis = 250;
/// confgen looks for manual changes this often.
const LOOK_EVERY: Millis = 1_000;
/// confgen counts sessions this often while a drain isn't over.
const COUNT_EVERY: Millis = 200;
/// `--resync`.
const RESYNC: Millis = 300_000;

/// An action over the Runtime API that has begun.
enum Acting {
    Reconcile { update: Box<StoreUpdate>, reobserve: bool, only_rejected: bool },
    RemoveServers,
    Requeue(std::collections::BTreeSet<String>),
}

/// An action beside those.
enum Beside {
    Publish(Box<Publication>),
    /// HAProxy has judged the file for a restart.
    Restart(Box<Publication>),
    /// HAProxy is being restarted. Reconciles go on.
    Restarting(Box<Publication>),
}

/// What the observer saw of HAProxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Observation {
    running: Option<(u32, String)>,
    process: Option<(u32, Instant)>,
    old_process_listens: bool,
}

/// The process confgen.
pub struct Confgen {
    pub replica: StoreReplica,
    pub follower: Follower,
    pub reconciler: Reconciler,
    pub scheduler: Scheduler,
    pub drains: DrainTracker,
    pub status: Status,
    pub record: RecordKeeper,
    acting: Option<Acting>,
    beside: Option<Beside>,
    observation: Observation,
    observed_at: Millis,
    looked_at: Millis,
    counted_at: Millis,
    listed_at: Millis,
    /// By pid, when a count first found that the process is old.
    old_processes: BTreeMap<u32, Instant>,
    published_at: Instant,
    published_meanwhile: Option<i64>,
    reconciled_revision: i64,
    store_is_away: bool,
    has_only_rejected_keys: bool,
}

impl Confgen {
    pub(super) fn start(
        haproxy: &SharedHaproxy,
        disk: &Disk,
        site: &Rc<Site>,
        follower: Follower,
        instance: String,
        clock: Clock,
    ) -> Self {
        let (good, mut store) = disk.lock().state.clone().unwrap_or_default();
        let mut reconciler = Reconciler::new(haproxy, disk, site, good);
        let (kept, lost) = (std::mem::take(&mut store.kept), std::mem::take(&mut store.lost));
        reconciler.guard.restore_persisted(clock.now(), clock.wall(), kept, lost);
        for service in reconciler.guard.services_with_retained() {
            reconciler.desired.set_retained(&service, reconciler.guard.retained_of(&service));
        }
        if store.position.is_some() {
            reconciler.desired.set_policy(Default::default());
            reconciler.desired.assume_topology(&store.clone().into_topology());
        }
        let pacing = Pacing {
            min_wait: Duration::ZERO,
            restart_interval: Duration::from_secs(2),
            resync: Duration::from_millis(RESYNC),
        };
        Self {
            replica: StoreReplica::from_persisted(store),
            follower,
            reconciler,
            scheduler: Scheduler::new(&pacing),
            drains: DrainTracker::default(),
            status: Status::default(),
            record: RecordKeeper::new(instance, disk.lock().leases.clone()),
            acting: None,
            beside: None,
            observation: Observation::default(),
            observed_at: 0,
            looked_at: clock.millis(),
            counted_at: 0,
            listed_at: clock.millis(),
            old_processes: BTreeMap::new(),
            published_at: clock.now(),
            published_meanwhile: None,
            reconciled_revision: 0,
            store_is_away: false,
            has_only_rejected_keys: true,
        }
    }

    /// Takes in the next event of the store.
    pub fn deliver(&mut self, etcd: &Etcd, most: usize, cut: bool, context: Context<'_>) {
        let event = if context.clock.millis() - self.listed_at >= RESYNC {
            self.follower.list(etcd)
        } else {
            self.follower.next_event(etcd, most, cut, context.bug)
        };
        match event {
            Event::Nothing => return,
            Event::Snapshot(snapshot) => {
                self.listed_at = context.clock.millis();
                self.replica.set_listing_time(context.clock.wall());
                self.replica.apply_listing(snapshot);
                self.has_only_rejected_keys = false;
                self.schedule(Input::StoreListed, context);
            }
            Event::Changes(revision, changes) => {
                self.has_only_rejected_keys &= changes.iter().all(is_rejected_change);
                if self.replica.apply_changes(revision, &changes) {
                    self.schedule(Input::from_changes(&changes), context);
                }
            }
            Event::Disconnected => {
                self.store_is_away = true;
                if self.replica.use_persisted() {
                    self.has_only_rejected_keys = false;
                    self.schedule(Input::StoreListed, context);
                }
                return;
            }
        }
        self.replica.take_reset_events();
        (self.status.seen, self.store_is_away) = (self.replica.store_revision(), false);
        self.advance_applied();
    }

    fn schedule(&mut self, input: Input, context: Context<'_>) {
        self.scheduler.on(context.clock.now(), input);
    }

    /// HAProxy needs no action for changes that concern no service, so they count as applied.
    fn advance_applied(&mut self) {
        if !self.scheduler.is_current() || self.replica.has_unseen_changes() {
            return;
        }
        let applied = Some(self.replica.store_revision());
        if self.status.reconcile.applied != applied {
            Arc::make_mut(&mut self.status.reconcile).applied = applied;
        }
    }

    /// Does what is due: one observation, one count, the end of what is in progress, and the begin of the next action. Returns what
    /// it did, for the log.
    pub(super) fn run_due_work(
        &mut self,
        etcd: &mut Etcd,
        client: usize,
        node: &str,
        context: Context<'_>,
    ) -> Vec<String> {
        let mut log = Vec::new();
        self.observe(context);
        self.count_sessions(context);
        self.look_for_manual_changes(context, &mut log);
        // An action takes time: things happen between its begin and its end.
        self.end_acting(context, &mut log);
        self.go_on_beside(context, &mut log);
        self.begin_next(context, &mut log);
        if context.roll & 1 == 0 {
            self.end_acting(context, &mut log);
        }
        self.record.write_if_needed(&self.status, etcd, client, node, &self.reconciler.disk, context.clock);
        log
    }

    fn begin_next(&mut self, context: Context<'_>, log: &mut Vec<String>) {
        let now = context.clock.now();
        let Some((_, action)) = self.scheduler.next().filter(|(at, _)| *at <= now) else { return };
        self.scheduler.begin(now, &action);
        log.push(format!("begins {action:?}"));
        match action {
            Action::Publish => self.beside = Some(Beside::Publish(Box::new(self.reconciler.publication(context)))),
            Action::Restart { .. } => {
                self.published_meanwhile = None;
                self.beside = Some(Beside::Restart(Box::new(self.reconciler.publication_for_restart(context))));
            }
            Action::Reconcile(scope) => {
                self.published_meanwhile = None;
                let Some(mut update) = self.replica.take_update() else { return };
                if scope.resolve_all {
                    update.changed = Changed::All;
                }
                let (update, reobserve) = (Box::new(update), scope.reobserve);
                let only_rejected = std::mem::replace(&mut self.has_only_rejected_keys, true);
                self.acting = Some(Acting::Reconcile { update, reobserve, only_rejected });
            }
            Action::RemoveServers => self.acting = Some(Acting::RemoveServers),
            Action::RequeueServers { sections } => self.acting = Some(Acting::Requeue(sections)),
            // The simulation changes no local file.
            Action::ReadFiles => self.schedule(Input::FilesRead { is_usable: true }, context),
        }
    }

    fn end_acting(&mut self, context: Context<'_>, log: &mut Vec<String>) {
        let Some(acting) = self.acting.take() else { return };
        let end = match acting {
            Acting::Reconcile { update, reobserve, only_rejected } => {
                if reobserve {
                    self.reconciler.control.observe_again();
                }
                self.reconciler.has_only_rejected_keys = only_rejected;
                let pending = self.reconciler.apply_runtime(&update, context);
                pending.map(|pending| End::Reconciled { pending, accepts_files: true })
            }
            Acting::RemoveServers => self.reconciler.remove_servers(context).map(End::ServersRemoved),
            Acting::Requeue(sections) => match self.reconciler.control.requeue_sections(&sections) {
                Ok(true) => Ok(End::Requeued),
                Ok(false) => Ok(End::RequeueRefused),
                Err(error) => Err(super::reconciler::words(error)),
            },
        };
        let end = end.unwrap_or_else(|error| {
            log.push(format!("fails: {error}"));
            End::Failed
        });
        log.push(format!("ends {end:?}"));
        let is_current = self.reconciler.is_current();
        self.schedule(Input::Finished { end, is_current }, context);
        self.update_status(context);
    }

    fn go_on_beside(&mut self, context: Context<'_>, log: &mut Vec<String>) {
        match self.beside.take() {
            None => {}
            Some(Beside::Publish(publication)) => {
                let end = self.end_publish(&publication, context);
                log.push(format!("publishes: {end:?}"));
                self.schedule(Input::Published(end), context);
            }
            // The reconciler does one thing at a time.
            Some(beside) if self.acting.is_some() => self.beside = Some(beside),
            Some(Beside::Restart(publication)) => {
                let written = self.reconciler.write(&publication);
                match written.and_then(|outcome| self.reconciler.begin_restart(&publication, &outcome, context)) {
                    Ok(None) => self.beside = Some(Beside::Restarting(publication)),
                    outcome => {
                        let outcome = outcome.map(|outcome| outcome.unwrap_or(RestartOutcome::InSync));
                        self.on_restarted(&outcome, context, log);
                    }
                }
            }
            Some(Beside::Restarting(publication)) => {
                // Half of the restarts take the servers' states over.
                let is_started = self.reconciler.haproxy.lock().restart(context.roll & 2 == 0);
                let outcome = self.reconciler.end_restart(&publication, is_started, context);
                self.on_restarted(&outcome, context, log);
            }
        }
    }

    fn on_restarted(&mut self, outcome: &Result<RestartOutcome, String>, context: Context<'_>, log: &mut Vec<String>) {
        log.push(format!("restart: {outcome:?}"));
        let end = match outcome {
            Ok(RestartOutcome::InSync | RestartOutcome::Restarted) => RestartEnd::Restarted,
            Ok(RestartOutcome::Rejected) => RestartEnd::PartRejected,
            Ok(RestartOutcome::NotLive) | Err(_) => RestartEnd::Failed,
        };
        let is_current = self.reconciler.is_current();
        self.schedule(Input::Restarted { end, is_current }, context);
        self.update_status(context);
    }

    fn end_publish(&mut self, publication: &Publication, context: Context<'_>) -> PublishEnd {
        let Ok(outcome) = self.reconciler.write(publication) else { return PublishEnd::Failed };
        if self.reconciler.on_published(publication, &outcome).is_err() {
            return PublishEnd::Failed;
        }
        if outcome != Outcome::Written {
            return PublishEnd::PartRejected;
        }
        let revision = publication.store_revision.revision;
        self.published_at = context.clock.now();
        self.published_meanwhile = Some(revision);
        Arc::make_mut(&mut self.status.reconcile).published = revision;
        PublishEnd::UpToDate
    }

    fn update_status(&mut self, context: Context<'_>) {
        let now = context.clock.now();
        let mut status = self.reconciler.to_status();
        status.published = self.published_meanwhile.unwrap_or(status.published);
        self.reconciled_revision = self.reconciler.store_revision.revision;
        if self.reconciler.is_current() {
            let leaving = self.reconciler.leaving_upstreams();
            self.drains.update_drains(now, &status.desired, self.reconciled_revision, &leaving);
        }
        if self.status.reconcile.published != status.published {
            self.published_at = now;
        }
        self.status.reconcile = Arc::new(status);
        self.status.has_reconciled = true;
        self.show_drains();
        self.advance_applied();
    }

    fn show_drains(&mut self) {
        self.status.draining = Arc::new(self.drains.open_drains());
        self.status.drains_ended = self.drains.count_ended();
    }

    fn observe(&mut self, context: Context<'_>) {
        if context.clock.millis() - self.observed_at < OBSERVE_EVERY || context.has(Bug::IgnoreOtherProcess) {
            return;
        }
        self.observed_at = context.clock.millis();
        let haproxy = self.reconciler.haproxy.lock();
        let running = haproxy.running.as_ref().map(|process| (process.pid, process.generation.clone()));
        let now = context.clock.now();
        let last = std::mem::take(&mut self.observation);
        let process = match (&running, last.process) {
            (None, last) => last,
            (Some((pid, _)), Some((known, since))) if *pid == known => Some((known, since)),
            (Some((pid, _)), None) => {
                let started = haproxy.running.as_ref().map_or(0, |process| process.started);
                let age = context.clock.millis() - started;
                Some((*pid, now.checked_sub(Duration::from_millis(age)).unwrap_or(now)))
            }
            (Some((pid, _)), Some(_)) => Some((*pid, now)),
        };
        let may_share = last.old_process_listens || process != last.process;
        let old_process_listens = may_share && haproxy.is_another_listening();
        drop(haproxy);
        let listens_alone = last.old_process_listens && !old_process_listens;
        let is_unsettled = process != last.process || old_process_listens || listens_alone;
        let is_other = running != last.running || listens_alone;
        self.observation = Observation { running, process, old_process_listens };
        if is_unsettled {
            self.schedule(Input::HaproxyUnsettled, context);
        }
        if is_other {
            self.schedule(Input::HaproxyChanged, context);
        }
    }

    fn look_for_manual_changes(&mut self, context: Context<'_>, log: &mut Vec<String>) {
        let is_due = context.clock.millis() - self.looked_at >= LOOK_EVERY;
        if !is_due || self.acting.is_some() || context.has(Bug::IgnoreManualChanges) {
            return;
        }
        self.looked_at = context.clock.millis();
        let Some(look) = self.reconciler.control.begin_drift_look() else { return };
        let Ok(answers) = look.ask() else { return };
        if self.reconciler.control.judge_drift(answers).is_some_and(|check| check.is_found) {
            log.push("finds a manual change".to_owned());
            self.schedule(Input::HaproxyChanged, context);
        }
    }

    fn count_sessions(&mut self, context: Context<'_>) {
        let is_due = context.clock.millis() - self.counted_at >= COUNT_EVERY;
        if !is_due || self.drains.draining_services().is_empty() {
            return;
        }
        self.counted_at = context.clock.millis();
        let count = self.collect_sessions(context);
        let published = self.status.reconcile.published;
        let context = DrainContext {
            published_revision: if published <= self.reconciled_revision { published } else { 0 },
            published_at: self.published_at,
            process: self.observation.process,
            is_confirmed: self.scheduler.is_confirmed(),
        };
        self.drains.apply_count(&count, context);
        self.show_drains();
    }

    fn collect_sessions(&mut self, context: Context<'_>) -> SessionCount {
        let haproxy = self.reconciler.haproxy.lock();
        let at = context.clock.now();
        let mut count = SessionCount {
            at,
            pid: haproxy.running.as_ref().map(|process| process.pid),
            sessions: BTreeMap::new(),
            old_processes: Vec::new(),
            silent_since: None,
            is_blind: false,
            // Both processes listen for an instant, and the old one hasn't been told to finish yet.
            is_complete: !haproxy.is_another_listening(),
        };
        let old = haproxy.old.iter().filter(|_| !context.has(Bug::ForgetOldProcesses));
        for process in haproxy.running.iter().chain(old) {
            let mut streams = Streams { connections: process.connections.len() as u64, ..Streams::default() };
            for connection in &process.connections {
                let Some(stream) = &connection.stream else {
                    streams.idle += 1;
                    continue;
                };
                *count.sessions.entry((stream.backend.clone(), stream.server.clone())).or_default() += 1;
                if !stream.is_answered {
                    *streams.undecided.entry(stream.backend.clone()).or_default() += 1;
                }
            }
            if process.stopped_at.is_some() {
                let since = *self.old_processes.entry(process.pid).or_insert(at);
                count.old_processes.push(OldProcess { since: Some(since), streams: Some(streams) });
            }
        }
        count
    }

    /// The time of the next work that is no periodic look. `None` while something is in progress.
    pub fn next_due(&self, clock: Clock) -> Option<Millis> {
        if self.acting.is_some() || self.beside.is_some() {
            return Some(clock.millis());
        }
        let drains = (!self.drains.draining_services().is_empty()).then_some(self.counted_at + COUNT_EVERY);
        // While an upstream is retained, confgen asks for its health, and no timer ends that.
        let only_asks = self.reconciler.control.leaving_servers().is_empty();
        let action = self.scheduler.next().filter(|(_, action)| !(only_asks && *action == Action::RemoveServers));
        let action = action.map(|(at, _)| clock.millis_of(at).max(clock.millis()));
        action.into_iter().chain(drains).min()
    }
}

fn is_rejected_change(change: &Change) -> bool {
    match change {
        // A first value that can't be read may free claims: the service has no `path`, and so no route, until it can be read.
        Change::Put(entry) => {
            let replaces = entry.create_revision < entry.mod_revision;
            (is_rejected_value(&entry.value) && replaces) || entry.key.starts_with("balancers/")
        }
        Change::Delete { key, .. } => key.starts_with("balancers/"),
    }
}
