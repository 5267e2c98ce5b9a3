//! Runs a command line to its end, or to its deadline. It knows nothing of the program that it runs.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, pipe2};

/// The longest output that is kept, in bytes. The rest is read and dropped. HAProxy names at most a few hundred errors,
/// and each is about a line.
const OUTPUT_LIMIT: usize = 64 * 1024;

/// The interval between two checks for the end of a command that is silent, or has closed its output.
const TICK: Duration = Duration::from_millis(20);

/// A program and its arguments. [`FromStr`] and `Display` use a shell's syntax: `haproxy -c`. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    program: OsString,
    args: Vec<OsString>,
    /// The environment variables that the command doesn't inherit.
    removed_variables: Vec<&'static str>,
}

/// The end of a command that ran to its end.
#[derive(Debug)]
pub struct Outcome {
    /// The exit status, or the signal.
    pub status: ExitStatus,
    /// Standard output and standard error in the order of writing, at most 64 KiB.
    pub output: String,
}

/// The reason that a command has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text names no program, or a quote is left open.
    #[error("`{0}` is no command line: name a program, close each quote")]
    Syntax(String),
    /// The program is missing or can't be executed.
    #[error("can't run `{command}`: {source}")]
    Spawn {
        /// The command line, as a shell would read it.
        command: String,
        /// The system's error.
        source: io::Error,
    },
    /// The system can't read the output, or can't wait for the end.
    #[error("can't follow `{command}` to its end: {source}")]
    Wait {
        /// The command line, as a shell would read it.
        command: String,
        /// The system's error.
        source: io::Error,
    },
    /// The command ran longer than it may, and was killed with its whole process group.
    #[error("`{command}` was killed after {timeout:?}. Its output until then: {output}")]
    Timeout {
        /// The command line, as a shell would read it.
        command: String,
        /// The time limit.
        timeout: Duration,
        /// The output until then, at most 64 KiB.
        output: String,
    },
}

impl CommandLine {
    /// Makes a command of `program` without an argument.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self { program: program.into(), args: Vec::new(), removed_variables: Vec::new() }
    }

    /// Makes a command of its words, of which the first is the program. `None` without a word.
    pub fn from_words<W: Into<OsString>>(words: impl IntoIterator<Item = W>) -> Option<Self> {
        let mut words = words.into_iter().map(Into::into);
        let program = words.next().filter(|program: &OsString| !program.is_empty())?;
        Some(Self { program, args: words.collect(), removed_variables: Vec::new() })
    }

    /// Adds one argument at the end.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Removes these variables from the environment that the command inherits.
    #[must_use]
    pub fn without_variables(mut self, names: impl IntoIterator<Item = &'static str>) -> Self {
        self.removed_variables.extend(names);
        self
    }

    /// The program's name, or its path.
    pub fn program(&self) -> &OsStr {
        &self.program
    }

    /// The arguments behind the program.
    pub fn args(&self) -> &[OsString] {
        &self.args
    }

    /// The files and directories that HAProxy reads if this line starts it, in HAProxy's order: each `-f`, and what
    /// follows `--` (Management Guide, section 3).
    pub fn config_files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut args = self.args.iter();
        while let Some(arg) = args.next() {
            if arg == "-f" {
                files.extend(args.next().map(PathBuf::from));
            } else if arg == "--" {
                files.extend(args.by_ref().map(PathBuf::from));
            }
        }
        files
    }

    /// The program and its arguments, as words.
    pub fn words(&self) -> impl Iterator<Item = &OsStr> {
        std::iter::once(self.program.as_os_str()).chain(self.args.iter().map(OsString::as_os_str))
    }

    /// Runs the command without input, in a process group of its own. After `timeout` the whole group is killed.
    ///
    /// The function doesn't wait for output that a background process writes after the command's end.
    ///
    /// # Errors
    /// If the command can't be started, runs too long, or the system loses it. A bad exit status is no error.
    pub fn run_within(&self, timeout: Duration) -> Result<Outcome, Error> {
        let deadline = Instant::now() + timeout;
        let (mut child, reader) =
            self.spawn_piped().map_err(|source| Error::Spawn { command: self.to_string(), source })?;
        let mut output = Vec::new();
        let waited = read_until_exit(&mut child, reader, deadline, &mut output);
        if !matches!(waited, Ok(Some(_))) {
            kill_group(&mut child);
        }
        let output = String::from_utf8_lossy(&output).into_owned();
        match waited {
            Ok(Some(status)) => Ok(Outcome { status, output }),
            Ok(None) => Err(Error::Timeout { command: self.to_string(), timeout, output }),
            Err(source) => Err(Error::Wait { command: self.to_string(), source }),
        }
    }

    fn spawn_piped(&self) -> io::Result<(Child, std::fs::File)> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        // The command and its two copies of the pipe go at the end of this function, or the pipe would never close.
        let mut command = Command::new(&self.program);
        for name in &self.removed_variables {
            command.env_remove(name);
        }
        let child = command
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            // With a group of its own, a timeout also kills what the command has started.
            .process_group(0)
            .spawn()?;
        Ok((child, reader.into()))
    }
}

/// Reads the child's output until the child has ended. `None` if the deadline passes first.
fn read_until_exit(
    child: &mut Child,
    mut reader: std::fs::File,
    deadline: Instant,
    output: &mut Vec<u8>,
) -> io::Result<Option<ExitStatus>> {
    let mut open = true;
    loop {
        let ended = child.try_wait()?;
        // After the child's end this reads without waiting, until the pipe is empty.
        let wait = if ended.is_some() { Duration::ZERO } else { TICK };
        let said = if open { poll_readable(&reader, wait)? } else { false };
        if said {
            open = read_some(&mut reader, output)?;
        } else if ended.is_some() {
            return Ok(ended);
        } else if !open {
            std::thread::sleep(TICK.min(deadline.saturating_duration_since(Instant::now())));
        }
        if Instant::now() >= deadline {
            return child.try_wait();
        }
    }
}

fn poll_readable(reader: &std::fs::File, wait: Duration) -> io::Result<bool> {
    let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
    match poll(&mut fds, wait) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Reads once. Returns false at the end of the output.
fn read_some(reader: &mut std::fs::File, output: &mut Vec<u8>) -> io::Result<bool> {
    let mut chunk = [0; 8192];
    let read = reader.read(&mut chunk)?;
    let room = OUTPUT_LIMIT.saturating_sub(output.len());
    output.extend(chunk.iter().take(read.min(room)));
    Ok(read > 0)
}

fn kill_group(child: &mut Child) {
    if let Ok(id) = i32::try_from(child.id()) {
        // The child isn't reaped yet, so that the group still exists and is the child's.
        let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
    }
    let _ = child.wait();
}

impl FromStr for CommandLine {
    type Err = Error;

    /// Splits the text as a shell does (quotes, backslashes), without expanding anything.
    fn from_str(text: &str) -> Result<Self, Error> {
        shlex::split(text).and_then(Self::from_words).ok_or_else(|| Error::Syntax(text.to_owned()))
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.words().map(OsStr::to_string_lossy).collect();
        match shlex::try_join(words.iter().map(AsRef::as_ref)) {
            Ok(line) => f.write_str(&line),
            Err(_) => f.write_str(&words.join(" ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    fn sh(script: &str) -> CommandLine {
        CommandLine::new("sh").arg("-c").arg(script)
    }

    #[test]
    fn a_withheld_variable_is_not_inherited() {
        let inherited = |line: CommandLine| line.run_within(LONG).unwrap().output;
        let env = || CommandLine::new("env");
        assert!(inherited(env()).lines().any(|line| line.starts_with("PATH=")));
        // Without a PATH the system looks in /bin and /usr/bin.
        assert!(!inherited(env().without_variables(["PATH"])).lines().any(|line| line.starts_with("PATH=")));
    }

    #[test]
    fn reads_as_a_shell_would() {
        let line: CommandLine = "supervisorctl -c '/etc/my conf' restart haproxy".parse().unwrap();
        assert_eq!(line.args().len(), 4);
        assert_eq!(line.to_string(), "supervisorctl -c '/etc/my conf' restart haproxy");
        assert!("".parse::<CommandLine>().is_err());
        assert!("a 'b".parse::<CommandLine>().is_err());
    }

    #[test]
    fn finds_the_configuration_files() {
        let files = |text: &str| -> Vec<String> {
            let line: CommandLine = text.parse().unwrap();
            line.config_files().iter().map(|file| file.display().to_string()).collect()
        };
        assert_eq!(files("haproxy -f a -n 100 -f b"), ["a", "b"]);
        assert_eq!(files("taskset -c 1 haproxy -f a -- b -f"), ["a", "b", "-f"]);
        assert_eq!(files("haproxy -f"), Vec::<String>::new());
    }

    #[test]
    fn keeps_both_outputs_in_order_and_the_status() {
        let outcome = sh("echo one; echo two >&2; echo three; exit 7").run_within(LONG).unwrap();
        assert_eq!(outcome.output, "one\ntwo\nthree\n");
        assert_eq!(outcome.status.code(), Some(7));
    }

    #[test]
    fn a_runaway_output_is_bounded() {
        let outcome = sh("yes | head -c 1000000").run_within(LONG).unwrap();
        assert_eq!(outcome.output.len(), OUTPUT_LIMIT);
    }

    #[test]
    fn a_background_process_is_not_waited_for() {
        let begun = Instant::now();
        let outcome = sh("sleep 8 & echo started").run_within(LONG).unwrap();
        assert_eq!(outcome.output, "started\n");
        assert!(begun.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn the_whole_group_dies_at_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let script = format!("(sleep 2; touch {}) & echo waiting; wait", mark.display());
        let error = sh(&script).run_within(Duration::from_secs(1)).unwrap_err();
        assert!(matches!(&error, Error::Timeout { output, .. } if output == "waiting\n"), "{error}");
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!mark.exists());
    }

    #[test]
    fn a_command_that_closed_its_output_is_still_waited_for() {
        let outcome = sh("exec >&- 2>&-; sleep 0.2; exit 3").run_within(LONG).unwrap();
        assert_eq!(outcome.status.code(), Some(3));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = CommandLine::new("/no/such/haproxy").arg("-c").run_within(LONG).unwrap_err();
        assert!(error.to_string().starts_with("can't run `/no/such/haproxy -c`"), "{error}");
    }
}
