//! Why a command failed, and the exit code that says so to programs.

use std::time::Duration;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// What was typed makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The etcd options.
    #[error(transparent)]
    Config(#[from] registry::ConfigError),
    /// etcd.
    #[error(transparent)]
    Store(#[from] registry::Error),
    /// Nothing was changed, and why.
    #[error("{0}")]
    Refused(String),
    /// It was written, and a balancer refuses it.
    #[error("written at revision {revision}, but {refused}")]
    NotFollowed {
        /// Where it was written.
        revision: i64,
        /// By whom and why.
        refused: String,
    },
    /// It was written, and not all balancers follow.
    #[error("written at revision {revision}, but not followed within {} by {missing}", humantime::format_duration(*waited))]
    NotInTime {
        /// Where it was written.
        revision: i64,
        /// How long was waited.
        waited: Duration,
        /// Who doesn't, and what is known of why.
        missing: String,
    },
    /// The answer needs a balancer's API.
    #[error("{0}")]
    NoBalancer(String),
    /// A switch that didn't come to its end.
    #[error("{0}")]
    Undone(String),
    /// Ctrl-C.
    #[error("interrupted: {0}")]
    Interrupted(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// The exit codes that `--help` lists.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) | Self::Config(_) => 2,
            Self::Store(error) if error.is_permission_denied() => 4,
            Self::Store(_) => 3,
            Self::Refused(_) => 4,
            Self::NotFollowed { .. } | Self::NotInTime { .. } => 5,
            Self::NoBalancer(_) => 6,
            Self::Undone(_) => 7,
            Self::Interrupted(_) => 130,
        }
    }
}

/// The answer of a command that asks; one that acts says yes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Yes, or done.
    Yes,
    /// No.
    No,
}
