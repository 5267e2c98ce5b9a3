//! Reads signals as events, and collects children that have ended. It acts on nothing.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::Context;
use haproxy::supervisor::Supervisord;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getppid};
use program::variable;

use crate::state::Event;

/// The time limit for supervisord's answer. It answers in 2 ms, and its `stop` waits for this process.
const SUPERVISORD_TIMEOUT: Duration = Duration::from_millis(500);

const HANDLED: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGHUP,
    Signal::SIGUSR2,
    // It asks for nothing. It ends the wait, so that handover notices the end of HAProxy at once.
    Signal::SIGCHLD,
];

/// The signals to this process, blocked until they are read. Commands that this process starts don't inherit the block.
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals. Threads inherit the block, so call this before the first thread starts.
    pub(crate) fn hold_back() -> anyhow::Result<Self> {
        let set: SigSet = HANDLED.into_iter().collect();
        set.thread_block().context("can't hold signals back")?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        Ok(Self(fd.context("can't receive signals")?))
    }

    /// The next signal. `None` if none comes within that time.
    pub(crate) fn next_within(&self, wait: Duration) -> anyhow::Result<Option<Signal>> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("can't wait for signals"),
        }
        let signal = self.0.read_signal().context("can't receive signals")?;
        Ok(signal.and_then(|info| Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()))
    }
}

/// The supervisord that runs this process. It knows if a SIGTERM belongs to a restart or to its own shutdown.
pub(crate) struct Supervision {
    /// True in every program of supervisord.
    enabled: bool,
    /// `None` if supervisord listens on no address.
    url: Option<String>,
    /// The parent at this process's start. That is supervisord, if `enabled`.
    parent: Pid,
}

impl Supervision {
    /// Reads the variables that supervisord gives its programs (manual: "Subprocess Environment").
    pub(crate) fn of_this_process() -> Self {
        let enabled = variable::read("SUPERVISOR_ENABLED").is_some();
        Self { enabled, url: variable::read_text("SUPERVISOR_SERVER_URL"), parent: getppid() }
    }

    /// supervisord's process id. `None` if supervisord doesn't run this process.
    pub(crate) fn supervisord_pid(&self) -> Option<i32> {
        self.enabled.then(|| self.parent.as_raw())
    }

    /// True if supervisord was killed, because this process then has another parent.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.enabled && getppid() != self.parent
    }

    /// True if a stop may be the first half of a restart. supervisord's own shutdown has no second half.
    fn expects_a_successor(&self) -> bool {
        let asked = self.url.as_ref().and_then(|url| url.parse::<Supervisord>().ok());
        match asked.map(|supervisord| supervisord.is_shutting_down(SUPERVISORD_TIMEOUT)) {
            Some(Ok(shutting_down)) => !shutting_down,
            Some(Err(error)) => {
                // Assume a restart. The watchdog can still end HAProxy, but a drain can't be undone.
                tracing::warn!(%error, "can't tell a restart from supervisord's shutdown");
                self.enabled
            }
            None => self.enabled,
        }
    }

    /// The meaning of a signal. `None` for SIGCHLD, which only ends the wait.
    pub(crate) fn interpret_signal(&self, signal: Signal) -> Option<Event> {
        match signal {
            Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT if self.expects_a_successor() => Some(Event::Detach),
            Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGUSR1 => Some(Event::Finish),
            Signal::SIGHUP | Signal::SIGUSR2 => Some(Event::Reload),
            _ => None,
        }
    }
}

/// Collects every child that has ended, adopted ones too. Returns the exit code of the wanted one if it is among them.
pub(crate) fn reap_children(wanted: Option<u32>) -> Option<u8> {
    // Wait for all children. After a reload in place, the old HAProxy is one too.
    let mut found = None;
    loop {
        let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, u8::try_from(code).unwrap_or(u8::MAX)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, signal_code(signal)),
            Ok(WaitStatus::StillAlive) | Err(_) => return found,
            Ok(_) => continue,
        };
        if wanted.and_then(|wanted| i32::try_from(wanted).ok()).map(Pid::from_raw) == Some(pid) {
            found = Some(code);
        }
    }
}

/// The exit code that shells give for a signal: 128 and the signal's number.
fn signal_code(signal: Signal) -> u8 {
    u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_means_leave_only_under_supervisord() {
        let event = |enabled, signal| Supervision { enabled, url: None, parent: getppid() }.interpret_signal(signal);
        assert_eq!(event(true, Signal::SIGTERM), Some(Event::Detach));
        assert_eq!(event(false, Signal::SIGTERM), Some(Event::Finish));
        assert_eq!(event(true, Signal::SIGUSR1), Some(Event::Finish));
        assert_eq!(event(true, Signal::SIGHUP), Some(Event::Reload));
        assert_eq!(event(true, Signal::SIGCHLD), None);
    }

    #[test]
    fn a_silent_supervisord_is_taken_for_a_running_one() {
        let url = Some("unix:///no/such/supervisor.sock".to_owned());
        assert_eq!(
            Supervision { enabled: true, url, parent: getppid() }.interpret_signal(Signal::SIGTERM),
            Some(Event::Detach)
        );
    }

    #[test]
    fn signals_are_told_as_shells_do() {
        assert_eq!(signal_code(Signal::SIGKILL), 137);
    }
}
