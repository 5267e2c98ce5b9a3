use discovery::UpstreamState;
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
    let txn = Txn::new().only_if(Condition::ModRevisionIs(B.into(), 5)).put(B, down, Some(lease())).or_get(B);
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
    assert!(!group.is_complete() && group.record_statuses()[0].1.stored_state.is_none() && group.plan_parts() == [[0]]);
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
    assert_eq!(see(&mut group, Some(&at("10.0.0.1:80", 99, 8)), 8), Conclusion::Nothing, "the other writes its state");
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
    // A value that another writer put without a lease would stay forever.
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
    assert_eq!((group.removed_records().len(), group.has_unknown_removal(), group.plan_parts().len()), (2, true, 0));
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
        .only_if(Condition::ModRevisionIs(A.into(), 5))
        .delete(A)
        .or_get(A)
        .only_if(Condition::ModRevisionIs(B.into(), 5))
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

#[test]
fn permanent_records_have_no_lease() {
    let set = RecordSet { is_permanent: true, lease: Some(lease()), ..RecordSet::default() };
    assert_eq!(set.find_violation(), Some("permanent records have a lease"));
}

#[test]
fn no_two_records_have_one_key() {
    let member = || Member::new(Arc::new(record_of("a", "10.0.0.1:80")), READY);
    let set = RecordSet { members: vec![member(), member()], ..RecordSet::default() };
    assert_eq!(set.find_violation(), Some("two records have one key"));
}

#[test]
fn a_member_that_violates_its_invariants_is_found() {
    let mut set = group([READY; 2]);
    write(&mut set);
    assert_eq!(set.find_violation(), None);
    set.lease = None;
    assert_eq!(set.find_violation(), Some("a record is stored without a lease"));
}
