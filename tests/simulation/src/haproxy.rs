//! A model of HAProxy under handover: the running process, the old ones, and their Runtime API. Its text is the same as HAProxy's, so
//! production code parses it.

mod answers;
mod commands;
mod config;
mod manual;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use confgen::decisions::Rendered;
use haproxy::runtime::Answer;

use crate::clock::Millis;

/// HAProxy keeps an idle connection between two requests for this long (`timeout http-keep-alive`).
const KEEP_ALIVE: Millis = 4_000;
/// A connection brings its first request within this time: the inspect delay, and twice `timeout client`.
const FIRST_REQUEST: Millis = 125_000;
/// Both processes listen for this long at a restart.
const BOTH_LISTEN: Millis = 60;
/// supervisord starts a HAProxy that has crashed after this time.
const START_AGAIN: Millis = 1_000;

/// A server, as a process runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub id: u32,
    pub ip: String,
    pub port: u16,
    pub weight: u16,
    pub initial_weight: u16,
    pub maint: bool,
    /// It has been in maintenance since the file was read, and no command has said so.
    pub is_disabled_by_file: bool,
    pub drain: bool,
    /// As the checks find it.
    pub up: bool,
    pub checks_off: bool,
    pub limit: u64,
    pub has_cookie: bool,
}

impl Server {
    /// The server's address as apps have it.
    pub fn address(&self) -> String {
        format!("{}:{}", self.ip, self.port)
    }

    /// True if it gets new requests.
    pub fn takes_requests(&self) -> bool {
        self.up && !self.maint && !self.drain && self.weight > 0
    }
}

/// A backend, or the backend of a `listen` section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    pub servers: BTreeMap<String, Server>,
    pub is_unpublished: bool,
    pub is_added: bool,
    /// Its servers get sticky cookies.
    pub has_cookies: bool,
}

/// A frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    pub is_paused: bool,
    pub is_shut_down: bool,
    pub limit: u64,
}

/// A client's connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// It has brought no request yet.
    pub is_fresh: bool,
    /// The time when it was opened, or when its last request ended.
    pub idle_since: Millis,
    pub stream: Option<Stream>,
}

/// An open request or TCP session.
#[derive(Clone, Debug)]
pub struct Stream {
    pub backend: String,
    pub server: String,
    /// The answer has begun, so that the request stays with the server.
    pub is_answered: bool,
}

/// A HAProxy process.
#[derive(Clone, Debug)]
pub struct Process {
    pub pid: u32,
    pub started: Millis,
    pub generation: String,
    pub frontends: BTreeMap<String, Frontend>,
    pub backends: BTreeMap<String, Backend>,
    /// By name: `hosts`, `paths`, `passthrough`, `checks`, `urls`.
    pub maps: BTreeMap<String, Vec<(String, String)>>,
    pub connections: Vec<Connection>,
    /// The time when it was told to finish. `None` for the running process.
    pub stopped_at: Option<Millis>,
}

impl Process {
    /// The number of open requests of a server.
    pub fn sessions(&self, backend: &str, server: &str) -> u64 {
        let streams = self.connections.iter().filter_map(|it| it.stream.as_ref());
        streams.filter(|stream| stream.backend == backend && stream.server == server).count() as u64
    }
}

/// A fault of one of the next commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandFault {
    /// The command isn't carried out, and its answer is a complaint.
    Refuse,
    /// The command and those after it aren't carried out, and there is no answer.
    Break,
}

/// The model. Everything of it can be seen, so that invariants can be.
#[derive(Debug)]
pub struct Haproxy {
    pub now: Millis,
    pub adds_backends: bool,
    pub running: Option<Process>,
    pub old: Vec<Process>,
    /// haproxy.cfg on disk.
    pub file: Option<Arc<Rendered>>,
    next_pid: u32,
    /// The number of commands before the fault, and the fault.
    pub fault: Option<(u32, CommandFault)>,
    pub fails_start: bool,
    /// supervisord starts it at this time.
    pub starts_at: Option<Millis>,
    /// What a model of HAProxy can see to be wrong.
    pub violations: Vec<String>,
    /// Lines of changes, in the order of their arrival. Kept while they are wanted.
    pub lines: Option<Vec<String>>,
    /// The number of commands that changed something.
    pub changes: u64,
    /// Moves with each change of a process, so that invariants are checked only then.
    pub version: u64,
    /// The version that was checked last.
    pub checked_version: u64,
    /// The number of changes that no confgen made.
    pub external: u64,
    /// How many of them had happened when a confgen last asked for all servers.
    pub observed_external: u64,
    /// The same for the begin of an observation.
    pub begun_at: Option<u64>,
    pub reverses_commands: bool,
    pub hides_complaints: bool,
}

impl Haproxy {
    /// A HAProxy that was never started.
    pub fn new(adds_backends: bool) -> Self {
        Self {
            now: 0,
            adds_backends,
            running: None,
            old: Vec::new(),
            file: None,
            next_pid: 100,
            fault: None,
            fails_start: false,
            starts_at: None,
            violations: Vec::new(),
            lines: None,
            changes: 0,
            version: 0,
            checked_version: 0,
            external: 0,
            observed_external: 0,
            begun_at: None,
            reverses_commands: false,
            hides_complaints: false,
        }
    }

    /// Starts a process from the file on disk beside the running one, which finishes its requests. False if the start fails.
    /// `with_states` takes the servers' states over, as handover's state file does.
    pub fn restart(&mut self, with_states: bool) -> bool {
        let Some(file) = self.file.clone() else { return false };
        if std::mem::take(&mut self.fails_start) {
            return false;
        }
        self.next_pid += 1;
        let mut process = config::start(&file, self.next_pid, self.now);
        if let Some(mut old) = self.running.take() {
            if with_states {
                config::take_states(&mut process, &old);
            }
            old.stopped_at = Some(self.now);
            self.old.push(old);
        }
        self.running = Some(process);
        self.starts_at = None;
        self.version += 1;
        self.end_connections();
        true
    }

    /// The running process dies with its connections.
    pub fn crash(&mut self) {
        if self.running.take().is_some() {
            self.starts_at = Some(self.now + START_AGAIN);
            self.version += 1;
        }
    }

    /// Lets time pass: idle connections end, old processes without connections too, and a crashed HAProxy starts.
    pub fn pass_time(&mut self, now: Millis) {
        self.now = now;
        if self.starts_at.is_some_and(|at| at <= now) && !self.restart(false) {
            self.starts_at = Some(now + START_AGAIN);
        }
        self.end_connections();
    }

    fn end_connections(&mut self) {
        let now = self.now;
        for process in self.running.iter_mut().chain(&mut self.old) {
            process.connections.retain(|it| {
                let limit = if it.is_fresh { FIRST_REQUEST } else { KEEP_ALIVE };
                it.stream.is_some() || now.saturating_sub(it.idle_since) < limit
            });
        }
        self.old.retain(|process| !process.connections.is_empty());
    }

    /// Clients end all that they have open.
    pub fn end_clients(&mut self) {
        self.running.iter_mut().chain(&mut self.old).for_each(|process| process.connections.clear());
        self.end_connections();
    }

    /// True if an old process still accepts connections.
    pub fn is_another_listening(&self) -> bool {
        self.old.iter().any(|process| process.stopped_at.is_some_and(|at| self.now < at + BOTH_LISTEN))
    }

    /// Opens a connection to the running process.
    pub fn connect(&mut self) {
        let idle_since = self.now;
        if let Some(process) = &mut self.running {
            process.connections.push(Connection { is_fresh: true, idle_since, stream: None });
        }
    }

    /// Sends a request over an idle connection. Returns the address of the server that got it.
    pub fn request(&mut self, host: &str, path: &str, which: usize) -> Option<String> {
        let now = self.now;
        let processes: Vec<&mut Process> = self.running.iter_mut().chain(&mut self.old).collect();
        let idle = |process: &Process| process.connections.iter().filter(|it| it.stream.is_none()).count();
        let count: usize = processes.iter().map(|process| idle(process)).sum();
        let mut which = which % count.max(1);
        for process in processes {
            let here = idle(process);
            if which >= here {
                which -= here;
                continue;
            }
            let target = process.route(host, path, now);
            let address = target.as_ref().map(|(_, _, address)| address.clone());
            let at = process.connections.iter().enumerate().filter(|(_, it)| it.stream.is_none()).nth(which)?.0;
            match target {
                Some((backend, server, _)) => {
                    let connection = process.connections.get_mut(at)?;
                    connection.is_fresh = false;
                    connection.stream = Some(Stream { backend, server, is_answered: false });
                }
                // A 503, which closes the connection in an old process.
                None => _ = process.connections.remove(at),
            }
            return address;
        }
        None
    }

    /// Ends a request, or begins its answer. In an old process the connection ends with its request.
    pub fn answer_request(&mut self, which: usize) {
        let now = self.now;
        let mut busy: Vec<(&mut Connection, bool)> = Vec::new();
        for process in self.running.iter_mut().chain(&mut self.old) {
            let is_old = process.stopped_at.is_some();
            busy.extend(process.connections.iter_mut().filter(|it| it.stream.is_some()).map(|it| (it, is_old)));
        }
        let count = busy.len().max(1);
        if let Some((connection, is_old)) = busy.into_iter().nth(which % count) {
            match &mut connection.stream {
                Some(stream) if !stream.is_answered => stream.is_answered = true,
                _ => {
                    (connection.stream, connection.idle_since) = (None, if is_old { 0 } else { now });
                }
            }
        }
        self.end_connections();
    }
}

impl Process {
    /// The backend, the server and the address for a request. `None` is a 503 or a 404.
    fn route(&self, host: &str, path: &str, now: Millis) -> Option<(String, String, String)> {
        if host.starts_with("tcp-") {
            return self.choose_server(host, now);
        }
        let map = |name: &str| self.maps.get(name).map(Vec::as_slice).unwrap_or_default();
        let wildcard = host.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        let site = [Some(host), wildcard.as_deref()].into_iter().flatten();
        let site =
            site.filter_map(|host| map("hosts").iter().find(|(key, _)| key == host)).map(|(_, value)| value).next()?;
        let request = format!("{site}{path}/");
        let fits = map("paths").iter().filter(|(prefix, _)| request.starts_with(prefix.as_str()));
        let mut section = &fits.max_by_key(|(prefix, _)| prefix.len())?.1;
        if section == "discover-passthrough" {
            section = &map("passthrough").iter().find(|(key, _)| key == site)?.1;
        }
        self.choose_server(section, now)
    }

    fn choose_server(&self, section: &str, now: Millis) -> Option<(String, String, String)> {
        let backend = self.backends.get(section).filter(|backend| !backend.is_unpublished)?;
        let ready: Vec<(&String, &Server)> = backend.servers.iter().filter(|(_, it)| it.takes_requests()).collect();
        let at = usize::try_from(now).unwrap_or_default() % ready.len().max(1);
        let (name, server) = ready.get(at)?;
        Some((section.to_owned(), (*name).clone(), server.address()))
    }
}

/// The model behind the socket of confgen's HAProxy.
#[derive(Debug, Clone)]
pub struct SharedHaproxy(Arc<Mutex<Haproxy>>);

impl SharedHaproxy {
    /// Shares a model.
    pub fn new(model: Haproxy) -> Self {
        Self(Arc::new(Mutex::new(model)))
    }

    /// The model, until the guard is dropped.
    pub fn lock(&self) -> MutexGuard<'_, Haproxy> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answer for SharedHaproxy {
    fn answer(&self, line: &str) -> io::Result<Vec<u8>> {
        self.lock().answer_line(line)
    }
}
