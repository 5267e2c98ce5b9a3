//! An announcement that lives as long as its announcer: the only loop that decides, and the only `select!`.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context;
use daemon::{shutdown::Shutdown, systemd};
use registry::Client;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep,
};

use crate::admin::{Port, StatusSources};
use crate::balancers::reception::{KeyStatusPoller, RefusalLog};
use crate::balancers::wait;
use crate::child::RunningApp;
use crate::config::upstream::Upstream;
use crate::config::{Config, RunParameters};
use crate::health::Health;
use crate::health_loop::{HealthLoop, find_address_once};
use crate::lease::Lease;
use crate::message::Message;
use crate::processes::reaper::Reaper;
use crate::record::Record;
use crate::registrar::Registrar;
use crate::state::{Action, Event, State};
use crate::status::heartbeat::Heartbeat;
use crate::status::metrics::CheckCounters;
use crate::status::{KeyStatus, LoopStatus, heartbeat};
use crate::withdraw::{DRAIN_WRITE_LIMIT, HASTY_WITHDRAW_LIMIT, WITHDRAW_LIMIT};
use crate::{child, state, withdraw};

/// Runs the app, if there is one, and announces it until told to stop. Returns the exit status.
pub(crate) async fn run_announcer(config: Config, mut life: RunParameters, shutdown: &Shutdown) -> anyhow::Result<u8> {
    let reaper = Reaper::start().context("signals can't be handled")?;
    let mut addresses = Vec::new();
    for upstream in &config.upstreams {
        addresses.push(find_address_once(&upstream.address_source, config.etcd.endpoints()).await?);
    }
    let admin = Port::bind(life.admin.take()).await?;
    let (reports, inbox) = mpsc::channel(16);
    let child =
        life.app.as_ref().map(|app| child::start_app(app, &life.stop_on, &reaper, reports.clone())).transpose()?;
    let lease = Lease::keep_alive(Client::new(config.etcd.clone()), life.ttl);
    let (checked, mut watches) = (CheckCounters::default(), JoinSet::new());
    for (index, (upstream, address)) in config.upstreams.iter().zip(addresses).enumerate() {
        let (upstream, reports) = (upstream.clone(), reports.clone());
        let checked = checked.for_upstream(&upstream);
        let watch =
            HealthLoop { index, upstream, address, runs_app: child.is_some(), counters: checked, messages: reports };
        watches.spawn(watch.run(config.etcd.endpoints().to_vec(), reaper.clone()));
    }
    let registrar = Registrar::start(lease.clone(), config.upstreams.len(), reports.clone());
    let (shown, now) = watch::channel(LoopStatus::default());
    let reception = watch::Sender::<KeyStatus>::default();
    let pulse = Heartbeat::new(admin.map(|port| {
        let names = config.upstreams.iter().map(Upstream::service_and_id).collect();
        let (beats, reception) = (lease.stats.clone(), reception.subscribe());
        port.start_serving(StatusSources {
            names,
            loop_status: now,
            records: registrar.watch_statuses(),
            ttl: life.ttl,
            lease_stats: beats,
            check_counters: checked,
            key_status: reception,
        })
    }));
    let upstreams = config.upstreams.into_iter().map(|upstream| (upstream, None)).collect();
    let announcer = Announcer {
        life,
        child,
        lease,
        registrar,
        upstreams,
        announcing_tasks: watches,
        state_tasks: JoinSet::new(),
        final_tasks: JoinSet::new(),
        messages: reports,
        blocked_by: None,
        refusals: RefusalLog::default(),
        key_status: Some(reception),
        loop_status: shown,
        first_signal: shutdown.first_signal.clone(),
        exit_status: 0,
    };
    Ok(announcer.run_until_done(inbox, pulse, shutdown).await)
}

/// Everything that actions act on.
struct Announcer {
    life: RunParameters,
    child: Option<RunningApp>,
    lease: Lease,
    registrar: Registrar,
    /// Each with its record, from the first healthy moment on.
    upstreams: Vec<(Upstream, Option<KnownUpstream>)>,
    announcing_tasks: JoinSet<()>,
    /// Waits for balancers; the next state has no use for those of the last.
    state_tasks: JoinSet<()>,
    /// The last writes and the time of what the app has left behind: they go on in the states that follow.
    final_tasks: JoinSet<()>,
    messages: mpsc::Sender<Message>,
    /// What keeps balancers from following, as long as they are waited for.
    blocked_by: Option<String>,
    refusals: RefusalLog,
    /// The way in which the reception of the records is shown. None once the task that looks has it.
    key_status: Option<watch::Sender<KeyStatus>>,
    /// How things stand, for whoever looks.
    loop_status: watch::Sender<LoopStatus>,
    /// The signal that asked for the stop.
    first_signal: Arc<OnceLock<i32>>,
    exit_status: u8,
}

/// What is known of an upstream.
struct KnownUpstream {
    record: Arc<Record>,
    health: Health,
}

impl Announcer {
    async fn run_until_done(
        mut self,
        mut inbox: mpsc::Receiver<Message>,
        mut pulse: Heartbeat,
        shutdown: &Shutdown,
    ) -> u8 {
        let mut state = State::Starting;
        let (mut stopping, mut aborting) = (false, false);
        self.update_status(state);
        while state != State::Done {
            let event = tokio::select! {
                Some(report) = inbox.recv() => self.handle_message(state, report),
                () = shutdown.drain.cancelled(), if !stopping => {
                    stopping = true;
                    Some(Event::Stop)
                }
                () = shutdown.abort.cancelled(), if !aborting => {
                    aborting = true;
                    Some(Event::Abort)
                }
                () = pulse.next_beat() => {
                    pulse.send_beat(state, self.count_not_yet_healthy() == 0);
                    None
                }
            };
            state = self.handle_event(state, event);
        }
        self.exit_status
    }

    /// One event, and what follows from it at once.
    fn handle_event(&mut self, mut state: State, mut next: Option<Event>) -> State {
        while let Some(event) = next {
            let (after, actions) = state::step(state, event);
            tracing::debug!(?state, ?event, ?after, ?actions, "step");
            if after != state {
                self.state_tasks.abort_all();
                self.blocked_by = None;
            }
            next = self.start_actions(state, after, actions);
            if after != state {
                self.update_status(after);
            }
            state = after;
        }
        state
    }

    fn handle_message(&mut self, state: State, report: Message) -> Option<Event> {
        match report {
            Message::Health { upstream, address, health } => {
                let (upstream, known) = self.upstreams.get_mut(upstream)?;
                let record = || Record::new(upstream.announcement.clone(), address, upstream.overwrite_rules);
                known.get_or_insert_with(|| KnownUpstream { record: Arc::new(record()), health }).health = health;
                self.order_records(state);
                self.update_status(state);
                Some(Event::Healthy)
            }
            Message::AppExited(status) => {
                tracing::info!(status, "the app has ended");
                self.exit_status = status;
                Some(Event::AppExited)
            }
            Message::BlockedBy(blocked_by) => {
                self.blocked_by = blocked_by;
                self.update_status(state);
                None
            }
            Message::Event(event) => Some(event),
        }
    }

    /// What the records are to say now, all of them in one order.
    fn order_records(&self, state: State) {
        let known = self.upstreams.iter().filter_map(|(_, known)| known.as_ref());
        let wants: Vec<_> =
            known.filter_map(|known| Some((known.record.clone(), state.want_for_health(known.health)?))).collect();
        if !wants.is_empty() {
            self.registrar.set_wants(wants);
        }
    }

    /// How many upstreams have not worked yet.
    fn count_not_yet_healthy(&self) -> usize {
        self.upstreams.iter().filter(|(_, known)| known.is_none()).count()
    }

    /// Starts what is to be done; nothing here takes time. Returns what happened at once.
    fn start_actions(&mut self, before: State, after: State, actions: &'static [Action]) -> Option<Event> {
        let mut happened = None;
        for action in actions {
            match action {
                Action::Announce => self.order_records(after),
                Action::AwaitBalancers => happened = self.await_balancers(),
                Action::SayReady => {
                    systemd::notify_ready();
                    self.start_key_status_poller();
                }
                Action::Drain => self.start_drain(),
                Action::StopApp => happened = self.stop_app(),
                Action::StopRest => self.stop_leftovers(),
                Action::KillApp => happened = self.kill_app(),
                // The last writes follow each other in one task.
                Action::WriteDown | Action::Delete | Action::Revoke => {}
            }
        }
        if actions.contains(&Action::Revoke) {
            self.start_withdrawal(
                actions,
                if before == State::Killing { HASTY_WITHDRAW_LIMIT } else { WITHDRAW_LIMIT },
            );
        }
        happened
    }

    /// Whoever doesn't wait for balancers has them at once.
    fn await_balancers(&mut self) -> Option<Event> {
        if !self.life.wait_balancers {
            return Some(Event::AllBalancersApplied);
        }
        let (registrar, client, reports) = (self.registrar.clone(), self.lease.client.clone(), self.messages.clone());
        let log = self.refusals.clone();
        self.state_tasks.spawn(async move {
            wait::wait_until_applied(&registrar, &client, &log, &reports).await;
            let _ = reports.send(Message::Event(Event::AllBalancersApplied)).await;
        });
        None
    }

    /// From the first time that all stand until the drain.
    fn start_key_status_poller(&mut self) {
        if let Some(publish) = self.key_status.take() {
            let (registrar, client) = (self.registrar.clone(), self.lease.client.clone());
            self.announcing_tasks
                .spawn(KeyStatusPoller { registrar, client, log: self.refusals.clone(), publish }.poll_forever());
        }
    }

    fn start_drain(&mut self) {
        self.announcing_tasks.abort_all();
        systemd::notify_stopping();
        systemd::extend_timeout(DRAIN_WRITE_LIMIT + self.life.drain + self.longest_stop_time());
        let (registrar, lease, reports) = (self.registrar.clone(), self.lease.clone(), self.messages.clone());
        let limit = self.life.drain;
        self.state_tasks.spawn(async move {
            withdraw::drain_records(&registrar, &lease, limit).await;
            let _ = reports.send(Message::Event(Event::Drained)).await;
        });
    }

    /// An app that something else runs is none of ours to stop: as far as we go, it has ended.
    fn stop_app(&mut self) -> Option<Event> {
        self.announcing_tasks.abort_all();
        let Some((child, app)) = self.child.as_ref().zip(self.life.app.as_ref()) else {
            return Some(Event::AppGone);
        };
        systemd::notify_stopping();
        systemd::extend_timeout(self.longest_stop_time());
        let signal = app.stop_signal(self.first_signal.get().copied());
        tracing::info!(%signal, "stopping the app");
        child.send_stop_signal(signal);
        self.state_tasks.spawn(report_stop_timeout(app.stop_timeout, self.messages.clone()));
        None
    }

    /// Gives the processes that the app's main process has left behind the time that the app would have had.
    fn stop_leftovers(&mut self) {
        let Some((child, app)) = self.child.as_ref().zip(self.life.app.as_ref()) else { return };
        systemd::extend_timeout(self.longest_stop_time());
        child.send_stop_signal(app.stop_signal(self.first_signal.get().copied()));
        self.final_tasks.spawn(report_stop_timeout(app.stop_timeout, self.messages.clone()));
    }

    fn kill_app(&mut self) -> Option<Event> {
        self.announcing_tasks.abort_all();
        let Some(child) = &self.child else { return Some(Event::AppGone) };
        tracing::warn!("killing the app");
        child.kill_all();
        None
    }

    /// What may come after the drain, with a second for good measure.
    fn longest_stop_time(&self) -> Duration {
        let app = self.life.app.as_ref().map_or(Duration::ZERO, |app| app.stop_timeout);
        app + WITHDRAW_LIMIT + Duration::from_secs(1)
    }

    fn start_withdrawal(&mut self, actions: &'static [Action], limit: Duration) {
        self.announcing_tasks.abort_all();
        let (registrar, lease, reports) = (self.registrar.clone(), self.lease.clone(), self.messages.clone());
        self.final_tasks.spawn(async move {
            withdraw::withdraw_records(&registrar, &lease, actions, limit).await;
            let _ = reports.send(Message::Event(Event::Withdrawn)).await;
        });
    }

    fn update_status(&self, state: State) {
        let known = self.upstreams.iter().filter_map(|(_, known)| known.as_ref());
        let keys: Vec<_> = known.map(|known| known.record.key()).collect();
        let words = heartbeat::describe_state(state, &keys, self.count_not_yet_healthy(), self.blocked_by.as_deref());
        let works =
            |(_, known): &(Upstream, Option<KnownUpstream>)| known.as_ref().is_some_and(|known| known.health.is_up());
        let works = self.upstreams.iter().map(works).collect();
        let before = self.loop_status.send_replace(LoopStatus { state, status_line: words.clone(), healthy: works });
        if before.status_line != words {
            systemd::notify_status(&words);
        }
    }
}

async fn report_stop_timeout(time: Duration, reports: mpsc::Sender<Message>) {
    sleep(time).await;
    let _ = reports.send(Message::Event(Event::StopTimeout)).await;
}
