//! The directory beside the socket in which starts meet: who is the latest, the lock, the masters' sockets.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use haproxy::masters::{self, SUFFIX};
use haproxy::runtime::{self, Socket};
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Group;

use crate::haproxys::{self, Haproxy};

/// How often a held lock is asked for again.
const LOCK_TICK: Duration = Duration::from_millis(20);

/// How long a master may take to show that it lives.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// The file that holds the name of the latest start.
const LATEST: &str = "latest";

/// `handover/` beside the runtime socket.
#[derive(Debug)]
pub(crate) struct Place {
    socket: PathBuf,
    dir: PathBuf,
}

/// Held while HAProxys change hands: one start, or one watchdog, at a time.
pub(crate) struct Lock(
    #[expect(dead_code, reason = "it is let go by being dropped, or by the process' death")] Flock<File>,
);

impl Place {
    /// Opens, or makes, the directory of that socket. Who reaches a master's socket commands its HAProxy: that is
    /// the owner, and the group if one is named.
    pub(crate) fn open(socket: &Path, group: Option<&Group>) -> anyhow::Result<Self> {
        let dir = masters::directory(socket);
        let make = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            if let Some(group) = group {
                chown(&dir, None, Some(group.gid.as_raw()))?;
                fs::set_permissions(&dir, Permissions::from_mode(0o750))?;
            }
            Ok::<_, io::Error>(())
        };
        make().with_context(|| format!("can't make the directory {}", dir.display()))?;
        Ok(Self { socket: socket.to_owned(), dir })
    }

    /// The socket of a start's master.
    pub(crate) fn master_socket(&self, start: &str) -> PathBuf {
        self.dir.join(format!("{start}{SUFFIX}"))
    }

    /// Makes this process the latest start, which calls off every watchdog, and names it.
    pub(crate) fn announce(&self) -> anyhow::Result<String> {
        let start = new_start();
        write_whole(&self.dir.join(LATEST), &start, 0o600)?;
        Ok(start)
    }

    /// Whether no start has been made since that one.
    pub(crate) fn is_latest(&self, start: &str) -> bool {
        fs::read_to_string(self.dir.join(LATEST)).is_ok_and(|latest| latest == start)
    }

    /// Waits until nobody else is handing over.
    pub(crate) fn lock(&self, patience: Duration) -> anyhow::Result<Lock> {
        let deadline = Instant::now() + patience;
        let failed = || format!("can't lock {}", self.dir.display());
        let mut dir = File::open(&self.dir).with_context(failed)?;
        loop {
            match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Lock(lock)),
                Err((_, errno)) if errno != nix::errno::Errno::EWOULDBLOCK => {
                    return Err(io::Error::from(errno)).with_context(failed);
                }
                Err(_) if Instant::now() >= deadline => {
                    bail!("another start has been handing over in {} for {patience:?}", self.dir.display());
                }
                Err((again, _)) => dir = again,
            }
            std::thread::sleep(LOCK_TICK);
        }
    }

    /// Every HAProxy of this socket that lives; what dead ones left here is removed.
    pub(crate) fn haproxys(&self) -> Vec<Haproxy> {
        // Listed before the scan: a file of a start that begins in between isn't in it.
        let files: Vec<_> = fs::read_dir(&self.dir).into_iter().flatten().flatten().collect();
        let alive = haproxys::all(&self.socket);
        for file in files {
            let name = file.file_name();
            // HAProxy binds under a temporary name that begins with the final one.
            let owner = name.to_str().and_then(|name| name.split_once(SUFFIX)).map(|(start, _)| start);
            let dead = owner.is_some_and(|owner| alive.iter().all(|haproxy| haproxy.start != owner));
            if dead && nobody_listens(&file.path()) {
                let _ = fs::remove_file(file.path());
            }
        }
        alive
    }
}

/// Whether a socket is left over. One of another pid namespace bears no mark that is seen here, but answers.
fn nobody_listens(socket: &Path) -> bool {
    matches!(Socket::new(socket).with_timeout(ANSWER_TIMEOUT).info(), Err(runtime::Error::Absent { .. }))
}

/// A name that no other start has: the time in milliseconds, and the process.
fn new_start() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{}", now.as_millis(), std::process::id())
}

/// Writes a file so that nobody ever sees half of it.
pub(crate) fn write_whole(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(text.as_bytes())?;
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, Place) {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::open(&dir.path().join("admin.sock"), None).unwrap();
        (dir, place)
    }

    #[test]
    fn the_latest_start_is_one() {
        let (_dir, place) = place();
        let first = place.announce().unwrap();
        assert!(place.is_latest(&first));
        std::thread::sleep(Duration::from_millis(2));
        let second = place.announce().unwrap();
        assert!(!place.is_latest(&first) && place.is_latest(&second));
    }

    #[test]
    fn the_lock_has_one_holder() {
        let (_dir, place) = place();
        let held = place.lock(Duration::ZERO).unwrap();
        let error = place.lock(Duration::from_millis(50)).map(drop).unwrap_err();
        assert!(error.to_string().contains("another start"), "{error}");
        drop(held);
        drop(place.lock(Duration::ZERO).unwrap());
    }

    #[test]
    fn only_its_owner_looks_in_and_dead_sockets_go() {
        let (_dir, place) = place();
        assert_eq!(fs::metadata(&place.dir).unwrap().permissions().mode() & 0o777, 0o700);
        place.announce().unwrap();
        let dead = place.master_socket("dead");
        File::create(&dead).unwrap();
        assert_eq!(place.haproxys(), []);
        assert!(!dead.exists());
        assert!(place.dir.join(LATEST).exists());
    }
}
