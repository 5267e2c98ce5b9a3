//! The agent's loop. It feeds each record's life with what the engines, the checks and the registrar report. It never
//! waits for an engine or for etcd.

mod engine_news;
mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use containers::{Engine, EngineAddress, HostAddresses, Reach};
use daemon::{admin::Pulse, shutdown::Shutdown, systemd};
use discovery::Entry;
use registry::{Client, LeaseId};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, interval};

use crate::admin::Port;
use crate::agent::addresses::{HostAddressFinder, follow_address};
use crate::agent::copies::{Copies, CopyKey, CopyOptions, Order};
use crate::agent::engines::{News, follow_engine};
use crate::agent::leased::{Adopted, adopt_records};
use crate::agent::life::LifeEvent;
use crate::agent::members::{ContainerKey, Known, Member};
use crate::agent::plan::Scope;
use crate::agent::state_dir::StateDir;
use crate::agent::status::{AgentSources, AgentStatus, ContainerCounts, RecordCounts};
use crate::lease::Lease;
use crate::processes::reaper::Reaper;
use crate::record::{Record, Want};
use crate::registrar::Registrar;
use crate::state::message::Message;

/// Period of systemd's watchdog and of the status line.
const BEAT: Duration = Duration::from_secs(5);

/// The same with an admin port, whose `/live` fails after 10 s without a beat.
const ADMIN_BEAT: Duration = Duration::from_secs(2);

/// Limit of the last renewal, which gives the next agent the whole TTL to start.
const LAST_RENEWAL: Duration = Duration::from_secs(2);

/// Checked options of the agent.
pub(crate) struct Settings {
    pub(crate) engines: Vec<EngineAddress>,
    pub(crate) scope: Scope,
    pub(crate) ttl: Duration,
    pub(crate) state_dir: PathBuf,
    pub(crate) copies: CopyOptions,
    pub(crate) admin: Option<Port>,
    pub(crate) finder: HostAddressFinder,
}

/// An engine, as far as it answered.
pub(super) struct EngineSlot {
    pub(super) address: EngineAddress,
    pub(super) client: Option<Engine>,
    /// True after the first listing.
    is_listed: bool,
    /// True if the last listing had the stopped containers.
    pub(super) knows_stopped: bool,
    /// Why it can't be asked now.
    away: Option<String>,
    /// True if its containers may be started from here. `None` before the answer.
    pub(super) may_start: Option<bool>,
    /// True once that was asked.
    pub(super) is_rights_asked: bool,
}

pub(super) struct Agent {
    pub(super) scope: Scope,
    pub(super) lease: Lease,
    registrar: Registrar,
    pub(super) state_dir: StateDir,
    reaper: Reaper,
    pub(super) engines: Vec<EngineSlot>,
    pub(super) containers: BTreeMap<ContainerKey, Known>,
    pub(super) members: BTreeMap<usize, Member>,
    /// Containers that are copies of a service with a limit.
    pub(super) copies: Copies,
    /// Ids of the containers that the agent may start.
    pub(super) kept: BTreeSet<String>,
    pub(super) copy_options: CopyOptions,
    pub(super) orders: mpsc::Sender<Order>,
    checks: BTreeMap<usize, AbortHandle>,
    /// Stop signals of each member, which tell a later one's timeout from an earlier one's.
    signals: BTreeMap<usize, u64>,
    pub(super) next_serial: usize,
    /// Records that an earlier agent left, until a container claims them. By key.
    adopted: BTreeMap<String, Entry>,
    /// Slots and stand-bys that an earlier agent left, until all containers are known.
    pub(super) adopted_copies: Vec<(String, CopyKey)>,
    /// Questions for containers that have no answer yet.
    open_questions: usize,
    last_order: Vec<(Arc<Record>, Want)>,
    sequence: u64,
    pub(super) is_settled: bool,
    is_ready: bool,
    shown: watch::Sender<AgentStatus>,
    /// `None` without `--admin`.
    pulse: Option<Pulse>,
    pub(super) news: mpsc::Sender<News>,
    health: mpsc::Sender<Message>,
    pub(super) tasks: JoinSet<()>,
}

/// Runs the agent until a stop signal. Its records stay.
pub(crate) async fn run_agent(client: Client, settings: Settings, shutdown: &Shutdown) -> anyhow::Result<u8> {
    let reaper = Reaper::start()?;
    let state_dir = StateDir::open(&settings.state_dir).map_err(crate::agent::AgentError::from)?;
    let resumed = state_dir.read_lease();
    let lease = Lease::resume(client, settings.ttl, resumed);
    let kept = state_dir.read_copies();
    let (news, inbox) = mpsc::channel(256);
    let (orders, order_inbox) = mpsc::channel(256);
    let (health, health_inbox) = mpsc::channel(256);
    let mut tasks = JoinSet::new();
    tasks.spawn(adopt_records(lease.clone(), resumed, news.clone()));
    if let Reach::Host(found) = &settings.scope.reach
        && settings.finder.may_change()
    {
        tasks.spawn(follow_address(settings.finder, found.clone(), news.clone()));
    }
    let (shown, status) = watch::channel(AgentStatus::default());
    let sources = AgentSources { status, lease_stats: lease.stats.clone(), ttl: settings.ttl };
    let pulse = settings.admin.map(|port| port.start_serving(sources));
    let engines = settings.engines.into_iter();
    let engines = engines.map(|address| EngineSlot {
        address,
        client: None,
        is_listed: false,
        knows_stopped: false,
        away: None,
        may_start: None,
        is_rights_asked: false,
    });
    let agent = Agent {
        scope: settings.scope,
        registrar: Registrar::start_for_host(lease.clone(), health.clone()),
        lease,
        state_dir,
        reaper,
        engines: engines.collect(),
        containers: BTreeMap::new(),
        members: BTreeMap::new(),
        copies: Copies::new(),
        kept,
        copy_options: settings.copies,
        orders,
        checks: BTreeMap::new(),
        signals: BTreeMap::new(),
        next_serial: 0,
        adopted: BTreeMap::new(),
        adopted_copies: Vec::new(),
        open_questions: 0,
        last_order: Vec::new(),
        sequence: 0,
        is_settled: true,
        is_ready: false,
        shown,
        pulse,
        news,
        health,
        tasks,
    };
    agent.run(inbox, health_inbox, order_inbox, shutdown).await;
    Ok(0)
}

impl Agent {
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<News>,
        mut health: mpsc::Receiver<Message>,
        mut orders: mpsc::Receiver<Order>,
        shutdown: &Shutdown,
    ) {
        let longest = if self.pulse.is_some() { ADMIN_BEAT } else { BEAT };
        let mut beat = interval(systemd::watchdog_interval().map_or(longest, |period| period.min(longest)));
        let (mut registrar, mut lease) = (self.registrar.clone(), self.lease.id.clone());
        loop {
            tokio::select! {
                () = shutdown.drain.cancelled() => break,
                Some(news) = inbox.recv() => self.handle_news(news),
                Some(order) = orders.recv() => self.handle_order(order),
                Some(message) = health.recv() => self.handle_health(&message),
                is_settled = registrar.next_progress(self.sequence) => self.handle_progress(is_settled),
                Ok(()) = lease.changed() => self.keep_lease(*lease.borrow_and_update()),
                // Finished tasks would pile up.
                Some(_) = self.tasks.join_next() => {}
                _ = beat.tick() => self.send_beat(),
            }
            self.write_order();
            self.report_announced();
            self.check_readiness();
            self.show_status();
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
            News::Adopted(adopted) => self.take_over(adopted),
            News::Listed { engine, client, running, stopped, began } => {
                self.note_engine(engine, Some(client), None);
                self.apply_listing(engine, running, stopped, began);
            }
            News::Event { engine, event } => self.handle_event(&(engine, event.id), &event.kind),
            News::Away { engine, reason } => self.note_engine(engine, None, Some(reason)),
            News::Inspected { key, generation, fingerprint, found } => {
                self.open_questions = self.open_questions.saturating_sub(1);
                self.handle_answer(&key, generation, &fingerprint, found);
            }
            News::Survived { serial, signals } => {
                if self.signals.get(&serial) == Some(&signals) {
                    if let Some(owner) = self.members.get(&serial).and_then(|member| member.owner.clone()) {
                        self.set_told(&owner, false);
                    }
                    self.step(serial, LifeEvent::Survived);
                    // The record says `drain` by this agent's own write, so it isn't asked for.
                    self.report_health(serial);
                }
            }
            News::Recovered { serial, is_drained: true } => self.step(serial, LifeEvent::StopSignal),
            News::Recovered { serial, is_drained: false } => self.report_health(serial),
            News::Retired { serial } => self.step(serial, LifeEvent::Died),
            News::Rights { engine, may_start } => self.note_rights(engine, may_start),
            News::CopyStarted { name, run, result } => self.note_copy_started(&name, run, result),
            News::CopyEnded { name, run } => self.report_end(&name, run),
            News::Moved(found) => self.move_host(found),
        }
    }

    /// Takes an earlier agent's records over, and starts to follow the engines. They must not come first: a container's
    /// record would be written anew.
    fn take_over(&mut self, adopted: Adopted) {
        if !adopted.records.is_empty() {
            tracing::info!(records = adopted.records.len(), "taking over the records of an earlier agent");
        }
        self.adopted_copies = adopted.copies;
        self.adopted = adopted.records.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        for (index, slot) in self.engines.iter().enumerate() {
            let rules = self.scope.rules.clone();
            self.tasks.spawn(follow_engine(index, slot.address.clone(), rules, self.news.clone()));
        }
    }

    /// Announces all containers at the host's new address.
    fn move_host(&mut self, found: HostAddresses) {
        let address = found.main_address().map(|ip| ip.to_string()).unwrap_or_default();
        tracing::warn!(address, "the host has another address, announcing its containers there");
        self.scope.reach = Reach::Host(found);
        let known = self.containers.iter();
        let all: Vec<_> = known.filter_map(|(key, known)| Some((key.clone(), known.container.clone()?))).collect();
        for (key, container) in all {
            self.update_container(&key, &container);
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
        if let Some(pulse) = &self.pulse {
            pulse.beat();
        }
        systemd::notify_watchdog();
        if !self.is_ready {
            systemd::extend_timeout(3 * BEAT);
        }
        systemd::notify_status(&self.collect_status().describe());
    }

    /// Publishes the status for the admin port.
    fn show_status(&self) {
        if self.pulse.is_some() {
            let status = self.collect_status();
            self.shown.send_if_modified(|shown| {
                let is_new = *shown != status;
                *shown = status;
                is_new
            });
        }
    }

    fn collect_status(&self) -> AgentStatus {
        let counts = self.containers.values().filter(|known| known.counts);
        let states = counts.filter_map(|known| Some(known.container.as_ref()?.state.clone()));
        let (holding, waiting): (Vec<_>, Vec<_>) = self.copies.values().partition(|slot| slot.holds_slot());
        AgentStatus {
            is_ready: self.is_ready,
            engines: self.engines.iter().map(|slot| (slot.address.to_string(), slot.away.clone())).collect(),
            containers: ContainerCounts::count(states),
            records: RecordCounts::count(self.members.values().map(|member| member.life)),
            refused: self.containers.values().map(|known| known.faults.len()).sum(),
            slots_held: holding.len(),
            standing_by: waiting.len(),
        }
    }
}
