//! `register` and `deregister`: one write, and its result as the exit code. They follow nothing.

use std::{sync::Arc, time::Duration};

use discovery::UpstreamState;
use registry::{Client, LeaseId};
use tokio::time::Instant;

use crate::config::address::AddressError;
use crate::config::{Config, address};
use crate::record::draft::draft_deregistration;
use crate::record::ownership::Owner;
use crate::record::{Record, Want, claims};
use crate::registrar::log_changes::ChangeLog;
use crate::registrar::record_set::RecordSet;
use crate::registrar::transaction;
use crate::retry::{self, StoreError};

/// Limit for etcd's answer. An election (2 s seen) and a frozen member (noticed after 2 to 5 s) fit in.
const PATIENCE: Duration = Duration::from_secs(8);

/// Reason for a failed command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OneShotError {
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{key} belongs to {owner}; --takeover takes it over, another --id leaves it alone")]
    IdTaken { key: String, owner: Owner },
    #[error("{key} has {stored}, not {address}; it was not deleted, since another announcer may own it")]
    OtherAddress { key: String, stored: String, address: String },
    #[error("can't write {key}: other writers keep changing the same keys; try again")]
    Contended { key: String },
}

/// Writes the records without a lease, or under one of `ttl` that is never renewed.
pub(crate) async fn register_records(config: &Config, ttl: Option<Duration>) -> Result<(), OneShotError> {
    let (client, records) = resolve_records(config).await?;
    let deadline = Instant::now() + PATIENCE;
    let lease = match ttl {
        Some(ttl) => Some(retry::retry_until(deadline, || client.grant_lease(ttl)).await?),
        None => None,
    };
    let outcome = register_under(&client, &records, lease, deadline).await;
    if let (Some(lease), Err(_)) = (lease, &outcome) {
        // Some records may have been written. If this fails, they end with the lease.
        let _ = retry::retry_until(deadline, || client.revoke_lease(lease)).await;
    }
    outcome
}

async fn register_under(
    client: &Client,
    records: &[Arc<Record>],
    lease: Option<LeaseId>,
    deadline: Instant,
) -> Result<(), OneShotError> {
    let withheld = claims::find_withheld_settings(client, records).await.unwrap_or_default();
    let wants: Vec<_> = records.iter().map(|record| (record.clone(), Want::Present(UpstreamState::Ready))).collect();
    // A new set for each attempt: it finds standing what an earlier attempt wrote.
    let round = retry::retry_until(deadline, || async {
        let mut set = if lease.is_some() { RecordSet::default() } else { RecordSet::without_lease() };
        set.withhold_settings(withheld.clone());
        set.set_wants(lease, &wants);
        let mut round = transaction::write_round(client, &mut set).await;
        round.failure.take().map_or(Ok(round), Err)
    });
    let mut round = round.await?;
    ChangeLog::default().log_round(&round);
    match (round.taken.pop(), round.contended, records) {
        (Some((record, owner)), ..) => Err(OneShotError::IdTaken { key: record.key(), owner }),
        (None, true, [record, ..]) => Err(OneShotError::Contended { key: record.key() }),
        _ => Ok(()),
    }
}

/// Deletes the records that have our addresses. A missing record is no error.
pub(crate) async fn deregister_records(config: &Config) -> Result<(), OneShotError> {
    let (client, records) = resolve_records(config).await?;
    let deadline = Instant::now() + PATIENCE;
    let mut outcome = Ok(());
    for record in records {
        let deregistered = deregister_one(&client, &record, deadline).await;
        // The other records are deleted even if one fails. The first error counts.
        outcome = outcome.and(deregistered);
    }
    outcome
}

async fn deregister_one(client: &Client, record: &Record, deadline: Instant) -> Result<(), OneShotError> {
    let key = record.key();
    let mut entry = retry::retry_until(deadline, || client.get(&key)).await?;
    while let Some(found) = entry {
        let Some(txn) = draft_deregistration(record, &found) else {
            let stored = String::from_utf8_lossy(&found.value).into_owned();
            return Err(OneShotError::OtherAddress { key, stored, address: record.address().to_string() });
        };
        let committed = retry::retry_until(deadline, || client.commit(txn.clone())).await?;
        if committed.succeeded {
            tracing::info!(key, "deregistered");
            return Ok(());
        }
        // The record changed between the read and the write, so its address is compared again.
        entry = committed.found.into_iter().next();
    }
    tracing::info!(key, "nothing was registered");
    Ok(())
}

async fn resolve_records(config: &Config) -> Result<(Client, Vec<Arc<Record>>), OneShotError> {
    let mut records = Vec::new();
    for upstream in &config.upstreams {
        let address = address::find_address(&upstream.address_source, config.etcd.endpoints()).await?;
        records.push(Arc::new(Record::new(upstream.announcement.clone(), address, upstream.overwrite_rules)));
    }
    Ok((Client::new(config.etcd.clone()), records))
}
