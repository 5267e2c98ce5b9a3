//! Three hosts with systemd: a member of etcd and an app on each, a balancer on the first two. All by the units.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread::scope;
use std::time::Duration;

use serde_json::Value;

use crate::recorder::Recorder;
use crate::{Machine, Network, Page, Scratch, until};

/// All that comes up after systemd, on two busy cores: etcd's election, a restart of HAProxy, three announcements.
const UP: Duration = Duration::from_secs(120);

/// What the app's unit runs in the place of its sample.
const APP: &str = "[Service]
ExecStart=
ExecStart=/built/webapp --listen 0.0.0.0:${PORT} --name %H
";

/// The three hosts. Dropping it removes them.
pub struct Hosts {
    /// Follows the store. `None` until its members run.
    _recorder: Option<Recorder>,
    machines: Vec<Machine>,
    _network: Network,
    folder: Scratch,
}

impl Hosts {
    /// The service that all of them serve.
    pub const DOMAIN: &str = "shop.localhost";

    /// Brings them up, and waits until both balancers send requests to all apps.
    pub fn up() -> Self {
        let network = Network::new();
        // One after another: the first makes the image.
        let machines = ["host1", "host2", "host3"].map(|name| Machine::start(&network, name)).into();
        let mut hosts = Self { _recorder: None, machines, _network: network, folder: Scratch::new() };
        hosts.each_at_once(Self::store);
        let endpoints = hosts.endpoints().split(',').map(str::to_owned).collect();
        hosts._recorder = Some(Recorder::start(endpoints, &hosts.folder));
        hosts.give_token();
        hosts.each_at_once(Self::furnish);
        hosts.wait_whole(UP);
        hosts
    }

    fn each_at_once(&self, act: fn(&Self, &Machine)) {
        scope(|scope| {
            for machine in &self.machines {
                scope.spawn(|| act(self, machine));
            }
        });
    }

    /// Types the one block of docs/deploy.md that has these words, as this host's operator does: with its own name and
    /// address, and with everybody's where the page has everybody's.
    #[track_caller]
    pub fn type_block(&self, machine: &Machine, words: &str) -> String {
        let page = Page::read("docs/deploy.md");
        let script = format!("{}{}", page.block("STORE=http://"), page.block(words));
        let mut script = script.replace("ADDRESS=10.0.0.1", &format!("ADDRESS={}", machine.address()));
        for (number, it) in (1..).zip(&self.machines) {
            script = script.replace(&format!("node{number}="), &format!("{}=", it.name()));
            for end in [":", ","] {
                script = script.replace(&format!("//10.0.0.{number}{end}"), &format!("//{}{end}", it.address()));
            }
        }
        machine.sh(&script.replace("node1", machine.name()))
    }

    /// Installs, and starts the host's member of the store.
    fn store(&self, machine: &Machine) {
        machine.install();
        for words in
            ["ETCDCTL_ENDPOINTS=$STORE", "env/etcd-member.env", "ETCD_INITIAL_CLUSTER=", "systemctl disable --now etcd"]
        {
            self.type_block(machine, words);
        }
    }

    /// Makes the token of the balancers' API on the first host, and copies it to the others.
    fn give_token(&self) {
        const TOKEN: &str = "/etc/haproxy-discover/admin.token";
        let [first, others @ ..] = &self.machines[..] else { return };
        self.type_block(first, "openssl rand");
        let token = first.sh(&format!("cat {TOKEN}"));
        others.iter().for_each(|it| it.put(TOKEN, &format!("{token}\n")));
    }

    /// All else that runs on one host.
    fn furnish(&self, machine: &Machine) {
        self.type_block(machine, "chown root:haproxy-discover");
        if self.balancers().iter().any(|it| it.name() == machine.name()) {
            self.type_block(machine, "CONFGEN_ADMIN=$ADDRESS");
            self.type_block(machine, "systemctl disable --now haproxy ");
        }
        machine.put("/etc/systemd/system/app@.service.d/command.conf", APP);
        machine.put(
            "/etc/haproxy-discover/app-shop.env",
            "PORT=8000
ANNOUNCER_DOMAIN=shop.localhost
ANNOUNCER_SERVICE=shop
ANNOUNCER_PORT=8000
ANNOUNCER_CHECK=http://127.0.0.1:8000/health
ANNOUNCER_WAIT_BALANCERS=1
",
        );
        machine.sh("systemctl daemon-reload && systemctl enable --now app@shop announcer@shop");
    }

    /// All of them.
    pub fn all(&self) -> &[Machine] {
        &self.machines
    }

    /// Those with HAProxy and confgen.
    pub fn balancers(&self) -> &[Machine] {
        &self.machines[..2]
    }

    /// Where a balancer serves HTTP.
    pub fn web(&self, balancer: &Machine) -> SocketAddr {
        SocketAddr::new(balancer.address().parse().expect("an address"), 80)
    }

    /// All members of the store.
    pub fn endpoints(&self) -> String {
        self.each(|it| format!("http://{}:2379", it.address()))
    }

    fn each(&self, text: impl Fn(&Machine) -> String) -> String {
        self.machines.iter().map(text).collect::<Vec<_>>().join(",")
    }

    /// etcdctl on a host, asking these members; what it prints, if it succeeds.
    pub fn etcdctl(&self, on: &Machine, arguments: &str) -> Option<String> {
        let endpoints = self.endpoints();
        let command = format!("ETCDCTL_API=3 etcdctl --endpoints {endpoints} --command-timeout 2s {arguments}");
        let said = on.run(&command);
        said.status.success().then(|| text(&said.stdout))
    }

    /// The host with the store's leader.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn leader(&self) -> &Machine {
        until(UP, "a leader of the store", || {
            let members: Value =
                serde_json::from_str(&self.etcdctl(&self.machines[0], "endpoint status -w json")?).ok()?;
            let leader = members[0]["Status"]["leader"].as_u64()?;
            let has_it = |member: &&Value| member["Status"]["header"]["member_id"] == leader;
            let endpoint = members.as_array()?.iter().find(has_it)?["Endpoint"].as_str()?;
            self.machines.iter().find(|it| endpoint.contains(&format!("/{}:", it.address())))
        })
    }

    /// Waits until everything is as after the start: all units run, each balancer follows the store and finds every app up.
    #[track_caller]
    pub fn wait_whole(&self, deadline: Duration) {
        until(deadline, "both balancers to send requests to all apps", || self.whole());
    }

    /// Whether it is so, or what isn't yet.
    ///
    /// # Errors
    /// What isn't yet.
    pub fn whole(&self) -> Result<(), String> {
        self.machines.iter().try_for_each(|it| runs(it, &format!("etcd@{} app@shop announcer@shop", it.name())))?;
        self.balancers().iter().try_for_each(|it| {
            runs(it, "haproxy-supervisord confgen")?;
            follows(it, self.machines.len())
        })
    }
}

/// The shell's command that asks a balancer's own admin port, as its operator does.
pub fn ask_admin(path: &str) -> String {
    let token = "Authorization: Bearer $(cat /etc/haproxy-discover/admin.token)";
    format!("curl --silent --fail-with-body --max-time 2 --header \"{token}\" http://127.0.0.1:9101{path}")
}

/// Whether all these units run.
fn runs(machine: &Machine, units: &str) -> Result<(), String> {
    let said = machine.run(&format!("systemctl is-active {units}"));
    if said.status.success() { Ok(()) } else { Err(format!("{}: {units}: {}", machine.name(), text(&said.stdout))) }
}

/// Whether a balancer is in sync, and HAProxy finds so many of the app up.
fn follows(machine: &Machine, apps: usize) -> Result<(), String> {
    let ready = machine.run(&ask_admin("/ready"));
    if !ready.status.success() {
        return Err(format!("{}: not ready: {}", machine.name(), text(&ready.stdout)));
    }
    let up = servers_up(machine);
    if up.len() == apps { Ok(()) } else { Err(format!("{} has {up:?} up", machine.name())) }
}

/// The app's servers that take requests with their weights, as a balancer's HAProxy says.
pub fn servers_up(machine: &Machine) -> BTreeMap<String, u32> {
    let stat = machine.run(
        r#"python3 -c 'import socket
s = socket.socket(socket.AF_UNIX)
s.connect("/run/haproxy/admin.sock")
s.sendall(b"show stat\n")
while data := s.recv(65536): print(data.decode(), end="")'"#,
    );
    let stat = String::from_utf8_lossy(&stat.stdout).into_owned();
    let up = stat.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split(',').collect();
        let [name, status, weight, kind] = [1, 17, 18, 32].map(|cell| cells.get(cell).copied().unwrap_or_default());
        let is_server = cells[0] == "http-shop" && kind == "2";
        (is_server && status.starts_with("UP")).then(|| Some((name.to_owned(), weight.parse().ok()?)))?
    });
    up.collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().replace('\n', " ")
}
