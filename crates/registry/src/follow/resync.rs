//! The periodic listing of all keys, beside a watch that goes on meanwhile.
//!
//! No change waits for the listing. The changes that the watch delivers meanwhile are applied to it.

use std::pin::Pin;
use std::time::Duration;

use discovery::{Change, Entry, Snapshot};
use tokio::time::{Sleep, sleep};

use crate::client::Client;
use crate::entry::{KeepEntry, Range};
use crate::error::Error;
use crate::revisions::{Position, ResyncReason, check_same_store, revision_of};

type Listing = Pin<Box<dyn Future<Output = Result<Snapshot, Error>> + Send>>;

/// The next listing, which waits for its time and then runs.
pub(crate) struct Resync {
    client: Client,
    range: Range,
    keep: KeepEntry,
    due: Pin<Box<Sleep>>,
    /// `None` before the listing is due.
    listing: Option<Listing>,
    /// The known position when the wait began. The listing can't be older.
    position_before: Position,
    /// The changes that the watch delivered since the listing began.
    changes_meanwhile: Vec<Change>,
}

impl Resync {
    pub(crate) fn start_after(client: Client, range: Range, keep: KeepEntry, delay: Duration, known: Position) -> Self {
        Self {
            client,
            range,
            keep,
            due: Box::pin(sleep(delay)),
            listing: None,
            position_before: known,
            changes_meanwhile: Vec::new(),
        }
    }

    /// Waits until the listing is due and complete. Dropping the future loses nothing, the next call goes on.
    pub(crate) async fn await_snapshot(&mut self) -> Result<Snapshot, Error> {
        let listing = match &mut self.listing {
            Some(listing) => listing,
            None => {
                self.due.as_mut().await;
                let (client, range, keep) = (self.client.clone(), self.range.clone(), self.keep);
                self.listing.insert(Box::pin(async move { client.read_range(&range, keep).await }))
            }
        };
        listing.as_mut().await
    }

    /// Records changes that the watch delivered.
    pub(crate) fn record_changes(&mut self, changes: &[Change]) {
        // Before it begins, the listing will have them itself.
        if self.listing.is_some() {
            self.changes_meanwhile.extend_from_slice(changes);
        }
    }

    /// The listing with all delivered changes. The error says that it is of another store, or of an older one.
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
    check_invariants(&snapshot, listed_at);
    snapshot
}

/// Panics in debug builds if the listing went back, is not sorted by key, or has an entry of a later revision.
fn check_invariants(snapshot: &Snapshot, listed_at: i64) {
    debug_assert!(snapshot.revision >= listed_at, "from {listed_at} back to {}", snapshot.revision);
    // Two keys that are no UTF-8 may have one name here, so a key may come twice.
    debug_assert!(snapshot.entries.is_sorted_by(|one, other| one.key <= other.key), "not sorted by key");
    let newer = snapshot.entries.iter().find(|entry| entry.mod_revision > snapshot.revision);
    debug_assert!(newer.is_none(), "newer than {}: {newer:?}", snapshot.revision);
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
    fn changes_during_a_listing_are_applied_to_it() {
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

    #[test]
    #[should_panic(expected = "from 10 back to 9")]
    fn a_listing_that_goes_back_panics_in_debug_builds() {
        check_invariants(&Snapshot { revision: 9, ..Default::default() }, 10);
    }

    #[test]
    #[should_panic(expected = "not sorted by key")]
    fn a_listing_that_is_not_sorted_panics_in_debug_builds() {
        check_invariants(
            &Snapshot { revision: 9, entries: vec![entry("b", 1), entry("a", 1)], ..Default::default() },
            9,
        );
    }

    #[test]
    #[should_panic(expected = "newer than 9")]
    fn an_entry_that_is_newer_than_its_listing_panics_in_debug_builds() {
        check_invariants(&Snapshot { revision: 9, entries: vec![entry("a", 10)], ..Default::default() }, 9);
    }
}
