//! The set of all records of one announcer, which share a lease and, if they fit, a transaction. It plans the next writes
//! from what is wanted and what is known. Pure: it sends no transaction.

mod member;
mod part;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, sync::Arc};

use discovery::Entry;
use registry::LeaseId;

use crate::record::{Record, RecordStatus, Want};
pub use crate::registrar::record_set::member::{Conclusion, KeyObservation, Loss, RecordChange, RecordNews};
use crate::registrar::record_set::member::{KeyState, Member};
pub use crate::registrar::record_set::part::Part;
use crate::registrar::record_set::part::PartContext;

/// etcd's default of `--max-txn-ops`. It limits conditions, writes and reads each. Further records get another transaction.
const MAX_TXN_OPERATIONS: usize = 128;

/// The records, and what is known of them.
#[derive(Clone, Debug, Default)]
pub struct RecordSet {
    lease: Option<LeaseId>,
    /// True if the records are written without a lease.
    is_permanent: bool,
    /// Keys of settings that aren't written, because another service's keys name what they claim.
    withheld: BTreeSet<String>,
    members: Vec<Member>,
}

impl RecordSet {
    /// Empty set of permanent records, which have no lease.
    pub fn without_lease() -> Self {
        Self { is_permanent: true, ..Self::default() }
    }

    /// Leaves the settings of these keys unwritten.
    pub fn withhold_settings(&mut self, settings: BTreeSet<String>) {
        self.withheld = settings;
    }

    /// Replaces the wanted states and the lease. True if records were lost with the last lease.
    pub fn set_wants(&mut self, lease: Option<LeaseId>, wants: &[(Arc<Record>, Want)]) -> bool {
        let mut has_lost = false;
        if self.lease != lease {
            has_lost = self
                .members
                .iter()
                .any(|member| matches!(member.key_state, KeyState::Present(_)) || member.loss.is_some());
            self.members.iter_mut().for_each(Member::forget_lease);
            self.lease = lease;
        }
        self.members = wants.iter().map(|(record, want)| self.update_member(record, *want)).collect();
        self.check_invariants();
        has_lost
    }

    /// The member with this key, or a new one.
    fn update_member(&self, record: &Arc<Record>, want: Want) -> Member {
        match self.members.iter().find(|member| member.record.key() == record.key()) {
            Some(member) => member.with_order(record.clone(), want),
            None => Member::new(record.clone(), want),
        }
    }

    /// Applies an observation of a key. A key that is not in the set means nothing.
    pub fn observe_key(&mut self, key: &str, seen: KeyObservation<'_>) -> Conclusion {
        let lease = self.lease;
        let member = self.members.iter_mut().find(|member| member.record.key() == key);
        let conclusion = member.map_or(Conclusion::Nothing, |member| member.observe(seen, lease));
        self.check_invariants();
        conclusion
    }

    /// True if every record should be stored and is stored as wanted.
    pub fn is_complete(&self) -> bool {
        self.members.iter().all(|member| matches!(member.want, Want::Present(_)) && member.is_as_wanted())
    }

    /// Records that are stored under our lease in the wanted state.
    pub fn present_records(&self) -> Vec<Arc<Record>> {
        self.members.iter().filter(|member| member.is_as_wanted()).map(|member| member.record.clone()).collect()
    }

    /// Records that were stored once, are no longer, and need no further write. Balancers may still serve them.
    pub fn removed_records(&self) -> Vec<Arc<Record>> {
        let members = self.members.iter().filter(|member| member.registrations > 0 && !self.can_be_written(member));
        members.filter(|member| !member.is_as_wanted()).map(|member| member.record.clone()).collect()
    }

    /// True if the removal of one of those has no known revision.
    pub fn has_unknown_removal(&self) -> bool {
        let mut members = self.members.iter().filter(|member| member.registrations > 0 && !member.is_as_wanted());
        members.any(|member| member.revision == 0 || (member.key_state == KeyState::LeftAlone && member.loss.is_none()))
    }

    /// Keys of the records that are stored under our lease, as far as is known.
    pub fn stored_keys(&self) -> BTreeSet<String> {
        let stored = self.members.iter().filter(|member| matches!(member.key_state, KeyState::Present(_)));
        stored.map(|member| member.record.key()).collect()
    }

    /// Highest revision at which a record was written or lost. 0 if none is known.
    pub fn last_revision(&self) -> i64 {
        self.members.iter().map(|member| member.revision).max().unwrap_or_default()
    }

    /// All records with their statuses.
    pub fn record_statuses(&self) -> Vec<(Arc<Record>, RecordStatus)> {
        self.members.iter().map(|member| (member.record.clone(), member.status())).collect()
    }

    /// Indices of the members that need a write, as many as fit into each transaction.
    pub fn plan_parts(&self) -> Vec<Vec<usize>> {
        let mut parts: Vec<Vec<usize>> = Vec::new();
        let mut room = 0;
        for (index, member) in self.members.iter().enumerate().filter(|(_, member)| self.can_be_written(member)) {
            // One operation for the record, and one for each setting.
            let cost = 1 + member.record.setting_keys().count();
            match parts.last_mut() {
                Some(part) if cost <= room => part.push(index),
                _ => {
                    parts.push(vec![index]);
                    room = MAX_TXN_OPERATIONS;
                }
            }
            room = room.saturating_sub(cost);
        }
        parts
    }

    /// Drafts the transaction for these members. `found` has the entries that the last attempt read because its conditions
    /// failed. `None` for the first attempt.
    pub fn draft_part(&self, indices: &[usize], with_settings: bool, found: Option<&[Entry]>) -> Part {
        let mut part = Part::without_settings(self.withheld.clone());
        let context = PartContext { lease: self.lease, with_settings, found };
        for index in indices {
            if let Some(member) = self.members.get(*index) {
                part.add_member(*index, member, context);
            }
        }
        part.check_invariants();
        part
    }

    /// Records of a part whose key is no longer ours.
    pub fn lost_records(&self, part: &Part) -> Vec<Arc<Record>> {
        part.lost.iter().filter_map(|index| Some(self.members.get(*index)?.record.clone())).collect()
    }

    /// Notes that a part was written at this revision. Returns the changes of its records.
    pub fn mark_written(&mut self, part: &Part, revision: i64) -> Vec<RecordNews> {
        let mut news = Vec::new();
        for (index, key_state) in &part.writes {
            if let Some(member) = self.members.get_mut(*index) {
                news.extend(member.mark_written(*key_state, revision));
            }
        }
        for index in &part.lost {
            if let Some(member) = self.members.get_mut(*index) {
                member.key_state = KeyState::LeftAlone;
            }
        }
        for (index, owner) in &part.owners_by_index {
            if let Some(member) = self.members.get_mut(*index) {
                member.mark_taken(owner);
            }
        }
        self.check_invariants();
        news
    }

    fn can_write(&self) -> bool {
        self.lease.is_some() || self.is_permanent
    }

    fn can_be_written(&self, member: &Member) -> bool {
        self.can_write() && member.needs_write()
    }

    /// Asserts what must hold after each change of the set.
    fn check_invariants(&self) {
        debug_assert_eq!(self.find_violation(), None, "{self:?}");
    }

    /// First violated invariant. `None` if all hold.
    fn find_violation(&self) -> Option<&'static str> {
        if self.is_permanent && self.lease.is_some() {
            return Some("permanent records have a lease");
        }
        let keys: BTreeSet<String> = self.members.iter().map(|member| member.record.key()).collect();
        if keys.len() != self.members.len() {
            return Some("two records have one key");
        }
        self.members.iter().find_map(|member| member.find_violation(self.can_write()))
    }
}
