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
use crate::run_dir::{Place, RuntimeSocket};

/// How often supervisord is asked; it answers in 2 ms.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// How long supervisord may take to answer. It may be starting programs just then.
const SUPERVISORD_TIMEOUT: Duration = Duration::from_secs(2);

/// How often it is looked whether a HAProxy is left to watch over.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How much longer than `--linger` a supervisord that was killed may take to be started again.
const RESTARTS_WITHIN: Duration = Duration::from_secs(10);

/// How long a start that is handing over may keep the watchdog from ending HAProxy; by then it is a successor anyway.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Waits until handover has ended, then watches until a successor has appeared or no HAProxy is left.
pub(crate) fn run(args: &Linger) -> anyhow::Result<()> {
    let place = Place::open(&RuntimeSocket::find(&args.socket)?, None)?;
    let left = listen(std::io::stdin());
    if left == Left::Done {
        return Ok(());
    }
    let mut watch = Watch { args, place, releases: Releases::default() };
    if !matches!(left, Left::Serving { .. }) {
        watch.abandon();
    }
    let is_told = matches!(left, Left::Serving { is_told: true } | Left::Starting { is_told: true });
    watch.run(Stop::new(Instant::now(), args.linger, is_told))
}

/// How handover ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Nothing is left to watch over.
    Done,
    /// Its HAProxy serves. Told: a signal ended handover, which may be a stop.
    Serving { is_told: bool },
    /// Its HAProxy doesn't serve yet, or doesn't run any more.
    Starting { is_told: bool },
}

/// Listens to handover until it leaves. Without a last word, handover was killed.
fn listen(mut words: impl Read) -> Left {
    let mut is_serving = false;
    let mut is_told = false;
    let mut word = [0];
    loop {
        match words.read(&mut word) {
            Ok(1) if word == [Word::Serves as u8] => is_serving = true,
            Ok(1) if word == [Word::Leaves as u8] => is_told = true,
            Ok(1) if word == [Word::Done as u8] => return Left::Done,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(1) => {}
            Ok(_) | Err(_) if is_serving => return Left::Serving { is_told },
            Ok(_) | Err(_) => return Left::Starting { is_told },
        }
    }
}

struct Watch<'a> {
    args: &'a Linger,
    place: Place,
    releases: Releases,
}

impl Watch<'_> {
    /// Has the new HAProxy end that was given up. If it is the only one, it stays for the successor.
    fn abandon(&mut self) {
        let (new, old): (Vec<_>, Vec<_>) =
            self.place.haproxys().into_iter().partition(|haproxy| haproxy.start == self.args.start);
        if old.is_empty() && self.supervisord_lives() {
            return;
        }
        for haproxy in new {
            tracing::warn!("HAProxy {} was starting when its handover ended: it is given up", haproxy.pid());
            self.releases.release(&haproxy, None);
        }
    }

    fn run(&mut self, mut stop: Stop) -> anyhow::Result<()> {
        let supervisord = Asked::new(self.args);
        let (mut ask_at, mut look_at) = (Instant::now(), Instant::now());
        loop {
            // Tending scans all processes, and this may last for as long as HAProxy serves.
            if !self.releases.are_over() {
                self.releases.tend(&self.place);
            }
            let now = Instant::now();
            let is_over = !self.place.is_latest(&self.args.start);
            if is_over && self.releases.have_let_go() {
                return Ok(());
            }
            if now >= look_at {
                look_at = now + LOOK_EVERY;
                if self.place.haproxys().is_empty() {
                    return Ok(());
                }
            }
            if !is_over && now >= ask_at {
                ask_at = now + ASK_EVERY;
                match stop.judge(now, supervisord.ask()) {
                    Verdict::Wait => {}
                    Verdict::Ignore => return Ok(()),
                    Verdict::End(why) => return self.end(why),
                }
            }
            std::thread::sleep(TICK);
        }
    }

    /// Ends every HAProxy, unless a successor appears at the last moment.
    fn end(&mut self, why: &str) -> anyhow::Result<()> {
        let lock = self.place.lock(LOCK_PATIENCE)?;
        if !self.place.is_latest(&self.args.start) {
            return Ok(());
        }
        let linger = humantime::format_duration(self.args.linger);
        tracing::info!("{why}, and no successor within {linger}: HAProxy finishes its requests");
        for haproxy in self.place.haproxys() {
            self.releases.release(&haproxy, None);
        }
        drop(lock);
        // Each look removes the sockets of masters that have ended.
        while self.place.is_latest(&self.args.start) && !self.place.haproxys().is_empty() {
            self.releases.tend(&self.place);
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    fn supervisord_lives(&self) -> bool {
        self.args.supervisord.is_some_and(is_alive)
    }
}

/// What the state of the program is found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
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
enum Verdict {
    Wait,
    /// End HAProxy, for this reason.
    End(&'static str),
    /// Watch no longer, and leave HAProxy as it is.
    Ignore,
}

/// How long the program has been stopped.
#[derive(Debug)]
struct Stop {
    linger: Duration,
    /// Whether a signal ended handover. Without one a stop must be seen.
    is_told: bool,
    since: Option<Instant>,
}

impl Stop {
    fn new(now: Instant, linger: Duration, is_told: bool) -> Self {
        Self { linger, is_told, since: is_told.then_some(now) }
    }

    /// What follows from supervisord's answer. A restart is a stop and a start, so a stop has to last.
    fn judge(&mut self, now: Instant, heard: Heard) -> Verdict {
        let why = match heard {
            Heard::State(State::Stopped | State::Unknown) => "supervisord has stopped the program",
            Heard::Ending => "supervisord ends",
            Heard::Killed if self.is_told => "supervisord is gone",
            Heard::Unaskable if self.is_told => "supervisord can't be asked",
            Heard::Unaskable => return Verdict::Ignore,
            // Neither says anything new.
            Heard::State(State::Stopping) | Heard::Silent | Heard::Killed => return Verdict::Wait,
            Heard::State(_) | Heard::Unstartable => {
                self.since = None;
                return Verdict::Wait;
            }
        };
        let patience = if heard == Heard::Killed { self.linger + RESTARTS_WITHIN } else { self.linger };
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) >= patience { Verdict::End(why) } else { Verdict::Wait }
    }
}

/// supervisord, as the program's environment names it.
struct Asked<'a> {
    supervisord: Option<Supervisord>,
    program: Option<String>,
    args: &'a Linger,
}

impl<'a> Asked<'a> {
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

    fn ask(&self) -> Heard {
        let (Some(supervisord), Some(program)) = (&self.supervisord, &self.program) else { return Heard::Unaskable };
        let is_alive = self.args.supervisord.is_some_and(is_alive);
        match supervisord.process_within(program, SUPERVISORD_TIMEOUT) {
            Ok(process) if process.state == State::Stopped && !is_executable(&self.args.program) => Heard::Unstartable,
            Ok(process) => Heard::State(process.state),
            Err(Error::Fault { fault: Fault::ShutdownState, .. }) => Heard::Ending,
            // It was removed from supervisord's configuration.
            Err(Error::Fault { fault: Fault::BadName, .. }) => Heard::State(State::Stopped),
            Err(Error::Exchange { .. }) => Heard::Silent,
            Err(Error::Unreachable { .. }) if is_alive => Heard::Silent,
            // A supervisord that ends removes its socket; one that is killed leaves the file.
            Err(Error::Unreachable { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Heard::Ending,
            Err(Error::Unreachable { .. }) => Heard::Killed,
            Err(_) => Heard::Unaskable,
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
pub(crate) enum Word {
    /// The new HAProxy serves.
    Serves = b's' as isize,
    /// A signal ends handover. It may be a stop, or the first half of a restart.
    Leaves = b'l' as isize,
    /// HAProxy has ended, or ends by itself.
    Done = b'd' as isize,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINGER: Duration = Duration::from_secs(3);

    #[test]
    fn a_last_word_is_told_from_a_sudden_end() {
        let (serves, leaves, done) = (Word::Serves as u8, Word::Leaves as u8, Word::Done as u8);
        assert_eq!(listen(&[][..]), Left::Starting { is_told: false });
        assert_eq!(listen(&[leaves][..]), Left::Starting { is_told: true });
        assert_eq!(listen(&[serves][..]), Left::Serving { is_told: false });
        assert_eq!(listen(&[serves, leaves][..]), Left::Serving { is_told: true });
        assert_eq!(listen(&[serves, done][..]), Left::Done);
    }

    /// The verdict after that many seconds of the same answer, asked every quarter of a second.
    fn after(seconds: u64, is_told: bool, heard: Heard) -> Verdict {
        let begin = Instant::now();
        let mut stop = Stop::new(begin, LINGER, is_told);
        let verdicts = (0..=seconds * 4).map(|tick| stop.judge(begin + ASK_EVERY * tick as u32, heard));
        verdicts.last().unwrap()
    }

    #[test]
    fn only_a_stop_that_lasts_ends_haproxy() {
        use Verdict::{End, Ignore, Wait};
        let stopped = Heard::State(State::Stopped);
        assert_eq!(after(2, true, stopped), Wait, "it may be a restart");
        assert_eq!(after(3, true, stopped), End("supervisord has stopped the program"));
        assert_eq!(after(3, false, stopped), End("supervisord has stopped the program"), "stopped from BACKOFF");
        for state in [State::Starting, State::Running, State::Backoff, State::Fatal, State::Exited, State::Stopping] {
            assert_eq!(after(3600, true, Heard::State(state)), Wait, "{state}");
        }
        for heard in [Heard::Silent, Heard::Unstartable] {
            assert_eq!(after(3600, true, heard), Wait, "{heard:?}");
        }
        assert_eq!(after(3, false, Heard::Ending), End("supervisord ends"));
        assert_eq!(after(12, true, Heard::Killed), Wait, "systemd may start it again");
        assert_eq!(after(13, true, Heard::Killed), End("supervisord is gone"));
        assert_eq!(after(3600, false, Heard::Killed), Wait, "the next supervisord takes HAProxy over");
        assert_eq!(after(3, true, Heard::Unaskable), End("supervisord can't be asked"));
        assert_eq!(after(0, false, Heard::Unaskable), Ignore);
    }

    #[test]
    fn a_restart_between_two_questions_begins_the_time_anew() {
        let begin = Instant::now();
        let mut stop = Stop::new(begin, LINGER, true);
        let heard = |state: State| Heard::State(state);
        assert_eq!(stop.judge(begin + LINGER / 2, heard(State::Backoff)), Verdict::Wait);
        assert_eq!(stop.judge(begin + LINGER * 5, heard(State::Stopped)), Verdict::Wait);
        assert_eq!(stop.judge(begin + LINGER * 7, heard(State::Starting)), Verdict::Wait);
        assert_eq!(stop.judge(begin + LINGER * 9, heard(State::Stopped)), Verdict::Wait);
        assert!(matches!(stop.judge(begin + LINGER * 10, heard(State::Stopped)), Verdict::End(_)));
    }
}
