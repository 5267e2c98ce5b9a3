//! Transactions on records. Each writes only if the store is unchanged, and otherwise reads it again. Pure: it sends none.

use std::collections::BTreeSet;

use discovery::{Entry, UpstreamState};
use registry::{Condition, LeaseId, Txn};

use crate::record::Record;
use crate::record::difference::{Difference, compare_setting};
use crate::record::ownership::{Owner, OwnershipHistory, find_other_owner, is_permanent, parse_address};

/// A transaction on several records, and the settings that it leaves alone.
#[derive(Debug, Default)]
pub struct Draft {
    pub txn: Txn,
    /// Settings that stay as they are although they differ.
    pub differences: Vec<Difference>,
    /// Keys of settings that need no further write: records of one service share them, and some are withheld.
    handled_settings: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug)]
pub struct Registration {
    pub state: UpstreamState,
    /// `None` registers a permanent record.
    pub lease: Option<LeaseId>,
    /// False if etcd's roles forbid writing settings.
    pub with_settings: bool,
    pub history: OwnershipHistory,
}

impl Draft {
    /// Empty transaction that will not write the settings of these keys.
    pub fn without_settings(handled_settings: BTreeSet<String>) -> Self {
        Self { handled_settings, ..Self::default() }
    }

    /// Adds a registration. `found` has the entries that the last attempt read. It is empty at first, which is right for a
    /// new service and costs the others one round trip. An error if the id belongs to another owner.
    pub fn add_registration(
        &mut self,
        record: &Record,
        registration: Registration,
        found: &[Entry],
    ) -> Result<(), Owner> {
        let Registration { state, lease, with_settings, history } = registration;
        let key = record.key();
        let entry = record.find_entry(found);
        if let Some(owner) = entry.and_then(|entry| find_other_owner(record, entry, lease, history)) {
            return Err(owner);
        }
        let value = record.encode_value(state, lease);
        let is_stored = lease
            .zip(entry)
            .is_some_and(|(lease, entry)| entry.lease == lease.get() && entry.value == value.as_bytes());
        self.extend(|txn| {
            let txn = txn.only_if(unchanged_condition(&key, entry));
            // An earlier process wrote it under the lease that this one took over. A write of the same value would have
            // every balancer look at it.
            let txn = if is_stored { txn } else { txn.put(&key, value, lease) };
            // The key is read if the condition fails, so that the next attempt knows the reason.
            txn.or_get(&key)
        });
        for (key, setting) in record.keyed_settings().filter(|_| with_settings) {
            if !self.handled_settings.insert(key.clone()) {
                continue;
            }
            let entry = found.iter().find(|entry| entry.key == key);
            self.extend(|txn| txn.or_get(&key));
            match entry.map(|entry| compare_setting(entry, setting)) {
                Some(None) => {}
                Some(Some(difference)) if !record.overwrite_rules.update => self.differences.push(difference),
                // A setting has no lease: it stays when the last upstream goes.
                None | Some(Some(_)) => self
                    .extend(|txn| txn.only_if(unchanged_condition(&key, entry)).put(&key, setting.to_string(), None)),
            }
        }
        Ok(())
    }

    /// Adds a new state of a record that is stored under `lease`. `revision` is that of its last write, if that is known.
    pub fn add_change(&mut self, record: &Record, state: UpstreamState, lease: LeaseId, revision: Option<i64>) {
        let (key, value) = (record.key(), record.encode_value(state, Some(lease)));
        let condition = stored_condition(&key, lease, revision);
        self.extend(|txn| txn.only_if(condition).put(&key, value, Some(lease)).or_get(&key));
    }

    /// Adds the deletion of a record that is stored under `lease`. `revision` is that of its last write, if that is known.
    pub fn add_deletion(&mut self, record: &Record, lease: LeaseId, revision: Option<i64>) {
        let key = record.key();
        self.extend(|txn| txn.only_if(stored_condition(&key, lease, revision)).delete(&key).or_get(&key));
    }

    /// Adds a new state, or the deletion (`None`), of a record that a manual write replaced by one without a lease. That one
    /// would stay in the store for ever and lead to an app that is gone. False, and nothing is added, if the entry has
    /// another address or is marked as permanent.
    pub fn add_reclaim(
        &mut self,
        record: &Record,
        state: Option<UpstreamState>,
        lease: LeaseId,
        entry: &Entry,
    ) -> bool {
        if entry.lease != 0 || is_permanent(entry) || parse_address(entry) != Some(record.address()) {
            return false;
        }
        let key = record.key();
        self.extend(|txn| {
            let txn = txn.only_if(unchanged_condition(&key, Some(entry)));
            let txn = match state {
                Some(state) => txn.put(&key, record.encode_value(state, Some(lease)), Some(lease)),
                None => txn.delete(&key),
            };
            txn.or_get(&key)
        });
        true
    }

    /// Applies one of the builder's steps, which take the transaction by value.
    fn extend(&mut self, step: impl FnOnce(Txn) -> Txn) {
        self.txn = step(std::mem::take(&mut self.txn));
    }
}

/// Transaction that deletes the record. `None` if the entry has another address.
pub fn draft_deregistration(record: &Record, entry: &Entry) -> Option<Txn> {
    let is_ours = parse_address(entry) == Some(record.address());
    let key = record.key();
    is_ours.then(|| Txn::new().only_if(unchanged_condition(&key, Some(entry))).delete(&key).or_get(&key))
}

/// The condition of a change of our own record. A write whose answer was lost may reach etcd late. With the revision it changes
/// nothing then: `ready` never replaces the `drain` that followed it.
fn stored_condition(key: &str, lease: LeaseId, revision: Option<i64>) -> Condition {
    match revision {
        Some(revision) => Condition::ModRevisionIs(key.to_owned(), revision),
        None => Condition::LeaseIs(key.to_owned(), lease),
    }
}

/// Condition that the key is still as it was found. `None` is a missing key.
fn unchanged_condition(key: &str, entry: Option<&Entry>) -> Condition {
    match entry {
        None => Condition::Absent(key.to_owned()),
        Some(entry) => Condition::ModRevisionIs(key.to_owned(), entry.mod_revision),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::upstream::OverwriteRules;
    use crate::record::tests::{DOMAIN, UPSTREAM, entry, our_lease, record_with};

    fn plan(record: &Record, found: &[Entry]) -> Result<(Txn, Vec<Difference>), Owner> {
        let mut draft = Draft::default();
        let history = OwnershipHistory::default();
        let registration =
            Registration { state: UpstreamState::Ready, lease: Some(our_lease()), with_settings: true, history };
        draft.add_registration(record, registration, found)?;
        Ok((draft.txn, draft.differences))
    }

    fn written(txn: Txn) -> Result<(Txn, Vec<Difference>), Owner> {
        Ok((txn, Vec::new()))
    }

    #[test]
    fn a_new_service_is_one_round_trip() {
        let txn = Txn::new()
            .only_if(Condition::Absent(UPSTREAM.into()))
            .put(UPSTREAM, "10.0.0.1:80", Some(our_lease()))
            .or_get(UPSTREAM)
            .or_get(DOMAIN)
            .only_if(Condition::Absent(DOMAIN.into()))
            .put(DOMAIN, "a.com b.com", None);
        assert_eq!(plan(&record_with(OverwriteRules::default()), &[]), written(txn));
    }

    #[test]
    fn a_record_that_stands_under_our_lease_is_not_written_again() {
        let found = [entry(UPSTREAM, "10.0.0.1:80", 7), entry(DOMAIN, "a.com b.com", 0)];
        let unchanged =
            Txn::new().only_if(Condition::ModRevisionIs(UPSTREAM.into(), 5)).or_get(UPSTREAM).or_get(DOMAIN);
        assert_eq!(plan(&record_with(OverwriteRules::default()), &found), written(unchanged));
    }

    #[test]
    fn settings_that_mean_the_same_are_left_alone() {
        let found = [entry(UPSTREAM, "10.0.0.1:80", 3), entry(DOMAIN, "A.com,  b.com\n", 0)];
        let txn = Txn::new()
            .only_if(Condition::ModRevisionIs(UPSTREAM.into(), 5))
            .put(UPSTREAM, "10.0.0.1:80", Some(our_lease()))
            .or_get(UPSTREAM)
            .or_get(DOMAIN);
        for update in [false, true] {
            let planned =
                plan(&record_with(OverwriteRules { update, takeover: false, ..OverwriteRules::default() }), &found);
            assert_eq!(planned, written(txn.clone()));
        }
    }

    #[test]
    fn settings_that_say_otherwise_are_overwritten_only_if_asked_for() {
        let found = [entry(DOMAIN, "c.com", 0)];
        let (txn, differing) = plan(&record_with(OverwriteRules::default()), &found).unwrap();
        let stands = Some("c.com".to_owned());
        assert_eq!(differing, [Difference { key: DOMAIN.into(), stored: stands, given: "a.com b.com".into() }]);
        assert!(!format!("{txn:?}").contains("a.com"));
        let (txn, differing) =
            plan(&record_with(OverwriteRules { update: true, takeover: false, ..OverwriteRules::default() }), &found)
                .unwrap();
        assert!(differing.is_empty());
        assert_eq!(
            txn,
            Txn::new()
                .only_if(Condition::Absent(UPSTREAM.into()))
                .put(UPSTREAM, "10.0.0.1:80", Some(our_lease()))
                .or_get(UPSTREAM)
                .or_get(DOMAIN)
                .only_if(Condition::ModRevisionIs(DOMAIN.into(), 5))
                .put(DOMAIN, "a.com b.com", None)
        );
    }

    #[test]
    fn an_id_is_taken_over_from_oneself_at_once_and_from_others_if_asked_for() {
        let plan = |takeover, value: &str, lease| {
            plan(
                &record_with(OverwriteRules { update: false, takeover, ..OverwriteRules::default() }),
                &[entry(UPSTREAM, value, lease)],
            )
        };
        let is_written = |plan: Result<_, Owner>| plan.is_ok();
        assert!(is_written(plan(false, "10.0.0.1:80", 9)), "the same address");
        assert!(is_written(plan(false, r#"{"address":"10.0.0.1:80","state":"down"}"#, 9)), "the same address");
        assert!(is_written(plan(false, "10.0.0.2:80", 7)), "our own lease");
        assert!(is_written(plan(true, "10.0.0.2:80", 9)), "takeover");
        let owner = |address: &str, lease| Err(Owner { address: address.to_owned(), lease });
        assert_eq!(plan(false, "10.0.0.2:80", 9), owner("10.0.0.2:80", Some(LeaseId::from(9))));
        assert_eq!(plan(false, "10.0.0.2:80", 0), owner("10.0.0.2:80", None));
        assert_eq!(plan(false, "garbage", 0), owner("garbage", None));
        assert_eq!(plan(false, &"x".repeat(999), 0), owner(&format!("{}…", "x".repeat(200)), None));
    }

    #[test]
    fn only_a_hand_written_record_of_our_address_is_taken_back_on_the_way_out() {
        let record = record_with(OverwriteRules::default());
        let lease = our_lease();
        let retaken = |state, value: &str, lease_of: i64| {
            let mut draft = Draft::default();
            draft.add_reclaim(&record, state, lease, &entry(UPSTREAM, value, lease_of)).then_some(draft.txn)
        };
        let unchanged = || Txn::new().only_if(Condition::ModRevisionIs(UPSTREAM.into(), 5));
        let drained = unchanged().put(UPSTREAM, r#"{"address":"10.0.0.1:80","state":"drain"}"#, Some(lease));
        assert_eq!(retaken(Some(UpstreamState::Drain), "10.0.0.1:80", 0), Some(drained.or_get(UPSTREAM)));
        assert_eq!(retaken(None, "10.0.0.1:80", 0), Some(unchanged().delete(UPSTREAM).or_get(UPSTREAM)));
        assert_eq!(retaken(None, "10.0.0.1:80", 9), None, "another announcer's");
        assert_eq!(retaken(None, "10.0.0.2:80", 0), None, "another address");
        assert_eq!(retaken(None, r#"{"address":"10.0.0.1:80","permanent":true}"#, 0), None, "meant to last");
    }

    #[test]
    fn only_ones_own_address_is_deregistered() {
        let record = record_with(OverwriteRules { update: false, takeover: true, ..OverwriteRules::default() });
        assert!(draft_deregistration(&record, &entry(UPSTREAM, "10.0.0.1:80", 0)).is_some());
        assert!(draft_deregistration(&record, &entry(UPSTREAM, "10.0.0.2:80", 0)).is_none());
        assert!(draft_deregistration(&record, &entry(UPSTREAM, "garbage", 0)).is_none());
    }
}
