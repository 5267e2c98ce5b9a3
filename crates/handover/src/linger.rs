//! The watchdog, a process that each handover starts. It outlives handover, and then watches over HAProxy:
//!
//! - It ends HAProxy if supervisord has stopped the program, or ends itself. [`StopTimer::judge_status`] decides that,
//!   purely.
//! - It lets HAProxy serve on if supervisord tries to start a successor, or has given that up (BACKOFF, FATAL).
//! - It ends a new HAProxy if its handover ended before that HAProxy served.
//!
//! It never starts a HAProxy.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use haproxy::supervisor::{Error, Fault, State, Supervisord};
use nix::unistd::{AccessFlags, access};
use program::variable;

use crate::args::Linger;
use crate::processes::is_alive;
use crate::release::{Releases, TICK};
use crate::run_dir::{RunDir, RuntimeSocket};

/// The interval between two questions to supervisord, which answers in 2 ms.
const ASK_INTERVAL: Duration = Duration::from_millis(250);

/// The time limit for supervisord's answer. It may be starting programs just then.
const SUPERVISORD_TIMEOUT: Duration = Duration::from_secs(2);

/// The interval between two scans of `/proc` for a HAProxy that is left.
const SCAN_INTERVAL: Duration = Duration::from_secs(2);

/// The time beyond `--linger` in which a killed supervisord may be started again.
const RESTART_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest wait for a start that is handing over. By then that start is a successor.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits until handover has ended, then watches until a successor has appeared or no HAProxy is left.
pub(crate) fn run_watchdog(args: &Linger) -> anyhow::Result<()> {
    let run_dir = RunDir::open(&RuntimeSocket::find(&args.socket)?, None)?;
    let end = read_messages(std::io::stdin());
    if end == HandoverEnd::Done {
        return Ok(());
    }
    let mut watch = Watch { args, run_dir, releases: Releases::default() };
    if !matches!(end, HandoverEnd::Serving { .. }) {
        watch.abandon_takeover();
    }
    let was_signalled =
        matches!(end, HandoverEnd::Serving { was_signalled: true } | HandoverEnd::Starting { was_signalled: true });
    watch.watch_until_over(StopTimer::new(Instant::now(), args.linger, was_signalled))
}

/// The end of handover, by the messages before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HandoverEnd {
    /// Nothing is left to watch over.
    Done,
    /// Its HAProxy serves. `was_signalled` means that a signal ended handover, which may be a stop.
    Serving { was_signalled: bool },
    /// Its HAProxy doesn't serve yet, or doesn't run any more.
    Starting { was_signalled: bool },
}

/// Reads handover's messages until it ends. If no message comes before the end, handover was killed.
fn read_messages(mut messages: impl Read) -> HandoverEnd {
    let mut is_serving = false;
    let mut was_signalled = false;
    let mut message = [0];
    loop {
        match messages.read(&mut message) {
            Ok(1) if message == [Message::Serving as u8] => is_serving = true,
            Ok(1) if message == [Message::Detaching as u8] => was_signalled = true,
            Ok(1) if message == [Message::Done as u8] => return HandoverEnd::Done,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(1) => {}
            Ok(_) | Err(_) if is_serving => return HandoverEnd::Serving { was_signalled },
            Ok(_) | Err(_) => return HandoverEnd::Starting { was_signalled },
        }
    }
}

struct Watch<'a> {
    args: &'a Linger,
    run_dir: RunDir,
    releases: Releases,
}

impl Watch<'_> {
    /// Ends the new HAProxy of a takeover that was cut short. If it is the only one, it stays for the successor.
    fn abandon_takeover(&mut self) {
        let (new, old): (Vec<_>, Vec<_>) =
            self.run_dir.list_haproxys().into_iter().partition(|haproxy| haproxy.start == self.args.start);
        if old.is_empty() && self.is_supervisord_alive() {
            return;
        }
        for haproxy in new {
            tracing::warn!(pid = haproxy.pid(), "giving up a HAProxy whose handover ended before it served");
            self.releases.release_haproxy(&haproxy, None);
        }
    }

    fn watch_until_over(&mut self, mut timer: StopTimer) -> anyhow::Result<()> {
        let supervisord = ProgramMonitor::new(self.args);
        let (mut ask_at, mut scan_at) = (Instant::now(), Instant::now());
        loop {
            // `check_progress` scans all of /proc, and this loop may last for as long as HAProxy serves.
            if !self.releases.are_all_ended() {
                self.releases.check_progress(&self.run_dir);
            }
            let now = Instant::now();
            let is_over = !self.run_dir.is_latest(&self.args.start);
            if is_over && self.releases.have_stopped_listening() {
                return Ok(());
            }
            if now >= scan_at {
                scan_at = now + SCAN_INTERVAL;
                if self.run_dir.list_haproxys().is_empty() {
                    return Ok(());
                }
            }
            if !is_over && now >= ask_at {
                ask_at = now + ASK_INTERVAL;
                match timer.judge_status(now, supervisord.query_status()) {
                    Decision::Wait => {}
                    Decision::Withdraw => return Ok(()),
                    Decision::End(reason) => return self.end_haproxy(reason),
                }
            }
            std::thread::sleep(TICK);
        }
    }

    /// Ends every HAProxy, unless a successor appears at the last moment.
    fn end_haproxy(&mut self, reason: &str) -> anyhow::Result<()> {
        let lock = self.run_dir.lock_within(LOCK_TIMEOUT)?;
        // A start may have announced itself while this waited for the lock.
        if !self.run_dir.is_latest(&self.args.start) {
            return Ok(());
        }
        let linger = humantime::format_duration(self.args.linger);
        tracing::info!(%reason, %linger, "no successor started, ending HAProxy after its requests");
        for haproxy in self.run_dir.list_haproxys() {
            self.releases.release_haproxy(&haproxy, None);
        }
        drop(lock);
        // Each scan removes the sockets of masters that have ended.
        while self.run_dir.is_latest(&self.args.start) && !self.run_dir.list_haproxys().is_empty() {
            self.releases.check_progress(&self.run_dir);
            // Each round scans /proc, and a HAProxy may finish its last connections for hours.
            let is_let_go = self.releases.have_stopped_listening();
            std::thread::sleep(if is_let_go { SCAN_INTERVAL } else { TICK });
        }
        Ok(())
    }

    fn is_supervisord_alive(&self) -> bool {
        self.args.supervisord.is_some_and(is_alive)
    }
}

/// The program's status, as far as supervisord tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProgramStatus {
    State(State),
    /// supervisord is shutting down, or has shut down in order.
    Ending,
    /// supervisord was killed.
    Killed,
    /// supervisord lives and doesn't answer.
    Silent,
    /// supervisord can't be asked: it gives its programs no address, or asks for a password.
    Unaskable,
    /// The program is stopped, and supervisord could not start it. That may have been a restart.
    Unstartable,
}

/// The watchdog's next act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Wait,
    /// End HAProxy, for this reason.
    End(&'static str),
    /// Watch no longer, and leave HAProxy as it is.
    Withdraw,
}

/// Measures how long supervisord has kept the program stopped. Pure: the caller gives the time.
#[derive(Debug)]
struct StopTimer {
    linger: Duration,
    /// True if a signal ended handover. Otherwise the timer starts only if supervisord reports a stop.
    was_signalled: bool,
    stopped_since: Option<Instant>,
}

impl StopTimer {
    fn new(now: Instant, linger: Duration, was_signalled: bool) -> Self {
        Self { linger, was_signalled, stopped_since: was_signalled.then_some(now) }
    }

    /// Decides by supervisord's answer. A restart is a stop and a start, so that only a stop that lasts ends HAProxy.
    fn judge_status(&mut self, now: Instant, status: ProgramStatus) -> Decision {
        let reason = match status {
            ProgramStatus::State(State::Stopped | State::Unknown) => "supervisord has stopped the program",
            ProgramStatus::Ending => "supervisord ends",
            ProgramStatus::Killed if self.was_signalled => "supervisord is gone",
            ProgramStatus::Unaskable if self.was_signalled => "supervisord can't be asked",
            ProgramStatus::Unaskable => return Decision::Withdraw,
            // These don't tell if the program is stopped. A timer that runs goes on.
            ProgramStatus::State(State::Stopping) | ProgramStatus::Silent | ProgramStatus::Killed => {
                return Decision::Wait;
            }
            ProgramStatus::State(_) | ProgramStatus::Unstartable => {
                self.stopped_since = None;
                return Decision::Wait;
            }
        };
        // systemd may start a killed supervisord again, and the next supervisord starts a successor.
        let patience = if status == ProgramStatus::Killed { self.linger + RESTART_TIMEOUT } else { self.linger };
        let since = *self.stopped_since.get_or_insert(now);
        if now.duration_since(since) >= patience { Decision::End(reason) } else { Decision::Wait }
    }
}

/// supervisord, as the program's environment names it.
struct ProgramMonitor<'a> {
    supervisord: Option<Supervisord>,
    program: Option<String>,
    args: &'a Linger,
}

impl<'a> ProgramMonitor<'a> {
    /// Reads the variables that supervisord gives its programs (manual: "Subprocess Environment").
    fn new(args: &'a Linger) -> Self {
        let supervisord = variable::read_text("SUPERVISOR_SERVER_URL").and_then(|url| url.parse().ok());
        let name = variable::read_text("SUPERVISOR_PROCESS_NAME");
        let program = name.map(|name| match variable::read_text("SUPERVISOR_GROUP_NAME") {
            Some(group) => format!("{group}:{name}"),
            None => name,
        });
        Self { supervisord, program, args }
    }

    fn query_status(&self) -> ProgramStatus {
        let (Some(supervisord), Some(program)) = (&self.supervisord, &self.program) else {
            return ProgramStatus::Unaskable;
        };
        let is_alive = self.args.supervisord.is_some_and(is_alive);
        match supervisord.query_process_within(program, SUPERVISORD_TIMEOUT) {
            Ok(process) if process.state == State::Stopped && !is_executable(&self.args.program) => {
                ProgramStatus::Unstartable
            }
            Ok(process) => ProgramStatus::State(process.state),
            Err(Error::Fault { fault: Fault::ShutdownState, .. }) => ProgramStatus::Ending,
            // The program was removed from supervisord's configuration.
            Err(Error::Fault { fault: Fault::BadName, .. }) => ProgramStatus::State(State::Stopped),
            Err(Error::Exchange { .. }) => ProgramStatus::Silent,
            Err(Error::Unreachable { .. }) if is_alive => ProgramStatus::Silent,
            // A supervisord that ends removes its socket; one that is killed leaves the file.
            Err(Error::Unreachable { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                ProgramStatus::Ending
            }
            Err(Error::Unreachable { .. }) => ProgramStatus::Killed,
            Err(_) => ProgramStatus::Unaskable,
        }
    }
}

/// True if supervisord could run handover. A start that fails for that reason leaves the program STOPPED.
fn is_executable(program: &Path) -> bool {
    access(program, AccessFlags::X_OK).is_ok()
}

/// The path that this program was started from, even if an upgrade has replaced its file.
pub(crate) fn own_path() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_default();
    // Linux appends this to the target of /proc/self/exe if the file is gone (proc(5)).
    match path.to_str().and_then(|path| path.strip_suffix(" (deleted)")) {
        Some(path) => PathBuf::from(path),
        None => path,
    }
}

/// A message to the watchdog: one byte in the pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// The new HAProxy serves.
    Serving = b's' as isize,
    /// A signal ends handover. It may be a stop, or the first half of a restart.
    Detaching = b'l' as isize,
    /// HAProxy has ended, or ends by itself.
    Done = b'd' as isize,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINGER: Duration = Duration::from_secs(3);

    #[test]
    fn a_last_word_is_told_from_a_sudden_end() {
        let (serves, leaves, done) = (Message::Serving as u8, Message::Detaching as u8, Message::Done as u8);
        assert_eq!(read_messages(&[][..]), HandoverEnd::Starting { was_signalled: false });
        assert_eq!(read_messages(&[leaves][..]), HandoverEnd::Starting { was_signalled: true });
        assert_eq!(read_messages(&[serves][..]), HandoverEnd::Serving { was_signalled: false });
        assert_eq!(read_messages(&[serves, leaves][..]), HandoverEnd::Serving { was_signalled: true });
        assert_eq!(read_messages(&[serves, done][..]), HandoverEnd::Done);
    }

    /// The verdict after that many seconds of the same answer, asked every quarter of a second.
    fn after(seconds: u64, is_told: bool, heard: ProgramStatus) -> Decision {
        let begin = Instant::now();
        let mut stop = StopTimer::new(begin, LINGER, is_told);
        let verdicts = (0..=seconds * 4).map(|tick| stop.judge_status(begin + ASK_INTERVAL * tick as u32, heard));
        verdicts.last().unwrap()
    }

    #[test]
    fn only_a_stop_that_lasts_ends_haproxy() {
        use Decision::{End, Wait, Withdraw};
        let stopped = ProgramStatus::State(State::Stopped);
        assert_eq!(after(2, true, stopped), Wait, "it may be a restart");
        assert_eq!(after(3, true, stopped), End("supervisord has stopped the program"));
        assert_eq!(after(3, false, stopped), End("supervisord has stopped the program"), "stopped from BACKOFF");
        for state in [State::Starting, State::Running, State::Backoff, State::Fatal, State::Exited, State::Stopping] {
            assert_eq!(after(3600, true, ProgramStatus::State(state)), Wait, "{state}");
        }
        for heard in [ProgramStatus::Silent, ProgramStatus::Unstartable] {
            assert_eq!(after(3600, true, heard), Wait, "{heard:?}");
        }
        assert_eq!(after(3, false, ProgramStatus::Ending), End("supervisord ends"));
        assert_eq!(after(12, true, ProgramStatus::Killed), Wait, "systemd may start it again");
        assert_eq!(after(13, true, ProgramStatus::Killed), End("supervisord is gone"));
        assert_eq!(after(3600, false, ProgramStatus::Killed), Wait, "the next supervisord takes HAProxy over");
        assert_eq!(after(3, true, ProgramStatus::Unaskable), End("supervisord can't be asked"));
        assert_eq!(after(0, false, ProgramStatus::Unaskable), Withdraw);
    }

    #[test]
    fn a_restart_between_two_questions_begins_the_time_anew() {
        let begin = Instant::now();
        let mut stop = StopTimer::new(begin, LINGER, true);
        let heard = |state: State| ProgramStatus::State(state);
        assert_eq!(stop.judge_status(begin + LINGER / 2, heard(State::Backoff)), Decision::Wait);
        assert_eq!(stop.judge_status(begin + LINGER * 5, heard(State::Stopped)), Decision::Wait);
        assert_eq!(stop.judge_status(begin + LINGER * 7, heard(State::Starting)), Decision::Wait);
        assert_eq!(stop.judge_status(begin + LINGER * 9, heard(State::Stopped)), Decision::Wait);
        assert!(matches!(stop.judge_status(begin + LINGER * 10, heard(State::Stopped)), Decision::End(_)));
    }
}
