//! What has happened since a revision: the keys as they were there, and each change since.
//!
//! etcd has no list of its revisions; a watch from an old one delivers them.

use std::collections::BTreeMap;
use std::time::Duration;

use discovery::{Change, Entry, Snapshot};
use etcd_client::proto::PbWatchResponse;
use tokio::time::timeout;

use crate::classification::Failure;
use crate::client::Client;
use crate::entry::Range;
use crate::error::{Error, Operation};
use crate::revisions::{Decision, Position, ResyncReason, Revisions};
use crate::watch::{MAX_SILENCE as SILENCE, Watch};

/// All of it. A hundred thousand revisions take some seconds.
const DEADLINE: Duration = Duration::from_secs(60);

/// etcd sends a watcher that is behind its next part within 100 ms (`syncWatchersLoop`, etcd's `watchable_store.go`). This
/// much quiet is a pause in that; what etcd says of a watcher's progress may run ahead of its events before 3.4.25.
const PAUSE: Duration = Duration::from_millis(300);

/// How often it is begun anew when what it reads at is compacted away below it, or etcd goes.
const ATTEMPTS: usize = 3;

/// A watch of what is compacted away says so with its second message.
const MAX_MESSAGES: usize = 5;

/// etcd's first revision, at which it is empty.
const FIRST_REVISION: i64 = 1;

/// What has happened below a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The keys as they were at the oldest revision that is told of: the one asked for, or the oldest that can be read.
    pub before: Snapshot,
    /// What has changed since, in order.
    pub changes: Vec<Change>,
    /// The revision up to which they are told.
    pub revision: i64,
}

impl Client {
    /// The changes below a folder since a revision (at the earliest [`Client::oldest`]) up to now.
    pub async fn changes_since(&self, below: &str, since: i64) -> Result<Changes, Error> {
        let range = self.config().prefix.absolute_folder(below);
        let mut attempt = 1;
        loop {
            let silent = || Error::Silent {
                endpoint: self.current_endpoint(),
                act: Operation::Watch(range.clone()),
                limit: DEADLINE,
            };
            let told = timeout(DEADLINE, self.try_changes_since(below, since.max(FIRST_REVISION))).await;
            match told.unwrap_or_else(|_| Err(silent())) {
                Err(error) if attempt < ATTEMPTS && is_retryable(&error) => attempt += 1,
                other => return other,
            }
        }
    }

    /// The oldest revision at which keys below a folder can still be read: what was before is compacted away.
    pub async fn oldest_revision(&self, below: &str) -> Result<i64, Error> {
        match self.read_snapshot_at(below, FIRST_REVISION).await {
            Ok(_) => Ok(FIRST_REVISION),
            Err(Error::Compacted { .. }) => self.compaction_revision(below).await,
            Err(other) => Err(other),
        }
    }

    async fn try_changes_since(&self, below: &str, since: i64) -> Result<Changes, Error> {
        let before = match self.read_snapshot_at(below, since).await {
            Err(Error::Compacted { .. }) => {
                self.read_snapshot_at(below, self.compaction_revision(below).await?).await?
            }
            other => other?,
        };
        let now = self.read_snapshot(below).await?;
        let changes = self.watch_changes(below, &before, &now).await?;
        Ok(Changes { before, changes, revision: now.revision })
    }

    /// The revision that the store was compacted at, as a watch that begins before it is told.
    async fn compaction_revision(&self, below: &str) -> Result<i64, Error> {
        let mut watch = self.open_watch(below, FIRST_REVISION).await?;
        for _ in 0..MAX_MESSAGES {
            let message = watch.next_message().await.map_err(|failure| failure.error)?;
            if message.compact_revision > 0 {
                return Ok(message.compact_revision);
            }
            if message.canceled {
                return Err(watch.cancel_failure(&message.cancel_reason).error);
            }
        }
        Err(watch.cancel_failure("a watch of what is compacted away doesn't say so").error)
    }

    async fn watch_changes(&self, below: &str, before: &Snapshot, now: &Snapshot) -> Result<Vec<Change>, Error> {
        let range = self.config().prefix.absolute_folder(below);
        // At that very revision, not behind it: only so etcd says that what follows is compacted away in part.
        let mut watch = self.open_watch(below, before.revision).await?;
        let mut revisions = Revisions::new(self.config().prefix.clone(), Position::from_snapshot(before));
        let mut replay = Replay::from_snapshots(before, now);
        loop {
            let message = match timeout(PAUSE, watch.next_message()).await {
                Ok(message) => message,
                // Quiet: where nothing is missing, a sign of life is the end of it.
                Err(_) => match watch.request_message().await {
                    Ok(message) if replay.is_complete() && is_sign_of_life(&message) => return Ok(replay.changes),
                    other => other,
                },
            };
            match revisions.accept_message(message.map_err(|failure| failure.error)?) {
                Decision::Created | Decision::Alive => {}
                Decision::Deliver { changes, .. } => replay.apply_changes(changes),
                Decision::Resync(ResyncReason::Compacted) => {
                    return Err(Error::Compacted { act: Operation::Watch(range) });
                }
                Decision::Resync(why) => return Err(watch.cancel_failure(&why.to_string()).error),
                Decision::Canceled(reason) => return Err(watch.cancel_failure(&reason).error),
            }
        }
    }

    async fn open_watch(&self, below: &str, revision: i64) -> Result<Watch, Error> {
        let range = Range::of_folder(&self.config().prefix, below);
        Watch::open(self.clone(), &range, revision, SILENCE).await.map_err(|failure: Failure| failure.error)
    }
}

/// Whether another attempt may succeed.
fn is_retryable(error: &Error) -> bool {
    matches!(error, Error::Compacted { .. } | Error::Unreachable { .. })
}

/// Whether it says nothing but that the member lives.
fn is_sign_of_life(message: &PbWatchResponse) -> bool {
    message.events.is_empty() && !message.canceled && !message.created
}

/// Changes that lead from one listing to another.
struct Replay {
    /// When each key was last written, as far as is told.
    written: BTreeMap<String, i64>,
    target: BTreeMap<String, i64>,
    end_revision: i64,
    changes: Vec<Change>,
}

impl Replay {
    fn from_snapshots(before: &Snapshot, now: &Snapshot) -> Self {
        let written = |snapshot: &Snapshot| -> BTreeMap<String, i64> {
            snapshot.entries.iter().map(|Entry { key, mod_revision, .. }| (key.clone(), *mod_revision)).collect()
        };
        Self { written: written(before), target: written(now), end_revision: now.revision, changes: Vec::new() }
    }

    /// What is newer than the second listing is left out.
    fn apply_changes(&mut self, changes: Vec<Change>) {
        for change in changes {
            let revision = crate::revisions::revision_of(&change);
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

    /// Whether they lead there.
    fn is_complete(&self) -> bool {
        self.written == self.target
    }
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
