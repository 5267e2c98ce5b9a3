//! The store at an older revision.

use registry::Error as StoreError;

use crate::context::Context;
use crate::error::Error;
use crate::store::Store;

/// Reads everything below the prefix at a revision.
///
/// # Errors
/// [`Error::Usage`] for a future revision, [`Error::Refused`] for a compacted one.
pub(crate) async fn read_store_at(context: &Context, revision: i64, now: &Store) -> Result<Store, Error> {
    // etcd's own error for a future revision names neither this revision nor the newest one.
    if !(1..=now.revision).contains(&revision) {
        return Err(Error::Usage(format!("revision {revision}: the store is at {}", now.revision)));
    }
    match context.client.read_snapshot_at("", revision).await {
        Ok(snapshot) => Ok(Store::from_snapshot(snapshot)),
        Err(StoreError::Compacted { .. }) => {
            // The operator has to know how far back the store reaches.
            let oldest = context.client.oldest_revision("").await?;
            let words = format!("revision {revision} is compacted away; the oldest that can be read is {oldest}");
            Err(Error::Refused(words))
        }
        Err(other) => Err(other.into()),
    }
}
