//! The errors of a command, and the exit code of each.

use std::time::Duration;

/// The reason why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line or a file makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The options for etcd make no sense.
    #[error(transparent)]
    Config(#[from] registry::ConfigError),
    /// A request to etcd failed.
    #[error(transparent)]
    Store(#[from] registry::Error),
    /// The command refused to act, and changed nothing.
    #[error("{0}")]
    Refused(String),
    /// An edit has more keys than one transaction, and a later transaction failed.
    #[error("a part is written, up to revision {revision}, but then {reason}; run the command again")]
    WrittenInPart {
        /// The revision of the last transaction that was written.
        revision: i64,
        /// The reason why the next one was not.
        reason: String,
    },
    /// The keys were written, and a balancer refuses one of them, or vanished.
    #[error("written at revision {revision}, but {refused}")]
    NotFollowed {
        /// The revision of the write.
        revision: i64,
        /// The balancer, the key and the reason.
        refused: String,
    },
    /// The keys were written, and a balancer doesn't follow in time.
    #[error("written at revision {revision}, but not followed within {} by {missing}", humantime::format_duration(*waited))]
    NotInTime {
        /// The revision of the write.
        revision: i64,
        /// The value of the option --timeout.
        waited: Duration,
        /// The balancers that don't follow, with what they say about it.
        missing: String,
    },
    /// The answer needs a balancer's API.
    #[error("{0}")]
    NoBalancer(String),
    /// A switch went back or stopped before its last step.
    #[error("{0}")]
    Undone(String),
    /// Ctrl-C or SIGTERM ended the command.
    #[error("interrupted: {0}")]
    Interrupted(String),
    /// The host failed: a signal handler, the terminal, standard output.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// The exit code for programs, as `--help` lists it.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) | Self::Config(_) => 2,
            Self::Store(error) if error.is_permission_denied() => 4,
            Self::Store(_) => 3,
            Self::Refused(_) => 4,
            Self::WrittenInPart { .. } | Self::NotFollowed { .. } | Self::NotInTime { .. } => 5,
            Self::NoBalancer(_) => 6,
            Self::Undone(_) => 7,
            Self::Interrupted(_) => 130,
        }
    }
}

/// The answer of a command that asks a question. A command that acts answers yes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Yes; a command that acts has succeeded.
    Yes,
    No,
}
