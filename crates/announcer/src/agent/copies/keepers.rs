//! Starts a keeper for each copy, and carries out what the keepers ask for. It judges no end of a container.

use std::time::{Duration, SystemTime};

use containers::{Container, RunState};
use daemon::shutdown::Shutdown;
use discovery::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tracing::Instrument as _;

use crate::agent::copies::{ContainerApp, CopyKey, CopySlot, Order, OrderKind, explain_no_rights};
use crate::agent::engines::News;
use crate::agent::life::LifeEvent;
use crate::agent::members::ContainerKey;
use crate::agent::plan::{Plan, PlannedCopy};
use crate::agent::run::Agent;
use crate::agent::standing::{Standing, judge_container, parse_start};
use crate::agent::stop::stop_politely;
use crate::config::ReplicaOptions;
use crate::slots::app::AppEventKind;
use crate::slots::keeper::{CopyName, Keeper, Outlets};
use crate::status::SlotStatus;
use crate::status::heartbeat::Heartbeat;

/// Time in which the program that offered a container's slot has drained and stopped the container. `containers stop` waits
/// 15 s for the balancers.
const AWAITED_STOP: Duration = Duration::from_secs(30);

/// Pause between two questions if an engine lets containers be started.
const RIGHTS_PAUSE: Duration = Duration::from_secs(2);

/// Exit status of a container that the engine didn't start, as `docker run` has it.
const START_FAILED: u8 = 125;

impl Agent {
    /// True if the engine's containers may be started from here. Asks the engine once. `None` until it has answered.
    fn may_start(&mut self, engine: usize) -> Option<bool> {
        let slot = self.engines.get_mut(engine)?;
        let client = slot.client.clone()?;
        if slot.may_start.is_none() && !std::mem::replace(&mut slot.is_rights_asked, true) {
            let news = self.news.clone();
            self.tasks.spawn(async move {
                let may_start = loop {
                    match client.may_start().await {
                        Ok(may_start) => break may_start,
                        Err(error) => tracing::debug!(%error, "can't ask if containers may be started"),
                    }
                    // It answered a listing just before, so it is about to answer again.
                    sleep(RIGHTS_PAUSE).await;
                };
                let _ = news.send(News::Rights { engine, may_start }).await;
            });
        }
        slot.may_start
    }

    /// Judges the containers of an engine again, of which it is known now if they may be started.
    pub(in crate::agent) fn note_rights(&mut self, engine: usize, may_start: bool) {
        if let Some(slot) = self.engines.get_mut(engine) {
            slot.may_start = Some(may_start);
        }
        let of_engine = self.containers.iter().filter(|(key, _)| key.0 == engine);
        let all: Vec<_> = of_engine.filter_map(|(key, known)| Some((key.clone(), known.container.clone()?))).collect();
        for (key, container) in all {
            self.update_container(&key, &container);
        }
    }

    /// Refuses the copy of a plan if the engine lets no container be started.
    pub(in crate::agent) fn check_rights(&mut self, key: &ContainerKey, plan: &mut Plan) {
        if plan.copy.is_some() && self.may_start(key.0) == Some(false) {
            let address = self.engines.get(key.0).map(|slot| slot.address.to_string()).unwrap_or_default();
            plan.refuse_copy(&explain_no_rights(&address));
        }
    }

    /// Brings the copy in line with what the engine says of its container.
    pub(in crate::agent) fn update_copy(
        &mut self,
        key: &ContainerKey,
        container: &Container,
        planned: Option<PlannedCopy>,
    ) {
        let name = planned.as_ref().map(|planned| (planned.service.clone(), planned.id.clone()));
        for (other, slot) in &mut self.copies {
            // The container has another name now, and so another id.
            if slot.container == *key && Some(other) != name.as_ref() {
                slot.leave();
            }
        }
        let (Some(planned), Some(name)) = (planned, name) else { return };
        // The answer judges all containers of the engine again.
        if self.may_start(key.0) != Some(true) {
            return;
        }
        let standing = judge_container(container, self.kept.contains(&container.id));
        match self.copies.get(&name) {
            Some(slot) if slot.container == *key && !slot.is_leaving => match standing {
                // The keeper knows of no start: an operator, or another program, has started the container.
                Standing::Runs if slot.run.is_none() => self.start_keeper(key, container, &planned),
                Standing::Runs => {}
                Standing::StandsBy | Standing::Left => self.note_end(key),
            },
            Some(slot) if !slot.is_leaving && self.is_running(&slot.container) => {
                let hint = "give one of them another name";
                tracing::warn!(service = %name.0, id = %name.1, hint, "two containers are the same copy");
            }
            // The new container of a deployment goes on with the slot of the one before.
            Some(_) | None if standing != Standing::Left => self.start_keeper(key, container, &planned),
            Some(_) | None => {}
        }
    }

    fn is_running(&self, key: &ContainerKey) -> bool {
        let container = self.containers.get(key).and_then(|known| known.container.as_ref());
        container.is_some_and(|container| !matches!(container.state, RunState::Stopped(_)))
    }

    /// Starts a keeper for the container. One that the copy has ends without a trace: the store tells the new one how it stands.
    fn start_keeper(&mut self, key: &ContainerKey, container: &Container, planned: &PlannedCopy) {
        self.keep_container(&container.id, true);
        let name = (planned.service.clone(), planned.id.clone());
        if let Some(mut before) = self.copies.remove(&name) {
            before.end_stop();
            before.task.abort();
        }
        let is_running = judge_container(container, true) == Standing::Runs;
        // A time that can't be read makes the copy the youngest.
        let started = || parse_start(&container.started_at).unwrap_or_else(|| Timestamp::from_time(SystemTime::now()));
        let options = ReplicaOptions {
            count: planned.limit.replicas,
            has_fence: false,
            prefer: planned.limit.prefer,
            max_restarts: self.copy_options.max_restarts,
            handover: self.copy_options.handover,
        };
        self.next_serial += 1;
        let keeper = self.next_serial;
        let app = ContainerApp { name: name.clone(), keeper, run: 0, orders: self.orders.clone() };
        let (events, inbox) = mpsc::channel(16);
        let (shown, status) = watch::channel(SlotStatus::default());
        let (limits, _) = watch::channel(None);
        let copy = CopyName { service: name.0.clone(), id: name.1.clone(), host: Some(self.scope.host.clone()) };
        let kept = Keeper::new(copy, options, self.lease.clone(), Outlets { limits, shown }, app);
        let kept = kept.among_others(is_running.then(started));
        let (shutdown, orders, done) = (Shutdown::default(), self.orders.clone(), name.clone());
        let told = shutdown.clone();
        let span = tracing::info_span!("copy", service = %name.0, id = %name.1);
        let work = async move {
            kept.run_until_done(inbox, Heartbeat::silent(), &told).await;
            let _ = orders.send(Order { name: done, keeper, kind: OrderKind::Done }).await;
        };
        let slot = CopySlot {
            keeper,
            container: key.clone(),
            task: self.tasks.spawn(work.instrument(span)),
            shutdown,
            events,
            shown: status,
            // A keeper's first run has the number 1.
            run: is_running.then_some(1),
            is_starting: false,
            is_announced: false,
            is_stopping: false,
            stop: None,
            is_told: false,
            is_leaving: false,
        };
        self.copies.insert(name, slot);
    }

    pub(in crate::agent) fn handle_order(&mut self, order: Order) {
        let Order { name, keeper, kind } = order;
        let Some(slot) = self.copies.get(&name).filter(|slot| slot.keeper == keeper) else { return };
        match kind {
            OrderKind::Done => self.end_copy(&name),
            // The container is left alone from then on.
            OrderKind::Start(run) | OrderKind::Stop { run, .. } if slot.is_leaving => {
                slot.report(run, AppEventKind::TakenAway);
            }
            OrderKind::Start(run) => self.start_copy(&name, run),
            OrderKind::Stop { is_awaited, .. } => self.stop_copy(&name, is_awaited),
        }
    }

    fn end_copy(&mut self, name: &CopyKey) {
        let Some(mut slot) = self.copies.remove(name) else { return };
        slot.end_stop();
        let Some(container) = self.containers.get(&slot.container).and_then(|known| known.container.clone()) else {
            return;
        };
        if self.is_running(&slot.container) {
            // It was started again while its keys went.
            self.ask(&slot.container, "");
        } else if !self.copies.values().any(|other| other.container == slot.container) {
            self.keep_container(&container.id, false);
        }
    }

    fn start_copy(&mut self, name: &CopyKey, run: u64) {
        let Some(slot) = self.copies.get_mut(name) else { return };
        (slot.run, slot.is_announced, slot.is_stopping, slot.is_told) = (Some(run), false, false, false);
        let container = self.containers.get(&slot.container).and_then(|known| known.container.as_ref());
        let engine = self.engines.get(slot.container.0).and_then(|engine| engine.client.clone());
        let (Some(engine), Some(container)) = (engine, container) else {
            // Its engine or the container has gone since the keeper decided.
            slot.run = None;
            return slot.report(run, AppEventKind::Ended(START_FAILED));
        };
        // It was started by hand, or by an earlier agent.
        if !matches!(container.state, RunState::Stopped(_)) {
            return;
        }
        slot.is_starting = true;
        tracing::info!(container = container.name, service = %name.0, "starting the container");
        let (id, name, news) = (container.id.clone(), name.clone(), self.news.clone());
        self.tasks.spawn(async move {
            let result = engine.start(&id).await.map_err(|error| error.to_string());
            let _ = news.send(News::CopyStarted { name, run, result }).await;
        });
    }

    pub(in crate::agent) fn note_copy_started(&mut self, name: &CopyKey, run: u64, result: Result<(), String>) {
        let Some(slot) = self.copies.get_mut(name).filter(|slot| slot.run == Some(run)) else { return };
        slot.is_starting = false;
        let key = slot.container.clone();
        match result {
            // It may have ended already.
            Ok(()) => self.ask(&key, ""),
            Err(reason) => {
                tracing::error!(service = %name.0, reason, "the engine doesn't start the container");
                slot.run = None;
                slot.report(run, AppEventKind::Ended(START_FAILED));
            }
        }
    }

    fn stop_copy(&mut self, name: &CopyKey, is_awaited: bool) {
        let Some(slot) = self.copies.get_mut(name) else { return };
        slot.is_stopping = true;
        let key = slot.container.clone();
        let container = self.containers.get(&key).and_then(|known| known.container.clone());
        let container = container.filter(|container| !matches!(container.state, RunState::Stopped(_)));
        let engine = self.engines.get(key.0).and_then(|engine| engine.client.clone());
        let (Some(container), Some(engine)) = (container, engine) else { return self.note_end(&key) };
        if !is_awaited {
            tracing::info!(container = container.name, service = %name.0, "stopping the container politely");
            // The agent's own order must say `drain` too, or it would write `ready` over it.
            self.step_all(&key, LifeEvent::StopSignal);
        }
        let (client, scope, drain) = (self.lease.client.clone(), self.scope.clone(), self.copy_options.drain);
        let stop = self.tasks.spawn(async move {
            if is_awaited {
                sleep(AWAITED_STOP).await;
            }
            stop_politely(&client, engine, container, &scope, drain).await;
        });
        if let Some(slot) = self.copies.get_mut(name) {
            slot.stop = Some(stop);
        }
    }
}
