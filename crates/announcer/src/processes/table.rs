//! Reads the processes of this host from `/proc`. It signals none.

use std::fs;

use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::killpg,
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::{Pid, getpid},
};

/// True if a member of the process group runs. A zombie doesn't count, since its parent may never reap it.
pub(crate) fn has_running_member(group: Pid) -> bool {
    if killpg(group, None) == Err(Errno::ESRCH) {
        return false;
    }
    let states: Vec<char> =
        list_processes().filter(|process| process.group == group.as_raw()).map(|process| process.state).collect();
    // A /proc with `hidepid` shows none of them. Then the kernel's answer to killpg counts.
    // Z is a zombie, X is dead (proc(5)).
    states.is_empty() || states.iter().any(|state| !matches!(state, 'Z' | 'X'))
}

/// True if the process is stopped, as by SIGSTOP.
pub(crate) fn is_stopped(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    stat.and_then(|stat| parse_stat(&stat)).is_some_and(|process| process.state == 'T')
}

/// True if orphans become children of this process: as PID 1, or as a subreaper.
pub(crate) fn adopts_orphans() -> bool {
    getpid().as_raw() == 1 || prctl::get_child_subreaper().unwrap_or(false)
}

/// True if this process has a child. Zombies count.
pub(crate) fn has_child() -> bool {
    // WNOWAIT leaves the child to the reaper.
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::All, flags) != Err(Errno::ECHILD)
}

/// Running children of this process.
pub(crate) fn running_children() -> Vec<Pid> {
    let us = getpid().as_raw();
    let ours = list_processes().filter(|process| process.parent == us && !matches!(process.state, 'Z' | 'X'));
    ours.map(|process| Pid::from_raw(process.pid)).collect()
}

/// Fields of `/proc/PID/stat` (proc(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    state: char,
    parent: i32,
    group: i32,
}

/// All processes that /proc shows. Empty without /proc.
fn list_processes() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()));
    pids.filter_map(|entry| parse_stat(&fs::read_to_string(entry.path().join("stat")).ok()?))
}

/// Parses a line. The name in brackets may contain brackets and blanks, so the last bracket ends it.
fn parse_stat(stat: &str) -> Option<Process> {
    let (head, tail) = stat.rsplit_once(')')?;
    let pid = head.split_whitespace().next()?.parse().ok()?;
    let mut fields = tail.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let (parent, group) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Process { pid, state, parent, group })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_program_is_called() {
        let process = Process { pid: 7, state: 'S', parent: 1, group: 5 };
        assert_eq!(parse_stat("7 (a) b (c)) S 1 5 5 0 -1 4194304"), Some(process));
        assert_eq!(parse_stat("7 (sh"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn a_process_that_runs_is_not_stopped() {
        assert!(!is_stopped(getpid()) && !is_stopped(Pid::from_raw(i32::MAX)));
    }

    #[test]
    fn this_process_is_among_its_group() {
        assert!(has_running_member(nix::unistd::getpgrp()));
    }
}
