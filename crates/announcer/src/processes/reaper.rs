//! Reaps every child: the app, the commands of checks, and the orphans that PID 1 gets.
//!
//! All waiting for children happens here. `tokio::process` must not be used beside it: two reapers steal each other's
//! exit statuses.

use std::{
    collections::HashMap,
    io,
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tokio::{
    signal::unix::{Signal as Signals, SignalKind, signal},
    sync::mpsc,
};

use crate::processes::environment;

/// Handle of the one reaper. Clones share its children.
#[derive(Clone)]
pub(crate) struct Reaper {
    children: Arc<Mutex<HashMap<Pid, WatchedChild>>>,
}

struct WatchedChild {
    is_reaped: Arc<AtomicBool>,
    changes: mpsc::Sender<ChildChange>,
}

/// A child, which leads its own process group.
#[derive(Clone)]
pub(crate) struct Leader {
    pub(crate) pid: Pid,
    /// Set when the child is reaped. Another process may then have its number.
    is_reaped: Arc<AtomicBool>,
}

/// Change of a child's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChildChange {
    /// Exit status in the form of a shell: 128 + N after signal N.
    Ended(u8),
    /// Stopped, as by Ctrl-Z at the terminal.
    Stopped,
}

impl Leader {
    /// True once the child was reaped. Other processes of its group may still run.
    pub(crate) fn has_ended(&self) -> bool {
        self.is_reaped.load(Ordering::Relaxed)
    }

    /// Sends a signal to the child's process group while the child runs.
    pub(crate) fn signal_group(&self, signal: Signal) {
        if !self.has_ended()
            && let Err(error) = killpg(self.pid, signal)
        {
            tracing::warn!(%signal, pid = self.pid.as_raw(), %error, "can't signal a child");
        }
    }
}

impl Reaper {
    /// Starts to reap. Must be called within a tokio runtime, before the first child starts.
    pub(crate) fn start() -> io::Result<Self> {
        let ended = signal(SignalKind::child())?;
        let reaper = Self { children: Arc::default() };
        tokio::spawn(reaper.clone().reap_all(ended));
        Ok(reaper)
    }

    /// Starts a command as the leader of its own process group, without secrets in its environment. The receiver gets
    /// its changes.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<(Leader, mpsc::Receiver<ChildChange>)> {
        use std::os::unix::process::CommandExt;
        // The standard library also gives the child an empty signal mask and the default action of SIGPIPE.
        command.process_group(0);
        environment::remove_secrets(command);
        let (changes, receiver) = mpsc::channel(4);
        // Locked before the start, so that a child that ends at once is known when it is reaped.
        let mut children = self.lock_children();
        let pid = Pid::from_raw(command.spawn()?.id().cast_signed());
        let is_reaped = Arc::new(AtomicBool::new(false));
        children.insert(pid, WatchedChild { is_reaped: is_reaped.clone(), changes });
        Ok((Leader { pid, is_reaped }, receiver))
    }

    fn lock_children(&self) -> MutexGuard<'_, HashMap<Pid, WatchedChild>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn reap_all(self, mut ended: Signals) {
        loop {
            match self.reap_next() {
                Some((changes, change)) => _ = changes.send(change).await,
                None if ended.recv().await.is_none() => return,
                None => {}
            }
        }
    }

    /// Reaps until a watched child changes, or until nothing is left to reap. Orphans are reaped silently.
    fn reap_next(&self) -> Option<(mpsc::Sender<ChildChange>, ChildChange)> {
        loop {
            let mut children = self.lock_children();
            let (pid, change) = match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
                Ok(status) => (status.pid(), interpret_status(status)),
                Err(Errno::EINTR) => continue,
                // nix knows no real-time signals. A child that one of them ended is reaped nevertheless, and its pid is
                // gone.
                Err(Errno::EINVAL) => {
                    // The signal's number is lost too, so the status is 128 without one.
                    let missing = children.keys().find(|pid| kill(**pid, None) == Err(Errno::ESRCH));
                    (missing.copied(), Some(ChildChange::Ended(128)))
                }
                Err(error) => {
                    tracing::error!(%error, "can't wait for children");
                    return None;
                }
            };
            let Some((pid, change)) = pid.zip(change) else { continue };
            let Some(watched) = children.get(&pid) else { continue };
            let changes = watched.changes.clone();
            if matches!(change, ChildChange::Ended(_)) {
                watched.is_reaped.store(true, Ordering::Relaxed);
                children.remove(&pid);
            }
            return Some((changes, change));
        }
    }
}

fn interpret_status(status: WaitStatus) -> Option<ChildChange> {
    match status {
        WaitStatus::Exited(_, code) => Some(ChildChange::Ended(u8::try_from(code & 0xff).unwrap_or(u8::MAX))),
        // As a shell reports the signal that ended a command.
        WaitStatus::Signaled(_, signal, _) => Some(ChildChange::Ended(128 + signal as u8)),
        WaitStatus::Stopped(..) => Some(ChildChange::Stopped),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_are_a_shells() {
        let pid = Pid::from_raw(7);
        assert_eq!(interpret_status(WaitStatus::Exited(pid, 3)), Some(ChildChange::Ended(3)));
        assert_eq!(interpret_status(WaitStatus::Signaled(pid, Signal::SIGTERM, false)), Some(ChildChange::Ended(143)));
        assert_eq!(interpret_status(WaitStatus::Stopped(pid, Signal::SIGTSTP)), Some(ChildChange::Stopped));
        assert_eq!(interpret_status(WaitStatus::Continued(pid)), None);
    }
}
