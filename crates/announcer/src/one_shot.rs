//! `register` and `deregister`: one write, and its answer as an exit code.

use std::time::Duration;

use registry::Client;
use tokio::time::Instant;

use crate::{
    address::{self, AddressError},
    config::Config,
    record::{Owner, Record},
    registrar::{self, Outcome},
    retry::{self, StoreError},
};

/// How long etcd is given to answer: an election (2 s seen) and a frozen member (noticed after 2 to 5 s) fit in.
const PATIENCE: Duration = Duration::from_secs(8);

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OneShotError {
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{key} belongs to {owner}; --takeover takes it over, another --id leaves it alone")]
    Taken { key: String, owner: Owner },
    #[error("{key} bears {stands}, not {address}: left alone")]
    OtherAddress { key: String, stands: String, address: String },
    #[error("{key}: somebody else keeps writing the same keys")]
    Contended { key: String },
}

/// Writes the record: for ever, or until `ttl` is over.
pub(crate) async fn register(config: &Config, ttl: Option<Duration>) -> Result<(), OneShotError> {
    let (client, record) = prepare(config).await?;
    let deadline = Instant::now() + PATIENCE;
    let lease = match ttl {
        Some(ttl) => Some(retry::until(deadline, || client.grant(ttl)).await?),
        None => None,
    };
    let outcome = retry::until(deadline, || registrar::register(&client, &record, lease)).await;
    if let (Some(lease), false) = (lease, matches!(outcome, Ok(Outcome::Registered { .. }))) {
        // Nothing hangs on it; if this fails it ends by itself.
        let _ = retry::until(deadline, || client.revoke(lease)).await;
    }
    let key = record.key();
    match outcome? {
        Outcome::Registered { differing, settings_denied } => {
            registrar::log_differences(&differing, settings_denied);
            tracing::info!(key, address = %record.address(), "registered");
            Ok(())
        }
        Outcome::Taken(owner) => Err(OneShotError::Taken { key, owner }),
        Outcome::Contended => Err(OneShotError::Contended { key }),
    }
}

/// Deletes the record if it bears our address. One that isn't there is fine.
pub(crate) async fn deregister(config: &Config) -> Result<(), OneShotError> {
    let (client, record) = prepare(config).await?;
    let deadline = Instant::now() + PATIENCE;
    let key = record.key();
    let mut entry = retry::until(deadline, || client.get(&key)).await?;
    while let Some(found) = entry {
        let Some(txn) = record.deregistration(&found) else {
            let stands = String::from_utf8_lossy(&found.value).into_owned();
            return Err(OneShotError::OtherAddress { key, stands, address: record.address().to_string() });
        };
        let committed = retry::until(deadline, || client.commit(txn.clone())).await?;
        if committed.succeeded {
            tracing::info!(key, "deregistered");
            return Ok(());
        }
        entry = committed.found.into_iter().next();
    }
    tracing::info!(key, "nothing was registered");
    Ok(())
}

async fn prepare(config: &Config) -> Result<(Client, Record), OneShotError> {
    let address = address::find(&config.whereabouts, config.etcd.endpoints()).await?;
    let record = Record::new(config.announcement.clone(), address, config.policy);
    Ok((Client::new(config.etcd.clone()), record))
}
