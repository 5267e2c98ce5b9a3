//! What can go wrong with etcd, in words that say what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::entry::LeaseId;

/// What was being done when it went wrong. Keys are whole, as etcdctl wants them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Connecting and, with a user, authenticating.
    Connect,
    /// Reading one key.
    Get(String),
    /// Listing all keys below this one.
    List(String),
    /// Watching all keys below this one.
    Watch(String),
    /// A transaction.
    Commit {
        /// The keys that it writes or deletes.
        writes: Vec<String>,
        /// The keys that it only reads or compares.
        reads: Vec<String>,
    },
    /// Granting a lease.
    Grant,
    /// Keeping a lease alive.
    KeepAlive(LeaseId),
    /// Revoking a lease.
    Revoke(LeaseId),
    /// Asking how long a lease lives.
    TimeToLive(LeaseId),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("connecting"),
            Self::Get(key) => write!(f, "reading {key}"),
            Self::List(range) => write!(f, "listing {range}"),
            Self::Watch(range) => write!(f, "watching {range}"),
            Self::Commit { writes, reads } => match (&**writes, &**reads) {
                (writes, []) => write!(f, "writing {}", KeyList(writes)),
                ([], reads) => write!(f, "reading {}", KeyList(reads)),
                (writes, reads) => write!(f, "writing {}, reading {}", KeyList(writes), KeyList(reads)),
            },
            Self::Grant => f.write_str("granting a lease"),
            Self::KeepAlive(lease) => write!(f, "keeping lease {lease} alive"),
            Self::Revoke(lease) => write!(f, "revoking lease {lease}"),
            Self::TimeToLive(lease) => write!(f, "asking for lease {lease}"),
        }
    }
}

impl Operation {
    /// What etcd's roles must grant for it.
    fn permission(&self) -> &'static str {
        match self {
            Self::Commit { .. } => "readwrite on what it writes, read on what it reads",
            _ => "read",
        }
    }
}

/// The first keys of a list.
struct KeyList<'a>(&'a [String]);

impl fmt::Display for KeyList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_at_checked(3) {
            Some((first, rest)) if !rest.is_empty() => write!(f, "{} and {} more", first.join(", "), rest.len()),
            _ => f.write_str(&self.0.join(", ")),
        }
    }
}

/// Why something with etcd failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection, a broken one, or a member that can't serve now (no leader).
    #[error("etcd at {endpoint} can't be reached ({act}): {reason}")]
    Unreachable {
        /// The endpoint that was tried.
        endpoint: String,
        /// What was being done.
        act: Operation,
        /// The innermost cause.
        reason: String,
    },
    /// Connected or not, no answer came in time.
    #[error("etcd at {endpoint} didn't answer within {} ({act})", humantime::format_duration(*limit))]
    Silent {
        /// The endpoint that was asked.
        endpoint: String,
        /// What was being done.
        act: Operation,
        /// How long was waited.
        limit: Duration,
    },
    /// A certificate, key or password file that can't be read.
    #[error("{path} ({what}) can't be read: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The option that names it.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// etcd doesn't know the user, or not with this password, or wants one.
    #[error("etcd at {endpoint} refuses {} ({act}): {reason}; check --user, --password, --password-file", Who(user))]
    Login {
        /// The endpoint.
        endpoint: String,
        /// What was being done.
        act: Operation,
        /// The user that was given.
        user: Option<String>,
        /// etcd's words.
        reason: String,
    },
    /// The user's roles forbid it.
    #[error(
        "etcd's roles forbid {} {act}: it needs the permission {}; one operation outside the roles denies a whole transaction",
        Who(user),
        act.permission()
    )]
    PermissionDenied {
        /// What was being done, with its keys.
        act: Operation,
        /// The user that was given.
        user: Option<String>,
    },
    /// The lease has expired or was revoked.
    #[error("the lease has ended ({act})")]
    LeaseNotFound {
        /// What was being done.
        act: Operation,
    },
    /// The revision asked for is compacted away.
    #[error("the store no longer has the revision asked for: compacted ({act})")]
    Compacted {
        /// What was being done.
        act: Operation,
    },
    /// Anything else that etcd answered.
    #[error("etcd at {endpoint} refuses {act}: {reason}")]
    Refused {
        /// The endpoint.
        endpoint: String,
        /// What was being done.
        act: Operation,
        /// etcd's words.
        reason: String,
    },
}

impl Error {
    /// No answer from etcd: the same call may succeed later or on another endpoint. A transaction may have been
    /// applied nevertheless.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Silent { .. })
    }

    /// The user's roles forbid it, see [`Error::PermissionDenied`].
    pub fn is_permission_denied(&self) -> bool {
        matches!(self, Self::PermissionDenied { .. })
    }

    /// The lease has ended.
    pub fn is_lease_not_found(&self) -> bool {
        matches!(self, Self::LeaseNotFound { .. })
    }
}

/// A user's name within a sentence.
struct Who<'a>(&'a Option<String>);

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "user {name}"),
            None => f.write_str("a client without a user"),
        }
    }
}
