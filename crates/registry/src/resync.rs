//! The full listing every so often, beside a watch that goes on meanwhile: a change doesn't wait for it.

use std::pin::Pin;
use std::time::Duration;

use discovery::{Change, Entry, Snapshot};
use tokio::time::{Sleep, sleep};

use crate::client::Client;
use crate::entry::Range;
use crate::error::Error;
use crate::revisions::{Position, ResyncReason, check_same_store, revision_of};

type Listing = Pin<Box<dyn Future<Output = Result<Snapshot, Error>> + Send>>;

/// The next listing: waited for, then under way.
pub(crate) struct Resync {
    client: Client,
    range: Range,
    due: Pin<Box<Sleep>>,
    listing: Option<Listing>,
    /// What was known before; the listing can't be older.
    position_before: Position,
    /// What the watch told while the listing was under way.
    changes_meanwhile: Vec<Change>,
}

impl Resync {
    pub(crate) fn start_after(client: Client, range: Range, delay: Duration, position_before: Position) -> Self {
        Self {
            client,
            range,
            due: Box::pin(sleep(delay)),
            listing: None,
            position_before,
            changes_meanwhile: Vec::new(),
        }
    }

    /// The listing, when it is due and done. Nothing is lost when this is dropped.
    pub(crate) async fn await_snapshot(&mut self) -> Result<Snapshot, Error> {
        let listing = match &mut self.listing {
            Some(listing) => listing,
            None => {
                self.due.as_mut().await;
                let (client, range) = (self.client.clone(), self.range.clone());
                self.listing.insert(Box::pin(async move { client.read_range(&range).await }))
            }
        };
        listing.as_mut().await
    }

    /// Notes what the watch tells.
    pub(crate) fn record_changes(&mut self, changes: &[Change]) {
        if self.listing.is_some() {
            self.changes_meanwhile.extend_from_slice(changes);
        }
    }

    /// The listing as of now, not as of when it was begun.
    pub(crate) fn catch_up_snapshot(self, snapshot: Snapshot) -> Result<Snapshot, ResyncReason> {
        check_same_store(self.position_before, Position::from_snapshot(&snapshot))?;
        Ok(apply_newer_changes(snapshot, self.changes_meanwhile))
    }
}

fn apply_newer_changes(mut snapshot: Snapshot, changes: Vec<Change>) -> Snapshot {
    let listed_at = snapshot.revision;
    for change in changes.into_iter().filter(|change| revision_of(change) > listed_at) {
        snapshot.revision = revision_of(&change);
        apply_change(&mut snapshot.entries, change);
    }
    snapshot
}

/// Applies a change to entries that are sorted by key.
fn apply_change(entries: &mut Vec<Entry>, change: Change) {
    let place = entries.binary_search_by(|entry| entry.key.as_str().cmp(change.key()));
    match (place, change) {
        (Ok(at), Change::Put(entry)) => {
            if let Some(old) = entries.get_mut(at) {
                *old = entry;
            }
        }
        (Err(at), Change::Put(entry)) => entries.insert(at, entry),
        (Ok(at), Change::Delete { .. }) => drop(entries.remove(at)),
        (Err(_), Change::Delete { .. }) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, mod_revision: i64) -> Entry {
        Entry { key: key.into(), value: Vec::new(), create_revision: 1, mod_revision, lease: 0 }
    }

    fn put(key: &str, revision: i64) -> Change {
        Change::Put(entry(key, revision))
    }

    fn delete(key: &str, revision: i64) -> Change {
        Change::Delete { key: key.into(), revision, previous: None }
    }

    #[test]
    fn what_the_watch_told_meanwhile_is_in_the_listing() {
        let listed = Snapshot { revision: 10, entries: vec![entry("b", 3), entry("d", 10)], ..Default::default() };
        let meanwhile = vec![
            delete("d", 9),
            put("d", 10),
            put("a", 11),
            put("c", 12),
            put("b", 12),
            delete("c", 13),
            delete("x", 14),
            put("e", 14),
        ];
        let now = apply_newer_changes(listed, meanwhile);
        assert_eq!(now.revision, 14);
        assert_eq!(now.entries, [entry("a", 11), entry("b", 12), entry("d", 10), entry("e", 14)]);
    }

    #[test]
    fn a_listing_that_is_ahead_stays_as_it_is() {
        let listed = Snapshot { revision: 10, entries: vec![entry("b", 3)], ..Default::default() };
        assert_eq!(apply_newer_changes(listed.clone(), vec![put("a", 10), delete("b", 2)]), listed);
    }
}
