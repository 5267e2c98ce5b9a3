//! Which tests run beside which: those that mostly wait share the machine, those that put load on it have it alone.

use std::fs::File;

use nix::fcntl::{Flock, FlockArg};

use crate::bins::folder;

/// A test's turn.
#[must_use = "the turn ends when this is dropped"]
pub struct Turn(#[expect(dead_code, reason = "held, never looked at")] Flock<File>);

/// Waits for the turn of a test that has the machine to itself: loads side by side measure each other.
pub fn heavy() -> Turn {
    turn(FlockArg::LockExclusive)
}

/// Waits for the turn of a test that others of its kind may run beside.
pub fn light() -> Turn {
    turn(FlockArg::LockShared)
}

/// In all test binaries that share the target directory. Whoever comes first is served first: a second lock keeps those
/// that share from overtaking, for ever, one that wants to be alone.
fn turn(kind: FlockArg) -> Turn {
    let _queue = lock("lab.queue", FlockArg::LockExclusive);
    Turn(lock("lab.lock", kind))
}

fn lock(name: &str, kind: FlockArg) -> Flock<File> {
    let path = folder().join(name);
    let file = File::create(&path).unwrap_or_else(|error| panic!("creating {}: {error}", path.display()));
    Flock::lock(file, kind).map_err(|(_, error)| error).expect("the lock of the tests' turns")
}
