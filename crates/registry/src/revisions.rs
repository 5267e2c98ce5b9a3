//! The meaning of a watch's message: it joins fragments into whole revisions, and says when all keys must be listed again.
//! Pure: no I/O, no clock.

pub(crate) mod model;

use std::fmt;

use discovery::{Change, ResetReason, StoreRevision};
use etcd_client::proto::{PbEvent, PbResponseHeader, PbWatchResponse};

use crate::entry::Prefix;

/// `mvccpb.Event.EventType` of etcd's API. The client library's accessor panics on other numbers.
const PUT: i32 = 0;
const DELETE: i32 = 1;

/// The store, and the revision up to which its changes are known.
pub type Position = StoreRevision;

/// The reason why the known keys can't be continued, and all keys must be listed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResyncReason {
    /// The revisions in between are compacted away.
    Compacted,
    /// The endpoint belongs to another cluster.
    OtherCluster,
    /// The store is an older one: wiped, recreated or restored. A watch of it would be silent until it caught up.
    WentBack,
    /// The store is ahead, but watches from the known revision end before they deliver anything.
    Stuck,
}

impl fmt::Display for ResyncReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compacted => "the changes since are compacted away",
            Self::OtherCluster => "another etcd cluster answers",
            Self::WentBack => "the store's revision or raft term went back",
            Self::Stuck => "the changes since can't be watched, they may be too many at once",
        })
    }
}

impl From<ResetReason> for ResyncReason {
    fn from(reason: ResetReason) -> Self {
        match reason {
            ResetReason::ClusterChanged { .. } => Self::OtherCluster,
            ResetReason::RevisionWentBack { .. } | ResetReason::TermWentBack { .. } => Self::WentBack,
        }
    }
}

pub(crate) fn position_of_header(header: &PbResponseHeader) -> Position {
    Position { cluster: header.cluster_id, revision: header.revision, raft_term: header.raft_term }
}

/// The known position with the term of `now`, which a linearizable read must have told: a member's own revision may lag
/// behind. The error says that `now` is another store or an older one.
pub(crate) fn check_same_store(known: Position, now: Position) -> Result<Position, ResyncReason> {
    known.compare(now)?;
    Ok(Position { raft_term: now.raft_term, ..known })
}

/// Decides whether a watch may resume at the known position while the store is at `now`. `resumed_behind_at` is the
/// revision at which a watch was last resumed while the store was ahead.
pub fn decide_resume(
    known: Position,
    now: Position,
    resumed_behind_at: &mut Option<i64>,
) -> Result<Position, ResyncReason> {
    let position = check_same_store(known, now)?;
    // etcd is silent, for progress requests too, while it puts the events of one revision together. Tens of thousands of
    // deletions with their previous values take longer than a watch may be silent. A listing has pages.
    let is_behind = now.revision > position.revision;
    if is_behind && resumed_behind_at.replace(position.revision) == Some(position.revision) {
        Err(ResyncReason::Stuck)
    } else {
        Ok(position)
    }
}

/// The consequence of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// The watch was created.
    Created,
    /// The watch lives, and has no whole revision to deliver.
    Alive,
    /// The changes of whole revisions, up to this one.
    Deliver {
        /// The last of these revisions.
        revision: i64,
        /// The changes, in their order.
        changes: Vec<Change>,
    },
    /// All keys must be listed again.
    Resync(ResyncReason),
    /// etcd ended the watch for this reason. The stream stays open and silent.
    Canceled(String),
}

/// The revisions of one watch, in order.
#[derive(Debug)]
pub(crate) struct Revisions {
    prefix: Prefix,
    cluster: u64,
    /// The newest delivered revision.
    delivered: i64,
    /// The changes of fragments so far. The last revision among them may not be whole yet. All are newer than `delivered`.
    pending: Vec<Change>,
}

impl Revisions {
    pub(crate) fn new(prefix: Prefix, position: Position) -> Self {
        Self { prefix, cluster: position.cluster, delivered: position.revision, pending: Vec::new() }
    }

    /// Decides on the next message.
    pub(crate) fn accept_message(&mut self, message: PbWatchResponse) -> Decision {
        let delivered_before = self.delivered;
        let decision = self.decide(message);
        self.check_invariants(delivered_before, &decision);
        decision
    }

    fn decide(&mut self, message: PbWatchResponse) -> Decision {
        // First: the message of a refused watch is `created` too.
        if message.canceled || message.compact_revision > 0 {
            return if message.compact_revision > 0 {
                Decision::Resync(ResyncReason::Compacted)
            } else {
                Decision::Canceled(message.cancel_reason)
            };
        }
        if let Some(header) = message.header {
            if header.cluster_id != self.cluster {
                return Decision::Resync(ResyncReason::OtherCluster);
            }
            // A watch that begins ahead of the store is created, and then silent for good.
            if header.revision < self.delivered {
                return Decision::Resync(ResyncReason::WentBack);
            }
        }
        if message.created {
            return Decision::Created;
        }
        for event in message.events {
            // A watch that begins at a revision delivers that revision too, and a listing may have overtaken it.
            if let Some((revision, change)) = self.to_change(event)
                && revision > self.delivered
            {
                self.pending.push(change);
            }
        }
        self.take_complete(message.fragment)
    }

    /// Drops what a listing has delivered: everything up to this revision.
    pub(crate) fn skip_to(&mut self, known: i64) {
        let delivered_before = self.delivered;
        self.delivered = self.delivered.max(known);
        self.pending.retain(|change| revision_of(change) > self.delivered);
        self.check_invariants(delivered_before, &Decision::Alive);
    }

    /// Delivers the complete revisions: all of them, or while fragments arrive all but the last.
    fn take_complete(&mut self, is_fragment: bool) -> Decision {
        let newest = self.pending.last().map_or(self.delivered, revision_of);
        let complete = if is_fragment {
            self.pending.iter().take_while(|change| revision_of(change) < newest).count()
        } else {
            self.pending.len()
        };
        let changes: Vec<_> = self.pending.drain(..complete).collect();
        match changes.last().map(revision_of) {
            None => Decision::Alive,
            Some(revision) => {
                self.delivered = revision;
                Decision::Deliver { revision, changes }
            }
        }
    }

    fn to_change(&self, event: PbEvent) -> Option<(i64, Change)> {
        let kv = event.kv?;
        let revision = kv.mod_revision;
        match event.r#type {
            PUT => Some((revision, Change::Put(self.prefix.entry_from(kv)))),
            DELETE => {
                let previous = event.prev_kv.map(|kv| self.prefix.entry_from(kv));
                Some((revision, Change::Delete { key: self.prefix.relative_key(&kv.key), revision, previous }))
            }
            _ => None,
        }
    }

    /// Panics in debug builds if a revision goes back, is delivered twice, or is delivered in parts.
    fn check_invariants(&self, delivered_before: i64, decision: &Decision) {
        debug_assert!(self.delivered >= delivered_before, "from {delivered_before} back to {}", self.delivered);
        let is_pending_new = self.pending.iter().all(|change| revision_of(change) > self.delivered);
        debug_assert!(is_pending_new, "pending and delivered up to {}: {:?}", self.delivered, self.pending);
        if let Decision::Deliver { revision, changes } = decision {
            debug_assert!(*revision == self.delivered && !changes.is_empty(), "{decision:?}");
            let is_new = changes.iter().all(|change| revision_of(change) > delivered_before);
            debug_assert!(is_new, "delivered again after {delivered_before}: {decision:?}");
        }
    }
}

/// The revision at which a change happened.
pub(crate) fn revision_of(change: &Change) -> i64 {
    match change {
        Change::Put(entry) => entry.mod_revision,
        Change::Delete { revision, .. } => *revision,
    }
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::PbKeyValue;

    use super::*;

    const AT_10: Position = Position { cluster: 1, revision: 10, raft_term: 3 };

    fn revisions() -> Revisions {
        Revisions::new(Prefix::parse("/p").expect("valid"), AT_10)
    }

    fn header(cluster_id: u64, revision: i64, raft_term: u64) -> PbResponseHeader {
        PbResponseHeader { cluster_id, revision, raft_term, member_id: 0 }
    }

    fn message(revision: i64) -> PbWatchResponse {
        PbWatchResponse { header: Some(header(1, revision, 3)), ..Default::default() }
    }

    fn kv(key: &str, mod_revision: i64) -> PbKeyValue {
        PbKeyValue { key: format!("/p/{key}").into_bytes(), mod_revision, ..Default::default() }
    }

    fn puts(fragment: bool, events: &[(&str, i64)]) -> PbWatchResponse {
        let put = |(key, revision): &(&str, i64)| PbEvent { r#type: PUT, kv: Some(kv(key, *revision)), prev_kv: None };
        PbWatchResponse { fragment, events: events.iter().map(put).collect(), ..message(99) }
    }

    fn delivered(verdict: Decision) -> (i64, Vec<String>) {
        match verdict {
            Decision::Deliver { revision, changes } => {
                (revision, changes.iter().map(|change| change.key().to_owned()).collect())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_cancel_is_seen_before_a_creation() {
        let refused = PbWatchResponse {
            created: true,
            canceled: true,
            watch_id: -1,
            cancel_reason: "permission denied".into(),
            ..message(10)
        };
        assert_eq!(revisions().accept_message(refused), Decision::Canceled("permission denied".into()));
        let compacted = PbWatchResponse { canceled: true, compact_revision: 50, ..message(0) };
        assert_eq!(revisions().accept_message(compacted), Decision::Resync(ResyncReason::Compacted));
    }

    #[test]
    fn a_store_that_went_back_or_is_another_one_is_seen_at_the_creation() {
        let created = |header| PbWatchResponse { created: true, header: Some(header), ..Default::default() };
        assert_eq!(revisions().accept_message(created(header(1, 10, 3))), Decision::Created);
        assert_eq!(revisions().accept_message(created(header(1, 9, 3))), Decision::Resync(ResyncReason::WentBack));
        assert_eq!(revisions().accept_message(created(header(2, 10, 3))), Decision::Resync(ResyncReason::OtherCluster));
    }

    #[test]
    fn a_linearizable_read_shows_a_wiped_store_even_if_its_revision_is_ahead() {
        let now = |cluster, revision, raft_term| Position { cluster, revision, raft_term };
        assert_eq!(check_same_store(AT_10, now(1, 20, 4)), Ok(Position { raft_term: 4, ..AT_10 }));
        assert_eq!(check_same_store(AT_10, now(1, 20, 2)), Err(ResyncReason::WentBack));
        assert_eq!(check_same_store(AT_10, now(1, 9, 3)), Err(ResyncReason::WentBack));
        assert_eq!(check_same_store(AT_10, now(2, 10, 3)), Err(ResyncReason::OtherCluster));
    }

    #[test]
    fn a_message_without_events_is_a_sign_of_life() {
        assert_eq!(revisions().accept_message(message(50)), Decision::Alive);
    }

    #[test]
    fn only_whole_revisions_leave_while_fragments_come() {
        let mut revisions = revisions();
        assert_eq!(revisions.accept_message(puts(true, &[("a", 11), ("b", 11)])), Decision::Alive);
        assert_eq!(
            delivered(revisions.accept_message(puts(true, &[("c", 11), ("d", 12)]))),
            (11, vec!["a".into(), "b".into(), "c".into()])
        );
        assert_eq!(delivered(revisions.accept_message(puts(false, &[("e", 12)]))), (12, vec!["d".into(), "e".into()]));
        assert_eq!(
            delivered(revisions.accept_message(puts(false, &[("f", 13), ("g", 14)]))),
            (14, vec!["f".into(), "g".into()])
        );
    }

    #[test]
    fn a_delivered_revision_is_not_delivered_again() {
        let mut revisions = revisions();
        assert_eq!(revisions.accept_message(puts(false, &[("old", 10)])), Decision::Alive);
        assert_eq!(delivered(revisions.accept_message(puts(false, &[("old", 9), ("a", 11)]))), (11, vec!["a".into()]));
        assert_eq!(revisions.accept_message(puts(false, &[("a", 11)])), Decision::Alive);
    }

    #[test]
    fn changes_before_a_listing_are_not_delivered() {
        let mut revisions = revisions();
        revisions.accept_message(puts(true, &[("a", 11), ("b", 11)]));
        revisions.skip_to(11);
        assert_eq!(delivered(revisions.accept_message(puts(false, &[("c", 11), ("d", 12)]))), (12, vec!["d".into()]));
        revisions.skip_to(5);
        assert_eq!(revisions.accept_message(puts(false, &[("d", 12)])), Decision::Alive);
    }

    #[test]
    fn a_deletion_has_the_previous_entry() {
        let event = PbEvent { r#type: DELETE, kv: Some(kv("a", 11)), prev_kv: Some(kv("a", 7)) };
        let verdict = revisions().accept_message(PbWatchResponse { events: vec![event], ..message(11) });
        let Decision::Deliver { changes, .. } = verdict else { panic!("{verdict:?}") };
        let [Change::Delete { key, revision: 11, previous: Some(previous) }] = changes.as_slice() else {
            panic!("{changes:?}")
        };
        assert_eq!((key.as_str(), previous.mod_revision), ("a", 7));
    }

    #[test]
    fn an_event_of_an_unknown_kind_or_without_a_key_is_left_out() {
        let odd = [PbEvent { r#type: 7, kv: Some(kv("a", 11)), prev_kv: None }, PbEvent::default()];
        assert_eq!(revisions().accept_message(PbWatchResponse { events: odd.into(), ..message(11) }), Decision::Alive);
    }

    #[test]
    fn a_watch_that_was_resumed_once_at_a_revision_is_not_resumed_there_again() {
        let now = Position { revision: 12, ..AT_10 };
        let mut resumed_behind_at = None;
        assert_eq!(decide_resume(AT_10, AT_10, &mut resumed_behind_at), Ok(AT_10));
        assert_eq!(decide_resume(AT_10, now, &mut resumed_behind_at), Ok(AT_10));
        assert_eq!(decide_resume(AT_10, now, &mut resumed_behind_at), Err(ResyncReason::Stuck));
        let at_11 = Position { revision: 11, ..AT_10 };
        assert_eq!(decide_resume(at_11, now, &mut resumed_behind_at), Ok(at_11), "the watch got further");
        assert_eq!(decide_resume(at_11, AT_10, &mut resumed_behind_at), Err(ResyncReason::WentBack));
    }

    fn change(revision: i64) -> Change {
        Change::Delete { key: "a".into(), revision, previous: None }
    }

    #[test]
    #[should_panic(expected = "from 11 back to 10")]
    fn a_revision_that_goes_back_panics_in_debug_builds() {
        revisions().check_invariants(11, &Decision::Alive);
    }

    #[test]
    #[should_panic(expected = "pending and delivered")]
    fn a_delivered_change_that_is_pending_panics_in_debug_builds() {
        let mut revisions = revisions();
        revisions.pending.push(change(10));
        revisions.check_invariants(10, &Decision::Alive);
    }

    #[test]
    #[should_panic(expected = "delivered again after 10")]
    fn a_change_that_is_delivered_again_panics_in_debug_builds() {
        let mut revisions = revisions();
        revisions.delivered = 12;
        revisions.check_invariants(10, &Decision::Deliver { revision: 12, changes: vec![change(10), change(12)] });
    }

    #[test]
    #[should_panic(expected = "Deliver")]
    fn a_delivery_without_changes_panics_in_debug_builds() {
        revisions().check_invariants(10, &Decision::Deliver { revision: 10, changes: Vec::new() });
    }
}
