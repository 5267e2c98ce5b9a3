//! The errors of etcd calls, in words that say what to do.
//!
//! `classification` decides which error a failure is. Pure: no I/O, no clock.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::entry::LeaseId;

/// The operation that failed. Its keys are absolute, as etcdctl takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Connecting and, with a user, authenticating.
    Connect,
    /// Reading this key.
    Get(String),
    /// Listing all keys of the range that begins here.
    List(String),
    /// Watching all keys of the range that begins here.
    Watch(String),
    /// Running a transaction.
    Commit {
        /// The keys that the transaction writes or deletes.
        writes: Vec<String>,
        /// The keys that it reads or compares, without those that it writes.
        reads: Vec<String>,
    },
    /// Granting a lease.
    Grant,
    /// Keeping this lease alive.
    KeepAlive(LeaseId),
    /// Revoking this lease.
    Revoke(LeaseId),
    /// Asking for the remaining time of this lease.
    TimeToLive(LeaseId),
    /// Asking a member for its status.
    Status,
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
            Self::Status => f.write_str("asking for its status"),
        }
    }
}

impl Operation {
    /// The permission of etcd's roles that the operation needs.
    fn required_permission(&self) -> &'static str {
        match self {
            // etcd checks comparisons as reads.
            Self::Commit { .. } => "readwrite on what it writes, read on what it reads",
            _ => "read",
        }
    }
}

/// The first keys of a list: a transaction may have 128.
struct KeyList<'a>(&'a [String]);

impl fmt::Display for KeyList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_at_checked(3) {
            Some((first, rest)) if !rest.is_empty() => write!(f, "{} and {} more", first.join(", "), rest.len()),
            _ => f.write_str(&self.0.join(", ")),
        }
    }
}

/// The reason why an operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no connection, or it broke, or the member can't serve now because it has no leader.
    #[error("etcd at {endpoint} can't be reached ({operation}): {reason}")]
    Unreachable {
        /// The endpoint that was tried, as a URL.
        endpoint: String,
        /// The operation that failed.
        operation: Operation,
        /// The innermost cause, in the words of its library.
        reason: String,
    },
    /// No answer came in time, with a connection or without one.
    #[error("etcd at {endpoint} didn't answer within {} ({operation})", humantime::format_duration(*limit))]
    Silent {
        /// The endpoint that was asked, as a URL.
        endpoint: String,
        /// The operation that failed.
        operation: Operation,
        /// The time that the operation had.
        limit: Duration,
    },
    /// A certificate, key or password file can't be read.
    #[error("{path} ({option}) can't be read: {source}")]
    File {
        /// The file's path as given.
        path: PathBuf,
        /// The option that names the file.
        option: &'static str,
        /// The error of the read.
        source: io::Error,
    },
    /// etcd doesn't know the user, or not with this password, or wants one.
    #[error(
        "etcd at {endpoint} refuses {} ({operation}): {reason}; check --user, --password, --password-file",
        UserPhrase(user)
    )]
    Login {
        /// The endpoint that refused, as a URL.
        endpoint: String,
        /// The operation that failed.
        operation: Operation,
        /// The name in `--user`. `None` without a user.
        user: Option<String>,
        /// The reason in etcd's words.
        reason: String,
    },
    /// The user's roles forbid the operation.
    #[error(
        "etcd's roles forbid {} {operation}: it needs the permission {}; one operation outside the roles denies a whole transaction",
        UserPhrase(user),
        operation.required_permission()
    )]
    PermissionDenied {
        /// The operation that failed, with its keys.
        operation: Operation,
        /// The name in `--user`. `None` without a user.
        user: Option<String>,
    },
    /// The lease has expired or was revoked.
    #[error("the lease has ended ({operation})")]
    LeaseNotFound {
        /// The operation that failed.
        operation: Operation,
    },
    /// The requested revision is compacted away.
    #[error("the store no longer has the revision asked for: compacted ({operation})")]
    Compacted {
        /// The operation that failed.
        operation: Operation,
    },
    /// etcd refused the operation for another reason.
    #[error("etcd at {endpoint} refuses {operation}: {reason}")]
    Refused {
        /// The endpoint that refused, as a URL.
        endpoint: String,
        /// The operation that failed.
        operation: Operation,
        /// The reason in etcd's words.
        reason: String,
    },
}

impl Error {
    /// True if no answer came from etcd. The call may succeed later or on another endpoint. A transaction may have been
    /// applied all the same.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Silent { .. })
    }

    /// True for [`Error::PermissionDenied`], which lasts until a person changes the roles.
    pub fn is_permission_denied(&self) -> bool {
        matches!(self, Self::PermissionDenied { .. })
    }

    /// True for [`Error::LeaseNotFound`]. The keys of the lease are gone too.
    pub fn is_lease_not_found(&self) -> bool {
        matches!(self, Self::LeaseNotFound { .. })
    }
}

/// A user's name within a sentence.
struct UserPhrase<'a>(&'a Option<String>);

impl fmt::Display for UserPhrase<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "user {name}"),
            None => f.write_str("a client without a user"),
        }
    }
}
