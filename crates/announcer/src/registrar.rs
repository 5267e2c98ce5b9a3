//! The record in the store: put it there, keep it there, change it while it is ours, take it out.

use std::{
    mem::{Discriminant, discriminant},
    sync::Arc,
    time::Duration,
};

use discovery::UpstreamState;
use registry::{Client, Condition, LeaseId, Txn};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    record::{Difference, Owner, Plan, Record},
    report::Report,
    retry::{self, StoreError},
    state::Event,
};

/// How often a taken id is looked at: a replacement takes over within about a second after the old lease's end.
const OWNER_CHECK: Duration = Duration::from_secs(1);

/// Each attempt that fails means that somebody else has just written one of the keys. More than a few in a row are no
/// accident, and worth a pause.
const ATTEMPTS: usize = 8;

/// What became of a registration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The record stands.
    Registered {
        /// The settings that say otherwise than ours.
        differing: Vec<Difference>,
        /// etcd's roles let us write no settings at all.
        settings_denied: bool,
    },
    /// The id belongs to somebody else.
    Taken(Owner),
    /// Others wrote the same keys at every attempt.
    Contended,
}

/// Writes the record, and the settings that may be written, in one transaction.
pub(crate) async fn register(
    client: &Client,
    record: &Record,
    lease: Option<LeaseId>,
) -> Result<Outcome, registry::Error> {
    match attempt(client, record, lease).await {
        Err(error) if error.is_permission_denied() && record.setting_keys().next().is_some() => {
            let outcome = attempt(client, &record.without_settings(), lease).await?;
            if !matches!(outcome, Outcome::Registered { .. }) {
                return Ok(outcome);
            }
            let mut found = Vec::new();
            for key in record.setting_keys() {
                found.extend(client.get(&key).await?);
            }
            Ok(Outcome::Registered { differing: record.differences(&found), settings_denied: true })
        }
        other => other,
    }
}

async fn attempt(client: &Client, record: &Record, lease: Option<LeaseId>) -> Result<Outcome, registry::Error> {
    let mut found = Vec::new();
    for _ in 0..ATTEMPTS {
        match record.plan(lease, &found) {
            Plan::Wait(owner) => return Ok(Outcome::Taken(owner)),
            Plan::Write { txn, differing } => {
                let committed = client.commit(txn).await?;
                if committed.succeeded {
                    return Ok(Outcome::Registered { differing, settings_denied: false });
                }
                found = committed.found;
            }
        }
    }
    Ok(Outcome::Contended)
}

/// One record under a lease that somebody else holds. Clones are about the same record.
#[derive(Clone)]
pub(crate) struct Registrar {
    client: Client,
    record: Arc<Record>,
    lease: watch::Receiver<Option<LeaseId>>,
    stop: CancellationToken,
    keeping: TaskTracker,
}

impl Registrar {
    /// For this record. Nothing is written yet.
    pub(crate) fn new(client: Client, record: Record, lease: watch::Receiver<Option<LeaseId>>) -> Self {
        Self { client, record: Arc::new(record), lease, stop: CancellationToken::new(), keeping: TaskTracker::new() }
    }

    /// The record's key, relative to the prefix.
    pub(crate) fn key(&self) -> String {
        self.record.key()
    }

    /// Keeps the record in the store from now on, in the background, and reports when it stands and when it is lost.
    pub(crate) fn announce(&self, reports: mpsc::Sender<Report>) {
        self.keeping.spawn(self.clone().keep(reports));
    }

    /// Writes the state, unless the record is no longer ours: then false.
    pub(crate) async fn write(&self, state: UpstreamState, deadline: Instant) -> Result<bool, StoreError> {
        self.change(deadline, |txn, lease| {
            txn.put(self.record.key(), self.record.value(state, Some(lease)), Some(lease))
        })
        .await
    }

    /// Deletes the record, unless it is no longer ours: then false.
    pub(crate) async fn delete(&self, deadline: Instant) -> Result<bool, StoreError> {
        self.change(deadline, |txn, _| txn.delete(self.record.key())).await
    }

    /// One transaction on the record still having our lease. A registration under way ends first, so that it can't
    /// come after.
    async fn change(&self, deadline: Instant, change: impl Fn(Txn, LeaseId) -> Txn) -> Result<bool, StoreError> {
        self.stop.cancel();
        self.keeping.close();
        tokio::time::timeout_at(deadline, self.keeping.wait()).await.map_err(|_| StoreError::OutOfTime)?;
        let Some(lease) = *self.lease.borrow() else { return Ok(false) };
        let txn = Txn::new().when(Condition::LeaseIs(self.record.key(), lease));
        let txn = change(txn, lease);
        let committed = retry::until(deadline, || self.client.commit(txn.clone())).await?;
        Ok(committed.succeeded)
    }

    async fn keep(mut self, reports: mpsc::Sender<Report>) {
        let mut said = Said::default();
        while let Some(lease) = self.next_lease(Option::is_some).await {
            if !self.put(lease, &mut said).await {
                continue;
            }
            let _ = reports.send(Report::Event(Event::Registered)).await;
            if self.next_lease(|held| *held != Some(lease)).await.is_none() && self.stop.is_cancelled() {
                return;
            }
            tracing::warn!(key = self.record.key(), "the lease has ended, and the record with it; registering again");
            let _ = reports.send(Report::Event(Event::Lost)).await;
        }
    }

    /// Waits until the lease is as wanted, and returns it. None at the end too.
    async fn next_lease(&mut self, wanted: impl FnMut(&Option<LeaseId>) -> bool) -> Option<LeaseId> {
        let waited = self.stop.run_until_cancelled(self.lease.wait_for(wanted)).await;
        waited.and_then(|held| held.ok().and_then(|held| *held))
    }

    /// Tries until the record stands. False when the lease has changed, or nothing is wanted any more.
    async fn put(&self, lease: LeaseId, said: &mut Said) -> bool {
        let mut delays = retry::store_delays();
        while *self.lease.borrow() == Some(lease) && !self.stop.is_cancelled() {
            let outcome = register(&self.client, &self.record, Some(lease)).await;
            said.say(&self.record, &outcome);
            let delay = match outcome {
                Ok(Outcome::Registered { .. }) => return true,
                Ok(Outcome::Taken(_)) => OWNER_CHECK,
                Ok(Outcome::Contended) | Err(_) => delays.next().unwrap_or_default(),
            };
            if self.stop.run_until_cancelled(sleep(delay)).await.is_none() {
                return false;
            }
        }
        false
    }
}

/// What kind of failure it is: in one outage, etcd is unreachable in many words.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Failure {
    Unreachable,
    Other(Discriminant<registry::Error>),
}

impl Failure {
    fn of(error: &registry::Error) -> Self {
        if error.is_unreachable() { Self::Unreachable } else { Self::Other(discriminant(error)) }
    }
}

/// What the log has heard already: each thing is said once, not at each attempt.
#[derive(Default)]
struct Said {
    owner: Option<Owner>,
    failure: Option<Failure>,
    differing: Vec<Difference>,
}

impl Said {
    fn say(&mut self, record: &Record, outcome: &Result<Outcome, registry::Error>) {
        let key = record.key();
        match outcome {
            Ok(Outcome::Registered { differing, settings_denied }) => {
                tracing::info!(key, address = %record.address(), "registered");
                if self.differing != *differing {
                    log_differences(differing, *settings_denied);
                }
                *self = Self { differing: differing.clone(), ..Self::default() };
            }
            Ok(Outcome::Taken(owner)) => {
                if self.owner.as_ref() != Some(owner) {
                    log_owner(&key, owner);
                }
                self.owner = Some(owner.clone());
                self.failure = None;
            }
            Ok(Outcome::Contended) => tracing::debug!(key, "somebody else keeps writing the same keys; trying on"),
            Err(error) => {
                let failure = Failure::of(error);
                if self.failure == Some(failure) {
                    tracing::debug!(key, %error, "still trying to register");
                } else {
                    tracing::warn!(key, %error, "can't register for now; the app goes on, and so do the attempts");
                }
                self.failure = Some(failure);
            }
        }
    }
}

/// Says which settings stay as they are.
pub(crate) fn log_differences(differing: &[Difference], settings_denied: bool) {
    let hint = if settings_denied { "etcd's roles forbid writing it" } else { "--update would overwrite it" };
    for Difference { key, stands, given } in differing {
        let stands = stands.as_deref().unwrap_or("nothing");
        tracing::warn!(key, stands, given, "the store says otherwise than this announcer: left as it is; {hint}");
    }
}

fn log_owner(key: &str, owner: &Owner) {
    let end = if owner.lease.is_some() { "that lease ends" } else { "it is deleted" };
    tracing::warn!(key, %owner, "the id is taken: waiting until {end} (--takeover doesn't wait)");
}
