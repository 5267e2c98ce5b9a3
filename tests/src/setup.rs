//! What a balancer is made of, before it runs.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use nix::unistd::geteuid;

use crate::balancer::Balancer;
use crate::recorder::Shared;
use crate::supervisor::{Program, Supervisor};
use crate::{Etcd, PATIENCE, Place, Syslog, bin, free_port, until};

/// supervisord's own settings give a program up after three quick deaths, which some tests are about.
const ALWAYS: &str = "autorestart=true\nstartsecs=0\n";

/// The port of the discard service, where nobody listens: a log that nobody reads.
const NOWHERE: &str = "127.0.0.1:9";

/// What a balancer will be made of; the folder and the ports are there already, so that files can be laid out.
pub struct Setup {
    place: Place,
    haproxy: String,
    handover: bool,
    handover_flags: Vec<String>,
    confgen: Option<Vec<String>>,
    log: String,
    /// The recorder of the store that confgen follows.
    recorder: Option<Arc<Shared>>,
}

impl Deref for Setup {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

impl Setup {
    /// HAProxy under handover, without confgen: `haproxy.cfg` is for the test to write.
    pub fn new() -> Self {
        Self::at(std::array::from_fn(|_| free_port()))
    }

    /// The same on these ports: HTTP, HTTPS, the stats page, confgen's admin port.
    pub fn at(ports: [u16; 4]) -> Self {
        Self {
            place: Place::with_ports(ports),
            haproxy: "haproxy".to_owned(),
            handover: true,
            handover_flags: Vec::new(),
            confgen: None,
            log: NOWHERE.to_owned(),
            recorder: None,
        }
    }

    /// Runs this program as HAProxy, and has it check the files, instead of the one on the PATH.
    #[must_use]
    pub fn haproxy(mut self, program: &Path) -> Self {
        self.haproxy = program.display().to_string();
        self
    }

    /// Runs `haproxy -db` itself instead of handover: what a restart does then is what the tests must be able to see.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.handover = false;
        self
    }

    /// More flags for handover.
    #[must_use]
    pub fn handover_flags(mut self, flags: &[&str]) -> Self {
        self.handover_flags.extend(flags.iter().map(ToString::to_string));
        self
    }

    /// Runs confgen too, following this store.
    #[must_use]
    pub fn confgen(mut self, etcd: &Etcd) -> Self {
        let endpoints = ["--endpoints".to_owned(), etcd.endpoints()];
        self.recorder = etcd.share_recorder();
        self.confgen = Some([self.confgen_command(), endpoints.to_vec()].concat());
        self
    }

    /// Runs confgen too, with these variables, which say where its store is.
    #[must_use]
    pub fn confgen_with(mut self, variables: &BTreeMap<String, String>) -> Self {
        let variables = variables.iter().map(|(name, value)| format!("{name}={value}"));
        self.confgen = Some(["env".to_owned()].into_iter().chain(variables).chain(self.confgen_command()).collect());
        self
    }

    /// More flags for confgen.
    #[must_use]
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.confgen.as_mut().expect("confgen first").extend(flags.iter().map(ToString::to_string));
        self
    }

    /// Runs confgen without its admin port. What waits for confgen's answers waits in vain then.
    #[must_use]
    pub fn without_admin(mut self) -> Self {
        let command = self.confgen.as_mut().expect("confgen first");
        let option = command.iter().position(|word| word == "--admin").expect("the option");
        command[option + 1] = "off".to_owned();
        self
    }

    /// Sends HAProxy's log there.
    #[must_use]
    pub fn log(mut self, syslog: &Syslog) -> Self {
        self.log = syslog.address().to_string();
        self
    }

    /// Starts supervisord with all of it, and waits until HAProxy answers on its Runtime API.
    pub fn start(self) -> Balancer {
        let balancer = self.launch();
        until(PATIENCE, "HAProxy's Runtime API", || balancer.try_ask("show info"));
        balancer
    }

    /// Starts supervisord, and doesn't wait for HAProxy.
    pub fn launch(self) -> Balancer {
        let mut programs = vec![self.haproxy_program()];
        let last = [("--log", self.log.clone()), ("--check-command", format!("{} -c", self.haproxy))];
        let last = last.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        let confgen = self.confgen.clone().map(|command| command.into_iter().chain(last).collect());
        programs.extend(confgen.map(|command| Program { name: "confgen", command, settings: ALWAYS }));
        let supervisor = Supervisor::start(self.folder(), &programs);
        if let Some(recorder) = &self.recorder {
            recorder.add_haproxy(format!("the balancer at {}", self.http()), self.socket());
        }
        Balancer { supervisor, place: self.place }
    }

    fn haproxy_program(&self) -> Program {
        let haproxy = [&self.haproxy, "-f", &self.path("conf.d"), "-f", &self.path("haproxy.cfg")].map(str::to_owned);
        let command = if self.handover {
            let handover = bin("handover").display().to_string();
            let socket = ["--socket", &self.path("admin.sock"), "--state-file", &self.path("servers.state")];
            let end = vec!["--".to_owned()];
            let flags = self.handover_flags.clone();
            [vec![handover], socket.map(str::to_owned).to_vec(), flags, end, haproxy.to_vec()].concat()
        } else {
            [&haproxy[..], &["-db".to_owned()]].concat()
        };
        Program { name: "haproxy", command, settings: "startsecs=1\n" }
    }

    fn confgen_command(&self) -> Vec<String> {
        let [http, https, stats, admin] =
            [self.http(), self.https(), self.stats(), self.admin()].map(|address| address.to_string());
        // Named by its URL, so that confgen may call supervisord itself, as it does where it is installed.
        let restart = format!("supervisorctl -s {} restart haproxy", Supervisor::url(self.folder()));
        let flags = [
            ("--haproxy-cfg", self.path("haproxy.cfg")),
            ("--include", self.path("conf.d")),
            ("--state-dir", self.path("state")),
            ("--http-bind", http),
            ("--https-bind", https),
            ("--stats-bind", stats),
            ("--certs", self.path("certs")),
            ("--ca-dir", self.path("ca")),
            ("--admin", admin),
            ("--runtime-socket", self.path("admin.sock")),
            ("--server-state-file", self.path("servers.state")),
            ("--restart-command", restart),
            // The lab's web apps listen on loopback, which confgen refuses by default, or in hosts and containers.
            ("--upstream-networks", "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12".to_owned()),
        ];
        let mut command = vec![bin("confgen").display().to_string()];
        command.extend(flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
        // HAProxy gives up root's rights; an ordinary user's it can't.
        if !geteuid().is_root() {
            command.extend(["--haproxy-user", "off", "--haproxy-group", "off"].map(str::to_owned));
        }
        command
    }

    fn path(&self, name: &str) -> String {
        self.folder().join(name).display().to_string()
    }
}
