//! The loop of a copy. It feeds `state` with what the store, the run and the clock say, and holds the only `select!` of
//! this folder. It never waits for etcd or the app.

mod report;
mod runs;
mod writes;

use std::time::{Instant, SystemTime};

use daemon::{shutdown::Shutdown, systemd};
use discovery::{HostName, ServiceId, Timestamp, UpstreamId};
use registry::{Committed, FollowOptions, LeaseId};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Duration, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::config::ReplicaOptions;
use crate::lease::Lease;
use crate::processes::tether::Limit;
use crate::retry;
use crate::slots::app::{App, AppEvent};
use crate::slots::choice::{self, Us};
use crate::slots::fence;
use crate::slots::keeper::runs::Run;
use crate::slots::restarts::Restarts;
use crate::slots::state::{Action, Event, State, step};
use crate::slots::tempo::Tempo;
use crate::slots::view::View;
use crate::slots::write::{self, Facts};
use crate::status::SlotStatus;
use crate::status::heartbeat::Heartbeat;
use crate::withdraw::WITHDRAW_LIMIT;

/// Names of a copy in the store.
#[derive(Clone, Debug)]
pub(crate) struct CopyName {
    pub(crate) service: ServiceId,
    /// Id that the copy's record has once it runs.
    pub(crate) id: UpstreamId,
    /// `None` if the host has no good name.
    pub(crate) host: Option<HostName>,
}

/// Channels on which a keeper publishes.
pub(crate) struct Outlets {
    /// Time until when the app may run, for its guard.
    pub(crate) limits: watch::Sender<Limit>,
    /// For the admin port.
    pub(crate) shown: watch::Sender<SlotStatus>,
}

/// A copy's place in its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The copy is all that its process does. Its lease ends with it, and systemd is told how it stands.
    WholeProcess,
    /// Its process has other copies and records under the same lease.
    AmongOthers,
}

/// State of the loop, and the tasks that it started.
pub(crate) struct Keeper<A> {
    app: A,
    options: ReplicaOptions,
    lease: Lease,
    view: View,
    us: Us,
    facts: Facts,
    outlets: Outlets,
    place: Place,
    state: State,
    tempo: Tempo,
    restarts: Restarts,
    /// Number of runs so far.
    run_count: u64,
    /// `None` while no app runs.
    run: Option<Run>,
    /// Lease that the slot of the current run was taken under.
    held_lease: Option<LeaseId>,
    /// At most one, so that every write is planned on a view that shows the one before.
    writes: JoinSet<Result<Committed, registry::Error>>,
    /// No write before this time, after one that failed.
    write_after: Option<Instant>,
    write_delays: Box<dyn Iterator<Item = Duration> + Send>,
    is_write_failing: bool,
    releases: JoinSet<()>,
    /// End of the pause or of the wait that the state has. `None` if it has none.
    state_end: Option<Instant>,
    /// True if another program has asked for the stop, and does it.
    is_stop_awaited: bool,
    exit_status: u8,
    is_ready_said: bool,
    /// Time since when another lease has this copy's id. `None` while none has.
    conflict_since: Option<Instant>,
    is_conflict_logged: bool,
    /// Line that systemd has. `None` if the run has written another one since.
    status_line: Option<String>,
}

impl<A: App> Keeper<A> {
    pub(crate) fn new(name: CopyName, options: ReplicaOptions, lease: Lease, outlets: Outlets, app: A) -> Self {
        let us = Us {
            id: name.id,
            replicas: options.count,
            has_fence: options.has_fence,
            lease: None,
            last_slot: None,
            given_up: None,
            since: None,
        };
        let facts = Facts {
            service: name.service.clone(),
            host: name.host,
            prefer: options.prefer,
            standing_since: Timestamp::from_time(SystemTime::now()),
            rests_until: None,
        };
        Self {
            app,
            options,
            lease,
            view: View::new(name.service),
            us,
            facts,
            outlets,
            place: Place::WholeProcess,
            state: State::StandingBy,
            tempo: Tempo::default(),
            restarts: Restarts::new(options.max_restarts),
            run_count: 0,
            run: None,
            held_lease: None,
            writes: JoinSet::new(),
            write_after: None,
            write_delays: Box::new(retry::store_delays()),
            is_write_failing: false,
            releases: JoinSet::new(),
            state_end: None,
            is_stop_awaited: false,
            exit_status: 0,
            is_ready_said: false,
            conflict_since: None,
            is_conflict_logged: false,
            status_line: None,
        }
    }

    /// Shares the lease with other copies and records. An app that runs already, since this time, seeks a slot.
    pub(crate) fn among_others(mut self, running_since: Option<Timestamp>) -> Self {
        self.place = Place::AmongOthers;
        if running_since.is_some() {
            // It may be a successor that an earlier process started. Without a promise, this state seeks any slot.
            (self.state, self.us.since) = (State::Succeeding, running_since);
            self.start_run();
        }
        self
    }

    /// Runs until [`State::Done`]. Returns the exit status.
    pub(crate) async fn run_until_done(
        mut self,
        mut inbox: mpsc::Receiver<AppEvent>,
        mut heartbeat: Heartbeat,
        shutdown: &Shutdown,
    ) -> u8 {
        let folder = self.facts.service.folder_path();
        let (first, last) = (format!("{folder}slots"), format!("{folder}standby"));
        let end = CancellationToken::new();
        let client = self.lease.client.clone();
        // An agent has a keeper for each container with a slot.
        let options = FollowOptions { shares_stream: true, ..FollowOptions::default() };
        let mut events = client.follow_folders(&first, &last, options, end.clone());
        let _ends_with_us = end.drop_guard();
        let (mut lease_id, mut lease_stats) = (self.lease.id.clone(), self.lease.stats.clone());
        // A lease that others share may be there already.
        self.us.lease = *lease_id.borrow_and_update();
        let (mut stopping, mut aborting) = (false, false);
        let mut due = self.advance();
        while self.state != State::Done {
            tokio::select! {
                Some(event) = events.recv() => self.apply_store_event(&event),
                Ok(()) = lease_id.changed() => self.us.lease = *lease_id.borrow_and_update(),
                Ok(()) = lease_stats.changed(), if self.options.has_fence => {}
                Some(written) = self.writes.join_next() => if let Ok(written) = written {
                    self.end_write(written);
                },
                Some(_) = self.releases.join_next() => self.apply(Event::Released),
                Some(event) = inbox.recv() => self.apply_app_event(event),
                () = shutdown.drain.cancelled(), if !stopping => {
                    stopping = true;
                    if self.place == Place::WholeProcess {
                        systemd::notify_stopping();
                    }
                    self.apply(Event::Stop);
                }
                () = shutdown.abort.cancelled(), if !aborting => {
                    aborting = true;
                    self.apply(Event::Abort);
                }
                // `select!` evaluates the expression even if its condition is false.
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
                () = heartbeat.next_beat() => heartbeat.send_beat(self.is_start_waiting()),
            }
            due = self.advance();
        }
        self.exit_status
    }

    /// Applies one event, and carries its actions out. An action takes no time itself.
    fn apply(&mut self, event: Event) {
        let (before, (after, actions)) = (self.state, step(self.state, event));
        tracing::debug!(?before, ?event, ?after, ?actions, "step of the copy");
        if after != before {
            self.state = after;
            self.state_end = None;
            self.enter_state(before, event);
        }
        for action in actions {
            match action {
                // `advance` plans these two, with the view that led to the event.
                Action::TakeSlot | Action::ClaimSlot => {}
                // `end_run` has set the pause.
                Action::Pause => {}
                Action::StartApp => self.start_run(),
                Action::OfferSlot => self.offer_slot(),
                Action::StopApp => self.stop_run(),
                Action::KillApp => self.kill_run(),
                Action::Release => self.start_release(),
            }
        }
    }

    /// Logs the new state, and sets what the copy's keys tell in it.
    fn enter_state(&mut self, before: State, event: Event) {
        let now = Timestamp::from_time(SystemTime::now());
        let Self { us, view, facts, .. } = self;
        let slot = us.lease.and_then(|lease| view.slot_of(&us.id, lease));
        let after = self.state;
        match (before, after) {
            (_, State::Holding) if event == Event::SlotOurs => {
                self.held_lease = us.lease;
                if let Some((number, _, slot)) = slot {
                    (us.last_slot, us.since) = (Some(number), slot.since.or(Some(now)));
                    tracing::info!(slot = number.get(), replicas = us.replicas.get(), "slot taken");
                }
            }
            (_, State::Succeeding) => {
                us.since = Some(now);
                tracing::info!("starting the app to take an offered slot over");
            }
            (State::Resting, State::StandingBy) => tracing::info!("the pause is over, standing by"),
            (_, State::StandingBy | State::Resting) => {
                (us.since, facts.standing_since) = (None, now);
                if after == State::StandingBy {
                    tracing::info!("standing by");
                }
            }
            (State::Succeeding, State::Seeking) if event == Event::SlotLost => {
                tracing::warn!("the app runs, and no slot is free for it");
            }
            (_, State::Seeking) if event == Event::SlotLost => {
                tracing::warn!("the slot is lost, the app runs on until etcd says if it is one too many");
            }
            (_, State::Yielding) => tracing::warn!("older copies hold all slots, stopping the app"),
            (_, State::Fencing) => tracing::warn!("the lease may end, killing the app (--fence)"),
            (_, State::Offering) => tracing::info!("offering the slot to a copy that stands by"),
            (State::Offering, State::Stopping) => tracing::info!(?event, "the slot is handed over, or nobody takes it"),
            _ => {}
        }
    }

    fn apply_store_event(&mut self, event: &registry::Event) {
        if let registry::Event::Disconnected { error, .. } = event
            && self.view.is_connected()
        {
            tracing::warn!(%error, "can't follow the service's slots, trying again");
        }
        self.view.apply_event(event);
    }

    /// Applies all events that follow from the store and the clock, plans a write, and publishes the status. Returns the
    /// time at which it is due again.
    fn advance(&mut self) -> Option<Instant> {
        let now = Instant::now();
        // An event changes the state, so that each one can follow only once. The bound guards against a mistake in that.
        for _ in 0..8 {
            let Some(event) = self.find_event(now) else { break };
            self.apply(event);
        }
        let opening_due = self.plan_write(now);
        let kill_time = self.run.as_ref().filter(|run| !run.is_killed).and_then(|_| self.kill_time());
        self.publish_limit();
        self.show_status(now);
        let write_time = self.write_after.filter(|after| *after > now);
        let ready_time = self.tempo.settle_time().filter(|time| !self.is_ready_said && *time > now);
        let times = [self.tempo.surplus_time(), self.conflict_time(), opening_due, kill_time, self.state_end];
        times.into_iter().chain([write_time, ready_time]).flatten().min()
    }

    /// Event that follows from the store or the clock. With `--fence`, none starts an app that has to be killed by now.
    fn find_event(&mut self, now: Instant) -> Option<Event> {
        let event = self.find_any_event(now)?;
        if self.options.has_fence { fence::check_start(self.state, event, self.kill_time(), now) } else { Some(event) }
    }

    fn find_any_event(&mut self, now: Instant) -> Option<Event> {
        if self.is_fence_passed(now) {
            return Some(Event::FencePassed);
        }
        // Before the view's other events: a copy that is asked to stop must not seek a slot.
        if self.place == Place::AmongOthers
            && let Some(event) = self.find_shared_event()
        {
            return Some(event);
        }
        let found = choice::find_event(self.state, &self.view, &self.us);
        self.tempo.note_surplus(found == Some(Event::Surplus), now);
        let is_early = self.tempo.surplus_time().is_some_and(|time| now < time);
        match found {
            Some(Event::Surplus) if is_early => return None,
            Some(Event::SlotLost) if self.options.has_fence && self.state.runs_app() => {
                return Some(Event::FencePassed);
            }
            Some(event) => return Some(event),
            None => {}
        }
        self.state_end.filter(|end| now >= *end).map(|_| match self.state {
            State::Offering => Event::HandedOver,
            _ => Event::PauseOver,
        })
    }

    /// Event of a copy that shares its lease. It gives its keys up one by one, since the lease stays. A slot that says
    /// `leaving` without this copy's doing asks for a stop.
    fn find_shared_event(&mut self) -> Option<Event> {
        match self.state {
            State::Releasing => {
                let has_keys = write::plan_repair(self.state, &self.view, &self.us, &self.facts).is_some();
                let is_known = self.writes.is_empty() && self.view.is_current();
                (is_known && !has_keys).then_some(Event::Released)
            }
            State::Holding => {
                let lease = self.us.lease.filter(|_| self.view.is_current())?;
                let (_, _, slot) = self.view.slot_of(&self.us.id, lease)?;
                self.is_stop_awaited = slot.leaving;
                slot.leaving.then_some(Event::Stop)
            }
            _ => None,
        }
    }

    /// Waits for a successor. With `--fence`, no other copy may start before this one has stopped.
    fn offer_slot(&mut self) {
        let options = &self.options;
        let wait = if options.has_fence { Duration::ZERO } else { options.handover };
        self.state_end = Some(Instant::now() + wait);
        if self.place == Place::WholeProcess {
            // The unit's stop timeout doesn't know --handover.
            systemd::extend_timeout(wait + WITHDRAW_LIMIT);
        }
    }

    fn start_release(&mut self) {
        if self.place == Place::AmongOthers {
            // `plan_write` deletes the keys, and `find_shared_event` ends it.
            return;
        }
        let lease = self.lease.clone();
        self.releases.spawn(async move {
            if let Err(error) = lease.revoke(tokio::time::Instant::now() + WITHDRAW_LIMIT).await {
                tracing::warn!(%error, "the slot can't be released, it is taken until its lease ends by itself");
            }
        });
    }
}
