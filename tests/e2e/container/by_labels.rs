//! Containers that `announcer containers` registers, stopped and created again under load.

use std::path::Path;
use std::process::Command;

use lab::load::{Kind, Plan};
use lab::{
    Balancer, Container, Etcd, Ground, Image, Network, PATIENCE, Process, Scratch, bin, container_name, docker, heavy,
    until,
};

/// Requests a second in all, besides the slow ones.
const RATE: u32 = 2_000;

const KINDS: [Kind; 3] = [Kind::PerRequest, Kind::KeepAlive, Kind::Http2];

/// How often a container is stopped and created again, at least and at most.
const ROUNDS: (usize, usize) = (20, 60);

/// Requests that are answered meanwhile, at least. A busy machine needs more rounds for them.
const REQUESTS: u64 = 100_000;

/// The agent, and what it needs.
struct Host {
    etcd: Etcd,
    balancer: Balancer,
    network: Network,
    image: Image,
    folder: Scratch,
    /// Begin of the labels, which no other test's agent reads.
    prefix: String,
}

impl Host {
    fn new() -> Self {
        let Ground { etcd, balancer, .. } = Ground::build().certificate(&[Ground::HOST]).launch();
        let image = Image::of([&*bin("webapp")] as [&Path; 1]);
        Self { etcd, balancer, network: Network::new(), image, folder: Scratch::new(), prefix: container_name() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.command_of("h1", &self.prefix, arguments)
    }

    /// A command of one of several hosts on this machine.
    fn command_of(&self, host: &str, prefix: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(bin("announcer"));
        command.args(["containers", "--endpoints", &self.etcd.endpoints(), "--label-prefix", prefix]);
        command.args(["--host-name", host, "--host-address", &self.network.gateway().to_string()]);
        command.arg("--state-dir").arg(self.folder.join(format!("state-{host}"))).args(arguments);
        command
    }

    /// An app that gets so many milliseconds for what it has when it is stopped.
    fn app(&self, name: &str, grace: &str) -> Container {
        let labels = ["service=shop".to_owned(), format!("domain={}", Ground::HOST), "check=/health".to_owned()];
        let labels = labels.map(|label| format!("--label={}.{label}", self.prefix));
        let flags: Vec<&str> = ["--publish", "8000"].into_iter().chain(labels.iter().map(String::as_str)).collect();
        let command = ["/webapp", "--listen", "0.0.0.0:8000", "--name", name, "--grace", grace];
        self.image.run_named(name, &flags, &command)
    }

    /// Until HAProxy finds all of them up at their present addresses.
    #[track_caller]
    fn wait_for(&self, apps: &[Container]) {
        self.balancer.wait_servers(PATIENCE, "http-shop", apps.len());
        until(PATIENCE, "the new addresses", || {
            let table = self.balancer.ask("show servers conn http-shop");
            let is_there = |app: &Container| table.contains(&format!(" {} ", app.published(8000)));
            apps.iter().all(is_there).then_some(()).ok_or(table)
        });
    }
}

/// Stops and creates containers again under load. `stop` stops one of this name.
fn roll(grace: &str, slow_ms: u32, stop: impl Fn(&Host, &str)) {
    let _turn = heavy();
    let host = Host::new();
    let _agent = Process::start(&host.folder, "agent", &mut host.command(&[]));
    let names = [(); 3].map(|()| container_name());
    let mut apps: Vec<Container> = names.iter().map(|name| host.app(name, grace)).collect();
    host.wait_for(&apps);
    host.balancer.wait_settled(PATIENCE);

    let plan = |kind| {
        let target = if kind == Kind::Http2 { host.balancer.https() } else { host.balancer.http() };
        Plan::new(kind, target, Ground::HOST).from("haproxy-discover-lab-")
    };
    let fast: Vec<_> = KINDS.iter().map(|kind| plan(*kind).rate(RATE / 3).start()).collect();
    let path = format!("/slow?ms={slow_ms}");
    let slow: Vec<_> = KINDS.iter().map(|kind| plan(*kind).path(&path).rate(5).workers(15).start()).collect();
    let answered = || fast.iter().map(|load| load.report().good).sum::<u64>();
    let mut rounds = 0;
    while rounds < ROUNDS.0 || (answered() < REQUESTS && rounds < ROUNDS.1) {
        let name = &names[rounds % names.len()];
        stop(&host, name);
        // As `docker rm` and `docker run` do it, with another port.
        drop(apps.remove(0));
        apps.push(host.app(name, grace));
        host.wait_for(&apps);
        rounds += 1;
    }
    let mut requests = 0;
    for load in fast.into_iter().chain(slow) {
        let report = load.stop();
        println!("{report}");
        report.assert_nothing_lost();
        requests += report.good;
    }
    println!("{requests} requests over {rounds} stops, none lost");
    assert!(requests > REQUESTS / 2, "too light a load: {requests} requests");
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn twenty_stops_of_apps_that_finish_what_they_have_lose_nothing() {
    roll("10000", 300, |_, name| {
        docker(&["stop", name]);
    });
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn twenty_drained_stops_of_apps_that_end_at_once_lose_nothing() {
    roll("0", 1000, |host, name| {
        let mut stop = Process::start(&host.folder, "stop", &mut host.command(&["stop", name]));
        assert_eq!(stop.wait(PATIENCE).code(), Some(0), "{}", stop.log());
    });
}

/// How often the only copy of a service moves to the other host.
const HANDOVERS: usize = 8;

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn handovers_of_the_only_copy_to_another_host_lose_nothing() {
    let _turn = heavy();
    let host = Host::new();
    let hosts = ["h1", "h2"].map(|name| (name, format!("{}-{name}", host.prefix), container_name()));
    let _agents = [0, 1].map(|at| {
        let (name, prefix, _) = &hosts[at];
        Process::start(&host.folder, name, &mut host.command_of(name, prefix, &[]))
    });
    let create = |at: usize| {
        let (_, prefix, name) = &hosts[at];
        let labels = ["service=shop", &format!("domain={}", Ground::HOST), "check=/health", "replicas=1"];
        let labels = labels.map(|label| format!("--label={prefix}.{label}"));
        let flags: Vec<&str> = ["--publish", "8000"].into_iter().chain(labels.iter().map(String::as_str)).collect();
        host.image.create_named(name, &flags, &["/webapp", "--listen", "0.0.0.0:8000", "--name", name, "--grace", "0"])
    };
    let holder = || {
        until(PATIENCE, "a copy that runs, and one that stands by", || {
            let slot = host.etcd.get("http-services/shop/slots/1").unwrap_or_default();
            let stands_by = host.etcd.entries("http-services/shop/standby/").len() == 1;
            let at = hosts.iter().position(|(name, ..)| slot.contains(&format!(r#""host":"{name}""#)));
            at.filter(|_| stands_by).ok_or(slot)
        })
    };
    let mut copies = [create(0), create(1)];
    host.balancer.wait_servers(PATIENCE, "http-shop", 1);
    host.balancer.wait_settled(PATIENCE);
    let loads = KINDS.map(|kind| {
        let target = if kind == Kind::Http2 { host.balancer.https() } else { host.balancer.http() };
        Plan::new(kind, target, Ground::HOST).from("haproxy-discover-lab-").rate(RATE / 4).start()
    });
    for _ in 0..HANDOVERS {
        let at = holder();
        let (name, prefix, container) = &hosts[at];
        let mut stop = Process::start(&host.folder, "stop", &mut host.command_of(name, prefix, &["stop", container]));
        assert_eq!(stop.wait(PATIENCE).code(), Some(0), "{}", stop.log());
        assert!(!copies[at].is_running(), "{container}");
        // The new container has the name of the old one, so the old one's guard must not remove it.
        docker(&["rm", "--volumes", container]);
        std::mem::forget(std::mem::replace(&mut copies[at], create(at)));
    }
    for load in loads {
        let report = load.stop();
        println!("{report}");
        report.assert_nothing_lost();
        assert!(report.good > 1_000, "too light a load: {report}");
    }
}
