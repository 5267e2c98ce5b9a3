//! A balancer host: supervisord with HAProxy and confgen.

use std::fs::read_to_string;
use std::io::{self, Read as _, Write as _};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::process::Output;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::described::check_answer;
use crate::http::{Request, Response};
use crate::supervisor::{Supervisor, said};
use crate::{Etcd, PATIENCE, Place, Setup, until};

/// handover's own: after this without a successor it stops HAProxy.
const LINGER: Duration = Duration::from_secs(3);

/// A running balancer. Dropping it kills supervisord and everything below it.
pub struct Balancer {
    pub(crate) supervisor: Supervisor,
    pub(crate) place: Place,
}

impl Deref for Balancer {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Balancer {
    /// HAProxy under handover and confgen, with its default flags.
    pub fn start(etcd: &Etcd) -> Self {
        Setup::new().confgen(etcd).start()
    }

    /// What confgen's admin port answers.
    ///
    /// # Errors
    /// When it can't be reached.
    ///
    /// # Panics
    /// When a JSON answer is not as docs/openapi.json describes it.
    #[track_caller]
    pub fn asked(&self, target: &str) -> io::Result<Response> {
        let answer = Request::get("localhost", target).send(self.admin())?;
        check_answer(target, &answer);
        Ok(answer)
    }

    /// The generated file's text, empty where there is none.
    pub fn file(&self) -> String {
        read_to_string(self.haproxy_cfg()).unwrap_or_default()
    }

    /// What a program has printed: `haproxy`, `confgen` or `supervisord`.
    pub fn log(&self, program: &str) -> String {
        read_to_string(self.folder().join(format!("{program}.log"))).unwrap_or_default()
    }

    /// Runs supervisorctl.
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        self.supervisor.ctl(arguments)
    }

    /// `supervisorctl restart haproxy`.
    ///
    /// # Panics
    /// When supervisorctl fails.
    #[track_caller]
    pub fn restart(&self) {
        let output = self.ctl(&["restart", "haproxy"]);
        assert!(output.status.success(), "supervisorctl restart haproxy: {}", said(&output));
    }

    /// The pid of supervisord's own child for a program: handover or HAProxy, or confgen.
    pub fn pid(&self, program: &str) -> Option<Pid> {
        self.supervisor.pid(program)
    }

    /// Sends a signal to supervisord's own child for a program, and returns its pid.
    pub fn signal(&self, program: &str, signal: Signal) -> Pid {
        let pid = self.pid(program).unwrap_or_else(|| panic!("{program} has no process"));
        kill(pid, signal).unwrap_or_else(|error| panic!("{signal} to {program}: {error}"));
        pid
    }

    /// SIGKILL to supervisord's own child for a program, once it has one; supervisord starts it again.
    pub fn kill(&self, program: &str) {
        // supervisord may be about to start it, or a kill may meet its own end.
        let killed = until(PATIENCE, &format!("{program} to be killed"), || {
            self.pid(program).filter(|pid| kill(*pid, Signal::SIGKILL).is_ok())
        });
        // Until then the program is still called running.
        until(PATIENCE, &format!("supervisord to find {program} killed"), || self.pid(program) != Some(killed));
    }

    /// Waits until supervisord calls a program running: it has lived for its `startsecs`.
    #[track_caller]
    pub fn wait_running(&self, program: &str) {
        until(PATIENCE, &format!("{program} to be RUNNING"), || match self.supervisor.state(program) {
            Ok(state) if state == "RUNNING" => Ok(()),
            Ok(state) => Err(state),
            Err(error) => Err(error.to_string()),
        });
    }

    /// The pid of the HAProxy worker that answers.
    #[track_caller]
    pub fn worker(&self) -> Pid {
        let info = self.ask("show info");
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid: ")).and_then(|pid| pid.parse().ok());
        Pid::from_raw(pid.unwrap_or_else(|| panic!("no pid in {info}")))
    }

    /// How often confgen has restarted HAProxy.
    pub fn restarts(&self) -> usize {
        self.log("confgen").lines().filter(|line| line.contains(" restarting HAProxy ")).count()
    }

    /// supervisord and all below it, HAProxys in sessions of their own included.
    pub fn family(&self) -> Vec<Pid> {
        self.supervisor.family()
    }

    /// What the Runtime API answers.
    ///
    /// # Panics
    /// When HAProxy can't be reached.
    #[track_caller]
    pub fn ask(&self, command: &str) -> String {
        self.try_ask(command).unwrap_or_else(|error| panic!("asking HAProxy {command:?}: {error}"))
    }

    /// What the Runtime API answers, while HAProxy can be reached.
    ///
    /// # Errors
    /// What the socket said.
    pub fn try_ask(&self, command: &str) -> io::Result<String> {
        let mut stream = UnixStream::connect(self.socket())?;
        // HAProxy answers within milliseconds; five seconds are a hang.
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("{command}\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.trim_end().to_owned())
    }

    /// The generation stamp that the file bears.
    pub fn stamp_on_disk(&self) -> Option<String> {
        let file = self.file();
        let mut words = file.lines().find(|line| line.contains("setenv CONFGEN_GEN"))?.split_whitespace();
        words.nth(2).map(|stamp| stamp.trim_matches('"').to_owned())
    }

    /// The generation stamp that HAProxy runs with.
    pub fn stamp_running(&self) -> Option<String> {
        let answer = self.try_ask("show env CONFGEN_GEN").ok()?;
        answer.strip_prefix("CONFGEN_GEN=").map(str::to_owned)
    }

    /// Whether HAProxy adds and deletes backends while it runs: 3.4 and later.
    pub fn adds_backends(&self) -> bool {
        let info = self.ask("show info");
        let version = info.lines().find_map(|line| line.strip_prefix("Version: ")).unwrap_or_default();
        let mut numbers =
            version.split(|it: char| !it.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
        (numbers.next(), numbers.next()) >= (Some(3), Some(4))
    }

    /// Waits until HAProxy runs the file that lies there. One that took services while it ran has another stamp than the file:
    /// then confgen's word counts that both have the same revision of the store.
    #[track_caller]
    pub fn wait_in_sync(&self, deadline: Duration) {
        until(deadline, "HAProxy to run what the file says", || {
            let (disk, running) = (self.stamp_on_disk(), self.stamp_running());
            if disk.is_some() && (disk == running || self.adds_backends() && self.has_filed_what_runs()) {
                Ok(())
            } else {
                Err(format!("file {disk:?}, running {running:?}"))
            }
        });
    }

    /// Waits until HAProxy has this revision of the store, or a later one.
    #[track_caller]
    pub fn wait_applied(&self, deadline: Duration, revision: i64) {
        until(deadline, "the revision to be applied", || {
            let answer = self.asked("/api/v1/status").map_err(|error| error.to_string())?;
            let status: Value = serde_json::from_str(&answer.body).unwrap_or_default();
            let is_applied = status["applied"].as_i64().is_some_and(|applied| applied >= revision);
            is_applied.then_some(()).ok_or_else(|| format!("{} of {revision}", status["applied"]))
        });
    }

    /// Whether confgen says that it is in sync, and that the file has the revision that HAProxy has.
    fn has_filed_what_runs(&self) -> bool {
        let Ok(answer) = self.asked("/api/v1/status") else { return false };
        let status: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        status["in_sync"] == true && status["applied"].is_i64() && status["applied"] == status["filed"]
    }

    /// Waits until confgen has brought HAProxy to what the store asks for, and no process of before is left: at the start it
    /// may restart the one that it finds not there yet.
    #[track_caller]
    pub fn wait_settled(&self, deadline: Duration) {
        until(deadline, "confgen to be in sync", || match self.asked("/ready") {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(answer.body),
            Err(error) => Err(error.to_string()),
        });
        // The first HAProxy may come just when confgen has begun to restart it.
        until(deadline, "the end of a restart that is under way", || {
            let answer = self.asked("/api/v1/status").map_err(|error| error.to_string())?;
            // It may ask for a token that only the test knows.
            let status: Value = serde_json::from_str(&answer.body).unwrap_or_default();
            let acts = status["under_way"].as_array().map(Vec::as_slice).unwrap_or_default();
            if acts.iter().any(|act| act["kind"] == "restart") { Err(format!("{acts:?}")) } else { Ok(()) }
        });
        // A process that answered only after confgen had asked for another may have been taken for that one: the last one
        // that handover has started must serve. It may also have ended by itself, and then nobody takes over from it.
        let asked = Instant::now();
        until(deadline, "the process that handover waits for", || {
            let log = self.log("haproxy");
            let left = log.rfind("handover ends, HAProxy waits for a successor");
            let begun = log.rfind("starting HAProxy");
            (left <= begun || asked.elapsed() > LINGER) && begun <= log.rfind("HAProxy serves")
        });
        self.wait_in_sync(deadline);
        self.wait_one_haproxy(deadline);
    }

    /// Asks over HTTP until an answer has this status, and returns it.
    #[track_caller]
    pub fn wait_status(&self, deadline: Duration, host: &str, target: &str, status: u16) -> Response {
        until(deadline, &format!("{status} for {host}{target}"), || {
            let response = Request::get(host, target).send(self.http()).map_err(|error| error.to_string())?;
            if response.status == status {
                Ok(response)
            } else {
                Err(format!("{}: {}", response.status, response.body))
            }
        })
    }

    /// Waits until HAProxy's own checks find as many servers of a backend up.
    #[track_caller]
    pub fn wait_servers(&self, deadline: Duration, backend: &str, count: usize) {
        until(deadline, &format!("{count} servers of {backend}"), || {
            let up = self.servers_up(backend);
            if up.len() == count { Ok(()) } else { Err(format!("{up:?}")) }
        });
    }

    /// The names of a backend's servers that take requests, as `show stat` lists them.
    pub fn servers_up(&self, backend: &str) -> Vec<String> {
        let table = self.try_ask("show stat").unwrap_or_default();
        let rows = table.lines().map(|line| line.split(',').collect::<Vec<_>>());
        // Columns 0, 1, 17 and 32 are pxname, svname, status and type, 2 for a server (HAProxy's management guide, 9.1).
        let up = rows.filter(|row| row.len() > 32 && row[0] == backend && row[32] == "2");
        let up = up.filter(|row| row[17].starts_with("UP") || row[17] == "no check");
        up.map(|row| row[1].to_owned()).collect()
    }

    /// Waits until one HAProxy is left, a master and its worker: old ones end after their last request.
    #[track_caller]
    pub fn wait_one_haproxy(&self, deadline: Duration) {
        until(deadline, "one HAProxy, a master and a worker, to be left", || {
            let family = self.family().into_iter();
            let is_haproxy =
                |pid: &_| read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "haproxy\n");
            let left: Vec<_> = family.filter(is_haproxy).collect();
            if left.len() == 2 { Ok(()) } else { Err(format!("{left:?}")) }
        });
    }
}
