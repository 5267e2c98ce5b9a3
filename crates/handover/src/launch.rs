//! Makes HAProxy's command lines, and starts HAProxy and the watchdog. It decides nothing.

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
use program::log::LogFormat;

use crate::linger::own_path;
use crate::processes;

/// The file of the running program, even if an upgrade has replaced it.
const MYSELF: &str = "/proc/self/exe";

/// Adds `-c`, which has HAProxy check its files.
pub(crate) fn check_command(command: &CommandLine) -> CommandLine {
    with_options(command, ["-c".into()])
}

/// The command that starts a master with a socket of its own (Management Guide, section 3: `-W`, `-db`, `-S`, `-x`).
/// The new HAProxy takes the listening sockets over from the one on `from`. With `None` it binds them itself.
pub(crate) fn start_command(
    command: &CommandLine,
    master: &Path,
    group: Option<&Group>,
    from: Option<&Path>,
) -> CommandLine {
    let mut bind = master.as_os_str().to_owned();
    bind.push(group.map_or(",mode,600".to_owned(), |group| format!(",mode,660,gid,{}", group.gid)));
    // With -db the master stays in the foreground, and is this process's child.
    let options: [OsString; 4] = ["-W".into(), "-db".into(), "-S".into(), bind];
    let takeover = from.into_iter().flat_map(|socket| [OsString::from("-x"), socket.into()]);
    with_options(command, options.into_iter().chain(takeover))
}

/// Adds options at the command's end, because the program may follow another one: `nice haproxy -f …`. After a `--`
/// HAProxy reads only files, so the options go before it.
fn with_options(command: &CommandLine, options: impl IntoIterator<Item = OsString>) -> CommandLine {
    let args = command.args();
    let (before, after) = args.split_at(args.iter().position(|arg| arg == "--").unwrap_or(args.len()));
    let words = before.iter().cloned().chain(options).chain(after.iter().cloned());
    words.fold(CommandLine::new(command.program()), CommandLine::arg)
}

/// Starts a marked HAProxy with pipes as its outputs. It gets a session of its own, which signals to handover's process
/// group don't reach (supervisord's `stopasgroup` and `killasgroup`).
pub(crate) fn spawn_haproxy(line: &CommandLine, socket: &Path, start: &str) -> anyhow::Result<Child> {
    let mut command = session_command(line.words());
    command.envs(processes::mark_variables(socket, start)).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().with_context(|| format!("can't start `{line}`"))
}

/// The arguments of a watchdog.
#[derive(Debug)]
pub(crate) struct Watchdog<'a> {
    pub(crate) socket: &'a Path,
    /// The name of the start to watch over.
    pub(crate) start: &'a str,
    pub(crate) linger: Duration,
    pub(crate) log_format: LogFormat,
    /// supervisord's process id. `None` if supervisord doesn't run handover.
    pub(crate) supervisord: Option<i32>,
}

impl Watchdog<'_> {
    /// Starts the watchdog, which reads its messages from `words`, and returns its process id.
    pub(crate) fn spawn_process(&self, words: OwnedFd) -> anyhow::Result<i32> {
        let (linger, program) = (humantime::format_duration(self.linger).to_string(), own_path());
        let supervisord = self.supervisord.map(|pid| pid.to_string());
        // The option may stand on the command line only, which the watchdog doesn't see.
        let format = self.log_format.name();
        let fixed =
            [MYSELF, "linger", "--start", self.start, "--linger", &linger, "--log-format", format].map(OsStr::new);
        let supervisord = supervisord.iter().flat_map(|pid| ["--supervisord", pid].map(OsStr::new));
        let paths = [OsStr::new("--program"), program.as_os_str(), OsStr::new("--socket"), self.socket.as_os_str()];
        let mut command = session_command(fixed.into_iter().chain(supervisord).chain(paths));
        let child = command.stdin(words).spawn().context("can't start a watchdog")?;
        i32::try_from(child.id()).context("can't start a watchdog")
    }
}

/// The command of this program that runs `words` in a session of its own.
fn session_command<'a>(words: impl Iterator<Item = &'a OsStr>) -> Command {
    let mut command = Command::new(MYSELF);
    // Without a name of its own, the process would show as /proc/self/exe.
    command.arg0("handover").arg("session").arg("--").args(words).stdin(Stdio::null());
    command
}

/// Makes this process the leader of a new session, and then the command. Returns only on failure.
pub(crate) fn become_session(words: &[OsString]) -> anyhow::Error {
    let Some(program) = words.first() else { return anyhow::anyhow!("no command") };
    if let Err(errno) = nix::unistd::setsid() {
        return anyhow::anyhow!("can't open a session (setsid): {errno}");
    }
    // The exec ends the thread that writes the output, which would lose the queued messages.
    program::output::flush_stderr();
    let Err(error) = exec_command(words);
    anyhow::Error::new(error).context(format!("can't run {}", program.to_string_lossy()))
}

/// Replaces this process by the command. `Command::exec` would have SIGPIPE end the program again. But a HAProxy that
/// is still starting goes on when handover ends, and the pipe that HAProxy writes to ends with it.
fn exec_command(words: &[OsString]) -> std::io::Result<Infallible> {
    let words: Vec<CString> = words.iter().map(|word| CString::new(word.as_bytes())).collect::<Result<_, _>>()?;
    let program = words.first().ok_or(std::io::ErrorKind::InvalidInput)?;
    Ok(execvp(program, &words)?)
}

/// The option that has the new HAProxy bind its sockets itself.
pub(crate) const AFRESH: &str = "--afresh";

/// Executes this program again in the same process, with the same arguments. `afresh` adds [`AFRESH`]. Returns only on
/// failure.
pub(crate) fn reexec_self(afresh: bool) -> anyhow::Error {
    program::output::flush_stderr();
    let same = std::env::args_os().skip(1).filter(|arg| arg != AFRESH);
    let words = afresh.then(|| OsString::from(AFRESH)).into_iter().chain(same);
    let error = Command::new(MYSELF).arg0("handover").args(words).exec();
    anyhow::Error::new(error).context("can't execute handover again")
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
