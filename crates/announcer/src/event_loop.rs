//! The announcer's event loop. It feeds `state` with what the tasks report, and holds the only `select!`. It never
//! waits for etcd or the app.

pub(crate) mod copy;
mod known_upstream;
pub(crate) mod surroundings;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use daemon::{shutdown::Shutdown, systemd};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::admin::{Port, RunSources};
use crate::balancers::key_status::{KeyStatusPoller, RefusalLog};
use crate::balancers::wait;
use crate::child::RunningApp;
use crate::config::upstream::Upstream;
use crate::config::{Config, RunParameters};
use crate::event_loop::known_upstream::KnownUpstream;
use crate::event_loop::surroundings::Surroundings;
use crate::health::Health;
use crate::health_loop::{HealthLoop, find_address_once};
use crate::lease::Lease;
use crate::registrar::Registrar;
use crate::state::message::Message;
use crate::state::{Action, Event, State};
use crate::status::heartbeat::Heartbeat;
use crate::status::{KeyStatus, LoopStatus, heartbeat};
use crate::withdraw::{DRAIN_WRITE_LIMIT, HASTY_WITHDRAW_LIMIT, WITHDRAW_LIMIT};
use crate::{child, state, withdraw};

/// Runs the app, if there is one, and announces it until a stop signal. Returns the exit status.
pub(crate) async fn run_announcer(
    config: Config,
    mut parameters: RunParameters,
    shutdown: &Shutdown,
) -> anyhow::Result<u8> {
    let surroundings = Surroundings::new(&config, shutdown.drain.clone())?;
    // Before the app starts: a port that is in use must not cost a start.
    let admin = Port::bind(parameters.admin.take()).await?;
    let heartbeat =
        Heartbeat::new(admin.map(|port| port.start_serving(surroundings.status_sources(&config, parameters.ttl))));
    run_once(&config, Arc::new(parameters), &surroundings, heartbeat, shutdown).await
}

/// One run of the app, from its start to the withdrawal of its records. Returns the exit status.
pub(crate) async fn run_once(
    config: &Config,
    parameters: Arc<RunParameters>,
    surroundings: &Surroundings,
    heartbeat: Heartbeat,
    shutdown: &Shutdown,
) -> anyhow::Result<u8> {
    let Surroundings { reaper, client, check_counters, sources, process_stop, limits } = surroundings;
    let mut addresses = Vec::new();
    for upstream in &config.upstreams {
        // Before the app starts: an address that can never be found must not cost a start.
        addresses.push(find_address_once(&upstream.address_source, config.etcd.endpoints()).await?);
    }
    // Nothing awaits from here to the app's start, so that a stop, or a fence that has passed, is not overtaken by it.
    if shutdown.drain.is_cancelled() && limits.is_some() {
        return Ok(0);
    }
    let (messages, inbox) = mpsc::channel(16);
    let app = parameters
        .app
        .as_ref()
        .map(|app| child::start_app(app, &parameters.stop_on, reaper, limits.clone(), messages.clone()))
        .transpose()?;
    let lease = Lease::keep_alive(client.clone(), parameters.ttl);
    let mut announcing_tasks = JoinSet::new();
    for (index, (upstream, address)) in config.upstreams.iter().zip(addresses).enumerate() {
        let counters = check_counters.for_upstream(upstream);
        let (upstream, messages) = (upstream.clone(), messages.clone());
        let health_loop = HealthLoop {
            index,
            upstream,
            address,
            runs_app: app.is_some(),
            initial: Health::New(0),
            counters,
            messages,
        };
        announcing_tasks.spawn(health_loop.run(config.etcd.endpoints().to_vec(), reaper.clone()));
    }
    let registrar = Registrar::start(lease.clone(), config.upstreams.len(), messages.clone());
    let loop_status = watch::Sender::<LoopStatus>::default();
    let key_status = watch::Sender::<KeyStatus>::default();
    sources.send_replace(Some(RunSources {
        loop_status: loop_status.subscribe(),
        records: registrar.watch_statuses(),
        lease_stats: lease.stats.clone(),
        key_status: key_status.subscribe(),
    }));
    let announcer = Announcer {
        parameters,
        app,
        lease,
        registrar,
        upstreams: config.upstreams.iter().map(|upstream| (upstream.clone(), None)).collect(),
        announcing_tasks,
        state_tasks: JoinSet::new(),
        final_tasks: JoinSet::new(),
        messages,
        blocked_by: None,
        refusals: RefusalLog::default(),
        key_status: Some(key_status),
        loop_status,
        first_signal: shutdown.first_signal.clone(),
        process_stop: process_stop.clone(),
        exit_status: 0,
    };
    Ok(announcer.run_until_done(inbox, heartbeat, shutdown).await)
}

/// State of the loop, and the tasks that it started.
struct Announcer {
    parameters: Arc<RunParameters>,
    /// `None` if something else runs the app.
    app: Option<RunningApp>,
    lease: Lease,
    registrar: Registrar,
    /// Upstreams with their records. `None` before an upstream's first success.
    upstreams: Vec<(Upstream, Option<KnownUpstream>)>,
    /// Health loops and the poller. The end of the announcement aborts them.
    announcing_tasks: JoinSet<()>,
    /// Tasks of the current state. A change of state aborts them.
    state_tasks: JoinSet<()>,
    /// Tasks that outlive their state: the last writes, and the timeout for what the app left behind.
    final_tasks: JoinSet<()>,
    messages: mpsc::Sender<Message>,
    /// Reason why balancers don't follow. `None` while none is known, or while the loop doesn't wait for them.
    blocked_by: Option<String>,
    refusals: RefusalLog,
    /// `None` once the poller has it.
    key_status: Option<watch::Sender<KeyStatus>>,
    /// Published for the admin port.
    loop_status: watch::Sender<LoopStatus>,
    /// First stop signal, which decides the app's stop signal.
    first_signal: Arc<OnceLock<i32>>,
    /// Set when the process stops, not only this run.
    process_stop: CancellationToken,
    exit_status: u8,
}

impl Announcer {
    /// Runs until [`State::Done`]. Returns the exit status.
    async fn run_until_done(
        mut self,
        mut inbox: mpsc::Receiver<Message>,
        mut heartbeat: Heartbeat,
        shutdown: &Shutdown,
    ) -> u8 {
        let mut state = State::Starting;
        let (mut stopping, mut aborting) = (false, false);
        self.update_status(state);
        while state != State::Done {
            let event = tokio::select! {
                Some(message) = inbox.recv() => self.handle_message(state, message),
                () = shutdown.drain.cancelled(), if !stopping => {
                    stopping = true;
                    Some(Event::Stop)
                }
                () = shutdown.abort.cancelled(), if !aborting => {
                    aborting = true;
                    Some(Event::Abort)
                }
                () = heartbeat.next_beat() => {
                    let is_waiting = matches!(state, State::Announcing | State::AwaitingBalancers);
                    heartbeat.send_beat(is_waiting && self.count_not_yet_healthy() == 0);
                    None
                }
            };
            state = self.handle_event(state, event);
        }
        self.exit_status
    }

    /// Handles one event, and the events that its actions cause at once.
    fn handle_event(&mut self, mut state: State, mut next: Option<Event>) -> State {
        while let Some(event) = next {
            let (after, actions) = state::step(state, event);
            tracing::debug!(?state, ?event, ?after, ?actions, "step");
            // A wait for balancers belongs to the state that is left.
            if after != state {
                self.state_tasks.abort_all();
                self.blocked_by = None;
            }
            next = self.start_actions(event, state, after, actions);
            if after != state {
                self.update_status(after);
            }
            state = after;
        }
        state
    }

    fn handle_message(&mut self, state: State, message: Message) -> Option<Event> {
        match message {
            Message::Health { upstream, address, health } => {
                let (upstream, known) = self.upstreams.get_mut(upstream)?;
                // The first message brings the address, which never changes after it.
                known.get_or_insert_with(|| KnownUpstream::new(upstream, address, health)).health = health;
                // Before the event: once announced, the event has no action, and the record still has to follow the
                // check.
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

    /// Orders the records' states in the registrar, for all upstreams that have worked.
    fn order_records(&self, state: State) {
        let known = self.upstreams.iter().filter_map(|(_, known)| known.as_ref());
        let wants: Vec<_> =
            known.filter_map(|known| Some((known.record.clone(), state.want_for_health(known.health)?))).collect();
        if !wants.is_empty() {
            self.registrar.set_wants(wants);
        }
    }

    /// Number of upstreams that have not worked yet.
    fn count_not_yet_healthy(&self) -> usize {
        self.upstreams.iter().filter(|(_, known)| known.is_none()).count()
    }

    /// Starts the actions, and takes no time itself. Returns an event that happened at once.
    fn start_actions(
        &mut self,
        event: Event,
        before: State,
        after: State,
        actions: &'static [Action],
    ) -> Option<Event> {
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
                Action::KillApp => happened = self.kill_app(event),
                // One task runs the last writes in their order, started below.
                Action::WriteDown | Action::Delete | Action::Revoke => {}
            }
        }
        if actions.contains(&Action::Revoke) {
            let limit = if before == State::Killing { HASTY_WITHDRAW_LIMIT } else { WITHDRAW_LIMIT };
            self.start_withdrawal(actions, limit);
        }
        happened
    }

    /// Starts the wait for balancers. Without `--wait-balancers` it is over at once.
    fn await_balancers(&mut self) -> Option<Event> {
        if !self.parameters.wait_balancers {
            return Some(Event::AllBalancersApplied);
        }
        let (registrar, client, messages) = (self.registrar.clone(), self.lease.client.clone(), self.messages.clone());
        let log = self.refusals.clone();
        self.state_tasks.spawn(async move {
            wait::wait_until_applied(&registrar, &client, &log, &messages).await;
            let _ = messages.send(Message::Event(Event::AllBalancersApplied)).await;
        });
        None
    }

    /// Starts the poller after the first complete registration. It runs until the drain.
    fn start_key_status_poller(&mut self) {
        if let Some(publish) = self.key_status.take() {
            let (registrar, client) = (self.registrar.clone(), self.lease.client.clone());
            self.announcing_tasks
                .spawn(KeyStatusPoller { registrar, client, log: self.refusals.clone(), publish }.poll_forever());
        }
    }

    fn start_drain(&mut self) {
        // Checks that fail while the app stops must not change its record.
        self.announcing_tasks.abort_all();
        self.notify_stopping();
        // The unit's stop timeout doesn't know --drain, and systemd would kill the service at its end.
        systemd::extend_timeout(DRAIN_WRITE_LIMIT + self.parameters.drain + self.longest_stop_time());
        let (registrar, lease, messages) = (self.registrar.clone(), self.lease.clone(), self.messages.clone());
        let limit = self.parameters.drain;
        self.state_tasks.spawn(async move {
            withdraw::drain_records(&registrar, &lease, limit).await;
            let _ = messages.send(Message::Event(Event::Drained)).await;
        });
    }

    /// Tells systemd that the service stops, unless only this run does.
    fn notify_stopping(&self) {
        if self.process_stop.is_cancelled() {
            systemd::notify_stopping();
        }
    }

    /// Sends the stop signal to the app. An app that something else runs counts as gone.
    fn stop_app(&mut self) -> Option<Event> {
        self.announcing_tasks.abort_all();
        let Some((running, app)) = self.app.as_ref().zip(self.parameters.app.as_ref()) else {
            return Some(Event::AppGone);
        };
        self.notify_stopping();
        systemd::extend_timeout(self.longest_stop_time());
        let signal = app.stop_signal(self.first_signal.get().copied());
        tracing::info!(%signal, "stopping the app");
        running.send_stop_signal(signal);
        self.state_tasks.spawn(report_stop_timeout(app.stop_timeout, self.messages.clone()));
        None
    }

    /// Sends the stop signal to the processes that the app's main process left behind, with the app's own timeout.
    fn stop_leftovers(&mut self) {
        let Some((running, app)) = self.app.as_ref().zip(self.parameters.app.as_ref()) else { return };
        systemd::extend_timeout(self.longest_stop_time());
        running.send_stop_signal(app.stop_signal(self.first_signal.get().copied()));
        self.final_tasks.spawn(report_stop_timeout(app.stop_timeout, self.messages.clone()));
    }

    fn kill_app(&mut self, event: Event) -> Option<Event> {
        self.announcing_tasks.abort_all();
        let Some(running) = &self.app else { return Some(Event::AppGone) };
        match (event, &self.parameters.app) {
            (Event::StopTimeout, Some(app)) => {
                let timeout = humantime::format_duration(app.stop_timeout);
                tracing::warn!(%timeout, "stop timed out, killing the app");
            }
            // A second signal asks for it.
            _ => tracing::warn!("killing the app"),
        }
        running.kill_all();
        None
    }

    /// Longest time from the end of the drain to the end of the process, with a second to spare.
    fn longest_stop_time(&self) -> Duration {
        let app = self.parameters.app.as_ref().map_or(Duration::ZERO, |app| app.stop_timeout);
        app + WITHDRAW_LIMIT + Duration::from_secs(1)
    }

    fn start_withdrawal(&mut self, actions: &'static [Action], limit: Duration) {
        self.announcing_tasks.abort_all();
        let (registrar, lease, messages) = (self.registrar.clone(), self.lease.clone(), self.messages.clone());
        self.final_tasks.spawn(async move {
            withdraw::withdraw_records(&registrar, &lease, actions, limit).await;
            let _ = messages.send(Message::Event(Event::Withdrawn)).await;
        });
    }

    fn update_status(&self, state: State) {
        let known = self.upstreams.iter().filter_map(|(_, known)| known.as_ref());
        let keys: Vec<_> = known.map(|known| known.record.key()).collect();
        let status_line =
            heartbeat::describe_state(state, &keys, self.count_not_yet_healthy(), self.blocked_by.as_deref());
        let healthy =
            self.upstreams.iter().map(|(_, known)| known.as_ref().is_some_and(KnownUpstream::is_up)).collect();
        let new = LoopStatus { state, status_line: status_line.clone(), healthy };
        let before = self.loop_status.send_replace(new);
        if before.status_line != status_line {
            systemd::notify_status(&status_line);
        }
    }
}

async fn report_stop_timeout(time: Duration, messages: mpsc::Sender<Message>) {
    sleep(time).await;
    let _ = messages.send(Message::Event(Event::StopTimeout)).await;
}
