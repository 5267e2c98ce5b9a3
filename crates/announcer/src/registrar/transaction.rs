//! Runs one round of the transactions that `record_set` plans. It decides no content.

use std::sync::Arc;

use discovery::Entry;
use registry::{Client, Error};

use crate::record::Record;
use crate::record::difference::{Difference, list_differences};
use crate::record::ownership::Owner;
use crate::registrar::record_set::{Part, RecordNews, RecordSet};

/// Attempts before a pause. Each failed attempt means that another writer has just changed one of the keys, and more
/// than a few in a row are no accident.
const ATTEMPTS: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct WriteRound {
    /// Records that changed their state in the store.
    pub(crate) news: Vec<RecordNews>,
    /// Records with an id that belongs to another owner.
    pub(crate) taken: Vec<(Arc<Record>, Owner)>,
    /// Records that were deleted or that another announcer overwrote. They are left alone.
    pub(crate) lost: Vec<Arc<Record>>,
    /// Settings of registered records that differ from ours.
    pub(crate) differences: Vec<Difference>,
    /// True if etcd's roles forbid writing settings.
    pub(crate) settings_denied: bool,
    /// True if other writers changed the same keys at every attempt.
    pub(crate) contended: bool,
    /// Error of the last transaction that failed.
    pub(crate) failure: Option<Error>,
}

/// Writes all changes that are due. One transaction has everything if it fits and etcd's roles allow it. Otherwise this
/// writes the records without their settings, and then each record by itself. One operation outside of the roles denies
/// a whole transaction.
pub(crate) async fn write_round(client: &Client, set: &mut RecordSet) -> WriteRound {
    let mut round = WriteRound::default();
    for indices in set.plan_parts() {
        match write_part(client, set, &indices, &mut round).await {
            Err(error) if error.is_permission_denied() && indices.len() > 1 => {
                // One record that etcd's roles forbid must not keep the others out of the store.
                for index in indices {
                    let written = write_part(client, set, &[index], &mut round).await;
                    round.failure = written.err().or(round.failure);
                }
            }
            other => round.failure = other.err().or(round.failure),
        }
    }
    round
}

/// Writes one part, without its settings if etcd's roles forbid those.
async fn write_part(
    client: &Client,
    set: &mut RecordSet,
    indices: &[usize],
    round: &mut WriteRound,
) -> Result<(), Error> {
    match attempt_part(client, set, indices, true, round).await {
        Err(error) if error.is_permission_denied() => {
            attempt_part(client, set, indices, false, round).await?;
            // The transaction overwrote no setting. The log names each setting that differs.
            let registered: Vec<_> = round.news.iter().map(|news| news.record.clone()).collect();
            for record in registered {
                let mut found = Vec::new();
                for key in record.setting_keys() {
                    round.settings_denied = true;
                    found.extend(client.get(&key).await?);
                }
                round.differences.extend(list_differences(&record, &found));
            }
            Ok(())
        }
        other => other,
    }
}

/// Commits one part, and drafts it again from what etcd returned while its conditions fail.
async fn attempt_part(
    client: &Client,
    set: &mut RecordSet,
    indices: &[usize],
    with_settings: bool,
    round: &mut WriteRound,
) -> Result<(), Error> {
    let mut found: Option<Vec<Entry>> = None;
    for _ in 0..ATTEMPTS {
        let mut part = set.draft_part(indices, with_settings, found.as_deref());
        // A part without writes still has news: an id that is taken, a record that is no longer ours.
        let mut revision = 0;
        if !part.is_empty() {
            let committed = client.commit(part.draft.txn.clone()).await?;
            if !committed.succeeded {
                found = Some(committed.found);
                continue;
            }
            revision = committed.revision;
        }
        finish_part(set, &mut part, revision, round);
        return Ok(());
    }
    round.contended = true;
    Ok(())
}

fn finish_part(set: &mut RecordSet, part: &mut Part, revision: i64, round: &mut WriteRound) {
    round.lost.extend(set.lost_records(part));
    round.news.extend(set.mark_written(part, revision));
    round.taken.append(&mut part.taken);
    round.differences.append(&mut part.draft.differences);
}
