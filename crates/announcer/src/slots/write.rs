//! The copy's own keys: what they should say, and the next transaction towards that. Pure: it sends none.

use discovery::{HostName, Key, ServiceId, Slot, SlotNumber, Standby, StandbyReason, Timestamp, UpstreamId};
use registry::{Condition, LeaseId, Txn};

use crate::slots::choice::{Opening, Us};
use crate::slots::state::State;
use crate::slots::view::{SeenSlot, View};

/// Facts that the copy's keys tell.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The service of the slots.
    pub service: ServiceId,
    /// `None` if the host has no good name.
    pub host: Option<HostName>,
    /// `--prefer`
    pub prefer: u16,
    /// Time since when the copy stands by.
    pub standing_since: Timestamp,
    /// Time until when it rests. `None` unless it does.
    pub rests_until: Option<Timestamp>,
}

/// Transaction that brings the copy's keys in line with its state. `None` if they are, or if nothing can be known.
pub fn plan_repair(state: State, view: &View, us: &Us, facts: &Facts) -> Option<Txn> {
    let lease = us.lease.filter(|_| view.is_current())?;
    let key = standby_key(facts, &us.id);
    match (wanted_standby(state, us, facts), view.standby(&us.id)) {
        (Some(_), Some(seen)) if seen.lease != lease.get() => {}
        (Some(wanted), None) => {
            let absent = Condition::Absent(key.clone());
            return Some(Txn::new().only_if(absent).put(key, wanted.to_string(), Some(lease)));
        }
        (Some(wanted), Some(seen)) if seen.standby.as_ref() != Some(&wanted) => {
            let ours = Condition::LeaseIs(key.clone(), lease);
            return Some(Txn::new().only_if(ours).put(key, wanted.to_string(), Some(lease)));
        }
        (None, Some(seen)) if seen.lease == lease.get() => {
            return Some(Txn::new().only_if(Condition::LeaseIs(key.clone(), lease)).delete(key));
        }
        _ => {}
    }
    let (number, seen, slot) = view.slot_of(&us.id, lease)?;
    let key = slot_key(facts, number);
    if find_given_up(state, view, us).is_some() {
        // A deletion that comes late must not take the slot from a later run of this copy.
        return Some(Txn::new().only_if(Condition::ModRevisionIs(key.clone(), seen.mod_revision)).delete(key));
    }
    if state.wants_slot() && us.given_up == Some(seen.mod_revision) {
        return Some(rewrite_slot(&key, seen, slot));
    }
    if state == State::Offering && !us.has_fence && !slot.leaving {
        let offered = Slot { leaving: true, successor: None, ..slot.clone() };
        return Some(rewrite_slot(&key, seen, &offered));
    }
    None
}

/// Revision of this copy's slot, if the state neither holds nor wants one. [`plan_repair`] deletes it.
pub fn find_given_up(state: State, view: &View, us: &Us) -> Option<i64> {
    let lease = us.lease.filter(|_| !state.may_hold_slot() && !state.wants_slot())?;
    view.slot_of(&us.id, lease).map(|(_, seen, _)| seen.mod_revision)
}

/// True if another announcer has this copy's id.
pub fn is_id_taken(view: &View, us: &Us) -> bool {
    let standby = view.standby(&us.id).map(|seen| seen.lease);
    let slot = view.read_slots().find(|(_, _, slot)| slot.id == us.id).map(|(_, seen, _)| seen.lease);
    us.lease.is_some_and(|lease| standby.into_iter().chain(slot).any(|other| other != lease.get()))
}

/// Transaction for an opening: it takes the slot, and the stand-by goes, or it only names this copy as the successor.
/// `None` without a lease, or if the slot has changed since.
pub fn plan_opening(opening: Opening, view: &View, us: &Us, facts: &Facts, now: Timestamp) -> Option<Txn> {
    let key = slot_key(facts, opening.number);
    if opening.is_claim {
        let seen = view.slot(opening.number)?;
        let claimed = Slot { successor: Some(us.id.clone()), ..seen.slot.clone()? };
        return Some(rewrite_slot(&key, seen, &claimed));
    }
    let lease = us.lease?;
    let condition = match opening.mod_revision {
        None => Condition::Absent(key.clone()),
        Some(revision) => Condition::ModRevisionIs(key.clone(), revision),
    };
    let slot = Slot {
        id: us.id.clone(),
        host: facts.host.clone(),
        replicas: Some(us.replicas),
        since: Some(us.since.unwrap_or(now)),
        leaving: false,
        successor: None,
    };
    let standby = standby_key(facts, &us.id);
    let txn = Txn::new().only_if(condition).put(key, slot.to_string(), Some(lease));
    // Another announcer's stand-by of this id stays.
    let is_ours = view.standby(&us.id).is_some_and(|seen| seen.lease == lease.get());
    Some(if is_ours { txn.delete(standby) } else { txn })
}

/// Transaction that offers a slot, whose holder may be another process.
pub fn plan_offer(service: &ServiceId, number: SlotNumber, seen: &SeenSlot, offered: &Slot) -> Txn {
    rewrite_slot(&Key::Slot { service: service.clone(), number }.to_string(), seen, offered)
}

/// Writes a slot that is unchanged, under the lease that it has: a claim must not outlive the slot's holder.
fn rewrite_slot(key: &str, seen: &SeenSlot, slot: &Slot) -> Txn {
    let lease = (seen.lease != 0).then(|| LeaseId::from(seen.lease));
    Txn::new().only_if(Condition::ModRevisionIs(key.to_owned(), seen.mod_revision)).put(key, slot.to_string(), lease)
}

/// The stand-by that this state asks for. `None` if it asks for none.
fn wanted_standby(state: State, us: &Us, facts: &Facts) -> Option<Standby> {
    let reason = state.standby_reason()?;
    Some(Standby {
        host: facts.host.clone(),
        prefer: facts.prefer,
        replicas: Some(us.replicas),
        since: Some(facts.standing_since),
        reason,
        until: facts.rests_until.filter(|_| reason == StandbyReason::CrashLoop),
    })
}

fn slot_key(facts: &Facts, number: SlotNumber) -> String {
    Key::Slot { service: facts.service.clone(), number }.to_string()
}

fn standby_key(facts: &Facts, id: &UpstreamId) -> String {
    Key::Standby { service: facts.service.clone(), id: id.clone() }.to_string()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::slots::view::tests::{service, view};

    const NOW: &str = "2026-11-30T10:13:06Z";
    const STANDBY: &str = "http-services/shop/standby/a";
    const SLOT: &str = "http-services/shop/slots/1";
    const VALUE: &str = r#"{"host":"h1","prefer":7,"replicas":2,"since":"2026-11-30T10:13:06Z"}"#;

    fn us() -> Us {
        Us {
            id: "a".parse().unwrap(),
            replicas: NonZeroU16::new(2).unwrap(),
            has_fence: false,
            lease: Some(lease()),
            last_slot: None,
            given_up: None,
            since: None,
        }
    }

    fn facts() -> Facts {
        Facts {
            service: service(),
            host: Some("h1".parse().unwrap()),
            prefer: 7,
            standing_since: NOW.parse().unwrap(),
            rests_until: None,
        }
    }

    fn lease() -> LeaseId {
        LeaseId::from(1)
    }

    fn repair(state: State, keys: &[(&str, &str, i64)]) -> Option<Txn> {
        plan_repair(state, &view(keys), &us(), &facts())
    }

    #[test]
    fn a_standby_is_written_changed_and_deleted() {
        let put = |condition| Some(Txn::new().only_if(condition).put(STANDBY, VALUE, Some(lease())));
        assert_eq!(repair(State::StandingBy, &[]), put(Condition::Absent(STANDBY.into())));
        assert_eq!(repair(State::StandingBy, &[("standby/a", VALUE, 1)]), None);
        let ours = Condition::LeaseIs(STANDBY.into(), lease());
        assert_eq!(repair(State::StandingBy, &[("standby/a", "{}", 1)]), put(ours.clone()));
        assert_eq!(repair(State::StandingBy, &[("standby/a", "{}", 2)]), None, "another announcer's");
        assert_eq!(repair(State::Holding, &[("standby/a", VALUE, 1)]), Some(Txn::new().only_if(ours).delete(STANDBY)));
        let resting = Facts { rests_until: Some("2026-11-30T10:14:06Z".parse().unwrap()), ..facts() };
        let txn = plan_repair(State::Resting, &view(&[("standby/a", VALUE, 1)]), &us(), &resting).unwrap();
        assert!(format!("{txn:?}").contains("Put"), "{txn:?}");
        assert_eq!(plan_repair(State::StandingBy, &view(&[("standby/a", VALUE, 1)]), &us(), &resting), None);
    }

    #[test]
    fn a_slot_that_the_state_does_not_want_is_given_up() {
        let held = [("slots/1", r#"{"id":"a"}"#, 1)];
        let deleted = Some(Txn::new().only_if(Condition::ModRevisionIs(SLOT.into(), 101)).delete(SLOT));
        for state in [State::Yielding, State::Fencing] {
            assert_eq!(repair(state, &held), deleted, "{state:?}");
        }
        for state in [State::Holding, State::Pausing, State::Stopping, State::Seeking] {
            assert_eq!(repair(state, &held), None, "{state:?}");
        }
        let standing = [("slots/1", r#"{"id":"a"}"#, 1), ("standby/a", VALUE, 1)];
        assert_eq!(repair(State::StandingBy, &standing), None, "it is ours by now");
        let doubtful = Us { given_up: find_given_up(State::Yielding, &view(&held), &us()), ..us() };
        let anew =
            Txn::new().only_if(Condition::ModRevisionIs(SLOT.into(), 101)).put(SLOT, r#"{"id":"a"}"#, Some(lease()));
        assert_eq!(plan_repair(State::StandingBy, &view(&standing), &doubtful, &facts()), Some(anew));
        assert_eq!(find_given_up(State::Holding, &view(&held), &us()), None);
    }

    #[test]
    fn an_offer_and_a_claim_stay_under_the_holders_lease() {
        let held = [("slots/1", r#"{"id":"a","host":"h1"}"#, 1)];
        let unchanged = Condition::ModRevisionIs(SLOT.into(), 101);
        let offer = r#"{"id":"a","host":"h1","leaving":true}"#;
        let put = |value: &str| Some(Txn::new().only_if(unchanged.clone()).put(SLOT, value, Some(lease())));
        assert_eq!(repair(State::Offering, &held), put(offer));
        assert_eq!(repair(State::Offering, &[("slots/1", offer, 1)]), None);
        let fenced = Us { has_fence: true, ..us() };
        assert_eq!(plan_repair(State::Offering, &view(&held), &fenced, &facts()), None);
        let other = Us { id: "b".parse().unwrap(), lease: Some(LeaseId::from(2)), ..us() };
        let opening = Opening { number: "1".parse().unwrap(), mod_revision: Some(101), is_claim: true };
        let claim = plan_opening(opening, &view(&[("slots/1", offer, 1)]), &other, &facts(), NOW.parse().unwrap());
        assert_eq!(claim, put(r#"{"id":"a","host":"h1","leaving":true,"successor":"b"}"#));
    }

    #[test]
    fn a_taken_slot_ends_the_standby_in_one_transaction() {
        let opening = Opening { number: "1".parse().unwrap(), mod_revision: None, is_claim: false };
        let now = "2026-11-30T11:00:00Z".parse().unwrap();
        let standing = view(&[("standby/a", VALUE, 1)]);
        let value = r#"{"id":"a","host":"h1","replicas":2,"since":"2026-11-30T11:00:00Z"}"#;
        let take = Txn::new().only_if(Condition::Absent(SLOT.into())).put(SLOT, value, Some(lease()));
        assert_eq!(plan_opening(opening, &standing, &us(), &facts(), now), Some(take.clone().delete(STANDBY)));
        let running = Us { since: Some(NOW.parse().unwrap()), ..us() };
        let again = plan_opening(opening, &view(&[]), &running, &facts(), now).unwrap();
        assert!(format!("{again:?}") != format!("{take:?}"), "the time of the first slot stays");
        assert_eq!(plan_opening(opening, &standing, &Us { lease: None, ..us() }, &facts(), now), None);
    }

    #[test]
    fn another_announcer_with_our_id_is_noticed() {
        let is_taken = |keys: &[(&str, &str, i64)]| is_id_taken(&view(keys), &us());
        assert!(!is_taken(&[("standby/a", "{}", 1), ("slots/1", r#"{"id":"b"}"#, 2)]));
        assert!(is_taken(&[("standby/a", "{}", 2)]) && is_taken(&[("slots/1", r#"{"id":"a"}"#, 2)]));
    }
}
