//! Containers of a service with a limit, on two hosts: two agents, each with labels, names and a state directory of its own.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::{Container, Process, Signal, bin, container_name, docker, until};

use super::engine_link::EngineLink;
use super::{SOCKET, Scene, until_logged};
use crate::site::{SOON, leases};

/// Short, so that the tests are.
const TTL: Duration = Duration::from_secs(3);

/// A busy machine's share of a promise in seconds.
const SLACK: Duration = Duration::from_secs(2);

/// Longer than a container may be away and keep its slot.
const JUDGED: Duration = Duration::from_secs(4);

const HOSTS: [&str; 2] = ["h1", "h2"];

/// Two hosts on one engine.
struct Hosts {
    scene: Scene,
    agents: [Option<Process>; 2],
}

impl Hosts {
    fn new() -> Self {
        let mut hosts = Self { scene: Scene::new(), agents: [None, None] };
        (0..2).for_each(|at| hosts.start(at));
        hosts
    }

    fn prefix(&self, at: usize) -> String {
        format!("{}-{}", self.scene.prefix, HOSTS[at])
    }

    /// The options of a host's agent, and of its commands.
    fn flags(&self, at: usize) -> Vec<String> {
        let state = self.scene.site.folder.join(format!("state-{}", HOSTS[at])).display().to_string();
        let prefix = self.prefix(at);
        let flags = ["--host-name", HOSTS[at], "--label-prefix", &prefix, "--state-dir", &state, "--ttl", "3s"];
        flags.map(str::to_owned).to_vec()
    }

    /// Runs one of the agent's commands to its end.
    fn run(&self, at: usize, arguments: &[&str]) -> (i32, String) {
        let flags = self.flags(at);
        let all: Vec<&str> = flags.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        let (status, said) = self.scene.run_to_end(&mut self.scene.command_with_own(&all));
        // `--list` breaks its lines.
        (status, said.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    fn start(&mut self, at: usize) {
        let flags = self.flags(at);
        let all: Vec<&str> = flags.iter().map(String::as_str).chain(["--max-restarts", "1"]).collect();
        let agent = Process::start(&self.scene.site.folder, HOSTS[at], &mut self.scene.command_with_own(&all));
        until_logged(&agent, "ready records=");
        self.agents[at] = Some(agent);
    }

    fn agent(&mut self, at: usize) -> &mut Process {
        self.agents[at].as_mut().expect("an agent")
    }

    /// A container of the service, which is not started.
    fn create(&self, at: usize, name: &str) -> Container {
        self.create_with(at, name, &[], &["/webapp", "--listen", "0.0.0.0:8000", "--name", name])
    }

    fn create_with(&self, at: usize, name: &str, flags: &[&str], command: &[&str]) -> Container {
        let labels = ["service=shop", "domain=shop.test", "check=/", "replicas=1"];
        let labels = labels.map(|label| format!("--label={}.{label}", self.prefix(at)));
        let labels = labels.iter().map(String::as_str);
        let all: Vec<&str> = self.scene.reachable().into_iter().chain(labels).chain(flags.iter().copied()).collect();
        self.scene.image.create_named(name, &all, command)
    }

    /// What discoverctl says of the keys, in one line.
    fn discoverctl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(bin("discoverctl"));
        let output = command.args(arguments).args(["--endpoints", &self.scene.site.etcd.endpoints()]).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        said.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The ids that hold slots, by the slot's number.
    fn holders(&self) -> Vec<String> {
        let slots = self.scene.site.etcd.entries("http-services/shop/slots/");
        let text = |value: Vec<u8>| String::from_utf8(value).unwrap();
        slots.into_values().map(|value| json_text(&text(value), "id")).collect()
    }

    fn standbys(&self) -> Vec<String> {
        let standbys = self.scene.site.etcd.entries("http-services/shop/standby/");
        standbys.into_iter().map(|(key, value)| format!("{key} {}", String::from_utf8_lossy(&value))).collect()
    }

    /// The ids whose records say `ready`.
    fn ready(&self) -> Vec<String> {
        let records = self.scene.site.etcd.entries("http-services/shop/upstreams/");
        let is_ready = |value: &[u8]| !String::from_utf8_lossy(value).contains("state");
        let ids = records.into_iter().filter(|(_, value)| is_ready(value));
        ids.map(|(key, _)| key.rsplit('/').next().unwrap().to_owned()).collect()
    }

    /// Waits until this id, and no other, holds a slot and serves.
    #[track_caller]
    fn until_serves(&self, limit: Duration, id: &str) {
        until(limit, &format!("{id} serves"), || {
            let (holders, ready) = (self.holders(), self.ready());
            let is_served = holders == [id] && ready == [id];
            is_served.then_some(()).ok_or(format!("{holders:?} {ready:?} {:?}", self.standbys()))
        });
    }

    #[track_caller]
    fn until_stands_by(&self, id: &str) {
        until(SOON, &format!("{id} stands by"), || {
            let all = self.standbys();
            all.iter().any(|standby| standby.contains(&format!("/{id} "))).then_some(()).ok_or(format!("{all:?}"))
        });
    }
}

fn json_text(value: &str, field: &str) -> String {
    let (_, rest) = value.split_once(&format!(r#""{field}":""#)).expect(value);
    rest.split_once('"').expect(value).0.to_owned()
}

#[track_caller]
fn until_ended(container: &Container) {
    until(SOON, &format!("{} ends", container.name()), || (!container.is_running()).then_some(()));
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn one_of_two_runs_and_the_other_starts_when_its_host_dies() {
    let mut hosts = Hosts::new();
    let [first, second] = [(); 2].map(|()| container_name());
    let one = hosts.create(0, &first);
    let (id, other) = (format!("h1-{first}"), format!("h2-{second}"));
    hosts.until_serves(SOON, &id);
    let two = hosts.create(1, &second);
    hosts.until_stands_by(&other);
    let (status, list) = hosts.run(0, &["--list"]);
    assert!(status == 0 && list.contains("holds slot 1 of 1"), "{list}");
    let (status, list) = hosts.run(1, &["--list"]);
    assert!(status == 0 && list.contains("it stands by: no slot is free: 1 of 1 copies run, at h1"), "{list}");

    let shown = hosts.discoverctl(&["show", "shop"]);
    assert!(shown.contains("1 of 1, 1 standing by"), "{shown}");
    let explained = hosts.discoverctl(&["explain", &format!("shop/{other}")]);
    assert!(explained.contains("no slot is free: 1 of 1 copies run, at h1"), "{explained}");
    let linted = hosts.discoverctl(&["lint"]);
    assert!(!linted.contains("slots") && !linted.contains("standby"), "{linted}");

    // A restart of the agent, an upgrade and a crash of it stop nothing.
    let slot = "http-services/shop/slots/1";
    let started_at = || docker(&["inspect", "--format", "{{.State.StartedAt}}", &first]);
    let (held, started) = (hosts.scene.site.history(slot), started_at());
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        hosts.agent(0).signal(signal);
        hosts.agent(0).wait(SOON);
        hosts.start(0);
        // It would write now what it didn't take over.
        sleep(Duration::from_secs(1));
        assert_eq!(hosts.scene.site.history(slot), held, "{signal}: {}", hosts.agent(0).log());
    }
    assert_eq!(started_at(), started);
    assert!(!two.is_running(), "no start without a slot");

    // A container that is started by hand without a slot is stopped politely, and stands by again.
    docker(&["start", &second]);
    until_logged(hosts.agent(1), "no slot is free for it");
    until_ended(&two);
    hosts.until_stands_by(&other);
    assert_eq!(hosts.holders(), [id.as_str()]);

    // The host dies: its agent at once, and its container with it.
    let start = Instant::now();
    hosts.agent(0).signal(Signal::SIGKILL);
    docker(&["kill", &first]);
    hosts.until_serves(TTL + Duration::from_secs(2) + SLACK, &other);
    println!("the other host serves after {:?}", start.elapsed());
    // The host is back. Its container has ended and stands by.
    hosts.start(0);
    hosts.until_stands_by(&id);
    assert!(!one.is_running());
    assert_eq!(leases(&hosts.scene.site.etcd), 2, "one for each host");
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn what_an_operator_does_to_a_copy_counts() {
    let mut hosts = Hosts::new();
    let [first, second, third] = [(); 3].map(|()| container_name());
    let one = hosts.create(0, &first);
    let (id, other) = (format!("h1-{first}"), format!("h2-{second}"));
    hosts.until_serves(SOON, &id);
    // A restart in place keeps the slot, also if another host would take it.
    let two = hosts.create(1, &second);
    hosts.until_stands_by(&other);
    docker(&["restart", &first]);
    sleep(JUDGED);
    hosts.until_serves(SOON, &id);

    // A stop by hand gives the slot up, and the container is left alone.
    docker(&["stop", &first]);
    hosts.until_serves(SOON, &other);
    until_logged(hosts.agent(0), "the container was stopped by hand");
    docker(&["stop", &second]);
    let is_over = || hosts.holders().is_empty() && hosts.standbys().is_empty();
    until(SOON, "no slot and no stand-by", || is_over().then_some(()));
    sleep(JUDGED);
    assert!(!one.is_running() && !two.is_running());
    let (status, list) = hosts.run(0, &["--list"]);
    assert!(status == 0 && list.contains("it was stopped by hand"), "{list}");

    // A start by hand has it back.
    docker(&["start", &first]);
    hosts.until_serves(SOON, &id);
    docker(&["rm", "--force", "--volumes", &first]);
    until(SOON, "its slot's end", || hosts.holders().is_empty().then_some(()));

    // A crash loop moves to another host.
    let crashing = hosts.create_with(0, &third, &[], &["/sh", "-c", "/sleep 0.3; exit 3"]);
    until_logged(hosts.agent(0), "the app ends too often here");
    docker(&["start", &second]);
    hosts.until_serves(SOON, &other);
    assert_eq!(crashing.exit_code(), "3");
    assert_eq!(hosts.agent(0).log().matches("starting the container").count(), 3, "{}", hosts.agent(0).log());
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn a_polite_stop_starts_the_successor_first() {
    let hosts = Hosts::new();
    let [first, second] = [(); 2].map(|()| container_name());
    let one = hosts.create(0, &first);
    let (id, other) = (format!("h1-{first}"), format!("h2-{second}"));
    hosts.until_serves(SOON, &id);
    let _two = hosts.create(1, &second);
    hosts.until_stands_by(&other);
    let begin = hosts.scene.site.etcd.revision();
    let (status, said) = hosts.run(0, &["stop", &first]);
    assert_eq!(status, 0, "{said}");
    hosts.until_serves(SOON, &other);
    assert!(!one.is_running());
    // At each revision one record says ready, so that no request ever meets none.
    let says_ready = |id: &str, revision: i64| {
        let key = format!("/haproxy-discover/http-services/shop/upstreams/{id}");
        let value = hosts.scene.site.etcdctl(&format!("get --print-value-only --rev {revision} {key}"));
        !value.trim().is_empty() && !value.contains("state")
    };
    for revision in begin..=hosts.scene.site.etcd.revision() {
        assert!(says_ready(&id, revision) || says_ready(&other, revision), "at revision {revision}");
    }
    // It was stopped by hand, and so it doesn't stand by.
    sleep(JUDGED);
    assert!(hosts.standbys().is_empty(), "{:?}", hosts.standbys());
    // Without a stand-by no copy is waited for.
    let start = Instant::now();
    let (status, said) = hosts.run(1, &["stop", &second]);
    assert!(status == 0 && start.elapsed() < Duration::from_secs(12), "{:?} {said}", start.elapsed());
    until(SOON, "no slot", || hosts.holders().is_empty().then_some(()));
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn a_lost_lease_stops_at_most_the_youngest_copy() {
    let mut hosts = Hosts::new();
    let [first, second] = [(); 2].map(|()| container_name());
    let one = hosts.create(0, &first);
    let (id, other) = (format!("h1-{first}"), format!("h2-{second}"));
    hosts.until_serves(SOON, &id);
    let two = hosts.create(1, &second);
    hosts.until_stands_by(&other);
    let started_at = || docker(&["inspect", "--format", "{{.State.StartedAt}}", &first]);
    let started = started_at();
    let slot = "http-services/shop/slots/1";
    // As after an outage of etcd: the lease ends, and other hosts are connected first.
    hosts.agent(0).signal(Signal::SIGSTOP);
    hosts.scene.site.etcd.revoke(hosts.scene.site.etcd.lease_of(slot).unwrap());
    hosts.until_serves(SOON, &other);
    assert!(one.is_running() && two.is_running(), "nothing stops a container whose agent is away");
    hosts.agent(0).signal(Signal::SIGCONT);
    hosts.until_serves(SOON, &id);
    until_ended(&two);
    hosts.until_stands_by(&other);
    assert_eq!(started_at(), started);
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn a_container_that_can_not_wait_for_a_slot_is_refused() {
    let mut hosts = Hosts::new();
    let [first, second] = [(); 2].map(|()| container_name());
    let listen = ["/webapp", "--listen", "0.0.0.0:8000", "--name", &first];
    let _always = hosts.create_with(0, &first, &["--restart", "always"], &listen);
    until_logged(hosts.agent(0), "restart policy always");
    let (status, list) = hosts.run(0, &["--list"]);
    assert!(status == 0 && list.contains("refused: http-shop:") && list.contains("--restart no"), "{list}");

    // A proxy that lets only reads through.
    let link = EngineLink::reading_at_port(&SOCKET);
    let engine = format!("tcp://{}", link.address());
    drop(hosts.agents[1].take());
    let flags = hosts.flags(1);
    let all: Vec<&str> = flags.iter().map(String::as_str).chain(["--engine", &engine]).collect();
    let agent = Process::start(&hosts.scene.site.folder, "reader", &mut hosts.scene.command_with_own(&all));
    let created = hosts.create(1, &second);
    until_logged(&agent, "lets no container be started from here");
    let (_, list) = hosts.run(1, &["--engine", &engine, "--list"]);
    assert!(list.contains("lets no container be started"), "{list}");
    assert!(!created.is_running() && hosts.standbys().is_empty() && hosts.holders().is_empty());
}
