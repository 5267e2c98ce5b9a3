//! Which revision counts as applied, and which services are pending. Pure: no I/O, no clock.

use std::collections::BTreeSet;

use discovery::ServiceId;

use crate::status::ReconcileStatus;
use crate::store::StoreRevision;

/// Notes that HAProxy runs this revision, except for the pending services. `is_served` tells whether a service has a desired form.
/// `is_another_listening` is asked only if a service would stop pending. Returns true if the old process still listens, and so
/// keeps services pending.
pub fn note_applied(
    status: &mut ReconcileStatus,
    revision: StoreRevision,
    mut pending: BTreeSet<ServiceId>,
    is_served: impl Fn(&ServiceId) -> bool,
    is_another_listening: impl FnOnce() -> bool,
) -> bool {
    status.applied = Some(revision);
    // The section of a deleted service stays, emptied, until the next restart. Nothing waits for that.
    pending.retain(&is_served);
    let mut before = std::mem::replace(&mut status.pending, pending);
    before.retain(is_served);
    // After a restart the old process may still accept connections, and then it serves what it knows.
    let ends_pending = !before.is_subset(&status.pending);
    let old_process_listens = ends_pending && is_another_listening();
    if old_process_listens {
        status.pending.append(&mut before);
    }
    old_process_listens
}
