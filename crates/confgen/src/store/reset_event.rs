//! The events of a store reset, as the log tells them. Pure.

use std::fmt;

use discovery::{Key, ResetReason};

use super::StoreRevision;

/// An event in the life of retained keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResetEvent {
    /// A listing showed that the store was reset.
    StoreReset {
        /// The difference to the store that was known.
        reason: ResetReason,
        /// The reset store, as of the listing. An acceptance must name it.
        noticed: StoreRevision,
        /// The number of keys that the store lacks. 0 if it has every key again.
        keys: usize,
        /// The number of services with such a key.
        services: usize,
    },
    /// Keys were written again, or their addresses have other records.
    KeysReleased {
        /// The number of released keys.
        keys: usize,
        /// The number of keys that are still retained.
        left: usize,
    },
    /// An operator accepted the reset store.
    Accepted {
        /// The number of released keys.
        keys: usize,
    },
    /// `control/accept-store` is not about this reset, for this reason.
    AcceptanceRejected(String),
}

impl fmt::Display for ResetEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StoreReset { reason, keys: 0, .. } => {
                write!(f, "the store was wiped ({reason}), and has every key again")
            }
            Self::StoreReset { reason, keys, services, .. } => write!(
                f,
                "the store was wiped ({reason}): retaining {keys} keys of {services} services, each until it is written again"
            ),
            Self::KeysReleased { keys, left } => write!(
                f,
                "{keys} retained keys were written again, or their addresses have other records; {left} are still retained"
            ),
            Self::Accepted { keys } => {
                write!(f, "{}: the operator accepts the store; {keys} retained keys released", Key::AcceptStore)
            }
            Self::AcceptanceRejected(reason) => write!(f, "{}: not taken: {reason}", Key::AcceptStore),
        }
    }
}
