//! For tests: a place of files, and HAProxy to check what is taken over from it.

#[cfg(test)]
mod docs;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use haproxy::check::Checker;

use crate::state_dir::replace_file;

/// A folder that goes with the test.
pub struct TempFiles(tempfile::TempDir);

impl TempFiles {
    /// One with these folders in it.
    pub fn with_folders(folders: &[&str]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        folders.iter().for_each(|name| fs::create_dir(place.path(name)).unwrap());
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        replace_file(&self.path(name), content.as_ref(), 0o600).unwrap();
    }
}

/// The real one.
pub fn new_checker() -> Checker {
    Checker::new("haproxy -c".parse().unwrap(), Duration::from_secs(10))
}
