//! All records of one announcer, which share a lease and, where they fit, a transaction: what to write next, going by
//! what is wanted and what is known to stand. Pure.

use std::{collections::BTreeSet, sync::Arc};

use discovery::{Entry, UpstreamState};
use registry::LeaseId;

use crate::{
    record::{Draft, Owner, Record},
    standing::Stand,
};

/// etcd's `--max-txn-ops` unless told: conditions, writes and reads each. More records than fit are written one
/// transaction after the other.
const OPERATIONS: usize = 128;

/// What is wanted of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// It stands, in this state; it is put there, and again after the lease was lost.
    Stand(UpstreamState),
    /// Where it stands it says this; it isn't put there for that.
    Leave(UpstreamState),
    /// It doesn't stand.
    Gone,
}

/// What is known of a record under the lease at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    /// Nothing.
    Unknown,
    /// It stands and says this.
    As(UpstreamState),
    /// It is gone or somebody else's: left alone as long as this lease lives.
    LeftAlone,
}

/// One record.
#[derive(Clone, Debug)]
struct Member {
    record: Arc<Record>,
    want: Want,
    stands: Stands,
    /// How often it was put there, under whatever lease.
    registrations: u64,
}

/// The records, and what is known of them.
#[derive(Debug, Default)]
pub(crate) struct Group {
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
    /// The ids that belong to somebody else.
    pub(crate) taken: Vec<(Arc<Record>, Owner)>,
    /// The records that it writes.
    written: Vec<(usize, Stands)>,
    /// The records that turned out to be no longer ours.
    lost: Vec<usize>,
}

impl Part {
    /// Nothing is to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.written.is_empty()
    }
}

impl Group {
    /// Records without a lease.
    pub(crate) fn permanent() -> Self {
        Self { permanent: true, ..Self::default() }
    }

    /// Leaves these settings unwritten, by their keys.
    pub(crate) fn withhold(&mut self, settings: BTreeSet<String>) {
        self.withheld = settings;
    }

    /// Takes over what is wanted, and under which lease; whether records went with the lease of before.
    pub(crate) fn set(&mut self, lease: Option<LeaseId>, wants: &[(Arc<Record>, Want)]) -> bool {
        let mut has_lost = false;
        if self.lease != lease {
            has_lost = self.members.iter().any(|member| matches!(member.stands, Stands::As(_)));
            self.members.iter_mut().for_each(|member| member.stands = Stands::Unknown);
            self.lease = lease;
        }
        let known = |record: &Arc<Record>| self.members.iter().find(|member| member.record.key() == record.key());
        let members = wants.iter().map(|(record, want)| Member {
            record: record.clone(),
            want: *want,
            stands: known(record).map_or(Stands::Unknown, |member| member.stands),
            registrations: known(record).map_or(0, |member| member.registrations),
        });
        self.members = members.collect();
        has_lost
    }

    /// Whether every record stands as wanted, or was left to somebody else.
    pub(crate) fn stands(&self) -> bool {
        self.members.iter().all(|member| match (member.want, member.stands) {
            (Want::Stand(want), Stands::As(stands)) => want == stands,
            (Want::Stand(_), stands) => stands == Stands::LeftAlone,
            (Want::Leave(_) | Want::Gone, _) => false,
        })
    }

    /// The records that stand under our lease, and say what is wanted.
    pub(crate) fn ours(&self) -> Vec<Arc<Record>> {
        let says_so = |member: &&Member| match (member.want, member.stands) {
            (Want::Stand(want) | Want::Leave(want), Stands::As(stands)) => want == stands,
            _ => false,
        };
        self.members.iter().filter(says_so).map(|member| member.record.clone()).collect()
    }

    /// All records, and what is known of them.
    pub(crate) fn standing(&self) -> Vec<(Arc<Record>, Stand)> {
        let says = |member: &Member| if let Stands::As(state) = member.stands { Some(state) } else { None };
        let stand = |member: &Member| Stand { says: says(member), registrations: member.registrations };
        self.members.iter().map(|member| (member.record.clone(), stand(member))).collect()
    }

    /// The records that need a write, as many as fit into each transaction.
    pub(crate) fn open(&self) -> Vec<Vec<usize>> {
        let mut parts: Vec<Vec<usize>> = Vec::new();
        let mut room = 0;
        for (index, member) in self.members.iter().enumerate().filter(|(_, member)| self.is_open(member)) {
            // One for the record, one for each setting.
            let cost = 1 + member.record.setting_keys().count();
            match parts.last_mut() {
                Some(part) if cost <= room => part.push(index),
                _ => {
                    parts.push(vec![index]);
                    room = OPERATIONS;
                }
            }
            room = room.saturating_sub(cost);
        }
        parts
    }

    fn is_open(&self, member: &Member) -> bool {
        let has_lease = self.lease.is_some() || self.permanent;
        has_lease
            && match (member.want, member.stands) {
                (_, Stands::LeftAlone) => false,
                (Want::Gone, _) | (_, Stands::Unknown) => true,
                (Want::Stand(want) | Want::Leave(want), Stands::As(stands)) => want != stands,
            }
    }

    /// The next transaction for these records. `found` is what the last one read, since its conditions didn't hold;
    /// None at first.
    pub(crate) fn part(&self, indices: &[usize], with_settings: bool, found: Option<&[Entry]>) -> Part {
        let mut part = Part { draft: Draft::without(self.withheld.clone()), ..Part::default() };
        for (index, member) in indices.iter().filter_map(|index| Some((*index, self.members.get(*index)?))) {
            self.add(&mut part, index, member, with_settings, found);
        }
        part
    }

    fn add(&self, part: &mut Part, index: usize, member: &Member, with_settings: bool, found: Option<&[Entry]>) {
        let record = &member.record;
        if let (Want::Stand(state), Stands::Unknown) = (member.want, member.stands) {
            match record.register(&mut part.draft, state, self.lease, with_settings, found.unwrap_or_default()) {
                Ok(()) => part.written.push((index, Stands::As(state))),
                Err(owner) => part.taken.push((record.clone(), owner)),
            }
            return;
        }
        let Some(lease) = self.lease else { return };
        if found.is_some_and(|found| !record.is_under(lease, found)) {
            part.lost.push(index);
            return;
        }
        let stands = match member.want {
            Want::Stand(state) | Want::Leave(state) => {
                record.change(&mut part.draft, state, lease);
                Stands::As(state)
            }
            Want::Gone => {
                record.delete(&mut part.draft, lease);
                Stands::LeftAlone
            }
        };
        part.written.push((index, stands));
    }

    /// The records of a part that turned out to be no longer ours.
    pub(crate) fn lost(&self, part: &Part) -> Vec<Arc<Record>> {
        part.lost.iter().filter_map(|index| Some(self.members.get(*index)?.record.clone())).collect()
    }

    /// Notes that a part was written, and returns the records that stand as they did not before.
    pub(crate) fn written(&mut self, part: &Part) -> Vec<(Arc<Record>, Option<UpstreamState>)> {
        let mut news = Vec::new();
        for (index, stands) in &part.written {
            if let Some(member) = self.members.get_mut(*index) {
                let before = std::mem::replace(&mut member.stands, *stands);
                let is_new = before == Stands::Unknown && matches!(member.want, Want::Stand(_));
                member.registrations += u64::from(is_new);
                let said = match (before, *stands) {
                    (Stands::Unknown, Stands::As(UpstreamState::Ready)) => Some(None),
                    (_, Stands::As(state)) => Some(Some(state)),
                    _ => None,
                };
                news.extend(said.map(|said| (member.record.clone(), said)));
            }
        }
        for index in &part.lost {
            if let Some(member) = self.members.get_mut(*index) {
                member.stands = Stands::LeftAlone;
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use registry::{Condition, Txn};

    use super::*;
    use crate::record::tests::{entry, record_of};

    const A: &str = "http-services/shop/upstreams/a";
    const B: &str = "http-services/shop/upstreams/b";
    const READY: Want = Want::Stand(UpstreamState::Ready);

    fn lease() -> LeaseId {
        LeaseId::from(7)
    }

    fn records() -> [Arc<Record>; 2] {
        [record_of("a", "10.0.0.1:80"), record_of("b", "10.0.0.2:80")].map(Arc::new)
    }

    fn group(wants: [Want; 2]) -> Group {
        let mut group = Group::default();
        set(&mut group, Some(lease()), wants);
        group
    }

    fn set(group: &mut Group, lease: Option<LeaseId>, wants: [Want; 2]) -> bool {
        group.set(lease, &records().into_iter().zip(wants).collect::<Vec<_>>())
    }

    fn write(group: &mut Group) -> Part {
        let [indices] = &*group.open() else { panic!("one part: {:?}", group.open()) };
        let part = group.part(indices, true, None);
        group.written(&part);
        part
    }

    #[test]
    fn all_records_are_one_transaction_and_shared_settings_are_written_once() {
        let mut group = group([READY; 2]);
        let part = write(&mut group);
        let domain = "http-services/shop/domain";
        let txn = Txn::new()
            .when(Condition::Absent(A.into()))
            .put(A, "10.0.0.1:80", Some(lease()))
            .or_get(A)
            .or_get(domain)
            .when(Condition::Absent(domain.into()))
            .put(domain, "a.com b.com", None)
            .when(Condition::Absent(B.into()))
            .put(B, "10.0.0.2:80", Some(lease()))
            .or_get(B);
        assert_eq!(part.draft.txn, txn);
        assert!(group.stands() && group.open().is_empty());
    }

    #[test]
    fn one_is_down_by_itself_and_only_what_changes_is_written() {
        let mut group = group([READY; 2]);
        write(&mut group);
        set(&mut group, Some(lease()), [READY, Want::Stand(UpstreamState::Down)]);
        let down = r#"{"address":"10.0.0.2:80","state":"down"}"#;
        let txn = Txn::new().when(Condition::LeaseIs(B.into(), lease())).put(B, down, Some(lease())).or_get(B);
        assert_eq!(write(&mut group).draft.txn, txn);
        assert!(group.stands());
    }

    #[test]
    fn a_lost_lease_asks_for_the_same_records_anew() {
        let mut group = group([READY, Want::Stand(UpstreamState::Down)]);
        write(&mut group);
        assert!(set(&mut group, None, [READY, Want::Stand(UpstreamState::Down)]));
        assert!(group.open().is_empty() && !group.stands(), "nothing can be written without a lease");
        assert!(!set(&mut group, Some(LeaseId::from(8)), [READY, Want::Stand(UpstreamState::Down)]));
        assert_eq!(group.open(), [[0, 1]]);
    }

    #[test]
    fn what_is_somebody_elses_is_left_alone_and_holds_nobody_up() {
        let mut group = group([READY; 2]);
        write(&mut group);
        set(&mut group, Some(lease()), [Want::Leave(UpstreamState::Drain); 2]);
        let found = [entry(A, "10.0.0.1:80", 99), entry(B, "10.0.0.2:80", 7)];
        let part = group.part(&[0, 1], true, Some(&found));
        group.written(&part);
        assert_eq!(group.ours().iter().map(|record| record.key()).collect::<Vec<_>>(), [B]);
        assert!(group.open().is_empty());
        // Nor is a record put there only to be drained.
        let part = group_of_unknown().part(&[0, 1], true, Some(&[]));
        assert!(part.is_empty());
    }

    fn group_of_unknown() -> Group {
        group([Want::Leave(UpstreamState::Drain); 2])
    }

    #[test]
    fn a_taken_id_is_reported_and_the_others_go_on() {
        let group = group([READY; 2]);
        let part = group.part(&[0, 1], true, Some(&[entry(A, "10.9.9.9:80", 99)]));
        assert_eq!(part.taken.iter().map(|(record, _)| record.key()).collect::<Vec<_>>(), [A]);
        assert_eq!(part.written, [(1, Stands::As(UpstreamState::Ready))]);
    }

    #[test]
    fn what_is_deleted_is_left_alone() {
        let mut group = group([READY; 2]);
        write(&mut group);
        set(&mut group, Some(lease()), [Want::Gone; 2]);
        let txn = Txn::new()
            .when(Condition::LeaseIs(A.into(), lease()))
            .delete(A)
            .or_get(A)
            .when(Condition::LeaseIs(B.into(), lease()))
            .delete(B)
            .or_get(B);
        assert_eq!(write(&mut group).draft.txn, txn);
        assert!(group.open().is_empty() && group.ours().is_empty());
    }

    #[test]
    fn a_transaction_holds_no_more_than_etcd_takes() {
        let mut group = Group::default();
        let record = |n: usize| (Arc::new(record_of(&format!("a{n}"), "10.0.0.1:80")), READY);
        group.set(Some(lease()), &(0..100).map(record).collect::<Vec<_>>());
        let sizes: Vec<_> = group.open().iter().map(Vec::len).collect();
        assert_eq!(sizes, [64, 36], "a record and a setting each");
    }
}
