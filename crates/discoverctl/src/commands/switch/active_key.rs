//! The key `active` during a switch.
//!
//! Writes it only while no other client does: each write has the condition that the key is as this switch left it.

use std::time::Duration;

use discovery::{Entry, Key, ServiceId, SettingName};
use registry::{Client, Condition, Error, Txn};
use tokio::time::{Instant, sleep};

use crate::context::{Context, Note};
use crate::store::{Store, lossy_text};

/// The interval between two checks for another client's write, and between two tries of a write that etcd did not
/// answer.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The key `active` before the switch and now.
pub(super) struct ActiveKey {
    /// The key, relative to the prefix.
    pub(super) key: String,
    /// The entry before the switch; None if the current layout has none.
    pub(super) before: Option<Entry>,
    /// The revision of the last write; 0 if the key is absent.
    mod_revision: i64,
    /// The present value; None if the key is absent.
    pub(super) value: Option<String>,
    /// The revision that balancers have to follow.
    pub(super) revision: i64,
}

/// The outcome of a write.
pub(super) enum WriteOutcome {
    Done,
    /// Another client wrote the key, and its value stays.
    Conflict,
    /// etcd refused the write, or didn't say in time if it was done.
    Unknown {
        error: Error,
        /// etcd refused the write for certain, so nothing was written.
        is_certain: bool,
    },
}

impl ActiveKey {
    /// Takes the key from the store as it was read.
    pub(super) fn new(store: &Store, id: &ServiceId) -> Self {
        let key = Key::for_setting(id, SettingName::Active).to_string();
        let before = store.find_entry(&key).cloned();
        Self {
            mod_revision: before.as_ref().map_or(0, |entry| entry.mod_revision),
            value: before.as_ref().map(lossy_text),
            // The store's own revision would be wrong here. Balancers report the revision of services' keys, whose last
            // change may be old.
            revision: before.as_ref().map_or(0, |entry| entry.mod_revision),
            key,
            before,
        }
    }

    /// Writes the value, or deletes the key if it is None. After an unanswered try it asks etcd for the outcome, and
    /// tries again until `patience` ends. `reason` goes into the change log.
    pub(super) async fn write_value(
        &mut self,
        context: &Context,
        value: Option<String>,
        reason: Option<&str>,
        patience: Duration,
    ) -> WriteOutcome {
        let deadline = Instant::now() + patience;
        let mut is_doubtful = false;
        loop {
            let note = Note { keys: vec![&self.key], reason, ..Note::default() };
            let committed = context.commit_logged(self.build_txn(value.as_deref()), &note).await;
            match committed {
                Ok(committed) if committed.succeeded => {
                    // A deleted key has no revision. The condition of its next write is that it is absent.
                    let at = if value.is_some() { committed.revision } else { 0 };
                    (self.mod_revision, self.revision, self.value) = (at, committed.revision, value);
                    return WriteOutcome::Done;
                }
                // The unanswered try may have been done. The key then has our value, and the condition fails.
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
                    // After an unanswered try a refusal says nothing about that try.
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

    /// Reads the present value, which another client may have written.
    pub(super) async fn read_current(&self, client: &Client) -> Option<String> {
        let entry = client.get(&self.key).await.ok().flatten()?;
        Some(lossy_text(&entry))
    }

    /// Returns as soon as another client has written or deleted the key.
    pub(super) async fn wait_for_conflict(&self, client: &Client) {
        loop {
            sleep(RETRY_INTERVAL).await;
            // An etcd that doesn't answer is no conflict. The condition of the next write finds one.
            if let Ok(entry) = client.get(&self.key).await
                && entry.map_or(0, |entry| entry.mod_revision) != self.mod_revision
            {
                return;
            }
        }
    }
}
