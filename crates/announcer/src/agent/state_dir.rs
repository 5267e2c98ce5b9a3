//! The state directory: the number of the lease, the containers that stand by, and a lock against a second agent. It reads
//! nothing of etcd.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use registry::LeaseId;
use regular_file::Temporary;

/// A number of 16 hexadecimal digits and a line break are all that is written.
const LONGEST: u64 = 64;

/// The lease's file in the directory.
const LEASE: &str = "lease";

/// File with the ids of the containers that run or stand by for a slot, one a line.
const COPIES: &str = "copies";

/// 64 hexadecimal digits and a line break each, for more containers than a host has.
const LONGEST_COPIES: u64 = 1 << 20;

/// The lock's file. It is never removed, since another process may be about to lock it.
const LOCK: &str = "lock";

/// A state directory that this process has locked. The kernel releases the lock if the process dies.
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

/// A state directory that can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateDirError {
    #[error("can't {act} {}: {source}; give another --state-dir", path.display())]
    Io { act: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is in use by an agent that runs; stop that one, or give another --state-dir", .0.display())]
    InUse(PathBuf),
}

impl StateDir {
    /// Makes and locks the directory.
    pub(crate) fn open(path: &Path) -> Result<Self, StateDirError> {
        let fault = |act, path: &Path| {
            let path = path.to_owned();
            move |source| StateDirError::Io { act, path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fault("make", path))?;
        let lock = path.join(LOCK);
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock);
        match Flock::lock(file.map_err(fault("open", &lock))?, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => Ok(Self { path: path.to_owned(), _lock: locked }),
            Err((_, Errno::EWOULDBLOCK)) => Err(StateDirError::InUse(path.to_owned())),
            Err((_, errno)) => Err(fault("lock", &lock)(errno.into())),
        }
    }

    /// The lease of the last agent. `None` if there is none, or if the file can't be read, which costs at most a new lease.
    pub(crate) fn read_lease(&self) -> Option<LeaseId> {
        let path = self.path.join(LEASE);
        match regular_file::read_text(&path, LONGEST) {
            Ok(text) => parse_lease(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "can't read the last lease, taking a new one");
                None
            }
        }
    }

    /// Writes the lease's number in one step.
    pub(crate) fn write_lease(&self, lease: LeaseId) -> Result<(), StateDirError> {
        self.write_file(LEASE, &format!("{lease}\n"))
    }

    /// The containers that the last agent had run or stand by for a slot. Empty if that isn't known.
    pub(crate) fn read_copies(&self) -> BTreeSet<String> {
        let path = self.path.join(COPIES);
        match regular_file::read_text(&path, LONGEST_COPIES) {
            Ok(text) => text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => {
                let hint = "start those that should stand by";
                tracing::warn!(path = %path.display(), %error, hint, "can't read which stopped containers stand by");
                BTreeSet::new()
            }
        }
    }

    /// Writes the containers that run or stand by for a slot, in one step.
    pub(crate) fn write_copies(&self, ids: &BTreeSet<String>) -> Result<(), StateDirError> {
        self.write_file(COPIES, &ids.iter().map(|id| format!("{id}\n")).collect::<String>())
    }

    fn write_file(&self, name: &str, text: &str) -> Result<(), StateDirError> {
        let write = || -> io::Result<()> {
            let temporary = OsString::from(format!(".{name}.{}", std::process::id()));
            let mut file = Temporary::create(File::open(&self.path)?.into(), temporary)?;
            file.write([text.as_bytes()], 0o600)?;
            file.file().sync_all()?;
            file.rename_to(OsStr::new(name))
        };
        write().map_err(|source| StateDirError::Io { act: "write", path: self.path.join(name), source })
    }

    /// Forgets the lease, which has been revoked.
    pub(crate) fn remove_lease(&self) {
        // One that stays costs the next agent one request.
        let _ = fs::remove_file(self.path.join(LEASE));
    }
}

fn parse_lease(text: &str) -> Option<LeaseId> {
    i64::from_str_radix(text.trim(), 16).ok().filter(|number| *number > 0).map(LeaseId::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_read_back_and_garbage_is_none() {
        let folder = lab::Scratch::new();
        let path = folder.join("a/b");
        let state = StateDir::open(&path).unwrap();
        assert_eq!(state.read_lease(), None);
        state.write_lease(LeaseId::from(0x694d_77aa_9e38_260f)).unwrap();
        state.write_lease(LeaseId::from(7)).unwrap();
        assert_eq!(state.read_lease(), Some(LeaseId::from(7)));
        for garbage in ["", "x", "-1", "0", "ffffffffffffffffff", &"1".repeat(100)] {
            lab::write(path.join("lease"), garbage);
            assert_eq!(state.read_lease(), None, "{garbage}");
        }
        state.remove_lease();
        assert!(!path.join("lease").exists());
    }

    #[test]
    fn the_containers_that_stand_by_are_read_back() {
        let folder = lab::Scratch::new();
        let state = StateDir::open(&folder).unwrap();
        assert_eq!(state.read_copies(), BTreeSet::new());
        let ids = BTreeSet::from(["a".repeat(64), "b".repeat(64)]);
        state.write_copies(&ids).unwrap();
        assert_eq!(state.read_copies(), ids);
        state.write_copies(&BTreeSet::new()).unwrap();
        assert_eq!(state.read_copies(), BTreeSet::new());
    }

    #[test]
    fn a_second_agent_is_refused() {
        let folder = lab::Scratch::new();
        let first = StateDir::open(&folder).unwrap();
        assert!(matches!(StateDir::open(&folder), Err(StateDirError::InUse(_))));
        drop(first);
        StateDir::open(&folder).unwrap();
    }
}
