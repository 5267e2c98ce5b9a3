//! HAProxy's command lines, and how its processes come to be.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use haproxy::command::CommandLine;
use nix::unistd::{Group, execvp};

use crate::linger::own_path;
use crate::processes;

/// The program that runs, even where its file has been replaced since.
const MYSELF: &str = "/proc/self/exe";

/// The command that checks the files.
pub(crate) fn check_command(command: &CommandLine) -> CommandLine {
    with_options(command, ["-c".into()])
}

/// The command that starts a master with a socket of its own, and takes the listening sockets over from
/// whoever answers on `from` (Management Guide, section 3: `-W`, `-db`, `-S`, `-x`).
pub(crate) fn start_command(
    command: &CommandLine,
    master: &Path,
    group: Option<&Group>,
    from: Option<&Path>,
) -> CommandLine {
    let mut bind = master.as_os_str().to_owned();
    bind.push(group.map_or(",mode,600".to_owned(), |group| format!(",mode,660,gid,{}", group.gid)));
    let options: [OsString; 4] = ["-W".into(), "-db".into(), "-S".into(), bind];
    let takeover = from.into_iter().flat_map(|socket| [OsString::from("-x"), socket.into()]);
    with_options(command, options.into_iter().chain(takeover))
}

/// The same command with options at its end, or before a `--`, behind which only files are read.
/// At the end, since the program itself may stand behind another: `nice haproxy -f …`.
fn with_options(command: &CommandLine, options: impl IntoIterator<Item = OsString>) -> CommandLine {
    let dashes = |arg: &OsString| arg == "--";
    let (before, after) =
        command.args().split_at(command.args().iter().position(dashes).unwrap_or(command.args().len()));
    let words = before.iter().cloned().chain(options).chain(after.iter().cloned());
    words.fold(CommandLine::new(command.program()), CommandLine::arg)
}

/// Starts a marked HAProxy in a session of its own, out of reach of what is meant for handover's process group. Its outputs
/// are pipes.
pub(crate) fn spawn_haproxy(line: &CommandLine, socket: &Path, start: &str) -> anyhow::Result<Child> {
    let mut command = session_command(line.words());
    command.envs(processes::mark_variables(socket, start)).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().with_context(|| format!("can't start `{line}`"))
}

/// A watchdog as it is started.
#[derive(Debug)]
pub(crate) struct Watchdog<'a> {
    pub(crate) socket: &'a Path,
    /// The start that it watches over.
    pub(crate) start: &'a str,
    pub(crate) linger: Duration,
    /// supervisord's process, if that runs handover.
    pub(crate) supervisord: Option<i32>,
}

impl Watchdog<'_> {
    /// Starts it, with what it is told as its input, and returns its process.
    pub(crate) fn spawn_process(&self, words: OwnedFd) -> anyhow::Result<i32> {
        let (linger, program) = (humantime::format_duration(self.linger).to_string(), own_path());
        let supervisord = self.supervisord.map(|pid| pid.to_string());
        let fixed = [MYSELF, "linger", "--start", self.start, "--linger", &linger].map(OsStr::new);
        let supervisord = supervisord.iter().flat_map(|pid| ["--supervisord", pid].map(OsStr::new));
        let paths = [OsStr::new("--program"), program.as_os_str(), OsStr::new("--socket"), self.socket.as_os_str()];
        let mut command = session_command(fixed.into_iter().chain(supervisord).chain(paths));
        let child = command.stdin(words).spawn().context("can't start a watchdog")?;
        i32::try_from(child.id()).context("can't start a watchdog")
    }
}

/// This program again, as the given command in a session of its own.
fn session_command<'a>(words: impl Iterator<Item = &'a OsStr>) -> Command {
    let mut command = Command::new(MYSELF);
    command.arg0("handover").arg("session").arg("--").args(words).stdin(Stdio::null());
    command
}

/// Becomes the leader of a new session, and then the command. Returns only what went wrong.
pub(crate) fn become_session(words: &[OsString]) -> anyhow::Error {
    let Some(program) = words.first() else { return anyhow::anyhow!("no command") };
    if let Err(errno) = nix::unistd::setsid() {
        return anyhow::anyhow!("can't open a session: {errno}");
    }
    program::output::flush_stderr();
    let Err(error) = exec_command(words);
    anyhow::Error::new(error).context(format!("can't run {}", program.to_string_lossy()))
}

/// Becomes the command. Not by `Command`, which has SIGPIPE end the program again: a HAProxy that is still starting goes on
/// when handover ends, and with it the pipe that HAProxy writes to.
fn exec_command(words: &[OsString]) -> std::io::Result<Infallible> {
    let words: Vec<CString> = words.iter().map(|word| CString::new(word.as_bytes())).collect::<Result<_, _>>()?;
    let program = words.first().ok_or(std::io::ErrorKind::InvalidInput)?;
    Ok(execvp(program, &words)?)
}

/// The option that has the new HAProxy bind its sockets itself.
pub(crate) const AFRESH: &str = "--afresh";

/// Begins this program anew, with the same arguments, in the same process; afresh, the new HAProxy binds its sockets itself.
/// Returns only what went wrong.
pub(crate) fn reexec_self(afresh: bool) -> anyhow::Error {
    program::output::flush_stderr();
    let same = std::env::args_os().skip(1).filter(|arg| arg != AFRESH);
    let words = afresh.then(|| OsString::from(AFRESH)).into_iter().chain(same);
    let error = Command::new(MYSELF).arg0("handover").args(words).exec();
    anyhow::Error::new(error).context("can't begin anew")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> CommandLine {
        text.parse().unwrap()
    }

    #[test]
    fn options_come_last_but_before_the_files() {
        assert_eq!(check_command(&line("haproxy -f a")).to_string(), "haproxy -f a -c");
        assert_eq!(check_command(&line("nice haproxy -f a -- b")).to_string(), "nice haproxy -f a -c -- b");
        let start = |group, from| start_command(&line("haproxy -f a"), Path::new("/m.sock"), group, from).to_string();
        assert_eq!(start(None, None), "haproxy -f a -W -db -S '/m.sock,mode,600'");
        let root = Group::from_gid(0.into()).unwrap();
        assert_eq!(
            start(root.as_ref(), Some(Path::new("/a.sock"))),
            "haproxy -f a -W -db -S '/m.sock,mode,660,gid,0' -x /a.sock"
        );
    }
}
