//! Records of containers, as an earlier agent left them in the store.

use std::sync::Arc;

use discovery::{Entry, Key, Slot, UpstreamAddress};
use registry::{Client, Error, LeaseId};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::agent::copies::CopyKey;
use crate::agent::engines::News;
use crate::config::upstream::Upstream;
use crate::lease::Lease;
use crate::record::Record;
use crate::retry;

/// Keys that hang on the lease of an earlier agent.
#[derive(Debug, Default)]
pub(crate) struct Adopted {
    pub(crate) records: Vec<Entry>,
    /// Keys of slots and stand-bys, with the copies that have them.
    pub(crate) copies: Vec<(String, CopyKey)>,
}

/// The record of an upstream at this address.
pub(crate) fn make_record(upstream: &Upstream, address: UpstreamAddress) -> Arc<Record> {
    Arc::new(Record::new(upstream.announcement.clone(), address, upstream.overwrite_rules))
}

/// Reads the records that hang on the lease of an earlier agent, and reports them. It waits for etcd as long as it takes.
/// A lease that has ended has no records.
pub(crate) async fn adopt_records(lease: Lease, resumed: Option<LeaseId>, news: mpsc::Sender<News>) {
    let mut adopted = Adopted::default();
    if let Some(resumed) = resumed {
        let mut held = lease.id.clone();
        let Ok(held) = held.wait_for(Option::is_some).await.map(|held| *held) else { return };
        if held == Some(resumed) {
            let mut delays = retry::store_delays();
            loop {
                match read_leased(&lease.client, resumed).await {
                    Ok(found) => break adopted = found,
                    Err(error) => tracing::warn!(%error, "can't read the records of an earlier agent, trying again"),
                }
                sleep(delays.next().unwrap_or_default()).await;
            }
        }
    }
    let _ = news.send(News::Adopted(adopted)).await;
}

/// The keys that hang on a lease.
pub(crate) async fn read_leased(client: &Client, lease: LeaseId) -> Result<Adopted, Error> {
    let mut found = Adopted::default();
    for key in client.lease_keys(lease).await?.unwrap_or_default() {
        let Some(entry) = client.get(&key).await?.filter(|entry| entry.lease == lease.get()) else { continue };
        if let Some(copy) = find_copy(&entry) {
            found.copies.push((key, copy));
        } else if Record::from_entry(&entry).is_some() {
            found.records.push(entry);
        }
    }
    Ok(found)
}

/// The copy that has a slot or a stand-by. `None` for another key, or a slot that can't be read.
fn find_copy(entry: &Entry) -> Option<CopyKey> {
    match entry.key.parse().ok()? {
        Key::Slot { service, .. } => Some((service, Slot::parse(&entry.value).ok()?.id)),
        Key::Standby { service, id } => Some((service, id)),
        _ => None,
    }
}
