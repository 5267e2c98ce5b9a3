//! `/api/v1/changes`: the changes of keys that one balancer has seen, as it keeps them in its state directory.

use serde::{Deserialize, Serialize};

use crate::Author;

/// The answer to `/api/v1/changes`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Changes {
    /// The changes, the oldest first.
    pub changes: Vec<AppliedChange>,
    /// The balancer knows every change of a setting or an override from this time on, RFC 3339 in UTC. None if it has no log.
    pub since: Option<String>,
    /// The store's revision at `since`; 0 without a log.
    pub since_revision: i64,
    /// The balancer knows every change up to this revision. 0 if it doesn't know the store, or if its log has a gap at the end.
    pub until_revision: i64,
    /// Older changes are left out because of `limit`.
    pub more: bool,
}

/// The change of one key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct AppliedChange {
    /// The time at which confgen learned of the change, RFC 3339 in UTC.
    pub time: String,
    /// The store's revision of the change. If `after_revision` is there, the change has this revision at most.
    pub revision: i64,
    /// confgen learned of the change from a listing, because it was away. The key changed after this revision, perhaps more
    /// than once. None for a change that confgen followed.
    pub after_revision: Option<i64>,
    /// The key, relative to the prefix.
    pub key: String,
    /// The value before. None if the key was absent. A value that is longer than the limit of a read is cut.
    pub before: Option<String>,
    /// The value after; None if the key was deleted.
    pub after: Option<String>,
    /// `before` and `after` aren't the whole values: a value is secret, too long, or no text.
    pub cut: bool,
    /// The writer, if discoverctl made the change.
    pub author: Option<Author>,
    /// `runtime` if HAProxy took the change while it ran, `restart` if it needed a restart. None if it isn't applied.
    pub applied_by: Option<String>,
    /// The time from `time` until HAProxy had the change, in seconds. None if it isn't applied.
    pub seconds: Option<f64>,
    /// The reason why the change isn't applied. None if it is.
    pub refused: Option<String>,
}
