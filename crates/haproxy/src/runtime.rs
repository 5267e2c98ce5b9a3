//! Speaks HAProxy's Runtime API over its stats socket (Management Guide, section 9.3). It decides nothing: every call
//! is one exchange, and its answer is parsed whole or refused.

mod certificate;
mod change;
mod columns;
mod command;
mod info;
mod options;
#[cfg(test)]
mod proxy;
mod servers;
mod sessions;
mod stats;
mod streams;

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use certificate::{CertificateChange, CrtEntry, NotPem, Pem, ShownCertificate, SniFilter, crt_line};
pub use change::{AdminState, Change, NotAToken, Removal, ServerName, Token};
pub use columns::{Facts, Turns};
pub use command::{Command, NotAWord, Word};
pub use info::{Info, Limits};
pub use options::{CheckTls, LIVENESS, ServerOptions, ServerTls, Sni};
pub use servers::{AdminFlags, CheckFlags, NotServersState, Operation, ServerState, ServersState};
pub use sessions::Sessions;
pub use stats::{Average, Count, RowKind, Stat};
pub use streams::Streams;

use crate::socket_io;

/// The default time limit of an exchange. HAProxy answers within a millisecond, unless it is stopped or starved.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The longest answer in bytes. `show stat` of 200,000 servers has about 66 MB (3.4), `show servers state` 24 MB.
const ANSWER_LIMIT: usize = 128 * 1024 * 1024;

/// A stats socket, or a master's socket, by its path. Each exchange has a connection of its own.
#[derive(Debug, Clone)]
pub struct Socket {
    path: PathBuf,
    timeout: Duration,
    /// Answers in this process. `None` for a socket of the system.
    model: Option<Arc<dyn Answer>>,
}

/// A model of HAProxy in this process, for the seeded simulation.
pub trait Answer: fmt::Debug + Send + Sync {
    /// Answers a line of commands as HAProxy does, up to the end of its answer. An error of the kind `ConnectionRefused` means that no
    /// process listens. Any other error ends the exchange, and the commands may have been carried out.
    ///
    /// # Errors
    /// As said above.
    fn answer(&self, line: &str) -> io::Result<Vec<u8>>;
}

/// The reason that a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No process listens there: the file is missing, or a dead process left it behind.
    #[error("no HAProxy answers on {path}: {source}")]
    Absent {
        /// The path of the socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A process listens there, and the exchange failed.
    #[error("`{command}` on {path}: {source}")]
    Exchange {
        /// The path of the socket.
        path: PathBuf,
        /// The command that was sent.
        command: Command,
        /// The system's error.
        source: io::Error,
    },
    /// The answer ends before its closing empty line.
    #[error("`{command}` on {path}: the answer is cut short after {length} bytes")]
    CutShort {
        /// The path of the socket.
        path: PathBuf,
        /// The command that was sent.
        command: Command,
        /// The length of the answer in bytes.
        length: usize,
    },
    /// HAProxy's answer has another form than expected. Most of the time it refuses the command.
    #[error("HAProxy on {path} answered `{command}` with: {answer}")]
    Refused {
        /// The path of the socket.
        path: PathBuf,
        /// The command that was sent.
        command: Command,
        /// The beginning of the answer, at most 300 characters.
        answer: String,
    },
}

impl Socket {
    /// Makes a socket of that path, with 5 s for each exchange.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), timeout: TIMEOUT, model: None }
    }

    /// Makes a socket that a model answers. Nothing is opened.
    pub fn of_model(model: Arc<dyn Answer>) -> Self {
        Self { model: Some(model), ..Self::new("model") }
    }

    /// Sets the time limit of each exchange.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sends a command, and returns HAProxy's answer without the empty line that closes it. The answer may be a refusal
    /// in words.
    ///
    /// # Errors
    /// If HAProxy doesn't answer, or not to the end within the time limit.
    pub fn send_command(&self, command: &Command) -> Result<String, Error> {
        let mut answer = self.exchange_text(command)?;
        // HAProxy closes every answer, refusals included, with an empty line. An answer without it lacks its end.
        if answer.ends_with("\n\n") {
            // Not copied, since the list of many servers has megabytes.
            answer.pop();
            Ok(answer)
        } else if answer == "\n" {
            Ok(String::new())
        } else if is_no_target(answer.as_bytes()) {
            Err(self.refused_error(command.clone(), &answer))
        } else {
            Err(Error::CutShort { path: self.path.clone(), command: command.clone(), length: answer.len() })
        }
    }

    /// Sends a command, and returns all that comes until HAProxy closes.
    fn exchange_text(&self, command: &Command) -> Result<String, Error> {
        let answer = self.exchange_bytes(command, "")?;
        // Apps write a part of `show stat`: the reason in their answer to a check. A byte that is no UTF-8 there must
        // not hide the other servers.
        Ok(String::from_utf8(answer).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// Sends a command and its payload. No error ever shows the payload, because it may be a private key.
    fn exchange_bytes(&self, command: &Command, payload: &str) -> Result<Vec<u8>, Error> {
        let absent = |source| Error::Absent { path: self.path.clone(), source };
        // Below this line everything is the same for a model: answers are parsed, and complaints read.
        if let Some(model) = &self.model {
            return model.answer(&command.to_string()).map_err(|source| match source.kind() {
                io::ErrorKind::ConnectionRefused => absent(source),
                _ => self.exchange_error(command)(source),
            });
        }
        let stream = socket_io::connect_unix(&self.path, self.timeout).map_err(absent)?;
        self.exchange_over(stream, command, payload).map_err(self.exchange_error(command))
    }

    fn exchange_error(&self, command: &Command) -> impl FnOnce(io::Error) -> Error {
        let (path, command) = (self.path.clone(), command.clone());
        move |source| Error::Exchange { path, command, source }
    }

    fn exchange_over(&self, mut stream: UnixStream, command: &Command, payload: &str) -> io::Result<Vec<u8>> {
        let deadline = Instant::now() + self.timeout;
        socket_io::send_all(&mut stream, format!("{command}\n{payload}").as_bytes(), deadline)?;
        let mut answer = Vec::new();
        if command.is_to_worker() {
            // A master that has no such worker keeps some of the connections that the client has half closed by then,
            // for ever (3.0). After some hundred it answers no command.
            answer = socket_io::receive_until(&mut stream, deadline, ANSWER_LIMIT, |some| !some.is_empty())?;
            if is_no_target(&answer) {
                return Ok(answer);
            }
        }
        // A master keeps the connection open for more commands until the client closes its half.
        stream.shutdown(Shutdown::Write)?;
        answer.extend(socket_io::receive_all(&mut stream, deadline, ANSWER_LIMIT)?);
        Ok(answer)
    }

    /// Sends `show info`.
    ///
    /// # Errors
    /// As [`send_command`](Self::send_command), or if the answer has another form.
    pub fn show_info(&self) -> Result<Info, Error> {
        self.request_info(Command::show_info())
    }

    /// Sends `show info` to one worker, over its master's socket.
    pub(crate) fn show_info_of(&self, worker: u32) -> Result<Info, Error> {
        self.request_info(Command::show_info().to_worker(worker))
    }

    fn request_info(&self, command: Command) -> Result<Info, Error> {
        let answer = self.send_command(&command)?;
        Info::parse(&answer).ok_or_else(|| self.refused_error(command, &answer))
    }

    /// Reads a variable of HAProxy's environment, which `setenv` in `global` adds to: `show env NAME`. `None` if there
    /// is no such variable.
    ///
    /// # Errors
    /// As [`send_command`](Self::send_command), or if the answer has another form.
    pub fn show_env(&self, name: &Word) -> Result<Option<String>, Error> {
        let command = Command::show_env(name);
        let answer = self.send_command(&command)?;
        if answer == "Variable not found\n" {
            return Ok(None);
        }
        let value = answer.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix('='));
        match value.map(|value| value.strip_suffix('\n').unwrap_or(value)) {
            Some(value) => Ok(Some(value.to_owned())),
            None => Err(self.refused_error(command, &answer)),
        }
    }

    /// Lists every server with its state: `show servers state`.
    ///
    /// # Errors
    /// As [`send_command`](Self::send_command), or if the answer has another form.
    pub fn show_servers_state(&self) -> Result<ServersState, Error> {
        let command = Command::show_servers_state();
        let answer = self.send_command(&command)?;
        ServersState::parse(&answer).ok_or_else(|| self.refused_error(command, &answer))
    }

    /// Lists the servers of one backend or listen section: `show servers state BACKEND`.
    ///
    /// # Errors
    /// As [`send_command`](Self::send_command), or if HAProxy has no such backend.
    pub fn show_servers_state_of(&self, backend: &Word) -> Result<ServersState, Error> {
        let command = Command::show_servers_state_of(backend);
        let answer = self.send_command(&command)?;
        ServersState::parse(&answer).ok_or_else(|| self.refused_error(command, &answer))
    }

    /// Reads the figures of every frontend, backend and server: `show stat`.
    ///
    /// # Errors
    /// As [`send_command`](Self::send_command), or if the answer has another form.
    pub fn show_stat(&self) -> Result<Vec<Stat>, Error> {
        let command = Command::show_stat();
        let answer = self.send_command(&command)?;
        stats::parse_stats(&answer).ok_or_else(|| self.refused_error(command, &answer))
    }

    /// Hands over every frontend, backend and server, one after another: `show stat`.
    ///
    /// # Errors
    /// As [`send_command`](Self::send_command), or if the answer has another form.
    pub fn read_facts(&self, take: impl FnMut(Facts<'_>)) -> Result<(), Error> {
        let command = Command::show_stat();
        let answer = self.send_command(&command)?;
        let rows = columns::parse_facts(&answer).ok_or_else(|| self.refused_error(command, &answer))?;
        rows.for_each(take);
        Ok(())
    }

    /// Hands over the answering worker's process id, and the figures of its backends without those of their servers. Returns what
    /// `take` returns.
    ///
    /// # Errors
    /// As [`send_command`](Self::send_command), or if the answer has another form.
    pub fn read_turns<T>(&self, take: impl FnOnce(u32, &mut dyn Iterator<Item = Turns<'_>>) -> T) -> Result<T, Error> {
        let command = Command::show_backends();
        let answer = self.send_command(&command)?;
        let refused = || self.refused_error(command, &answer);
        let Some((info, rows)) = split_sample(&answer) else { return Err(refused()) };
        if rows.is_empty() {
            return Ok(take(info.pid, &mut std::iter::empty()));
        }
        let mut turns = columns::parse_turns(rows).ok_or_else(refused)?;
        Ok(take(info.pid, &mut turns))
    }

    /// Reads the answering worker's process id, and the figures of these backends and of their servers. The backends
    /// are given by [`Stat::proxy_id`]. HAProxy takes a line of some 500 of them.
    ///
    /// # Errors
    /// As [`send_command`](Self::send_command), or if the answer has another form.
    pub fn show_servers_of(&self, backends: &[u32]) -> Result<(u32, Vec<Stat>), Error> {
        self.request_sample(Command::show_servers_of(backends))
    }

    /// All commands go over one connection, so that one process gives all answers.
    fn request_sample(&self, command: Command) -> Result<(u32, Vec<Stat>), Error> {
        let answer = self.send_command(&command)?;
        parse_sample(&answer).ok_or_else(|| self.refused_error(command, &answer))
    }

    /// Lists the paths of all maps that HAProxy has loaded from files: `show map`.
    ///
    /// # Errors
    /// As [`send_command`](Self::send_command).
    pub fn show_maps(&self) -> Result<Vec<Token>, Error> {
        let answer = self.send_command(&Command::show_maps())?;
        Ok(answer.lines().filter(|line| !line.starts_with('#')).filter_map(parse_map_path).collect())
    }

    /// Reads a map's keys and values: `show map PATH`.
    ///
    /// # Errors
    /// As [`send_command`](Self::send_command), or if HAProxy has no such map.
    pub fn show_map(&self, path: &Token) -> Result<Vec<(String, String)>, Error> {
        let command = Command::show_map(path);
        let answer = self.send_command(&command)?;
        let entries: Option<Vec<_>> = answer.lines().filter(|line| !line.is_empty()).map(parse_map_entry).collect();
        entries.ok_or_else(|| self.refused_error(command, &answer))
    }

    fn refused_error(&self, command: Command, answer: &str) -> Error {
        let answer = answer.trim().chars().take(300).collect();
        Error::Refused { path: self.path.clone(), command, answer }
    }
}

/// Parses the answer to `show info` and `show stat` in one line: the process id, and the rows.
fn parse_sample(answer: &str) -> Option<(u32, Vec<Stat>)> {
    let (info, rows) = split_sample(answer)?;
    // The header of each further table counts as a row of no known kind.
    Some((info.pid, if rows.is_empty() { Vec::new() } else { stats::parse_stats(rows)? }))
}

/// The process, and the tables. They are empty if there are none.
fn split_sample(answer: &str) -> Option<(Info, &str)> {
    let (info, rows) = answer.split_at_checked(answer.find("# pxname").unwrap_or(answer.len()))?;
    Some((Info::parse(info)?, rows))
}

/// Parses `2 (/var/lib/confgen/…/hosts.map) pattern loaded from file …`.
fn parse_map_path(line: &str) -> Option<Token> {
    line.split_once(" (")?.1.split_once(") ")?.0.parse().ok()
}

/// Parses `0x55ba7cfcdf50 a.com http-shop`.
fn parse_map_entry(line: &str) -> Option<(String, String)> {
    let (_, rest) = line.split_once(' ').filter(|(pointer, _)| pointer.starts_with("0x"))?;
    rest.split_once(' ').map(|(key, value)| (key.to_owned(), value.to_owned()))
}

/// True for a master's answer if it has no such worker. No empty line closes that answer, and the master leaves the
/// connection open.
fn is_no_target(answer: &[u8]) -> bool {
    answer.starts_with(b"Can't find the target") && answer.ends_with(b"\n")
}

#[cfg(test)]
mod tests;
