//! Runs the models, and says what came out. Each seeded bug must be found, or the checker is no checker.

use std::collections::HashSet;
use std::fmt::{Debug, Write as _};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

use crate::claims::Claims;
use crate::drain::{Drain, Size};
use crate::guard::Guard;
use crate::slots::{Bounds, Slots};

/// A decision that is made wrongly on purpose: an input or a result of a production function is changed in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    /// The end of a drain doesn't wait for haproxy.cfg.
    SkipFile,
    /// An old process counts as one that is past every limit.
    SkipKeepAliveWait,
    /// Old processes aren't counted.
    ForgetOldProcesses,
    /// A balancer record of another cluster counts.
    AcceptOtherCluster,
    /// An acknowledgement of any revision counts.
    AcceptEarlier,
    /// A balancer whose key is gone is waited for.
    CountGoneBalancer,
    /// A late write is carried out if the record still has the announcer's lease.
    LateByLease,
    /// The announcer doesn't read its record again once all balancers have acknowledged.
    SkipRecheck,
    /// A balancer record under confgen's lease counts as the one that confgen wants there.
    RecordByLease,
    /// The lease is revoked before the record says `down`.
    RevokeFirst,
    /// A restart of confgen forgets what is retained since a reset.
    ForgetHeld,
    /// A lease that lives counts as dead, so that a deletion counts as an expiry.
    ExpiryForDeletion,
    /// An upstream that moved to another service is retained at its address.
    RetainMoved,
    /// A claim goes to the newer key.
    NewerClaim,
    /// The fence counts from etcd's answer, and not from the request.
    FenceByAnswer,
    /// A copy starts its app although its lease may have ended.
    StartLate,
    /// A slot that another copy holds counts as free.
    TakeTaken,
    /// A copy doesn't know that a deletion of its slot may still come.
    ForgetGivenUp,
}

impl Bug {
    /// The bug in a sentence, as the table and the page name it.
    pub fn describe(self) -> &'static str {
        match self {
            Self::SkipFile => "A drain ends although haproxy.cfg still has the server ready",
            Self::SkipKeepAliveWait => "A drain ends although a client of an old process may still send a request",
            Self::ForgetOldProcesses => "A drain ends without a look at old processes",
            Self::AcceptOtherCluster => "An acknowledgement of another cluster counts",
            Self::AcceptEarlier => "An acknowledgement from before the drain counts",
            Self::CountGoneBalancer => "A balancer without a key is waited for",
            Self::LateByLease => "A late write of `ready` replaces the `drain` that followed it",
            Self::SkipRecheck => "The announcer trusts acknowledgements without a look at its own record",
            Self::RecordByLease => "confgen takes an older balancer record for its own",
            Self::RevokeFirst => "The lease is revoked before the record is deleted",
            Self::ForgetHeld => "A restart of confgen forgets `held`",
            Self::ExpiryForDeletion => "A deletion counts as an expiry",
            Self::RetainMoved => "A moved address is retained",
            Self::NewerClaim => "A claim goes to the newer key",
            Self::FenceByAnswer => "The fence counts from the answer, not from the request",
            Self::StartLate => "A copy starts its app although its lease may have ended",
            Self::TakeTaken => "A copy takes a slot that another one holds",
            Self::ForgetGivenUp => "A copy starts its app on a slot whose late deletion is on its way",
        }
    }
}

/// The size of a model's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Every test run.
    Test,
    /// `make proof`.
    Proof,
}

/// The distinct production objects of a run, and the distinct calls of production functions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Objects.
    pub objects: usize,
    /// Calls.
    pub calls: usize,
}

/// A model that tells how much of the product it has called.
pub trait Checked: Model {
    /// The objects and calls so far.
    fn counts(&self) -> Counts;
}

/// The result of one run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The model's name.
    pub model: &'static str,
    /// `None` if the run is of the product as it is.
    pub bug: Option<Bug>,
    /// Distinct states.
    pub states: usize,
    /// The longest run from the beginning, in steps.
    pub depth: usize,
    /// The time that the search took.
    pub took: Duration,
    /// Production objects and calls.
    pub counts: Counts,
    /// Every state was visited. False if the time was over before.
    pub is_complete: bool,
    /// The violated property, and the steps to it. `None` if all properties hold.
    pub violation: Option<(&'static str, Vec<String>)>,
}

/// States from which a run without faults becomes quiet and in sync.
#[derive(Default)]
pub struct Continuation {
    good: [RwLock<HashSet<u64>>; 16],
}

impl Continuation {
    /// The set that has this fingerprint, or will have it.
    fn shard(&self, print: u64) -> Option<&RwLock<HashSet<u64>>> {
        self.good.get(usize::try_from(print % 16).ok()?)
    }

    fn is_known_as_good(&self, print: u64) -> bool {
        self.shard(print).is_some_and(|it| it.read().unwrap_or_else(PoisonError::into_inner).contains(&print))
    }

    /// Follows the run without faults from this state until it stays as it is, or until a state that was followed before.
    pub fn check<S: Clone + Hash + PartialEq>(
        &self,
        start: &S,
        round: impl Fn(&S) -> S,
        is_in_sync: impl Fn(&S) -> bool,
    ) -> bool {
        let (mut state, mut path) = (start.clone(), Vec::new());
        let mut is_good = false;
        for _ in 0..LONGEST {
            let print = hash(&state);
            if self.is_known_as_good(print) {
                is_good = true;
                break;
            }
            path.push(print);
            let next = round(&state);
            if next == state {
                is_good = is_in_sync(&state);
                break;
            }
            state = next;
        }
        if is_good {
            for print in path {
                if let Some(shard) = self.shard(print) {
                    shard.write().unwrap_or_else(PoisonError::into_inner).insert(print);
                }
            }
        }
        is_good
    }
}

/// A run that isn't quiet after this many rounds never becomes quiet.
const LONGEST: usize = 80;

fn hash(state: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

fn core_count() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The time limit of a search. A search that reaches it has proved nothing.
const LIMIT: Duration = Duration::from_secs(600);

/// Searches all states of a model, breadth first.
fn search<M>(name: &'static str, bug: Option<Bug>, model: M) -> Outcome
where
    M: Checked + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq + Send + Sync,
{
    let begun = Instant::now();
    // One thread finds the same shortest run each time.
    let threads = if bug.is_some() { 1 } else { core_count() };
    let builder = model.checker().threads(threads).finish_when(HasDiscoveries::Any).timeout(LIMIT);
    let checker = builder.spawn_bfs().join();
    let mut found: Vec<_> = checker.discoveries().into_iter().collect();
    // Of two violations at one depth the first by name is shown, so that the page stays the same.
    found.sort_by_key(|(name, path)| (path.clone().into_actions().len(), *name));
    let violation = found.into_iter().next().map(|(name, path)| {
        let steps = path.into_actions().iter().map(|step| format!("{step:?}")).collect();
        (name, steps)
    });
    Outcome {
        model: name,
        bug,
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        took: begun.elapsed(),
        counts: checker.model().counts(),
        is_complete: begun.elapsed() < LIMIT,
        violation,
    }
}

/// The models of the product as it is, by name.
pub const MODELS: [&str; 6] =
    ["drain, 1 balancer", "drain, 2 balancers", "claims", "guard", "slots, a stop", "slots, a fault"];

/// The run of one model of the product as it is.
pub fn check_product(model: &'static str, depth: Depth) -> Outcome {
    let large = depth == Depth::Proof;
    match model {
        "claims" => search(model, None, Claims::new(large, None)),
        "guard" => search(model, None, Guard::new(1, if large { 2 } else { 1 }, None)),
        "slots, a stop" => search(model, None, Slots::new(bounds(Bounds { stops: 1, ..QUIET }, large), None)),
        "slots, a fault" => search(model, None, Slots::new(bounds(ONE_FAULT, large), None)),
        "drain, 2 balancers" => {
            search(model, None, Drain::new(Size { balancers: 2, store_faults: false, ..SMALL }, None))
        }
        _ => search(model, None, Drain::new(Size { requests: u8::from(large), ..SMALL }, None)),
    }
}

/// One balancer, one fault, no client.
const SMALL: Size = Size { balancers: 1, faults: 1, requests: 0, host_faults: true, store_faults: true };

/// No fault, no stop.
const QUIET: Bounds = Bounds { faults: 0, stops: 0, last_revision: 6 };
const ONE_FAULT: Bounds = Bounds { faults: 1, ..QUIET };

/// A test has one revision less than the proof.
fn bounds(bounds: Bounds, is_large: bool) -> Bounds {
    Bounds { last_revision: bounds.last_revision - i64::from(!is_large), ..bounds }
}

/// The bugs, each in its model.
pub const BUGS: [Bug; 18] = [
    Bug::SkipFile,
    Bug::SkipKeepAliveWait,
    Bug::ForgetOldProcesses,
    Bug::AcceptOtherCluster,
    Bug::AcceptEarlier,
    Bug::CountGoneBalancer,
    Bug::LateByLease,
    Bug::SkipRecheck,
    Bug::RecordByLease,
    Bug::RevokeFirst,
    Bug::ForgetHeld,
    Bug::ExpiryForDeletion,
    Bug::RetainMoved,
    Bug::NewerClaim,
    Bug::FenceByAnswer,
    Bug::StartLate,
    Bug::TakeTaken,
    Bug::ForgetGivenUp,
];

/// The run of a seeded bug.
pub fn check_bug(bug: Bug) -> Outcome {
    let some = Some(bug);
    let drain = |size| search("drain, 1 balancer", some, Drain::new(size, some));
    match bug {
        Bug::SkipKeepAliveWait | Bug::ForgetOldProcesses => drain(Size { requests: 1, store_faults: false, ..SMALL }),
        // A lost lease has the record written again, and that write is delayed.
        Bug::LateByLease => drain(Size { faults: 2, host_faults: false, ..SMALL }),
        Bug::SkipFile
        | Bug::AcceptOtherCluster
        | Bug::AcceptEarlier
        | Bug::CountGoneBalancer
        | Bug::SkipRecheck
        | Bug::RecordByLease => drain(SMALL),
        // A wipe and a restart.
        Bug::ForgetHeld => search("guard", some, Guard::new(2, 3, some)),
        Bug::RevokeFirst | Bug::ExpiryForDeletion | Bug::RetainMoved => search("guard", some, Guard::new(1, 2, some)),
        Bug::NewerClaim => search("claims", some, Claims::new(false, some)),
        // The deletion is delayed.
        Bug::ForgetGivenUp => search("slots, a fault", some, Slots::new(ONE_FAULT, some)),
        Bug::FenceByAnswer | Bug::StartLate | Bug::TakeTaken => search("slots, a stop", some, Slots::new(QUIET, some)),
    }
}

/// The runs of several seeded bugs, in this order. As many run at once as there are cores.
pub fn check_bugs(bugs: &[Bug]) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..core_count() {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(bug) = bugs.get(at) else { return };
                    let outcome = check_bug(*bug);
                    found.lock().unwrap_or_else(PoisonError::into_inner).push((at, outcome));
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, outcome)| outcome).collect()
}

/// One line of the table.
pub fn format_line(outcome: &Outcome) -> String {
    let Outcome { model, bug, states, depth, took, counts, violation, .. } = outcome;
    let seed = bug.map_or("-".to_owned(), |bug| format!("{bug:?}"));
    let result = match violation {
        None if !outcome.is_complete => "not finished in time".to_owned(),
        None => "all properties hold".to_owned(),
        Some((property, steps)) => format!("violates {property} after {} steps", steps.len()),
    };
    let (seconds, calls) = (took.as_secs_f64(), counts.calls);
    format!("{model:<20} {seed:<20} {states:>9} states {depth:>4} deep {calls:>7} calls {seconds:>6.1} s  {result}")
}

/// The counterexample as a numbered sequence.
pub fn draw(outcome: &Outcome) -> String {
    let mut text = String::new();
    if let Some((property, steps)) = &outcome.violation {
        let _ = writeln!(text, "{property} is violated:\n");
        for (number, step) in steps.iter().enumerate() {
            let _ = writeln!(text, "{:>3}. {step}", number + 1);
        }
    }
    text
}
