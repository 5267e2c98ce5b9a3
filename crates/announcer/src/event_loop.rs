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

use crate::admin::{Port, Shown};
use crate::balancers::reception::{Look, RefusalLog};
use crate::balancers::wait;
use crate::child::Running;
use crate::config::upstream::Upstream;
use crate::config::{Config, Life};
use crate::health::Health;
use crate::health_loop::{Watch, first_look};
use crate::lease::Lease;
use crate::message::Message;
use crate::processes::reaper::Reaper;
use crate::record::Record;
use crate::registrar::Registrar;
use crate::state::{Action, Event, State};
use crate::status::heartbeat::Pulse;
use crate::status::metrics::Checked;
use crate::status::{LoopStatus, Reception, heartbeat};
use crate::withdraw::{DRAIN_WRITE, WITHDRAW, WITHDRAW_IN_HASTE};
use crate::{child, state, withdraw};

/// Runs the app, if there is one, and announces it until told to stop. Returns the exit status.
pub(crate) async fn run(config: Config, mut life: Life, shutdown: &Shutdown) -> anyhow::Result<u8> {
    let reaper = Reaper::start().context("signals can't be handled")?;
    let mut addresses = Vec::new();
    for upstream in &config.upstreams {
        addresses.push(first_look(&upstream.whereabouts, config.etcd.endpoints()).await?);
    }
    let admin = Port::bind(life.admin.take()).await?;
    let (reports, inbox) = mpsc::channel(16);
    let child = life.app.as_ref().map(|app| child::start(app, &life.stop_on, &reaper, reports.clone())).transpose()?;
    let lease = Lease::hold(Client::new(config.etcd.clone()), life.ttl);
    let (checked, mut watches) = (Checked::default(), JoinSet::new());
    for (index, (upstream, address)) in config.upstreams.iter().zip(addresses).enumerate() {
        let (upstream, reports) = (upstream.clone(), reports.clone());
        let checked = checked.of(&upstream);
        let watch = Watch { index, upstream, address, wraps: child.is_some(), checked, reports };
        watches.spawn(watch.run(config.etcd.endpoints().to_vec(), reaper.clone()));
    }
    let registrar = Registrar::start(lease.clone(), config.upstreams.len(), reports.clone());
    let (shown, now) = watch::channel(LoopStatus::default());
    let reception = watch::Sender::<Reception>::default();
    let pulse = Pulse::new(admin.map(|port| {
        let names = config.upstreams.iter().map(Upstream::name).collect();
        let (beats, reception) = (lease.beats.clone(), reception.subscribe());
        port.open(Shown { names, now, stands: registrar.stands(), ttl: life.ttl, beats, checked, reception })
    }));
    let upstreams = config.upstreams.into_iter().map(|upstream| (upstream, None)).collect();
    let announcer = Announcer {
        life,
        child,
        lease,
        registrar,
        upstreams,
        watches,
        tasks: JoinSet::new(),
        last_tasks: JoinSet::new(),
        reports,
        blocked_by: None,
        refusals: RefusalLog::default(),
        reception: Some(reception),
        shown,
        asked: shutdown.asked.clone(),
        status: 0,
    };
    Ok(announcer.follow(inbox, pulse, shutdown).await)
}

/// Everything that actions act on.
struct Announcer {
    life: Life,
    child: Option<Running>,
    lease: Lease,
    registrar: Registrar,
    /// Each with its record, from the first healthy moment on.
    upstreams: Vec<(Upstream, Option<Known>)>,
    watches: JoinSet<()>,
    /// Waits for balancers; the next state has no use for those of the last.
    tasks: JoinSet<()>,
    /// The last writes and the time of what the app has left behind: they go on in the states that follow.
    last_tasks: JoinSet<()>,
    reports: mpsc::Sender<Message>,
    /// What keeps balancers from following, as long as they are waited for.
    blocked_by: Option<String>,
    refusals: RefusalLog,
    /// The way in which the reception of the records is shown. None once the task that looks has it.
    reception: Option<watch::Sender<Reception>>,
    /// How things stand, for whoever looks.
    shown: watch::Sender<LoopStatus>,
    /// The signal that asked for the stop.
    asked: Arc<OnceLock<i32>>,
    status: u8,
}

/// What is known of an upstream.
struct Known {
    record: Arc<Record>,
    health: Health,
}

impl Announcer {
    async fn follow(mut self, mut inbox: mpsc::Receiver<Message>, mut pulse: Pulse, shutdown: &Shutdown) -> u8 {
        let mut state = State::Starting;
        let (mut stopping, mut aborting) = (false, false);
        self.say(state);
        while state != State::Done {
            let event = tokio::select! {
                Some(report) = inbox.recv() => self.take(state, report),
                () = shutdown.drain.cancelled(), if !stopping => {
                    stopping = true;
                    Some(Event::Stop)
                }
                () = shutdown.abort.cancelled(), if !aborting => {
                    aborting = true;
                    Some(Event::Abort)
                }
                () = pulse.tick() => {
                    pulse.beat(state, self.missing() == 0);
                    None
                }
            };
            state = self.handle_event(state, event);
        }
        self.status
    }

    /// One event, and what follows from it at once.
    fn handle_event(&mut self, mut state: State, mut next: Option<Event>) -> State {
        while let Some(event) = next {
            let (after, actions) = state::step(state, event);
            tracing::debug!(?state, ?event, ?after, ?actions, "step");
            if after != state {
                self.tasks.abort_all();
                self.blocked_by = None;
            }
            next = self.act(state, after, actions);
            if after != state {
                self.say(after);
            }
            state = after;
        }
        state
    }

    fn take(&mut self, state: State, report: Message) -> Option<Event> {
        match report {
            Message::Health { upstream, address, health } => {
                let (upstream, known) = self.upstreams.get_mut(upstream)?;
                let record = || Record::new(upstream.announcement.clone(), address, upstream.policy);
                known.get_or_insert_with(|| Known { record: Arc::new(record()), health }).health = health;
                self.order(state);
                self.say(state);
                Some(Event::Healthy)
            }
            Message::AppExited(status) => {
                tracing::info!(status, "the app has ended");
                self.status = status;
                Some(Event::AppExited)
            }
            Message::Obstacle(blocked_by) => {
                self.blocked_by = blocked_by;
                self.say(state);
                None
            }
            Message::Event(event) => Some(event),
        }
    }

    /// What the records are to say now, all of them in one order.
    fn order(&self, state: State) {
        let known = self.upstreams.iter().filter_map(|(_, known)| known.as_ref());
        let wants: Vec<_> = known.filter_map(|known| Some((known.record.clone(), state.want(known.health)?))).collect();
        if !wants.is_empty() {
            self.registrar.order(wants);
        }
    }

    /// How many upstreams have not worked yet.
    fn missing(&self) -> usize {
        self.upstreams.iter().filter(|(_, known)| known.is_none()).count()
    }

    /// Starts what is to be done; nothing here takes time. Returns what happened at once.
    fn act(&mut self, before: State, after: State, actions: &'static [Action]) -> Option<Event> {
        let mut happened = None;
        for action in actions {
            match action {
                Action::Announce => self.order(after),
                Action::AwaitBalancers => happened = self.await_balancers(),
                Action::SayReady => {
                    systemd::ready();
                    self.start_look();
                }
                Action::Drain => self.start_drain(),
                Action::StopApp => happened = self.stop_app(),
                Action::StopRest => self.stop_rest(),
                Action::KillApp => happened = self.kill_app(),
                // The last writes follow each other in one task.
                Action::WriteDown | Action::Delete | Action::Revoke => {}
            }
        }
        if actions.contains(&Action::Revoke) {
            self.start_withdrawal(actions, if before == State::Killing { WITHDRAW_IN_HASTE } else { WITHDRAW });
        }
        happened
    }

    /// Whoever doesn't wait for balancers has them at once.
    fn await_balancers(&mut self) -> Option<Event> {
        if !self.life.wait_balancers {
            return Some(Event::Balanced);
        }
        let (registrar, client, reports) = (self.registrar.clone(), self.lease.client.clone(), self.reports.clone());
        let log = self.refusals.clone();
        self.tasks.spawn(async move {
            wait::until_balanced(&registrar, &client, &log, &reports).await;
            let _ = reports.send(Message::Event(Event::Balanced)).await;
        });
        None
    }

    /// From the first time that all stand until the drain.
    fn start_look(&mut self) {
        if let Some(publish) = self.reception.take() {
            let (registrar, client) = (self.registrar.clone(), self.lease.client.clone());
            self.watches.spawn(Look { registrar, client, log: self.refusals.clone(), publish }.run());
        }
    }

    fn start_drain(&mut self) {
        self.watches.abort_all();
        systemd::stopping();
        systemd::extend_timeout(DRAIN_WRITE + self.life.drain + self.stop_time());
        let (registrar, lease, reports) = (self.registrar.clone(), self.lease.clone(), self.reports.clone());
        let limit = self.life.drain;
        self.tasks.spawn(async move {
            withdraw::drain(&registrar, &lease, limit).await;
            let _ = reports.send(Message::Event(Event::Drained)).await;
        });
    }

    /// An app that something else runs is none of ours to stop: as far as we go, it has ended.
    fn stop_app(&mut self) -> Option<Event> {
        self.watches.abort_all();
        let Some((child, app)) = self.child.as_ref().zip(self.life.app.as_ref()) else {
            return Some(Event::AppGone);
        };
        systemd::stopping();
        systemd::extend_timeout(self.stop_time());
        let signal = app.stop_signal(self.asked.get().copied());
        tracing::info!(%signal, "stopping the app");
        child.stop(signal);
        self.tasks.spawn(stop_timeout(app.stop_timeout, self.reports.clone()));
        None
    }

    /// Gives the processes that the app's main process has left behind the time that the app would have had.
    fn stop_rest(&mut self) {
        let Some((child, app)) = self.child.as_ref().zip(self.life.app.as_ref()) else { return };
        systemd::extend_timeout(self.stop_time());
        child.stop(app.stop_signal(self.asked.get().copied()));
        self.last_tasks.spawn(stop_timeout(app.stop_timeout, self.reports.clone()));
    }

    fn kill_app(&mut self) -> Option<Event> {
        self.watches.abort_all();
        let Some(child) = &self.child else { return Some(Event::AppGone) };
        tracing::warn!("killing the app");
        child.kill();
        None
    }

    /// What may come after the drain, with a second for good measure.
    fn stop_time(&self) -> Duration {
        let app = self.life.app.as_ref().map_or(Duration::ZERO, |app| app.stop_timeout);
        app + WITHDRAW + Duration::from_secs(1)
    }

    fn start_withdrawal(&mut self, actions: &'static [Action], limit: Duration) {
        self.watches.abort_all();
        let (registrar, lease, reports) = (self.registrar.clone(), self.lease.clone(), self.reports.clone());
        self.last_tasks.spawn(async move {
            withdraw::withdraw(&registrar, &lease, actions, limit).await;
            let _ = reports.send(Message::Event(Event::Withdrawn)).await;
        });
    }

    fn say(&self, state: State) {
        let known = self.upstreams.iter().filter_map(|(_, known)| known.as_ref());
        let keys: Vec<_> = known.map(|known| known.record.key()).collect();
        let words = heartbeat::describe(state, &keys, self.missing(), self.blocked_by.as_deref());
        let works = |(_, known): &(Upstream, Option<Known>)| known.as_ref().is_some_and(|known| known.health.is_up());
        let works = self.upstreams.iter().map(works).collect();
        let before = self.shown.send_replace(LoopStatus { state, words: words.clone(), works });
        if before.words != words {
            systemd::status(&words);
        }
    }
}

async fn stop_timeout(time: Duration, reports: mpsc::Sender<Message>) {
    sleep(time).await;
    let _ = reports.send(Message::Event(Event::StopTimeout)).await;
}
