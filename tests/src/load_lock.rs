//! Which tests run beside which. Tests that mostly wait share the machine, and a test whose figures need the machine has it
//! alone.
//!
//! Tests that wait to share begin before those that want the machine alone, so that it is never idle while the last of several
//! tests ends. A test that wants it alone sets up beside others first, where it can ([`heavy_on`]).

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{available_parallelism, current};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::bins::folder;

/// Shares of the machine for each core. Tests wait for leases, timeouts and restarts most of their time.
const SHARES_BY_CORE: usize = 3;

/// How often a test asks whether other programs share the machine.
const ASKED_AGAIN: Duration = Duration::from_millis(100);

/// So many tests may be set up while they wait to have the machine alone. Each has an etcd, a HAProxy and apps, which take about
/// a fiftieth of a core while they idle. More of them would show in the figures of the one that runs.
const PREPARED: usize = 3;

/// The tests of this program and what they wait for.
struct Turns {
    /// The shares that tests have now.
    shares: usize,
    /// Tests that wait for shares, in the order in which they get them.
    queue: BTreeSet<Place>,
    /// The tests that have waited for shares.
    asked: usize,
    /// Tests that are being set up, or that are set up and wait.
    prepared: usize,
    /// Those of the prepared tests that wait to have the machine alone.
    ready: usize,
    /// Tests that wait to begin their set-up.
    unprepared: usize,
    /// True while a test has the machine alone.
    is_taken: bool,
}

/// A test's place in the queue for shares: long tests come first. The other tests follow in the order of their requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    is_short: bool,
    number: usize,
}

impl Turns {
    /// A test that has the machine alone runs beside no other.
    fn has_shares(&self, shares: usize) -> bool {
        !self.is_taken && self.shares + shares <= count_shares()
    }

    fn queue_up(&mut self, is_short: bool) -> Place {
        let place = Place { is_short, number: self.asked };
        self.asked += 1;
        self.queue.insert(place);
        place
    }

    /// No test passes another one that asks for more shares. It would pass all of them.
    fn may_share(&self, place: Place, shares: usize) -> bool {
        self.queue.first() == Some(&place) && self.has_shares(shares)
    }

    /// A set-up begins while no test waits to share the machine, and no prepared test can take it alone.
    fn may_prepare(&self) -> bool {
        let is_ones_turn = self.shares == 0 && self.ready > 0;
        self.queue.is_empty() && !is_ones_turn && self.prepared < PREPARED && self.has_shares(1)
    }

    fn may_take(&self) -> bool {
        !self.is_taken && self.shares == 0
    }

    /// A test that isn't set up comes last of all.
    fn may_take_unprepared(&self) -> bool {
        self.may_take() && self.queue.len() + self.prepared + self.unprepared == 0
    }
}

impl Turns {
    const NONE: Self =
        Self { shares: 0, queue: BTreeSet::new(), asked: 0, prepared: 0, ready: 0, unprepared: 0, is_taken: false };
}

static TURNS: Mutex<Turns> = Mutex::new(Turns::NONE);
static CHANGED: Condvar = Condvar::new();

fn count_shares() -> usize {
    SHARES_BY_CORE * available_parallelism().map_or(1, usize::from)
}

/// What a turn gives back when it ends.
#[derive(Clone, Copy)]
enum Part {
    Shares(usize),
    Alone,
}

/// A test's turn. Dropping it ends the turn, and prints how long the test waited for it and how long it took.
#[must_use = "the turn ends when this is dropped"]
pub struct Turn {
    part: Part,
    waited: Duration,
    begun: Instant,
    _lock: Flock<File>,
}

/// Waits for the turn of a test that mostly waits.
pub fn light() -> Turn {
    wait_for_shares(1, true)
}

/// Waits for the same turn for a test that takes more than 20 s. Such tests begin before others, so that none of them keeps the
/// machine from those that want it alone when all others are over.
pub fn long() -> Turn {
    wait_for_shares(1, false)
}

/// Waits for the turn of a test that works one core at times, and whose figures are right beside others too: counts, not times.
/// It takes a third of the shares.
pub fn medium() -> Turn {
    wait_for_shares(count_shares() / 3, true)
}

/// Waits for the turn of a test that has the machine to itself: loads side by side measure each other.
pub fn heavy() -> Turn {
    Turn::wait_alone(Turns::may_take_unprepared)
}

/// Waits for the same turn with the set-up done. The set-up runs beside other tests, and what it makes must bear the wait.
pub fn heavy_on<T>(set_up: impl FnOnce() -> T) -> (Turn, T) {
    let asked = Instant::now();
    let mut turns = lock_turns();
    turns.unprepared += 1;
    let mut turns = wait_while(turns, |turns| !turns.may_prepare());
    turns.unprepared -= 1;
    turns.prepared += 1;
    turns.shares += 1;
    drop(turns);
    let mut prepared = Prepared { is_ready: false };
    let sharing = Turn::begin_shared(1, asked);
    let ground = set_up();
    drop(sharing);
    prepared.set_ready();
    (Turn::wait_alone(Turns::may_take), ground)
}

fn wait_for_shares(shares: usize, is_short: bool) -> Turn {
    let asked = Instant::now();
    let mut turns = lock_turns();
    let place = turns.queue_up(is_short);
    let mut turns = wait_while(turns, |turns| !turns.may_share(place, shares));
    turns.queue.remove(&place);
    turns.shares += shares;
    drop(turns);
    // Another one is the first now, or none waits, for which a set-up may wait.
    CHANGED.notify_all();
    Turn::begin_shared(shares, asked)
}

/// A test that is being set up, or that is set up and waits. Dropping this counts it out.
struct Prepared {
    is_ready: bool,
}

impl Prepared {
    fn set_ready(&mut self) {
        lock_turns().ready += 1;
        self.is_ready = true;
        CHANGED.notify_all();
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let mut turns = lock_turns();
        turns.prepared -= 1;
        turns.ready -= usize::from(self.is_ready);
        drop(turns);
        CHANGED.notify_all();
    }
}

impl Turn {
    /// Begins a turn that has been counted.
    fn begin_shared(shares: usize, asked: Instant) -> Self {
        let lock = take_lock(FlockArg::LockShared).expect("the lock of the tests' turns");
        Self { part: Part::Shares(shares), waited: asked.elapsed(), begun: Instant::now(), _lock: lock }
    }

    /// Waits to have the machine alone. Tests of this program may go on to share it while another program does.
    fn wait_alone(may_take: fn(&Turns) -> bool) -> Self {
        let asked = Instant::now();
        let mut turns = lock_turns();
        loop {
            turns = wait_while(turns, |turns| !may_take(turns));
            if let Ok(lock) = take_lock(FlockArg::LockExclusiveNonblock) {
                turns.is_taken = true;
                return Self { part: Part::Alone, waited: asked.elapsed(), begun: Instant::now(), _lock: lock };
            }
            let waited = CHANGED.wait_timeout(turns, ASKED_AGAIN);
            turns = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Takes the lock that all test programs of this target directory share.
fn take_lock(kind: FlockArg) -> nix::Result<Flock<File>> {
    let path = folder().join("lab.lock");
    let file = File::create(&path).unwrap_or_else(|error| panic!("creating {}: {error}", path.display()));
    Flock::lock(file, kind).map_err(|(_, error)| error)
}

impl Drop for Turn {
    fn drop(&mut self) {
        let beside = if matches!(self.part, Part::Alone) { "alone" } else { "shared" };
        let (waited, took) = (self.waited.as_secs_f64(), self.begun.elapsed().as_secs_f64());
        println!("turn: waited {waited:.1} s, had the machine {beside} for {took:.1} s");
        // libtest shows what a test has printed only if it fails.
        if let Some(path) = std::env::var_os("LAB_TURNS") {
            let line = format!("{beside}\t{waited:.1}\t{took:.1}\t{}\n", current().name().unwrap_or_default());
            let file = OpenOptions::new().create(true).append(true).open(path);
            let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
        }
        let mut turns = lock_turns();
        match self.part {
            Part::Shares(shares) => turns.shares -= shares,
            Part::Alone => turns.is_taken = false,
        }
        drop(turns);
        CHANGED.notify_all();
    }
}

/// A test that failed has left the numbers right: each turn counts itself out.
fn lock_turns() -> MutexGuard<'static, Turns> {
    TURNS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait_while(turns: MutexGuard<'static, Turns>, mut holds: impl FnMut(&Turns) -> bool) -> MutexGuard<'static, Turns> {
    CHANGED.wait_while(turns, |turns| holds(turns)).unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns with so many tests in the queue.
    fn queued(count: usize) -> Turns {
        let mut turns = Turns::NONE;
        (0..count).for_each(|_| _ = turns.queue_up(true));
        turns
    }

    #[test]
    fn a_test_that_has_the_machine_alone_runs_beside_no_other() {
        let taken = Turns { is_taken: true, ..Turns::NONE };
        assert!(!taken.has_shares(1) && !taken.may_prepare() && !taken.may_take() && !taken.may_take_unprepared());
        let shared = Turns { shares: 1, ready: 1, prepared: 1, ..Turns::NONE };
        assert!(shared.has_shares(1) && !shared.may_take());
        assert!(!shared.has_shares(count_shares()), "there are no more shares");
    }

    #[test]
    fn long_tests_share_first_and_none_passes_one_that_asks_for_more() {
        let mut turns = Turns { shares: count_shares() - 1, ..Turns::NONE };
        let short = turns.queue_up(true);
        assert!(turns.may_share(short, 1) && !turns.may_share(short, 2));
        let long = turns.queue_up(false);
        assert!(turns.may_share(long, 1) && !turns.may_share(short, 1));
        turns.queue.remove(&long);
        let last = turns.queue_up(true);
        assert!(!turns.may_share(last, 1), "the one before wants two shares");
    }

    #[test]
    fn a_test_that_is_set_up_goes_before_the_next_set_up() {
        let ready = || Turns { prepared: 1, ready: 1, unprepared: 1, ..Turns::NONE };
        assert!(ready().may_take() && !ready().may_prepare() && !ready().may_take_unprepared());
        let busy = Turns { shares: 1, ..ready() };
        assert!(!busy.may_take() && busy.may_prepare());
    }

    #[test]
    fn a_set_up_comes_after_those_who_share_and_a_test_without_one_last() {
        assert!(!queued(1).may_prepare() && Turns::NONE.may_prepare());
        let full = Turns { prepared: PREPARED, shares: 1, ..Turns::NONE };
        assert!(!full.may_prepare() && full.has_shares(1));
        for other in [queued(1), Turns { prepared: 1, ..Turns::NONE }, Turns { unprepared: 1, ..Turns::NONE }] {
            assert!(!other.may_take_unprepared());
        }
        assert!(Turns::NONE.may_take_unprepared());
    }
}
