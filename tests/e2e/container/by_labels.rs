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
        let mut command = Command::new(bin("announcer"));
        command.args(["containers", "--endpoints", &self.etcd.endpoints(), "--label-prefix", &self.prefix]);
        command.args(["--host-name", "h1", "--host-address", &self.network.gateway().to_string()]);
        command.arg("--state-dir").arg(self.folder.join("state")).args(arguments);
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
