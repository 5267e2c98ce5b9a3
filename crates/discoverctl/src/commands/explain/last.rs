//! The last value of a record that is gone, from etcd's older revisions.

use discovery::{Cause, Reason};
use serde::Serialize;

/// The last value of a record that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct LastRecord {
    /// A revision at which the record existed.
    pub(super) revision: i64,
    pub(super) value: String,
    /// Its lease as etcdctl prints it; null if it had none.
    pub(super) lease: Option<String>,
    /// That lease still lives; null if etcd doesn't know.
    pub(super) lease_lives: Option<bool>,
}

/// The reason for a missing record, as far as etcd's older revisions tell.
pub(super) fn no_record_reason(last: Option<&LastRecord>) -> Reason {
    let words = last.map_or_else(
        || "it is not in the store, nor in the revisions that etcd keeps".to_owned(),
        LastRecord::to_words,
    );
    Cause::NoRecord.into_reason(words)
}

impl LastRecord {
    fn to_words(&self) -> String {
        let lease = match (&self.lease, self.lease_lives) {
            (None, _) => "without a lease, and was deleted".to_owned(),
            (Some(lease), Some(true)) => format!("under lease {lease}, which lives: the key was deleted"),
            (Some(lease), Some(false)) => format!("under lease {lease}, which has ended"),
            (Some(lease), None) => format!("under lease {lease}"),
        };
        format!("it is not in the store; at revision {} it was {}, {lease}", self.revision, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_gone_is_told_from_its_past() {
        assert!(no_record_reason(None).words.ends_with("nor in the revisions that etcd keeps"));
        let mut last = LastRecord {
            revision: 5,
            value: "10.0.0.1:80".into(),
            lease: Some("abc".into()),
            lease_lives: Some(false),
        };
        assert!(no_record_reason(Some(&last)).words.ends_with("under lease abc, which has ended"));
        last.lease_lives = Some(true);
        assert!(no_record_reason(Some(&last)).words.ends_with("which lives: the key was deleted"));
        last.lease = None;
        assert!(no_record_reason(Some(&last)).words.ends_with("without a lease, and was deleted"));
    }
}
