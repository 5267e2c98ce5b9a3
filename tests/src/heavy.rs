//! One heavy test at a time.

use std::fs::File;

use nix::fcntl::{Flock, FlockArg};

use crate::bins::folder;

/// Held by the test that has the machine's cores to itself.
#[must_use = "the turn ends when this is dropped"]
pub struct Heavy(#[expect(dead_code, reason = "held, never looked at")] Flock<File>);

/// Waits for this test's turn among the heavy ones, in all test binaries that share the target directory: tests under
/// load measure each other when cargo runs them side by side.
pub fn heavy() -> Heavy {
    let path = folder().join("lab.lock");
    let file = File::create(&path).unwrap_or_else(|error| panic!("creating {}: {error}", path.display()));
    Heavy(Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).expect("the lock of heavy tests"))
}
