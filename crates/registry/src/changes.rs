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
use crate::error::{Act, Error};
use crate::revisions::{Position, ResyncReason, Revisions, Verdict};
use crate::watch::{QUIET as SILENCE, Watch};

/// All of it. A hundred thousand revisions take some seconds.
const DEADLINE: Duration = Duration::from_secs(60);

/// etcd sends a watcher that is behind its next part within 100 ms (`syncWatchersLoop`, etcd's `watchable_store.go`). This
/// much quiet is a pause in that; what etcd says of a watcher's progress may run ahead of its events before 3.4.25.
const QUIET: Duration = Duration::from_millis(300);

/// How often it is begun anew when what it reads at is compacted away below it, or etcd goes.
const ATTEMPTS: usize = 3;

/// A watch of what is compacted away says so with its second message.
const SAYS_SO: usize = 5;

/// etcd's first revision, at which it is empty.
const FIRST: i64 = 1;

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
    pub async fn changes(&self, below: &str, since: i64) -> Result<Changes, Error> {
        let range = self.config().prefix.below(below);
        let mut attempt = 1;
        loop {
            let silent =
                || Error::Silent { endpoint: self.endpoint(), act: Act::Watch(range.clone()), limit: DEADLINE };
            let told = timeout(DEADLINE, self.changes_once(below, since.max(FIRST))).await;
            match told.unwrap_or_else(|_| Err(silent())) {
                Err(error) if attempt < ATTEMPTS && may_pass(&error) => attempt += 1,
                other => return other,
            }
        }
    }

    /// The oldest revision at which keys below a folder can still be read: what was before is compacted away.
    pub async fn oldest(&self, below: &str) -> Result<i64, Error> {
        match self.snapshot_at(below, FIRST).await {
            Ok(_) => Ok(FIRST),
            Err(Error::Compacted { .. }) => self.compacted(below).await,
            Err(other) => Err(other),
        }
    }

    async fn changes_once(&self, below: &str, since: i64) -> Result<Changes, Error> {
        let before = match self.snapshot_at(below, since).await {
            Err(Error::Compacted { .. }) => self.snapshot_at(below, self.compacted(below).await?).await?,
            other => other?,
        };
        let now = self.snapshot(below).await?;
        let changes = self.watch_between(below, &before, &now).await?;
        Ok(Changes { before, changes, revision: now.revision })
    }

    /// The revision that the store was compacted at, as a watch that begins before it is told.
    async fn compacted(&self, below: &str) -> Result<i64, Error> {
        let mut watch = self.watch(below, FIRST).await?;
        for _ in 0..SAYS_SO {
            let message = watch.message().await.map_err(|failure| failure.error)?;
            if message.compact_revision > 0 {
                return Ok(message.compact_revision);
            }
            if message.canceled {
                return Err(watch.canceled(&message.cancel_reason).error);
            }
        }
        Err(watch.canceled("a watch of what is compacted away doesn't say so").error)
    }

    async fn watch_between(&self, below: &str, before: &Snapshot, now: &Snapshot) -> Result<Vec<Change>, Error> {
        let range = self.config().prefix.below(below);
        // At that very revision, not behind it: only so etcd says that what follows is compacted away in part.
        let mut watch = self.watch(below, before.revision).await?;
        let mut revisions = Revisions::new(self.config().prefix.clone(), Position::of(before));
        let mut replay = Replay::between(before, now);
        loop {
            let message = match timeout(QUIET, watch.message()).await {
                Ok(message) => message,
                // Quiet: where nothing is missing, a sign of life is the end of it.
                Err(_) => match watch.ask().await {
                    Ok(message) if replay.is_whole() && is_bare(&message) => return Ok(replay.changes),
                    other => other,
                },
            };
            match revisions.accept(message.map_err(|failure| failure.error)?) {
                Verdict::Created | Verdict::Alive => {}
                Verdict::Deliver { changes, .. } => replay.take(changes),
                Verdict::Resync(ResyncReason::Compacted) => return Err(Error::Compacted { act: Act::Watch(range) }),
                Verdict::Resync(why) => return Err(watch.canceled(&why.to_string()).error),
                Verdict::Canceled(reason) => return Err(watch.canceled(&reason).error),
            }
        }
    }

    async fn watch(&self, below: &str, revision: i64) -> Result<Watch, Error> {
        let range = Range::below(&self.config().prefix, below);
        Watch::open(self.clone(), &range, revision, SILENCE).await.map_err(|failure: Failure| failure.error)
    }
}

/// Whether another attempt may succeed.
fn may_pass(error: &Error) -> bool {
    matches!(error, Error::Compacted { .. } | Error::Unreachable { .. })
}

/// Whether it says nothing but that the member lives.
fn is_bare(message: &PbWatchResponse) -> bool {
    message.events.is_empty() && !message.canceled && !message.created
}

/// Changes that lead from one listing to another.
struct Replay {
    /// When each key was last written, as far as is told.
    told: BTreeMap<String, i64>,
    wanted: BTreeMap<String, i64>,
    end: i64,
    changes: Vec<Change>,
}

impl Replay {
    fn between(before: &Snapshot, now: &Snapshot) -> Self {
        let written = |snapshot: &Snapshot| -> BTreeMap<String, i64> {
            snapshot.entries.iter().map(|Entry { key, mod_revision, .. }| (key.clone(), *mod_revision)).collect()
        };
        Self { told: written(before), wanted: written(now), end: now.revision, changes: Vec::new() }
    }

    /// What is newer than the second listing is left out.
    fn take(&mut self, changes: Vec<Change>) {
        for change in changes {
            let revision = crate::revisions::revision(&change);
            if revision > self.end {
                continue;
            }
            match &change {
                Change::Put(entry) => self.told.insert(entry.key.clone(), revision),
                Change::Delete { key, .. } => self.told.remove(key),
            };
            self.changes.push(change);
        }
    }

    /// Whether they lead there.
    fn is_whole(&self) -> bool {
        self.told == self.wanted
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
        let mut replay = Replay::between(&before, &now);
        assert!(!replay.is_whole());
        replay.take(vec![Change::Put(entry("c", 6)), Change::Delete { key: "b".into(), revision: 7, previous: None }]);
        replay.take(vec![Change::Put(entry("a", 8))]);
        assert!(!replay.is_whole(), "c is to go");
        replay.take(vec![Change::Delete { key: "c".into(), revision: 9, previous: None }, Change::Put(entry("a", 10))]);
        assert!(replay.is_whole());
        assert_eq!(replay.changes.len(), 4, "what is newer than the listing is left out");
    }
}
