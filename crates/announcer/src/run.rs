//! An announcement that lives as long as its announcer: the only loop, and the only `select!`.

use std::time::Duration;

use anyhow::Context;
use daemon::{shutdown::Shutdown, systemd};
use nix::sys::signal::Signal;
use registry::Client;
use tokio::{sync::mpsc, task::JoinHandle, time::sleep};

use crate::{
    child::Child,
    config::{Config, Life},
    health,
    parting::{self, DRAIN_WAIT, DRAIN_WRITE, Lease, WITHDRAW, WITHDRAW_IN_HASTE},
    pulse::{self, Pulse},
    record::Record,
    registrar::Registrar,
    report::Report,
    state::{self, Action, Event, State},
};

/// Runs the app, if there is one, and announces it until told to stop. Returns the exit status.
pub(crate) async fn run(config: Config, life: Life) -> anyhow::Result<u8> {
    let shutdown = Shutdown::on_signals().context("signals can't be handled")?;
    let address = health::first_look(&config.whereabouts, config.etcd.endpoints()).await?;
    let (reports, inbox) = mpsc::channel(16);
    let child = life.app.as_ref().map(|app| Child::start(app, reports.clone())).transpose()?;
    let lease = Lease::hold(Client::new(config.etcd.clone()), life.ttl);
    let listens = life.app.as_ref().map(|app| app.listens.clone());
    let (whereabouts, etcd, to_loop) = (config.whereabouts.clone(), config.etcd.clone(), reports.clone());
    tokio::spawn(async move {
        let address = match address {
            Some(address) => address,
            None => health::find_patiently(&whereabouts, etcd.endpoints()).await,
        };
        health::watch(address, listens, to_loop).await;
    });
    let announcer = Announcer { config, life, child, lease, registrar: None, drain: None, reports, status: 0 };
    Ok(announcer.follow(inbox, &shutdown).await)
}

/// Everything that actions act on.
struct Announcer {
    config: Config,
    life: Life,
    child: Option<Child>,
    lease: Lease,
    /// From the first healthy moment on.
    registrar: Option<Registrar>,
    drain: Option<JoinHandle<()>>,
    reports: mpsc::Sender<Report>,
    status: u8,
}

impl Announcer {
    async fn follow(mut self, mut inbox: mpsc::Receiver<Report>, shutdown: &Shutdown) -> u8 {
        let mut state = State::Starting;
        let (mut stopping, mut aborting) = (false, false);
        let mut pulse = Pulse::new();
        self.say(state);
        while state != State::Done {
            let event = tokio::select! {
                Some(report) = inbox.recv() => self.take(report),
                () = shutdown.drain.cancelled(), if !stopping => {
                    stopping = true;
                    Event::Stop
                }
                () = shutdown.abort.cancelled(), if !aborting => {
                    aborting = true;
                    Event::Abort
                }
                () = pulse.tick() => {
                    pulse::beat(state);
                    continue;
                }
            };
            state = self.follow_one(state, event);
        }
        self.status
    }

    /// One event, and what follows from it at once.
    fn follow_one(&mut self, mut state: State, event: Event) -> State {
        let mut next = Some(event);
        while let Some(event) = next {
            let (after, actions) = state::step(state, event);
            tracing::debug!(?state, ?event, ?after, ?actions, "step");
            next = self.act(state, after, actions);
            if after != state {
                self.say(after);
            }
            state = after;
        }
        state
    }

    fn take(&mut self, report: Report) -> Event {
        match report {
            Report::Healthy(address) => {
                let record = Record::new(self.config.announcement.clone(), address, self.config.policy);
                self.registrar = Some(Registrar::new(self.lease.client.clone(), record, self.lease.held.clone()));
                Event::Healthy
            }
            Report::AppExited(status) => {
                tracing::info!(status, "the app has ended");
                self.status = status;
                Event::AppExited
            }
            Report::Event(event) => event,
        }
    }

    /// Starts what is to be done; nothing here takes time. Returns what happened at once.
    fn act(&mut self, before: State, after: State, actions: &'static [Action]) -> Option<Event> {
        let mut happened = None;
        for action in actions {
            match action {
                Action::Announce => {
                    if let Some(registrar) = &self.registrar {
                        registrar.announce(self.reports.clone());
                    }
                }
                Action::SayReady => systemd::ready(),
                Action::Drain => self.start_drain(),
                Action::StopApp => happened = self.stop_app(),
                Action::KillApp => happened = self.kill_app(),
                // The last writes follow each other in one task.
                Action::WriteDown | Action::Delete | Action::Revoke => {}
            }
        }
        if after == State::Withdrawing && !actions.is_empty() {
            self.start_withdrawal(actions, if before == State::Killing { WITHDRAW_IN_HASTE } else { WITHDRAW });
        }
        happened
    }

    fn start_drain(&mut self) {
        let wait = self.life.drain.min(DRAIN_WAIT);
        systemd::stopping();
        systemd::extend_timeout(DRAIN_WRITE + wait + self.stop_time());
        let (registrar, reports) = (self.registrar.clone(), self.reports.clone());
        self.drain = Some(tokio::spawn(async move {
            if let Some(registrar) = registrar {
                parting::drain(&registrar, wait).await;
            }
            let _ = reports.send(Report::Event(Event::Drained)).await;
        }));
    }

    /// An app that something else runs is none of ours to stop: as far as we go, it has ended.
    fn stop_app(&self) -> Option<Event> {
        let Some((child, app)) = self.child.as_ref().zip(self.life.app.as_ref()) else {
            return Some(Event::AppExited);
        };
        systemd::stopping();
        systemd::extend_timeout(self.stop_time());
        tracing::info!(signal = %app.stop_signal, "stopping the app");
        child.signal(app.stop_signal);
        let (time, reports) = (app.stop_timeout, self.reports.clone());
        tokio::spawn(async move {
            sleep(time).await;
            let _ = reports.send(Report::Event(Event::StopTimeout)).await;
        });
        None
    }

    fn kill_app(&self) -> Option<Event> {
        let Some(child) = &self.child else { return Some(Event::AppExited) };
        tracing::warn!("killing the app");
        child.signal(Signal::SIGKILL);
        None
    }

    /// What may come after the drain, with a second for good measure.
    fn stop_time(&self) -> Duration {
        let app = self.life.app.as_ref().map_or(Duration::ZERO, |app| app.stop_timeout);
        app + WITHDRAW + Duration::from_secs(1)
    }

    fn start_withdrawal(&mut self, actions: &'static [Action], limit: Duration) {
        if let Some(drain) = self.drain.take() {
            drain.abort();
        }
        let (registrar, lease, reports) = (self.registrar.clone(), self.lease.clone(), self.reports.clone());
        tokio::spawn(async move {
            parting::withdraw(registrar.as_ref(), &lease, actions, limit).await;
            let _ = reports.send(Report::Event(Event::Withdrawn)).await;
        });
    }

    fn say(&self, state: State) {
        let key = self.registrar.as_ref().map(Registrar::key);
        systemd::status(&pulse::describe(state, key.as_deref()));
    }
}
