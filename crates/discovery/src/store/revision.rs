//! The comparison of two store revisions: does the store continue, or was it reset? Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Snapshot;

/// A point in a store's life, as a linearizable read tells it. The revision of a single member may lag behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreRevision {
    /// The store's cluster id. A store that was created anew may have the id of its predecessor.
    pub cluster: u64,
    /// etcd's raft term when all keys were last listed. It never decreases in a store that lives.
    pub raft_term: u64,
    /// etcd's revision. It never decreases in a store that lives.
    pub revision: i64,
}

/// The reason why a store does not continue an earlier one: it was wiped, created anew, or restored from a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetReason {
    /// Another cluster answers.
    ClusterChanged {
        /// The cluster id that was known.
        before: u64,
        /// The cluster id that answers.
        now: u64,
    },
    /// The store is an older one, or a new one with the known cluster id.
    RevisionWentBack {
        /// The newest revision that was known.
        before: i64,
        /// The revision that the store has.
        now: i64,
    },
    /// The store is an older one, or a new one with the known cluster id, and has many revisions already.
    TermWentBack {
        /// The newest raft term that was known.
        before: u64,
        /// The raft term that the store has.
        now: u64,
    },
}

impl StoreRevision {
    /// The revision at which the snapshot was read.
    pub fn from_snapshot(snapshot: &Snapshot) -> Self {
        Self { cluster: snapshot.cluster, raft_term: snapshot.raft_term, revision: snapshot.revision }
    }

    /// Compares this revision with one that was read later. The error is the reason why the later store is another one, or an
    /// older one.
    pub fn compare(self, now: Self) -> Result<(), ResetReason> {
        // The cluster comes first, because revisions and terms of two clusters can't be compared.
        if now.cluster != self.cluster {
            Err(ResetReason::ClusterChanged { before: self.cluster, now: now.cluster })
        } else if now.revision < self.revision {
            Err(ResetReason::RevisionWentBack { before: self.revision, now: now.revision })
        } else if now.raft_term < self.raft_term {
            // A new store may have more revisions than the lost one by the time that it is read.
            Err(ResetReason::TermWentBack { before: self.raft_term, now: now.raft_term })
        } else {
            Ok(())
        }
    }
}

impl fmt::Display for ResetReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClusterChanged { before, now } => write!(f, "its cluster id is {now}, and was {before}"),
            Self::RevisionWentBack { before, now } => write!(f, "its revision went back from {before} to {now}"),
            Self::TermWentBack { before, now } => write!(f, "its raft term went back from {before} to {now}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: StoreRevision = StoreRevision { cluster: 7, raft_term: 3, revision: 100 };

    #[test]
    fn a_living_store_keeps_its_cluster_and_never_goes_back() {
        for now in [KNOWN, StoreRevision { revision: 101, ..KNOWN }, StoreRevision { raft_term: 9, ..KNOWN }] {
            assert_eq!(KNOWN.compare(now), Ok(()));
        }
    }

    #[test]
    fn a_reset_store_has_another_cluster_or_a_lower_revision_or_term() {
        let reset = |cluster, raft_term, revision| {
            KNOWN.compare(StoreRevision { cluster, raft_term, revision }).unwrap_err().to_string()
        };
        assert_eq!(reset(8, 9, 999), "its cluster id is 8, and was 7");
        assert_eq!(reset(7, 3, 99), "its revision went back from 100 to 99");
        assert_eq!(reset(7, 2, 999), "its raft term went back from 3 to 2");
    }
}
