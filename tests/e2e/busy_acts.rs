//! An act of confgen's waits for another program: changes over the Runtime API go on, and `/ready`, the API and the metrics say which
//! act it is and how long it has taken.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::fs::{Permissions, read_to_string, remove_file, set_permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lab::{App, Balancer, Certificate, Etcd, Pid, Setup, Signal, light, until, write};
use nix::sys::signal::kill;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(90);

/// A change over the Runtime API takes some milliseconds. The tests run beside others on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(1);

/// HAProxy, whose checks and starts take long while a file of that name exists. handover's own check has `-c` at its end.
const HAPROXY: &str = "#!/bin/sh
here=$(dirname \"$0\")
case \"$1\" in -c) [ -e \"$here/slow-check\" ] && sleep 20 ;; esac
case \" $* \" in *' -W '*) [ -e \"$here/slow-start\" ] && sleep 40 ;; esac
exec haproxy \"$@\"
";

struct Scene {
    etcd: Etcd,
    balancer: Balancer,
    apps: [App; 3],
    /// How many of the apps are announced.
    announced: usize,
}

impl Scene {
    /// `shop.test` is served by one app of three.
    fn start() -> Self {
        let etcd = Etcd::start();
        let apps = ["shop-1", "shop-2", "shop-3"].map(App::alone);
        etcd.http_service("shop", "shop.test", &[&apps[0]]);
        let setup = Setup::new();
        let program = setup.folder().join("slow-haproxy");
        write(&program, HAPROXY);
        set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        let balancer = setup.haproxy(&program).confgen(&etcd).start();
        balancer.wait_status(DEADLINE, "shop.test", "/", 200);
        balancer.wait_settled(DEADLINE);
        let scene = Self { etcd, balancer, apps, announced: 1 };
        scene.wait_for_last_restart();
        scene
    }

    /// At its start confgen may want to restart a HAProxy that it finds not there yet, and begins that only after a while.
    fn wait_for_last_restart(&self) {
        let (mut last, mut since) = (self.balancer.restarts(), Instant::now());
        until(DEADLINE, "three seconds without a restart", || {
            let restarts = self.balancer.restarts();
            if restarts != last || self.act_age("restart").is_some() {
                (last, since) = (restarts, Instant::now());
            }
            since.elapsed() > Duration::from_secs(3)
        });
        self.balancer.wait_settled(DEADLINE);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.balancer.folder().join(name)
    }

    /// supervisord itself, which can't be asked for its pid while it is frozen.
    fn signal_supervisord(&self, signal: Signal) {
        let pid = read_to_string(self.file("supervisord.pid")).unwrap();
        kill(Pid::from_raw(pid.trim().parse().unwrap()), signal).unwrap();
    }

    /// Announces a service that HAProxy serves only after a restart.
    fn need_restart(&self) {
        self.etcd.http_service("late", "late.test", &[&self.apps[0]]);
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.balancer.asked("/api/v1/status").unwrap().body).unwrap()
    }

    /// The age of the longest act of that kind, in seconds. `None` without one.
    fn act_age(&self, kind: &str) -> Option<f64> {
        let status = self.status();
        let acts = status["under_way"].as_array().unwrap();
        acts.iter().find(|act| act["kind"] == kind).and_then(|act| act["seconds"].as_f64())
    }

    /// The same as the metrics have it. 0 without one.
    fn metric(&self, kind: &str) -> f64 {
        let metrics = self.balancer.asked("/metrics").unwrap().body;
        let name = format!("confgen_under_way_seconds{{kind=\"{kind}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    }

    fn wait_for_act(&self, kind: &str, age: f64) {
        until(DEADLINE, &format!("{kind} to be under way for {age} s"), || {
            if self.act_age(kind) >= Some(age) { Ok(()) } else { Err(self.status().to_string()) }
        });
    }

    /// Announces one more app, and checks that HAProxy has it at once.
    #[track_caller]
    fn assert_changes_at_once(&mut self) {
        self.announced += 1;
        let apps: Vec<&App> = self.apps.iter().take(self.announced).collect();
        let began = Instant::now();
        self.etcd.http_service("shop", "shop.test", &apps);
        self.balancer.wait_servers(DEADLINE, "http-shop", self.announced);
        println!("announced → in HAProxy {:?}", began.elapsed());
        assert!(began.elapsed() < AT_ONCE, "a change over the Runtime API waited {:?}", began.elapsed());
    }

    /// Waits until `/ready` has that status and holds all of these words.
    #[track_caller]
    fn wait_ready(&self, status: u16, words: &[&str]) {
        let body = until(DEADLINE, &format!("/ready to be {status} with {words:?}"), || {
            let response = self.balancer.asked("/ready").map_err(|error| error.to_string())?;
            let (now, body) = (response.status, response.body);
            let is_so = now == status && words.iter().all(|words| body.contains(words));
            if is_so { Ok(body) } else { Err(format!("{now} {body}")) }
        });
        println!("/ready: {status} {}", body.trim());
    }

    /// The service that needed a restart is served, and nothing is left.
    #[track_caller]
    fn assert_well(&self) {
        self.balancer.wait_status(DEADLINE, "late.test", "/", 200);
        self.wait_ready(200, &["in sync"]);
        self.balancer.wait_servers(DEADLINE, "http-shop", self.announced);
        // supervisord may have started HAProxy before the restart that is under way has noticed.
        until(DEADLINE, "the end of the restart", || self.metric("restart") <= 0.0);
    }
}

#[test]
fn a_frozen_supervisord_holds_up_no_change() {
    let _turn = light();
    let mut scene = Scene::start();
    scene.signal_supervisord(Signal::SIGSTOP);
    scene.wait_ready(503, &["supervisord has not answered since", "serves on"]);
    scene.need_restart();
    scene.wait_for_act("restart", 0.0);
    scene.assert_changes_at_once();
    let age = scene.metric("restart");
    until(DEADLINE, "the metric to grow", || scene.metric("restart") > age);
    scene.wait_ready(503, &["out of sync", "supervisord doesn't answer"]);
    // The tries that follow hold up nothing either.
    scene.wait_for_act("restart", 0.0);
    scene.assert_changes_at_once();
    scene.signal_supervisord(Signal::SIGCONT);
    scene.assert_well();
    scene.balancer.wait_settled(DEADLINE);
}

#[test]
fn a_check_that_takes_long_holds_up_no_change() {
    let _turn = light();
    let mut scene = Scene::start();
    let slow = scene.file("slow-check");
    write(&slow, "");
    Certificate::of(&["shop.test"]).write(scene.file("certs/shop.pem"));
    scene.wait_for_act("look", 1.0);
    scene.assert_changes_at_once();
    scene.wait_ready(503, &["confgen hangs, under way for", "look (local files changed"]);
    until(DEADLINE, "the files to be read", || scene.act_age("look") < Some(1.0));
    scene.need_restart();
    scene.wait_for_act("restart", 1.0);
    remove_file(&slow).unwrap();
    scene.assert_changes_at_once();
    scene.wait_ready(503, &["confgen hangs, under way for", "restart (http-late is new)"]);
    scene.assert_well();
}

#[test]
fn a_start_that_hangs_holds_up_no_change() {
    let _turn = light();
    let mut scene = Scene::start();
    let slow = scene.file("slow-start");
    write(&slow, "");
    scene.need_restart();
    scene.wait_for_act("restart", 1.0);
    scene.assert_changes_at_once();
    scene.wait_ready(200, &["under way for", "restart (http-late is new)"]);
    scene.assert_changes_at_once();
    remove_file(&slow).unwrap();
    scene.wait_ready(503, &["doesn't run generation"]);
    scene.assert_well();
}
