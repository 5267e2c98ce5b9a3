//! The key `active`, as it was and as a switch writes it: only as long as nobody else does.

use std::time::Duration;

use discovery::{Entry, Key, ServiceId, SettingName};
use registry::{Client, Condition, Error, Txn};
use tokio::time::{Instant, sleep};

use crate::store::Store;

/// How often is looked whether somebody else wrote it, and a write is tried again that etcd didn't answer.
const PACE: Duration = Duration::from_secs(1);

/// `active`, as it was and as we wrote it.
pub(super) struct Written {
    /// The key, relative to the prefix.
    pub(super) key: String,
    /// What stood there; None in the ancestor's layout too.
    pub(super) was: Option<Entry>,
    /// When it was last written; 0 where it isn't there.
    at: i64,
    /// What stands there.
    pub(super) value: Option<String>,
    /// The revision that balancers have to follow.
    pub(super) revision: i64,
}

/// What became of a write.
pub(super) enum Wrote {
    /// It stands.
    Done,
    /// Somebody else wrote the key, and theirs stands.
    Overtaken,
    /// etcd didn't say in time, or refuses.
    Unknown {
        /// Why.
        error: Error,
        /// It was refused for certain: nothing was written.
        is_certain: bool,
    },
}

impl Written {
    /// As it stands.
    pub(super) fn new(store: &Store, id: &ServiceId) -> Self {
        let key = Key::setting(id, SettingName::Active).to_string();
        let was = store.entry(&key).cloned();
        Self {
            at: was.as_ref().map_or(0, |entry| entry.mod_revision),
            value: was.as_ref().map(|entry| String::from_utf8_lossy(&entry.value).into_owned()),
            // Not the store's own: balancers follow the keys of services, whose last change may be long ago.
            revision: was.as_ref().map_or(0, |entry| entry.mod_revision),
            key,
            was,
        }
    }

    /// Writes it, or deletes it, unless somebody else did. Where etcd doesn't say what became of it, it is asked.
    pub(super) async fn write(&mut self, client: &Client, value: Option<String>, patience: Duration) -> Wrote {
        let deadline = Instant::now() + patience;
        let mut is_doubtful = false;
        loop {
            match client.commit(self.txn(value.as_deref())).await {
                Ok(committed) if committed.succeeded => {
                    let at = if value.is_some() { committed.revision } else { 0 };
                    (self.at, self.revision, self.value) = (at, committed.revision, value);
                    return Wrote::Done;
                }
                // What was not answered may have been done.
                Ok(committed) if is_doubtful => {
                    let stands = committed.found.first();
                    if stands.map(|entry| entry.value.as_slice()) != value.as_deref().map(str::as_bytes) {
                        return Wrote::Overtaken;
                    }
                    self.at = stands.map_or(0, |entry| entry.mod_revision);
                    (self.revision, self.value) = (committed.revision, value);
                    return Wrote::Done;
                }
                Ok(_) => return Wrote::Overtaken,
                Err(error) if error.is_unreachable() && Instant::now() < deadline => is_doubtful = true,
                Err(error) => {
                    let is_certain = !error.is_unreachable() && !is_doubtful;
                    return Wrote::Unknown { error, is_certain };
                }
            }
            sleep(PACE).await;
        }
    }

    fn txn(&self, value: Option<&str>) -> Txn {
        let stands = match self.at {
            0 => Condition::Absent(self.key.clone()),
            at => Condition::ModRevisionIs(self.key.clone(), at),
        };
        let txn = Txn::new().when(stands).or_get(self.key.as_str());
        match value {
            Some(value) => txn.put(self.key.as_str(), value, None),
            None => txn.delete(self.key.as_str()),
        }
    }

    /// What stands there now, whoever wrote it.
    pub(super) async fn now(&self, client: &Client) -> Option<String> {
        let entry = client.get(&self.key).await.ok().flatten()?;
        Some(String::from_utf8_lossy(&entry.value).into_owned())
    }

    /// Returns when it was written, or deleted, by somebody else.
    pub(super) async fn overtaken(&self, client: &Client) {
        loop {
            sleep(PACE).await;
            if let Ok(entry) = client.get(&self.key).await
                && entry.map_or(0, |entry| entry.mod_revision) != self.at
            {
                return;
            }
        }
    }
}
