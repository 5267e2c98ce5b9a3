//! Where the masters of a HAProxy under handover listen, and whom they look after.
//!
//! Each start has a master with a socket of its own. It answers for its worker until that has ended, while a
//! worker's own stats socket falls silent as soon as it is told to finish.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::runtime::{self, Command, Info, Sessions, Socket, Word};

/// How a master's socket is called: the name of its start, and this.
pub const SUFFIX: &str = ".sock";

/// A master has nothing else to do than to answer; one that is starved is asked again.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The directory of the masters' sockets: `handover/` beside the runtime socket.
pub fn directory(runtime_socket: &Path) -> PathBuf {
    runtime_socket.with_file_name("handover")
}

/// A HAProxy process that a master looks after.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Its process id, in its own pid namespace.
    pub pid: u32,
    master: Socket,
}

/// All masters' workers, as far as the masters answer.
#[derive(Debug, Default)]
pub struct Workers {
    /// Those that live.
    pub alive: Vec<Worker>,
    /// Sockets, or the directory itself, that can't be asked, and why.
    pub silent: Vec<(PathBuf, String)>,
}

/// Asks every master of the HAProxys on that socket: the running one's, and the old ones'. Without handover there is
/// none.
pub fn workers(runtime_socket: &Path) -> Workers {
    let dir = directory(runtime_socket);
    let mut workers = Workers::default();
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return workers,
        Err(error) => {
            workers.silent.push((dir, error.to_string()));
            return workers;
        }
    };
    // HAProxy binds under a temporary name that begins with the final one.
    let is_master = |path: &PathBuf| path.to_str().is_some_and(|path| path.ends_with(SUFFIX));
    for path in entries.flatten().map(|entry| entry.path()).filter(is_master) {
        let master = Socket::new(&path).with_timeout(TIMEOUT);
        match master.ask(&Command::show_proc()) {
            Ok(answer) => workers.alive.extend(pids(&answer).map(|pid| Worker { pid, master: master.clone() })),
            Err(error) if is_dead(&error) => {}
            Err(error) => workers.silent.push((path, error.to_string())),
        }
    }
    workers
}

/// Whether another HAProxy, of before or of somebody else's restart, listens on that socket too. One whose master doesn't
/// answer counts as gone: it was told to finish within milliseconds, and who may not ask it may never.
pub fn share(runtime_socket: &Socket) -> bool {
    let Ok(running) = runtime_socket.info() else { return false };
    let others = workers(runtime_socket.path()).alive.into_iter().filter(|worker| worker.pid != running.pid);
    others.filter_map(|worker| worker.info().ok()).any(|info| !info.stopping)
}

/// Whether the socket is what a master that has ended left behind.
fn is_dead(error: &runtime::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error, runtime::Error::Absent { source, .. } if matches!(source.kind(), ConnectionRefused | NotFound))
}

/// The workers in an answer to `show proc`, former ones too: `4425  worker  0  0d00h00m02s  2.6.12-1`.
fn pids(answer: &str) -> impl Iterator<Item = u32> {
    answer.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let pid = words.next()?.parse().ok()?;
        (words.next()? == "worker").then_some(pid)
    })
}

impl Worker {
    /// How it is: `show info`.
    ///
    /// # Errors
    /// When its master doesn't answer, or it has ended.
    pub fn info(&self) -> Result<Info, runtime::Error> {
        self.master.info_of(self.pid)
    }

    /// The sessions of these backends' servers in it, as [`Socket::sessions`].
    ///
    /// # Errors
    /// When its master doesn't answer, or it has ended.
    pub fn sessions(&self, backends: &[Word]) -> Result<Vec<Sessions>, runtime::Error> {
        self.master.sessions(backends, Some(self.pid))
    }

    /// Its master's socket.
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
        assert_eq!(pids(answer).collect::<Vec<_>>(), [4425, 4400]);
    }

    #[test]
    fn what_dead_masters_left_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let runtime_socket = dir.path().join("admin.sock");
        let all = workers(&runtime_socket);
        assert!(all.alive.is_empty() && all.silent.is_empty(), "no handover");
        let masters = directory(&runtime_socket);
        fs::create_dir(&masters).unwrap();
        drop(std::os::unix::net::UnixListener::bind(masters.join("dead.sock")).unwrap());
        let all = workers(&runtime_socket);
        assert!(all.alive.is_empty() && all.silent.is_empty(), "{:?}", all.silent);
        let _silent = std::os::unix::net::UnixListener::bind(masters.join("silent.sock")).unwrap();
        assert_eq!(workers(&runtime_socket).silent.len(), 1);
    }
}
