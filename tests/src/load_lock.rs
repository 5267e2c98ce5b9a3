//! Which tests run beside which: tests that mostly wait share the machine, a test that puts load on it has it alone.
//!
//! A test that needs the machine alone runs when no other test of its program is under way or waits to share it. So the
//! machine is never idle while the last of several tests ends, and the tests with a load come last.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{available_parallelism, current};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::bins::folder;

/// Tests for each core that may share the machine. They wait for leases, timeouts and restarts most of their time.
const SHARED_BY_CORE: usize = 3;

/// The tests of this program that share the machine, and those that wait to.
struct Sharing {
    running: usize,
    waiting: usize,
}

static SHARING: Mutex<Sharing> = Mutex::new(Sharing { running: 0, waiting: 0 });
static CHANGED: Condvar = Condvar::new();

/// A test's turn. Dropping it ends the turn, and prints how long the test waited for it and how long it took.
#[must_use = "the turn ends when this is dropped"]
pub struct Turn {
    is_alone: bool,
    waited: Duration,
    begun: Instant,
    _lock: Flock<File>,
}

/// Waits for the turn of a test that has the machine to itself: loads side by side measure each other.
pub fn heavy() -> Turn {
    let asked = Instant::now();
    // A test that begins to share from here on waits for the lock.
    drop(CHANGED.wait_while(sharing(), |it| it.running + it.waiting > 0));
    Turn::begin(true, asked, FlockArg::LockExclusive)
}

/// Waits for the turn of a test that others of its kind may run beside.
pub fn light() -> Turn {
    let asked = Instant::now();
    let most = SHARED_BY_CORE * available_parallelism().map_or(1, usize::from);
    let mut waits = sharing();
    waits.waiting += 1;
    let mut runs = CHANGED.wait_while(waits, |it| it.running >= most).unwrap_or_else(PoisonError::into_inner);
    runs.waiting -= 1;
    runs.running += 1;
    drop(runs);
    Turn::begin(false, asked, FlockArg::LockShared)
}

impl Turn {
    /// Takes the lock that all test programs of this target directory share.
    fn begin(is_alone: bool, asked: Instant, kind: FlockArg) -> Self {
        let path = folder().join("lab.lock");
        let file = File::create(&path).unwrap_or_else(|error| panic!("creating {}: {error}", path.display()));
        let lock = Flock::lock(file, kind).map_err(|(_, error)| error).expect("the lock of the tests' turns");
        Self { is_alone, waited: asked.elapsed(), begun: Instant::now(), _lock: lock }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let beside = if self.is_alone { "alone" } else { "shared" };
        let (waited, took) = (self.waited.as_secs_f64(), self.begun.elapsed().as_secs_f64());
        println!("turn: waited {waited:.1} s, had the machine {beside} for {took:.1} s");
        // libtest shows what a test has printed only if it fails.
        if let Some(path) = std::env::var_os("LAB_TURNS") {
            let line = format!("{beside}\t{waited:.1}\t{took:.1}\t{}\n", current().name().unwrap_or_default());
            let file = OpenOptions::new().create(true).append(true).open(path);
            let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
        }
        if !self.is_alone {
            sharing().running -= 1;
            CHANGED.notify_all();
        }
    }
}

/// A test that failed has left the numbers right: each turn counts itself out.
fn sharing() -> MutexGuard<'static, Sharing> {
    SHARING.lock().unwrap_or_else(PoisonError::into_inner)
}
