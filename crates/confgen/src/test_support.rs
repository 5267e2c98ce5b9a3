//! Helpers for tests: a temporary folder, and HAProxy's own check.

#[cfg(test)]
mod docs;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use haproxy::check::Checker;

use crate::state_dir::replace_file;

/// A temporary folder. It is removed when this is dropped.
pub struct TempFiles(tempfile::TempDir);

impl TempFiles {
    /// A folder with these folders in it.
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

/// The check of the installed HAProxy.
pub fn new_checker() -> Checker {
    Checker::new("haproxy -c".parse().unwrap(), Duration::from_secs(10))
}
