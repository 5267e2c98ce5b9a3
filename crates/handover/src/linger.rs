//! The watchdog that each handover starts beside itself. It outlives handover, and then watches over HAProxy:
//!
//! - HAProxy is ended if supervisord was told to stop it, or ends itself. [`Stop::judge`] decides that, purely.
//! - HAProxy serves on if supervisord goes on trying to start a successor, or has given it up (BACKOFF, FATAL).
//! - A new HAProxy is ended if its handover has ended before that HAProxy served.

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

/// How often supervisord is asked; it answers in 2 ms.
const ASK_INTERVAL: Duration = Duration::from_millis(250);

/// How long supervisord may take to answer. It may be starting programs just then.
const SUPERVISORD_TIMEOUT: Duration = Duration::from_secs(2);

/// How often it is looked whether a HAProxy is left to watch over.
const SCAN_INTERVAL: Duration = Duration::from_secs(2);

/// How much longer than `--linger` a supervisord that was killed may take to be started again.
const RESTART_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a start that is handing over may keep the watchdog from ending HAProxy; by then it is a successor anyway.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits until handover has ended, then watches until a successor has appeared or no HAProxy is left.
pub(crate) fn run_watchdog(args: &Linger) -> anyhow::Result<()> {
    let place = RunDir::open(&RuntimeSocket::find(&args.socket)?, None)?;
    let left = read_messages(std::io::stdin());
    if left == HandoverEnd::Done {
        return Ok(());
    }
    let mut watch = Watch { args, run_dir: place, releases: Releases::default() };
    if !matches!(left, HandoverEnd::Serving { .. }) {
        watch.abandon_takeover();
    }
    let is_told =
        matches!(left, HandoverEnd::Serving { was_signalled: true } | HandoverEnd::Starting { was_signalled: true });
    watch.watch_until_over(StopTimer::new(Instant::now(), args.linger, is_told))
}

/// How handover ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HandoverEnd {
    /// Nothing is left to watch over.
    Done,
    /// Its HAProxy serves. Told: a signal ended handover, which may be a stop.
    Serving { was_signalled: bool },
    /// Its HAProxy doesn't serve yet, or doesn't run any more.
    Starting { was_signalled: bool },
}

/// Listens to handover until it leaves. Without a last word, handover was killed.
fn read_messages(mut words: impl Read) -> HandoverEnd {
    let mut is_serving = false;
    let mut is_told = false;
    let mut word = [0];
    loop {
        match words.read(&mut word) {
            Ok(1) if word == [Message::Serving as u8] => is_serving = true,
            Ok(1) if word == [Message::Detaching as u8] => is_told = true,
            Ok(1) if word == [Message::Done as u8] => return HandoverEnd::Done,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(1) => {}
            Ok(_) | Err(_) if is_serving => return HandoverEnd::Serving { was_signalled: is_told },
            Ok(_) | Err(_) => return HandoverEnd::Starting { was_signalled: is_told },
        }
    }
}

struct Watch<'a> {
    args: &'a Linger,
    run_dir: RunDir,
    releases: Releases,
}

impl Watch<'_> {
    /// Has the new HAProxy end that was given up. If it is the only one, it stays for the successor.
    fn abandon_takeover(&mut self) {
        let (new, old): (Vec<_>, Vec<_>) =
            self.run_dir.list_haproxys().into_iter().partition(|haproxy| haproxy.start == self.args.start);
        if old.is_empty() && self.is_supervisord_alive() {
            return;
        }
        for haproxy in new {
            tracing::warn!("HAProxy {} was starting when its handover ended: it is given up", haproxy.pid());
            self.releases.release_haproxy(&haproxy, None);
        }
    }

    fn watch_until_over(&mut self, mut stop: StopTimer) -> anyhow::Result<()> {
        let supervisord = ProgramMonitor::new(self.args);
        let (mut ask_at, mut look_at) = (Instant::now(), Instant::now());
        loop {
            // Tending scans all processes, and this may last for as long as HAProxy serves.
            if !self.releases.are_all_ended() {
                self.releases.check_progress(&self.run_dir);
            }
            let now = Instant::now();
            let is_over = !self.run_dir.is_latest(&self.args.start);
            if is_over && self.releases.have_stopped_listening() {
                return Ok(());
            }
            if now >= look_at {
                look_at = now + SCAN_INTERVAL;
                if self.run_dir.list_haproxys().is_empty() {
                    return Ok(());
                }
            }
            if !is_over && now >= ask_at {
                ask_at = now + ASK_INTERVAL;
                match stop.judge_status(now, supervisord.query_status()) {
                    Decision::Wait => {}
                    Decision::Withdraw => return Ok(()),
                    Decision::End(why) => return self.end_haproxy(why),
                }
            }
            std::thread::sleep(TICK);
        }
    }

    /// Ends every HAProxy, unless a successor appears at the last moment.
    fn end_haproxy(&mut self, why: &str) -> anyhow::Result<()> {
        let lock = self.run_dir.lock_within(LOCK_TIMEOUT)?;
        if !self.run_dir.is_latest(&self.args.start) {
            return Ok(());
        }
        let linger = humantime::format_duration(self.args.linger);
        tracing::info!("{why}, and no successor within {linger}: HAProxy finishes its requests");
        for haproxy in self.run_dir.list_haproxys() {
            self.releases.release_haproxy(&haproxy, None);
        }
        drop(lock);
        // Each look removes the sockets of masters that have ended.
        while self.run_dir.is_latest(&self.args.start) && !self.run_dir.list_haproxys().is_empty() {
            self.releases.check_progress(&self.run_dir);
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    fn is_supervisord_alive(&self) -> bool {
        self.args.supervisord.is_some_and(is_alive)
    }
}

/// What the state of the program is found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProgramStatus {
    State(State),
    /// supervisord is on its way out, or has ended as it was told to.
    Ending,
    /// supervisord was killed.
    Killed,
    /// supervisord lives and doesn't answer.
    Silent,
    /// supervisord can't be asked: it gives its programs no address, or asks for a password.
    Unaskable,
    /// The program is stopped, but supervisord could not start it either: that may have been a restart.
    Unstartable,
}

/// What the watchdog does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Wait,
    /// End HAProxy, for this reason.
    End(&'static str),
    /// Watch no longer, and leave HAProxy as it is.
    Withdraw,
}

/// How long the program has been stopped.
#[derive(Debug)]
struct StopTimer {
    linger: Duration,
    /// Whether a signal ended handover. Without one a stop must be seen.
    was_signalled: bool,
    stopped_since: Option<Instant>,
}

impl StopTimer {
    fn new(now: Instant, linger: Duration, was_signalled: bool) -> Self {
        Self { linger, was_signalled, stopped_since: was_signalled.then_some(now) }
    }

    /// What follows from supervisord's answer. A restart is a stop and a start, so a stop has to last.
    fn judge_status(&mut self, now: Instant, heard: ProgramStatus) -> Decision {
        let why = match heard {
            ProgramStatus::State(State::Stopped | State::Unknown) => "supervisord has stopped the program",
            ProgramStatus::Ending => "supervisord ends",
            ProgramStatus::Killed if self.was_signalled => "supervisord is gone",
            ProgramStatus::Unaskable if self.was_signalled => "supervisord can't be asked",
            ProgramStatus::Unaskable => return Decision::Withdraw,
            // Neither says anything new.
            ProgramStatus::State(State::Stopping) | ProgramStatus::Silent | ProgramStatus::Killed => {
                return Decision::Wait;
            }
            ProgramStatus::State(_) | ProgramStatus::Unstartable => {
                self.stopped_since = None;
                return Decision::Wait;
            }
        };
        let patience = if heard == ProgramStatus::Killed { self.linger + RESTART_TIMEOUT } else { self.linger };
        let since = *self.stopped_since.get_or_insert(now);
        if now.duration_since(since) >= patience { Decision::End(why) } else { Decision::Wait }
    }
}

/// supervisord, as the program's environment names it.
struct ProgramMonitor<'a> {
    supervisord: Option<Supervisord>,
    program: Option<String>,
    args: &'a Linger,
}

impl<'a> ProgramMonitor<'a> {
    /// As supervisord tells its programs (manual: "Subprocess Environment").
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
            // It was removed from supervisord's configuration.
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

/// Whether supervisord could run handover. A start that fails for that reason leaves the program STOPPED.
fn is_executable(program: &Path) -> bool {
    access(program, AccessFlags::X_OK).is_ok()
}

/// The path that this program was started from, even if its file has been replaced since.
pub(crate) fn own_path() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_default();
    match path.to_str().and_then(|path| path.strip_suffix(" (deleted)")) {
        Some(path) => PathBuf::from(path),
        None => path,
    }
}

/// What the watchdog is told.
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
