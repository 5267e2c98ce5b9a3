//! One record of the set: what is wanted, what is known of its key, and what news of the key means. Pure.

use std::sync::Arc;

use discovery::{Entry, UpstreamState};
use registry::LeaseId;

use crate::record::difference::truncate_value;
use crate::record::ownership::{Owner, OwnershipHistory, find_other_owner};
use crate::record::{Record, RecordStatus, Want};

/// Knowledge of a record's key under the present lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyState {
    /// Nothing is known, or the key is missing.
    Unknown,
    /// The record is stored in this state.
    Present(UpstreamState),
    /// The record was deleted, by us or by another writer during the drain. It is left alone as long as this lease lives.
    LeftAlone,
}

/// Change by another writer to a stored record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The key was deleted.
    Deleted,
    /// The key has this value instead of ours. It is shortened for messages.
    Overwritten(String),
    /// The key belongs to another announcer, or was made permanent at another address.
    Displaced(Owner),
}

/// State of a record's key in the store.
#[derive(Clone, Copy, Debug)]
pub struct KeyObservation<'a> {
    /// `None` if the key is missing.
    pub entry: Option<&'a Entry>,
    /// Store revision of the observation.
    pub revision: i64,
    /// True if the store changed its cluster or was restored. Revisions from before then mean nothing.
    pub is_other_store: bool,
}

/// Meaning of an observation of a record's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conclusion {
    /// The record is stored as written, or the observation is older than the last write.
    Nothing,
    /// The key that belonged to another owner may be free.
    MayBeFree,
    /// The record is no longer stored as written.
    Lost(Loss),
}

/// Result of a write, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordChange {
    /// The record was stored.
    Registered,
    /// The record was stored again, after this loss.
    Restored(Loss),
    /// The record is in this state now.
    StateChanged(UpstreamState),
}

/// A record that was written, and its change.
#[derive(Clone, Debug)]
pub struct RecordNews {
    /// The record.
    pub record: Arc<Record>,
    /// The change.
    pub change: RecordChange,
}

/// A record of the set.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) record: Arc<Record>,
    pub(super) want: Want,
    pub(super) key_state: KeyState,
    /// Revision of the last write, or of the change by another writer. 0 if neither is known under this lease.
    pub(super) revision: i64,
    pub(super) history: OwnershipHistory,
    /// Last loss, until the record is stored again.
    pub(super) loss: Option<Loss>,
    /// Owner that has the id instead.
    pub(super) owner: Option<Owner>,
    /// Number of times that the record was put into the store, under any lease.
    pub(super) registrations: u64,
    /// Those of the registrations that repaired a change by another writer.
    pub(super) restorations: u64,
}

impl Member {
    /// A record of which nothing is known yet.
    pub(super) fn new(record: Arc<Record>, want: Want) -> Self {
        Self {
            record,
            want,
            key_state: KeyState::Unknown,
            revision: 0,
            history: OwnershipHistory::default(),
            loss: None,
            owner: None,
            registrations: 0,
            restorations: 0,
        }
    }

    /// The member with another order. What is known of its key stays known, unless the order is about another record.
    pub(super) fn with_order(&self, record: Arc<Record>, want: Want) -> Self {
        let state = UpstreamState::Ready;
        let is_changed = record.encode_value(state, None) != self.record.encode_value(state, None);
        // A record that was deleted is wanted again, as that of a container which is created again.
        let is_back = self.want == Want::Absent && matches!(want, Want::Present(_));
        let key_state = if is_changed || is_back { KeyState::Unknown } else { self.key_state };
        Self { record, want, key_state, ..self.clone() }
    }

    /// Forgets everything that was known under the last lease.
    pub(super) fn forget_lease(&mut self) {
        (self.key_state, self.revision, self.loss) = (KeyState::Unknown, 0, None);
        // `yielded_to` stays: a new lease of ours is no reason to take the record back.
        self.history.has_held = false;
    }

    /// True if the record is stored in the wanted state.
    pub(super) fn is_as_wanted(&self) -> bool {
        match (self.want, self.key_state) {
            (Want::Present(want) | Want::IfPresent(want), KeyState::Present(stored)) => want == stored,
            _ => false,
        }
    }

    /// True if the key's state is not the wanted one and a write could change that.
    pub(super) fn needs_write(&self) -> bool {
        match (self.want, self.key_state) {
            (_, KeyState::LeftAlone) => false,
            (Want::Absent, _) | (_, KeyState::Unknown) => true,
            (Want::Present(want) | Want::IfPresent(want), KeyState::Present(stored)) => want != stored,
        }
    }

    /// State in the store, counters and owner.
    pub(super) fn status(&self) -> RecordStatus {
        RecordStatus {
            stored_state: if let KeyState::Present(state) = self.key_state { Some(state) } else { None },
            registrations: self.registrations,
            restorations: self.restorations,
            owner: self.owner.as_ref().map(ToString::to_string),
        }
    }

    /// Applies an observation of the key.
    pub(super) fn observe(&mut self, seen: KeyObservation<'_>, lease: Option<LeaseId>) -> Conclusion {
        let revision = seen.entry.map_or(seen.revision, |entry| entry.mod_revision);
        if self.key_state == KeyState::Unknown {
            return if self.is_free(seen.entry, lease) { Conclusion::MayBeFree } else { Conclusion::Nothing };
        }
        // A restored store counts revisions from an older number, so they can't be compared.
        if self.key_state == KeyState::LeftAlone || (revision <= self.revision && !seen.is_other_store) {
            return Conclusion::Nothing;
        }
        if let Some((entry, lease)) = seen.entry.zip(lease).filter(|(entry, lease)| entry.lease == lease.get())
            && self.record.state_from_value(&entry.value, lease) == wanted_state(self.want)
        {
            // A write of ours reached etcd, and its answer was lost.
            self.revision = revision;
            return Conclusion::Nothing;
        }
        self.mark_lost(seen.entry, revision, lease)
    }

    fn is_free(&self, entry: Option<&Entry>, lease: Option<LeaseId>) -> bool {
        entry.is_none_or(|entry| find_other_owner(&self.record, entry, lease, self.history).is_none())
    }

    fn mark_lost(&mut self, entry: Option<&Entry>, revision: i64, lease: Option<LeaseId>) -> Conclusion {
        let history = OwnershipHistory { has_held: true, ..self.history };
        let loss = match entry {
            None => Loss::Deleted,
            Some(entry) => match find_other_owner(&self.record, entry, lease, history) {
                Some(owner) => Loss::Displaced(owner),
                None => Loss::Overwritten(truncate_value(&entry.value)),
            },
        };
        let is_leaving = !matches!(self.want, Want::Present(_));
        self.key_state = match loss {
            // During the drain, a record that is gone stays gone. One that was overwritten may have to be deleted.
            Loss::Deleted | Loss::Displaced(_) if is_leaving => KeyState::LeftAlone,
            _ => KeyState::Unknown,
        };
        self.revision = revision;
        if let Loss::Displaced(owner) = &loss {
            self.yield_to(owner);
        }
        self.loss = Some(loss.clone());
        Conclusion::Lost(loss)
    }

    /// Notes that another owner has the id.
    pub(super) fn mark_taken(&mut self, owner: &Owner) {
        self.key_state = KeyState::Unknown;
        // The next attempt may take over a record that was never ours. A record that was ours stays with its new owner.
        if self.history.has_held {
            self.yield_to(owner);
        }
        self.owner = Some(owner.clone());
    }

    fn yield_to(&mut self, owner: &Owner) {
        self.history.yielded_to = owner.lease.or(self.history.yielded_to);
        self.owner = Some(owner.clone());
    }

    /// Notes a write at this revision. `None` if it was a deletion.
    pub(super) fn mark_written(&mut self, key_state: KeyState, revision: i64) -> Option<RecordNews> {
        let before = std::mem::replace(&mut self.key_state, key_state);
        self.revision = revision;
        let KeyState::Present(state) = key_state else { return None };
        (self.history.has_held, self.owner) = (true, None);
        let loss = self.loss.take();
        let was_put = before == KeyState::Unknown && matches!(self.want, Want::Present(_));
        self.registrations += u64::from(was_put);
        let change = match (loss, was_put, state) {
            (Some(loss), true, _) => {
                self.restorations += 1;
                RecordChange::Restored(loss)
            }
            (_, true, UpstreamState::Ready) => RecordChange::Registered,
            _ => RecordChange::StateChanged(state),
        };
        Some(RecordNews { record: self.record.clone(), change })
    }

    /// First violated invariant. `None` if all hold.
    pub(super) fn find_violation(&self, can_write: bool) -> Option<&'static str> {
        let is_present = matches!(self.key_state, KeyState::Present(_));
        if is_present && !can_write {
            return Some("a record is stored without a lease");
        }
        if is_present && (self.owner.is_some() || self.loss.is_some()) {
            return Some("a record is stored, and lost or taken");
        }
        if is_present && !(self.history.has_held && self.revision > 0) {
            return Some("a record is stored, and was never written");
        }
        if matches!(self.loss, Some(Loss::Displaced(_))) && self.owner.is_none() {
            return Some("a record was displaced by no owner");
        }
        if self.restorations > self.registrations {
            return Some("more restorations than registrations");
        }
        None
    }
}

/// State that the record should have in the store. `None` if it should be missing.
fn wanted_state(want: Want) -> Option<UpstreamState> {
    match want {
        Want::Present(state) | Want::IfPresent(state) => Some(state),
        Want::Absent => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record_of;

    fn stored() -> Member {
        let mut member = Member::new(Arc::new(record_of("a", "10.0.0.1:80")), Want::Present(UpstreamState::Ready));
        member.mark_written(KeyState::Present(UpstreamState::Ready), 5);
        member
    }

    #[track_caller]
    fn is_violated(can_write: bool, violate: impl FnOnce(&mut Member)) {
        let mut member = stored();
        assert_eq!(member.find_violation(true), None);
        violate(&mut member);
        assert!(member.find_violation(can_write).is_some(), "{member:?}");
    }

    #[test]
    fn a_record_with_another_address_is_written_again() {
        let ready = Want::Present(UpstreamState::Ready);
        let (same, moved) = (record_of("a", "10.0.0.1:80"), record_of("a", "10.0.0.1:81"));
        assert!(!stored().with_order(Arc::new(same), ready).needs_write());
        assert!(stored().with_order(Arc::new(moved), ready).needs_write());
    }

    #[test]
    fn a_deleted_record_can_come_back() {
        let record = Arc::new(record_of("a", "10.0.0.1:80"));
        let mut deleted = stored().with_order(record.clone(), Want::Absent);
        deleted.mark_written(KeyState::LeftAlone, 6);
        assert!(!deleted.needs_write());
        assert!(deleted.with_order(record, Want::Present(UpstreamState::Ready)).needs_write());
    }

    #[test]
    fn a_stored_record_has_a_lease() {
        is_violated(false, |_| {});
    }

    #[test]
    fn a_stored_record_is_neither_lost_nor_taken() {
        is_violated(true, |member| member.loss = Some(Loss::Deleted));
        is_violated(true, |member| member.owner = Some(Owner { address: "10.0.0.9:80".to_owned(), lease: None }));
    }

    #[test]
    fn a_stored_record_was_written() {
        is_violated(true, |member| member.revision = 0);
        is_violated(true, |member| member.history.has_held = false);
    }

    #[test]
    fn a_displaced_record_has_an_owner() {
        is_violated(true, |member| {
            let owner = Owner { address: "10.0.0.9:80".to_owned(), lease: None };
            (member.key_state, member.loss) = (KeyState::Unknown, Some(Loss::Displaced(owner)));
        });
    }

    #[test]
    fn restorations_are_registrations() {
        is_violated(true, |member| member.restorations = member.registrations + 1);
    }
}
