//! What a round has come to, and what it leaves to be done.

use std::fmt;

use crate::publish::PublishOutcome;

/// What a quick round leaves to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// How many changes HAProxy has taken.
    pub changes: usize,
    /// The file on disk is no longer what is wanted.
    pub file: bool,
    /// HAProxy has to be restarted, for this reason.
    pub restart: Option<String>,
    /// It doesn't answer at all.
    pub unreachable: bool,
    /// Servers wait for their last connection, or are kept.
    pub removals: bool,
}

/// How a whole round went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestartOutcome {
    /// HAProxy runs what is wanted, and needed no restart for it.
    InSync,
    /// HAProxy was restarted, and runs what is wanted.
    Restarted,
    /// The file could not be put right.
    Rejected(PublishOutcome),
    /// An operator has stopped HAProxy: the file is ready for its start.
    Stopped,
    /// The restart did not take.
    NotLive(String),
}

/// True if the next generation leaves out what HAProxy rejected, and can be published at once.
pub fn leaves_part_out(outcome: &PublishOutcome) -> bool {
    matches!(outcome, PublishOutcome::ServicesRejected(_) | PublishOutcome::FilledFilesRejected(_))
}

impl Pending {
    /// What was done, in words; none if nothing was.
    pub fn to_history_outcome(&self) -> Option<Result<String, String>> {
        let changes = if self.changes == 1 { "change" } else { "changes" };
        (self.changes > 0).then(|| Ok(format!("{} {changes} over the Runtime API", self.changes)))
    }
}

impl RestartOutcome {
    /// The same, told apart by whether it is as it should be.
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
