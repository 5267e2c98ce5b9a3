//! Stamps of files: they tell whether a file is the one that this process wrote. An operator may have removed, replaced or edited it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Error, io_error};

/// The facts about a file that each replacement changes, and each edit of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    /// In bytes.
    pub length: u64,
    /// The time of the last change, in seconds since 1970 and nanoseconds.
    changed_at: (i64, i64),
}

impl Stamp {
    pub fn read(path: &Path) -> Result<Self, Error> {
        let found = fs::metadata(path).map_err(io_error("read", path))?;
        let changed_at = (found.mtime(), found.mtime_nsec());
        Ok(Self { device: found.dev(), inode: found.ino(), length: found.len(), changed_at })
    }
}

/// The stamps of a file as this process wrote it. Clones share them. So the observer of the files tells an operator's edit from what
/// confgen wrote.
#[derive(Clone, Debug, Default)]
pub struct OwnFile(Arc<Mutex<[Option<Stamp>; 2]>>);

impl OwnFile {
    /// Notes the stamp of a file that is about to be put in place, or that has the right content. The one before counts until the next
    /// call, because the file on disk has it until the rename.
    pub fn note(&self, stamp: Stamp) {
        let mut stamps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [last, _] = *stamps;
        if last != Some(stamp) {
            *stamps = [Some(stamp), last];
        }
    }

    /// True if the file is as this process wrote it.
    pub fn is_at(&self, path: &Path) -> bool {
        let stamps = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Stamp::read(path).is_ok_and(|found| stamps.contains(&Some(found)))
    }
}
