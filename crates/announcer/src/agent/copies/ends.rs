//! The ends of containers that are copies: noted, judged, and reported to the keepers. It starts and stops nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use containers::RunState;
use registry::{Condition, Txn};
use tokio::time::sleep;

use crate::agent::copies::CopyKey;
use crate::agent::engines::News;
use crate::agent::life::Life;
use crate::agent::members::ContainerKey;
use crate::agent::run::Agent;
use crate::agent::standing::{End, judge_end};
use crate::retry;
use crate::slots::app::AppEventKind;

/// Time within which a container that has ended may start again and keep its slot. `docker restart` takes some 300 ms, and
/// Podman tells of a stop some milliseconds after the container's end.
const END_GRACE: Duration = Duration::from_secs(2);

impl Agent {
    /// Notes that the copy's container doesn't run.
    pub(in crate::agent) fn note_end(&mut self, key: &ContainerKey) {
        let Some((name, slot)) = self.copies.iter().find(|(_, slot)| slot.container == *key && !slot.is_leaving) else {
            return;
        };
        let Some(run) = slot.run.filter(|_| !slot.is_starting) else { return };
        let (name, news) = (name.clone(), self.news.clone());
        // An end that the agent has asked for needs no judgement.
        let grace = if slot.is_stopping { Duration::ZERO } else { END_GRACE };
        self.tasks.spawn(async move {
            sleep(grace).await;
            let _ = news.send(News::CopyEnded { name, run }).await;
        });
    }

    /// Reports the end of a container to its keeper, unless it has started again since.
    pub(in crate::agent) fn report_end(&mut self, name: &CopyKey, run: u64) {
        let Some(slot) = self.copies.get_mut(name).filter(|slot| slot.run == Some(run) && !slot.is_starting) else {
            return;
        };
        let Some(container) = self.containers.get(&slot.container).and_then(|known| known.container.as_ref()) else {
            return;
        };
        let runs = !matches!(container.state, RunState::Stopped(_));
        match judge_end(runs, slot.is_stopping, slot.is_told) {
            End::None => {}
            End::ByOperator => {
                let hint = "start it, and it takes a slot again";
                tracing::info!(container = container.name, service = %name.0, hint, "the container was stopped by hand");
                slot.leave();
            }
            End::ByAgent | End::ByItself => {
                slot.run = None;
                slot.end_stop();
                slot.report(run, AppEventKind::Ended(container.exit_status));
            }
        }
    }

    /// Notes that a client of the engine has told the container to stop, or to start.
    pub(in crate::agent) fn set_told(&mut self, key: &ContainerKey, is_told: bool) {
        for slot in self.copies.values_mut().filter(|slot| slot.container == *key) {
            slot.is_told = is_told;
        }
    }

    /// Ends the copy of a container that its engine knows no longer.
    pub(in crate::agent) fn remove_copy(&mut self, key: &ContainerKey) {
        for slot in self.copies.values_mut().filter(|slot| slot.container == *key) {
            slot.leave();
        }
        self.keep_container(&key.1, false);
    }

    /// Tells keepers that their containers serve, and that this is written.
    pub(in crate::agent) fn report_announced(&mut self) {
        // A successor takes its slot over on this word. Its record must come before its predecessor's drain.
        if !self.is_settled {
            return;
        }
        for (name, slot) in self.copies.iter_mut().filter(|(_, slot)| !slot.is_announced && !slot.is_starting) {
            let Some(run) = slot.run else { continue };
            let of_copy = self.members.values().filter(|member| {
                member.owner.as_ref() == Some(&slot.container)
                    && member.is_current()
                    && *member.record.service_and_id().0 == name.0
            });
            let lives: Vec<Life> = of_copy.map(|member| member.life).collect();
            if !lives.is_empty() && lives.iter().all(|life| *life == Life::Serving) {
                slot.is_announced = true;
                slot.report(run, AppEventKind::Announced);
            }
        }
    }

    /// Remembers if the agent may start this container.
    pub(super) fn keep_container(&mut self, id: &str, is_kept: bool) {
        // Most calls change nothing, and each write is synced to the disk.
        let is_new = if is_kept { self.kept.insert(id.to_owned()) } else { self.kept.remove(id) };
        if is_new && let Err(error) = self.state_dir.write_copies(&self.kept) {
            tracing::warn!(%error, "the next agent doesn't know which stopped containers stand by");
        }
    }

    /// Deletes slots and stand-bys of an earlier agent whose containers are gone. Only once every engine has told what it has.
    pub(in crate::agent) fn drop_orphaned_copies(&mut self) {
        let Some(lease) = *self.lease.id.borrow() else { return };
        // Before that answer no keeper runs, and each key looks orphaned.
        if self.engines.iter().any(|slot| slot.is_rights_asked && slot.may_start.is_none()) {
            return;
        }
        // Containers that were removed while no agent ran would fill the file.
        if self.engines.iter().all(|slot| slot.knows_stopped) {
            let ids: BTreeSet<&str> = self.containers.keys().map(|(_, id)| id.as_str()).collect();
            self.kept.retain(|id| ids.contains(id.as_str()));
        }
        for (key, copy) in std::mem::take(&mut self.adopted_copies) {
            if self.copies.contains_key(&copy) {
                continue;
            }
            tracing::info!(key, "no container has this slot or stand-by any more, deleting it");
            let client = self.lease.client.clone();
            self.tasks.spawn(async move {
                for delay in retry::store_delays() {
                    let txn = Txn::new().only_if(Condition::LeaseIs(key.clone(), lease)).delete(key.clone());
                    match client.commit(txn).await {
                        Ok(_) => return,
                        Err(error) => tracing::debug!(key, %error, "can't delete it for now"),
                    }
                    sleep(delay).await;
                }
            });
        }
    }
}
