//! The history since a revision: the keys as they were there, and each change since.
//!
//! etcd has no list of its revisions, but a watch from an old revision delivers them. Nothing is followed beyond now.

use std::collections::BTreeMap;
use std::time::Duration;

use discovery::{Change, Entry, Snapshot};
use etcd_client::proto::PbWatchResponse;
use tokio::time::timeout;

use crate::classification::Failure;
use crate::client::Client;
use crate::entry::Range;
use crate::error::{Error, Operation};
use crate::revisions::{Decision, Position, ResyncReason, Revisions, revision_of};
use crate::stream::messages::MAX_SILENCE;
use crate::watch::{Watch, WatchEnd};

/// The whole read. A hundred thousand revisions take some seconds.
const DEADLINE: Duration = Duration::from_secs(60);

/// etcd sends a watcher that is behind its next part within 100 ms (`syncWatchersLoop`, etcd's `watchable_store.go`). A
/// longer silence is a pause. Before 3.4.25, etcd's word on a watcher's progress may be ahead of its events.
const PAUSE: Duration = Duration::from_millis(300);

/// The attempts of a read during which etcd compacts away its revision, or fails.
const ATTEMPTS: usize = 3;

/// A watch of a compacted revision ends with its second message.
const MAX_MESSAGES: usize = 5;

/// etcd's first revision, at which it is empty.
const FIRST_REVISION: i64 = 1;

/// The history below a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The keys at the requested revision, or at the oldest one that can be read.
    pub before: Snapshot,
    /// The changes since then, in order.
    pub changes: Vec<Change>,
    /// The revision of the last listing. All changes up to it are included.
    pub revision: i64,
}

impl Client {
    /// The changes below a folder since a revision, up to now. They begin at [`Client::oldest_revision`] if the requested
    /// revision is older.
    pub async fn changes_since(&self, folder: &str, since: i64) -> Result<Changes, Error> {
        let range = self.config().prefix.absolute_folder(folder);
        let mut attempt = 1;
        loop {
            let result = timeout(DEADLINE, self.try_changes_since(folder, since.max(FIRST_REVISION))).await;
            let result = result.unwrap_or_else(|_| {
                let operation = Operation::Watch(range.clone());
                Err(Error::Silent { endpoint: self.current_endpoint(), operation, limit: DEADLINE })
            });
            match result {
                Err(error) if attempt < ATTEMPTS && is_retryable(&error) => attempt += 1,
                other => return other,
            }
        }
    }

    /// The oldest revision at which keys below a folder can still be read. Older ones are compacted away.
    pub async fn oldest_revision(&self, folder: &str) -> Result<i64, Error> {
        match self.read_snapshot_at(folder, FIRST_REVISION).await {
            Ok(_) => Ok(FIRST_REVISION),
            Err(Error::Compacted { .. }) => self.compaction_revision(folder).await,
            Err(other) => Err(other),
        }
    }

    async fn try_changes_since(&self, folder: &str, since: i64) -> Result<Changes, Error> {
        let before = match self.read_snapshot_at(folder, since).await {
            Err(Error::Compacted { .. }) => {
                self.read_snapshot_at(folder, self.compaction_revision(folder).await?).await?
            }
            other => other?,
        };
        let now = self.read_snapshot(folder).await?;
        let changes = self.watch_changes(folder, &before, &now).await?;
        Ok(Changes { before, changes, revision: now.revision })
    }

    /// The revision that the store was compacted at. Only a watch that begins before it is told.
    async fn compaction_revision(&self, folder: &str) -> Result<i64, Error> {
        let mut watch = self.open_watch(folder, FIRST_REVISION).await?;
        for _ in 0..MAX_MESSAGES {
            let message = watch.next_message().await.map_err(WatchEnd::into_error)?;
            if message.compact_revision > 0 {
                return Ok(message.compact_revision);
            }
            if message.canceled {
                return Err(watch.cancel_failure(&message.cancel_reason).error);
            }
        }
        Err(watch.cancel_failure("a watch of what is compacted away doesn't say so").error)
    }

    async fn watch_changes(&self, folder: &str, before: &Snapshot, now: &Snapshot) -> Result<Vec<Change>, Error> {
        let range = self.config().prefix.absolute_folder(folder);
        // At this very revision, not behind it: otherwise etcd doesn't say that the next ones are compacted away in part.
        let mut watch = self.open_watch(folder, before.revision).await?;
        let mut revisions = Revisions::new(self.config().prefix.clone(), Position::from_snapshot(before));
        let mut replay = Replay::from_snapshots(before, now);
        loop {
            let message = match timeout(PAUSE, watch.next_message()).await {
                Ok(message) => message,
                // If nothing is missing, a sign of life after a pause is the end.
                Err(_) => match watch.request_message().await {
                    Ok(message) if replay.is_complete() && is_sign_of_life(&message) => return Ok(replay.changes),
                    other => other,
                },
            };
            match revisions.accept_message(message.map_err(WatchEnd::into_error)?) {
                Decision::Created | Decision::Alive => {}
                Decision::Deliver { changes, .. } => replay.apply_changes(changes),
                Decision::Resync(ResyncReason::Compacted) => {
                    return Err(Error::Compacted { operation: Operation::Watch(range) });
                }
                Decision::Resync(why) => return Err(watch.cancel_failure(&why.to_string()).error),
                Decision::Canceled(reason) => return Err(watch.cancel_failure(&reason).error),
            }
        }
    }

    async fn open_watch(&self, folder: &str, revision: i64) -> Result<Watch, Error> {
        let range = Range::of_folder(&self.config().prefix, folder);
        Watch::open(self.clone(), &range, revision, MAX_SILENCE, false).await.map_err(|failure: Failure| failure.error)
    }
}

/// True if another attempt may succeed.
fn is_retryable(error: &Error) -> bool {
    matches!(error, Error::Compacted { .. } | Error::Unreachable { .. })
}

/// True if the message says only that the member lives.
fn is_sign_of_life(message: &PbWatchResponse) -> bool {
    message.events.is_empty() && !message.canceled && !message.created
}

/// The changes that lead from one listing to another.
struct Replay {
    /// The revision of each key's last write, after the changes so far.
    written: BTreeMap<String, i64>,
    /// The same in the second listing.
    target: BTreeMap<String, i64>,
    end_revision: i64,
    changes: Vec<Change>,
}

impl Replay {
    fn from_snapshots(before: &Snapshot, now: &Snapshot) -> Self {
        let (written, target) = (write_revisions(before), write_revisions(now));
        Self { written, target, end_revision: now.revision, changes: Vec::new() }
    }

    /// Applies changes up to the second listing's revision. It skips newer changes.
    fn apply_changes(&mut self, changes: Vec<Change>) {
        for change in changes {
            let revision = revision_of(&change);
            if revision > self.end_revision {
                continue;
            }
            match &change {
                Change::Put(entry) => self.written.insert(entry.key.clone(), revision),
                Change::Delete { key, .. } => self.written.remove(key),
            };
            self.changes.push(change);
        }
    }

    /// True if the changes so far lead to the second listing.
    fn is_complete(&self) -> bool {
        self.written == self.target
    }
}

fn write_revisions(snapshot: &Snapshot) -> BTreeMap<String, i64> {
    snapshot.entries.iter().map(|Entry { key, mod_revision, .. }| (key.clone(), *mod_revision)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, mod_revision: i64) -> Entry {
        Entry { key: key.into(), value: Vec::new(), create_revision: 1, mod_revision, lease: 0 }
    }

    #[test]
    fn changes_are_whole_when_they_lead_to_what_is_there_now() {
        let listing = |revision, entries| Snapshot { cluster: 1, revision, raft_term: 1, entries };
        let before = listing(5, vec![entry("a", 3), entry("b", 4)]);
        let now = listing(9, vec![entry("a", 8)]);
        let mut replay = Replay::from_snapshots(&before, &now);
        assert!(!replay.is_complete());
        replay.apply_changes(vec![
            Change::Put(entry("c", 6)),
            Change::Delete { key: "b".into(), revision: 7, previous: None },
        ]);
        replay.apply_changes(vec![Change::Put(entry("a", 8))]);
        assert!(!replay.is_complete(), "c is to go");
        replay.apply_changes(vec![
            Change::Delete { key: "c".into(), revision: 9, previous: None },
            Change::Put(entry("a", 10)),
        ]);
        assert!(replay.is_complete());
        assert_eq!(replay.changes.len(), 4, "what is newer than the listing is left out");
    }
}
