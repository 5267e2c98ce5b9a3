//! What engines tell of their containers: listings, events and answers. It decides nothing about records.

use std::collections::BTreeSet;
use std::time::Instant;

use containers::{Container, Engine, EventKind, Listed, RunState};

use crate::agent::engines::{News, inspect_patiently};
use crate::agent::life::LifeEvent;
use crate::agent::members::{ContainerKey, Known};
use crate::agent::run::Agent;

impl Agent {
    /// Asks for the new and the changed containers of a listing. Removes the containers that the listing lacks.
    pub(super) fn apply_listing(
        &mut self,
        engine: usize,
        running: Vec<Listed>,
        stopped: Option<Vec<Listed>>,
        began: Instant,
    ) {
        let knows_stopped = stopped.is_some();
        let listed: Vec<Listed> = running.into_iter().chain(stopped.into_iter().flatten()).collect();
        let ids: BTreeSet<&str> = listed.iter().map(|it| it.id.as_str()).collect();
        let copies: BTreeSet<&ContainerKey> = self.copies.values().map(|slot| &slot.container).collect();
        let is_missing = |(key, known): (&ContainerKey, &Known)| {
            // An event newer than the listing may have brought it.
            let is_older = known.touched.is_none_or(|touched| touched < began);
            let may_be_stopped = !knows_stopped && copies.contains(key);
            (key.0 == engine && is_older && !may_be_stopped && !ids.contains(key.1.as_str())).then(|| key.clone())
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
            (slot.is_listed, slot.knows_stopped) = (true, knows_stopped);
        }
    }

    /// Notes that an engine answers, or why it doesn't. Each change is logged once.
    pub(super) fn note_engine(&mut self, engine: usize, client: Option<Engine>, away: Option<String>) {
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

    pub(super) fn handle_event(&mut self, key: &ContainerKey, kind: &EventKind) {
        let known = self.containers.entry(key.clone()).or_default();
        known.generation += 1;
        known.touched = Some(Instant::now());
        match kind {
            EventKind::Started => {
                self.set_told(key, false);
                self.ask(key, "");
            }
            EventKind::Created | EventKind::Renamed | EventKind::Changed => self.ask(key, ""),
            EventKind::Signalled(signal) => {
                let is_stop =
                    known.container.as_ref().is_some_and(|it| signal.is_none_or(|it_is| it.is_stopped_by(it_is)));
                if is_stop {
                    self.set_told(key, true);
                    self.step_all(key, LifeEvent::StopSignal);
                }
            }
            EventKind::Died => {
                if let Some(container) = &mut known.container {
                    container.state = RunState::Stopped("exited".to_owned());
                }
                self.step_all(key, LifeEvent::Died);
                self.note_end(key);
                if self.copies.values().any(|slot| slot.container == *key) {
                    // The answer has the exit status.
                    self.ask(key, "");
                }
            }
            EventKind::Stopped => self.set_told(key, true),
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
    pub(in crate::agent) fn ask(&mut self, key: &ContainerKey, fingerprint: &str) {
        let generation = self.containers.get(key).map(|known| known.generation).unwrap_or_default();
        let Some(client) = self.engines.get(key.0).and_then(|slot| slot.client.clone()) else { return };
        let (news, key, fingerprint) = (self.news.clone(), key.clone(), fingerprint.to_owned());
        // Asked in a task of its own: a container that hangs must not delay the others' events.
        self.open_questions += 1;
        self.tasks.spawn(async move {
            let found = inspect_patiently(&client, &key.1).await.map(|found| found.map(Box::new));
            let found = found.map_err(|error| error.to_string());
            let _ = news.send(News::Inspected { key, generation, fingerprint, found }).await;
        });
    }

    pub(super) fn handle_answer(
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
}
