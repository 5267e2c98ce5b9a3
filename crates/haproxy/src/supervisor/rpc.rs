//! supervisord's XML-RPC interface: `POST /RPC2` on its unix socket or TCP port.

use std::fmt;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use super::xml::{self, Reply};
use super::{Error, Fault, State};
use crate::socket_io;
use crate::socket_io::BoundedStream;

/// For calls that supervisord answers at once. It is single-threaded, and may be starting programs just then.
const QUICK: Duration = Duration::from_secs(5);

/// For a stop that is waited for: as long as `supervisorctl` would be given.
const STOP: Duration = super::COMMAND_TIMEOUT;

/// Longer than any answer asked for here; the longest is a process' description.
const ANSWER_LIMIT: usize = 1024 * 1024;

/// A supervisord by its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Supervisord {
    address: Address,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    Unix(PathBuf),
    Http(String),
}

/// What supervisord says of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Its state.
    pub state: State,
    /// Its process, while it has one.
    pub pid: Option<u32>,
    /// For people: `pid 7, uptime 0:00:03`, or why it doesn't run.
    pub description: String,
    /// The time of its last start, in whole seconds. `None` if it was never started.
    pub started: Option<SystemTime>,
}

/// How much of a program's log is read, in bytes from its end: a failed start writes some ten lines.
const LOG_TAIL: i64 = 2048;

enum Param<'a> {
    Text(&'a str),
    Int(i64),
    Bool(bool),
}

impl Supervisord {
    /// The state and process of a program.
    ///
    /// # Errors
    /// When supervisord can't be asked or has no such program.
    pub fn query_process(&self, program: &str) -> Result<ProcessInfo, Error> {
        self.query_process_within(program, QUICK)
    }

    /// The same within that time.
    ///
    /// # Errors
    /// When supervisord can't be asked in time or has no such program.
    pub fn query_process_within(&self, program: &str, timeout: Duration) -> Result<ProcessInfo, Error> {
        let method = "supervisor.getProcessInfo";
        let reply = self.call_method(method, &[Param::Text(program)], timeout)?;
        let number = |name| reply.find_field(name).and_then(|text| text.parse::<i64>().ok());
        let (Some(state), Some(pid)) = (number("state"), number("pid")) else {
            return Err(self.answer_error(method, "neither state nor pid"));
        };
        Ok(ProcessInfo {
            state: State::from_code(state),
            pid: u32::try_from(pid).ok().filter(|pid| *pid != 0),
            description: reply.find_field("description").unwrap_or_default().to_owned(),
            started: number("start")
                .and_then(|seconds| u64::try_from(seconds).ok())
                .filter(|seconds| *seconds > 0)
                .map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
        })
    }

    /// The end of what a program has written to its standard error, or of both its outputs if supervisord joins them.
    /// `None` if supervisord keeps no log of it.
    pub fn read_log_tail(&self, program: &str) -> Option<String> {
        let tail = |method| {
            let parameters = [Param::Text(program), Param::Int(-LOG_TAIL), Param::Int(0)];
            let reply = self.call_method(method, &parameters, QUICK).ok()?;
            reply.find_field("").map(str::to_owned).filter(|text| !text.trim().is_empty())
        };
        tail("supervisor.readProcessStderrLog").or_else(|| tail("supervisor.readProcessStdoutLog"))
    }

    /// Whether supervisord itself is on its way out; it then refuses every call. The same while it restarts itself.
    ///
    /// # Errors
    /// When it can't be asked.
    pub fn is_shutting_down(&self, timeout: Duration) -> Result<bool, Error> {
        match self.call_method("supervisor.getState", &[], timeout) {
            Ok(_) => Ok(false),
            Err(Error::Fault { fault: Fault::ShutdownState, .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Stops a program and waits until it has ended.
    ///
    /// # Errors
    /// When supervisord can't be asked or refuses, [`Fault::NotRunning`] included.
    pub fn stop_program(&self, program: &str) -> Result<(), Error> {
        self.call_method("supervisor.stopProcess", &[Param::Text(program), Param::Bool(true)], STOP).map(drop)
    }

    /// Starts a program, without waiting for its `startsecs`.
    ///
    /// # Errors
    /// When supervisord can't be asked or refuses, [`Fault::AlreadyStarted`] included.
    pub fn start_program(&self, program: &str) -> Result<(), Error> {
        self.call_method("supervisor.startProcess", &[Param::Text(program), Param::Bool(false)], QUICK).map(drop)
    }

    /// Stops a program if it runs, then starts it unless somebody else has.
    ///
    /// # Errors
    /// When supervisord can't be asked or refuses.
    pub fn restart_program(&self, program: &str) -> Result<(), Error> {
        tolerate_fault(self.stop_program(program), Fault::NotRunning)?;
        tolerate_fault(self.start_program(program), Fault::AlreadyStarted)
    }

    fn call_method(&self, method: &'static str, params: &[Param<'_>], timeout: Duration) -> Result<Reply, Error> {
        let deadline = Instant::now() + timeout;
        let mut stream =
            self.connect_within(timeout).map_err(|source| Error::Unreachable { address: self.to_string(), source })?;
        let body = xml::format_call(method, params.iter().map(Param::to_xml));
        // HTTP/1.0: the answer comes in one piece, and the connection closes behind it.
        let request = format!(
            "POST /RPC2 HTTP/1.0\r\nHost: localhost\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let failed = |source| Error::Exchange { address: self.to_string(), method, source };
        let answer = socket_io::send_all(&mut *stream, request.as_bytes(), deadline)
            .and_then(|()| socket_io::receive_all(&mut *stream, deadline, ANSWER_LIMIT))
            .map_err(failed)?;
        let answer = String::from_utf8_lossy(&answer);
        let body = parse_http_body(&answer).map_err(|answer| self.answer_error(method, answer))?;
        let reply = Reply::parse(body).ok_or_else(|| self.answer_error(method, body))?;
        if !reply.is_fault() {
            return Ok(reply);
        }
        let code = reply.find_field("faultCode").and_then(|code| code.parse().ok()).unwrap_or_default();
        let text = reply.find_field("faultString").unwrap_or_default().to_owned();
        Err(Error::Fault { method, fault: Fault::from_code(code), text })
    }

    fn connect_within(&self, timeout: Duration) -> io::Result<Box<dyn BoundedStream>> {
        match &self.address {
            Address::Unix(path) => Ok(Box::new(socket_io::connect_unix(path, timeout)?)),
            Address::Http(authority) => {
                let address = authority.to_socket_addrs()?.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
                Ok(Box::new(TcpStream::connect_timeout(&address, timeout)?))
            }
        }
    }

    fn answer_error(&self, method: &'static str, answer: &str) -> Error {
        let answer = answer.lines().next().unwrap_or("nothing").chars().take(200).collect();
        Error::Answer { address: self.to_string(), method, answer }
    }
}

fn tolerate_fault(done: Result<(), Error>, tolerated: Fault) -> Result<(), Error> {
    match done {
        Err(Error::Fault { fault, .. }) if fault == tolerated => Ok(()),
        done => done,
    }
}

/// The body of a whole answer with status 200; else its status line, or what stands for it.
fn parse_http_body(answer: &str) -> Result<&str, &str> {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return Err(answer) };
    let status = head.lines().next().unwrap_or_default();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    if status.split(' ').nth(1) != Some("200") {
        Err(status)
    } else if length.is_some_and(|length| length != body.len()) {
        Err("an answer cut short")
    } else {
        Ok(body)
    }
}

impl Param<'_> {
    fn to_xml(&self) -> String {
        match self {
            Self::Text(text) => format!("<string>{}</string>", quick_xml::escape::escape(*text)),
            Self::Int(value) => format!("<int>{value}</int>"),
            Self::Bool(value) => format!("<boolean>{}</boolean>", u8::from(*value)),
        }
    }
}

impl FromStr for Supervisord {
    type Err = Error;

    /// Reads what supervisord's `serverurl` holds: `unix:///run/supervisor.sock`, `http://127.0.0.1:9001`.
    /// One with a password is left to supervisorctl, which has it in its configuration.
    fn from_str(url: &str) -> Result<Self, Error> {
        let wrong = || Error::Address(url.to_owned());
        if let Some(path) = url.strip_prefix("unix://") {
            let path = PathBuf::from(path);
            return if path.is_absolute() { Ok(Self { address: Address::Unix(path) }) } else { Err(wrong()) };
        }
        let authority = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/')).ok_or_else(wrong)?;
        let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none() || authority.contains(['@', '/', ' ']) {
            return Err(wrong());
        }
        Ok(Self { address: Address::Http(authority.to_owned()) })
    }
}

impl fmt::Display for Supervisord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Http(authority) => write!(f, "http://{authority}"),
        }
    }
}
