//! Claims: two services want one host. Each balancer decides by itself, from the store, its memory and its state directory.

use std::collections::BTreeSet;

use discovery::{Entry, ServiceId, Snapshot};
use registry::Event;
use stateright::{Model, Property};

use crate::brain::{Brain, Facts};
use crate::etcd::Etcd;
use crate::intern::{Id, Memo, Pool};
use crate::proof::{Bug, Checked, Continuation, Counts};

const HOST: &str = "shop.test";
const SERVICES: [&str; 2] = ["shop", "pay"];

/// A state of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    etcd: Id,
    brains: [Id; 2],
    writes: u8,
    faults: u8,
}

/// A step of the world. The last number is the balancer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A service's key is written with the host.
    Claim(u8),
    /// The service's key is deleted.
    Leave(u8),
    /// The watch delivers a revision, or a listing after an interruption.
    Follow(u8),
    /// confgen decides.
    Reconcile(u8),
    /// haproxy.cfg and the state directory are written.
    Publish(u8),
    /// Fault: the watch breaks.
    Disconnect(u8),
    /// Fault: confgen dies, and starts with its state directory.
    Kill(u8),
    /// Fault: confgen starts on a new host.
    Replace(u8),
}

/// The model with its production objects.
pub struct Claims {
    is_large: bool,
    bug: Option<Bug>,
    etcds: Pool<Etcd>,
    brains: Pool<Brain>,
    steps: Memo<(Id, Id, Step), Id>,
    owners: Memo<Id, Vec<ServiceId>>,
    good: Continuation,
}

impl Claims {
    /// The model, with one seeded bug or none.
    pub fn new(is_large: bool, bug: Option<Bug>) -> Self {
        let (etcds, brains, steps, owners) = Default::default();
        Self { is_large, bug, etcds, brains, steps, owners, good: Continuation::default() }
    }

    /// The services that this confgen gives the host to.
    fn owners(&self, brain: Id) -> Vec<ServiceId> {
        self.owners.get_or(brain, || {
            let brain = self.brains.get(brain);
            let services = brain.desired().services().filter(|(_, service)| !service.routes.is_empty());
            services.map(|(id, _)| id.clone()).collect()
        })
    }

    /// Entries as they are, or with the newer key as the older one.
    fn entry(&self, entry: Entry) -> Entry {
        match self.bug {
            Some(Bug::NewerClaim) => Entry { create_revision: 1000 - entry.create_revision, ..entry },
            _ => entry,
        }
    }

    fn follow(&self, brain: &mut Brain, store: &Etcd) {
        match brain.followed.and_then(|revision| store.next_after(revision)) {
            Some(Event::Changes { revision, changes }) => {
                let changes = changes.into_iter().map(|change| match change {
                    discovery::Change::Put(entry) => discovery::Change::Put(self.entry(entry)),
                    gone @ discovery::Change::Delete { .. } => gone,
                });
                brain.apply(&Event::Changes { revision, changes: changes.collect() });
            }
            _ => {
                let snapshot = store.snapshot();
                let entries = snapshot.entries.into_iter().map(|entry| self.entry(entry)).collect();
                brain.list(&Snapshot { entries, ..snapshot });
            }
        }
    }

    fn brain_step(&self, brain: Id, etcd: Id, step: Step) -> Id {
        self.steps.get_or((brain, etcd, step), || {
            let mut next = Brain::clone(&self.brains.get(brain));
            match step {
                Step::Follow(_) => self.follow(&mut next, &self.etcds.get(etcd)),
                Step::Reconcile(_) => next.reconcile(&Facts {
                    up: Some(BTreeSet::new()),
                    present: BTreeSet::new(),
                    leases: BTreeSet::new(),
                    answers: true,
                    pending: BTreeSet::new(),
                    old_listens: false,
                }),
                Step::Publish(_) => {
                    next.begin_publish();
                    next.end_publish(next.reconciled());
                }
                Step::Disconnect(_) => next.followed = None,
                Step::Kill(_) => next = next.restarted(true),
                Step::Replace(_) => next = next.restarted(false),
                Step::Claim(_) | Step::Leave(_) => {}
            }
            self.brains.put(next)
        })
    }

    fn apply(&self, state: &State, step: Step) -> Option<State> {
        let mut next = *state;
        let store = self.etcds.get(state.etcd);
        match step {
            Step::Claim(service) | Step::Leave(service) => {
                let key = format!("http-services/{}/domain", SERVICES.get(usize::from(service))?);
                next.writes = next.writes.checked_sub(1)?;
                let mut changed = Etcd::clone(&store);
                match (step, store.get(&key)) {
                    (Step::Claim(_), None) => changed.put(&key, HOST, 0),
                    (Step::Leave(_), Some(_)) => changed.delete(&key),
                    _ => return None,
                }
                next.etcd = self.etcds.put(changed);
            }
            Step::Follow(node)
            | Step::Reconcile(node)
            | Step::Publish(node)
            | Step::Disconnect(node)
            | Step::Kill(node)
            | Step::Replace(node) => {
                let id = next.brains.get_mut(usize::from(node))?;
                let brain = self.brains.get(*id);
                match step {
                    Step::Follow(_) if brain.followed == Some(store.revision) => return None,
                    Step::Reconcile(_) if !brain.is_due => return None,
                    Step::Publish(_) if brain.published() == brain.reconciled() => return None,
                    Step::Disconnect(_) | Step::Kill(_) | Step::Replace(_) => {
                        next.faults = next.faults.checked_sub(1)?;
                    }
                    _ => {}
                }
                *id = self.brain_step(*id, state.etcd, step);
            }
        }
        Some(next)
    }

    fn round(&self, mut state: State) -> State {
        for step in (0..2).flat_map(|node| [Step::Follow(node), Step::Reconcile(node), Step::Publish(node)]) {
            state = self.apply(&state, step).unwrap_or(state);
        }
        state
    }

    fn agree(&self, state: &State) -> bool {
        let store = self.etcds.get(state.etcd);
        let [one, other] = state.brains.map(|brain| self.owners(brain));
        one == other && one.is_empty() == (store.entries().count() == 0)
    }
}

impl Model for Claims {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let (writes, faults) = if self.is_large { (4, 1) } else { (3, 1) };
        let (etcd, brain) = (self.etcds.put(Etcd::new(7)), self.brains.put(Brain::default()));
        vec![self.round(State { etcd, brains: [brain; 2], writes, faults })]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        for it in 0..2 {
            steps.extend([Step::Claim(it), Step::Leave(it), Step::Follow(it), Step::Reconcile(it), Step::Publish(it)]);
            if state.faults > 0 {
                steps.extend([Step::Disconnect(it), Step::Kill(it), Step::Replace(it)]);
            }
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        self.apply(state, step)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("(c) a claim has one holder", |model: &Self, state: &State| {
                state.brains.iter().all(|brain| model.owners(*brain).len() <= 1)
            }),
            Property::always("(c, h) all balancers agree once it is quiet", |model: &Self, state: &State| {
                model.good.check(state, |state| model.round(*state), |state| model.agree(state))
            }),
        ]
    }
}

impl Checked for Claims {
    fn counts(&self) -> Counts {
        Counts { objects: self.brains.len(), calls: self.steps.len() }
    }
}
