//! supervisord: what state a program is in, and its restart.
//!
//! The restart is supervisorctl's: a stop that is waited for, then a start. Where supervisord's socket
//! can be reached, the XML-RPC calls behind it are made directly (2 ms and 3 ms; `supervisorctl` itself
//! takes 0.15–0.4 s); else the command runs.

mod rpc;
mod xml;

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitStatus;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

pub use rpc::{ProcessInfo, Supervisord};

use crate::command::{self, CommandLine};
use crate::failure;

/// How long `supervisorctl` may take: it waits for the program's `stopwaitsecs` (10 s unless set)
/// and `startsecs`, and answers no sooner.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// How many lines at the end of a program's log are taken for those of its last start.
const LOG_LINES: usize = 8;

/// How to have supervisord restart one program.
#[derive(Debug, Clone)]
pub struct Control {
    command: CommandLine,
    direct: Option<(Supervisord, String)>,
}

/// A program's state (supervisord's manual: "Process States").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Stopped by somebody, or never started.
    Stopped,
    /// Started, for less than `startsecs`.
    Starting,
    /// Up for `startsecs` and more.
    Running,
    /// Ended within `startsecs`; it will be tried again.
    Backoff,
    /// Told to stop, and not gone yet.
    Stopping,
    /// Ended from running.
    Exited,
    /// Given up after `startretries`.
    Fatal,
    /// supervisord itself doesn't know.
    Unknown,
}

/// Why supervisord refuses a call (`supervisor.xmlrpc.Faults`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// 6: supervisord itself is shutting down, or restarting.
    ShutdownState,
    /// 10: it has no program of that name.
    BadName,
    /// 20: the program's command doesn't exist.
    NoFile,
    /// 21: the program's command can't be executed.
    NotExecutable,
    /// 30: it failed otherwise.
    Failed,
    /// 40: the program ended before `startsecs`, while a start was waited for.
    AbnormalTermination,
    /// 50: the program couldn't be started, or ended at once.
    SpawnError,
    /// 60: it runs already.
    AlreadyStarted,
    /// 70: it doesn't run.
    NotRunning,
    /// Any other.
    Other(i64),
}

/// Why supervisord, or its command, didn't do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not `unix:///path` or `http://host:port`.
    #[error("`{0}` is no supervisord address: unix:///path or http://host:port, without a password")]
    Address(String),
    /// Nobody listens at supervisord's address.
    #[error("supervisord can't be reached at {address}: {source}")]
    Unreachable {
        /// Where it should be.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The exchange broke off or took too long.
    #[error("{method} to supervisord at {address}: {source}")]
    Exchange {
        /// Where it is.
        address: String,
        /// The XML-RPC method.
        method: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The answer isn't one of XML-RPC.
    #[error("{method} to supervisord at {address} was answered: {answer}")]
    Answer {
        /// Where it is.
        address: String,
        /// The XML-RPC method.
        method: &'static str,
        /// What came, in short.
        answer: String,
    },
    /// supervisord refuses.
    #[error("supervisord refuses {method}: {text}")]
    Fault {
        /// The XML-RPC method.
        method: &'static str,
        /// Why.
        fault: Fault,
        /// Its own words.
        text: String,
    },
    /// The command didn't run to its end.
    #[error(transparent)]
    Command(#[from] command::Error),
    /// The command failed.
    #[error("`{command}` ended with {status}: {output}")]
    Refused {
        /// The whole command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed.
        output: String,
    },
    /// The command isn't one that a state can be asked of, or its answer holds none.
    #[error("`{command}` tells no state: {output}")]
    NoState {
        /// The whole command line.
        command: String,
        /// What it printed.
        output: String,
    },
}

impl Control {
    /// `command` restarts the program: `supervisorctl restart haproxy`.
    ///
    /// A plain one (no option but `-s URL`) is replaced by direct calls while supervisord can be reached
    /// at that URL, or else at `server_url`, which supervisord gives its children as `SUPERVISOR_SERVER_URL`.
    pub fn new(command: CommandLine, server_url: Option<&str>) -> Self {
        let direct = parse_plain_restart(&command).and_then(|(url, program)| {
            let supervisord = url.or(server_url)?.parse().ok()?;
            Some((supervisord, program.to_owned()))
        });
        Self { command, direct }
    }

    /// The program's state.
    ///
    /// # Errors
    /// When supervisord can't be asked, or doesn't know the program.
    pub fn query_state(&self) -> Result<State, Error> {
        if let Some((supervisord, program)) = &self.direct {
            match supervisord.query_process(program) {
                Err(Error::Unreachable { .. }) => {}
                asked => return asked.map(|process| process.state),
            }
        }
        self.query_state_by_command()
    }

    /// What supervisord says of the program, by a direct call. `None` if only the command can ask, which takes long.
    pub fn query_process(&self) -> Option<ProcessInfo> {
        let (supervisord, program) = self.direct.as_ref()?;
        supervisord.query_process(program).ok()
    }

    /// The program's own words on its last start, for one that failed after `since`: those that handover left beside the
    /// runtime socket, else the end of its log, else supervisord's. `None` if none of them says anything.
    pub fn read_failure_message(&self, runtime_socket: &Path, since: SystemTime) -> Option<String> {
        let Some(process) = self.query_process() else { return failure::read_message(runtime_socket, since) };
        // The start that is told of may be a later one than the caller has seen.
        let left = failure::read_message(runtime_socket, process.started.unwrap_or(since));
        if left.is_some() || !matches!(process.state, State::Backoff | State::Fatal | State::Exited) {
            return left;
        }
        // "can't find command …" says it all; the other words that supervisord has of a failed start point to the log.
        let is_telling = process.state != State::Exited && !process.description.starts_with("Exited too quickly");
        let spawn = Some(process.description).filter(|words| !words.is_empty());
        if is_telling { spawn } else { self.read_last_lines().or(spawn) }
    }

    /// The end of the program's log. `None` if there is none.
    fn read_last_lines(&self) -> Option<String> {
        let (supervisord, program) = self.direct.as_ref()?;
        let tail = supervisord.read_log_tail(program)?;
        // Earlier starts failed too, and the first line may be cut.
        let lines: Vec<&str> = tail.lines().collect();
        let words = failure::summarize_output(&lines.get(lines.len().saturating_sub(LOG_LINES)..)?.join("\n"));
        (!words.is_empty()).then_some(words)
    }

    /// Stops the program, waits until it has ended, and starts it; a stopped one is started too.
    ///
    /// Direct calls return as soon as the program has been started, the command after its `startsecs`.
    /// Neither says that it serves.
    ///
    /// # Errors
    /// When supervisord can't be asked, refuses, or the command fails.
    pub fn restart_program(&self) -> Result<(), Error> {
        if let Some((supervisord, program)) = &self.direct {
            match supervisord.restart_program(program) {
                Err(Error::Unreachable { .. }) => {}
                done => return done,
            }
        }
        let outcome = self.command.run_within(COMMAND_TIMEOUT)?;
        if outcome.status.success() {
            return Ok(());
        }
        let output = join_lines(&outcome.output);
        Err(Error::Refused { command: self.command.to_string(), status: outcome.status, output })
    }

    fn query_state_by_command(&self) -> Result<State, Error> {
        let Some((line, program)) = make_status_command(&self.command) else {
            return Err(Error::NoState { command: self.command.to_string(), output: "not supervisorctl".to_owned() });
        };
        // Its exit code says less than its words: 0 for BACKOFF and STARTING, 3 for STOPPED and FATAL.
        let output = line.run_within(COMMAND_TIMEOUT)?.output;
        parse_status_line(&output, &program)
            .ok_or_else(|| Error::NoState { command: line.to_string(), output: join_lines(&output) })
    }
}

/// The URL, if any, and program of `supervisorctl [-s URL] restart PROGRAM`; other options mean something
/// that only supervisorctl knows.
fn parse_plain_restart(command: &CommandLine) -> Option<(Option<&str>, &str)> {
    if Path::new(command.program()).file_name() != Some(OsStr::new("supervisorctl")) {
        return None;
    }
    let args: Vec<&str> = command.args().iter().map(|arg| arg.to_str()).collect::<Option<_>>()?;
    match args.as_slice() {
        ["restart", program] => Some((None, program)),
        ["-s" | "--serverurl", url, "restart", program] => Some((Some(url), program)),
        _ => None,
    }
}

/// The same command asking for the status of the program that it restarts.
fn make_status_command(command: &CommandLine) -> Option<(CommandLine, String)> {
    let words: Vec<&OsStr> = command.words().collect();
    let ctl = |word: &&OsStr| Path::new(word).file_name() == Some(OsStr::new("supervisorctl"));
    let [before @ .., verb, program] = words.as_slice() else { return None };
    if *verb != OsStr::new("restart") || !before.iter().any(ctl) {
        return None;
    }
    let line = before.iter().copied().chain([OsStr::new("status"), program]);
    Some((CommandLine::from_words(line)?, program.to_str()?.to_owned()))
}

/// The state in `haproxy    RUNNING   pid 7, uptime 0:00:03`.
fn parse_status_line(output: &str, program: &str) -> Option<State> {
    output.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let named = words.next()? == program;
        words.next().filter(|_| named)?.parse().ok()
    })
}

fn join_lines(output: &str) -> String {
    output.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

impl State {
    fn from_code(code: i64) -> Self {
        match code {
            0 => Self::Stopped,
            10 => Self::Starting,
            20 => Self::Running,
            30 => Self::Backoff,
            40 => Self::Stopping,
            100 => Self::Exited,
            200 => Self::Fatal,
            _ => Self::Unknown,
        }
    }
}

impl FromStr for State {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        [0, 10, 20, 30, 40, 100, 200, 1000]
            .map(Self::from_code)
            .into_iter()
            .find(|state| state.to_string() == name)
            .ok_or(())
    }
}

impl fmt::Display for State {
    /// Writes it as supervisord does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "STOPPED",
            Self::Starting => "STARTING",
            Self::Running => "RUNNING",
            Self::Backoff => "BACKOFF",
            Self::Stopping => "STOPPING",
            Self::Exited => "EXITED",
            Self::Fatal => "FATAL",
            Self::Unknown => "UNKNOWN",
        })
    }
}

impl Fault {
    fn from_code(code: i64) -> Self {
        match code {
            6 => Self::ShutdownState,
            10 => Self::BadName,
            20 => Self::NoFile,
            21 => Self::NotExecutable,
            30 => Self::Failed,
            40 => Self::AbnormalTermination,
            50 => Self::SpawnError,
            60 => Self::AlreadyStarted,
            70 => Self::NotRunning,
            other => Self::Other(other),
        }
    }
}

#[cfg(test)]
mod tests;
