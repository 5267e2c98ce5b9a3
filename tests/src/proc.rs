//! What a process holds, as `/proc` tells it.

use std::fs;
use std::io::ErrorKind;

use nix::unistd::Pid;

/// Resident memory in bytes (proc(5), `VmRSS`).
///
/// # Panics
/// When there is no such process.
pub fn resident(pid: Pid) -> u64 {
    status_bytes(pid, "VmRSS:")
}

/// The part of its resident memory that is of no file, in bytes: heap, stacks, and what the loader has changed.
///
/// # Panics
/// When there is no such process.
pub fn own_memory(pid: Pid) -> u64 {
    status_bytes(pid, "RssAnon:")
}

fn status_bytes(pid: Pid, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a living process");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("kilobytes") * 1024
}

/// The CPU time of all its threads so far, in seconds (proc(5), `schedstat`: what `stat` has is in hundredths).
///
/// # Panics
/// When there is no such process.
pub fn cpu_seconds(pid: Pid) -> f64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a living process").flatten();
    let of = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
    let nanoseconds: u64 = threads.filter_map(|thread| of(thread).split_whitespace().next()?.parse::<u64>().ok()).sum();
    std::time::Duration::from_nanos(nanoseconds).as_secs_f64()
}

/// What it was started with in its environment (proc(5)). A worker of HAProxy's that has given up root's rights shows it to
/// nobody without CAP_SYS_PTRACE, which root in a container lacks: then its parent's.
pub(crate) fn environment(pid: Pid) -> Vec<u8> {
    match fs::read(format!("/proc/{pid}/environ")) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => parent(pid).map(environment).unwrap_or_default(),
        environment => environment.unwrap_or_default(),
    }
}

fn parent(pid: Pid) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok().map(Pid::from_raw)
}

/// How many files, sockets and pipes it has open.
///
/// # Panics
/// When there is no such process.
pub fn open_files(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("a living process").count()
}

/// Its children, zombies included.
///
/// # Panics
/// When there is no such process.
pub fn children(pid: Pid) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a living process").flatten();
    let of = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("children")).unwrap_or_default();
    let lines: Vec<String> = threads.map(of).collect();
    let numbers = lines.iter().flat_map(|line| line.split_whitespace()).filter_map(|pid| pid.parse().ok());
    numbers.map(Pid::from_raw).collect()
}
