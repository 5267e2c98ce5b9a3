//! Finds the masters of a HAProxy under handover, and asks them for their workers. It signals no process.
//!
//! Each start has a master with a socket of its own. The master answers for its worker until the worker has ended. The
//! worker's own stats socket falls silent as soon as the worker is told to finish.

use std::cmp::Reverse;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::process;
use crate::runtime::{self, Command, Info, Sessions, Socket, Streams, Word};

/// The end of the name of a master's socket. The name of its start comes before it.
pub const SUFFIX: &str = ".sock";

/// The time limit for a master's answer. A master does nothing but answer, and one that is starved is asked again.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The directory of the masters' sockets if only root and handover's user can change the runtime socket's directory:
/// `handover/` in it.
pub fn nested_directory(runtime_socket: &Path) -> PathBuf {
    runtime_socket.with_file_name("handover")
}

/// The directory of the masters' sockets if a lesser user can change the runtime socket's directory, as Debian's user
/// haproxy can change `/run/haproxy`: `/run/haproxy-handover` beside that. `None` for a socket in `/`.
pub fn protected_directory(runtime_socket: &Path) -> Option<PathBuf> {
    let dir = runtime_socket.parent()?;
    let mut name = dir.file_name()?.to_owned();
    name.push("-handover");
    Some(dir.with_file_name(name))
}

/// The directories that may hold masters' sockets, the protected one first. After an upgrade, old masters have their
/// sockets in the other one.
pub fn candidate_directories(runtime_socket: &Path) -> impl Iterator<Item = PathBuf> {
    protected_directory(runtime_socket).into_iter().chain([nested_directory(runtime_socket)])
}

/// The time limit for all streams of a worker. 10,000 of them are some 3 MB.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(5);

/// A HAProxy process, known by its master.
#[derive(Debug, Clone)]
pub struct Worker {
    /// The process id, in the worker's own pid namespace.
    pub pid: u32,
    master: Socket,
}

/// The workers of all masters that answer.
#[derive(Debug, Default)]
pub struct Workers {
    /// The workers that have not ended.
    pub alive: Vec<Worker>,
    /// The sockets, or directories, that can't be asked, and the reason.
    pub silent: Vec<(PathBuf, String)>,
    /// True while a start of HAProxy is in progress. It may have read its files before the last change to them.
    pub is_starting: bool,
}

/// Asks every master of the HAProxys on that socket, the running one's and the old ones'. Without handover there is
/// none.
pub fn list_workers(runtime_socket: &Path) -> Workers {
    let mut workers = Workers::default();
    for dir in candidate_directories(runtime_socket) {
        workers.add_directory(dir);
    }
    workers
}

/// Asks one master for its workers.
///
/// # Errors
/// If the master doesn't answer.
pub fn list_workers_of(master_socket: &Path) -> Result<Vec<Worker>, runtime::Error> {
    let master = Socket::new(master_socket).with_timeout(TIMEOUT);
    let answer = master.send_command(&Command::show_proc())?;
    Ok(parse_worker_pids(&answer).map(|pid| Worker { pid, master: master.clone() }).collect())
}

/// Lists the old HAProxy processes of that socket, which finish their last requests. The longest-lived is the first.
pub fn list_old_processes(runtime_socket: &Path) -> OldProcesses {
    let Workers { alive, silent, .. } = list_workers(runtime_socket);
    let mut old = OldProcesses { list: Vec::new(), silent: silent.len() };
    for worker in alive {
        match worker.show_info() {
            Ok(info) if info.stopping => old.list.push(OldProcess {
                pid: info.pid,
                uptime: info.uptime,
                connections: info.connections,
                memory: process::haproxy_memory(info.pid),
            }),
            Ok(_) => {}
            Err(_) => old.silent += 1,
        }
    }
    old.list.sort_by_key(|process| (Reverse(process.uptime), process.pid));
    old
}

/// The HAProxy processes that take no new requests and have not ended yet.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct OldProcesses {
    /// Those that answer, the longest-lived first.
    pub list: Vec<OldProcess>,
    /// The number of masters and processes that don't answer. Old processes may be among them.
    pub silent: usize,
}

/// A HAProxy process that takes no new requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldProcess {
    /// The process id.
    pub pid: u32,
    /// The time since its start, in whole seconds.
    pub uptime: Duration,
    /// Its open client connections.
    pub connections: u64,
    /// The memory that its end frees, in bytes. `None` if the system hides it.
    pub memory: Option<u64>,
}

impl Workers {
    /// Asks each master that has a socket in that directory.
    fn add_directory(&mut self, dir: PathBuf) {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            // HAProxy runs without handover, or handover has another of the directories.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.silent.push((dir, error.to_string())),
        };
        // Before the masters are asked, so that a start that ends meanwhile counts as in progress.
        self.is_starting |= is_locked(&dir);
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| is_master_socket(path)) {
            match list_workers_of(&path) {
                Ok(workers) => self.alive.extend(workers),
                Err(error) if is_left_behind(&error) => {}
                Err(error) => self.silent.push((path, error.to_string())),
            }
        }
    }
}

/// True if handover has locked the directory: from before HAProxy reads its files until the new process serves.
fn is_locked(dir: &Path) -> bool {
    // If a start asks for the lock in this instant, it asks again 20 ms later.
    let locked = fs::File::open(dir).map(|dir| Flock::lock(dir, FlockArg::LockSharedNonblock));
    matches!(locked, Ok(Err((_, nix::errno::Errno::EWOULDBLOCK))))
}

/// True for a socket's final name. HAProxy binds under a temporary name that begins with it.
fn is_master_socket(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.ends_with(SUFFIX))
}

/// True if another HAProxy process listens on that socket too, from before a restart or from a manual start. A master
/// that doesn't answer counts as gone. handover told it to finish within milliseconds, and a user without the right to
/// ask never gets an answer.
pub fn other_process_listens(runtime_socket: &Socket) -> bool {
    let Ok(running) = runtime_socket.show_info() else { return false };
    let others = list_workers(runtime_socket.path()).alive.into_iter().filter(|worker| worker.pid != running.pid);
    others.filter_map(|worker| worker.show_info().ok()).any(|info| !info.stopping)
}

/// True for the socket of a master that has ended.
fn is_left_behind(error: &runtime::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error, runtime::Error::Absent { source, .. } if matches!(source.kind(), ConnectionRefused | NotFound))
}

/// Parses the workers, former ones too, of an answer to `show proc`: `4425  worker  0  0d00h00m02s  2.6.12-1`.
fn parse_worker_pids(answer: &str) -> impl Iterator<Item = u32> {
    answer.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let pid = words.next()?.parse().ok()?;
        (words.next()? == "worker").then_some(pid)
    })
}

impl Worker {
    /// Sends `show info` to the worker over its master.
    ///
    /// # Errors
    /// If the master doesn't answer, or the worker has ended.
    pub fn show_info(&self) -> Result<Info, runtime::Error> {
        self.master.show_info_of(self.pid)
    }

    /// Counts the worker's connections and streams. Exact if the worker accepts no more connections.
    ///
    /// # Errors
    /// If the master doesn't answer, or the worker has ended.
    pub fn count_streams(&self) -> Result<(Info, Streams), runtime::Error> {
        self.master.clone().with_timeout(STREAMS_TIMEOUT).count_streams_of(self.pid)
    }

    /// Counts the sessions of these backends' servers in the worker, as [`Socket::count_sessions`].
    ///
    /// # Errors
    /// If the master doesn't answer, or the worker has ended.
    pub fn count_sessions(&self, backends: &[Word]) -> Result<Vec<Sessions>, runtime::Error> {
        self.master.count_sessions(backends, Some(self.pid))
    }

    /// The path of the master's socket.
    pub fn path(&self) -> &Path {
        self.master.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_told_from_masters() {
        let answer = "#<PID>          <type>          <reloads>       <uptime>        <version>      \n\
                      4406            master          0 [failed: 0]   0d00h00m02s     2.6.12-1+deb12u4\n\
                      # workers\n4425            worker          0               0d00h00m02s     2.6.12-1\n\
                      # old workers\n4400            worker          1               0d00h10m02s     2.6.12-1\n\
                      # programs\n\n";
        assert_eq!(parse_worker_pids(answer).collect::<Vec<_>>(), [4425, 4400]);
    }

    #[test]
    fn a_start_holds_the_lock_of_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("admin.sock");
        fs::create_dir(nested_directory(&socket)).unwrap();
        assert!(!list_workers(&socket).is_starting);
        let held =
            Flock::lock(fs::File::open(nested_directory(&socket)).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
        assert!(list_workers(&socket).is_starting);
        drop(held);
        assert!(!list_workers(&socket).is_starting);
    }

    #[test]
    fn the_protected_directory_is_beside_that_of_the_socket() {
        let directories = |socket: &str| candidate_directories(Path::new(socket)).collect::<Vec<_>>();
        let expected = ["/run/haproxy-handover", "/run/haproxy/handover"].map(PathBuf::from);
        assert_eq!(directories("/run/haproxy/admin.sock"), expected);
        assert_eq!(directories("/admin.sock"), [PathBuf::from("/handover")]);
    }

    #[test]
    fn what_dead_masters_left_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let runtime_socket = dir.path().join("admin.sock");
        let all = list_workers(&runtime_socket);
        assert!(all.alive.is_empty() && all.silent.is_empty(), "no handover");
        let masters = nested_directory(&runtime_socket);
        fs::create_dir(&masters).unwrap();
        drop(std::os::unix::net::UnixListener::bind(masters.join("dead.sock")).unwrap());
        let all = list_workers(&runtime_socket);
        assert!(all.alive.is_empty() && all.silent.is_empty(), "{:?}", all.silent);
        let _silent = std::os::unix::net::UnixListener::bind(masters.join("silent.sock")).unwrap();
        assert_eq!(list_workers(&runtime_socket).silent.len(), 1);
    }
}
