//! Starts the watchdog, and tells it how far handover has come. The watchdog itself is `linger`.
//!
//! handover starts it before anything else, because a process table that is full later must not cost HAProxy its
//! watchdog.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::fcntl::OFlag;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

use crate::launch;
use crate::linger::Message;

/// The longest wait for the watchdog's end after `Message::Done`.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// The interval between two checks of that end.
const TICK: Duration = Duration::from_millis(2);

/// The running watchdog. It notices handover's end by the end of this pipe.
#[derive(Debug)]
pub(crate) struct WatchdogHandle {
    messages: std::fs::File,
    pid: Pid,
}

impl WatchdogHandle {
    /// Starts the watchdog in a session of its own.
    pub(crate) fn start_watchdog(watchdog: &launch::Watchdog<'_>) -> anyhow::Result<Self> {
        // CLOEXEC: with a copy of this pipe, HAProxy would hide the end of handover from the watchdog.
        let (reader, writer): (OwnedFd, OwnedFd) =
            pipe2(OFlag::O_CLOEXEC).context("can't make a pipe to the watchdog")?;
        let pid = watchdog.spawn_process(reader)?;
        Ok(Self { messages: writer.into(), pid: Pid::from_raw(pid) })
    }

    /// Sends a message. A watchdog that has died is no error, because the next start brings its own.
    pub(crate) fn send_message(&mut self, message: Message) {
        if let Err(error) = self.messages.write_all(&[message as u8]) {
            tracing::warn!(%error, "watchdog ended, a stop by supervisord leaves HAProxy running");
        }
    }

    /// Tells the watchdog that nothing is left to watch over, and waits for its end.
    pub(crate) fn dismiss(mut self) {
        if self.messages.write_all(&[Message::Done as u8]).is_err() {
            // The watchdog has died already.
            return;
        }
        let deadline = Instant::now() + END_TIMEOUT;
        while Instant::now() < deadline && waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive) {
            std::thread::sleep(TICK);
        }
    }
}
