//! Where the project's own binaries are.

use std::env::current_exe;
use std::path::PathBuf;

/// The path of one of the workspace's binaries, built with the profile of the running test.
///
/// Cargo builds a package's binaries for that package's own integration tests only: those of other packages are as they
/// were last built.
///
/// # Panics
/// When it was never built.
pub fn bin(name: &str) -> PathBuf {
    let path = folder().join(name);
    assert!(path.is_file(), "{} is missing: run `cargo build --workspace --bins` first", path.display());
    path
}

/// `target/debug`, or whatever profile runs: tests lie in its `deps`, binaries in itself.
pub(crate) fn folder() -> PathBuf {
    let mut folder = current_exe().expect("the path of the running test");
    folder.pop();
    if folder.ends_with("deps") || folder.ends_with("examples") {
        folder.pop();
    }
    folder
}
