//! The key `active`, as it was and as a switch writes it: only as long as nobody else does.

use std::time::Duration;

use discovery::{Entry, Key, ServiceId, SettingName};
use registry::{Client, Condition, Error, Txn};
use tokio::time::{Instant, sleep};

use crate::store::Store;

/// How often is looked whether somebody else wrote it, and a write is tried again that etcd didn't answer.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// `active`, as it was and as we wrote it.
pub(super) struct ActiveKey {
    /// The key, relative to the prefix.
    pub(super) key: String,
    /// What stood there; None in the ancestor's layout too.
    pub(super) before: Option<Entry>,
    /// When it was last written; 0 where it isn't there.
    mod_revision: i64,
    /// What stands there.
    pub(super) value: Option<String>,
    /// The revision that balancers have to follow.
    pub(super) revision: i64,
}

/// What became of a write.
pub(super) enum WriteOutcome {
    /// It stands.
    Done,
    /// Somebody else wrote the key, and theirs stands.
    Conflict,
    /// etcd didn't say in time, or refuses.
    Unknown {
        /// Why.
        error: Error,
        /// It was refused for certain: nothing was written.
        is_certain: bool,
    },
}

impl ActiveKey {
    /// As it stands.
    pub(super) fn new(store: &Store, id: &ServiceId) -> Self {
        let key = Key::for_setting(id, SettingName::Active).to_string();
        let before = store.find_entry(&key).cloned();
        Self {
            mod_revision: before.as_ref().map_or(0, |entry| entry.mod_revision),
            value: before.as_ref().map(|entry| String::from_utf8_lossy(&entry.value).into_owned()),
            // Not the store's own: balancers follow the keys of services, whose last change may be long ago.
            revision: before.as_ref().map_or(0, |entry| entry.mod_revision),
            key,
            before,
        }
    }

    /// Writes it, or deletes it, unless somebody else did. Where etcd doesn't say what became of it, it is asked.
    pub(super) async fn write_value(
        &mut self,
        client: &Client,
        value: Option<String>,
        patience: Duration,
    ) -> WriteOutcome {
        let deadline = Instant::now() + patience;
        let mut is_doubtful = false;
        loop {
            match client.commit(self.build_txn(value.as_deref())).await {
                Ok(committed) if committed.succeeded => {
                    let at = if value.is_some() { committed.revision } else { 0 };
                    (self.mod_revision, self.revision, self.value) = (at, committed.revision, value);
                    return WriteOutcome::Done;
                }
                // What was not answered may have been done.
                Ok(committed) if is_doubtful => {
                    let stands = committed.found.first();
                    if stands.map(|entry| entry.value.as_slice()) != value.as_deref().map(str::as_bytes) {
                        return WriteOutcome::Conflict;
                    }
                    self.mod_revision = stands.map_or(0, |entry| entry.mod_revision);
                    (self.revision, self.value) = (committed.revision, value);
                    return WriteOutcome::Done;
                }
                Ok(_) => return WriteOutcome::Conflict,
                Err(error) if error.is_unreachable() && Instant::now() < deadline => is_doubtful = true,
                Err(error) => {
                    let is_certain = !error.is_unreachable() && !is_doubtful;
                    return WriteOutcome::Unknown { error, is_certain };
                }
            }
            sleep(RETRY_INTERVAL).await;
        }
    }

    fn build_txn(&self, value: Option<&str>) -> Txn {
        let stands = match self.mod_revision {
            0 => Condition::Absent(self.key.clone()),
            at => Condition::ModRevisionIs(self.key.clone(), at),
        };
        let txn = Txn::new().only_if(stands).or_get(self.key.as_str());
        match value {
            Some(value) => txn.put(self.key.as_str(), value, None),
            None => txn.delete(self.key.as_str()),
        }
    }

    /// What stands there now, whoever wrote it.
    pub(super) async fn read_current(&self, client: &Client) -> Option<String> {
        let entry = client.get(&self.key).await.ok().flatten()?;
        Some(String::from_utf8_lossy(&entry.value).into_owned())
    }

    /// Returns when it was written, or deleted, by somebody else.
    pub(super) async fn wait_for_conflict(&self, client: &Client) {
        loop {
            sleep(RETRY_INTERVAL).await;
            if let Ok(entry) = client.get(&self.key).await
                && entry.map_or(0, |entry| entry.mod_revision) != self.mod_revision
            {
                return;
            }
        }
    }
}
