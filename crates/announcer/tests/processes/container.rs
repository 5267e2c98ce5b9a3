//! `announcer containers` with a real Docker Engine, or with Podman in its place: what each event of a container does to its record.

mod copies;
mod engine_link;
mod host_address;
mod own_engine;

use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use lab::{Container, Image, Network, Process, Signal, bin, container_name, docker, until};

use crate::site::{SOON, Site, leases};
use engine_link::EngineLink;
use own_engine::OwnEngine;

/// The socket of the tests' engine, which docker's own client asks too. tests/with-podman puts Podman's there.
static SOCKET: LazyLock<String> = LazyLock::new(|| {
    let host = std::env::var("DOCKER_HOST").ok();
    let path = host.and_then(|host| host.strip_prefix("unix://").map(str::to_owned));
    path.unwrap_or_else(|| "/var/run/docker.sock".to_owned())
});

/// An engine, a store, an agent's options, and an image with the web app of the lab.
struct Scene {
    site: Site,
    image: Image,
    network: Network,
    /// Begin of the labels. Each scene has its own, since all tests share an engine.
    prefix: String,
}

impl Scene {
    fn new() -> Self {
        let programs = [bin("webapp"), "/bin/sh".into(), "/bin/sleep".into()];
        let image = Image::of(programs.iter().map(|program| &**program));
        let prefix = container_name().replace('_', "-");
        Self { site: Site::new(), image, network: Network::new(), prefix }
    }

    fn command(&self, flags: &[&str]) -> Command {
        let state = self.site.folder.join("state").display().to_string();
        let own = ["--label-prefix", &self.prefix, "--host-name", "h1", "--state-dir", &state];
        self.command_with_own(&[&own[..], flags].concat())
    }

    /// A command of a host whose name, labels and state directory are among the flags.
    fn command_with_own(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_announcer"));
        command.args(["containers", "--endpoints", &self.site.etcd.endpoints()]);
        command.args(["--host-address", &self.network.gateway().to_string()]).args(flags);
        command.env("ANNOUNCER_ENGINE", format!("unix://{}", *SOCKET));
        command
    }

    fn agent_with(&self, flags: &[&str]) -> Process {
        let agent = Process::start(&self.site.folder, "agent", &mut self.command(flags));
        until_logged(&agent, "ready records=");
        agent
    }

    fn agent(&self) -> Process {
        self.agent_with(&["--engine", &format!("unix://{}", *SOCKET)])
    }

    /// Runs one of the agent's commands to its end.
    fn run(&self, arguments: &[&str]) -> (i32, String) {
        self.run_to_end(&mut self.command(arguments))
    }

    fn run_to_end(&self, command: &mut Command) -> (i32, String) {
        let mut process = Process::start(&self.site.folder, "command", command);
        let status = process.wait(SOON * 2);
        (status.code().expect("an exit code"), process.log())
    }

    /// A web app in a container with these labels below the prefix.
    fn app(&self, name: &str, labels: &[&str]) -> Container {
        self.app_with(name, labels, &[], &["/webapp", "--listen", "0.0.0.0:8000", "--name", name])
    }

    fn app_with(&self, name: &str, labels: &[&str], flags: &[&str], command: &[&str]) -> Container {
        let labels: Vec<String> = labels.iter().map(|label| format!("{}.{label}", self.prefix)).collect();
        let labels = labels.iter().flat_map(|label| ["--label", label]);
        let all: Vec<&str> = self.reachable().into_iter().chain(labels).chain(flags.iter().copied()).collect();
        self.image.run_named(name, &all, command)
    }

    /// Flags of a container whose port 8000 the host reaches at the gateway's address. With Podman the host has this address only while
    /// a container is in the network.
    fn reachable(&self) -> [&str; 4] {
        ["--publish", "8000", "--network", self.network.name()]
    }

    fn key(&self, name: &str) -> String {
        format!("http-services/shop/upstreams/h1-{name}")
    }

    /// The record of a container in a state.
    fn value(&self, container: &Container, state: &str) -> String {
        let address = format!("{}:{}", self.network.gateway(), container.published(8000));
        match state {
            "ready" => format!(r#"{{"address":"{address}","host":"h1"}}"#),
            state => format!(r#"{{"address":"{address}","state":"{state}","host":"h1"}}"#),
        }
    }

    #[track_caller]
    fn until_value(&self, name: &str, value: Option<&str>) {
        let key = self.key(name);
        until(SOON, &format!("{key} = {value:?}"), || match self.site.etcd.get(&key) {
            stands if stands.as_deref() == value => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    #[track_caller]
    fn until_state(&self, container: &Container, state: &str) {
        self.until_value(container.name(), Some(&self.value(container, state)));
    }
}

#[track_caller]
fn until_logged(process: &Process, words: &str) {
    until(SOON, words, || process.log().contains(words).then_some(()).ok_or_else(|| process.log()));
}

const SHOP: &[&str] = &["service=shop", "domain=shop.test", "check=/"];

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn a_stopped_container_drains_before_it_ends() {
    let scene = Scene::new();
    let _agent = scene.agent();
    let name = container_name();
    let app = scene.app(&name, SHOP);
    scene.until_state(&app, "ready");
    let (ready, drain) = (scene.value(&app, "ready"), scene.value(&app, "drain"));
    app.stop();
    scene.until_value(&name, None);
    assert_eq!(scene.site.history(&scene.key(&name)), [ready, drain, String::new()]);
    assert_eq!(scene.site.etcd.get("http-services/shop/domain").as_deref(), Some("shop.test"));

    docker(&["start", &name]);
    scene.until_state(&app, "ready");
    docker(&["restart", &name]);
    scene.until_state(&app, "ready");
    // Another container of the same name, with another port: the same record.
    drop(app);
    scene.until_value(&name, None);
    let app = scene.app(&name, SHOP);
    scene.until_state(&app, "ready");
    // One that is killed ends without a drain that would help. Its record goes all the same.
    docker(&["kill", &name]);
    scene.until_value(&name, None);
    assert_eq!(leases(&scene.site.etcd), 1);
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn a_paused_container_is_down_and_a_renamed_one_is_never_without_a_record() {
    let scene = Scene::new();
    let _agent = scene.agent();
    let (name, other) = (container_name(), container_name());
    let app = scene.app(&name, SHOP);
    scene.until_state(&app, "ready");
    docker(&["pause", &name]);
    scene.until_state(&app, "down");
    docker(&["unpause", &name]);
    scene.until_state(&app, "ready");

    let before = scene.site.etcd.revision();
    let ready = scene.value(&app, "ready");
    docker(&["rename", &name, &other]);
    scene.until_value(&other, Some(&ready));
    scene.until_value(&name, None);
    for revision in before..=scene.site.etcd.revision() {
        let stands = |name: &str| {
            let line = format!("get --print-value-only --rev {revision} /haproxy-discover/{}", scene.key(name));
            !scene.site.etcdctl(&line).trim().is_empty()
        };
        assert!(stands(&name) || stands(&other), "at revision {revision}");
    }
    docker(&["rename", &other, &name]);
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn an_app_that_ignores_the_signal_serves_again() {
    let scene = Scene::new();
    let _agent = scene.agent();
    let name = container_name();
    let script = format!("trap '' TERM; /webapp --listen 0.0.0.0:8000 --name {name} & while :; do /sleep 1; done");
    let app = scene.app_with(&name, SHOP, &["--stop-timeout", "0"], &["/sh", "-c", &script]);
    scene.until_state(&app, "ready");
    docker(&["kill", "--signal", "HUP", &name]);
    docker(&["kill", "--signal", "TERM", &name]);
    scene.until_state(&app, "drain");
    // 30 s after its stop time it counts as one that goes on.
    until(SOON * 3, "ready again", || {
        let stands = scene.site.etcd.get(&scene.key(&name));
        (stands == Some(scene.value(&app, "ready"))).then_some(()).ok_or(format!("{stands:?}"))
    });
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn a_container_out_of_memory_loses_its_record() {
    let scene = Scene::new();
    let agent = scene.agent();
    let name = container_name();
    let script = format!(
        "/webapp --listen 0.0.0.0:8000 --name {name} & until [ -e /go ]; do /sleep 0.1; done; \
         x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done"
    );
    let memory = ["--memory", "64m", "--memory-swap", "64m"];
    let app = scene.app_with(&name, SHOP, &memory, &["/sh", "-c", &script]);
    scene.until_state(&app, "ready");
    docker(&["exec", &name, "/sh", "-c", "> /go"]);
    scene.until_value(&name, None);
    assert_eq!(app.exit_code(), "137");
    println!("{}", agent.log());
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn healthcheck_decides_together_with_the_label() {
    let scene = Scene::new();
    let check = r#"HEALTHCHECK --interval=1s --retries=1 CMD ["/sh", "-c", "read x < /health; exit $x"]"#;
    let scene = Scene { image: scene.image.with(check), ..scene };
    let _agent = scene.agent();
    let name = container_name();
    let command = format!("echo 1 > /health; exec /webapp --listen 0.0.0.0:8000 --name {name}");
    let app = scene.app_with(&name, SHOP, &[], &["/sh", "-c", &command]);
    until(SOON, "unhealthy", || (app.health() == "unhealthy").then_some(()));
    assert_eq!(scene.site.etcd.get(&scene.key(&name)), None);
    let (status, list) = scene.run(&["--list"]);
    assert!(status == 0 && list.contains("HEALTHCHECK is unhealthy"), "{list}");
    let set = |number: &str| docker(&["exec", &name, "/sh", "-c", &format!("echo {number} > /health")]);
    set("0");
    scene.until_state(&app, "ready");
    set("1");
    scene.until_state(&app, "down");
    set("0");
    scene.until_state(&app, "ready");
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn a_wrong_label_stops_no_other_service() {
    let scene = Scene::new();
    let agent = scene.agent();
    let [good, bad, local] = [(); 3].map(|()| container_name());
    let long = format!("c.domain={}", "x".repeat(60_000));
    let wrong = ["a.domain=a.test\n# x", "b.domain=b.test", "b.prot=1", &long, "d.domain=d.test"];
    let _bad = scene.app(&bad, &wrong);
    let app = scene.app(&good, SHOP);
    scene.until_state(&app, "ready");
    let d = format!("http-services/d.test/upstreams/h1-{bad}");
    until(SOON, "the good service of a container with bad ones", || scene.site.etcd.get(&d).is_some().then_some(()));
    until_logged(&agent, "b.prot");
    assert!(agent.log().contains("60000 bytes, at most 4096 are read"), "{}", agent.log());
    let label = format!("{}.domain=local.test", scene.prefix);
    let flags = ["--publish", "127.0.0.1::8000", "--label", &label];
    let _local = scene.image.run_named(&local, &flags, &["/webapp", "--listen", "0.0.0.0:8000", "--name", &local]);
    until_logged(&agent, "which no balancer on another host reaches");

    let (status, list) = scene.run(&["--list"]);
    assert_eq!(status, 0, "{list}");
    assert!(list.lines().filter(|line| !line.contains(" INFO ")).all(|line| line.chars().count() <= 80), "{list}");
    for words in ["ready", "unknown label", "127.0.0.1", "refused: "] {
        assert!(list.contains(words), "{words}: {list}");
    }
    let (status, json) = scene.run(&["--list", "--output", "json"]);
    assert!(status == 0 && json.contains(r#""record": "ready""#) && json.contains(r#""faults""#), "{json}");
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn labels_of_traefik_and_registrator_are_read_if_asked_for() {
    let scene = Scene::new();
    let [router, named] = [(); 2].map(|()| container_name());
    let start = |name: &str, labels: &[String]| {
        let labels = labels.iter().flat_map(|label| ["--label", label.as_str()]);
        let flags: Vec<&str> = scene.reachable().into_iter().chain(labels).collect();
        scene.image.run_named(name, &flags, &["/webapp", "--listen", "0.0.0.0:8000", "--name", name])
    };
    let rule = format!("traefik.http.routers.{router}.rule=Host(`t.test`) && PathPrefix(`/x`)");
    let _router = start(&router, &[rule, "traefik.enable=true".to_owned()]);
    let _named = start(&named, &[format!("SERVICE_8000_NAME={named}"), "SERVICE_CHECK_HTTP=/".to_owned()]);
    let key = |name: &str| format!("http-services/{name}/upstreams/h1-{name}");
    let agent = scene.agent();
    assert!(scene.site.etcd.get(&key(&router)).is_none() && scene.site.etcd.get(&key(&named)).is_none());
    drop(agent);
    let _agent = scene.agent_with(&["--labels", "traefik,registrator"]);
    for name in [&router, &named] {
        until(SOON, name, || scene.site.etcd.get(&key(name)).is_some().then_some(()));
    }
    let setting = |name: &str| scene.site.etcd.get(&format!("http-services/{router}/{name}"));
    assert_eq!((setting("domain").as_deref(), setting("path").as_deref()), (Some("t.test"), Some("/x")));
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn the_agents_own_end_withdraws_nothing() {
    let scene = Scene::new();
    let names = [(); 3].map(|()| container_name());
    let apps: Vec<Container> = names.iter().map(|name| scene.app(name, SHOP)).collect();
    let mut agent = scene.agent();
    apps.iter().for_each(|app| scene.until_state(app, "ready"));
    let lease = scene.site.etcd.lease_of(&scene.key(&names[0]));
    let revision = scene.site.etcd.revision();
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM] {
        agent.signal(signal);
        agent.wait(SOON);
        agent = scene.agent();
        // Its first checks have passed, and it would write now what it didn't take over.
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(scene.site.etcd.revision(), revision, "{signal}: {}", agent.log());
        assert_eq!(scene.site.etcd.lease_of(&scene.key(&names[0])), lease);
    }
    assert_eq!(leases(&scene.site.etcd), 1);

    // One container goes, one is created again, and one stays while no agent runs.
    agent.signal(Signal::SIGTERM);
    agent.wait(SOON);
    let [first, second, third] = <[Container; 3]>::try_from(apps).ok().unwrap();
    drop((first, second));
    let second = scene.app(&names[1], SHOP);
    let mut agent = scene.agent();
    scene.until_value(&names[0], None);
    scene.until_state(&second, "ready");
    let kept = scene.site.history(&scene.key(&names[2]));
    assert_eq!(kept, [scene.value(&third, "ready")], "never absent");

    // The state directory is lost, and so is the lease's number. Same host, same id: the record moves to the new lease.
    agent.signal(Signal::SIGTERM);
    agent.wait(SOON);
    std::fs::remove_dir_all(scene.site.folder.join("state")).unwrap();
    let _agent = scene.agent();
    until(SOON, "another lease", || {
        let now = scene.site.etcd.lease_of(&scene.key(&names[2]));
        (now.is_some() && now != lease).then_some(()).ok_or(format!("{now:?}"))
    });
    assert_eq!(scene.site.history(&scene.key(&names[2])), kept, "never absent");
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn a_record_that_a_person_deletes_is_back() {
    let scene = Scene::new();
    let _agent = scene.agent();
    let name = container_name();
    let app = scene.app(&name, SHOP);
    scene.until_state(&app, "ready");
    scene.site.etcd.delete(&scene.key(&name));
    scene.until_state(&app, "ready");
    scene.site.etcd.put(&scene.key(&name), "10.0.0.9:80");
    scene.until_state(&app, "ready");
    // All records go with the lease, and come back under the next one.
    scene.site.etcd.revoke(scene.site.etcd.lease_of(&scene.key(&name)).unwrap());
    scene.until_value(&name, None);
    scene.until_state(&app, "ready");
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn stop_drains_and_waits_before_the_engine_stops_the_container() {
    let scene = Scene::new();
    let _agent = scene.agent();
    let name = container_name();
    let app = scene.app(&name, SHOP);
    scene.until_state(&app, "ready");
    // A balancer that never acknowledges: the whole limit is waited for.
    scene.site.balancer("lb", &scene.site.applied(1, ""));
    let mut stop = Process::start(
        &scene.site.folder,
        "stop",
        &mut scene.command(&["stop", "--drain", "5s", "--time", "3s", &name]),
    );
    scene.until_state(&app, "drain");
    assert_eq!(docker(&["inspect", "--format", "{{.State.Running}}", &name]), "true");
    let drained_at = scene.site.written_at(&scene.key(&name));
    assert_eq!(stop.wait(SOON).code(), Some(3), "{}", stop.log());
    assert!(stop.log().contains("not every balancer has acknowledged"), "{}", stop.log());
    scene.until_value(&name, None);

    // A stop that is taken back.
    docker(&["start", &name]);
    scene.until_state(&app, "ready");
    let mut stop = Process::start(&scene.site.folder, "stop-1", &mut scene.command(&["stop", "--drain", "60s", &name]));
    scene.until_state(&app, "drain");
    stop.signal(Signal::SIGINT);
    assert_eq!(stop.wait(SOON).code(), Some(1), "{}", stop.log());
    scene.until_state(&app, "ready");

    // A balancer that acknowledges. Until then the stop waits, so the record is there.
    let mut stop = Process::start(&scene.site.folder, "stop-2", &mut scene.command(&["stop", "--drain", "60s", &name]));
    scene.until_state(&app, "drain");
    assert!(scene.site.written_at(&scene.key(&name)) > drained_at);
    scene.site.balancer("lb", &scene.site.applied(scene.site.etcd.revision(), ""));
    assert_eq!(stop.wait(SOON).code(), Some(0), "{}", stop.log());
    scene.until_value(&name, None);
    let (status, said) = scene.run(&["stop", "nobody-knows-this"]);
    assert!(status == 4 && said.contains("no engine knows this container"), "{said}");
    let (status, said) = scene.run(&["--engine", "unix:///no/such.sock", "stop", &name]);
    assert!(status == 5 && said.contains("/no/such.sock can't be reached"), "{said}");
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn a_container_that_recovers_while_it_is_drained_gets_no_request() {
    let scene = Scene::new();
    let agent = scene.agent();
    let name = container_name();
    let app = scene.app(&name, SHOP);
    scene.until_state(&app, "ready");
    scene.site.balancer("lb", &scene.site.applied(1, ""));
    docker(&["pause", &name]);
    scene.until_state(&app, "down");
    let mut stop = Process::start(&scene.site.folder, "stop", &mut scene.command(&["stop", "--drain", "60s", &name]));
    scene.until_state(&app, "drain");
    let drained_at = scene.site.etcd.revision();
    docker(&["unpause", &name]);
    until_logged(&agent, "the container was told to stop, draining");
    let drain = scene.value(&app, "drain");
    // The agent writes it too, at a later revision, which the stop must take for its own.
    until(SOON, "the agent to write `drain`", || (scene.site.etcd.revision() > drained_at).then_some(()));
    assert_eq!(scene.site.history(&scene.key(&name)).last(), Some(&drain));
    scene.site.balancer("lb", &scene.site.applied(scene.site.etcd.revision() + 100, ""));
    assert_eq!(stop.wait(SOON).code(), Some(0), "{}", stop.log());
    scene.until_value(&name, None);
    let history = scene.site.history(&scene.key(&name));
    assert_eq!(history.iter().filter(|value| !value.is_empty() && !value.contains("state")).count(), 1, "{history:?}");
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn withdraw_ends_for_good() {
    let scene = Scene::new();
    let mut agent = scene.agent();
    let name = container_name();
    let app = scene.app(&name, SHOP);
    scene.until_state(&app, "ready");
    let (ready, drain) = (scene.value(&app, "ready"), scene.value(&app, "drain"));
    let (status, said) = scene.run(&["withdraw"]);
    assert!(status == 2 && said.contains("is in use by an agent that runs"), "{said}");
    agent.signal(Signal::SIGTERM);
    agent.wait(SOON);
    let (status, said) = scene.run(&["withdraw"]);
    assert_eq!(status, 0, "{said}");
    assert_eq!(scene.site.history(&scene.key(&name)), [ready, drain, String::new()]);
    assert_eq!(leases(&scene.site.etcd), 0);
    assert_eq!(docker(&["inspect", "--format", "{{.State.Running}}", &name]), "true");
    let (status, said) = scene.run(&["withdraw"]);
    assert!(status == 0 && said.contains("nothing to withdraw"), "{said}");
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn records_stay_while_the_engine_is_away_or_hangs() {
    let scene = Scene::new();
    let mut link = EngineLink::open(&scene.site.folder.join("engine.sock"), &SOCKET);
    let agent = scene.agent_with(&["--engine", &format!("unix://{}", link.path().display())]);
    let [first, second] = [(); 2].map(|()| container_name());
    let (one, two) = (scene.app(&first, SHOP), scene.app(&second, SHOP));
    scene.until_state(&one, "ready");
    scene.until_state(&two, "ready");
    let revision = scene.site.etcd.revision();
    link.cut();
    until_logged(&agent, "the engine can't be asked, its records stay");
    assert_eq!(scene.site.etcd.revision(), revision);
    // The app's own answer counts meanwhile.
    let down = scene.value(&two, "down");
    docker(&["kill", &second]);
    scene.until_value(&second, Some(&down));
    link.heal();
    until_logged(&agent, "the engine answers again");
    scene.until_value(&second, None);
    assert_eq!(scene.site.history(&scene.key(&first)), [scene.value(&one, "ready")]);

    // It accepts connections and answers nothing. The stream of events is silent too.
    link.freeze();
    docker(&["start", &second]);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(scene.site.etcd.get(&scene.key(&second)), None);
    assert_eq!(scene.site.etcd.get(&scene.key(&first)), Some(scene.value(&one, "ready")));
    link.heal();
    scene.until_state(&two, "ready");
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn a_proxy_that_only_reads_is_enough_for_all_but_stop() {
    let scene = Scene::new();
    let link = EngineLink::reading_at_port(&SOCKET);
    let engine = format!("tcp://{}", link.address());
    let _agent = scene.agent_with(&["--engine", &engine]);
    let name = container_name();
    let app = scene.app(&name, SHOP);
    scene.until_state(&app, "ready");
    let (status, said) = scene.run(&["--engine", &engine, "stop", "--drain", "0s", &name]);
    assert!(status == 4 && said.contains("answers 403"), "{said}");
    scene.until_state(&app, "ready");
    assert!(scene.site.history(&scene.key(&name)).contains(&scene.value(&app, "drain")), "it was drained before");
}

/// A container in the host's network, which comes back with its engine.
fn run_in(engine: &OwnEngine, scene: &Scene, name: &str, port: u16) {
    engine.load(scene.image.name());
    let labels = SHOP.iter().map(|label| format!("--label={}.{label}", scene.prefix));
    let labels: Vec<String> = labels.chain([format!("--label={}.port={port}", scene.prefix)]).collect();
    let flags = ["run", "--detach", "--restart", "always", "--network", "host", "--name", name];
    let listen = format!("0.0.0.0:{port}");
    let command = [scene.image.name(), "/webapp", "--listen", &listen, "--name", name];
    let all: Vec<&str> = flags.into_iter().chain(labels.iter().map(String::as_str)).chain(command).collect();
    engine.docker(&all);
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn a_restart_of_the_engine_with_live_restore_changes_nothing() {
    let scene = Scene::new();
    let mut engine = OwnEngine::start(true);
    let (name, port) = (container_name(), lab::free_port());
    run_in(&engine, &scene, &name, port);
    let agent = scene.agent_with(&["--engine", &engine.url()]);
    let ready = format!(r#"{{"address":"{}:{port}","host":"h1"}}"#, scene.network.gateway());
    scene.until_value(&name, Some(&ready));
    let revision = scene.site.etcd.revision();
    engine.stop();
    until_logged(&agent, "the engine can't be asked, its records stay");
    engine.restart();
    until_logged(&agent, "the engine answers again");
    assert_eq!(scene.site.etcd.revision(), revision, "{}", agent.log());
    // It follows events again.
    engine.docker(&["stop", &name]);
    scene.until_value(&name, None);
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn containers_that_end_and_come_back_with_their_engine_are_registered_again() {
    let scene = Scene::new();
    let mut engine = OwnEngine::start(false);
    let (name, port) = (container_name(), lab::free_port());
    run_in(&engine, &scene, &name, port);
    let _agent = scene.agent_with(&["--engine", &engine.url()]);
    let ready = format!(r#"{{"address":"{}:{port}","host":"h1"}}"#, scene.network.gateway());
    scene.until_value(&name, Some(&ready));
    engine.stop();
    // The engine's last events, or the agent's own check, have told that the app has gone.
    until(SOON, "the end of `ready`", || {
        let stands = scene.site.etcd.get(&scene.key(&name));
        (stands.as_deref() != Some(&ready)).then_some(()).ok_or(format!("{stands:?}"))
    });
    engine.restart();
    scene.until_value(&name, Some(&ready));
}
