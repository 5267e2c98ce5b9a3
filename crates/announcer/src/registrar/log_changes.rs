//! What the log has heard of the records: each thing is said once, not at each attempt.

use std::{
    collections::BTreeMap,
    mem::{Discriminant, discriminant},
};

use discovery::UpstreamState;

use crate::record::{Difference, Owner};
use crate::registrar::record_set::{Loss, RecordChange, RecordNews};
use crate::registrar::transaction::WriteRound;

/// What kind of failure it is: in one outage, etcd is unreachable in many words.
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

/// What was said last.
#[derive(Default)]
pub(crate) struct ChangeLog {
    owners: BTreeMap<String, Owner>,
    failure: Option<Failure>,
    differences: Vec<Difference>,
}

impl ChangeLog {
    /// Says what is new in a round.
    pub(crate) fn log_round(&mut self, round: &WriteRound) {
        match &round.failure {
            Some(error) => self.log_failure(error),
            None => self.failure = None,
        }
        if round.contended {
            tracing::debug!("somebody else keeps writing the same keys; trying on");
        }
        for news in &round.news {
            log_news(news);
            self.owners.remove(&news.record.key());
        }
        for record in &round.lost {
            tracing::warn!(key = record.key(), "the record is no longer ours: left alone as long as this lease lives");
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
        // The loss of the lease is told by what holds it.
        if self.failure == Some(failure) || error.is_lease_not_found() {
            tracing::debug!(%error, "still trying to write");
        } else {
            tracing::warn!(%error, "can't write for now; the app goes on, and so do the attempts");
        }
        self.failure = Some(failure);
    }
}

/// Says which settings stay as they are.
pub(crate) fn log_differences(differing: &[Difference], settings_denied: bool) {
    let hint = if settings_denied { "etcd's roles forbid writing it" } else { "--update would overwrite it" };
    for Difference { key, stored: stands, given } in differing {
        let stands = stands.as_deref().unwrap_or("nothing");
        tracing::warn!(key, stands, given, "the store says otherwise than this announcer: left as it is; {hint}");
    }
}

fn log_news(RecordNews { record, change: what }: &RecordNews) {
    let (key, address) = (record.key(), record.address());
    match what {
        RecordChange::Registered => tracing::info!(key, %address, "registered"),
        RecordChange::Restored(Loss::Deleted) => {
            tracing::warn!(
                key,
                %address,
                "written again: the record was deleted by another hand; stop this announcer to withdraw it, or write \
                 overrides/ID to take requests from it"
            );
        }
        RecordChange::Restored(Loss::Overwritten(found)) => {
            tracing::warn!(
                key,
                %address,
                found,
                "written again: the record was changed by another hand; its weight and state are changed in overrides/ID"
            );
        }
        RecordChange::Restored(Loss::Displaced(owner)) => {
            tracing::info!(key, %address, %owner, "registered again: the other owner has let go of the id");
        }
        RecordChange::StateChanged(UpstreamState::Ready) => tracing::info!(key, %address, "says ready"),
        RecordChange::StateChanged(UpstreamState::Down) => tracing::info!(key, %address, "says down"),
        RecordChange::StateChanged(UpstreamState::Drain) => tracing::info!(key, %address, "says drain"),
    }
}

fn log_owner(key: &str, owner: &Owner) {
    let end = if owner.lease.is_some() { "that lease ends" } else { "it is deleted" };
    tracing::warn!(key, %owner, "the id is taken: waiting until {end}; give each announcer of a service an --id of its own");
}
