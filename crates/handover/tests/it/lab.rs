//! A supervisord with handover and HAProxy in a directory of its own, an app behind it, and clients.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use haproxy::masters;
use haproxy::runtime::Socket;
use haproxy::supervisor::{ProcessInfo, State, Supervisord};
use lab::http::Request;
use lab::{PATIENCE, Process, Scratch, free_address, until, write};

use crate::http::serve_app;

/// How long a handover of these tests waits for a successor. supervisorctl takes 0.4 s, and over a second on a busy machine.
pub(crate) const LINGER: Duration = Duration::from_secs(4);

/// Everything that one test runs. Dropped, it leaves no process behind.
pub(crate) struct Lab {
    /// Each is killed with all that it started. Only the last one lives.
    supervisords: Vec<Process>,
    pub(crate) web: SocketAddr,
    pub(crate) app: SocketAddr,
    pub(crate) dir: Scratch,
}

/// How supervisord is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    /// Beside everything else, as on a host.
    Plain,
    /// As PID 1 of a pid namespace, as in a container.
    Container,
    /// As root that may not look into processes of others, as in most containers.
    Confined,
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

    /// An end within `startsecs` counts as a failed start, and supervisord gives up after `startretries` of them.
    pub(crate) fn until_running(&self) {
        self.until("the program runs", || self.state() == Some(State::Running));
    }

    pub(crate) fn start_in(host: Host, startsecs: u8) -> Self {
        let mut lab = Self::prepare();
        lab.configure("first", "");
        lab.install();
        lab.supervise(host, &lab.program(startsecs));
        lab.start_program();
        lab.until("the first configuration serves", || lab.generation().as_deref() == Some("first"));
        lab
    }

    /// The files and the app, without a process.
    pub(crate) fn prepare() -> Self {
        Self { supervisords: Vec::new(), web: free_address(), app: serve_app(), dir: Scratch::new() }
    }

    /// Puts the programs where a test can exchange them.
    pub(crate) fn install(&self) {
        let bin = self.path("bin");
        fs::create_dir_all(&bin).unwrap();
        let (built, handover) = (env!("CARGO_BIN_EXE_handover"), bin.join("handover"));
        let _ = fs::remove_file(&handover);
        fs::hard_link(built, &handover).or_else(|_| fs::copy(built, &handover).map(drop)).unwrap();
        self.script("haproxy", "exec haproxy \"$@\"");
    }

    /// Puts a shell script in the place of a program.
    pub(crate) fn script(&self, program: &str, text: &str) {
        let (path, new) = (self.path("bin").join(program), self.path("bin").join("new"));
        write(&new, format!("#!/bin/sh\n{text}\n"));
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, &path).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The runtime socket.
    pub(crate) fn socket(&self) -> Socket {
        Socket::new(self.path("admin.sock"))
    }

    /// Writes a configuration that answers `/generation` with that name; `more` comes at its end.
    pub(crate) fn configure(&self, generation: &str, more: &str) {
        self.configure_server(generation, "check inter 200ms fall 1", more);
    }

    /// The same with other options for the app's server.
    pub(crate) fn configure_server(&self, generation: &str, options: &str, more: &str) {
        let (dir, web, app) = (self.dir.display(), self.web, self.app);
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
        write(self.path(name), text);
    }

    /// handover as a program of supervisord.
    pub(crate) fn program(&self, startsecs: u8) -> String {
        let (dir, linger) = (self.dir.display(), LINGER.as_millis());
        format!(
            "[program:haproxy]
command={dir}/bin/handover --socket {dir}/admin.sock --linger {linger}ms --wait 10s --drain 6s -- {dir}/bin/haproxy -f {dir}/haproxy.cfg
autostart=false
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
        let dir = self.dir.display();
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
            Host::Confined => {
                // What Docker leaves, as far as it matters here.
                let left = "-all,+chown,+dac_override,+fowner,+kill,+net_bind_service,+setgid,+setpcap,+setuid";
                let mut setpriv = Command::new("setpriv");
                setpriv.args(["--bounding-set", left, "supervisord"]);
                setpriv
            }
        };
        self.supervisords.push(Process::start(&self.dir, "supervisord-output", command.arg("-c").arg(config)));
        self.until("supervisord answers", || self.path("supervisor.sock").exists());
    }

    /// Starts supervisord anew, after the first one was killed.
    pub(crate) fn supervise_again(&mut self) {
        self.wait_end();
        self.supervise_program();
    }

    fn wait_end(&mut self) {
        let _ = self.supervisords.last_mut().unwrap().wait(PATIENCE);
    }

    /// Has supervisord start the program, which by itself it does a second later.
    pub(crate) fn start_program(&self) {
        self.until("supervisord takes commands", || self.rpc().start_program("haproxy").is_ok());
    }

    pub(crate) fn rpc(&self) -> Supervisord {
        format!("unix://{}/supervisor.sock", self.dir.display()).parse().unwrap()
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

    /// What supervisord says of the program; asked directly, since supervisorctl takes a third of a second.
    fn process(&self) -> Option<ProcessInfo> {
        self.rpc().query_process("haproxy").ok()
    }

    /// The process that supervisord runs as `haproxy`.
    pub(crate) fn handover(&self) -> Option<i32> {
        i32::try_from(self.process()?.pid?).ok()
    }

    /// The program's state.
    pub(crate) fn state(&self) -> Option<State> {
        Some(self.process()?.state)
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
        let bears = |pid| environ(pid).windows(mark.len()).any(|window| window == mark.as_bytes());
        processes(bears)
    }

    /// Every process that names this lab's directory on its command line: handovers and watchdogs too.
    pub(crate) fn everyone(&self) -> Vec<i32> {
        let dir = self.dir.display().to_string();
        processes(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&dir)
        })
    }

    /// The sockets of masters, dead ones' too.
    pub(crate) fn masters(&self) -> Vec<Socket> {
        let files = fs::read_dir(masters::nested_directory(&self.path("admin.sock"))).into_iter().flatten().flatten();
        let sockets = files.filter(|file| file.file_name().to_string_lossy().contains(masters::SUFFIX));
        sockets.map(|file| Socket::new(file.path())).collect()
    }

    /// How many sockets of masters there are.
    pub(crate) fn master_sockets(&self) -> usize {
        self.masters().len()
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

    /// Asserts that the HAProxy that answers has the configuration of that name.
    pub(crate) fn assert_serves(&self, generation: &str) {
        assert_eq!(self.generation().as_deref(), Some(generation), "{}", self.log());
    }

    /// Waits until it holds.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, holds: impl FnMut() -> bool) {
        until(2 * PATIENCE, what, holds);
    }

    /// Ends supervisord as an administrator would, and waits for it.
    pub(crate) fn shut_down(&mut self) {
        let _ = self.ctl(&["shutdown"]);
        self.wait_end();
    }

    /// Starts supervisord with the usual program, and starts that.
    pub(crate) fn supervise_program(&mut self) {
        let program = self.program(1);
        self.supervise(Host::Plain, &program);
        self.start_program();
    }

    /// The same as [`everyone`](Self::everyone), but for a supervisord that has ended and was not waited for.
    pub(crate) fn everyone_but_supervisord(&self) -> Vec<i32> {
        let supervisord = self.supervisord();
        self.everyone().into_iter().filter(|pid| *pid != supervisord).collect()
    }

    /// The supervisord process, or the one that stands for its namespace.
    pub(crate) fn supervisord(&self) -> i32 {
        self.supervisords.last().unwrap().pid().as_raw()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// The living processes for which that holds, given their directory in `/proc`.
fn processes(holds: impl Fn(i32) -> bool) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().filter(|pid| holds(*pid)))
        .filter(|pid| stat(*pid).is_some_and(|(state, _)| state != 'Z'))
        .collect()
}

/// A process' environment; its parent's where it shows none, as a worker without root's rights in a container.
fn environ(pid: i32) -> Vec<u8> {
    match fs::read(format!("/proc/{pid}/environ")) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            stat(pid).map(|(_, parent)| environ(parent)).unwrap_or_default()
        }
        environ => environ.unwrap_or_default(),
    }
}

/// A process' state and parent.
pub(crate) fn stat(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// One request on a connection of its own; the body of a 200.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<String, String> {
    let answer = Request::get("lab", path).send(address).map_err(|error| error.to_string())?;
    if answer.status == 200 { Ok(answer.body) } else { Err(answer.status.to_string()) }
}
