//! What there is to say of a wiped store, once. Pure.

use std::fmt;

use discovery::Key;

use super::StoreRevision;

/// Why a store is taken for a wiped one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetReason {
    /// It bears another cluster id.
    OtherCluster {
        /// The old one.
        was: u64,
        /// The new one.
        is: u64,
    },
    /// It is an older one, or a new one under the old id.
    RevisionWentBack {
        /// The newest that was known.
        from: i64,
        /// The one it has.
        to: i64,
    },
    /// The same.
    TermWentBack {
        /// The newest that was known.
        from: u64,
        /// The one it has.
        to: u64,
    },
}

impl fmt::Display for ResetReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherCluster { was, is } => write!(f, "its cluster id is {is}, and was {was}"),
            Self::RevisionWentBack { from, to } => write!(f, "its revision went back from {from} to {to}"),
            Self::TermWentBack { from, to } => write!(f, "its raft term went back from {from} to {to}"),
        }
    }
}

impl ResetReason {
    /// Compares two positions that linearizable reads told.
    pub fn compare_revisions(last: StoreRevision, now: StoreRevision) -> Option<Self> {
        if now.cluster != last.cluster {
            Some(Self::OtherCluster { was: last.cluster, is: now.cluster })
        } else if now.revision < last.revision {
            Some(Self::RevisionWentBack { from: last.revision, to: now.revision })
        } else if now.raft_term < last.raft_term {
            Some(Self::TermWentBack { from: last.raft_term, to: now.raft_term })
        } else {
            None
        }
    }
}

/// What has become of held keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResetEvent {
    /// The store was wiped, and this much is held since.
    StoreReset {
        /// Why it is taken for that.
        why: ResetReason,
        /// The store, and as of when.
        noticed: StoreRevision,
        /// How many keys it lacks.
        keys: usize,
        /// Of how many services.
        services: usize,
    },
    /// Keys were written again, or their addresses have moved.
    KeysReleased {
        /// How many.
        keys: usize,
        /// How many are still held.
        left: usize,
    },
    /// An operator let them go.
    Accepted {
        /// How many.
        keys: usize,
    },
    /// An operator's word doesn't count, for this reason.
    AcceptanceRejected(String),
}

impl fmt::Display for ResetEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StoreReset { why, keys: 0, .. } => write!(f, "the store was wiped ({why}), and has every key again"),
            Self::StoreReset { why, keys, services, .. } => write!(
                f,
                "the store was wiped ({why}): {keys} keys of {services} services that it lacks are held, each until it is \
                 written again"
            ),
            Self::KeysReleased { keys, left } => {
                write!(f, "{keys} held keys were written again, or their addresses have moved; {left} are still held")
            }
            Self::Accepted { keys } => {
                write!(f, "{}: the store is meant as it is; {keys} held keys let go", Key::AcceptStore)
            }
            Self::AcceptanceRejected(reason) => write!(f, "{}: not taken: {reason}", Key::AcceptStore),
        }
    }
}
