//! The watchdog as handover sees it: a process that is told how far handover has come.
//!
//! It is started before anything else, since a process table that is full later must not cost HAProxy its watchdog.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::fcntl::OFlag;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

use crate::launch;
use crate::linger::Message;

/// How long its end is waited for when nothing is left to watch over.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// How often that is looked at.
const TICK: Duration = Duration::from_millis(2);

/// The running watchdog. It notices by itself that handover ends.
#[derive(Debug)]
pub(crate) struct WatchdogHandle {
    messages: std::fs::File,
    pid: Pid,
}

impl WatchdogHandle {
    /// Starts the watchdog of a start.
    pub(crate) fn start_watchdog(watchdog: &launch::Watchdog<'_>) -> anyhow::Result<Self> {
        let (reader, writer): (OwnedFd, OwnedFd) = pipe2(OFlag::O_CLOEXEC).context("can't make a pipe")?;
        let pid = watchdog.spawn_process(reader)?;
        Ok(Self { messages: writer.into(), pid: Pid::from_raw(pid) })
    }

    /// Tells it. Its own death is no error: there is another one after the next restart.
    pub(crate) fn send_message(&mut self, word: Message) {
        if let Err(error) = self.messages.write_all(&[word as u8]) {
            tracing::warn!("the watchdog has ended ({error}): HAProxy serves on, whatever supervisord says");
        }
    }

    /// Tells it that nothing is left to watch over, and waits until it has ended.
    pub(crate) fn dismiss(mut self) {
        if self.messages.write_all(&[Message::Done as u8]).is_err() {
            return;
        }
        let deadline = Instant::now() + END_TIMEOUT;
        while Instant::now() < deadline && waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive) {
            std::thread::sleep(TICK);
        }
    }
}
