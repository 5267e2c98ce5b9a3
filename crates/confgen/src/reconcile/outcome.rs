//! The results of reconciles and restarts. Data only.

use std::fmt;

use crate::publish::PublishOutcome;

/// The work that a reconcile leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// The number of changes that HAProxy took over the Runtime API.
    pub changes: usize,
    /// haproxy.cfg must be published.
    pub file: bool,
    /// The reason for a restart, if HAProxy needs one.
    pub restart: Option<String>,
    /// HAProxy doesn't answer on its Runtime API.
    pub unreachable: bool,
    /// Something waits that only time ends: connections of removed servers, retained upstreams, or an old process that listens.
    pub removals: bool,
}

/// The outcome of a restart, and of `confgen once`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestartOutcome {
    /// HAProxy runs the needed generation, and needed no restart.
    InSync,
    /// HAProxy was restarted, and runs the needed generation.
    Restarted,
    /// haproxy.cfg couldn't be published as it should be.
    Rejected(PublishOutcome),
    /// An operator has stopped HAProxy. The published files wait for its start.
    Stopped,
    /// HAProxy doesn't run the needed generation after the restart, for this reason.
    NotLive(String),
}

/// True if the next generation leaves out what HAProxy rejected, and can be published at once.
pub fn leaves_part_out(outcome: &PublishOutcome) -> bool {
    matches!(outcome, PublishOutcome::ServicesRejected(_) | PublishOutcome::FilledFilesRejected(_))
}

impl Pending {
    /// The outcome for the history. `None` if HAProxy took no change.
    pub fn to_history_outcome(&self) -> Option<Result<String, String>> {
        let changes = if self.changes == 1 { "change" } else { "changes" };
        (self.changes > 0).then(|| Ok(format!("{} {changes} over the Runtime API", self.changes)))
    }
}

impl RestartOutcome {
    /// The words, as an error if HAProxy doesn't run what it should.
    pub fn to_result(&self) -> Result<String, String> {
        match self {
            Self::InSync | Self::Restarted => Ok(self.to_string()),
            Self::Rejected(_) | Self::Stopped | Self::NotLive(_) => Err(self.to_string()),
        }
    }
}

impl fmt::Display for RestartOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InSync => f.write_str("HAProxy runs what the store asks for"),
            Self::Restarted => f.write_str("HAProxy was restarted and runs what the store asks for"),
            Self::Rejected(filed) => filed.fmt(f),
            Self::Stopped => f.write_str("HAProxy was stopped by an operator; the file is ready for its start"),
            Self::NotLive(reason) => write!(f, "the restart did not take: {reason}"),
        }
    }
}
