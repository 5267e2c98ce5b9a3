//! The steps of a run: what they are, and how a seed chooses them. A step means something in every state, so that steps before it may
//! be dropped.

use std::fmt;

/// A kind of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The clock moves. `roll` chooses how far.
    Wait,
    /// A balancer's confgen does the work that is due.
    Confgen,
    /// A balancer's confgen gets the next message of its watch.
    Deliver,
    /// An announcer does the work that is due.
    Announcer,
    /// HAProxy checks all servers.
    Checks,
    /// A client opens a connection, sends a request, or ends one.
    Client,
    /// An operator writes a key.
    Write,
    /// An operator deletes a key.
    Delete,
    /// An operator writes a whole service in one transaction.
    WriteService,
    /// An operator accepts the store as it is.
    Accept,
    /// An announcer is told to stop, or is started again after that.
    StopOrStart,
    /// An app starts or stops to work.
    Health,
    /// An app that is told to stop ends.
    AppEnds,
    /// A fault: an app and its announcer are killed.
    KillAnnouncer,
    /// A fault: the answer to an announcer's next write is lost.
    LoseAnswer,
    /// A fault: a client of etcd is cut off, or is connected again.
    Partition,
    /// A fault: a watch ends.
    EndWatch,
    /// A fault: etcd compacts its history.
    Compact,
    /// A fault: all leases end at once.
    ExpireLeases,
    /// A fault: the store is wiped.
    Wipe,
    /// A fault: an older state of the store comes back.
    Restore,
    /// A fault: HAProxy refuses or loses one of the next commands.
    Complain,
    /// A fault: HAProxy crashes.
    CrashHaproxy,
    /// A fault: an operator restarts HAProxy.
    RestartByHand,
    /// A fault: an operator changes HAProxy over the Runtime API.
    ManualChange,
    /// A fault: HAProxy's next start fails.
    FailStart,
    /// A fault: confgen is killed, or starts again.
    KillConfgen,
    /// A fault: a value that must not be applied is written.
    Hostile,
}

/// One step. The numbers choose among what there is at its time.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Step {
    /// What happens.
    pub kind: Kind,
    /// The balancer, announcer or service that it concerns.
    pub actor: u8,
    /// All other choices.
    pub roll: u32,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} {}", self.kind, self.actor, self.roll)
    }
}

impl Step {
    /// Chooses one of `count` alternatives by the `part`th byte of the roll.
    pub fn choose(&self, part: u32, count: usize) -> usize {
        // Bytes of one roll are independent enough: no list has more than some twenty entries.
        usize::try_from((self.roll >> (part * 8)) & 0xff).unwrap_or_default() % count.max(1)
    }
}

/// What a seed decides about a whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// The number of balancers.
    pub balancers: usize,
    /// HAProxy can add backends while it runs (3.4).
    pub adds_backends: bool,
}

/// Steps of programs and of ordinary life, with their weights.
const LIFE: [(Kind, u32); 13] = [
    (Kind::Wait, 150),
    (Kind::Confgen, 260),
    (Kind::Deliver, 130),
    (Kind::Announcer, 130),
    (Kind::Checks, 20),
    (Kind::Client, 60),
    (Kind::Write, 40),
    (Kind::Delete, 8),
    (Kind::WriteService, 8),
    (Kind::Accept, 2),
    (Kind::StopOrStart, 14),
    (Kind::Health, 14),
    (Kind::AppEnds, 14),
];

/// Faults, with their weights. A seed takes about half of them.
const FAULTS: [(Kind, u32); 15] = [
    (Kind::KillAnnouncer, 6),
    (Kind::LoseAnswer, 4),
    (Kind::Partition, 8),
    (Kind::EndWatch, 6),
    (Kind::Compact, 3),
    (Kind::ExpireLeases, 3),
    (Kind::Wipe, 1),
    (Kind::Restore, 1),
    (Kind::Complain, 8),
    (Kind::CrashHaproxy, 3),
    (Kind::RestartByHand, 4),
    (Kind::ManualChange, 8),
    (Kind::FailStart, 3),
    (Kind::KillConfgen, 5),
    (Kind::Hostile, 8),
];

/// The setup and the steps of a seed.
pub fn generate(seed: u64, count: usize) -> (Setup, Vec<Step>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let setup = Setup { balancers: if random.u8(..4) == 0 { 2 } else { 1 }, adds_backends: random.bool() };
    // A run with few kinds of faults gets deeper into each than one with all.
    let faults = FAULTS.into_iter().filter(|_| random.bool());
    let weights: Vec<(Kind, u32)> = LIFE.into_iter().chain(faults).collect();
    let total: u32 = weights.iter().map(|(_, weight)| weight).sum();
    let steps = (0..count).map(|_| Step {
        kind: pick(&weights, random.u32(..total)),
        actor: random.u8(..),
        roll: random.u32(..),
    });
    (setup, steps.collect())
}

fn pick(weights: &[(Kind, u32)], mut at: u32) -> Kind {
    for (kind, weight) in weights {
        if at < *weight {
            return *kind;
        }
        at -= weight;
    }
    Kind::Wait
}
