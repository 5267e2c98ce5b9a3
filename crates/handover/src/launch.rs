//! HAProxy's command lines, and how its processes come to be.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use haproxy::command::CommandLine;
use nix::unistd::Group;

use crate::haproxys;

/// The program that runs, even where its file has been replaced since.
const MYSELF: &str = "/proc/self/exe";

/// The command that checks the files.
pub(crate) fn check(command: &CommandLine) -> CommandLine {
    with_options(command, ["-c".into()])
}

/// The command that starts a master with a socket of its own, and takes the listening sockets over from
/// whoever answers on `from` (Management Guide, section 3: `-W`, `-db`, `-S`, `-x`).
pub(crate) fn start(command: &CommandLine, master: &Path, group: Option<&Group>, from: Option<&Path>) -> CommandLine {
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

/// Starts a marked HAProxy in a session of its own, out of reach of what is meant for handover's process group.
pub(crate) fn spawn_haproxy(line: &CommandLine, socket: &Path, start: &str) -> anyhow::Result<Child> {
    session(line.words()).envs(haproxys::marks(socket, start)).spawn().with_context(|| format!("can't start `{line}`"))
}

/// Leaves the watchdog that ends HAProxy unless a successor appears.
pub(crate) fn spawn_watchdog(socket: &Path, start: &str, linger: std::time::Duration) -> anyhow::Result<()> {
    let linger = humantime::format_duration(linger).to_string();
    let words = [MYSELF, "linger", "--start", start, "--linger", &linger, "--socket"].map(OsStr::new);
    session(words.into_iter().chain([socket.as_os_str()])).spawn().context("can't leave a watchdog")?;
    Ok(())
}

/// This program again, as the given command in a session of its own.
fn session<'a>(words: impl Iterator<Item = &'a OsStr>) -> Command {
    let mut command = Command::new(MYSELF);
    command.arg0("handover").arg("session").arg("--").args(words).stdin(Stdio::null());
    command
}

/// Becomes the leader of a new session, and then the command. Returns only what went wrong.
pub(crate) fn become_session(words: &[OsString]) -> anyhow::Error {
    let Some((program, args)) = words.split_first() else { return anyhow::anyhow!("no command") };
    if let Err(errno) = nix::unistd::setsid() {
        return anyhow::anyhow!("can't open a session: {errno}");
    }
    program::output::flush();
    let error = Command::new(program).args(args).exec();
    anyhow::Error::new(error).context(format!("can't run {}", program.to_string_lossy()))
}

/// Begins this program anew, with the same arguments, in the same process. Returns only what went wrong.
pub(crate) fn renew() -> anyhow::Error {
    program::output::flush();
    let error = Command::new(MYSELF).arg0("handover").args(std::env::args_os().skip(1)).exec();
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
        assert_eq!(check(&line("haproxy -f a")).to_string(), "haproxy -f a -c");
        assert_eq!(check(&line("nice haproxy -f a -- b")).to_string(), "nice haproxy -f a -c -- b");
        let start = |group, from| start(&line("haproxy -f a"), Path::new("/m.sock"), group, from).to_string();
        assert_eq!(start(None, None), "haproxy -f a -W -db -S '/m.sock,mode,600'");
        let root = Group::from_gid(0.into()).unwrap();
        assert_eq!(
            start(root.as_ref(), Some(Path::new("/a.sock"))),
            "haproxy -f a -W -db -S '/m.sock,mode,660,gid,0' -x /a.sock"
        );
    }
}
