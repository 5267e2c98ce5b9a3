//! Carries out what `record_set` wants: one round of transactions.

use std::sync::Arc;

use discovery::Entry;
use registry::{Client, Error};

use crate::record::{Difference, Owner, Record};
use crate::registrar::record_set::{Part, RecordNews, RecordSet};

/// Each attempt that fails means that somebody else has just written one of the keys. More than a few in a row are no
/// accident, and worth a pause.
const ATTEMPTS: usize = 8;

/// What became of a round.
#[derive(Debug, Default)]
pub(crate) struct WriteRound {
    /// The records that stand as they did not before.
    pub(crate) news: Vec<RecordNews>,
    /// The ids that belong to another owner.
    pub(crate) taken: Vec<(Arc<Record>, Owner)>,
    /// The records that were deleted, or that somebody else has put there: they are left alone.
    pub(crate) lost: Vec<Arc<Record>>,
    /// The settings of registered records that say otherwise than ours.
    pub(crate) differences: Vec<Difference>,
    /// etcd's roles let us write no settings at all.
    pub(crate) settings_denied: bool,
    /// Others wrote the same keys at every attempt.
    pub(crate) contended: bool,
    /// Why some of it could not be written.
    pub(crate) failure: Option<Error>,
}

/// Writes what is to be written: all of it in one transaction, where it fits and etcd's roles allow that, else the
/// records without their settings, else each by itself. One operation outside the roles denies a whole transaction.
pub(crate) async fn write_round(client: &Client, group: &mut RecordSet) -> WriteRound {
    let mut round = WriteRound::default();
    for indices in group.plan_parts() {
        match write_part(client, group, &indices, &mut round).await {
            Err(error) if error.is_permission_denied() && indices.len() > 1 => {
                for index in indices {
                    let written = write_part(client, group, &[index], &mut round).await;
                    round.failure = written.err().or(round.failure);
                }
            }
            other => round.failure = other.err().or(round.failure),
        }
    }
    round
}

async fn write_part(
    client: &Client,
    group: &mut RecordSet,
    indices: &[usize],
    round: &mut WriteRound,
) -> Result<(), Error> {
    match attempt_part(client, group, indices, true, round).await {
        Err(error) if error.is_permission_denied() => {
            attempt_part(client, group, indices, false, round).await?;
            let registered: Vec<_> = round.news.iter().map(|news| news.record.clone()).collect();
            for record in registered {
                let mut found = Vec::new();
                for key in record.setting_keys() {
                    round.settings_denied = true;
                    found.extend(client.get(&key).await?);
                }
                round.differences.extend(record.list_differences(&found));
            }
            Ok(())
        }
        other => other,
    }
}

async fn attempt_part(
    client: &Client,
    group: &mut RecordSet,
    indices: &[usize],
    with_settings: bool,
    round: &mut WriteRound,
) -> Result<(), Error> {
    let mut found: Option<Vec<Entry>> = None;
    for _ in 0..ATTEMPTS {
        let mut part = group.draft_part(indices, with_settings, found.as_deref());
        let mut revision = 0;
        if !part.is_empty() {
            let committed = client.commit(part.draft.txn.clone()).await?;
            if !committed.succeeded {
                found = Some(committed.found);
                continue;
            }
            revision = committed.revision;
        }
        finish_part(group, &mut part, revision, round);
        return Ok(());
    }
    round.contended = true;
    Ok(())
}

fn finish_part(group: &mut RecordSet, part: &mut Part, revision: i64, round: &mut WriteRound) {
    round.lost.extend(group.lost_records(part));
    round.news.extend(group.mark_written(part, revision));
    round.taken.append(&mut part.taken);
    round.differences.append(&mut part.draft.differences);
}
