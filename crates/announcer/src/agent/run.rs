//! The agent's loop. It feeds each record's life with what the engines, the checks and the registrar report. It never
//! waits for an engine or for etcd.

mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use containers::{Container, Engine, EngineAddress, EventKind, RunState};
use daemon::{shutdown::Shutdown, systemd};
use discovery::Entry;
use registry::{Client, LeaseId};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, interval};

use crate::agent::engines::{News, follow_engine};
use crate::agent::leased::adopt_records;
use crate::agent::life::{Life, LifeEvent};
use crate::agent::members::{ContainerKey, Known, Member};
use crate::agent::plan::Scope;
use crate::agent::state_dir::StateDir;
use crate::lease::Lease;
use crate::processes::reaper::Reaper;
use crate::record::{Record, Want};
use crate::registrar::Registrar;
use crate::state::message::Message;

/// Period of systemd's watchdog and of the status line.
const BEAT: Duration = Duration::from_secs(5);

/// Limit of the last renewal, which gives the next agent the whole TTL to start.
const LAST_RENEWAL: Duration = Duration::from_secs(2);

/// Checked options of the agent.
pub(crate) struct Settings {
    pub(crate) engines: Vec<EngineAddress>,
    pub(crate) scope: Scope,
    pub(crate) ttl: Duration,
    pub(crate) state_dir: PathBuf,
}

/// An engine, as far as it answered.
struct EngineSlot {
    address: EngineAddress,
    client: Option<Engine>,
    /// True after the first listing.
    is_listed: bool,
    /// Why it can't be asked now.
    away: Option<String>,
}

struct Agent {
    scope: Scope,
    lease: Lease,
    registrar: Registrar,
    state_dir: StateDir,
    reaper: Reaper,
    engines: Vec<EngineSlot>,
    containers: BTreeMap<ContainerKey, Known>,
    members: BTreeMap<usize, Member>,
    checks: BTreeMap<usize, AbortHandle>,
    /// Stop signals of each member, which tell a later one's timeout from an earlier one's.
    signals: BTreeMap<usize, u64>,
    next_serial: usize,
    /// Records that an earlier agent left, until a container claims them. By key.
    adopted: BTreeMap<String, Entry>,
    /// Questions for containers that have no answer yet.
    open_questions: usize,
    last_order: Vec<(Arc<Record>, Want)>,
    sequence: u64,
    is_settled: bool,
    is_ready: bool,
    news: mpsc::Sender<News>,
    health: mpsc::Sender<Message>,
    tasks: JoinSet<()>,
}

/// Runs the agent until a stop signal. Its records stay.
pub(crate) async fn run_agent(client: Client, settings: Settings, shutdown: &Shutdown) -> anyhow::Result<u8> {
    let reaper = Reaper::start()?;
    let state_dir = StateDir::open(&settings.state_dir).map_err(crate::agent::AgentError::from)?;
    let resumed = state_dir.read_lease();
    let lease = Lease::resume(client, settings.ttl, resumed);
    let (news, inbox) = mpsc::channel(256);
    let (health, health_inbox) = mpsc::channel(256);
    let mut tasks = JoinSet::new();
    tasks.spawn(adopt_records(lease.clone(), resumed, news.clone()));
    let engines = settings.engines.into_iter();
    let engines = engines.map(|address| EngineSlot { address, client: None, is_listed: false, away: None });
    let agent = Agent {
        scope: settings.scope,
        registrar: Registrar::start_for_host(lease.clone(), health.clone()),
        lease,
        state_dir,
        reaper,
        engines: engines.collect(),
        containers: BTreeMap::new(),
        members: BTreeMap::new(),
        checks: BTreeMap::new(),
        signals: BTreeMap::new(),
        next_serial: 0,
        adopted: BTreeMap::new(),
        open_questions: 0,
        last_order: Vec::new(),
        sequence: 0,
        is_settled: true,
        is_ready: false,
        news,
        health,
        tasks,
    };
    agent.run(inbox, health_inbox, shutdown).await;
    Ok(0)
}

impl Agent {
    async fn run(mut self, mut inbox: mpsc::Receiver<News>, mut health: mpsc::Receiver<Message>, shutdown: &Shutdown) {
        let mut beat = interval(systemd::watchdog_interval().map_or(BEAT, |period| period.min(BEAT)));
        let (mut registrar, mut lease) = (self.registrar.clone(), self.lease.id.clone());
        loop {
            tokio::select! {
                () = shutdown.drain.cancelled() => break,
                Some(news) = inbox.recv() => self.handle_news(news),
                Some(message) = health.recv() => self.handle_health(&message),
                is_settled = registrar.next_progress(self.sequence) => self.handle_progress(is_settled),
                Ok(()) = lease.changed() => self.keep_lease(*lease.borrow_and_update()),
                // Finished tasks would pile up.
                Some(_) = self.tasks.join_next() => {}
                _ = beat.tick() => self.send_beat(),
            }
            self.write_order();
            self.check_readiness();
        }
        systemd::notify_stopping();
        // Nothing is withdrawn: the next agent takes the records over, and has the whole TTL to start.
        self.lease.renew_once(Instant::now() + LAST_RENEWAL).await;
        self.lease.stop_renewal.cancel();
        let records = self.last_order.len();
        let ttl = humantime::format_duration(self.lease.ttl);
        tracing::info!(records, %ttl, "ending, the records stay for the next agent");
    }

    fn handle_news(&mut self, news: News) {
        match news {
            News::Adopted(entries) => self.take_over(entries),
            News::Listed { engine, client, listed, began } => {
                self.note_engine(engine, Some(client), None);
                let ids: BTreeSet<&str> = listed.iter().map(|it| it.id.as_str()).collect();
                let is_missing = |(key, known): (&ContainerKey, &Known)| {
                    // An event newer than the listing may have brought it.
                    let is_older = known.touched.is_none_or(|touched| touched < began);
                    (key.0 == engine && is_older && !ids.contains(key.1.as_str())).then(|| key.clone())
                };
                let missing: Vec<ContainerKey> = self.containers.iter().filter_map(is_missing).collect();
                for key in missing {
                    self.remove_container(&key);
                }
                for it in listed {
                    let key = (engine, it.id);
                    let known = self.containers.entry(key.clone()).or_default();
                    // Most listings show nothing new, and ask for no container.
                    if known.fingerprint != it.fingerprint || known.container.is_none() {
                        self.ask(&key, &it.fingerprint);
                    }
                }
                if let Some(slot) = self.engines.get_mut(engine) {
                    slot.is_listed = true;
                }
            }
            News::Event { engine, event } => self.handle_event(&(engine, event.id), &event.kind),
            News::Away { engine, reason } => self.note_engine(engine, None, Some(reason)),
            News::Inspected { key, generation, fingerprint, found } => {
                self.open_questions = self.open_questions.saturating_sub(1);
                self.handle_answer(&key, generation, &fingerprint, found);
            }
            News::Survived { serial, signals } => {
                if self.signals.get(&serial) == Some(&signals) {
                    self.step(serial, LifeEvent::Survived);
                    // The record says `drain` by this agent's own write, so it isn't asked for.
                    self.report_health(serial);
                }
            }
            News::Recovered { serial, is_drained: true } => self.step(serial, LifeEvent::StopSignal),
            News::Recovered { serial, is_drained: false } => self.report_health(serial),
            News::Retired { serial } => self.step(serial, LifeEvent::Died),
        }
    }

    /// Takes an earlier agent's records over, and starts to follow the engines. They must not come first: a container's
    /// record would be written anew.
    fn take_over(&mut self, entries: Vec<Entry>) {
        if !entries.is_empty() {
            tracing::info!(records = entries.len(), "taking over the records of an earlier agent");
        }
        self.adopted = entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        for (index, slot) in self.engines.iter().enumerate() {
            self.tasks.spawn(follow_engine(index, slot.address.clone(), self.news.clone()));
        }
    }

    /// Notes that an engine answers, or why it doesn't. Each change is logged once.
    fn note_engine(&mut self, engine: usize, client: Option<Engine>, away: Option<String>) {
        let Some(slot) = self.engines.get_mut(engine) else { return };
        match (&slot.away, &away) {
            (None, Some(reason)) => {
                tracing::warn!(engine = %slot.address, reason, "the engine can't be asked, its records stay");
            }
            (Some(_), None) => tracing::info!(engine = %slot.address, "the engine answers again"),
            (Some(before), Some(reason)) if before != reason => {
                tracing::debug!(engine = %slot.address, reason, "the engine still can't be asked");
            }
            _ => {}
        }
        slot.client = client.or_else(|| slot.client.take());
        slot.away = away;
    }

    fn handle_event(&mut self, key: &ContainerKey, kind: &EventKind) {
        let known = self.containers.entry(key.clone()).or_default();
        known.generation += 1;
        known.touched = Some(std::time::Instant::now());
        match kind {
            EventKind::Started | EventKind::Renamed | EventKind::Changed => self.ask(key, ""),
            EventKind::Signalled(signal) => {
                let is_stop =
                    known.container.as_ref().is_some_and(|it| signal.is_none_or(|it_is| it.is_stopped_by(it_is)));
                if is_stop {
                    self.step_all(key, LifeEvent::StopSignal);
                }
            }
            EventKind::Died => {
                if let Some(container) = &mut known.container {
                    container.state = RunState::Stopped("exited".to_owned());
                }
                self.step_all(key, LifeEvent::Died);
            }
            EventKind::Paused => self.set_state(key, RunState::Paused),
            EventKind::Unpaused => self.set_state(key, RunState::Running),
            EventKind::Removed => self.remove_container(key),
            EventKind::OutOfMemory => {
                let name = known.container.as_ref().map(|container| container.name.as_str()).unwrap_or_default();
                tracing::warn!(container = name, "a process of the container was killed for lack of memory");
            }
            EventKind::Health(status) => self.set_health(key, *status),
        }
    }

    /// Asks the engine for a container. A question without an answer is asked again by the next listing.
    fn ask(&mut self, key: &ContainerKey, fingerprint: &str) {
        let generation = self.containers.get(key).map(|known| known.generation).unwrap_or_default();
        let Some(client) = self.engines.get(key.0).and_then(|slot| slot.client.clone()) else { return };
        let (news, key, fingerprint) = (self.news.clone(), key.clone(), fingerprint.to_owned());
        // Asked in a task of its own: a container that hangs must not delay the others' events.
        self.open_questions += 1;
        self.tasks.spawn(async move {
            let found = client.inspect(&key.1).await.map(|found| found.map(Box::new));
            let found = found.map_err(|error| error.to_string());
            let _ = news.send(News::Inspected { key, generation, fingerprint, found }).await;
        });
    }

    fn handle_answer(
        &mut self,
        key: &ContainerKey,
        generation: u64,
        fingerprint: &str,
        found: Result<Option<Box<Container>>, String>,
    ) {
        let known = self.containers.entry(key.clone()).or_default();
        if known.generation != generation {
            // Something happened in between. The next answer is about that too.
            return self.ask(key, fingerprint);
        }
        match found {
            Ok(Some(container)) => {
                known.fingerprint = fingerprint.to_owned();
                self.update_container(key, &container);
            }
            Ok(None) => self.remove_container(key),
            Err(reason) => tracing::debug!(container = key.1, reason, "can't ask for a container, trying again later"),
        }
    }

    fn keep_lease(&self, lease: Option<LeaseId>) {
        if let Some(lease) = lease
            && let Err(error) = self.state_dir.write_lease(lease)
        {
            tracing::warn!(%error, "the next agent can't take this lease over, and writes its records anew");
        }
    }

    /// Tells systemd once that every engine was asked and all of the first order is written.
    fn check_readiness(&mut self) {
        // An engine that is away must not hold up the start of units that wait for this one.
        let is_asked = self.engines.iter().all(|slot| slot.is_listed || slot.away.is_some());
        let has_lease = self.lease.id.borrow().is_some();
        if !self.is_ready && is_asked && has_lease && self.is_settled && self.open_questions == 0 {
            self.is_ready = true;
            tracing::info!(records = self.last_order.len(), "ready");
            systemd::notify_ready();
            self.send_beat();
        }
    }

    fn send_beat(&self) {
        systemd::notify_watchdog();
        if !self.is_ready {
            systemd::extend_timeout(3 * BEAT);
        }
        systemd::notify_status(&self.describe());
    }

    /// Line of `systemctl status`.
    fn describe(&self) -> String {
        let count = |life: Life| self.members.values().filter(|member| member.life == life).count();
        let faults: usize = self.containers.values().map(|known| known.faults.len()).sum();
        let ready = count(Life::Serving);
        let not_ready = self.members.len().saturating_sub(ready);
        let mut line = format!("{ready} records ready, {not_ready} not, {faults} services refused");
        for slot in &self.engines {
            if let Some(reason) = &slot.away {
                line.push_str(&format!("; {reason}"));
            }
        }
        line
    }
}
