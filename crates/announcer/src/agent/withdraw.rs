//! `announcer containers withdraw`: takes all records of the host out of the store, after the agent has ended. It stops no
//! container.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use discovery::UpstreamState;
use registry::Client;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::agent::AgentError;
use crate::agent::leased::read_leased;
use crate::agent::state_dir::StateDir;
use crate::lease::Lease;
use crate::record::{Record, Want};
use crate::registrar::Registrar;
use crate::retry;
use crate::state::Action;
use crate::withdraw::{WITHDRAW_LIMIT, drain_records, withdraw_records};

/// Limit for etcd's answers before the drain. An election (2 s seen) and a frozen member (noticed after 2 to 5 s) fit in.
const PATIENCE: Duration = Duration::from_secs(8);

/// Exit code if not every balancer acknowledged the drain in time.
const NOT_ACKNOWLEDGED: u8 = 3;

/// Drains, waits, deletes the records and revokes their lease. Returns the exit status.
pub(crate) async fn withdraw_host(
    client: Client,
    state_dir: &Path,
    ttl: Duration,
    limit: Duration,
) -> anyhow::Result<u8> {
    let state_dir = StateDir::open(state_dir).map_err(AgentError::from)?;
    let Some(resumed) = state_dir.read_lease() else {
        tracing::info!("nothing to withdraw: no agent has left a lease in the state directory");
        return Ok(0);
    };
    let deadline = Instant::now() + PATIENCE;
    // Before the lease is renewed: one that has ended would be replaced by a new one.
    let is_alive = retry::retry_until(deadline, || client.time_to_live(resumed)).await?.is_some();
    if !is_alive {
        tracing::info!("nothing to withdraw: the lease has ended, and its records with it");
        state_dir.remove_lease();
        return Ok(0);
    }
    let found = retry::retry_until(deadline, || read_leased(&client, resumed)).await?;
    for (key, _) in &found.copies {
        let hint = "stop the container: another host may start a copy now";
        tracing::warn!(key, hint, "a copy's slot or stand-by ends with the host's records");
    }
    let entries = found.records;
    let lease = Lease::resume(client, ttl, Some(resumed));
    let mut held = lease.id.clone();
    let _ = timeout(PATIENCE, held.wait_for(Option::is_some)).await;
    // Nothing is reported to anyone here.
    let (messages, _ignored) = mpsc::channel(1);
    let registrar = Registrar::start_for_host(lease.clone(), messages);
    let records = entries.iter().filter_map(Record::from_entry).map(|(record, _)| Arc::new(record));
    registrar.set_wants(records.map(|record| (record, Want::IfPresent(UpstreamState::Drain))).collect());
    let is_acknowledged = entries.is_empty() || drain_records(&registrar, &lease, limit).await;
    withdraw_records(&registrar, &lease, &[Action::Delete, Action::Revoke], WITHDRAW_LIMIT).await;
    state_dir.remove_lease();
    tracing::info!(records = entries.len(), "withdrawn");
    Ok(if is_acknowledged { 0 } else { NOT_ACKNOWLEDGED })
}
