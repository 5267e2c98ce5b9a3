//! The end of every child: the app, the commands of checks, and the orphans that PID 1 is given.
//!
//! All waiting for children happens here. tokio's own (`tokio::process`) must not be used beside it: two that reap
//! steal each other's exit statuses.

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

/// What reaps. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Reaper {
    children: Arc<Mutex<HashMap<Pid, WatchedChild>>>,
}

struct WatchedChild {
    is_reaped: Arc<AtomicBool>,
    changes: mpsc::Sender<ChildChange>,
}

/// A running child: the leader of its own process group.
#[derive(Clone)]
pub(crate) struct Leader {
    pub(crate) pid: Pid,
    /// Set as it is reaped: its number may then be somebody else's.
    is_reaped: Arc<AtomicBool>,
}

/// What became of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChildChange {
    /// It ended; the exit status as a shell would put it.
    Ended(u8),
    /// Somebody stopped it at the terminal.
    Stopped,
}

impl Leader {
    /// True once it was reaped. Others of its group may still run.
    pub(crate) fn has_ended(&self) -> bool {
        self.is_reaped.load(Ordering::Relaxed)
    }

    /// Sends a signal to the child's process group, if the child still runs.
    pub(crate) fn signal_group(&self, signal: Signal) {
        if !self.has_ended()
            && let Err(error) = killpg(self.pid, signal)
        {
            tracing::warn!(%signal, pid = self.pid.as_raw(), %error, "a child can't be signalled");
        }
    }
}

impl Reaper {
    /// Reaps from now on. Must be called within a tokio runtime, before the first child is started.
    pub(crate) fn start() -> io::Result<Self> {
        let ended = signal(SignalKind::child())?;
        let reaper = Self { children: Arc::default() };
        tokio::spawn(reaper.clone().reap_all(ended));
        Ok(reaper)
    }

    /// Starts a command as the leader of a process group of its own, and tells what becomes of it.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<(Leader, mpsc::Receiver<ChildChange>)> {
        use std::os::unix::process::CommandExt;
        // The standard library gives the child an empty signal mask and the default action of SIGPIPE.
        command.process_group(0);
        environment::remove_secrets(command);
        let (changes, told) = mpsc::channel(4);
        // Held from before the start: a child that ends at once is known by then.
        let mut children = self.lock_children();
        let pid = Pid::from_raw(command.spawn()?.id().cast_signed());
        let gone = Arc::new(AtomicBool::new(false));
        children.insert(pid, WatchedChild { is_reaped: gone.clone(), changes });
        Ok((Leader { pid, is_reaped: gone }, told))
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

    /// Reaps until the state of a child that somebody asks for has changed, or nothing is left to reap.
    fn reap_next(&self) -> Option<(mpsc::Sender<ChildChange>, ChildChange)> {
        loop {
            let mut children = self.lock_children();
            let (pid, change) = match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
                Ok(status) => (status.pid(), interpret_status(status)),
                Err(Errno::EINTR) => continue,
                // nix knows no real-time signals; the child that one of them ended has been reaped nevertheless.
                Err(Errno::EINVAL) => {
                    let missing = children.keys().find(|pid| kill(**pid, None) == Err(Errno::ESRCH));
                    (missing.copied(), Some(ChildChange::Ended(128)))
                }
                Err(error) => {
                    tracing::error!(%error, "children can't be waited for");
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
