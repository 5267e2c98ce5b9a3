//! Decides which copy takes which slot. All copies decide alike from one view of the store. Pure: no I/O, no clock.

use std::{cmp::Reverse, collections::BTreeMap, num::NonZeroU16, time::Duration};

use discovery::{HostName, Slot, SlotNumber, Standby, Timestamp, UpstreamId};
use registry::LeaseId;

use crate::slots::state::{Event, State};
use crate::slots::view::View;

/// Delay of the best candidate. A copy that runs without a slot takes a free one at once, and so comes first.
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// Further delay of each following candidate. A dead candidate costs this time, because its stand-by lives until its lease ends.
const DELAY_STEP: Duration = Duration::from_millis(250);

/// Candidates behind the best that have delays of their own. All others have the last delay, so that a slot is taken within
/// a second.
const LAST_TURN: u32 = 3;

/// This copy.
#[derive(Clone, Debug)]
pub struct Us {
    /// Its id.
    pub id: UpstreamId,
    /// `--replicas`
    pub replicas: NonZeroU16,
    /// `--fence`: no copy starts beside another one that leaves.
    pub has_fence: bool,
    /// `None` while there is no lease.
    pub lease: Option<LeaseId>,
    /// Slot that this copy held last.
    pub last_slot: Option<SlotNumber>,
    /// Revision of the slot that this copy asked etcd to delete last. The deletion may still come, however late, as long as the slot
    /// has this revision. `None` if there was none.
    pub given_up: Option<i64>,
    /// Time when this copy took its slot. `None` before.
    pub since: Option<Timestamp>,
}

/// A slot for this copy, as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The slot.
    pub number: SlotNumber,
    /// `None` for a free slot.
    pub mod_revision: Option<i64>,
    /// True if the copy only becomes the successor. False if it takes the slot.
    pub is_claim: bool,
}

impl Opening {
    /// The event of taking it.
    pub fn event(self) -> Event {
        if self.is_claim { Event::SlotOffered } else { Event::SlotFree }
    }
}

/// The slot that this copy should take, and the time to wait first. `None` if another copy should, or none is open.
pub fn find_opening(state: State, view: &View, us: &Us) -> Option<(Opening, Duration)> {
    if us.lease.is_none() || !view.is_current() {
        return None;
    }
    match state {
        State::StandingBy => find_turn(view, us),
        State::Succeeding if view.promised_slot(&us.id).is_none() => Some((free_slot(view, us)?, Duration::ZERO)),
        State::Seeking => Some((find_slot_for_running(view, us)?, Duration::ZERO)),
        _ => None,
    }
}

/// Event that follows from the view, whatever the time. `None` if nothing has changed for this copy.
pub fn find_event(state: State, view: &View, us: &Us) -> Option<Event> {
    if state == State::Stopping {
        return None;
    }
    if state.may_hold_slot() {
        // etcd's word on the lease counts without a view, too.
        let Some(lease) = us.lease else { return Some(Event::SlotLost) };
        return match (state, view.slot_of(&us.id, lease)) {
            _ if !view.is_current() => None,
            (State::Offering, None) => Some(Event::HandedOver),
            // Without a candidate, nothing is gained by a wait.
            (State::Offering, Some((_, _, slot))) => {
                (view.is_on_offer(slot) && view.candidates().next().is_none()).then_some(Event::HandedOver)
            }
            (_, None) => Some(Event::SlotLost),
            (_, Some(_)) => None,
        };
    }
    let lease = us.lease.filter(|_| view.is_current())?;
    if !state.wants_slot() {
        return None;
    }
    if let Some((_, seen, _)) = view.slot_of(&us.id, lease) {
        // Written anew, it has another revision.
        return (us.given_up != Some(seen.mod_revision)).then_some(Event::SlotOurs);
    }
    let is_promised = view.promised_slot(&us.id).is_some();
    match state {
        State::StandingBy if is_promised && !us.has_fence => Some(Event::SlotPromised),
        State::Succeeding if !is_promised && free_slot(view, us).is_none() => Some(Event::SlotLost),
        State::Seeking if find_slot_for_running(view, us).is_none() => Some(Event::Surplus),
        _ => None,
    }
}

/// The slot that a copy that runs without one takes: the one that was promised to it, a free one, an offered one, or that
/// of the youngest copy, if that is younger than this one.
fn find_slot_for_running(view: &View, us: &Us) -> Option<Opening> {
    let taken = |number, mod_revision| Opening { number, mod_revision: Some(mod_revision), is_claim: false };
    if let Some((number, seen)) = view.promised_slot(&us.id) {
        return Some(taken(number, seen.mod_revision));
    }
    if let Some(free) = free_slot(view, us) {
        return Some(free);
    }
    let ours = view.read_slots().filter(|(number, ..)| number.get() <= us.replicas.get());
    let (on_offer, others): (Vec<_>, Vec<_>) = ours.partition(|(_, _, slot)| view.is_on_offer(slot));
    if let Some((number, seen, _)) = on_offer.first() {
        return Some(taken(*number, seen.mod_revision));
    }
    let staying = others.into_iter().filter(|(_, _, slot)| !slot.leaving);
    let youngest = staying.max_by_key(|(_, _, slot)| age_key(slot))?;
    let (number, seen, slot) = youngest;
    let is_younger = age_key(slot) > (us.since, &us.id);
    is_younger.then(|| taken(number, seen.mod_revision))
}

/// Order of copies by age, the oldest first. It has no ties, so that two copies never take a slot from each other.
fn age_key(slot: &Slot) -> (Option<Timestamp>, &UpstreamId) {
    (slot.since, &slot.id)
}

/// A free slot, this copy's last one first.
fn free_slot(view: &View, us: &Us) -> Option<Opening> {
    let is_free = |number: &SlotNumber| number.get() <= us.replicas.get() && view.slot(*number).is_none();
    let last = us.last_slot.into_iter().filter(is_free);
    let number = last.chain(slot_numbers(us.replicas).filter(is_free)).next()?;
    Some(Opening { number, mod_revision: None, is_claim: false })
}

fn slot_numbers(replicas: NonZeroU16) -> impl Iterator<Item = SlotNumber> {
    (1..=replicas.get()).filter_map(NonZeroU16::new).map(SlotNumber::new)
}

/// All openings for copies that stand by: free slots first, then those on offer.
fn list_openings(view: &View, us: &Us) -> Vec<Opening> {
    let free = slot_numbers(us.replicas).filter(|number| view.slot(*number).is_none());
    let mut openings: Vec<_> = free.map(|number| Opening { number, mod_revision: None, is_claim: false }).collect();
    // With a fence, a leaving copy's slot is free only after its app has stopped.
    if !us.has_fence {
        let offered = view.read_slots().filter(|(number, _, slot)| {
            number.get() <= us.replicas.get() && view.is_on_offer(slot) && slot.id != us.id
        });
        openings.extend(offered.map(|(number, seen, _)| Opening {
            number,
            mod_revision: Some(seen.mod_revision),
            is_claim: true,
        }));
    }
    openings
}

/// This copy's turn among all candidates.
fn find_turn(view: &View, us: &Us) -> Option<(Opening, Duration)> {
    let openings = list_openings(view, us);
    if openings.is_empty() {
        return None;
    }
    // Until our own stand-by shows, others don't count us, and our place among them is unknown.
    let ours = view.standby(&us.id)?;
    if Some(ours.lease) != us.lease.map(LeaseId::get) {
        return None;
    }
    let place = find_place(view, us)?;
    let opening = openings.get(place % openings.len())?;
    let turn = u32::try_from(place / openings.len()).unwrap_or(u32::MAX).min(LAST_TURN);
    Some((*opening, FIRST_DELAY + DELAY_STEP * turn))
}

/// This copy's place among the candidates, from 0. `None` if it is none. Each place goes to a host with the fewest copies,
/// those of the places before it included, then by `--prefer`, then by id.
fn find_place(view: &View, us: &Us) -> Option<usize> {
    let mut copies: BTreeMap<&HostName, usize> = BTreeMap::new();
    view.hosts_with_copies().for_each(|host| *copies.entry(host).or_default() += 1);
    let mut left: Vec<(&UpstreamId, &Standby)> = view.candidates().collect();
    for place in 0..left.len() {
        let key = |(id, standby): &(&UpstreamId, &Standby)| {
            // A copy that doesn't know its host counts as alone on it.
            let count = standby.host.as_ref().and_then(|host| copies.get(host)).copied().unwrap_or_default();
            (count, Reverse(standby.prefer), (*id).clone())
        };
        let (index, (id, standby)) = left.iter().copied().enumerate().min_by_key(|(_, candidate)| key(candidate))?;
        if *id == us.id {
            return Some(place);
        }
        if let Some(host) = &standby.host {
            *copies.entry(host).or_default() += 1;
        }
        left.swap_remove(index);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::view::tests::{cut_off, view};

    fn us(id: &str, lease: i64) -> Us {
        Us {
            id: id.parse().unwrap(),
            replicas: NonZeroU16::new(2).unwrap(),
            has_fence: false,
            lease: Some(LeaseId::from(lease)),
            last_slot: None,
            given_up: None,
            since: None,
        }
    }

    fn since(us: Us, time: &str) -> Us {
        Us { since: Some(time.parse().unwrap()), ..us }
    }

    /// Slot, claim and delay in milliseconds of a copy that stands by.
    fn turn(keys: &[(&str, &str, i64)], id: &str, lease: i64) -> Option<(u16, bool, u128)> {
        let (opening, delay) = find_opening(State::StandingBy, &view(keys), &us(id, lease))?;
        Some((opening.number.get(), opening.is_claim, delay.as_millis()))
    }

    const HELD: (&str, &str, i64) = ("slots/1", r#"{"id":"a","host":"h1","since":"2026-01-01T00:00:01Z"}"#, 1);
    const YOUNGER: (&str, &str, i64) = ("slots/2", r#"{"id":"b","host":"h2","since":"2026-01-01T00:00:02Z"}"#, 2);
    const ON_H1: (&str, &str, i64) = ("standby/c", r#"{"host":"h1","prefer":9}"#, 3);
    const ON_H3: (&str, &str, i64) = ("standby/d", r#"{"host":"h3"}"#, 4);
    const ON_H4: (&str, &str, i64) = ("standby/e", r#"{"host":"h4","prefer":1}"#, 5);

    #[test]
    fn hosts_without_a_copy_come_first_and_then_the_preferred_ones() {
        let keys = [HELD, ON_H1, ON_H3, ON_H4];
        assert_eq!(turn(&keys, "e", 5), Some((2, false, 100)), "no copy on h4, and preferred");
        assert_eq!(turn(&keys, "d", 4), Some((2, false, 350)));
        assert_eq!(turn(&keys, "c", 3), Some((2, false, 600)), "h1 has a copy, however preferred it is");
        assert_eq!(turn(&[HELD, YOUNGER, ON_H3], "d", 4), None, "no slot is free");
    }

    #[test]
    fn a_slot_that_was_given_up_is_ours_once_it_is_written_anew() {
        let view = view(&[HELD]);
        assert_eq!(find_event(State::StandingBy, &view, &us("a", 1)), Some(Event::SlotOurs));
        let doubtful = Us { given_up: Some(101), ..us("a", 1) };
        assert_eq!(find_event(State::StandingBy, &view, &doubtful), None);
        let earlier = Us { given_up: Some(99), ..us("a", 1) };
        assert_eq!(find_event(State::StandingBy, &view, &earlier), Some(Event::SlotOurs));
    }

    #[test]
    fn several_slots_go_to_several_hosts_at_once() {
        let second_on_h4 = ("standby/f", r#"{"host":"h4","prefer":8}"#, 6);
        let keys = [ON_H3, ON_H4, second_on_h4];
        assert_eq!(turn(&keys, "f", 6), Some((1, false, 100)));
        assert_eq!(turn(&keys, "d", 4), Some((2, false, 100)), "h4 has one by then");
        assert_eq!(turn(&keys, "e", 5), Some((1, false, 350)));
    }

    #[test]
    fn a_copy_that_rests_or_is_unknown_is_no_candidate() {
        let resting = ("standby/c", r#"{"host":"h3","reason":"crash-loop","until":"2026-01-01T00:01:00Z"}"#, 3);
        assert_eq!(turn(&[HELD, resting, ON_H4], "c", 3), None);
        assert_eq!(turn(&[HELD, resting, ON_H4], "e", 5), Some((2, false, 100)), "and takes nobody's turn");
        assert_eq!(turn(&[HELD, ON_H4], "x", 9), None, "not shown yet");
        assert_eq!(turn(&[HELD, ON_H4], "e", 9), None, "shown under another lease");
        assert_eq!(find_opening(State::StandingBy, &cut_off(&view(&[HELD, ON_H4])), &us("e", 5)), None);
    }

    #[test]
    fn a_slot_is_taken_within_a_second_however_many_candidates_are_dead() {
        let all: Vec<_> = (0..50).map(|n| (format!("standby/n{n:02}"), format!(r#"{{"host":"h{n}"}}"#), n)).collect();
        let keys: Vec<_> = all.iter().map(|(key, value, lease)| (key.as_str(), value.as_str(), *lease)).collect();
        let delays: Vec<_> = (0..50).map(|n| turn(&keys, &format!("n{n:02}"), n).unwrap().2).collect();
        assert_eq!((delays[0], delays[1], delays[2], delays[49]), (100, 100, 350, 850));
    }

    #[test]
    fn an_offered_slot_is_claimed_by_one_copy_and_not_with_a_fence() {
        let offered = ("slots/1", r#"{"id":"a","host":"h1","leaving":true}"#, 1);
        let keys = [offered, YOUNGER, ON_H1, ON_H3];
        assert_eq!(turn(&keys, "c", 3), Some((1, true, 100)), "the copy on h1 leaves, and c is preferred");
        assert_eq!(turn(&keys, "d", 4), Some((1, true, 350)));
        let fenced = Us { has_fence: true, ..us("c", 3) };
        assert_eq!(find_opening(State::StandingBy, &view(&keys), &fenced), None);
        let promised = ("slots/1", r#"{"id":"a","host":"h1","leaving":true,"successor":"c"}"#, 1);
        let keys = [promised, YOUNGER, ON_H1, ON_H3];
        assert_eq!(turn(&keys, "d", 4), None, "it is promised");
        assert_eq!(find_event(State::StandingBy, &view(&keys), &us("c", 3)), Some(Event::SlotPromised));
        let dead = [promised, YOUNGER, ON_H3];
        assert_eq!(turn(&dead, "d", 4), Some((1, true, 100)), "the successor has died");
    }

    #[test]
    fn a_successor_takes_the_slot_once_it_works_or_once_its_predecessor_is_gone() {
        let promised = ("slots/1", r#"{"id":"a","leaving":true,"successor":"c"}"#, 1);
        let offered = view(&[promised, YOUNGER, ON_H1]);
        assert_eq!(find_opening(State::Succeeding, &offered, &us("c", 3)), None);
        assert_eq!(find_event(State::Succeeding, &offered, &us("c", 3)), None);
        let (opening, delay) = find_opening(State::Seeking, &offered, &us("c", 3)).unwrap();
        assert_eq!((opening.number.get(), opening.mod_revision, delay), (1, Some(101), Duration::ZERO));
        let gone = view(&[YOUNGER, ON_H1]);
        assert!(find_opening(State::Succeeding, &gone, &us("c", 3)).is_some());
        let taken = view(&[HELD, YOUNGER, ON_H1]);
        assert_eq!(find_event(State::Succeeding, &taken, &us("c", 3)), Some(Event::SlotLost));
    }

    #[test]
    fn the_youngest_of_too_many_copies_stops() {
        let view = view(&[HELD, YOUNGER]);
        let older = since(us("z", 9), "2025-01-01T00:00:00Z");
        let (opening, _) = find_opening(State::Seeking, &view, &older).unwrap();
        assert_eq!((opening.number.get(), opening.mod_revision), (2, Some(102)), "the youngest copy's slot");
        let youngest = since(us("z", 9), "2027-01-01T00:00:00Z");
        assert_eq!(find_event(State::Seeking, &view, &youngest), Some(Event::Surplus));
        let middle = since(us("z", 9), "2026-01-01T00:00:02Z");
        assert_eq!(find_event(State::Seeking, &view, &middle), Some(Event::Surplus), "by id among equals");
        let first = since(us("aa", 9), "2026-01-01T00:00:02Z");
        assert_eq!(find_event(State::Seeking, &view, &first), None);
    }

    #[test]
    fn two_copies_never_take_a_slot_from_each_other() {
        let times = ["2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z"];
        for (one, other) in [("a", "b"), ("b", "a"), ("a", "a1")] {
            for (mine, theirs) in times.into_iter().flat_map(|mine| times.map(|theirs| (mine, theirs))) {
                let takes = |us_id: &str, us_since: &str, their_id: &str, their_since: &str| {
                    let slot = format!(r#"{{"id":"{their_id}","since":"{their_since}"}}"#);
                    let one_slot = Us { replicas: NonZeroU16::MIN, ..since(us(us_id, 9), us_since) };
                    find_opening(State::Seeking, &view(&[("slots/1", &slot, 1)]), &one_slot).is_some()
                };
                assert_ne!(takes(one, mine, other, theirs), takes(other, theirs, one, mine), "{one} {other}");
            }
        }
    }

    #[test]
    fn a_running_copy_takes_a_free_slot_at_once_and_its_own_first() {
        let own = Us { last_slot: Some(SlotNumber::new(NonZeroU16::new(2).unwrap())), ..us("a", 1) };
        let (opening, delay) = find_opening(State::Seeking, &view(&[ON_H3]), &own).unwrap();
        assert_eq!((opening.number.get(), delay), (2, Duration::ZERO));
    }

    #[test]
    fn our_own_slot_of_an_ended_lease_is_not_free_yet() {
        let stale = view(&[HELD, YOUNGER]);
        let us = since(us("a", 9), "2026-01-01T00:00:01Z");
        let (opening, _) = find_opening(State::Seeking, &stale, &us).unwrap();
        assert_eq!(opening.number.get(), 2, "the younger copy's");
        let alone = Us { replicas: NonZeroU16::MIN, ..us };
        assert_eq!(find_event(State::Seeking, &stale, &alone), Some(Event::Surplus), "`tempo` waits for it to go");
    }

    #[test]
    fn a_slot_that_cannot_be_read_is_taken() {
        let keys = [("slots/1", "garbage", 1), ("slots/2", "", 2), ON_H3];
        assert_eq!(turn(&keys, "d", 4), None);
        let running = since(us("z", 9), "2026-01-01T00:00:00Z");
        assert_eq!(find_event(State::Seeking, &view(&keys), &running), Some(Event::Surplus));
    }

    #[test]
    fn a_holder_learns_that_its_slot_is_gone() {
        let held = view(&[HELD, YOUNGER, ON_H3]);
        let find = |state, us: &Us, view: &View| find_event(state, view, us);
        assert_eq!(find(State::Holding, &us("a", 1), &held), None);
        assert_eq!(find(State::Holding, &us("a", 7), &held), Some(Event::SlotLost), "under an earlier lease");
        assert_eq!(find(State::Holding, &Us { lease: None, ..us("a", 1) }, &held), Some(Event::SlotLost));
        assert_eq!(find(State::Holding, &us("a", 7), &cut_off(&held)), None, "etcd is away, nothing is known");
        assert_eq!(find(State::StandingBy, &us("a", 1), &held), Some(Event::SlotOurs), "a write without an answer");
    }

    #[test]
    fn an_offer_without_candidates_is_over() {
        let offered = ("slots/1", r#"{"id":"a","leaving":true}"#, 1);
        let promised = ("slots/1", r#"{"id":"a","leaving":true,"successor":"d"}"#, 1);
        let event = |keys: &[(&str, &str, i64)]| find_event(State::Offering, &view(keys), &us("a", 1));
        assert_eq!(event(&[offered, ON_H3]), None);
        assert_eq!(event(&[promised, ON_H3]), None);
        assert_eq!(event(&[HELD, ON_H3]), None, "the offer isn't written yet");
        assert_eq!(event(&[offered]), Some(Event::HandedOver));
        assert_eq!(event(&[YOUNGER, ON_H3]), Some(Event::HandedOver), "taken over, or lost");
    }
}
