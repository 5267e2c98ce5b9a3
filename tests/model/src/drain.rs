//! The drain: one announcer that stops politely, its balancers, their HAProxy processes and clients.
//!
//! HAProxy and clients are the model's own. HAProxy serves what its file said at its start and what confgen told it since. An old
//! process keeps its table for ever. Time passes in steps over the limits that `drain.rs` of confgen has.

mod calls;
mod haproxy;
mod steps;

use announcer::decisions::State as Life;
use stateright::{Model, Property};

use crate::intern::Id;
use crate::proof::{Checked, Counts};
pub use calls::Drain;
use haproxy::{Counting, Process, Server};

const RECORD: &str = "http-services/shop/upstreams/a";

/// A balancer: confgen, its files, HAProxy, and its record in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Balancer {
    brain: Id,
    running: Process,
    pid: u8,
    old: [Option<Process>; 2],
    /// The pid that the observer saw last, and the step of the time since.
    observed: u8,
    seen_age: u8,
    /// A reconcile has found HAProxy as wanted since the observer last saw another process.
    is_confirmed: bool,
    /// confgen must ask HAProxy before the next change. Otherwise it believes this.
    is_stale: bool,
    believed: Server,
    file: Server,
    writing: Option<(Server, u8)>,
    count: Option<Counting>,
    /// The host is gone for good.
    is_retired: bool,
    /// An operator has enabled the server by hand. The product promises nothing for requests after that.
    is_tampered: bool,
    /// The record in the store, the one that confgen believes to be there, and one on its way that confgen has given up on.
    record: Id,
    told: Id,
    late: Option<Id>,
}

/// The announcer of upstream `a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Announcer {
    life: Life,
    writer: Id,
    lease: u8,
    /// A write that etcd has not carried out, and of which the announcer has heard nothing.
    late: Option<Id>,
    /// The balancers as it sees them, and the drain's first revision. `None` before it waits for acknowledgements.
    wait: Option<(Id, u8)>,
}

/// A state of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    etcd: Id,
    balancers: [Balancer; 2],
    announcer: Announcer,
    faults: u8,
    requests: u8,
    /// The first property that this run has violated.
    violated: Option<&'static str>,
}
/// A step of the world. The number is the balancer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The app works, or all records are stored.
    Announce,
    /// The announcer writes what its records need, and gets etcd's answer.
    Write,
    /// etcd tells the announcer of a change of its record.
    OwnKey,
    /// SIGTERM.
    Stop,
    /// The announcer begins to wait for acknowledgements.
    Wait,
    /// The announcer sees the balancer records of now.
    SeeRecords,
    /// Every balancer has acknowledged: the app gets its stop signal.
    StopApp,
    /// The wait for acknowledgements is over (`--drain`). The model has this only after a wipe, when balancers
    /// retain the record and acknowledge nothing, and while somebody else's record leads to the app.
    GiveUp,
    /// The app is gone, and its records go.
    Withdraw,
    /// etcd's watch delivers a revision to confgen, or a listing after an interruption.
    Follow(u8),
    /// confgen resolves, and HAProxy gets what is desired.
    Reconcile(u8),
    /// The observer sees HAProxy's pid.
    Observe(u8),
    /// A publish begins.
    BeginPublish(u8),
    /// haproxy.cfg and the state directory are written.
    EndPublish(u8),
    /// A count of sessions begins.
    BeginCount(u8),
    /// The count ends.
    EndCount(u8),
    /// The balancer record is written.
    Record(u8),
    /// An old process no longer accepts connections.
    StopListening(u8, u8),
    /// A client connects to the running process (2), or an old one.
    Connect(u8, u8),
    /// A request over a connection, which HAProxy sends to `a` if it can.
    Request(u8, u8),
    /// The request ends.
    Finish(u8, u8),
    /// The client closes its idle connection.
    Close(u8, u8),
    /// Time passes over the next limit.
    Time,
    /// Fault: someone restarts HAProxy by hand.
    Restart(u8),
    /// Fault: HAProxy dies, and supervisord starts it.
    Crash(u8),
    /// Fault: confgen dies, and systemd starts it.
    KillConfgen(u8),
    /// Fault: the host dies, and boots.
    Reboot(u8),
    /// Fault: the host is switched off for good, and the lease of its record ends.
    Retire(u8),
    /// confgen does all that it can at once. The second balancer does nothing else.
    Follow2,
    /// Fault: the watch breaks.
    Disconnect(u8),
    /// Fault: the lease of the balancer record ends, although HAProxy serves on.
    LoseRecord(u8),
    /// Fault: a write of the balancer record is delayed, and confgen gives up waiting for it.
    DelayRecord(u8),
    /// etcd carries the delayed write out.
    LateRecord(u8),
    /// Fault: someone enables the server over the Runtime API.
    EnableByHand(u8),
    /// Fault: etcd carries the announcer's write out, and the answer is lost.
    LoseAnswer,
    /// Fault: the announcer's write is delayed, and the announcer gives up waiting for it.
    Delay,
    /// etcd carries the delayed write out.
    LateWrite,
    /// The delayed write is lost.
    DropWrite,
    /// Fault: the announcer's lease ends.
    EndLease,
    /// The announcer has a new lease.
    NewLease,
    /// Fault: someone writes the record by hand.
    PutByHand,
    /// Fault: the store is wiped.
    Wipe,
}

/// The bounds of a run of the model.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Balancers: 1 or 2.
    pub balancers: u8,
    /// Faults, restarts by hand included.
    pub faults: u8,
    /// Requests of clients.
    pub requests: u8,
    /// Faults of balancers, HAProxy and confgen.
    pub host_faults: bool,
    /// Faults of the store and of the announcer's writes.
    pub store_faults: bool,
}
/// The steps of a fault-free run in their order. Time is last, so that nothing that a program can do waits for it.
const PROGRAM: [Step; 11] = [
    Step::DropWrite,
    Step::OwnKey,
    Step::NewLease,
    Step::Write,
    Step::Announce,
    Step::Withdraw,
    Step::Wait,
    Step::SeeRecords,
    Step::StopApp,
    Step::GiveUp,
    Step::Time,
];
const POLITE: &str = "(a) no request is lost by a polite stop";
const APPLIED: &str = "(b) an acknowledged revision is applied";
const WITHDRAWN: &str = "(d) a withdrawn record stays withdrawn";
const ATTEMPT: &str = "(g) an acknowledgement is of this attempt";
const QUIET: &str = "(h) all becomes quiet and in sync";

impl Model for Drain {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let settled = self.settle(self.cold());
        let requests = self.size.requests;
        vec![State { faults: self.size.faults, requests, ..settled }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.violated.is_some() {
            return;
        }
        steps.extend(PROGRAM);
        steps.extend([Step::Stop, Step::LateWrite]);
        for node in self.nodes() {
            if node == 0 {
                steps.extend(confgen_steps(node));
            } else {
                steps.push(Step::Follow2);
            }
            steps.push(Step::LateRecord(node));
            for at in 0..3 {
                steps.extend(client_steps(node, at));
                steps.extend([Step::Connect(node, at), Step::Request(node, at)]);
            }
        }
        // After the end only what is quiet counts, and that is checked from here.
        if state.faults == 0 || state.announcer.life == Life::Done {
            return;
        }
        for node in self.nodes().filter(|_| self.size.host_faults) {
            steps.extend([
                Step::Restart(node),
                Step::Crash(node),
                Step::KillConfgen(node),
                Step::Reboot(node),
                Step::Retire(node),
                Step::Disconnect(node),
                Step::LoseRecord(node),
                Step::DelayRecord(node),
                Step::EnableByHand(node),
            ]);
        }
        if self.size.store_faults {
            steps.extend([Step::LoseAnswer, Step::Delay, Step::EndLease, Step::PutByHand, Step::Wipe]);
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        self.apply(state, step)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(POLITE, |_: &Self, state: &State| state.violated != Some(POLITE)),
            Property::always(APPLIED, |_: &Self, state: &State| state.violated != Some(APPLIED)),
            Property::always(ATTEMPT, |_: &Self, state: &State| state.violated != Some(ATTEMPT)),
            Property::always(WITHDRAWN, |model: &Self, state: &State| {
                let is_over = state.announcer.life == Life::Done;
                let store = model.etcds.get(state.etcd);
                !is_over || store.get(RECORD).is_none_or(|entry| entry.lease == 0)
            }),
            Property::always(QUIET, Self::becomes_quiet),
        ]
    }
}

fn confgen_steps(node: u8) -> [Step; 8] {
    [
        Step::Observe(node),
        Step::Follow(node),
        Step::Reconcile(node),
        Step::EndPublish(node),
        Step::BeginPublish(node),
        Step::EndCount(node),
        Step::BeginCount(node),
        Step::Record(node),
    ]
}

fn client_steps(node: u8, at: u8) -> [Step; 3] {
    [Step::StopListening(node, at), Step::Finish(node, at), Step::Close(node, at)]
}

impl Drain {
    /// One round of a run without faults: each program does what it can, once. Requests end, and time passes.
    fn round(&self, mut state: State) -> State {
        let nodes = || self.nodes().flat_map(|node| (0..3).flat_map(move |at| client_steps(node, at)));
        let programs = self.nodes().flat_map(confgen_steps);
        for step in nodes().chain(programs).chain(PROGRAM) {
            state = self.apply(&state, step).unwrap_or(state);
        }
        state
    }

    fn settle(&self, mut state: State) -> State {
        for _ in 0..ROUNDS {
            let next = self.round(state);
            // A count that finds nothing new begins and ends for ever. A drain that is not over by then never is.
            if next == state {
                break;
            }
            state = next;
        }
        state
    }

    fn becomes_quiet(&self, state: &State) -> bool {
        state.violated.is_some() || self.good.check(state, |state| self.round(*state), |state| self.is_in_sync(state))
    }

    fn is_in_sync(&self, state: &State) -> bool {
        let store = self.etcds.get(state.etcd);
        let shown = Server::from_entry(store.get(RECORD));
        let is_over = matches!(state.announcer.life, Life::Announced | Life::Done);
        let all = state.balancers.iter().take(self.size.balancers.into());
        is_over
            && all.into_iter().all(|it| {
                let seen = self.look(it.brain);
                let is_followed = seen.applied == (store.cluster, store.revision) && it.record == seen.record;
                it.is_retired
                    || is_followed && it.running.a == seen.wanted && (store.cluster != 7 || seen.wanted == shown)
            })
    }
}

impl Checked for Drain {
    fn counts(&self) -> Counts {
        Counts { objects: self.brains.len() + self.writers.len(), calls: self.brain_steps.len() + self.rounds.len() }
    }
}

/// A quiet world is found within this many rounds.
const ROUNDS: usize = 60;
