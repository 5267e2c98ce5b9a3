//! The directory that all starts for one socket share: the latest start's name, the lock, the masters' sockets, the
//! reason of the last failed start.
//!
//! It is beside the runtime socket. If a lesser user can change that place, root uses a protected directory instead.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use haproxy::cutoffs::{self, Cutoffs};
use haproxy::failure;
use haproxy::masters::{self, SUFFIX};
use haproxy::runtime::{self, Socket};
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Group, geteuid};
use program::text::describe_error;

use crate::directory::{Directory, Missing};
use crate::processes;
use crate::processes::Haproxy;

/// The interval between two attempts to get the lock.
const LOCK_TICK: Duration = Duration::from_millis(20);

/// The time limit for a master's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// The file with the name of the latest start.
const LATEST: &str = "latest";

/// The runtime socket, and the directory that it is in.
#[derive(Debug)]
pub(crate) struct RuntimeSocket {
    /// Absolute, and without links on the way to its directory. HAProxys bear this text as their mark.
    pub(crate) path: PathBuf,
    dir: Directory,
}

/// The shared directory of the starts for one runtime socket.
#[derive(Debug)]
pub(crate) struct RunDir {
    socket: PathBuf,
    dir: Directory,
    /// The directory of an earlier release. That release's watchdog looks there for a successor.
    earlier_dir: Option<Directory>,
    /// The id of the group that may ask the masters. `None` for no group.
    group: Option<u32>,
}

/// The lock of a takeover. One start, or one watchdog, holds it at a time.
pub(crate) struct Lock(
    #[expect(dead_code, reason = "its drop releases the lock, and so does the process' death")] Flock<File>,
);

/// A HAProxy's state, by the answer of its master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MasterAnswer {
    /// It takes new connections.
    Listening,
    /// It takes no new connections, or has no worker left.
    NotListening,
    /// Its master or a worker doesn't answer in time.
    Silent,
}

/// The client connections of a HAProxy, by the answer of its master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// The connections of all its workers.
    Connections(u64),
    /// The master answers, and a worker doesn't.
    WorkerSilent,
    /// The master doesn't answer, or has no socket here.
    MasterSilent,
}

impl RuntimeSocket {
    /// Resolves the socket's directory, and makes it if it is missing. Links are resolved, so that `/var/run` and
    /// `/run` give the same path.
    pub(crate) fn find(path: &Path) -> anyhow::Result<Self> {
        let name = path.file_name().with_context(|| format!("{} names no socket", path.display()))?;
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let dir = Directory::open(parent, Missing::Create(0o755))
            .with_context(|| format!("can't open the directory {}", parent.display()))?;
        Ok(Self { path: dir.path().join(name), dir })
    }
}

impl RunDir {
    /// Opens the directory of that socket, or makes it. A user that reaches a master's socket commands its HAProxy. So
    /// the directory admits its owner and, unless it is `None`, that group.
    pub(crate) fn open(socket: &RuntimeSocket, group: Option<&Group>) -> anyhow::Result<Self> {
        let beside = masters::nested_directory(&socket.path);
        let is_protected = geteuid().is_root() && !socket.dir.is_private();
        let protected = masters::protected_directory(&socket.path).filter(|_| is_protected);
        let path = protected.as_ref().unwrap_or(&beside);
        let group = group.map(|group| group.gid.as_raw());
        let dir = open_exclusive(path, group).with_context(|| format!("can't use the directory {}", path.display()))?;
        let older = protected.as_ref().and_then(|_| Directory::open(&beside, Missing::Fail).ok());
        let older = older.filter(|older| older.is_exclusive().unwrap_or_default());
        Ok(Self { socket: socket.path.clone(), dir, earlier_dir: older, group })
    }

    /// The path of the socket of a start's master.
    pub(crate) fn master_socket(&self, start: &str) -> PathBuf {
        self.dir.path().join(format!("{start}{SUFFIX}"))
    }

    /// Makes that start the latest one. The watchdog of every earlier start then ends.
    pub(crate) fn announce_start(&self, start: &str) -> anyhow::Result<()> {
        // Write the earlier release's file first. Its watchdog ends every HAProxy without asking supervisord.
        if let Some(Err(error)) = self.earlier_dir.as_ref().map(|dir| write_latest(dir, start)) {
            tracing::warn!(error = %describe_error(error.as_ref()), "can't announce this start to an earlier release's watchdog");
        }
        write_latest(&self.dir, start)
    }

    /// True if no start has been announced after that one.
    pub(crate) fn is_latest(&self, start: &str) -> bool {
        self.dir.read_file(LATEST).is_ok_and(|latest| latest == start)
    }

    /// Writes the reason of a failed start, which confgen shows. An empty text says that the last start succeeded.
    pub(crate) fn write_failure(&self, reason: &str) {
        if let Err(error) = self.dir.overwrite_file(failure::FILE, &failure::encode_message(reason), 0o640, self.group)
        {
            // confgen then shows the end of the program's log.
            tracing::debug!(path = %self.dir.path().join(failure::FILE).display(), %error, "can't write the failure file");
        }
    }

    /// Waits for the lock, at most for `patience`.
    pub(crate) fn lock_within(&self, patience: Duration) -> anyhow::Result<Lock> {
        let deadline = Instant::now() + patience;
        let failure = format!("can't lock {}", self.dir.path().display());
        let mut dir = self.dir.reopen().context(failure.clone())?;
        // flock(2) has no time limit of its own.
        loop {
            match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Lock(lock)),
                Err((_, errno)) if errno != nix::errno::Errno::EWOULDBLOCK => {
                    return Err(io::Error::from(errno)).context(failure);
                }
                Err(_) if Instant::now() >= deadline => {
                    bail!("another start has been handing over in {} for {patience:?}", self.dir.path().display());
                }
                Err((again, _)) => dir = again,
            }
            std::thread::sleep(LOCK_TICK);
        }
    }

    /// Lists every living HAProxy of this socket, and removes the sockets of dead ones.
    pub(crate) fn list_haproxys(&self) -> Vec<Haproxy> {
        // List the files before the scan. A start may begin in between, and this must not take its socket for that of a
        // dead HAProxy.
        let files: Vec<_> = self
            .all_dirs()
            .flat_map(|dir| dir.list_names().into_iter().flatten().map(move |name| (dir, name)))
            .collect();
        let alive = processes::find_all(&self.socket);
        for (dir, name) in files {
            // HAProxy binds under a temporary name that begins with the final one.
            let owner = name.to_str().and_then(|name| name.split_once(SUFFIX)).map(|(start, _)| start);
            let dead = owner.is_some_and(|owner| alive.iter().all(|haproxy| haproxy.start != owner));
            if dead && is_left_behind(&dir.path().join(&name)) {
                let _ = dir.remove_file(&name);
            }
        }
        alive
    }

    /// Lists the HAProxy of that start, if it lives.
    pub(crate) fn list_of(&self, start: &str) -> Vec<Haproxy> {
        self.list_haproxys().into_iter().filter(|haproxy| haproxy.start == start).collect()
    }

    /// Lists the HAProxys of all other starts.
    pub(crate) fn list_all_but(&self, start: &str) -> Vec<Haproxy> {
        self.list_haproxys().into_iter().filter(|haproxy| haproxy.start != start).collect()
    }

    /// True if the HAProxy of that start takes new connections, by its own master's answer.
    pub(crate) fn is_serving(&self, start: &str) -> bool {
        let workers = masters::list_workers_of(&self.master_socket(start)).unwrap_or_default();
        workers.iter().any(|worker| worker.show_info().is_ok_and(|info| !info.stopping))
    }

    /// Counts one more HAProxy that was cut off, with so many connections. confgen shows the counters.
    pub(crate) fn count_cutoff(&self, connections: u64) {
        let counted = Cutoffs::parse(&self.dir.read_file(cutoffs::FILE).unwrap_or_default()).with_another(connections);
        if let Err(error) = self.dir.overwrite_file(cutoffs::FILE, counted.encode().as_bytes(), 0o640, self.group) {
            tracing::warn!(path = %self.dir.path().join(cutoffs::FILE).display(), %error, "can't count a HAProxy that is cut off");
        }
    }

    /// Counts the client connections of a HAProxy over its master.
    pub(crate) fn measure_load(&self, haproxy: &Haproxy) -> Load {
        let workers = self.find_master_socket(haproxy).map(|socket| masters::list_workers_of(&socket));
        let Some(Ok(workers)) = workers else { return Load::MasterSilent };
        let answers: Result<Vec<_>, _> = workers.iter().map(masters::Worker::show_info).collect();
        answers.map_or(Load::WorkerSilent, |infos| Load::Connections(infos.iter().map(|info| info.connections).sum()))
    }

    fn find_master_socket(&self, haproxy: &Haproxy) -> Option<PathBuf> {
        let name = format!("{}{SUFFIX}", haproxy.start);
        self.all_dirs().map(|dir| dir.path().join(&name)).find(|socket| socket.exists())
    }

    /// Asks a HAProxy over its master. Without a master's socket here, only SIGUSR1 can tell it to finish. So it counts as
    /// `NotListening` unless a signal has stopped it.
    pub(crate) fn ask_master(&self, haproxy: &Haproxy) -> MasterAnswer {
        let Some(socket) = self.find_master_socket(haproxy) else {
            return if haproxy.is_stopped() { MasterAnswer::Silent } else { MasterAnswer::NotListening };
        };
        let Ok(workers) = masters::list_workers_of(&socket) else { return MasterAnswer::Silent };
        let answers: Vec<_> = workers.iter().map(masters::Worker::show_info).collect();
        if answers.iter().any(Result::is_err) {
            MasterAnswer::Silent
        } else if answers.iter().flatten().any(|info| !info.stopping) {
            MasterAnswer::Listening
        } else {
            MasterAnswer::NotListening
        }
    }

    fn all_dirs(&self) -> impl Iterator<Item = &Directory> {
        [&self.dir].into_iter().chain(&self.earlier_dir)
    }
}

fn write_latest(dir: &Directory, start: &str) -> anyhow::Result<()> {
    dir.replace_file(OsStr::new(LATEST), start, 0o600)
        .with_context(|| format!("can't write {}", dir.path().join(LATEST).display()))
}

/// Opens the directory, or makes it, and ensures that only this process's user or root can change it.
fn open_exclusive(path: &Path, group: Option<u32>) -> anyhow::Result<Directory> {
    let dir = Directory::open(path, Missing::Create(0o700))?;
    let (owner, me) = (dir.owner_uid()?, geteuid().as_raw());
    ensure!(
        owner == me || owner == 0,
        "it belongs to the user with the number {owner}, who can change it: remove it, and handover makes its own"
    );
    if owner == me {
        match group {
            Some(group) => dir.set_access(0o750, Some(group))?,
            None if !dir.is_exclusive()? => dir.set_access(0o700, None)?,
            None => {}
        }
    }
    Ok(dir)
}

/// True if no process listens on the socket. A HAProxy of another pid namespace shows no mark here, but it answers.
fn is_left_behind(socket: &Path) -> bool {
    matches!(Socket::new(socket).with_timeout(ANSWER_TIMEOUT).show_info(), Err(runtime::Error::Absent { .. }))
}

/// A name that no other start has: the time in milliseconds and the process id, in a form that a file's name can hold.
pub(crate) fn new_start_name() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{}", now.as_millis(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn open(dir: &tempfile::TempDir) -> anyhow::Result<RunDir> {
        RunDir::open(&RuntimeSocket::find(&dir.path().join("run/admin.sock"))?, None)
    }

    fn place() -> (tempfile::TempDir, RunDir) {
        let dir = tempfile::tempdir().unwrap();
        let place = open(&dir).unwrap();
        (dir, place)
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_latest_start_is_one() {
        let (_dir, place) = place();
        place.announce_start("first").unwrap();
        assert!(place.is_latest("first"));
        place.announce_start("second").unwrap();
        assert!(!place.is_latest("first") && place.is_latest("second"));
    }

    #[test]
    fn the_lock_has_one_holder() {
        let (_dir, place) = place();
        let held = place.lock_within(Duration::ZERO).unwrap();
        let error = place.lock_within(Duration::from_millis(50)).map(drop).unwrap_err();
        assert!(error.to_string().contains("another start"), "{error}");
        drop(held);
        drop(place.lock_within(Duration::ZERO).unwrap());
    }

    #[test]
    fn only_its_owner_looks_in_and_dead_sockets_go() {
        let (_dir, place) = place();
        assert_eq!(fs::metadata(place.dir.path()).unwrap().permissions().mode() & 0o777, 0o700);
        place.announce_start("first").unwrap();
        let dead = place.master_socket("dead");
        File::create(&dead).unwrap();
        assert_eq!(place.list_haproxys(), []);
        assert!(!dead.exists());
        assert!(place.dir.path().join(LATEST).exists());
    }

    #[test]
    fn words_are_left_and_taken_back() {
        let (dir, place) = place();
        let socket = dir.path().canonicalize().unwrap().join("run/admin.sock");
        let left = || failure::read_message(&socket, SystemTime::UNIX_EPOCH);
        place.write_failure("no space left");
        assert_eq!(left().as_deref(), Some("no space left"));
        place.write_failure("");
        assert_eq!(left(), None);
    }

    #[test]
    fn cutoffs_add_up() {
        let (dir, place) = place();
        let socket = dir.path().canonicalize().unwrap().join("run/admin.sock");
        place.count_cutoff(3);
        place.count_cutoff(4);
        let counted = cutoffs::read_cutoffs(&socket);
        assert_eq!((counted.processes, counted.connections), (2, 7));
    }

    #[test]
    fn root_has_a_directory_of_its_own_if_others_can_change_the_sockets() {
        if !geteuid().is_root() {
            return;
        }
        let (dir, place) = place();
        let path = dir.path().canonicalize().unwrap();
        assert_eq!(place.dir.path(), path.join("run/handover"));
        set_mode(&path.join("run"), 0o777);
        let place = open(&dir).unwrap();
        assert_eq!(place.dir.path(), path.join("run-handover"));
        // A watchdog of an earlier release looks for its successor in the earlier directory.
        place.announce_start("next").unwrap();
        let latest = |name: &str| fs::read_to_string(path.join(name).join(LATEST)).unwrap();
        assert_eq!((latest("run-handover"), latest("run/handover")), ("next".into(), "next".into()));
    }

    #[test]
    fn root_neither_follows_nor_changes_what_others_put_there() {
        if !geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        for name in ["run", "secret"] {
            fs::create_dir(path.join(name)).unwrap();
            set_mode(&path.join(name), 0o755);
        }
        set_mode(&path.join("run"), 0o777);
        let secret = || {
            let it = fs::metadata(path.join("secret")).unwrap();
            (it.mode(), it.uid(), it.gid(), fs::read_dir(path.join("secret")).unwrap().count())
        };
        let before = secret();
        symlink(path.join("secret"), path.join("run/handover")).unwrap();
        let group = Group::from_name("nogroup").unwrap();
        let socket = RuntimeSocket::find(&path.join("run/admin.sock")).unwrap();
        let place = RunDir::open(&socket, group.as_ref()).unwrap();
        place.announce_start("first").unwrap();
        place.write_failure("words");
        assert_eq!(secret(), before);
        assert!(place.earlier_dir.is_none());
        // The same holds for a directory of a lesser user.
        fs::remove_file(path.join("run/handover")).unwrap();
        fs::create_dir(path.join("run/handover")).unwrap();
        std::os::unix::fs::chown(path.join("run/handover"), Some(65534), None).unwrap();
        assert!(open(&dir).unwrap().earlier_dir.is_none());
        std::os::unix::fs::chown(path.join("run-handover"), Some(65534), None).unwrap();
        let error = format!("{:#}", open(&dir).unwrap_err());
        assert!(error.contains("run-handover: it belongs to the user with the number 65534"), "{error}");
    }
}
