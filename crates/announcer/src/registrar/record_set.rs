//! All records of one announcer, which share a lease and, where they fit, a transaction: what to write next, going by
//! what is wanted and what is known to stand. Pure.

use std::{collections::BTreeSet, sync::Arc};

use discovery::{Entry, UpstreamState};
use registry::LeaseId;

use crate::record::RecordStatus;
use crate::record::Want;
use crate::record::{Draft, Owner, OwnershipHistory, Record, truncate_value};

/// etcd's `--max-txn-ops` unless told: conditions, writes and reads each. More records than fit are written one
/// transaction after the other.
const MAX_TXN_OPERATIONS: usize = 128;

/// What is known of a record under the lease at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyState {
    /// Nothing, or that it isn't there.
    Unknown,
    /// It stands and says this.
    Present(UpstreamState),
    /// It was withdrawn, or another hand took it away on the way out: left alone as long as this lease lives.
    LeftAlone,
}

/// A change by another hand to a record that stood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The key was deleted.
    Deleted,
    /// The key has this value, shortened for messages, instead of the announcer's.
    Overwritten(String),
    /// The key is another announcer's now, or was made permanent at another address.
    Displaced(Owner),
}

/// The state of a record's key, as the store tells it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyObservation<'a> {
    /// The entry, None where the key isn't there.
    pub(crate) entry: Option<&'a Entry>,
    /// The revision at which that was so.
    pub(crate) revision: i64,
    /// The store is another one than before, or was put back: revisions known before mean nothing.
    pub(crate) is_other_store: bool,
}

/// The conclusion from a key's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Conclusion {
    /// Nothing: the record stands as it was written, or the news is older than the last write.
    Nothing,
    /// The key that was waited for may be free.
    MayBeFree,
    /// The record no longer stands as it was written.
    Lost(Loss),
}

/// One record.
#[derive(Clone, Debug)]
struct Member {
    record: Arc<Record>,
    want: Want,
    key_state: KeyState,
    /// The revision of the last write, or of the deletion by another hand; 0 where neither is known under this lease.
    revision: i64,
    tenure: OwnershipHistory,
    /// The change by another hand since it stood, until it stands again.
    loss: Option<Loss>,
    /// The owner that has the id instead.
    owner: Option<Owner>,
    /// How often it was put there, under whatever lease.
    registrations: u64,
    /// The share of them that came after another hand had deleted it or written over it.
    restorations: u64,
}

impl Member {
    fn new(record: Arc<Record>, want: Want) -> Self {
        Self {
            record,
            want,
            key_state: KeyState::Unknown,
            revision: 0,
            tenure: OwnershipHistory::default(),
            loss: None,
            owner: None,
            registrations: 0,
            restorations: 0,
        }
    }

    /// Another lease is held, or none: what hung on the one before is gone.
    fn forget_lease(&mut self) {
        (self.key_state, self.revision, self.loss) = (KeyState::Unknown, 0, None);
        self.tenure.has_held = false;
    }

    /// True if the store has the record, and the record says what is wanted.
    fn is_as_wanted(&self) -> bool {
        match (self.want, self.key_state) {
            (Want::Present(want) | Want::IfPresent(want), KeyState::Present(stands)) => want == stands,
            _ => false,
        }
    }

    fn observe(&mut self, seen: KeyObservation<'_>, lease: Option<LeaseId>) -> Conclusion {
        let at = seen.entry.map_or(seen.revision, |entry| entry.mod_revision);
        if self.key_state == KeyState::Unknown {
            let is_free = |entry: &Entry| self.record.find_other_owner(entry, lease, self.tenure).is_none();
            return if seen.entry.is_none_or(is_free) { Conclusion::MayBeFree } else { Conclusion::Nothing };
        }
        if self.key_state == KeyState::LeftAlone || (at <= self.revision && !seen.is_other_store) {
            return Conclusion::Nothing;
        }
        if let Some((entry, lease)) = seen.entry.zip(lease).filter(|(entry, lease)| entry.lease == lease.get())
            && self.record.state_from_value(&entry.value, lease) == wanted_state(self.want)
        {
            // A write whose answer was lost.
            self.revision = at;
            return Conclusion::Nothing;
        }
        self.mark_lost(seen.entry, at, lease)
    }

    fn mark_lost(&mut self, entry: Option<&Entry>, at: i64, lease: Option<LeaseId>) -> Conclusion {
        let tenure = OwnershipHistory { has_held: true, ..self.tenure };
        let loss = match entry {
            None => Loss::Deleted,
            Some(entry) => match self.record.find_other_owner(entry, lease, tenure) {
                Some(owner) => Loss::Displaced(owner),
                None => Loss::Overwritten(truncate_value(&entry.value)),
            },
        };
        let is_leaving = !matches!(self.want, Want::Present(_));
        self.key_state = match loss {
            // Nothing that was taken away on the way out is put back; what was written over may have to be taken out.
            Loss::Deleted | Loss::Displaced(_) if is_leaving => KeyState::LeftAlone,
            _ => KeyState::Unknown,
        };
        self.revision = at;
        if let Loss::Displaced(owner) = &loss {
            self.yield_to(owner);
        }
        self.loss = Some(loss.clone());
        Conclusion::Lost(loss)
    }

    fn yield_to(&mut self, owner: &Owner) {
        self.tenure.yielded_to = owner.lease.or(self.tenure.yielded_to);
        self.owner = Some(owner.clone());
    }

    fn mark_written(&mut self, stands: KeyState, revision: i64) -> Option<RecordNews> {
        let before = std::mem::replace(&mut self.key_state, stands);
        self.revision = revision;
        let KeyState::Present(state) = stands else { return None };
        (self.tenure.has_held, self.owner) = (true, None);
        let loss = self.loss.take();
        let was_put = before == KeyState::Unknown && matches!(self.want, Want::Present(_));
        self.registrations += u64::from(was_put);
        let what = match (loss, was_put, state) {
            (Some(loss), true, _) => {
                self.restorations += 1;
                RecordChange::Restored(loss)
            }
            (_, true, UpstreamState::Ready) => RecordChange::Registered,
            _ => RecordChange::StateChanged(state),
        };
        Some(RecordNews { record: self.record.clone(), change: what })
    }
}

/// The news of a record that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RecordChange {
    /// It was put there.
    Registered,
    /// It was put there again, after this.
    Restored(Loss),
    /// It says this.
    StateChanged(UpstreamState),
}

/// A record that was written, and what is new of it.
#[derive(Clone, Debug)]
pub(crate) struct RecordNews {
    pub(crate) record: Arc<Record>,
    pub(crate) change: RecordChange,
}

fn wanted_state(want: Want) -> Option<UpstreamState> {
    match want {
        Want::Present(state) | Want::IfPresent(state) => Some(state),
        Want::Absent => None,
    }
}

/// The records, and what is known of them.
#[derive(Debug, Default)]
pub(crate) struct RecordSet {
    lease: Option<LeaseId>,
    /// The records are meant to stand without a lease.
    permanent: bool,
    /// The keys of settings that aren't written: another service's keys name what they claim.
    withheld: BTreeSet<String>,
    members: Vec<Member>,
}

/// One transaction, and what its success means.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub(crate) draft: Draft,
    /// The ids that belong to another owner.
    pub(crate) taken: Vec<(Arc<Record>, Owner)>,
    /// The same, by their places.
    owners_by_index: Vec<(usize, Owner)>,
    /// The records that it writes.
    writes: Vec<(usize, KeyState)>,
    /// The records that turned out to be no longer ours.
    lost: Vec<usize>,
}

impl Part {
    /// Nothing is to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

impl RecordSet {
    /// Records without a lease.
    pub(crate) fn without_lease() -> Self {
        Self { permanent: true, ..Self::default() }
    }

    /// Leaves these settings unwritten, by their keys.
    pub(crate) fn withhold_settings(&mut self, settings: BTreeSet<String>) {
        self.withheld = settings;
    }

    /// Takes over what is wanted, and under which lease; whether records went with the lease of before.
    pub(crate) fn set_wants(&mut self, lease: Option<LeaseId>, wants: &[(Arc<Record>, Want)]) -> bool {
        let mut has_lost = false;
        if self.lease != lease {
            has_lost = self
                .members
                .iter()
                .any(|member| matches!(member.key_state, KeyState::Present(_)) || member.loss.is_some());
            self.members.iter_mut().for_each(Member::forget_lease);
            self.lease = lease;
        }
        let known = |record: &Arc<Record>| self.members.iter().find(|member| member.record.key() == record.key());
        let members = wants.iter().map(|(record, want)| match known(record) {
            Some(member) => Member { record: record.clone(), want: *want, ..member.clone() },
            None => Member::new(record.clone(), *want),
        });
        self.members = members.collect();
        has_lost
    }

    /// Takes in what the store tells of a key.
    pub(crate) fn observe_key(&mut self, key: &str, seen: KeyObservation<'_>) -> Conclusion {
        let lease = self.lease;
        let member = self.members.iter_mut().find(|member| member.record.key() == key);
        member.map_or(Conclusion::Nothing, |member| member.observe(seen, lease))
    }

    /// True if every record stands as wanted.
    pub(crate) fn is_complete(&self) -> bool {
        self.members.iter().all(|member| matches!(member.want, Want::Present(_)) && member.is_as_wanted())
    }

    /// The records that stand under our lease, and say what is wanted.
    pub(crate) fn present_records(&self) -> Vec<Arc<Record>> {
        self.members.iter().filter(|member| member.is_as_wanted()).map(|member| member.record.clone()).collect()
    }

    /// The records that stood once and no longer do, nor say anything: balancers may not know that yet.
    pub(crate) fn removed_records(&self) -> Vec<Arc<Record>> {
        let members = self.members.iter().filter(|member| member.registrations > 0 && !self.needs_write(member));
        members.filter(|member| !member.is_as_wanted()).map(|member| member.record.clone()).collect()
    }

    /// True if the revision at which one of those went isn't known.
    pub(crate) fn has_unknown_removal(&self) -> bool {
        let mut members = self.members.iter().filter(|member| member.registrations > 0 && !member.is_as_wanted());
        members.any(|member| member.revision == 0 || (member.key_state == KeyState::LeftAlone && member.loss.is_none()))
    }

    /// The revision at which the records came to say what they say, or went.
    pub(crate) fn last_revision(&self) -> i64 {
        self.members.iter().map(|member| member.revision).max().unwrap_or_default()
    }

    /// All records, and what is known of them.
    pub(crate) fn record_statuses(&self) -> Vec<(Arc<Record>, RecordStatus)> {
        let stand = |member: &Member| RecordStatus {
            stored_state: if let KeyState::Present(state) = member.key_state { Some(state) } else { None },
            registrations: member.registrations,
            restorations: member.restorations,
            owner: member.owner.as_ref().map(ToString::to_string),
        };
        self.members.iter().map(|member| (member.record.clone(), stand(member))).collect()
    }

    /// The records that need a write, as many as fit into each transaction.
    pub(crate) fn plan_parts(&self) -> Vec<Vec<usize>> {
        let mut parts: Vec<Vec<usize>> = Vec::new();
        let mut room = 0;
        for (index, member) in self.members.iter().enumerate().filter(|(_, member)| self.needs_write(member)) {
            // One for the record, one for each setting.
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

    fn needs_write(&self, member: &Member) -> bool {
        let has_lease = self.lease.is_some() || self.permanent;
        has_lease
            && match (member.want, member.key_state) {
                (_, KeyState::LeftAlone) => false,
                (Want::Absent, _) | (_, KeyState::Unknown) => true,
                (Want::Present(want) | Want::IfPresent(want), KeyState::Present(stands)) => want != stands,
            }
    }

    /// The next transaction for these records. `found` is what the last one read, since its conditions didn't hold;
    /// None at first.
    pub(crate) fn draft_part(&self, indices: &[usize], with_settings: bool, found: Option<&[Entry]>) -> Part {
        let mut part = Part { draft: Draft::without_settings(self.withheld.clone()), ..Part::default() };
        for (index, member) in indices.iter().filter_map(|index| Some((*index, self.members.get(*index)?))) {
            match member.want {
                Want::Present(state) => self.add_present(&mut part, (index, member), state, with_settings, found),
                Want::IfPresent(state) => self.add_leaving(&mut part, (index, member), Some(state), found),
                Want::Absent => self.add_leaving(&mut part, (index, member), None, found),
            }
        }
        part
    }

    /// Adds what keeps a record standing: a new state under the lease, or its registration where it isn't there.
    fn add_present(
        &self,
        part: &mut Part,
        (index, member): (usize, &Member),
        state: UpstreamState,
        with_settings: bool,
        found: Option<&[Entry]>,
    ) {
        let record = &member.record;
        let is_ours = found.is_none_or(|found| is_under_lease(record, self.lease, found));
        if let (KeyState::Present(_), Some(lease), true) = (member.key_state, self.lease, is_ours) {
            record.add_change(&mut part.draft, state, lease);
            part.writes.push((index, KeyState::Present(state)));
            return;
        }
        let found = found.unwrap_or_default();
        match record.add_registration(&mut part.draft, state, self.lease, with_settings, member.tenure, found) {
            Ok(()) => part.writes.push((index, KeyState::Present(state))),
            Err(owner) => {
                part.owners_by_index.push((index, owner.clone()));
                part.taken.push((record.clone(), owner));
            }
        }
    }

    /// Adds what a record says at last, or its end (None). What isn't there is never put there for that.
    fn add_leaving(
        &self,
        part: &mut Part,
        (index, member): (usize, &Member),
        state: Option<UpstreamState>,
        found: Option<&[Entry]>,
    ) {
        let Some(lease) = self.lease else { return };
        let record = &member.record;
        let stands = state.map_or(KeyState::LeftAlone, KeyState::Present);
        let entry = found.and_then(|found| record.find_entry(found));
        if found.is_none() || entry.is_some_and(|entry| entry.lease == lease.get()) {
            match state {
                Some(state) => record.add_change(&mut part.draft, state, lease),
                None => record.add_deletion(&mut part.draft, lease),
            }
            part.writes.push((index, stands));
        } else if entry
            .is_some_and(|entry| member.registrations > 0 && record.add_reclaim(&mut part.draft, state, lease, entry))
        {
            part.writes.push((index, stands));
        } else {
            part.lost.push(index);
        }
    }

    /// The records of a part that turned out to be no longer ours.
    pub(crate) fn lost_records(&self, part: &Part) -> Vec<Arc<Record>> {
        part.lost.iter().filter_map(|index| Some(self.members.get(*index)?.record.clone())).collect()
    }

    /// Notes that a part was written at this revision, and returns what is new of its records.
    pub(crate) fn mark_written(&mut self, part: &Part, revision: i64) -> Vec<RecordNews> {
        let mut news = Vec::new();
        for (index, stands) in &part.writes {
            if let Some(member) = self.members.get_mut(*index) {
                news.extend(member.mark_written(*stands, revision));
            }
        }
        for index in &part.lost {
            if let Some(member) = self.members.get_mut(*index) {
                member.key_state = KeyState::LeftAlone;
            }
        }
        for (index, owner) in &part.owners_by_index {
            if let Some(member) = self.members.get_mut(*index) {
                member.key_state = KeyState::Unknown;
                if member.tenure.has_held {
                    member.yield_to(owner);
                }
                member.owner = Some(owner.clone());
            }
        }
        news
    }
}

fn is_under_lease(record: &Record, lease: Option<LeaseId>, found: &[Entry]) -> bool {
    let lease = lease.map(LeaseId::get);
    record.find_entry(found).is_some_and(|entry| Some(entry.lease) == lease)
}

#[cfg(test)]
mod tests {
    use registry::{Condition, Txn};

    use super::*;
    use crate::record::tests::{entry, record_of};

    const A: &str = "http-services/shop/upstreams/a";
    const B: &str = "http-services/shop/upstreams/b";
    const READY: Want = Want::Present(UpstreamState::Ready);

    fn lease() -> LeaseId {
        LeaseId::from(7)
    }

    fn records() -> [Arc<Record>; 2] {
        [record_of("a", "10.0.0.1:80"), record_of("b", "10.0.0.2:80")].map(Arc::new)
    }

    fn group(wants: [Want; 2]) -> RecordSet {
        let mut group = RecordSet::default();
        set(&mut group, Some(lease()), wants);
        group
    }

    fn set(group: &mut RecordSet, lease: Option<LeaseId>, wants: [Want; 2]) -> bool {
        group.set_wants(lease, &records().into_iter().zip(wants).collect::<Vec<_>>())
    }

    fn write(group: &mut RecordSet) -> Part {
        let [indices] = &*group.plan_parts() else { panic!("one part: {:?}", group.plan_parts()) };
        let part = group.draft_part(indices, true, None);
        group.mark_written(&part, 5);
        part
    }

    #[test]
    fn all_records_are_one_transaction_and_shared_settings_are_written_once() {
        let mut group = group([READY; 2]);
        let part = write(&mut group);
        let domain = "http-services/shop/domain";
        let txn = Txn::new()
            .only_if(Condition::Absent(A.into()))
            .put(A, "10.0.0.1:80", Some(lease()))
            .or_get(A)
            .or_get(domain)
            .only_if(Condition::Absent(domain.into()))
            .put(domain, "a.com b.com", None)
            .only_if(Condition::Absent(B.into()))
            .put(B, "10.0.0.2:80", Some(lease()))
            .or_get(B);
        assert_eq!(part.draft.txn, txn);
        assert!(group.is_complete() && group.plan_parts().is_empty());
    }

    #[test]
    fn one_is_down_by_itself_and_only_what_changes_is_written() {
        let mut group = group([READY; 2]);
        write(&mut group);
        set(&mut group, Some(lease()), [READY, Want::Present(UpstreamState::Down)]);
        let down = r#"{"address":"10.0.0.2:80","state":"down"}"#;
        let txn = Txn::new().only_if(Condition::LeaseIs(B.into(), lease())).put(B, down, Some(lease())).or_get(B);
        assert_eq!(write(&mut group).draft.txn, txn);
        assert!(group.is_complete());
    }

    #[test]
    fn a_lost_lease_asks_for_the_same_records_anew() {
        let mut group = group([READY, Want::Present(UpstreamState::Down)]);
        write(&mut group);
        assert!(set(&mut group, None, [READY, Want::Present(UpstreamState::Down)]));
        assert!(group.plan_parts().is_empty() && !group.is_complete(), "nothing can be written without a lease");
        assert!(!set(&mut group, Some(LeaseId::from(8)), [READY, Want::Present(UpstreamState::Down)]));
        assert_eq!(group.plan_parts(), [[0, 1]]);
    }

    fn see(group: &mut RecordSet, entry: Option<&Entry>, revision: i64) -> Conclusion {
        group.observe_key(A, KeyObservation { entry, revision, is_other_store: false })
    }

    fn lost(sight: &Conclusion) -> Option<&Loss> {
        if let Conclusion::Lost(loss) = sight { Some(loss) } else { None }
    }

    /// The key as it was written at this revision.
    fn at(value: &str, lease: i64, mod_revision: i64) -> Entry {
        Entry { mod_revision, ..entry(A, value, lease) }
    }

    #[test]
    fn a_deleted_record_is_put_there_again() {
        let mut group = group([READY; 2]);
        write(&mut group);
        assert_eq!(see(&mut group, Some(&at("10.0.0.1:80", 7, 5)), 5), Conclusion::Nothing, "our own write");
        assert_eq!(see(&mut group, None, 4), Conclusion::Nothing, "older than our own write");
        assert_eq!(lost(&see(&mut group, None, 6)), Some(&Loss::Deleted));
        assert!(
            !group.is_complete() && group.record_statuses()[0].1.stored_state.is_none() && group.plan_parts() == [[0]]
        );
        let part = group.draft_part(&[0], true, None);
        let news = group.mark_written(&part, 7);
        assert_eq!(news[0].change, RecordChange::Restored(Loss::Deleted));
        let stand = &group.record_statuses()[0].1;
        assert_eq!((stand.registrations, stand.restorations), (2, 1));
        assert!(group.is_complete());
    }

    #[test]
    fn what_is_written_over_by_hand_is_written_again_and_a_lost_answer_is_no_hand() {
        let mut group = group([READY; 2]);
        for (value, lease) in [("10.0.0.1:80", 0), ("10.9.9.9:80", 0), ("?", 0), ("?", 7), ("10.9.9.9:80", 7)] {
            write_all(&mut group);
            let by_hand = at(value, lease, 6);
            assert_eq!(lost(&see(&mut group, Some(&by_hand), 6)), Some(&Loss::Overwritten(value.into())), "{value}");
            let part = group.draft_part(&[0], true, Some(std::slice::from_ref(&by_hand)));
            assert!(part.taken.is_empty() && !part.is_empty(), "{value}");
            group.mark_written(&part, 5);
        }
        assert_eq!(see(&mut group, Some(&at("10.0.0.1:80", 7, 9)), 9), Conclusion::Nothing, "a lost answer");
    }

    fn write_all(group: &mut RecordSet) {
        for indices in group.plan_parts() {
            let part = group.draft_part(&indices, true, None);
            group.mark_written(&part, 5);
        }
    }

    #[test]
    fn two_announcers_with_one_id_dont_take_turns() {
        let mut group = group([READY; 2]);
        write_all(&mut group);
        let theirs = at("10.0.0.1:80", 99, 6);
        assert!(matches!(lost(&see(&mut group, Some(&theirs), 6)), Some(Loss::Displaced(_))));
        let found = [theirs.clone()];
        let take = |group: &mut RecordSet| {
            let part = group.draft_part(&[0], true, Some(&found));
            group.mark_written(&part, 6);
            part.taken.len()
        };
        assert_eq!(take(&mut group), 1);
        assert!(group.record_statuses()[0].1.owner.is_some() && !group.is_complete());
        assert_eq!(
            see(&mut group, Some(&at("10.0.0.1:80", 99, 8)), 8),
            Conclusion::Nothing,
            "the other writes its state"
        );
        set(&mut group, Some(LeaseId::from(8)), [READY; 2]);
        assert_eq!(take(&mut group), 1, "nor under another lease of ours");
        assert_eq!(see(&mut group, None, 9), Conclusion::MayBeFree);
        let part = group.draft_part(&[0], true, None);
        assert_eq!(group.mark_written(&part, 10)[0].change, RecordChange::Registered);
        assert!(group.record_statuses()[0].1.owner.is_none());
    }

    #[test]
    fn what_goes_while_it_leaves_stays_away() {
        let mut group = group([READY; 2]);
        write_all(&mut group);
        set(&mut group, Some(lease()), [Want::IfPresent(UpstreamState::Drain); 2]);
        write_all(&mut group);
        assert_eq!(lost(&see(&mut group, None, 6)), Some(&Loss::Deleted));
        assert!(group.plan_parts().is_empty(), "nothing is put back");
        assert_eq!(group.removed_records().iter().map(|record| record.key()).collect::<Vec<_>>(), [A]);
        assert_eq!((group.last_revision(), group.has_unknown_removal()), (6, false));
        // One that was written over by hand would stay for ever.
        let by_hand = Entry { mod_revision: 7, ..entry(B, "10.0.0.2:80", 0) };
        let sight = group.observe_key(B, KeyObservation { entry: Some(&by_hand), revision: 7, is_other_store: false });
        assert!(matches!(lost(&sight), Some(Loss::Overwritten(_))) && group.plan_parts() == [[1]]);
        let part = group.draft_part(&[1], true, Some(&[by_hand]));
        assert!(!part.is_empty(), "it is drained again");
    }

    #[test]
    fn a_store_that_was_put_back_is_believed() {
        let mut group = group([READY; 2]);
        write_all(&mut group);
        let seen = |is_other_store| KeyObservation { entry: None, revision: 3, is_other_store };
        assert_eq!(group.observe_key(A, seen(false)), Conclusion::Nothing);
        assert_eq!(lost(&group.observe_key(A, seen(true))), Some(&Loss::Deleted));
    }

    #[test]
    fn records_that_went_with_their_lease_are_gone_unseen() {
        let mut group = group([READY; 2]);
        write_all(&mut group);
        set(&mut group, None, [Want::IfPresent(UpstreamState::Drain); 2]);
        assert_eq!(
            (group.removed_records().len(), group.has_unknown_removal(), group.plan_parts().len()),
            (2, true, 0)
        );
    }

    #[test]
    fn what_is_somebody_elses_is_left_alone_on_the_way_out() {
        let mut group = group([READY; 2]);
        write(&mut group);
        set(&mut group, Some(lease()), [Want::IfPresent(UpstreamState::Drain); 2]);
        let found = [entry(A, "10.0.0.1:80", 99), entry(B, "10.0.0.2:80", 7)];
        let part = group.draft_part(&[0, 1], true, Some(&found));
        group.mark_written(&part, 5);
        assert_eq!(group.present_records().iter().map(|record| record.key()).collect::<Vec<_>>(), [B]);
        assert!(group.plan_parts().is_empty());
        // Nor is a record put there only to be drained.
        let part = group_of_unknown().draft_part(&[0, 1], true, Some(&[]));
        assert!(part.is_empty());
    }

    fn group_of_unknown() -> RecordSet {
        group([Want::IfPresent(UpstreamState::Drain); 2])
    }

    #[test]
    fn a_taken_id_is_reported_and_the_others_go_on() {
        let group = group([READY; 2]);
        let part = group.draft_part(&[0, 1], true, Some(&[entry(A, "10.9.9.9:80", 99)]));
        assert_eq!(part.taken.iter().map(|(record, _)| record.key()).collect::<Vec<_>>(), [A]);
        assert_eq!(part.writes, [(1, KeyState::Present(UpstreamState::Ready))]);
    }

    #[test]
    fn what_is_deleted_is_left_alone() {
        let mut group = group([READY; 2]);
        write(&mut group);
        set(&mut group, Some(lease()), [Want::Absent; 2]);
        let txn = Txn::new()
            .only_if(Condition::LeaseIs(A.into(), lease()))
            .delete(A)
            .or_get(A)
            .only_if(Condition::LeaseIs(B.into(), lease()))
            .delete(B)
            .or_get(B);
        assert_eq!(write(&mut group).draft.txn, txn);
        assert!(group.plan_parts().is_empty() && group.present_records().is_empty());
    }

    #[test]
    fn a_transaction_holds_no_more_than_etcd_takes() {
        let mut group = RecordSet::default();
        let record = |n: usize| (Arc::new(record_of(&format!("a{n}"), "10.0.0.1:80")), READY);
        group.set_wants(Some(lease()), &(0..100).map(record).collect::<Vec<_>>());
        let sizes: Vec<_> = group.plan_parts().iter().map(Vec::len).collect();
        assert_eq!(sizes, [64, 36], "a record and a setting each");
    }
}
