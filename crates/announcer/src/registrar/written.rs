//! What the registrar has written, as the wait for acknowledgements asks for it. Pure.

use std::sync::Arc;

use discovery::{ServiceId, UpstreamId};

use crate::record::Record;
use crate::registrar::record_set::RecordSet;

/// Records as the last round left them.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Revision of the last write. A balancer that applied it serves all of our records.
    pub revision: i64,
    /// Records that are stored under our lease in the ordered state.
    pub ours: Vec<Arc<Record>>,
    /// Records that were stored once and are no longer. Balancers may still serve them.
    pub gone: Vec<Arc<Record>>,
    /// True if the removal of one of those has no known revision.
    pub has_unknown_removal: bool,
    /// Number of records that couldn't be written as ordered.
    pub unwritten_count: usize,
}

impl Written {
    /// The same, with no earlier revision than this one. A wiped store counts from 1 again, and a balancer may not know of the wipe yet:
    /// its old acknowledgement must not count for the new store.
    #[must_use]
    pub fn not_before(self, revision: i64) -> Self {
        Self { revision: self.revision.max(revision), ..self }
    }

    /// The records as the set knows them.
    pub fn from_set(records: &RecordSet) -> Self {
        Self {
            revision: records.last_revision(),
            ours: records.present_records(),
            gone: records.removed_records(),
            has_unknown_removal: records.has_unknown_removal(),
            unwritten_count: records.plan_parts().iter().map(Vec::len).sum(),
        }
    }

    /// Services and ids of [`Self::ours`].
    pub fn our_names(&self) -> impl Iterator<Item = (&ServiceId, &UpstreamId)> {
        self.ours.iter().map(|record| record.service_and_id())
    }

    /// Services and ids of [`Self::ours`] and [`Self::gone`].
    pub fn all_names(&self) -> impl Iterator<Item = (&ServiceId, &UpstreamId)> {
        self.ours.iter().chain(&self.gone).map(|record| record.service_and_id())
    }
}
