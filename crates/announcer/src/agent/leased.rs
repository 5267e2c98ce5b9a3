//! Records of containers, as an earlier agent left them in the store.

use std::sync::Arc;

use discovery::{Entry, UpstreamAddress};
use registry::{Client, Error, LeaseId};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::agent::engines::News;
use crate::config::upstream::Upstream;
use crate::lease::Lease;
use crate::record::Record;
use crate::retry;

/// The record of an upstream at this address.
pub(crate) fn make_record(upstream: &Upstream, address: UpstreamAddress) -> Arc<Record> {
    Arc::new(Record::new(upstream.announcement.clone(), address, upstream.overwrite_rules))
}

/// Reads the records that hang on the lease of an earlier agent, and reports them. It waits for etcd as long as it takes.
/// A lease that has ended has no records.
pub(crate) async fn adopt_records(lease: Lease, resumed: Option<LeaseId>, news: mpsc::Sender<News>) {
    let mut entries = Vec::new();
    if let Some(resumed) = resumed {
        let mut held = lease.id.clone();
        let Ok(held) = held.wait_for(Option::is_some).await.map(|held| *held) else { return };
        if held == Some(resumed) {
            let mut delays = retry::store_delays();
            loop {
                match read_leased(&lease.client, resumed).await {
                    Ok(found) => break entries = found,
                    Err(error) => tracing::warn!(%error, "can't read the records of an earlier agent, trying again"),
                }
                sleep(delays.next().unwrap_or_default()).await;
            }
        }
    }
    let _ = news.send(News::Adopted(entries)).await;
}

/// The records that hang on a lease.
pub(crate) async fn read_leased(client: &Client, lease: LeaseId) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    for key in client.lease_keys(lease).await?.unwrap_or_default() {
        let entry = client.get(&key).await?;
        entries.extend(entry.filter(|entry| entry.lease == lease.get() && Record::from_entry(entry).is_some()));
    }
    Ok(entries)
}
