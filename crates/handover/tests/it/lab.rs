//! A supervisord with handover and HAProxy in a directory of its own, an app behind it, and clients.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Long enough for a machine that builds something else meanwhile.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a handover of these tests waits for a successor.
pub(crate) const LINGER: Duration = Duration::from_millis(1500);

/// Everything that one test runs. Dropped, it leaves no process behind.
pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) web: SocketAddr,
    pub(crate) app: SocketAddr,
    supervisord: Option<Child>,
}

/// How supervisord is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    /// Beside everything else, as on a host.
    Plain,
    /// As PID 1 of a pid namespace, as in a container.
    Container,
}

impl Lab {
    /// Writes the files, starts supervisord, and waits until HAProxy serves the first configuration.
    pub(crate) fn start() -> Self {
        Self::start_in(Host::Plain, 1)
    }

    /// The same where a start that fails must be told from one that is followed by a crash.
    ///
    /// supervisord notices a program's end up to 1 s late (its loop sleeps through SIGCHLD): with
    /// `startsecs=1` it may find that a program which ended after 0.1 s has been up for more than 1 s.
    pub(crate) fn start_strict() -> Self {
        Self::start_in(Host::Plain, 2)
    }

    pub(crate) fn start_in(host: Host, startsecs: u8) -> Self {
        let mut lab = Self::prepare();
        lab.configure("first", "");
        lab.supervise(host, &lab.program(startsecs));
        lab.until("the first configuration serves", || lab.generation().as_deref() == Some("first"));
        lab
    }

    /// The files and the app, without a process.
    pub(crate) fn prepare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, web: free_port(), app: serve_app(), supervisord: None }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The runtime socket.
    pub(crate) fn socket(&self) -> haproxy::runtime::Socket {
        haproxy::runtime::Socket::new(self.path("admin.sock"))
    }

    /// Writes a configuration that answers `/generation` with that name; `more` comes at its end.
    pub(crate) fn configure(&self, generation: &str, more: &str) {
        self.configure_server(generation, "check inter 200ms fall 1", more);
    }

    /// The same with other options for the app's server.
    pub(crate) fn configure_server(&self, generation: &str, options: &str, more: &str) {
        let (dir, web, app) = (self.dir.path().display(), self.web, self.app);
        self.write(
            "haproxy.cfg",
            &format!(
                "global
    stats socket {dir}/admin.sock mode 600 level admin expose-fd listeners
    server-state-file {dir}/servers.state
    hard-stop-after 20s
defaults
    mode http
    load-server-state-from-file global
    option idle-close-on-response
    timeout connect 1s
    timeout client 10s
    timeout server 10s
    timeout http-keep-alive 2s
frontend web
    bind {web}
    http-request return status 200 content-type text/plain string {generation} if {{ path /generation }}
    default_backend app
backend app
    server one {app} {options}
{more}
"
            ),
        );
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::File::create(self.path(name)).unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// handover as a program of supervisord.
    fn program(&self, startsecs: u8) -> String {
        let (dir, handover, linger) = (self.dir.path().display(), env!("CARGO_BIN_EXE_handover"), LINGER.as_millis());
        format!(
            "[program:haproxy]
command={handover} --socket {dir}/admin.sock --linger {linger}ms --wait 10s --drain 6s -- haproxy -f {dir}/haproxy.cfg
autorestart=unexpected
exitcodes=0
startsecs={startsecs}
startretries=0
stopwaitsecs=10
stdout_logfile={dir}/haproxy.log
redirect_stderr=true
"
        )
    }

    /// Starts supervisord with that program.
    pub(crate) fn supervise(&mut self, host: Host, program: &str) {
        let dir = self.dir.path().display();
        let text = format!(
            "[unix_http_server]
file={dir}/supervisor.sock
[supervisord]
nodaemon=true
pidfile={dir}/supervisord.pid
logfile={dir}/supervisord.log
childlogdir={dir}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{dir}/supervisor.sock
{program}"
        );
        self.write("supervisord.conf", &text);
        let config = self.path("supervisord.conf");
        let mut command = match host {
            Host::Plain => Command::new("supervisord"),
            Host::Container => {
                let mut unshare = Command::new("unshare");
                unshare.args(["--pid", "--fork", "--kill-child", "--mount-proc", "supervisord"]);
                unshare
            }
        };
        let child = command.arg("-c").arg(config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.supervisord = Some(child);
        self.until("supervisord answers", || self.path("supervisor.sock").exists());
    }

    /// Runs supervisorctl; its exit status and what it says.
    pub(crate) fn ctl(&self, words: &[&str]) -> (i32, String) {
        let output =
            Command::new("supervisorctl").arg("-c").arg(self.path("supervisord.conf")).args(words).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// supervisorctl, which must succeed.
    pub(crate) fn ctl_ok(&self, words: &[&str]) {
        let (code, output) = self.ctl(words);
        assert_eq!(code, 0, "{words:?}: {output}\n{}", self.log());
    }

    /// The process that supervisord runs as `haproxy`.
    pub(crate) fn handover(&self) -> Option<i32> {
        let (_, pid) = self.ctl(&["pid", "haproxy"]);
        pid.trim().parse().ok().filter(|pid| *pid > 0)
    }

    /// `handover stop`.
    pub(crate) fn handover_stop(&self) {
        let status = Command::new(env!("CARGO_BIN_EXE_handover"))
            .args(["stop", "--drain", "4s", "--socket"])
            .arg(self.path("admin.sock"))
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }

    /// Every living process that bears the mark of this lab's socket, outside or inside of a pid namespace.
    pub(crate) fn haproxys(&self) -> Vec<i32> {
        let mark = format!("HANDOVER={}\0", self.path("admin.sock").display());
        processes(|process| {
            let environ = fs::read(process.join("environ")).unwrap_or_default();
            environ.windows(mark.len()).any(|window| window == mark.as_bytes())
        })
    }

    /// Every process that names this lab's directory on its command line: handovers and watchdogs too.
    pub(crate) fn everyone(&self) -> Vec<i32> {
        let dir = self.dir.path().display().to_string();
        processes(|process| {
            let line = fs::read(process.join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&dir)
        })
    }

    /// The sockets of masters that lie about.
    pub(crate) fn master_sockets(&self) -> usize {
        let files = fs::read_dir(self.path("handover")).into_iter().flatten().flatten();
        files.filter(|file| file.file_name().to_string_lossy().contains(".sock")).count()
    }

    /// Everything that handover and HAProxy said.
    pub(crate) fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.path(name)).unwrap_or_default();
        format!("--- haproxy.log\n{}--- supervisord.log\n{}", read("haproxy.log"), read("supervisord.log"))
    }

    /// The name of the configuration that answers.
    pub(crate) fn generation(&self) -> Option<String> {
        get(self.web, "/generation").ok()
    }

    /// The configuration of that name must be the one that answers.
    pub(crate) fn assert_serves(&self, generation: &str) {
        assert_eq!(self.generation().as_deref(), Some(generation), "{}", self.log());
    }

    /// Waits until it holds.
    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "never: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends supervisord as an administrator would, and waits for it.
    pub(crate) fn shut_down(&mut self) {
        let _ = self.ctl(&["shutdown"]);
        if let Some(mut child) = self.supervisord.take() {
            let _ = child.wait();
        }
    }

    /// The supervisord process, or the one that stands for its namespace.
    pub(crate) fn supervisord(&self) -> i32 {
        i32::try_from(self.supervisord.as_ref().unwrap().id()).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for pid in self.everyone() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if let Some(mut child) = self.supervisord.take() {
            let _ = child.wait();
        }
    }
}

/// The living processes for which that holds, given their directory in `/proc`.
fn processes(holds: impl Fn(&Path) -> bool) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().filter(|_| holds(&entry.path())))
        .filter(|pid| stat(*pid).is_some_and(|(state, _)| state != 'Z'))
        .collect()
}

/// A process' state and parent.
pub(crate) fn stat(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// The children of a process.
pub(crate) fn children(parent: i32) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|(_, of)| of == parent)).collect()
}

/// A port of the loopback that nobody has. It isn't held: HAProxy must be able to bind it.
pub(crate) fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// An app that answers `/slow` over 4 s, and everything else at once.
fn serve_app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

/// `/slow` is this many lines, 100 ms apart.
pub(crate) const SLOW_LINES: usize = 40;

fn serve(stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    while let Some(path) = read_request(&mut reader)? {
        if path == "/slow" {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", SLOW_LINES * 5)?;
            for _ in 0..SLOW_LINES {
                stream.write_all(b"slow\n")?;
                std::thread::sleep(Duration::from_millis(100));
            }
        } else {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")?;
        }
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut path = None;
    for line in reader.lines() {
        let line = line?;
        if line.is_empty() {
            return Ok(path);
        }
        path.get_or_insert_with(|| line.split(' ').nth(1).unwrap_or_default().to_owned());
    }
    Ok(None)
}

/// One request on a connection of its own; the body of a 200.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<String, String> {
    let mut stream = TcpStream::connect(address).map_err(|error| format!("connect: {error}"))?;
    request(&mut stream, path, "close").map(|(body, _)| body)
}

/// The body of a 200, and whether HAProxy closes the connection behind it.
fn request(stream: &mut TcpStream, path: &str, connection: &str) -> Result<(String, bool), String> {
    stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    // In one piece: several small ones would wait for each other's acknowledgement.
    let text = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(text.as_bytes()).map_err(|error| format!("send: {error}"))?;
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).map_err(|error| format!("head: {error}"))? == 0 {
            return Err(format!("closed after {} bytes", head.len()));
        }
    }
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let closes = head.lines().any(|line| line == "connection: close");
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).map_err(|error| format!("body: {error}"))?;
    let body = String::from_utf8(body).map_err(|error| error.to_string())?;
    if head.starts_with("http/1.1 200 ") {
        Ok((body, closes))
    } else {
        Err(head.lines().next().unwrap_or("?").to_owned())
    }
}

/// Clients that ask again and again until they are stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<(usize, Vec<String>)>>,
}

impl Load {
    /// Four clients with a connection a request, two that keep theirs as long as HAProxy does.
    pub(crate) fn on(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..6).map(|client| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || ask_until(&stop, address, client >= 4))
        });
        Self { clients: clients.collect(), stop }
    }

    /// Stops them; every request must have been answered, and there must have been some.
    pub(crate) fn stop_without_a_loss(self, lab: &Lab) {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = String::new();
        let mut asked = 0;
        for client in self.clients {
            let (requests, failures) = client.join().unwrap();
            asked += requests;
            failures.iter().for_each(|failure| writeln!(report, "{failure}").unwrap());
        }
        assert!(asked > 100, "only {asked} requests");
        assert!(report.is_empty(), "of {asked} requests:\n{report}{}", lab.log());
    }
}

fn ask_until(stop: &AtomicBool, address: SocketAddr, keep: bool) -> (usize, Vec<String>) {
    let (mut requests, mut failures) = (0, Vec::new());
    let mut kept: Option<TcpStream> = None;
    while !stop.load(Ordering::Relaxed) {
        requests += 1;
        let stream = kept.take().map_or_else(|| TcpStream::connect(address), Ok);
        let answer = stream.map_err(|error| format!("connect: {error}")).and_then(|mut stream| {
            let (_, closes) = request(&mut stream, "/", if keep { "keep-alive" } else { "close" })?;
            kept = Some(stream).filter(|_| keep && !closes);
            Ok(())
        });
        failures.extend(answer.err().map(|error| format!("request {requests}, kept {keep}: {error}")));
        std::thread::sleep(Duration::from_millis(5));
    }
    (requests, failures)
}
