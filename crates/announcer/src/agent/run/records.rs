//! What the engines' answers and events do to the records of a container.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use containers::{Container, HealthStatus, RunState};
use discovery::UpstreamState;
use registry::LeaseId;
use tokio::time::sleep;

use crate::agent::engines::News;
use crate::agent::leased::make_record;
use crate::agent::life::{self, Life, LifeAction, LifeEvent};
use crate::agent::members::{ContainerKey, Known, Member, is_same_order, order_records};
use crate::agent::plan::{Plan, plan_container};
use crate::agent::run::Agent;
use crate::config::address::AddressSource;
use crate::config::upstream::Upstream;
use crate::health::Health;
use crate::health_loop::HealthLoop;
use crate::record::Record;
use crate::state::message::Message;
use crate::status::metrics::UpstreamCheckCounters;

/// Time beyond a container's stop time after which it counts as one that ignored the signal.
const SURVIVAL: Duration = Duration::from_secs(30);

/// Time for which a renamed container has both records. A balancer takes the new one within about a second.
const RENAME_TIME: Duration = Duration::from_secs(5);

impl Agent {
    /// Applies an answer to a container's records.
    pub(in crate::agent) fn update_container(&mut self, key: &ContainerKey, container: &Container) {
        let before = self.containers.get_mut(key).and_then(|known| known.container.replace(container.clone()));
        let has_restarted = before.as_ref().is_some_and(|before| before.started_at != container.started_at);
        if has_restarted || matches!(container.state, RunState::Stopped(_)) {
            self.step_all(key, LifeEvent::Died);
        }
        let mut plan = plan_container(container, &self.scope);
        self.check_rights(key, &mut plan);
        self.log_faults(key, container, &plan);
        self.update_copy(key, container, plan.copy);
        if matches!(container.state, RunState::Stopped(_)) {
            return;
        }
        // Before the new members come: those of before are kept, followed by a new name, or ended.
        let old = self.serials_of(key);
        let was_paused = before.as_ref().is_some_and(|before| before.state == RunState::Paused);
        let is_renamed = before.is_some_and(|before| before.name != container.name);
        let mut kept = BTreeSet::new();
        for upstream in plan.upstreams {
            let same = old.iter().find(|serial| {
                self.members
                    .get(serial)
                    .is_some_and(|member| member.is_current() && member.upstream.as_ref() == Some(&upstream))
            });
            match same {
                Some(serial) => _ = kept.insert(*serial),
                None => self.add_member(key, upstream, &old),
            }
        }
        for serial in old.into_iter().filter(|serial| !kept.contains(serial)) {
            if is_renamed { self.retire(serial) } else { self.step(serial, LifeEvent::Died) }
        }
        if container.state == RunState::Paused {
            self.step_all(key, LifeEvent::Paused);
        } else if was_paused {
            self.step_all(key, LifeEvent::Resumed);
        }
        for serial in self.serials_of(key) {
            self.judge_health(serial);
        }
    }

    /// Logs what is wrong with a container's labels, once for each change.
    pub(super) fn log_faults(&mut self, key: &ContainerKey, container: &Container, plan: &Plan) {
        let Some(known) = self.containers.get_mut(key) else { return };
        known.counts = !plan.is_empty();
        for fault in plan.faults.iter().filter(|fault| !known.faults.contains(fault)) {
            let hint = "correct it and create the container again";
            tracing::warn!(container = container.name, fault, hint, "a service of the container isn't registered");
        }
        known.faults.clone_from(&plan.faults);
    }

    /// Adds a record. One that a renamed container had before goes on as it was, and so does one of an earlier agent.
    pub(super) fn add_member(&mut self, key: &ContainerKey, upstream: Upstream, old: &[usize]) {
        let AddressSource::Given(address) = upstream.address_source else { return };
        let record = make_record(&upstream, address);
        let same = |serial: &&usize| {
            self.members.get(serial).is_some_and(|it| {
                it.is_current()
                    && it.record.address() == address
                    && it.record.service_and_id().0 == record.service_and_id().0
            })
        };
        // A renamed container serves on. Its new record must not wait for checks that passed already.
        let continued = old.iter().find(same).and_then(|serial| self.members.get(serial)).map(|member| member.life);
        let life = continued.unwrap_or_else(|| self.adopt(&record));
        let is_taken = |it: &Member| it.is_current() && it.owner.as_ref() != Some(key) && it.key() == record.key();
        if self.members.values().any(is_taken) {
            let hint = "give one of them another name";
            tracing::warn!(key = record.key(), hint, "two containers have this id, the first keeps the record");
        }
        let serial = self.insert_member(Some(key.clone()), Some(upstream.clone()), record, life);
        let health = match life {
            Life::Serving => Health::Up(0),
            Life::Starting => Health::New(0),
            _ => Health::Down(0),
        };
        let health_loop = HealthLoop {
            index: serial,
            upstream,
            address: Some(address),
            runs_app: false,
            initial: health,
            counters: UpstreamCheckCounters::default(),
            messages: self.health.clone(),
        };
        let endpoints = self.lease.client.config().endpoints().to_vec();
        self.checks.insert(serial, self.tasks.spawn(health_loop.run(endpoints, self.reaper.clone())));
        if life == Life::Draining {
            self.await_end(serial);
        }
    }

    pub(super) fn insert_member(
        &mut self,
        owner: Option<ContainerKey>,
        upstream: Option<Upstream>,
        record: Arc<Record>,
        life: Life,
    ) -> usize {
        let serial = self.next_serial;
        self.next_serial += 1;
        let passes_check = life == Life::Serving;
        self.members.insert(serial, Member { owner, upstream, record, life, passes_check, is_retired: false });
        serial
    }

    /// The life with which a record begins: that of an earlier agent's record at the same address.
    pub(super) fn adopt(&mut self, record: &Arc<Record>) -> Life {
        let Some(entry) = self.adopted.remove(&record.key()) else { return Life::Starting };
        match Record::from_entry(&entry) {
            Some((found, state)) if found.address() == record.address() => Life::from_record(state),
            Some((found, _)) => {
                // It leads to a port that the container no longer has.
                self.insert_member(None, None, Arc::new(found), Life::Leaving);
                Life::Starting
            }
            None => Life::Starting,
        }
    }

    /// Ends the record of a container that has another name now, once the new record is served.
    pub(super) fn retire(&mut self, serial: usize) {
        let Some(member) = self.members.get_mut(&serial).filter(|member| member.is_current()) else { return };
        tracing::info!(key = member.key(), "the container has another name, its record follows");
        member.is_retired = true;
        let news = self.news.clone();
        self.tasks.spawn(async move {
            sleep(RENAME_TIME).await;
            let _ = news.send(News::Retired { serial }).await;
        });
    }

    pub(super) fn remove_container(&mut self, key: &ContainerKey) {
        self.step_all(key, LifeEvent::Died);
        self.remove_copy(key);
        self.containers.remove(key);
    }

    /// Members of a container that has not ended for them.
    pub(super) fn serials_of(&self, key: &ContainerKey) -> Vec<usize> {
        let members = self.members.iter().filter(|(_, member)| member.owner.as_ref() == Some(key));
        members.filter(|(_, member)| !member.life.has_ended()).map(|(serial, _)| *serial).collect()
    }

    pub(in crate::agent) fn step_all(&mut self, key: &ContainerKey, event: LifeEvent) {
        for serial in self.serials_of(key) {
            self.step(serial, event);
            // What was paused may work already.
            if event == LifeEvent::Resumed {
                self.judge_health(serial);
            }
        }
    }

    pub(super) fn step(&mut self, serial: usize, event: LifeEvent) {
        let Some(member) = self.members.get_mut(&serial) else { return };
        let before = member.life;
        let (after, actions) = life::step(before, event);
        member.life = after;
        if after != before {
            let key = member.key();
            tracing::debug!(key, ?before, ?event, ?after, "step");
            if after == Life::Draining {
                tracing::info!(key, "the container was told to stop, draining");
            }
        }
        for action in actions {
            match action {
                // Written with all others, after this event.
                LifeAction::Write => {}
                LifeAction::AwaitEnd => self.await_end(serial),
                LifeAction::EndChecks => {
                    if let Some(checks) = self.checks.remove(&serial) {
                        checks.abort();
                    }
                }
            }
        }
        if after == Life::Gone {
            self.members.remove(&serial);
            self.signals.remove(&serial);
        }
    }

    pub(super) fn await_end(&mut self, serial: usize) {
        let owner = self.members.get(&serial).and_then(|member| member.owner.clone());
        let container = owner.and_then(|key| self.containers.get(&key)?.container.as_ref());
        let time = container.map(Container::stop_time).unwrap_or_default() + SURVIVAL;
        // Each signal starts the time anew, so that only the last one's timeout counts.
        let count = self.signals.entry(serial).or_default();
        *count += 1;
        let (signals, news) = (*count, self.news.clone());
        self.tasks.spawn(async move {
            sleep(time).await;
            let _ = news.send(News::Survived { serial, signals }).await;
        });
    }

    pub(super) fn handle_health(&mut self, message: &Message) {
        if let Message::Health { upstream: serial, health, .. } = message {
            if let Some(member) = self.members.get_mut(serial) {
                member.passes_check = health.is_up();
            }
            self.judge_health(*serial);
        }
    }

    /// Reports both checks' result. Before a record says `ready` again, it is asked for.
    pub(super) fn judge_health(&mut self, serial: usize) {
        match self.members.get(&serial) {
            Some(member) if member.life == Life::Failing && self.is_healthy(member) => self.confirm_recovery(serial),
            _ => self.report_health(serial),
        }
    }

    /// Reports both checks' result to the record's life.
    pub(super) fn report_health(&mut self, serial: usize) {
        let Some(member) = self.members.get(&serial) else { return };
        let event = if self.is_healthy(member) { LifeEvent::Healthy } else { LifeEvent::Unhealthy };
        self.step(serial, event);
    }

    fn is_healthy(&self, member: &Member) -> bool {
        // An orphan has no container, and is never healthy.
        let known = member.owner.as_ref().and_then(|key| self.containers.get(key));
        member.passes_check && known.is_some_and(Known::passes_healthcheck)
    }

    /// Asks the store if `containers stop` drains the record. `ready` would send requests to a container that is about to
    /// be stopped. If etcd doesn't answer, it could not be written either.
    fn confirm_recovery(&mut self, serial: usize) {
        let Some(key) = self.members.get(&serial).map(Member::key) else { return };
        let (client, lease, news) = (self.lease.client.clone(), *self.lease.id.borrow(), self.news.clone());
        self.tasks.spawn(async move {
            let entry = client.get(&key).await.ok().flatten();
            let entry = entry.filter(|entry| Some(entry.lease) == lease.map(LeaseId::get));
            let state = entry.and_then(|entry| Record::from_entry(&entry)).map(|(_, state)| state);
            let _ = news.send(News::Recovered { serial, is_drained: state == Some(UpstreamState::Drain) }).await;
        });
    }

    /// Orders what changed.
    pub(super) fn write_order(&mut self) {
        self.drop_orphans();
        // All records are one order, as the registrar wants it. It writes what differs.
        let order = order_records(self.members.values());
        if !is_same_order(&order, &self.last_order) {
            self.is_settled = false;
            self.sequence = self.registrar.set_wants(order.clone());
            self.last_order = order;
        }
    }

    /// Deletes the records of containers that ended while no agent ran. Only once every engine has told what it has.
    pub(super) fn drop_orphans(&mut self) {
        let has_adopted = !self.adopted.is_empty() || !self.adopted_copies.is_empty();
        if !has_adopted || self.open_questions > 0 || !self.engines.iter().all(|slot| slot.is_listed) {
            return;
        }
        self.drop_orphaned_copies();
        for (key, entry) in std::mem::take(&mut self.adopted) {
            if let Some((record, _)) = Record::from_entry(&entry) {
                tracing::info!(key, "no container has this record any more, deleting it");
                self.insert_member(None, None, Arc::new(record), Life::Leaving);
            }
        }
    }

    /// A round of the registrar ended. Records that were to be deleted are gone if all of the order is written.
    pub(super) fn handle_progress(&mut self, is_settled: bool) {
        self.is_settled = is_settled;
        if !is_settled {
            return;
        }
        let leaving = self.members.iter().filter(|(_, member)| member.life == Life::Leaving);
        let serials: Vec<usize> = leaving.map(|(serial, _)| *serial).collect();
        for serial in serials {
            self.step(serial, LifeEvent::Removed);
        }
    }

    pub(super) fn set_state(&mut self, key: &ContainerKey, state: RunState) {
        let Some(container) = self.containers.get_mut(key).and_then(|known| known.container.as_mut()) else {
            return self.ask(key, "");
        };
        let event = if state == RunState::Paused { LifeEvent::Paused } else { LifeEvent::Resumed };
        container.state = state;
        self.step_all(key, event);
        // Podman reports a pause that failed too, and only the container itself tells.
        self.ask(key, "");
    }

    pub(super) fn set_health(&mut self, key: &ContainerKey, status: HealthStatus) {
        let Some(container) = self.containers.get_mut(key).and_then(|known| known.container.as_mut()) else {
            return self.ask(key, "");
        };
        container.health = Some(status);
        for serial in self.serials_of(key) {
            self.judge_health(serial);
        }
    }
}
