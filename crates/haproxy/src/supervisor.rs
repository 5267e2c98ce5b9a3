//! Asks supervisord for a program's state, and has it restart the program.
//!
//! A restart is a stop, the wait for its end, and a start, as supervisorctl makes it. If supervisord's socket can be
//! reached, this makes the XML-RPC calls itself (2 ms and 3 ms). Otherwise it runs supervisorctl, which takes 0.15–0.4
//! s.

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

/// The time limit for `supervisorctl`. It waits for the program's `stopwaitsecs` (10 s unless set) and `startsecs`, and
/// answers no sooner.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// The number of lines at the end of a program's log that are taken for those of its last start.
const LOG_LINES: usize = 8;

/// The way to have supervisord restart one program.
#[derive(Debug, Clone)]
pub struct Control {
    command: CommandLine,
    direct: Option<(Supervisord, String)>,
}

/// A program's state (supervisord's manual: "Process States").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// The program was stopped, or never started.
    Stopped,
    /// The program was started less than `startsecs` ago.
    Starting,
    /// The program has been up for `startsecs`.
    Running,
    /// The program ended within `startsecs`, and supervisord will try again.
    Backoff,
    /// The program was told to stop, and has not ended yet.
    Stopping,
    /// The program ended after it was `Running`.
    Exited,
    /// supervisord has given the program up after `startretries`.
    Fatal,
    /// supervisord itself doesn't know the state.
    Unknown,
}

/// The reason that supervisord refuses a call (`supervisor.xmlrpc.Faults`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// 6: supervisord itself is shutting down, or restarting.
    ShutdownState,
    /// 10: supervisord has no program of that name.
    BadName,
    /// 20: the program's command doesn't exist.
    NoFile,
    /// 21: the program's command can't be executed.
    NotExecutable,
    /// 30: the call failed in another way.
    Failed,
    /// 40: the program ended before `startsecs`, while a start was waited for.
    AbnormalTermination,
    /// 50: the program couldn't be started, or ended at once.
    SpawnError,
    /// 60: the program runs already.
    AlreadyStarted,
    /// 70: the program doesn't run.
    NotRunning,
    /// Any other code of supervisord's.
    Other(i64),
}

/// The reason that supervisord, or its command, failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is neither `unix:///path` nor `http://host:port`.
    #[error("`{0}` is no supervisord address: unix:///path or http://host:port, without a password")]
    Address(String),
    /// No process listens at supervisord's address.
    #[error("supervisord can't be reached at {address}: {source}")]
    Unreachable {
        /// The address that was tried.
        address: String,
        /// The system's error.
        source: io::Error,
    },
    /// The exchange broke off, or took too long.
    #[error("{method} to supervisord at {address}: {source}")]
    Exchange {
        /// The address of supervisord.
        address: String,
        /// The XML-RPC method of the call.
        method: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The answer is not XML-RPC.
    #[error("supervisord at {address} answered {method} with: {answer}")]
    Answer {
        /// The address of supervisord.
        address: String,
        /// The XML-RPC method of the call.
        method: &'static str,
        /// The first line of the answer, at most 200 characters.
        answer: String,
    },
    /// supervisord refuses the call.
    #[error("supervisord refuses {method}: {text}")]
    Fault {
        /// The XML-RPC method of the call.
        method: &'static str,
        /// The code of the refusal.
        fault: Fault,
        /// The refusal in supervisord's words.
        text: String,
    },
    /// The command didn't run to its end.
    #[error(transparent)]
    Command(#[from] command::Error),
    /// The command ended with a bad status.
    #[error("`{command}` ended with {status}: {output}")]
    Refused {
        /// The command line, as a shell would read it.
        command: String,
        /// The exit status, or the signal.
        status: ExitStatus,
        /// The command's output in one line.
        output: String,
    },
    /// The command isn't supervisorctl's, or its answer holds no state.
    #[error("`{command}` shows no state of the program: {output}")]
    NoState {
        /// The command line, as a shell would read it.
        command: String,
        /// The command's output in one line.
        output: String,
    },
}

impl Error {
    /// True if supervisord, or its command, gave no answer in time. A frozen supervisord still takes connections.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } | Self::Exchange { source, .. } => {
                matches!(source.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
            }
            Self::Command(error) => matches!(error, command::Error::Timeout { .. }),
            _ => false,
        }
    }
}

impl Control {
    /// Makes a control of the command that restarts the program: `supervisorctl restart haproxy`.
    ///
    /// Direct calls replace a plain command (no option but `-s URL`) while supervisord can be reached at that URL.
    /// Without a URL they go to `server_url`, which supervisord gives its children as `SUPERVISOR_SERVER_URL`.
    pub fn new(command: CommandLine, server_url: Option<&str>) -> Self {
        let direct = parse_plain_restart(&command).and_then(|(url, program)| {
            let supervisord = url.or(server_url)?.parse().ok()?;
            Some((supervisord, program.to_owned()))
        });
        Self { command, direct }
    }

    /// Asks for the program's state.
    ///
    /// # Errors
    /// If supervisord can't be asked, or doesn't know the program.
    pub fn query_state(&self) -> Result<State, Error> {
        if let Some((supervisord, program)) = &self.direct {
            match supervisord.query_process(program) {
                // The command would wait for a supervisord that doesn't answer, and longer.
                Err(error @ Error::Unreachable { .. }) if !error.is_timeout() => {}
                asked => return asked.map(|process| process.state),
            }
        }
        self.query_state_by_command()
    }

    /// Asks supervisord about the program by a direct call. `None` if only the command can ask, which takes long.
    ///
    /// # Errors
    /// If supervisord can't be asked, or doesn't know the program.
    pub fn query_process(&self) -> Option<Result<ProcessInfo, Error>> {
        let (supervisord, program) = self.direct.as_ref()?;
        Some(supervisord.query_process(program))
    }

    /// Reads the reason that the program's last start failed after `since`: the one that handover left beside the
    /// runtime socket, otherwise the end of the program's log, otherwise supervisord's description. `None` if there is
    /// none.
    pub fn read_failure_message(&self, runtime_socket: &Path, since: SystemTime) -> Option<String> {
        let Some(Ok(process)) = self.query_process() else { return failure::read_message(runtime_socket, since) };
        // supervisord may mean a later start than the caller has seen.
        let left = failure::read_message(runtime_socket, process.started.unwrap_or(since));
        if left.is_some() || !matches!(process.state, State::Backoff | State::Fatal | State::Exited) {
            return left;
        }
        // "can't find command …" is a reason by itself. supervisord's other descriptions of a failed start point to the
        // log.
        let is_telling = process.state != State::Exited && !process.description.starts_with("Exited too quickly");
        let spawn = Some(process.description).filter(|words| !words.is_empty());
        if is_telling { spawn } else { self.read_last_lines().or(spawn) }
    }

    /// Reads the end of the program's log. `None` if there is none.
    fn read_last_lines(&self) -> Option<String> {
        let (supervisord, program) = self.direct.as_ref()?;
        let tail = supervisord.read_log_tail(program)?;
        // Earlier starts may have failed too, and the first line may be cut.
        let lines: Vec<&str> = tail.lines().collect();
        let words = failure::summarize_output(&lines.get(lines.len().saturating_sub(LOG_LINES)..)?.join("\n"));
        (!words.is_empty()).then_some(words)
    }

    /// Stops the program, waits until it has ended, and starts it. A stopped program is started too.
    ///
    /// A direct call returns as soon as the program was started, the command after its `startsecs`. Neither says that
    /// the program serves.
    ///
    /// # Errors
    /// If supervisord can't be asked, refuses, or the command fails.
    pub fn restart_program(&self) -> Result<(), Error> {
        if let Some((supervisord, program)) = &self.direct {
            // Only an unreachable supervisord has certainly done nothing. After another error the command could restart
            // HAProxy a second time.
            match supervisord.restart_program(program) {
                Err(error @ Error::Unreachable { .. }) if !error.is_timeout() => {}
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
        // supervisorctl's exit code says less than its output: 0 for BACKOFF and STARTING, 3 for STOPPED and FATAL.
        let output = line.run_within(COMMAND_TIMEOUT)?.output;
        parse_status_line(&output, &program)
            .ok_or_else(|| Error::NoState { command: line.to_string(), output: join_lines(&output) })
    }
}

/// Parses the URL, if any, and the program of `supervisorctl [-s URL] restart PROGRAM`. Only supervisorctl knows the
/// meaning of other options.
fn parse_plain_restart(command: &CommandLine) -> Option<(Option<&str>, &str)> {
    if !is_supervisorctl(command.program()) {
        return None;
    }
    let args: Vec<&str> = command.args().iter().map(|arg| arg.to_str()).collect::<Option<_>>()?;
    match args.as_slice() {
        ["restart", program] => Some((None, program)),
        ["-s" | "--serverurl", url, "restart", program] => Some((Some(url), program)),
        _ => None,
    }
}

/// Makes the command that asks for the status of the program that `command` restarts.
fn make_status_command(command: &CommandLine) -> Option<(CommandLine, String)> {
    let words: Vec<&OsStr> = command.words().collect();
    let [before @ .., verb, program] = words.as_slice() else { return None };
    if *verb != OsStr::new("restart") || !before.iter().any(|word| is_supervisorctl(word)) {
        return None;
    }
    let line = before.iter().copied().chain([OsStr::new("status"), program]);
    Some((CommandLine::from_words(line)?, program.to_str()?.to_owned()))
}

/// Parses the state in `haproxy    RUNNING   pid 7, uptime 0:00:03`.
fn parse_status_line(output: &str, program: &str) -> Option<State> {
    output.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let named = words.next()? == program;
        words.next().filter(|_| named)?.parse().ok()
    })
}

fn is_supervisorctl(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new("supervisorctl"))
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
    /// Writes the state as supervisord does.
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
