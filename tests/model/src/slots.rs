//! `--replicas 1 --fence`: two copies of a service and one slot. Time passes in steps of four seconds, and the lease has ten.

use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use announcer::decisions::slots::{self as copy, Action, Event as CopyEvent, Facts, State as Life, Us, View};
use discovery::{Kind, ServiceId};
use registry::{Event, LeaseId, Txn};
use stateright::{Model, Property};

use crate::brain::BASE;
use crate::etcd::Etcd;
use crate::intern::{Id, Memo, Pool};
use crate::proof::{Bug, Checked, Counts};

const TTL: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_secs(4);
/// etcd may end a lease after this many steps without a renewal.
const LEASE_STEPS: u8 = 3;
/// Ages stop here.
const OLDEST: u8 = 3;
const NOW: &str = "2026-11-30T10:13:06Z";

/// The app of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Run {
    /// It doesn't run.
    None,
    /// It runs, and may be stopping.
    Live,
    /// It got SIGKILL.
    Killed,
}

/// A renewal on its way: the steps since the request, and whether etcd has renewed the lease, or has not found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Renewal {
    age: u8,
    answer: Option<bool>,
}

/// One copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Copy {
    life: Life,
    view: Id,
    /// The lease that the copy knows, and that of its slot.
    lease: Option<u8>,
    held: Option<u8>,
    /// The steps since the request of the last answered renewal, as the copy counts them.
    renewed: u8,
    renewal: Option<Renewal>,
    /// The steps since etcd last renewed the lease.
    lease_age: u8,
    late: Option<Id>,
    /// The revision of the slot that the copy asked etcd to delete last.
    given_up: Option<i64>,
    run: Run,
}

/// A state of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    etcd: Id,
    copies: [Copy; 2],
    leases: u8,
    faults: u8,
    stops: u8,
}

/// A step of the world. The number is the copy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The copy does what follows from its view and the clock.
    Advance(u8),
    /// The copy writes what its keys need, or takes a slot.
    Write(u8),
    /// The watch delivers a revision, or a listing.
    Follow(u8),
    /// A renewal is sent.
    SendRenewal(u8),
    /// etcd takes the renewal.
    TakeRenewal(u8),
    /// The copy gets etcd's answer.
    AnswerRenewal(u8),
    /// The copy gets a new lease.
    Grant(u8),
    /// The app has ended.
    EndRun(u8),
    /// etcd ends the lease.
    EndLease(u8),
    /// SIGTERM.
    Stop(u8),
    /// Four seconds pass.
    Time,
    /// Fault: the watch breaks.
    Disconnect(u8),
    /// Fault: a renewal is lost.
    LoseRenewal(u8),
    /// Fault: a write is delayed, and the copy gives up waiting for it.
    Delay(u8),
    /// etcd carries the delayed write out.
    LateWrite(u8),
}

/// A view, and the revision up to which it has the store.
#[derive(Clone, Debug)]
struct Seen {
    view: View,
    followed: Option<i64>,
}

/// A transaction, and the event that follows if it succeeds.
type Plan = (Id, Option<CopyEvent>);

/// What a copy decides by: its life, view, lease, the slot that it gave up, and its number.
type Known = (Life, Id, Option<u8>, Option<i64>, u8);

/// The bounds of a run of the model.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Faults.
    pub faults: u8,
    /// Polite stops.
    pub stops: u8,
    /// etcd's last revision. Two copies may take turns for ever, and each turn begins as the one before.
    pub last_revision: i64,
}

/// The model with its production objects.
pub struct Slots {
    bounds: Bounds,
    bug: Option<Bug>,
    service: ServiceId,
    etcds: Pool<Etcd>,
    views: Pool<Seen>,
    txns: Pool<Txn>,
    plans: Memo<Known, Option<Plan>>,
    events: Memo<Known, Option<CopyEvent>>,
    writes: Memo<(Id, Id), (Id, Option<i64>)>,
    follows: Memo<(Id, Id), Id>,
}

impl Slots {
    /// The model, with one seeded bug or none.
    pub fn new(bounds: Bounds, bug: Option<Bug>) -> Self {
        #[expect(clippy::expect_used, reason = "a constant name")]
        let service = ServiceId { kind: Kind::Http, name: "shop".parse().expect("a name") };
        let (etcds, views, txns) = Default::default();
        let (plans, events, writes, follows) = Default::default();
        Self { bounds, bug, service, etcds, views, txns, plans, events, writes, follows }
    }

    fn us(&self, lease: Option<u8>, given_up: Option<i64>, node: u8) -> Us {
        #[expect(clippy::expect_used, reason = "constant names")]
        let id = if node == 0 { "a" } else { "b" }.parse().expect("an id");
        let lease = lease.map(|lease| LeaseId::from(i64::from(lease)));
        Us { id, replicas: NonZeroU16::MIN, has_fence: true, lease, last_slot: None, given_up, since: NOW.parse().ok() }
    }

    fn facts(&self) -> Facts {
        #[expect(clippy::expect_used, reason = "a constant time")]
        let standing_since = NOW.parse().expect("a time");
        Facts { service: self.service.clone(), host: None, prefer: 0, standing_since, rests_until: None }
    }

    /// The next write of a copy, and the event that goes with it.
    fn plan(&self, it: &Copy, node: u8) -> Option<(Id, Option<CopyEvent>)> {
        self.plans.get_or((it.life, it.view, it.lease, it.given_up, node), || {
            let (view, us, facts) = (&self.views.get(it.view).view, self.us(it.lease, it.given_up, node), self.facts());
            if let Some(txn) = copy::plan_repair(it.life, view, &us, &facts) {
                return Some((self.txns.put(txn), None));
            }
            let bare = View::new(self.service.clone());
            let is_blind = self.bug == Some(Bug::TakeTaken) && it.life == Life::StandingBy && view.is_current();
            let (opening, _) = match copy::find_opening(it.life, view, &us) {
                None if is_blind => {
                    (copy::Opening { number: "1".parse().ok()?, mod_revision: None, is_claim: false }, TTL)
                }
                found => found?,
            };
            let view = if is_blind { &bare } else { view };
            let txn = copy::plan_opening(opening, view, &us, &facts, facts.standing_since)?;
            Some((self.txns.put(txn), Some(opening.event())))
        })
    }

    /// etcd carries a write out. The revision is `None` if a condition didn't hold, or the lease has ended.
    fn commit(&self, etcd: Id, txn: Id) -> (Id, Option<i64>) {
        self.writes.get_or((etcd, txn), || {
            let (mut store, txn) = (Etcd::clone(&self.etcds.get(etcd)), self.txns.get(txn));
            let mut txn = Txn::clone(&txn);
            if self.bug == Some(Bug::TakeTaken) {
                let puts = Txn::new();
                txn = txn.writes().iter().cloned().fold(puts, |txn, write| match write {
                    registry::Write::Put { key, value, lease } => txn.put(key, value, lease),
                    registry::Write::Delete { key } => txn.delete(key),
                });
            }
            let committed = store.commit(&txn);
            let revision = committed.filter(|it| it.succeeded).map(|it| it.revision);
            (self.etcds.put(store), revision)
        })
    }

    fn follow(&self, view: Id, etcd: Id) -> Id {
        self.follows.get_or((view, etcd), || {
            let (mut next, store) = (Seen::clone(&self.views.get(view)), self.etcds.get(etcd));
            match next.followed.and_then(|revision| store.next_after(revision)) {
                Some(event) => {
                    next.view.apply_event(&event);
                    if let Event::Changes { revision, .. } = event {
                        next.followed = Some(revision);
                    }
                }
                None => {
                    next.view.apply_event(&Event::Snapshot(store.snapshot()));
                    next.followed = Some(store.revision);
                }
            }
            self.views.put(next)
        })
    }

    /// True if the fence says that the app must be killed by now.
    fn is_fence_passed(it: &Copy) -> bool {
        it.run == Run::Live && (it.lease != it.held || is_due(Self::kill_time(it), *BASE))
    }

    fn kill_time(it: &Copy) -> Option<Instant> {
        copy::kill_time(it.lease.map(|_| *BASE - STEP * u32::from(it.renewed)), TTL)
    }

    fn find_event(&self, it: &Copy, node: u8) -> Option<CopyEvent> {
        if Self::is_fence_passed(it) {
            return Some(CopyEvent::FencePassed);
        }
        let found = self.events.get_or((it.life, it.view, it.lease, it.given_up, node), || {
            copy::find_event(it.life, &self.views.get(it.view).view, &self.us(it.lease, it.given_up, node))
        });
        let event = found.map(|event| match event {
            CopyEvent::SlotLost if it.life.runs_app() => CopyEvent::FencePassed,
            event => event,
        })?;
        if self.bug == Some(Bug::StartLate) {
            return Some(event);
        }
        copy::check_start(it.life, event, Self::kill_time(it), *BASE)
    }

    fn advance(&self, state: &mut State, node: u8, event: CopyEvent) -> Option<()> {
        let it = state.copies.get_mut(usize::from(node))?;
        let (next, actions) = copy::step(it.life, event);
        if next == Life::Holding && event == CopyEvent::SlotOurs {
            it.held = it.lease;
        }
        it.life = next;
        for action in actions {
            let it = state.copies.get_mut(usize::from(node))?;
            match action {
                Action::StartApp => it.run = Run::Live,
                Action::KillApp => it.run = Run::Killed,
                // With a fence nothing is offered: the app stops first.
                Action::OfferSlot => it.life = copy::step(it.life, CopyEvent::HandedOver).0,
                Action::Release => {
                    let lease = it.lease;
                    it.life = copy::step(it.life, CopyEvent::Released).0;
                    if let Some(lease) = lease {
                        self.end_lease(state, lease);
                    }
                }
                Action::StopApp | Action::TakeSlot | Action::ClaimSlot | Action::Pause => {}
            }
        }
        Some(())
    }

    fn end_lease(&self, state: &mut State, lease: u8) {
        let mut store = Etcd::clone(&self.etcds.get(state.etcd));
        store.end_lease(lease.into());
        state.etcd = self.etcds.put(store);
    }

    fn apply(&self, state: &State, step: Step) -> Option<State> {
        let mut next = *state;
        let store = self.etcds.get(state.etcd);
        let (node, copies) = match step {
            Step::Time => return pass_time(next),
            Step::Advance(node)
            | Step::Write(node)
            | Step::Follow(node)
            | Step::SendRenewal(node)
            | Step::TakeRenewal(node)
            | Step::AnswerRenewal(node)
            | Step::Grant(node)
            | Step::EndRun(node)
            | Step::EndLease(node)
            | Step::Stop(node)
            | Step::Disconnect(node)
            | Step::LoseRenewal(node)
            | Step::Delay(node)
            | Step::LateWrite(node) => (node, &mut next.copies),
        };
        let it = copies.get_mut(usize::from(node))?;
        let lives = |lease: Option<u8>| lease.is_some_and(|lease| store.is_alive(lease.into()));
        match step {
            Step::Advance(_) => {
                let event = self.find_event(it, node)?;
                self.advance(&mut next, node, event)?;
            }
            Step::Write(_) | Step::Delay(_) => {
                let (txn, event) = self.plan(it, node)?;
                let us = self.us(it.lease, it.given_up, node);
                let given_up = copy::find_given_up(it.life, &self.views.get(it.view).view, &us);
                it.given_up = given_up.filter(|_| self.bug != Some(Bug::ForgetGivenUp)).or(it.given_up);
                if step == Step::Delay(node) {
                    if it.late.is_some() {
                        return None;
                    }
                    next.faults = next.faults.checked_sub(1)?;
                    it.late = Some(txn);
                } else {
                    let (etcd, revision) = self.commit(state.etcd, txn);
                    next.etcd = etcd;
                    if let Some(revision) = revision {
                        let mut seen = Seen::clone(&self.views.get(it.view));
                        seen.view.require_revision(revision);
                        it.view = self.views.put(seen);
                    }
                }
                if let Some(event) = event {
                    self.advance(&mut next, node, event)?;
                }
            }
            Step::Follow(_) if self.views.get(it.view).followed != Some(store.revision) => {
                it.view = self.follow(it.view, state.etcd);
            }
            Step::SendRenewal(_) if it.renewal.is_none() && it.lease.is_some() && it.life != Life::Done => {
                // Two copies with renewals on their way would be each other's square. The second one's takes no time.
                match (node, lives(it.lease)) {
                    (0, _) => it.renewal = Some(Renewal { age: 0, answer: None }),
                    (_, true) => (it.renewed, it.lease_age) = (0, 0),
                    (_, false) => it.lease = None,
                }
            }
            Step::TakeRenewal(_) => {
                let renewal = it.renewal.as_mut().filter(|renewal| renewal.answer.is_none())?;
                renewal.answer = Some(lives(it.lease));
                if renewal.answer == Some(true) {
                    it.lease_age = 0;
                }
            }
            Step::AnswerRenewal(_) => {
                let renewal = it.renewal.take()?;
                match renewal.answer? {
                    true if self.bug == Some(Bug::FenceByAnswer) => it.renewed = 0,
                    true => it.renewed = renewal.age,
                    false => it.lease = None,
                }
            }
            Step::Grant(_) if it.lease.is_none() && !it.life.is_ending() => {
                next.leases += 1;
                let mut store = Etcd::clone(&store);
                store.grant(next.leases.into());
                (it.lease, it.renewed, it.lease_age) = (Some(next.leases), 0, 0);
                next.etcd = self.etcds.put(store);
            }
            Step::EndRun(_) if it.run != Run::None && it.life.awaits_run_end() => {
                it.run = Run::None;
                self.advance(&mut next, node, CopyEvent::RunEnded)?;
            }
            Step::EndLease(_) if it.lease_age >= LEASE_STEPS && lives(it.lease) => {
                let lease = it.lease?;
                self.end_lease(&mut next, lease);
            }
            Step::Stop(_) if !it.life.is_ending() => {
                next.stops = next.stops.checked_sub(1)?;
                self.advance(&mut next, node, CopyEvent::Stop)?;
            }
            Step::Disconnect(_) => {
                next.faults = next.faults.checked_sub(1)?;
                let mut seen = Seen::clone(&self.views.get(it.view));
                seen.followed = None;
                it.view = self.views.put(seen);
            }
            Step::LoseRenewal(_) => {
                next.faults = next.faults.checked_sub(1)?;
                it.renewal.take()?;
            }
            Step::LateWrite(_) => next.etcd = self.commit(state.etcd, it.late.take()?).0,
            _ => return None,
        }
        (next != *state).then_some(next)
    }
}

fn is_due(time: Option<Instant>, now: Instant) -> bool {
    time.is_none_or(|time| now >= time)
}

/// Four seconds pass. `None` while an app has to be killed: the announcer or the app's guard does that within milliseconds.
fn pass_time(mut state: State) -> Option<State> {
    if state.copies.iter().any(Slots::is_fence_passed) {
        return None;
    }
    for it in &mut state.copies {
        let older = |age: u8| (age + 1).min(OLDEST);
        (it.renewed, it.lease_age) = (older(it.renewed), older(it.lease_age));
        if let Some(renewal) = &mut it.renewal {
            renewal.age = older(renewal.age);
        }
    }
    Some(state)
}

impl Model for Slots {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let mut store = Etcd::new(7);
        store.grant(1);
        store.grant(2);
        let view = self.views.put(Seen { view: View::new(self.service.clone()), followed: None });
        let copy = |lease| Copy {
            life: Life::StandingBy,
            view,
            lease: Some(lease),
            held: None,
            renewed: 0,
            renewal: None,
            lease_age: 0,
            late: None,
            given_up: None,
            run: Run::None,
        };
        let Bounds { faults, stops, .. } = self.bounds;
        let mut state = State { etcd: self.etcds.put(store), copies: [copy(1), copy(2)], leases: 2, faults, stops };
        // Both stand by, and the first one holds the slot.
        let both = [Step::Follow(0), Step::Follow(1), Step::Write(0), Step::Write(1)];
        let first = [Step::Follow(0), Step::Follow(0), Step::Follow(1), Step::Follow(1), Step::Write(0)];
        let last = [Step::Follow(0), Step::Advance(0), Step::Follow(1)];
        for step in both.into_iter().chain(first).chain(last) {
            state = self.apply(&state, step).unwrap_or(state);
        }
        vec![state]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        for it in 0..2 {
            steps.extend([Step::Advance(it), Step::Write(it), Step::Follow(it), Step::EndRun(it), Step::EndLease(it)]);
            steps.extend([Step::SendRenewal(it), Step::TakeRenewal(it), Step::AnswerRenewal(it), Step::Stop(it)]);
            steps.push(Step::LateWrite(it));
            // Leases beyond these lead to no new situation.
            if state.leases < 4 {
                steps.push(Step::Grant(it));
            }
            if state.faults > 0 {
                steps.extend([Step::Disconnect(it), Step::LoseRenewal(it), Step::Delay(it)]);
            }
        }
        steps.push(Step::Time);
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        self.apply(state, step)
    }

    fn within_boundary(&self, state: &State) -> bool {
        self.etcds.get(state.etcd).revision <= self.bounds.last_revision
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("(i) never more copies than replicas", |_: &Self, state: &State| {
            state.copies.iter().filter(|it| it.run == Run::Live).count() <= 1
        })]
    }
}

impl Checked for Slots {
    fn counts(&self) -> Counts {
        let calls = self.plans.len() + self.events.len() + self.follows.len();
        Counts { objects: self.views.len(), calls }
    }
}
