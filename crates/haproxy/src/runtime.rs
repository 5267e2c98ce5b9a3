//! HAProxy's Runtime API over its stats socket (manual: "Management Guide", section 9.3).

mod certificate;
mod change;
mod command;
mod info;
mod options;
#[cfg(test)]
mod proxy;
mod servers;
mod sessions;
mod stats;
mod streams;

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use certificate::{CertificateChange, CrtEntry, NotPem, Pem, ShownCertificate, SniFilter, crt_line};
pub use change::{AdminState, Change, NotAToken, Removal, ServerName, Token};
pub use command::{Command, NotAWord, Word};
pub use info::Info;
pub use options::{CheckTls, ServerOptions, ServerTls, Sni};
pub use servers::{AdminFlags, NotServersState, Operation, ServerState, ServersState};
pub use sessions::Sessions;
pub use stats::{Average, Count, RowKind, Stat};
pub use streams::Streams;

use crate::socket_io;

/// How long an exchange may take; HAProxy answers within a millisecond, unless it is stopped or starved.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The longest answer taken: `show servers state` of 100,000 servers has about 12 MB.
const ANSWER_LIMIT: usize = 64 * 1024 * 1024;

/// A stats socket, or a master's, by its path. Each question is a connection of its own.
#[derive(Debug, Clone)]
pub struct Socket {
    path: PathBuf,
    timeout: Duration,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens there: no such file, or a file that a dead process left behind.
    #[error("no HAProxy answers on {path}: {source}")]
    Absent {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody listens, but the exchange failed.
    #[error("`{command}` on {path}: {source}")]
    Exchange {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: Command,
        /// What the system said.
        source: io::Error,
    },
    /// The answer ends before its closing empty line.
    #[error("`{command}` on {path}: the answer is cut short after {length} bytes")]
    CutShort {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: Command,
        /// How much came.
        length: usize,
    },
    /// HAProxy answers something that isn't an answer to this: a refusal, most of the time.
    #[error("`{command}` on {path} was answered: {answer}")]
    Refused {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: Command,
        /// The beginning of what HAProxy said.
        answer: String,
    },
}

impl Socket {
    /// The socket at that path, with 5 s for each question.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), timeout: TIMEOUT }
    }

    /// The same socket with another bound for each question.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks, and returns what HAProxy says without the empty line that closes it. May be a refusal in words.
    ///
    /// # Errors
    /// When nobody answers, or not to the end within the bound.
    pub fn send_command(&self, command: &Command) -> Result<String, Error> {
        let answer = self.exchange_text(command)?;
        // Every answer, refusals included, is closed by an empty line: one that isn't lacks its end.
        if let Some(whole) = answer.strip_suffix("\n\n") {
            Ok(format!("{whole}\n"))
        } else if answer == "\n" {
            Ok(String::new())
        } else if is_no_target(answer.as_bytes()) {
            Err(self.refused_error(command.clone(), &answer))
        } else {
            Err(Error::CutShort { path: self.path.clone(), command: command.clone(), length: answer.len() })
        }
    }

    /// Asks, and returns all that comes until HAProxy closes.
    fn exchange_text(&self, command: &Command) -> Result<String, Error> {
        let answer = self.exchange_bytes(command, "")?;
        String::from_utf8(answer)
            .map_err(|error| self.exchange_error(command)(io::Error::new(ErrorKind::InvalidData, error)))
    }

    /// Asks, with what follows the command's line; no error ever shows the payload.
    fn exchange_bytes(&self, command: &Command, payload: &str) -> Result<Vec<u8>, Error> {
        let stream = socket_io::connect_unix(&self.path, self.timeout)
            .map_err(|source| Error::Absent { path: self.path.clone(), source })?;
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
            // Told so sooner, a master that has no such worker keeps some connections for ever (3.0), until it has no more
            // of them.
            answer = socket_io::receive_until(&mut stream, deadline, ANSWER_LIMIT, |some| !some.is_empty())?;
            if is_no_target(&answer) {
                return Ok(answer);
            }
        }
        // A master keeps the connection open for more commands until it is told that none will come.
        stream.shutdown(Shutdown::Write)?;
        answer.extend(socket_io::receive_all(&mut stream, deadline, ANSWER_LIMIT)?);
        Ok(answer)
    }

    /// Who answers, and how it is: `show info`.
    ///
    /// # Errors
    /// As [`ask`](Self::ask), or when it isn't the answer to that.
    pub fn show_info(&self) -> Result<Info, Error> {
        self.request_info(Command::show_info())
    }

    /// The same of one worker, over its master's socket.
    pub(crate) fn show_info_of(&self, worker: u32) -> Result<Info, Error> {
        self.request_info(Command::show_info().to_worker(worker))
    }

    fn request_info(&self, command: Command) -> Result<Info, Error> {
        let answer = self.send_command(&command)?;
        Info::parse(&answer).ok_or_else(|| self.refused_error(command, &answer))
    }

    /// A variable of HAProxy's environment, which `setenv` in `global` adds to: `show env NAME`.
    /// `None` when it has none of that name.
    ///
    /// # Errors
    /// As [`ask`](Self::ask), or when it isn't the answer to that.
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

    /// Every server with its state: `show servers state`.
    ///
    /// # Errors
    /// As [`ask`](Self::ask), or when it isn't the answer to that.
    pub fn show_servers_state(&self) -> Result<ServersState, Error> {
        let command = Command::show_servers_state();
        let answer = self.send_command(&command)?;
        ServersState::parse(&answer).ok_or_else(|| self.refused_error(command, &answer))
    }

    /// The servers of one backend, or listen section: `show servers state BACKEND`.
    ///
    /// # Errors
    /// As [`ask`](Self::ask), or when HAProxy has no such backend.
    pub fn show_servers_state_of(&self, backend: &Word) -> Result<ServersState, Error> {
        let command = Command::show_servers_state_of(backend);
        let answer = self.send_command(&command)?;
        ServersState::parse(&answer).ok_or_else(|| self.refused_error(command, &answer))
    }

    /// What every frontend, backend and server has seen so far: `show stat`.
    ///
    /// # Errors
    /// As [`ask`](Self::ask), or when it isn't the answer to that.
    pub fn show_stat(&self) -> Result<Vec<Stat>, Error> {
        let command = Command::show_stat();
        let answer = self.send_command(&command)?;
        stats::parse_stats(&answer).ok_or_else(|| self.refused_error(command, &answer))
    }

    /// The worker that answers, with the figures of its backends and without those of their servers.
    ///
    /// # Errors
    /// As [`ask`](Self::ask), or when it isn't the answer to that.
    pub fn show_backends(&self) -> Result<(u32, Vec<Stat>), Error> {
        self.request_sample(Command::show_backends())
    }

    /// The worker that answers, with the figures of these backends, by [`Stat::proxy_id`], and of their servers. A line of
    /// HAProxy's takes some 500 of them.
    ///
    /// # Errors
    /// As [`ask`](Self::ask), or when it isn't the answer to that.
    pub fn show_servers_of(&self, backends: &[u32]) -> Result<(u32, Vec<Stat>), Error> {
        self.request_sample(Command::show_servers_of(backends))
    }

    /// One connection, so that one process gives all answers.
    fn request_sample(&self, command: Command) -> Result<(u32, Vec<Stat>), Error> {
        let answer = self.send_command(&command)?;
        let sample = || {
            let (info, rows) = answer.split_at_checked(answer.find("# pxname").unwrap_or(answer.len()))?;
            // The header of each further table counts as a row of no known kind.
            Some((Info::parse(info)?.pid, if rows.is_empty() { Vec::new() } else { stats::parse_stats(rows)? }))
        };
        sample().ok_or_else(|| self.refused_error(command, &answer))
    }

    /// The paths of all maps that HAProxy has loaded from files: `show map`.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn show_maps(&self) -> Result<Vec<Token>, Error> {
        // "2 (/var/lib/confgen/…/hosts.map) pattern loaded from file …"
        let path = |line: &str| line.split_once(" (")?.1.split_once(") ")?.0.parse().ok();
        Ok(self
            .send_command(&Command::show_maps())?
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(path)
            .collect())
    }

    /// What a map holds: `show map PATH`.
    ///
    /// # Errors
    /// As [`ask`](Self::ask), or when HAProxy has no such map.
    pub fn show_map(&self, path: &Token) -> Result<Vec<(String, String)>, Error> {
        let command = Command::show_map(path);
        let answer = self.send_command(&command)?;
        // "0x55ba7cfcdf50 a.com http-shop"
        let entry = |line: &str| {
            let (_, rest) = line.split_once(' ').filter(|(pointer, _)| pointer.starts_with("0x"))?;
            rest.split_once(' ').map(|(key, value)| (key.to_owned(), value.to_owned()))
        };
        let entries: Option<Vec<_>> = answer.lines().filter(|line| !line.is_empty()).map(entry).collect();
        entries.ok_or_else(|| self.refused_error(command, &answer))
    }

    fn refused_error(&self, command: Command, answer: &str) -> Error {
        let answer = answer.trim().chars().take(300).collect();
        Error::Refused { path: self.path.clone(), command, answer }
    }
}

/// A master's answer when it has no such worker: no empty line closes it, and the connection is left open.
fn is_no_target(answer: &[u8]) -> bool {
    answer.starts_with(b"Can't find the target") && answer.ends_with(b"\n")
}

#[cfg(test)]
mod tests;
