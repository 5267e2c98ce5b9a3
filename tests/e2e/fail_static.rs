//! A store that is away, wiped or restored takes nobody down, also while confgen and HAProxy themselves start anew; an
//! operator's word ends it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::load::{Kind, Plan, Running};
use lab::{App, Balancer, Etcd, Ground, PATIENCE, Process, Scratch, light, until};

use crate::guard::announce;

/// Nobody waits for a timer in these: what takes longer was not done at once.
const AT_ONCE: Duration = Duration::from_secs(3);
/// The smallest that etcd grants is 2 s.
const TTL: Duration = Duration::from_secs(2);
/// Light: what is counted is failures.
const RATE: u32 = 100;

/// `shop.test`, announced twice, and `wiki.test`, whose keys were written by hand.
struct Scene {
    balancer: Balancer,
    apps: Vec<App>,
    _announcers: Vec<Process>,
    etcd: Etcd,
    _folder: Scratch,
}

fn scene() -> Scene {
    let build = Ground::build().http("wiki", "wiki.test", &["wiki-1"]);
    let folder = Scratch::new();
    let shop = ["shop-1", "shop-2"].map(App::alone);
    let announcers = shop.iter().map(|app| announce(&build.etcd, &folder, "shop", app, TTL)).collect();
    let Ground { mut apps, balancer, etcd, .. } = build.start();
    apps.extend(shop);
    age(&etcd);
    let scene = Scene { balancer, apps, _announcers: announcers, etcd, _folder: folder };
    scene.assert_served();
    scene.balancer.wait_in_sync(PATIENCE);
    scene
}

/// A store that was written to for a while: a new one doesn't catch up with it before anybody looks.
fn age(etcd: &Etcd) {
    for number in 0..50 {
        etcd.put("notes", number.to_string());
    }
}

impl Scene {
    fn load(&self) -> Vec<Running> {
        let load = |kind, service: &str| {
            let plan = Plan::new(kind, self.balancer.http(), &format!("{service}.test"));
            plan.rate(RATE).from(&format!("{service}-")).start()
        };
        vec![load(Kind::PerRequest, "shop"), load(Kind::KeepAlive, "shop"), load(Kind::PerRequest, "wiki")]
    }

    fn assert_nothing_lost(&self, loads: Vec<Running>) {
        for load in loads {
            let report = load.stop();
            println!("{report}");
            report.assert_nothing_lost();
        }
        self.assert_served();
    }

    /// All of it is served.
    #[track_caller]
    fn assert_served(&self) {
        self.balancer.wait_servers(PATIENCE, "http-shop", 2);
        self.balancer.wait_status(PATIENCE, "shop.test", "/", 200);
        self.balancer.wait_status(PATIENCE, "wiki.test", "/", 200);
    }

    #[track_caller]
    fn wait_announced(&self) {
        until(PATIENCE, "both announcers to register", || self.etcd.keys("http-services/shop/upstreams/").len() == 2);
    }

    /// What is not in the store is served for as long as one looks, and never falls out.
    fn assert_held(&self) {
        let end = Instant::now() + 2 * TTL;
        while Instant::now() < end {
            let answer = self.balancer.get("wiki.test", "/");
            assert_eq!(answer.status, 200, "{}", answer.body);
            sleep(Duration::from_millis(50));
        }
        assert!(self.etcd.keys("http-services/wiki/").is_empty());
    }

    /// Starts confgen anew, and waits until it follows.
    fn restart_confgen(&self, says: &str) {
        let before = self.balancer.log("confgen").len();
        assert!(self.balancer.ctl(&["restart", "confgen"]).status.success());
        until(PATIENCE, says, || self.balancer.log("confgen")[before..].contains(says));
    }
}

#[test]
fn a_store_that_is_wiped_and_recreated_takes_no_service_down() {
    let _turn = light();
    let mut scene = scene();
    let id = scene.etcd.cluster_id();
    let loads = scene.load();
    // With the same flags it bears the same id.
    scene.etcd.wipe();
    assert_eq!(scene.etcd.cluster_id(), id);
    scene.balancer.wait_logged("the store was wiped (its revision went back");
    scene.wait_announced();
    scene.assert_held();
    // As another cluster, while everything written by hand is held already.
    scene.etcd.wipe_as("another");
    assert_ne!(scene.etcd.cluster_id(), id);
    scene.balancer.wait_logged(&format!("the store was wiped (its cluster id is {}", scene.etcd.cluster_id()));
    scene.wait_announced();
    scene.assert_held();
    scene.assert_nothing_lost(loads);

    // What is written again is followed again.
    let key = "http-services/wiki/upstreams/wiki-1";
    scene.etcd.put(key, scene.apps[0].address.to_string());
    scene.etcd.put("http-services/probe/domain", "probe.test");
    scene.balancer.wait_status(PATIENCE, "probe.test", "/", 503);
    scene.etcd.delete(key);
    scene.balancer.wait_status(AT_ONCE, "wiki.test", "/", 503);
    // The rest is still held: its domain answers for it. Its address is somebody else's from now on.
    scene.etcd.put("http-services/wiki/upstreams/other", scene.apps[0].address.to_string());
    scene.balancer.wait_status(AT_ONCE, "wiki.test", "/", 200);
}

#[test]
fn an_address_that_was_given_to_another_service_is_not_held() {
    let _turn = light();
    let mut scene = scene();
    scene.etcd.wipe();
    scene.balancer.wait_logged("the store was wiped");
    scene.etcd.put("http-services/blog/upstreams/blog-1", scene.apps[0].address.to_string());
    scene.balancer.wait_status(AT_ONCE, "wiki.test", "/", 503);
}

#[test]
fn an_operator_accepts_the_store() {
    let _turn = light();
    let mut scene = scene();
    // What a backup says is older than the wipe, whatever it says.
    let word = format!(r#"{{"cluster":"{}","revision":1}}"#, scene.etcd.cluster_id());
    scene.etcd.delete_all("http-services/wiki/");
    scene.balancer.wait_status(AT_ONCE, "wiki.test", "/", 404);
    scene.etcd.put("control/accept-store", word);
    let backup = scene.etcd.back_up();
    scene.etcd.http_service("wiki", "wiki.test", &[&scene.apps[0]]);
    scene.assert_served();
    scene.balancer.wait_in_sync(PATIENCE);
    age(&scene.etcd);
    let loads = scene.load();
    scene.etcd.restore(&backup);
    scene.balancer.wait_logged("control/accept-store: not taken: it was written before the store was found wiped");
    scene.wait_announced();
    scene.assert_held();
    scene.assert_nothing_lost(loads);
    // The command that the log spells out.
    let log = scene.balancer.log("confgen");
    let (_, command) = log.rsplit_once("etcdctl put ").unwrap();
    let (key, value) = command.lines().next().unwrap().split_once(' ').unwrap();
    assert_eq!(key, "/haproxy-discover/control/accept-store");
    scene.etcd.put(key, value.trim_matches('\''));
    until(AT_ONCE, "all that is held to go", || scene.balancer.servers_up("http-wiki").is_empty());
    scene.balancer.wait_status(AT_ONCE, "wiki.test", "/", 404);
    scene.balancer.wait_servers(AT_ONCE, "http-shop", 2);
    assert!(
        !scene.balancer.log("confgen").contains("retaining upstreams without keys"),
        "the guard retains none of it"
    );
}

#[test]
fn what_is_held_is_held_over_restarts() {
    let _turn = light();
    let mut scene = scene();
    let loads = scene.load();
    // The store is wiped while confgen is away.
    assert!(scene.balancer.ctl(&["stop", "confgen"]).status.success());
    scene.etcd.wipe();
    assert!(scene.balancer.ctl(&["start", "confgen"]).status.success());
    scene.balancer.wait_logged("the store was wiped");
    scene.wait_announced();
    scene.restart_confgen("store listed");
    scene.assert_held();
    // etcd is away, for longer than every lease, and confgen starts.
    scene.etcd.freeze(0);
    scene.restart_confgen("starting from the persisted store");
    sleep(2 * TTL);
    scene.assert_nothing_lost(loads);
    // HAProxy crashes too, and comes back without what the Runtime API had told it.
    assert!(scene.balancer.ctl(&["stop", "confgen"]).status.success());
    scene.balancer.ask("set server http-wiki/wiki-1 state maint");
    let family = scene.balancer.family();
    kill_haproxys(&family);
    scene.balancer.kill("haproxy");
    assert!(scene.balancer.ctl(&["start", "confgen"]).status.success());
    scene.assert_served();
    scene.etcd.thaw(0);
    scene.wait_announced();
    scene.assert_served();
    scene.assert_held();
}

/// The HAProxys themselves, which live in sessions of their own.
fn kill_haproxys(family: &[nix::unistd::Pid]) {
    let is_haproxy = |pid: &&nix::unistd::Pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|it| it == "haproxy\n")
    };
    for pid in family.iter().filter(is_haproxy) {
        let _ = nix::sys::signal::kill(*pid, lab::Signal::SIGKILL);
    }
}

#[test]
fn without_a_store_and_without_memory_nothing_is_touched() {
    let _turn = light();
    let mut build = Ground::build().http("shop", "shop.test", &["shop-1"]);
    build.etcd.freeze(0);
    let setup = &build.setup;
    let by_hand = format!(
        "defaults\n    mode http\n    timeout client 5s\n    timeout server 5s\n    timeout connect 1s\nglobal\n    \
         stats socket {} level admin expose-fd listeners\nfrontend hand\n    bind {}\n    http-request return status 418\n",
        setup.socket().display(),
        setup.http()
    );
    lab::write(setup.haproxy_cfg(), &by_hand);
    let Ground { mut etcd, balancer, apps: _apps, .. } = build.launch();
    balancer.wait_status(PATIENCE, "shop.test", "/", 418);
    balancer.wait_logged("keeping HAProxy unchanged");
    let pid = balancer.pid("haproxy");
    sleep(TTL);
    assert_eq!((balancer.file(), balancer.pid("haproxy")), (by_hand, pid));
    balancer.wait_status(AT_ONCE, "shop.test", "/", 418);
    etcd.thaw(0);
    balancer.wait_status(PATIENCE, "shop.test", "/", 200);
}
