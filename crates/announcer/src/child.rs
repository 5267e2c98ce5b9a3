//! The app as a child process, and every other child that PID 1 is given.
//!
//! All waiting for children happens here. tokio's own (`tokio::process`) must not be used beside it: two that reap
//! steal each other's exit statuses.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::{
        Arc,
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

use crate::{config::App, report::Report, terminal::Terminal};

/// What is meant for the app, whoever gets it. Registering them also means that the app starts with their default
/// actions, even if we were started with some of them ignored.
const PASSED_ON: [Signal; 5] = [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH];

/// systemd talks to us, not to the app: its own word would be taken for ours.
const OURS: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// Why the app does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChildError {
    /// The program can't be started.
    #[error("{program} can't be run: {source}")]
    Spawn {
        /// As it was given.
        program: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A signal handler can't be installed.
    #[error("signals can't be handled: {0}")]
    Signals(#[source] io::Error),
}

impl ChildError {
    /// The exit code that shells give: 127 where there is no such program, 126 where it can't be run.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Spawn { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Spawn { .. } | Self::Signals(_) => 126,
        }
    }
}

/// The running app: the leader of its own process group.
#[derive(Clone)]
pub(crate) struct Child {
    leader: Pid,
    /// Set as it is reaped: its number may then be somebody else's.
    gone: Arc<AtomicBool>,
}

impl Child {
    /// Starts the app; its exit is reported. Must be called within a tokio runtime.
    pub(crate) fn start(app: &App, reports: mpsc::Sender<Report>) -> Result<Self, ChildError> {
        let children = signal(SignalKind::child()).map_err(ChildError::Signals)?;
        let passed_on = PASSED_ON.map(|number| (number, signal(SignalKind::from_raw(number as i32))));
        let mut command = Command::new(&app.program);
        // The standard library gives the child an empty signal mask and the default action of SIGPIPE.
        command.args(&app.arguments).stdin(Stdio::inherit()).process_group(0);
        OURS.iter().fold(&mut command, |command, name| command.env_remove(name));
        let terminal = Terminal::foreground();
        let spawned = command
            .spawn()
            .map_err(|source| ChildError::Spawn { program: app.program.to_string_lossy().into_owned(), source })?;
        let leader = Pid::from_raw(spawned.id().cast_signed());
        let child = Self { leader, gone: Arc::new(AtomicBool::new(false)) };
        if let Some(terminal) = &terminal {
            terminal.give_to(leader);
        }
        tracing::info!(pid = leader.as_raw(), program = %app.program.display(), "the app runs");
        for (number, signals) in passed_on {
            tokio::spawn(child.clone().pass_on(number, signals.map_err(ChildError::Signals)?));
        }
        tokio::spawn(child.clone().reap_all(children, terminal, reports));
        Ok(child)
    }

    /// Sends a signal to the app's process group, if the app still runs.
    pub(crate) fn signal(&self, signal: Signal) {
        if !self.gone.load(Ordering::Relaxed)
            && let Err(error) = killpg(self.leader, signal)
        {
            tracing::warn!(%signal, pid = self.leader.as_raw(), %error, "the app can't be signalled");
        }
    }

    async fn pass_on(self, number: Signal, mut signals: Signals) {
        while signals.recv().await.is_some() {
            self.signal(number);
        }
    }

    /// Reaps every child that ends: the app, and the orphans that PID 1 inherits.
    async fn reap_all(self, mut children: Signals, terminal: Option<Terminal>, reports: mpsc::Sender<Report>) {
        loop {
            match self.reap() {
                Some(Change::Ended(status)) => {
                    if let Some(terminal) = &terminal {
                        terminal.take_back();
                    }
                    let _ = reports.send(Report::AppExited(status)).await;
                }
                Some(Change::Stopped) => {
                    if let Some(terminal) = &terminal {
                        terminal.suspend(self.leader);
                    }
                }
                None if children.recv().await.is_none() => return,
                None => {}
            }
        }
    }

    /// Reaps until the app's state has changed, or nothing is left to reap.
    fn reap(&self) -> Option<Change> {
        loop {
            let change = match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
                Ok(status) if status.pid() == Some(self.leader) => change(status),
                Ok(_) | Err(Errno::EINTR) => None,
                // nix knows no real-time signals; the child that one of them ended has been reaped nevertheless.
                Err(Errno::EINVAL) if kill(self.leader, None) == Err(Errno::ESRCH) => Some(Change::Ended(128)),
                Err(Errno::EINVAL) => None,
                Err(error) => {
                    tracing::error!(%error, "children can't be waited for");
                    return None;
                }
            };
            if let Some(change) = change {
                if matches!(change, Change::Ended(_)) && self.gone.swap(true, Ordering::Relaxed) {
                    continue;
                }
                return Some(change);
            }
        }
    }
}

/// What became of the app.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    /// It ended; the exit status as a shell would put it.
    Ended(u8),
    /// Somebody stopped it at the terminal.
    Stopped,
}

fn change(status: WaitStatus) -> Option<Change> {
    match status {
        WaitStatus::Exited(_, code) => Some(Change::Ended(u8::try_from(code & 0xff).unwrap_or(u8::MAX))),
        WaitStatus::Signaled(_, signal, _) => Some(Change::Ended(128 + signal as u8)),
        WaitStatus::Stopped(..) => Some(Change::Stopped),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_are_a_shells() {
        let pid = Pid::from_raw(7);
        assert_eq!(change(WaitStatus::Exited(pid, 3)), Some(Change::Ended(3)));
        assert_eq!(change(WaitStatus::Signaled(pid, Signal::SIGTERM, false)), Some(Change::Ended(143)));
        assert_eq!(change(WaitStatus::Stopped(pid, Signal::SIGTSTP)), Some(Change::Stopped));
        assert_eq!(change(WaitStatus::Continued(pid)), None);
    }
}
