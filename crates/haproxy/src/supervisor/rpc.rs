//! Calls supervisord's XML-RPC interface: `POST /RPC2` on its unix socket or TCP port.

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

/// The time limit of a call that supervisord answers at once. It is single-threaded, and may be starting programs just
/// then.
const QUICK: Duration = Duration::from_secs(5);

/// The time limit of a stop and the wait for its end, as for `supervisorctl`.
const STOP: Duration = super::COMMAND_TIMEOUT;

/// The longest answer in bytes. The longest that comes is a process' description.
const ANSWER_LIMIT: usize = 1024 * 1024;

/// A supervisord, by its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Supervisord {
    address: Address,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    Unix(PathBuf),
    Http(String),
}

/// A program, as supervisord describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    /// The program's state.
    pub state: State,
    /// The process id, while the program has a process.
    pub pid: Option<u32>,
    /// A text for operators: `pid 7, uptime 0:00:03`, or the reason that it doesn't run.
    pub description: String,
    /// The time of the program's last start, in whole seconds. `None` if it was never started.
    pub started: Option<SystemTime>,
}

/// The part of a program's log that is read, in bytes from its end. A failed start writes some ten lines.
const LOG_TAIL: i64 = 2048;

enum Param<'a> {
    Text(&'a str),
    Int(i64),
    Bool(bool),
}

impl Supervisord {
    /// Asks for the state and process of a program.
    ///
    /// # Errors
    /// If supervisord can't be asked, or has no such program.
    pub fn query_process(&self, program: &str) -> Result<ProcessInfo, Error> {
        self.query_process_within(program, QUICK)
    }

    /// The same with another time limit.
    ///
    /// # Errors
    /// If supervisord can't be asked in time, or has no such program.
    pub fn query_process_within(&self, program: &str, timeout: Duration) -> Result<ProcessInfo, Error> {
        let method = "supervisor.getProcessInfo";
        let reply = self.call_method(method, &[Param::Text(program)], timeout)?;
        let (Some(state), Some(pid)) = (reply.find_number("state"), reply.find_number("pid")) else {
            return Err(self.answer_error(method, "neither state nor pid"));
        };
        Ok(ProcessInfo {
            state: State::from_code(state),
            // supervisord gives 0 for a program without a process.
            pid: u32::try_from(pid).ok().filter(|pid| *pid != 0),
            description: reply.find_field("description").unwrap_or_default().to_owned(),
            // 0 for a program that was never started.
            started: reply
                .find_number("start")
                .and_then(|seconds| u64::try_from(seconds).ok())
                .filter(|seconds| *seconds > 0)
                .map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
        })
    }

    /// Reads the end of a program's standard error, or of both its outputs if supervisord joins them. `None` if
    /// supervisord keeps no log of it.
    pub fn read_log_tail(&self, program: &str) -> Option<String> {
        self.read_log("supervisor.readProcessStderrLog", program)
            .or_else(|| self.read_log("supervisor.readProcessStdoutLog", program))
    }

    fn read_log(&self, method: &'static str, program: &str) -> Option<String> {
        // A negative offset counts from the log's end, and a length of 0 reads up to it.
        let parameters = [Param::Text(program), Param::Int(-LOG_TAIL), Param::Int(0)];
        let reply = self.call_method(method, &parameters, QUICK).ok()?;
        reply.find_field("").map(str::to_owned).filter(|text| !text.trim().is_empty())
    }

    /// True if supervisord shuts down or restarts itself. It then refuses every call.
    ///
    /// # Errors
    /// If supervisord can't be asked.
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
    /// If supervisord can't be asked or refuses, [`Fault::NotRunning`] included.
    pub fn stop_program(&self, program: &str) -> Result<(), Error> {
        self.call_method("supervisor.stopProcess", &[Param::Text(program), Param::Bool(true)], STOP).map(drop)
    }

    /// Starts a program, without waiting for its `startsecs`.
    ///
    /// # Errors
    /// If supervisord can't be asked or refuses, [`Fault::AlreadyStarted`] included.
    pub fn start_program(&self, program: &str) -> Result<(), Error> {
        self.call_method("supervisor.startProcess", &[Param::Text(program), Param::Bool(false)], QUICK).map(drop)
    }

    /// Stops a program if it runs, then starts it unless another client has.
    ///
    /// # Errors
    /// If supervisord can't be asked or refuses.
    pub fn restart_program(&self, program: &str) -> Result<(), Error> {
        tolerate_fault(self.stop_program(program), Fault::NotRunning)?;
        tolerate_fault(self.start_program(program), Fault::AlreadyStarted)
    }

    fn call_method(&self, method: &'static str, params: &[Param<'_>], timeout: Duration) -> Result<Reply, Error> {
        let deadline = Instant::now() + timeout;
        let mut stream =
            self.connect_within(timeout).map_err(|source| Error::Unreachable { address: self.to_string(), source })?;
        let body = xml::format_call(method, params.iter().map(Param::to_xml));
        // With HTTP/1.0 the answer comes in one piece, and supervisord closes the connection after it.
        let request = format!(
            "POST /RPC2 HTTP/1.0\r\nHost: localhost\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = socket_io::send_all(&mut *stream, request.as_bytes(), deadline)
            .and_then(|()| socket_io::receive_all(&mut *stream, deadline, ANSWER_LIMIT))
            .map_err(|source| Error::Exchange { address: self.to_string(), method, source })?;
        let answer = String::from_utf8_lossy(&answer);
        let body = parse_http_body(&answer).map_err(|answer| self.answer_error(method, answer))?;
        let reply = Reply::parse(body).ok_or_else(|| self.answer_error(method, body))?;
        if !reply.is_fault() {
            return Ok(reply);
        }
        let code = reply.find_number("faultCode").unwrap_or_default();
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

/// Returns the body of a whole answer with status 200. Otherwise the error is the status line, or a reason.
fn parse_http_body(answer: &str) -> Result<&str, &str> {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return Err(answer) };
    let status = head.lines().next().unwrap_or_default();
    // HTTP/1.0 ends an answer by closing the connection, so that only the length tells of one that is cut short.
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

    /// Parses a `serverurl` of supervisord: `unix:///run/supervisor.sock`, `http://127.0.0.1:9001`. An address with a
    /// password is refused, because supervisorctl has the password in its configuration.
    fn from_str(url: &str) -> Result<Self, Error> {
        if let Some(path) = url.strip_prefix("unix://") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self { address: Address::Unix(path) })
            } else {
                Err(address_error(url))
            };
        }
        let authority =
            url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/')).ok_or_else(|| address_error(url))?;
        let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none() || authority.contains(['@', '/', ' ']) {
            return Err(address_error(url));
        }
        Ok(Self { address: Address::Http(authority.to_owned()) })
    }
}

fn address_error(url: &str) -> Error {
    Error::Address(url.to_owned())
}

impl fmt::Display for Supervisord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Http(authority) => write!(f, "http://{authority}"),
        }
    }
}
