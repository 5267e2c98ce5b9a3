//! Logs each change of the records once, not at each attempt.

use std::{
    collections::BTreeMap,
    mem::{Discriminant, discriminant},
};

use discovery::UpstreamState;

use crate::record::difference::Difference;
use crate::record::ownership::Owner;
use crate::registrar::record_set::{Loss, RecordChange, RecordNews};
use crate::registrar::transaction::WriteRound;

/// Kind of failure. In one outage, etcd is unreachable with many different messages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Failure {
    Unreachable,
    Other(Discriminant<registry::Error>),
}

impl Failure {
    fn classify(error: &registry::Error) -> Self {
        if error.is_unreachable() { Self::Unreachable } else { Self::Other(discriminant(error)) }
    }
}

/// State of the last log lines.
#[derive(Default)]
pub(crate) struct ChangeLog {
    owners: BTreeMap<String, Owner>,
    failure: Option<Failure>,
    differences: Vec<Difference>,
}

impl ChangeLog {
    /// Logs the news of a round.
    pub(crate) fn log_round(&mut self, round: &WriteRound) {
        match &round.failure {
            Some(error) => self.log_failure(error),
            None => self.failure = None,
        }
        if round.contended {
            tracing::debug!("other writers keep changing the same keys, trying again");
        }
        for news in &round.news {
            log_news(news);
            self.owners.remove(&news.record.key());
        }
        for record in &round.lost {
            tracing::warn!(key = record.key(), "the record is no longer ours, leaving it alone under this lease");
        }
        let new: Vec<_> = round.differences.iter().filter(|found| !self.differences.contains(found)).cloned().collect();
        log_differences(&new, round.settings_denied);
        self.differences.extend(new);
        for (record, owner) in &round.taken {
            let key = record.key();
            if self.owners.get(&key) != Some(owner) {
                log_owner(&key, owner);
                self.owners.insert(key, owner.clone());
            }
        }
    }

    fn log_failure(&mut self, error: &registry::Error) {
        let failure = Failure::classify(error);
        // The lease's renewal logs the loss of the lease.
        if self.failure == Some(failure) || error.is_lease_not_found() {
            tracing::debug!(%error, "still trying to write");
        } else {
            tracing::warn!(%error, "can't write to etcd, trying again while the app goes on");
        }
        self.failure = Some(failure);
    }
}

/// Logs settings that differ and stay as they are.
pub(crate) fn log_differences(differing: &[Difference], settings_denied: bool) {
    let hint = if settings_denied { "etcd's roles forbid writing it" } else { "--update would overwrite it" };
    for Difference { key, stored, given } in differing {
        let stored = stored.as_deref().unwrap_or("nothing");
        tracing::warn!(key, stored, given, hint, "setting differs in the store, leaving it as it is");
    }
}

fn log_news(RecordNews { record, change }: &RecordNews) {
    let (key, address) = (record.key(), record.address());
    match change {
        RecordChange::Registered => tracing::info!(key, %address, "registered"),
        RecordChange::Restored(Loss::Deleted) => {
            let hint = "stop this announcer to withdraw the record, or write overrides/ID to take requests from it";
            tracing::warn!(key, %address, hint, "another writer deleted the record, restored it");
        }
        RecordChange::Restored(Loss::Overwritten(found)) => {
            let hint = "change weight and state in overrides/ID";
            tracing::warn!(key, %address, found, hint, "another writer changed the record, restored it");
        }
        RecordChange::Restored(Loss::Displaced(owner)) => {
            tracing::info!(key, %address, %owner, "the other owner released the id, registered again");
        }
        RecordChange::StateChanged(state) => {
            tracing::info!(key, %address, state = state_word(*state), "record updated");
        }
    }
}

/// Word for the state, as the record has it.
fn state_word(state: UpstreamState) -> &'static str {
    match state {
        UpstreamState::Ready => "ready",
        UpstreamState::Drain => "drain",
        UpstreamState::Down => "down",
    }
}

fn log_owner(key: &str, owner: &Owner) {
    let until = if owner.lease.is_some() { "that lease ends" } else { "it is deleted" };
    let hint = "give each announcer of a service its own --id";
    tracing::warn!(key, %owner, until, hint, "the id is taken, waiting");
}
