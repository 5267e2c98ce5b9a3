//! What makes sure that nothing outlives the test that started it.
//!
//! Every process bears a mark in its environment, which its descendants inherit even where they leave its process
//! group (HAProxy in a session of its own, the programs of supervisord).

use std::env::temp_dir;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio, id};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::proc::environment;

const MARK: &str = "HAPROXY_DISCOVER_LAB";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Waits for the end of its standard input, which is the end of this process, then kills what bears one of its marks
/// and removes its folders, containers and networks. Ctrl-C and SIGKILL give a test no chance to clean up by itself, and what a `static` holds is
/// never dropped. With `LAB_KEEP` set the folders are left for a look.
static GUARD: LazyLock<Mutex<Child>> = LazyLock::new(|| {
    let script = r#"cat >/dev/null
        grep -lzs "^$1\." /proc/[0-9]*/environ | while IFS=/ read -r _ _ pid _; do kill -KILL "$pid"; done
        [ -n "$LAB_KEEP" ] || rm -rf -- "$2"*
        for engine in docker podman; do
            command -v $engine >/dev/null || continue
            $engine ps --all --quiet --filter "name=^$3" | xargs -r $engine rm --force --volumes
        done
        command -v docker >/dev/null || exit
        docker network ls --quiet --filter "name=^$3" | xargs -r docker network rm"#;
    let guard = Command::new("sh")
        .args(["-c", script, "lab-guard"])
        .arg(format!("{MARK}={}", id()))
        .arg(temp_dir().join(format!("lab-{}-", id())))
        .arg(format!("haproxy-discover-lab-{}-", id()))
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Mutex::new(guard.expect("sh"))
});

/// What the names of this process's containers and networks start with.
pub(crate) fn container_prefix() -> String {
    LazyLock::force(&GUARD);
    format!("haproxy-discover-lab-{}-", id())
}

/// What the names of this process's temporary folders start with.
pub(crate) fn folder_prefix() -> String {
    LazyLock::force(&GUARD);
    format!("lab-{}-", id())
}

/// A mark for one more process and all that descend from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark(String);

impl Mark {
    /// A mark that no other process has.
    pub(crate) fn new() -> Self {
        LazyLock::force(&GUARD);
        Self(format!("{}.{}", id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// Puts the mark on a command.
    pub(crate) fn put_on(&self, command: &mut Command) {
        command.env(MARK, &self.0);
    }

    /// The processes that bear it now.
    pub(crate) fn pids(&self) -> Vec<Pid> {
        let entry = format!("{MARK}={}", self.0);
        let bears = |pid: &Pid| environment(*pid).split(|byte| *byte == 0).any(|variable| variable == entry.as_bytes());
        let processes = fs::read_dir("/proc").expect("/proc").flatten();
        let numbers = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
        numbers.map(Pid::from_raw).filter(bears).collect()
    }

    /// Sends SIGKILL to every process that bears it, until none is left.
    pub(crate) fn kill(&self) {
        // A process may fork between the look and the kill: two rounds find its child, more would be a fork bomb.
        for _ in 0..5 {
            let pids = self.pids();
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    }
}
