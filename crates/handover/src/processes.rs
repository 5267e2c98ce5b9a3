//! Finds the HAProxys that handover started by a mark in their environment, measures and signals them. It decides nothing.
//!
//! A pid file may name another process by now. A process of another pid namespace doesn't count, although a
//! container's process may bear the same mark and show in the host's `/proc`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use haproxy::process::private_memory;
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// The variable with the path of the runtime socket.
pub(crate) const SOCKET_MARK: &str = "HANDOVER";

/// The variable with the name of the start.
pub(crate) const START_MARK: &str = "HANDOVER_START";

/// One start of HAProxy: its master, workers, and what those have started.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Haproxy {
    /// The name of its start.
    pub(crate) start: String,
    processes: Vec<Process>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    /// A signal or a debugger has stopped it.
    is_stopped: bool,
    /// The time of its start since the boot, in clock ticks.
    started: u64,
}

/// Finds every living HAProxy of that socket. This scans all of `/proc`.
pub(crate) fn find_all(socket: &Path) -> Vec<Haproxy> {
    let namespace = read_pid_namespace("self");
    let pids =
        fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let marked = pids.filter_map(|pid| {
        let (shown, environ) = read_environ(pid)?;
        let start = read_mark(&environ, socket)?;
        let is_here = read_pid_namespace(shown) == namespace;
        Some((start, read_process(pid)?)).filter(|_| is_here)
    });
    group_by_start(marked)
}

/// Reads the name of a process' start from its mark. `None` if it bears no mark of that socket.
pub(crate) fn find_start(pid: i32, socket: &Path) -> Option<String> {
    read_mark(&read_environ(pid)?.1, socket)
}

/// True if a process of that id lives. A zombie doesn't.
pub(crate) fn is_alive(pid: i32) -> bool {
    read_process(pid).is_some()
}

/// The time since the boot, in which [`Haproxy::started`] counts too.
pub(crate) fn time_since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// Reads the environment of a process, and returns the process that showed it: itself, or its nearest ancestor that
/// does. A worker that has given up root's rights shows it only with CAP_SYS_PTRACE (ptrace(2)), which root in a
/// container lacks. Its master shows it.
fn read_environ(pid: i32) -> Option<(i32, Vec<u8>)> {
    match fs::read(format!("/proc/{pid}/environ")) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => read_environ(read_process(pid)?.parent),
        environ => Some((pid, environ.ok()?)),
    }
}

/// Reads the name of the start from an environment. `None` if it bears no mark of that socket.
fn read_mark(environ: &[u8], socket: &Path) -> Option<String> {
    if find_variable(environ, SOCKET_MARK)? != socket.as_os_str().as_bytes() {
        return None;
    }
    OsString::from_vec(find_variable(environ, START_MARK)?.to_vec()).into_string().ok()
}

fn find_variable<'a>(environ: &'a [u8], name: &str) -> Option<&'a [u8]> {
    environ.split(|byte| *byte == 0).find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

fn group_by_start(marked: impl Iterator<Item = (String, Process)>) -> Vec<Haproxy> {
    let mut starts: BTreeMap<String, Vec<Process>> = BTreeMap::new();
    for (start, process) in marked {
        starts.entry(start).or_default().push(process);
    }
    starts.into_iter().map(|(start, processes)| Haproxy { start, processes }).collect()
}

fn read_pid_namespace(pid: impl Display) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

fn read_process(pid: i32) -> Option<Process> {
    parse_stat(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Parses `/proc/PID/stat` (proc(5)). `None` for a zombie. The fields begin behind the last parenthesis, because a name
/// may hold one.
fn parse_stat(pid: i32, stat: &[u8]) -> Option<Process> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let is_stopped = matches!(state, "T" | "t");
    // The start is field 22, and the parent is field 4.
    let started = fields.nth(17)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(Process { pid, parent, is_stopped, started })
}

impl Haproxy {
    /// The processes without a parent among these: the master, or the ones that a dead master left behind.
    fn root_pids(&self) -> impl Iterator<Item = i32> {
        self.processes.iter().filter(move |process| !self.has_process(process.parent)).map(|process| process.pid)
    }

    fn has_process(&self, pid: i32) -> bool {
        self.processes.iter().any(|process| process.pid == pid)
    }

    /// The process that the log names.
    pub(crate) fn pid(&self) -> i32 {
        self.root_pids().next().unwrap_or_default()
    }

    /// Sends SIGUSR1. HAProxy then takes no more connections, finishes its requests and ends (Management Guide, section
    /// 4).
    pub(crate) fn finish_requests(&self) {
        signal_all(self.root_pids(), Signal::SIGUSR1);
    }

    /// True if a signal or a debugger has stopped one of the processes.
    pub(crate) fn is_stopped(&self) -> bool {
        self.processes.iter().any(|process| process.is_stopped)
    }

    /// The time of its start since the boot.
    pub(crate) fn started(&self) -> Duration {
        let ticks = self.processes.iter().map(|process| process.started).min().unwrap_or_default();
        let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|number| u64::try_from(number).ok());
        // 100 on every platform that Linux has (USER_HZ).
        Duration::from_millis(ticks.saturating_mul(1000) / per_second.unwrap_or(100).max(1))
    }

    /// The memory that its end frees, in bytes.
    pub(crate) fn measure_memory(&self) -> u64 {
        let pids = self.processes.iter().filter_map(|process| u32::try_from(process.pid).ok());
        pids.filter_map(private_memory).sum()
    }

    /// Sends SIGCONT, so that each stopped process goes on.
    pub(crate) fn wake(&self) {
        signal_all(self.processes.iter().map(|process| process.pid), Signal::SIGCONT);
    }

    /// Sends SIGTERM, which ends HAProxy and its connections.
    pub(crate) fn terminate(&self) {
        signal_all(self.root_pids(), Signal::SIGTERM);
    }

    /// Sends SIGKILL to each process, not just to the master.
    pub(crate) fn kill(&self) {
        signal_all(self.processes.iter().map(|process| process.pid), Signal::SIGKILL);
    }
}

fn signal_all(pids: impl Iterator<Item = i32>, signal: Signal) {
    for pid in pids {
        // The process may have ended in between.
        if let Err(errno) = kill(Pid::from_raw(pid), signal) {
            tracing::debug!(pid, %signal, %errno, "not signalled");
        }
    }
}

/// The environment that marks a HAProxy.
pub(crate) fn mark_variables<'a>(socket: &'a Path, start: &'a str) -> [(&'static str, &'a OsStr); 2] {
    [(SOCKET_MARK, socket.as_os_str()), (START_MARK, OsStr::new(start))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    fn process(pid: i32, parent: i32) -> Process {
        Process { pid, parent, is_stopped: false, started: 0 }
    }

    fn of(processes: &[(i32, i32)]) -> Haproxy {
        let processes = processes.iter().map(|&(pid, parent)| process(pid, parent)).collect();
        Haproxy { start: "a".to_owned(), processes }
    }

    #[test]
    fn the_master_is_the_root() {
        assert_eq!(of(&[(30, 1), (31, 30), (40, 31)]).root_pids().collect::<Vec<_>>(), [30]);
        assert_eq!(of(&[(31, 1), (40, 31), (50, 1)]).root_pids().collect::<Vec<_>>(), [31, 50], "its master died");
    }

    #[test]
    fn starts_are_kept_apart() {
        let marked = [("b", 3), ("a", 1), ("b", 4)].map(|(start, pid)| (start.to_owned(), process(pid, 0))).into_iter();
        let sizes: Vec<_> = group_by_start(marked).iter().map(|h| (h.start.clone(), h.processes.len())).collect();
        assert_eq!(sizes, [("a".to_owned(), 1), ("b".to_owned(), 2)]);
    }

    #[test]
    fn reads_stat_whatever_the_name() {
        let rest = "3 7 7 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 4242 9 9";
        let parse = |begin: &str| parse_stat(7, format!("{begin} {rest}").as_bytes());
        assert_eq!(parse("7 (ha) S (x) R"), Some(Process { started: 4242, ..process(7, 3) }));
        assert!(parse("7 (haproxy) T").unwrap().is_stopped);
        assert_eq!(parse("7 (haproxy) Z"), None);
        for broken in [&b""[..], b"7 haproxy S 3", b"7 (h)", b"7 (h) S x", b"7 (h) S 3 7 7 0"] {
            assert_eq!(parse_stat(7, broken), None);
        }
    }

    #[test]
    fn its_own_start_is_in_the_past() {
        let own = read_process(i32::try_from(std::process::id()).unwrap()).unwrap();
        let started = Haproxy { start: "a".to_owned(), processes: vec![own] }.started();
        let age = time_since_boot().saturating_sub(started);
        assert!(started > Duration::ZERO && age < Duration::from_secs(3600), "{started:?} {age:?}");
    }

    #[test]
    fn finds_by_the_mark_alone() {
        let socket = Path::new("/no/such/dir/admin.sock");
        assert_eq!(find_all(socket), []);
        let mut child =
            Command::new("sleep").arg("60").envs(mark_variables(socket, "one")).stdout(Stdio::null()).spawn().unwrap();
        // Its environment shows an instant after its start.
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut found = find_all(socket);
        while found.is_empty() && Instant::now() < deadline {
            found = find_all(socket);
        }
        let elsewhere = find_all(Path::new("/no/such/dir/admin.sock2"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].start.as_str(), found[0].pid()), ("one", i32::try_from(child.id()).unwrap()));
        assert_eq!(elsewhere, []);
        assert_eq!(find_all(socket), [], "ended");
    }
}
