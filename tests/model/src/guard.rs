//! Lost keys: leases that end, stores that are wiped or restored, deletions, moves, and what confgen retains of them.

use std::collections::BTreeSet;

use confgen::decisions::Retainer;
use discovery::{Key, ServiceId, UpstreamId};
use stateright::{Model, Property};

use crate::brain::{Brain, Facts};
use crate::etcd::Etcd;
use crate::intern::{Id, Memo, Pool};
use crate::proof::{Bug, Checked, Continuation, Counts};

/// The upstreams: two of a service, and one of another. The last one is where the first moves to.
const UPSTREAMS: [(&str, &str); 4] = [("shop", "a"), ("shop", "b"), ("pay", "c"), ("pay", "a")];
const ADDRESSES: [&str; 4] = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.1:80"];

/// How an upstream's key went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gone {
    /// It is there, or never was.
    No,
    /// Its lease ended, and nothing announced that.
    Expired,
    /// The announcer has written `down` or `drain` before.
    Announced,
    /// Somebody deleted it, and its lease lives.
    Deleted,
    /// The store lost it.
    Reset,
}

/// A state of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    etcd: Id,
    backup: Option<Id>,
    brains: [Id; 2],
    /// Bits: the apps that work.
    alive: u8,
    gone: [Gone; 4],
    /// By balancer, bits: the upstreams that it knew when the store was reset, and must still serve.
    owed: [u8; 2],
    /// By balancer, bits: the upstreams that went while it did not follow the store. A listing doesn't tell how they went.
    missed: [u8; 2],
    leases: u8,
    faults: u8,
    steps: u8,
}

/// A step of the world. Numbers are upstreams, or balancers for confgen's steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The announcer withdraws politely.
    Withdraw(u8),
    /// The announcer writes the record under a new lease.
    Return(u8),
    /// The app dies, and HAProxy's check notices.
    Die(u8),
    /// Someone deletes the key. Its lease lives.
    Delete(u8),
    /// Upstream `a` of the one service becomes one of the other, at its address.
    Move,
    /// Fault: all leases of the service end, or one does.
    Expire(u8),
    /// Fault: the store is wiped.
    Wipe,
    /// The operator makes a backup.
    Backup,
    /// Fault: the store is restored from the backup.
    Restore,
    /// The operator accepts the store as it is.
    Accept,
    /// The watch delivers a revision, or a listing.
    Follow(u8),
    /// confgen decides.
    Reconcile(u8),
    /// confgen asks HAProxy about what it retains.
    Release(u8),
    /// haproxy.cfg and the state directory are written.
    Publish(u8),
    /// Fault: the watch breaks.
    Disconnect(u8),
    /// Fault: confgen dies, and starts again.
    Kill(u8),
}

/// The model with its production objects.
pub struct Guard {
    faults: u8,
    steps_left: u8,
    bug: Option<Bug>,
    names: Vec<(ServiceId, UpstreamId)>,
    etcds: Pool<Etcd>,
    brains: Pool<Brain>,
    steps: Memo<(Id, Id, u8, Step), Id>,
    looks: Memo<Id, Look>,
    good: Continuation,
}

/// The facts of a brain that a state needs.
#[derive(Clone, Debug)]
struct Look {
    /// Bits: the upstreams that are served, those that the guard retains, and those that the state directory has.
    served: u8,
    guarded: u8,
    known: u8,
    followed: Option<(u64, i64)>,
    is_due: bool,
    is_saved: bool,
}

fn bit(index: u8) -> u8 {
    1 << index
}

fn key(index: u8) -> String {
    let (service, id) = UPSTREAMS.get(usize::from(index)).copied().unwrap_or_default();
    format!("http-services/{service}/upstreams/{id}")
}

fn address(index: u8) -> &'static str {
    ADDRESSES.get(usize::from(index)).copied().unwrap_or_default()
}

impl Guard {
    /// The model with this many faults and steps of announcers and operators, and one seeded bug or none.
    pub fn new(faults: u8, steps_left: u8, bug: Option<Bug>) -> Self {
        let names = (0..4).filter_map(|index| match key(index).parse() {
            Ok(Key::Upstream { service, id, .. }) => Some((service, id)),
            _ => None,
        });
        let (etcds, brains, steps, looks) = Default::default();
        Self {
            faults,
            steps_left,
            bug,
            names: names.collect(),
            etcds,
            brains,
            steps,
            looks,
            good: Continuation::default(),
        }
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Bits of the upstreams for which this is true.
    fn bits(&self, is: impl Fn(&ServiceId, &UpstreamId) -> bool) -> u8 {
        (0..).zip(&self.names).filter(|(_, (service, id))| is(service, id)).map(|(index, _)| bit(index)).sum()
    }

    fn look(&self, brain: Id) -> Look {
        self.looks.get_or(brain, || {
            let it = self.brains.get(brain);
            let guarded = it.retention().list_served(it.desired());
            let is_guarded = |name: &(ServiceId, UpstreamId)| {
                guarded.get(name).is_some_and(|retained| retained.by == Retainer::Guard)
            };
            let has = |service: &ServiceId, id: &UpstreamId| {
                it.replica().topology().services().get(service).is_some_and(|keys| keys.upstream(id).is_some())
            };
            let cluster = it.replica().store_revision().cluster;
            Look {
                served: self.bits(|service, id| it.wanted(service, id).is_some()),
                guarded: self.bits(|service, id| is_guarded(&(service.clone(), id.clone()))),
                known: self.bits(has),
                followed: it.followed.map(|revision| (cluster, revision)),
                is_due: it.is_due,
                is_saved: it.is_saved(),
            }
        })
    }

    fn facts(&self, brain: &Brain, store: &Etcd, alive: u8) -> Facts {
        let mut present = BTreeSet::new();
        let mut up = BTreeSet::new();
        for (index, (service, id)) in (0..).zip(&self.names) {
            if brain.wanted(service, id).is_some() {
                let name = format!("{service}/{id}");
                // The fourth has the first's app.
                if alive & bit(index % 3) != 0 {
                    up.insert(name.clone());
                }
                present.insert(name);
            }
        }
        let leases = if self.has(Bug::ExpiryForDeletion) { BTreeSet::new() } else { store.live_leases().clone() };
        Facts { up: Some(up), present, leases, answers: true, pending: BTreeSet::new(), old_listens: false }
    }

    fn brain_step(&self, brain: Id, etcd: Id, alive: u8, step: Step) -> Id {
        self.steps.get_or((brain, etcd, alive, step), || {
            let mut next = Brain::clone(&self.brains.get(brain));
            let store = self.etcds.get(etcd);
            match step {
                Step::Follow(_) => self.follow(&mut next, &store),
                Step::Reconcile(_) => next.reconcile(&self.facts(&next.clone(), &store, alive)),
                Step::Release(_) => next.release(&self.facts(&next.clone(), &store, alive)),
                Step::Publish(_) => {
                    next.begin_publish();
                    next.end_publish(next.reconciled());
                }
                Step::Disconnect(_) => next.followed = None,
                Step::Kill(_) if self.has(Bug::ForgetHeld) => next = next.restarted_without_held(),
                Step::Kill(_) => next = next.restarted(true),
                _ => {}
            }
            self.brains.put(next)
        })
    }

    fn follow(&self, brain: &mut Brain, store: &Etcd) {
        let cluster = brain.replica().store_revision().cluster;
        let next = brain.followed.filter(|_| cluster == store.cluster).and_then(|revision| store.next_after(revision));
        // The moved record has another address in the eyes of a confgen that doesn't see moves.
        let moved = |entry: &mut discovery::Entry| {
            if self.has(Bug::RetainMoved) && entry.key == key(3) {
                entry.value = b"10.0.0.9:80".to_vec();
            }
        };
        match next {
            Some(registry::Event::Changes { revision, mut changes }) => {
                for change in &mut changes {
                    if let discovery::Change::Put(entry) = change {
                        moved(entry);
                    }
                }
                brain.apply(&registry::Event::Changes { revision, changes });
            }
            _ => {
                let mut snapshot = store.snapshot();
                snapshot.entries.iter_mut().for_each(moved);
                brain.list(&snapshot);
            }
        }
    }

    /// A step of announcers, operators and the store.
    fn store_step(&self, state: &State, step: Step) -> Option<State> {
        let mut next = *state;
        let old = self.etcds.get(state.etcd);
        let mut store = Etcd::clone(&old);
        next.steps = next.steps.checked_sub(1)?;
        let entry = |index: u8| old.get(&key(index)).cloned();
        match step {
            Step::Withdraw(index) => {
                let entry = entry(index)?;
                let down = format!(r#"{{"address":"{}","state":"down"}}"#, address(index));
                let finish = |store: &mut Etcd| {
                    store.put(&key(index), &down, entry.lease);
                    store.delete(&key(index));
                };
                if self.has(Bug::RevokeFirst) {
                    store.end_lease(entry.lease);
                } else {
                    finish(&mut store);
                    store.end_lease(entry.lease);
                }
                next.set_gone(index, Gone::Announced);
            }
            Step::Return(index) => {
                let app = index % 3;
                if entry(index).is_some() || next.gone.get(usize::from(index)) == Some(&Gone::No) {
                    return None;
                }
                next.leases += 1;
                store.grant(next.leases.into());
                store.put(&key(index), address(index), next.leases.into());
                next.alive |= bit(app);
                next.set_gone(index, Gone::No);
            }
            Step::Die(index) if next.alive & bit(index) != 0 => next.alive &= !bit(index),
            Step::Delete(index) => {
                entry(index)?;
                store.delete(&key(index));
                next.set_gone(index, Gone::Deleted);
            }
            Step::Move => {
                if entry(3).is_some() || next.alive & 1 == 0 {
                    return None;
                }
                // The announcer of an agent with other labels: the old record goes with its lease, without a word.
                entry(0).iter().for_each(|entry| store.end_lease(entry.lease));
                next.leases += 1;
                store.grant(next.leases.into());
                store.put(&key(3), address(3), next.leases.into());
                next.set_gone(0, Gone::Announced);
                next.set_gone(3, Gone::No);
            }
            Step::Expire(index) => {
                next.faults = next.faults.checked_sub(1)?;
                store.end_lease(entry(index)?.lease);
                next.set_gone(index, Gone::Expired);
            }
            Step::Backup if next.backup.is_none() => next.backup = Some(state.etcd),
            Step::Wipe | Step::Restore => {
                next.faults = next.faults.checked_sub(1)?;
                store = match step {
                    Step::Restore => old.restored(&self.etcds.get(next.backup.take()?)),
                    _ => old.wiped(),
                };
                if store.revision == old.revision {
                    return None;
                }
                for (node, brain) in next.brains.into_iter().enumerate() {
                    let missing = self.look(brain).known & !self.stored(&store);
                    next.owed.get_mut(node).into_iter().for_each(|owed| *owed |= missing);
                }
                // The lease of a deleted key is gone too. Nothing tells its deletion from an expiry any more.
                for gone in next.gone.iter_mut().filter(|gone| **gone == Gone::Deleted) {
                    *gone = Gone::Expired;
                }
                for index in 0..4 {
                    if old.get(&key(index)).is_some() && store.get(&key(index)).is_none() {
                        next.set_gone(index, Gone::Reset);
                    }
                }
            }
            // An operator accepts a store once every balancer has found it reset.
            Step::Accept if next.owed != [0; 2] && next.brains.iter().all(|it| self.has_listed(*it, &old)) => {
                let value = discovery::Acceptance { cluster: store.cluster, revision: store.revision }.to_string();
                store.put("control/accept-store", &value, 0);
                next.owed = [0; 2];
            }
            _ => return None,
        }
        let went: u8 =
            (0..4).filter(|it| old.get(&key(*it)).is_some() && store.get(&key(*it)).is_none()).map(bit).sum();
        for (brain, missed) in next.brains.into_iter().zip(&mut next.missed) {
            if self.look(brain).followed.is_none() {
                *missed |= went;
            }
            *missed &= !self.stored(&store);
        }
        // A record that is back is owed no more, nor is one whose address has a new record.
        let back = self.stored(&store);
        let moved = u8::from(back & bit(3) != 0) | if back & 1 != 0 { bit(3) } else { 0 };
        next.owed.iter_mut().for_each(|owed| *owed &= !(back | moved));
        next.etcd = self.etcds.put(store);
        Some(next)
    }

    fn has_listed(&self, brain: Id, store: &Etcd) -> bool {
        self.look(brain).followed == Some((store.cluster, store.revision))
    }

    fn stored(&self, store: &Etcd) -> u8 {
        (0..4).filter(|index| store.get(&key(*index)).is_some()).map(bit).sum()
    }

    fn apply(&self, state: &State, step: Step) -> Option<State> {
        let (Step::Follow(node)
        | Step::Reconcile(node)
        | Step::Release(node)
        | Step::Publish(node)
        | Step::Disconnect(node)
        | Step::Kill(node)) = step
        else {
            return self.store_step(state, step);
        };
        let mut next = *state;
        let store = self.etcds.get(state.etcd);
        let id = next.brains.get_mut(usize::from(node))?;
        let seen = self.look(*id);
        let is_followed = seen.followed == Some((store.cluster, store.revision));
        match step {
            Step::Follow(_) if is_followed => return None,
            Step::Reconcile(_) if !seen.is_due => return None,
            Step::Release(_) if seen.guarded == 0 || seen.is_due => return None,
            Step::Publish(_) if seen.is_saved || seen.is_due => return None,
            Step::Disconnect(_) | Step::Kill(_) => next.faults = next.faults.checked_sub(1)?,
            _ => {}
        }
        *id = self.brain_step(*id, state.etcd, state.alive, step);
        // What a process has followed and not saved is gone with it.
        if matches!(step, Step::Kill(_)) || matches!(step, Step::Disconnect(_)) && !is_followed {
            let gone = !self.stored(&store);
            next.missed.get_mut(usize::from(node)).into_iter().for_each(|missed| *missed |= gone);
        }
        if matches!(step, Step::Kill(_)) {
            // A key that the state directory never had is forgotten rightly.
            let known = self.look(*id).known;
            next.owed.get_mut(usize::from(node)).into_iter().for_each(|owed| *owed &= known);
        }
        (next != *state).then_some(next)
    }

    fn round(&self, mut state: State) -> State {
        let steps = |it| [Step::Follow(it), Step::Reconcile(it), Step::Release(it), Step::Publish(it)];
        for step in (0..2).flat_map(steps) {
            state = self.apply(&state, step).unwrap_or(state);
        }
        state
    }

    /// confgen has seen and decided everything.
    fn is_caught_up(&self, state: &State, seen: &Look) -> bool {
        let store = self.etcds.get(state.etcd);
        seen.followed == Some((store.cluster, store.revision)) && !seen.is_due
    }

    fn is_in_sync(&self, state: &State) -> bool {
        let stored = self.stored(&self.etcds.get(state.etcd));
        let apps = state.alive | if state.alive & 1 != 0 { bit(3) } else { 0 };
        state.brains.iter().zip(state.owed).all(|(brain, owed)| {
            let seen = self.look(*brain);
            let moved = if stored & bit(3) != 0 { 1 } else { 0 };
            self.is_caught_up(state, &seen)
                && seen.guarded & (stored | moved | !apps) == 0
                && seen.served == stored | seen.guarded | owed
        })
    }
}

impl State {
    fn set_gone(&mut self, index: u8, gone: Gone) {
        self.gone.get_mut(usize::from(index)).into_iter().for_each(|it| *it = gone);
    }
}

impl Model for Guard {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let mut store = Etcd::new(7);
        for service in ["shop", "pay"] {
            store.put(&format!("http-services/{service}/domain"), &format!("{service}.test"), 0);
        }
        for index in 0..3 {
            store.grant(i64::from(index) + 1);
            store.put(&key(index), address(index), i64::from(index) + 1);
        }
        let (etcd, brain) = (self.etcds.put(store), self.brains.put(Brain::default()));
        let (faults, steps) = (self.faults, self.steps_left);
        let gone = [Gone::No; 4];
        let state = State {
            etcd,
            backup: None,
            brains: [brain; 2],
            alive: 7,
            gone,
            owed: [0; 2],
            missed: [0; 2],
            leases: 3,
            faults,
            steps,
        };
        vec![self.round(self.round(state))]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        for it in 0..2 {
            steps.extend([Step::Follow(it), Step::Reconcile(it), Step::Release(it), Step::Publish(it)]);
            if state.faults > 0 {
                steps.extend([Step::Disconnect(it), Step::Kill(it)]);
            }
        }
        if state.steps == 0 {
            return;
        }
        steps.extend([Step::Move, Step::Backup, Step::Wipe, Step::Restore, Step::Accept]);
        for it in 0..4 {
            steps.extend([Step::Withdraw(it), Step::Return(it), Step::Delete(it), Step::Expire(it)]);
            if it < 3 {
                steps.push(Step::Die(it));
            }
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        self.apply(state, step)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("(e) the guard retains no announced removal", |model: &Self, state: &State| {
                let meant = |gone: &Gone| matches!(gone, Gone::Announced | Gone::Deleted);
                let meant: u8 = (0..4).zip(&state.gone).filter(|(_, gone)| meant(gone)).map(|(it, _)| bit(it)).sum();
                state.brains.iter().zip(state.missed).all(|(brain, missed)| {
                    let seen = model.look(*brain);
                    seen.guarded & meant & !missed == 0 || !model.is_caught_up(state, &seen)
                })
            }),
            Property::always("(f) a reset store takes nothing away", |model: &Self, state: &State| {
                state.brains.iter().zip(state.owed).all(|(brain, owed)| {
                    let seen = model.look(*brain);
                    owed & !seen.served == 0 || !model.is_caught_up(state, &seen)
                })
            }),
            Property::always("(h) what is retained goes with its reason", |model: &Self, state: &State| {
                model.good.check(state, |state| model.round(*state), |state| model.is_in_sync(state))
            }),
        ]
    }
}

impl Checked for Guard {
    fn counts(&self) -> Counts {
        Counts { objects: self.brains.len(), calls: self.steps.len() }
    }
}
