//! One transaction of the set, and what its success means. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use discovery::{Entry, UpstreamState};
use registry::{LeaseId, Txn};

use crate::record::draft::{Draft, Registration};
use crate::record::ownership::Owner;
use crate::record::{Record, Want};
use crate::registrar::record_set::member::{KeyState, Member};

/// A transaction for some members, which are named by their indices.
#[derive(Debug, Default)]
pub struct Part {
    /// The transaction.
    pub draft: Draft,
    /// Records with an id that belongs to another owner.
    pub taken: Vec<(Arc<Record>, Owner)>,
    /// Owners of [`Self::taken`], in the same order.
    pub(super) owners_by_index: Vec<(usize, Owner)>,
    /// Members that the transaction writes, with their state after it.
    pub(super) writes: Vec<(usize, KeyState)>,
    /// Members that lost their key to another writer.
    pub(super) lost: Vec<usize>,
}

/// Circumstances of a part, equal for all of its members.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartContext<'a> {
    pub(super) lease: Option<LeaseId>,
    /// False if etcd's roles forbid writing settings.
    pub(super) with_settings: bool,
    /// Entries that the last attempt read because its conditions failed. `None` for the first attempt.
    pub(super) found: Option<&'a [Entry]>,
}

impl Part {
    /// Empty part that will not write these settings.
    pub(super) fn without_settings(withheld: BTreeSet<String>) -> Self {
        Self { draft: Draft::without_settings(withheld), ..Self::default() }
    }

    /// The transaction.
    pub fn transaction(&self) -> &Txn {
        &self.draft.txn
    }

    /// True if the transaction writes nothing.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Adds what brings a member closer to its wanted state.
    pub(super) fn add_member(&mut self, index: usize, member: &Member, context: PartContext<'_>) {
        match member.want {
            Want::Present(state) => self.add_present(index, member, state, context),
            Want::IfPresent(state) => self.add_leaving(index, member, Some(state), context),
            Want::Absent => self.add_leaving(index, member, None, context),
        }
    }

    /// Adds a new state of a stored record, or the registration of a missing one.
    fn add_present(&mut self, index: usize, member: &Member, state: UpstreamState, context: PartContext<'_>) {
        let PartContext { lease, with_settings, found } = context;
        let record = &member.record;
        let is_ours = found.is_none_or(|found| is_under_lease(record, lease, found));
        if let (KeyState::Present(_), Some(lease), true) = (member.key_state, lease, is_ours) {
            let revision = stored_revision(member, found);
            self.draft.add_change(record, state, lease, revision);
            self.writes.push((index, KeyState::Present(state)));
            return;
        }
        let registration = Registration { state, lease, with_settings, history: member.history };
        match self.draft.add_registration(record, registration, found.unwrap_or_default()) {
            Ok(()) => self.writes.push((index, KeyState::Present(state))),
            Err(owner) => {
                self.owners_by_index.push((index, owner.clone()));
                self.taken.push((record.clone(), owner));
            }
        }
    }

    /// Adds the last state of a record, or its deletion (`None`). A missing record stays missing.
    fn add_leaving(&mut self, index: usize, member: &Member, state: Option<UpstreamState>, context: PartContext<'_>) {
        let Some(lease) = context.lease else { return };
        let record = &member.record;
        let key_state = state.map_or(KeyState::LeftAlone, KeyState::Present);
        let entry = context.found.and_then(|found| record.find_entry(found));
        if context.found.is_none() || entry.is_some_and(|entry| entry.lease == lease.get()) {
            let revision = stored_revision(member, context.found);
            match state {
                Some(state) => self.draft.add_change(record, state, lease, revision),
                None => self.draft.add_deletion(record, lease, revision),
            }
            self.writes.push((index, key_state));
        } else if entry
            // A record that this announcer never stored is not its own to reclaim.
            .is_some_and(|entry| member.registrations > 0 && self.draft.add_reclaim(record, state, lease, entry))
        {
            self.writes.push((index, key_state));
        } else {
            self.lost.push(index);
        }
    }

    /// Asserts that a member has one outcome: etcd refuses a transaction that writes a key twice.
    pub(super) fn check_invariants(&self) {
        debug_assert_eq!(self.find_violation(), None, "{self:?}");
    }

    fn find_violation(&self) -> Option<&'static str> {
        let written = self.writes.iter().map(|(index, _)| *index);
        let taken = self.owners_by_index.iter().map(|(index, _)| *index);
        let all: Vec<usize> = written.chain(taken).chain(self.lost.iter().copied()).collect();
        if all.iter().collect::<BTreeSet<_>>().len() != all.len() {
            return Some("a member has two outcomes");
        }
        if self.taken.len() != self.owners_by_index.len() {
            return Some("a taken record has no owner");
        }
        None
    }
}

/// The revision of the record's last write: as etcd just told it, or as this announcer wrote it. `None` if neither is known.
fn stored_revision(member: &Member, found: Option<&[Entry]>) -> Option<i64> {
    match found {
        Some(found) => member.record.find_entry(found).map(|entry| entry.mod_revision),
        None => matches!(member.key_state, KeyState::Present(_)).then_some(member.revision),
    }
}

fn is_under_lease(record: &Record, lease: Option<LeaseId>, found: &[Entry]) -> bool {
    let lease = lease.map(LeaseId::get);
    record.find_entry(found).is_some_and(|entry| Some(entry.lease) == lease)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record_of;

    fn owner() -> Owner {
        Owner { address: "10.0.0.9:80".to_owned(), lease: None }
    }

    #[test]
    fn a_member_has_one_outcome() {
        let state = KeyState::Present(UpstreamState::Ready);
        let taken = vec![(Arc::new(record_of("a", "10.0.0.1:80")), owner())];
        assert_eq!(Part { writes: vec![(0, state), (1, state)], ..Part::default() }.find_violation(), None);
        for part in [
            Part { writes: vec![(0, state), (0, state)], ..Part::default() },
            Part { writes: vec![(0, state)], lost: vec![0], ..Part::default() },
            Part { taken, owners_by_index: vec![(1, owner())], lost: vec![1], ..Part::default() },
        ] {
            assert_eq!(part.find_violation(), Some("a member has two outcomes"), "{part:?}");
        }
    }

    #[test]
    fn a_taken_record_has_its_owner() {
        let part = Part { owners_by_index: vec![(0, owner())], ..Part::default() };
        assert_eq!(part.find_violation(), Some("a taken record has no owner"));
    }
}
