//! The store as it was.

use registry::Error as StoreError;

use crate::context::Context;
use crate::error::Error;
use crate::store::Store;

/// Everything below the prefix as it was at a revision, if that is neither compacted away nor still to come.
pub(crate) async fn read_store_at(ctl: &Context, revision: i64, now: &Store) -> Result<Store, Error> {
    if !(1..=now.revision).contains(&revision) {
        return Err(Error::Usage(format!("revision {revision}: the store is at {}", now.revision)));
    }
    match ctl.client.read_snapshot_at("", revision).await {
        Ok(snapshot) => Ok(Store::from_snapshot(snapshot)),
        Err(StoreError::Compacted { .. }) => {
            let oldest = ctl.client.oldest_revision("").await?;
            let words = format!("revision {revision} is compacted away; the oldest that can be read is {oldest}");
            Err(Error::Refused(words))
        }
        Err(other) => Err(other.into()),
    }
}
