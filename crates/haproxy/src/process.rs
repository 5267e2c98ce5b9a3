//! Reads what the system shows of a running HAProxy (proc(5)) and its Runtime API doesn't tell. It signals no process.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::command::CommandLine;

/// Finds the files and directories that a HAProxy process was started with, as absolute paths. `None` if the process
/// has ended, runs in another pid namespace, or names relative paths and belongs to another user.
pub fn find_config_files(pid: u32) -> Option<Vec<PathBuf>> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    // In another pid namespace the number may be any other process here.
    let name = fs::read_to_string(process.join("comm")).ok()?;
    let words = fs::read(process.join("cmdline")).ok()?;
    let words = words.strip_suffix(b"\0")?.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec()));
    let line = CommandLine::from_words(words).filter(|_| name.starts_with("haproxy"))?;
    let files = line.config_files();
    if files.is_empty() {
        return None;
    }
    let place = working_directory(&line).map_or_else(|| fs::read_link(process.join("cwd")), Ok);
    files
        .into_iter()
        .map(|file| if file.is_absolute() { Some(file) } else { Some(place.as_ref().ok()?.join(file)) })
        .collect()
}

/// The absolute directory that HAProxy changes to before it reads its files (`-C`).
fn working_directory(line: &CommandLine) -> Option<PathBuf> {
    let mut args = line.args().iter().skip_while(|arg| *arg != "-C");
    args.nth(1).map(PathBuf::from).filter(|directory| directory.is_absolute())
}

/// True if no other HAProxy serves beside that process, as far as the system shows. The process's own master (`haproxy
/// -W`) doesn't count. `None` if the process runs in another pid namespace or is hidden, because other HAProxys may be
/// hidden too.
pub fn is_alone(pid: u32) -> Option<bool> {
    find_others(pid).map(|others| others.is_empty())
}

/// The HAProxy processes beside that one and its master. `None` as for [`is_alone`].
fn find_others(pid: u32) -> Option<Vec<u32>> {
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // A master serves no client. It is the parent of its present worker and of those that finish their last requests.
    let master = read_parent(pid);
    let others = pids.filter(|other| *other != pid && Some(*other) != master && is_haproxy(*other));
    is_haproxy(pid).then(|| others.collect())
}

fn read_parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// The most files that HAProxy can have open after its next start: the hard limit (`RLIMIT_NOFILE`). `None` if the process can't
/// be seen, or is no HAProxy.
///
/// With CAP_SYS_RESOURCE HAProxy can raise that limit for a `maxconn` that is set. A `maxconn` that is not set comes from the limit
/// at HAProxy's start, so that many upstreams would leave room for 100 connections.
pub fn max_open_files(pid: u32) -> Option<u64> {
    // In another pid namespace the number may be any other process here.
    if is_haproxy(pid) { read_file_limit(pid) } else { None }
}

/// The same limit for a HAProxy that this process's parent would start.
pub fn own_max_open_files() -> Option<u64> {
    read_file_limit(std::process::id())
}

fn read_file_limit(pid: u32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The memory that the end of that HAProxy process frees, as [`private_memory`]. `None` if the process can't be seen, or is
/// no HAProxy.
pub(crate) fn haproxy_memory(pid: u32) -> Option<u64> {
    // In another pid namespace the number may be any other process here.
    if is_haproxy(pid) { private_memory(pid) } else { None }
}

/// The memory that the end of a process frees, in bytes: all that isn't a part of a file, also if it is swapped out. The
/// program and its libraries don't count, because every HAProxy shares them. `None` if the process can't be seen.
pub fn private_memory(pid: u32) -> Option<u64> {
    parse_private_memory(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// Parses `RssAnon:    30720 kB` and its like. A zombie has no such line.
fn parse_private_memory(status: &str) -> Option<u64> {
    let mut total = None;
    for line in status.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        if ["RssAnon", "RssShmem", "VmSwap"].contains(&name) {
            let kilobytes: u64 = value.split_whitespace().next()?.parse().ok()?;
            total = Some(total.unwrap_or(0) + kilobytes * 1024);
        }
    }
    total
}

fn is_haproxy(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "haproxy")
}

/// True if both name the same files in the same order, whichever links lead there.
pub fn are_same_files(one: &[PathBuf], other: &[PathBuf]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| resolve_links(one) == resolve_links(other))
}

fn resolve_links(path: &Path) -> PathBuf {
    // A path that leads nowhere still equals itself.
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn memory_of_files_does_not_count() {
        let status = "Name:\thaproxy\nVmRSS:\t   40000 kB\nRssAnon:\t   30720 kB\nRssFile:\t    9000 kB\nRssShmem:\t     280 kB\n\
                      VmSwap:\t    1000 kB\n";
        assert_eq!(parse_private_memory(status), Some(32_000 * 1024));
        assert_eq!(parse_private_memory("Name:\thaproxy\nState:\tZ (zombie)\n"), None);
        assert!(private_memory(std::process::id()).is_some_and(|bytes| bytes > 100_000));
        assert_eq!(haproxy_memory(std::process::id()), None, "a test is no HAProxy");
    }

    /// What a real HAProxy in that directory is seen to read.
    fn seen(dir: &Path, args: &[&str]) -> Option<Vec<PathBuf>> {
        let mut child = Command::new("haproxy").args(args).current_dir(dir).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        // The child is this very program until it has become HAProxy.
        let files = loop {
            let files = find_config_files(child.id());
            if files.is_some() || Instant::now() >= deadline || child.try_wait().unwrap().is_some() {
                break files;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        child.kill().unwrap();
        child.wait().unwrap();
        files
    }

    #[test]
    fn the_most_files_are_the_hard_limit() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("haproxy");
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        let mut child =
            Command::new("prlimit").arg("--nofile=100:200").args([program.as_os_str(), "60".as_ref()]).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_haproxy(child.id()) {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
        let bounded = max_open_files(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(bounded, Some(200));
        assert!(own_max_open_files().is_some_and(|most| (1..=i64::MAX as u64).contains(&most)));
        assert_eq!(max_open_files(std::process::id()), None, "no HAProxy");
        assert_eq!(max_open_files(0), None);
    }

    #[test]
    fn a_master_is_no_process_beside_its_worker() {
        let dir = tempfile::tempdir().unwrap();
        let (cfg, pid_file) = (dir.path().join("h.cfg"), dir.path().join("pid"));
        let text = format!("defaults\n timeout client 1s\nfrontend f\n bind unix@{}/f.sock\n", dir.path().display());
        std::io::Write::write_all(&mut fs::File::create(&cfg).unwrap(), text.as_bytes()).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-W").arg("-p").arg(&pid_file).arg("-f").arg(&cfg).stderr(Stdio::null());
        let mut master = command.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let children = format!("/proc/{0}/task/{0}/children", master.id());
        let worker = loop {
            let children = fs::read_to_string(&children).unwrap_or_default();
            let worker = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
            if let Some(worker) = worker.filter(|worker| is_haproxy(*worker)) {
                break worker;
            }
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        };
        // Other tests run HAProxys too.
        let (beside_worker, beside_master) = (find_others(worker).unwrap(), find_others(master.id()).unwrap());
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(master.id().cast_signed()),
            nix::sys::signal::Signal::SIGTERM,
        )
        .unwrap();
        master.wait().unwrap();
        assert!(!beside_worker.contains(&master.id()) && !beside_worker.contains(&worker), "{beside_worker:?}");
        assert!(beside_master.contains(&worker), "{beside_master:?}");
    }

    #[test]
    fn knows_what_a_running_haproxy_was_started_with() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let text = format!("defaults\n timeout client 1s\nfrontend f\n bind unix@{}/f.sock\n", dir.display());
        fs::create_dir(dir.join("conf.d")).unwrap();
        for (name, text) in [("conf.d/10.cfg", ""), ("h.cfg", text.as_str())] {
            let mut file = fs::File::create(dir.join(name)).unwrap();
            std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        }
        let (conf, cfg) = (dir.join("conf.d"), dir.join("h.cfg"));
        let named = [conf.to_str().unwrap(), cfg.to_str().unwrap()];
        let both = [conf.clone(), cfg.clone()];
        assert_eq!(seen(&dir, &["-db", "-f", named[0], "-f", named[1]]).unwrap(), both);
        assert_eq!(seen(&dir, &["-db", "-f", "conf.d", "--", "h.cfg"]).unwrap(), both, "relative ones");
        let elsewhere = std::env::temp_dir();
        assert_eq!(
            seen(&elsewhere, &["-db", "-C", dir.to_str().unwrap(), "-f", "h.cfg"]).unwrap(),
            std::slice::from_ref(&cfg)
        );
        assert_eq!(find_config_files(std::process::id()), None, "no HAProxy");
        assert_eq!(find_config_files(0), None, "nobody");
        assert_eq!(is_alone(std::process::id()), None, "no HAProxy");

        std::os::unix::fs::symlink(&conf, dir.join("link")).unwrap();
        assert!(are_same_files(&both, &[dir.join("link"), dir.join("conf.d/../h.cfg")]));
        assert!(!are_same_files(&both, &[cfg.clone(), conf]) && !are_same_files(&both, &[cfg]));
    }
}
