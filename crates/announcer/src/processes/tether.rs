//! The tie of an app to its announcer: the app never outlives it, nor the time of its fence.
//!
//! This program runs a second and a third time for that. As a launcher it asks the kernel for SIGKILL at its parent's
//! death, stops itself until the guard is there, and becomes the app. As a guard it lets the launcher go on. It kills the
//! app's process group if the announcer's end of a pipe is closed, or if the fence's time passes while the announcer is
//! frozen. So there is no time at which the app runs without both. It decides nothing about slots.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, PipeWriter, Read, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{SigSet, Signal, killpg, raise},
    },
    time::{ClockId, clock_gettime},
    unistd::{Pid, getpid, getppid},
};
use program::output;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::processes::reaper::{ChildChange, Reaper};
use crate::processes::table;

/// Names of this program as a launcher and as a guard, in `argv[0]`.
const LAUNCHER: &str = "announcer-app";
const GUARD: &str = "announcer-guard";

/// This program, also after its file was replaced.
pub(crate) const THIS_PROGRAM: &str = "/proc/self/exe";

/// Interval at which a guard looks if the launcher waits for it.
const LAUNCH_INTERVAL: u64 = 5;

/// Pause before another guard is started after one has ended. It doubles while guards end at once, up to the longest.
const GUARD_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_GUARD_PAUSE: Duration = Duration::from_secs(5);

/// Exit status of a launcher that starts no app, as if SIGKILL had ended it.
const NOT_STARTED: u8 = 128 + 9;

/// Time until when the app may run. `None` without a limit.
pub(crate) type Limit = Option<Instant>;

/// Runs as a launcher or guard if the program was called so. `None` if not.
pub(crate) fn run_if_called() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let name = arguments.next()?;
    if name == OsStr::new(LAUNCHER) {
        return Some(output::flush_and_return(ExitCode::from(launch_app(arguments))));
    }
    (name == OsStr::new(GUARD)).then(|| output::flush_and_return(guard_group(arguments)))
}

/// Command that starts the app by a launcher. The launcher starts nothing once the limit has passed, so that an announcer
/// that was frozen just before this starts no app afterwards.
pub(crate) fn launcher_command(program: &OsStr, arguments: &[OsString], limit: Limit) -> Command {
    let mut command = Command::new(THIS_PROGRAM);
    command.arg0(LAUNCHER).arg(getpid().to_string()).arg(Order::from_limit(limit).to_string());
    command.arg(program).args(arguments);
    command
}

/// Keeps a guard for a process group until `gone` is set, and tells it each new limit.
pub(crate) async fn keep_guard(
    reaper: Reaper,
    group: Pid,
    mut limits: watch::Receiver<Limit>,
    gone: CancellationToken,
) {
    let mut pause = GUARD_PAUSE;
    while !gone.is_cancelled() {
        let began = Instant::now();
        match start_guard(&reaper, group) {
            Ok((pipe, changes)) => attend_guard(pipe, changes, &mut limits, &gone).await,
            Err(error) => tracing::warn!(%error, "can't start the app's guard, trying again"),
        }
        pause = if began.elapsed() > LONGEST_GUARD_PAUSE { GUARD_PAUSE } else { (pause * 2).min(LONGEST_GUARD_PAUSE) };
        if gone.run_until_cancelled(sleep(pause)).await.is_none() {
            return;
        }
        tracing::warn!("the app's guard has ended, starting another one");
    }
}

type Changes = tokio::sync::mpsc::Receiver<ChildChange>;

fn start_guard(reaper: &Reaper, group: Pid) -> io::Result<(PipeWriter, Changes)> {
    let (reader, writer) = io::pipe()?;
    // A guard that doesn't read must not block the announcer.
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut command = Command::new(THIS_PROGRAM);
    command.arg0(GUARD).arg(group.to_string()).stdin(reader);
    let (_, changes) = reaper.spawn(&mut command)?;
    Ok((writer, changes))
}

/// Tells the guard each limit, until it ends or has to leave.
async fn attend_guard(
    mut pipe: PipeWriter,
    mut changes: Changes,
    limits: &mut watch::Receiver<Limit>,
    gone: &CancellationToken,
) {
    loop {
        let order = Order::from_limit(*limits.borrow_and_update());
        // A failure is a guard that has ended, which `changes` reports.
        let _ = writeln!(pipe, "{order}");
        tokio::select! {
            () = gone.cancelled() => {
                let _ = writeln!(pipe, "{}", Order::Leave);
                return;
            }
            change = changes.recv() => if !matches!(change, Some(ChildChange::Stopped)) {
                return;
            },
            // The sender lives as long as the process. Without it, only the other two can happen.
            Ok(()) = limits.changed() => {}
        }
    }
}

/// A line to the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// The app is gone.
    Leave,
    /// The app may run until the announcer's end.
    NoLimit,
    /// The app may run until the monotonic clock of this host shows so many milliseconds.
    Until(u64),
}

impl Order {
    fn from_limit(limit: Limit) -> Self {
        match limit {
            None => Self::NoLimit,
            Some(limit) => {
                let left = limit.saturating_duration_since(Instant::now());
                Self::Until(monotonic_millis().saturating_add(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)))
            }
        }
    }

    fn parse(line: &str) -> Option<Self> {
        match line {
            "leave" => Some(Self::Leave),
            "-" => Some(Self::NoLimit),
            until => Some(Self::Until(until.parse().ok()?)),
        }
    }

    /// Time that is left. `None` without a limit.
    fn millis_left(self) -> Option<u64> {
        match self {
            Self::Until(until) => Some(until.saturating_sub(monotonic_millis())),
            Self::Leave | Self::NoLimit => None,
        }
    }
}

impl std::fmt::Display for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Leave => f.write_str("leave"),
            Self::NoLimit => f.write_str("-"),
            Self::Until(until) => until.fmt(f),
        }
    }
}

/// `CLOCK_MONOTONIC`, which all processes of a host share, and which [`Instant`] is made of.
fn monotonic_millis() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Becomes the app. Returns the exit status if that fails.
fn launch_app(mut arguments: impl Iterator<Item = OsString>) -> u8 {
    let mut number = || arguments.next().and_then(|text| text.into_string().ok());
    let (parent, order) = (number(), number().and_then(|text| Order::parse(&text)));
    let (Some(order), Some(program)) = (order, arguments.next()) else { return NOT_STARTED };
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGKILL) {
        output::print_message(&format!("announcer: can't tie the app to the announcer: {error}"));
        return NOT_STARTED;
    }
    // Until the guard is there. An announcer that is frozen or dies before that starts no app.
    if let Err(error) = raise(Signal::SIGSTOP) {
        output::print_message(&format!("announcer: can't wait for the app's guard: {error}"));
        return NOT_STARTED;
    }
    // The announcer may have died before the first call, and the fence's time may have passed.
    if parent != Some(getppid().to_string()) || order.millis_left() == Some(0) {
        return NOT_STARTED;
    }
    let error = Command::new(&program).args(arguments).exec();
    output::print_message(&format!("announcer: can't run {}: {error}", program.display()));
    // The shells' exit codes.
    if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
}

/// Waits for the announcer's death or the limit, and kills the process group then.
fn guard_group(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let group = arguments.next().and_then(|text| text.to_str()?.parse::<i32>().ok());
    // 0 and 1 would be the guard's own group and everything.
    let Some(group) = group.filter(|group| *group > 1) else { return ExitCode::from(2) };
    // A manager may send its stop signal to all processes of a unit, while the app still finishes its requests.
    let _ = SigSet::all().thread_block();
    // As `ps` shows it. Otherwise it would be the name of the link that was run.
    let _ = prctl::set_name(c"announcer-guard");
    let group = Pid::from_raw(group);
    let reason = match wait_for_end(io::stdin(), || release_launcher(group)) {
        End::Left => return ExitCode::SUCCESS,
        End::Closed => "the announcer has died",
        End::Passed => "the time of its fence has passed",
    };
    // One call reaches all members: the kernel lets none of them fork meanwhile.
    match killpg(group, Signal::SIGKILL) {
        Ok(()) => output::print_message(&format!("{GUARD}: killed the app: {reason}")),
        Err(Errno::ESRCH) => {}
        Err(error) => output::print_message(&format!("{GUARD}: can't kill process group {group}: {error}")),
    }
    ExitCode::SUCCESS
}

/// True if this process is still a launcher. The kernel shows its name until it has become the app.
pub(crate) fn is_launcher(pid: Pid) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).next() == Some(LAUNCHER.as_bytes())
}

/// Lets a launcher go on if it has stopped itself. False once it has become the app, or is gone.
fn release_launcher(group: Pid) -> bool {
    let waits = is_launcher(group);
    if waits && table::is_stopped(group) {
        let _ = killpg(group, Signal::SIGCONT);
    }
    waits
}

/// Reason why a guard ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Left,
    Closed,
    Passed,
}

/// `release` lets the app start, once the first order has come. It returns false when the app has.
fn wait_for_end(mut pipe: impl AsFd + Read, release: impl Fn() -> bool) -> End {
    let (mut order, mut received) = (None, String::new());
    let (mut buffer, mut starts) = ([0; 1024], true);
    loop {
        let mut left = order.and_then(Order::millis_left);
        if left == Some(0) {
            return End::Passed;
        }
        starts = starts && (order.is_none() || release());
        if starts && order.is_some() {
            left = Some(left.map_or(LAUNCH_INTERVAL, |left| left.min(LAUNCH_INTERVAL)));
        }
        // A limit that is far away is looked at again.
        let timeout =
            left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left.min(60_000)).unwrap_or(PollTimeout::MAX));
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(_) => return End::Closed,
        }
        let read = match pipe.read(&mut buffer) {
            Ok(0) | Err(_) => return End::Closed,
            Ok(read) => buffer.get(..read).unwrap_or_default(),
        };
        received.push_str(&String::from_utf8_lossy(read));
        // The last whole line counts. A part of a line waits for its rest.
        if let Some((whole, rest)) = received.rsplit_once('\n') {
            order = whole.lines().last().and_then(Order::parse).or(order);
            received = rest.to_owned();
        }
        if order == Some(Order::Leave) {
            return End::Left;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A guard's wait that reads these lines, and then the end of the pipe.
    fn end_after(lines: &str) -> End {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(lines.as_bytes()).unwrap();
        drop(writer);
        wait_for_end(reader, || false)
    }

    #[test]
    fn a_guard_ends_with_its_announcer() {
        assert_eq!(end_after(""), End::Closed);
        assert_eq!(end_after("-\n"), End::Closed);
        assert_eq!(end_after("-\nleave\n"), End::Left);
        assert_eq!(end_after("-\nlea"), End::Closed, "half a line is no order");
        assert_eq!(end_after("?\n"), End::Closed);
    }

    #[test]
    fn a_guard_ends_with_the_limit_while_the_announcer_says_nothing() {
        let (reader, mut writer) = io::pipe().unwrap();
        let (began, limit) = (Instant::now(), Duration::from_millis(80));
        writeln!(writer, "-\n{}\n{}", Order::Until(0), Order::from_limit(Some(began + limit))).unwrap();
        assert_eq!(wait_for_end(reader, || false), End::Passed);
        assert!(began.elapsed() >= limit - Duration::from_millis(2), "{:?}", began.elapsed());
    }

    #[test]
    fn an_app_starts_only_once_its_guard_knows_the_limit() {
        let releases = Cell::new(0);
        let release = || {
            releases.set(releases.get() + 1);
            // The launcher was not stopped yet at the first look.
            releases.get() < 2
        };
        let run = |lines: &str| {
            let (reader, mut writer) = io::pipe().unwrap();
            writer.write_all(lines.as_bytes()).unwrap();
            drop(writer);
            releases.set(0);
            (wait_for_end(reader, release), releases.get())
        };
        assert_eq!(run(""), (End::Closed, 0));
        assert_eq!(run("0\n"), (End::Passed, 0), "the limit has passed");
        let (reader, mut writer) = io::pipe().unwrap();
        writeln!(writer, "{}", Order::from_limit(Some(Instant::now() + Duration::from_millis(60)))).unwrap();
        releases.set(0);
        assert_eq!((wait_for_end(reader, release), releases.get()), (End::Passed, 2));
    }

    #[test]
    fn an_order_is_read_as_it_is_written() {
        for order in [Order::Leave, Order::NoLimit, Order::Until(7)] {
            assert_eq!(Order::parse(&order.to_string()), Some(order));
        }
        assert_eq!(Order::from_limit(None), Order::NoLimit);
        assert_eq!(Order::from_limit(Some(Instant::now())).millis_left(), Some(0));
    }

    #[test]
    fn a_launcher_without_an_order_or_an_app_starts_nothing() {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>().into_iter();
        assert_eq!(launch_app(words(&[])), NOT_STARTED);
        assert_eq!(launch_app(words(&["1", "soon", "true"])), NOT_STARTED);
        assert_eq!(launch_app(words(&["1", "-"])), NOT_STARTED);
        assert!(!is_launcher(getpid()));
    }
}
