//! The removal guard: a store that loses its keys takes nobody down; whoever is asked to go, goes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::load::{Kind, Plan};
use lab::{App, Balancer, Etcd, Ground, PATIENCE, Process, Scratch, Signal, bin, light, long, until};

/// The smallest that etcd grants is 2 s.
const TTL: Duration = Duration::from_secs(2);

/// Apps, each with an announcer beside it, and a balancer that serves them.
struct Crowd {
    ground: Ground,
    apps: Vec<App>,
    announcers: Vec<Process>,
    _folder: Scratch,
}

fn crowd(count: usize) -> Crowd {
    let (build, folder) = (Ground::build(), Scratch::new());
    let apps: Vec<App> = (1..=count).map(|number| App::alone(&format!("shop-{number}"))).collect();
    let announcers = apps.iter().map(|app| announce(&build.etcd, &folder, "shop", app, TTL)).collect();
    let ground = build.start();
    ground.balancer.wait_servers(PATIENCE, "http-shop", count);
    Crowd { ground, apps, announcers, _folder: folder }
}

/// Starts an announcer beside an app. It ends without a drain.
pub(crate) fn announce(etcd: &Etcd, folder: &Scratch, service: &str, app: &App, ttl: Duration) -> Process {
    let mut command = Command::new(bin("announcer"));
    command.args(["--endpoints", &etcd.endpoints(), "--service", service, "--domain", &format!("{service}.test")]);
    command.args(["--ttl", &format!("{}s", ttl.as_secs()), "--drain", "0s", "--id", &app.name]);
    command.args(["--upstream", &app.address.to_string()]);
    Process::start(folder, &format!("announcer-{}", app.name), &mut command)
}

impl Crowd {
    fn keys(&self) -> usize {
        self.ground.etcd.keys("http-services/shop/upstreams/").len()
    }

    /// All but these have lost their keys, and all are served for long after. Their leases end moments apart: the first
    /// may go, and come back when the others show that it is a crowd.
    fn assert_kept(&self, keys: usize) {
        until(PATIENCE, "the keys to go", || self.keys() == keys);
        let kept =
            || self.ground.balancer.log("confgen").contains("retaining upstreams without keys until a check fails");
        until(TTL, "the crowd to be seen", kept);
        self.ground.balancer.wait_servers(TTL, "http-shop", self.apps.len());
        let until = Instant::now() + 2 * TTL;
        while Instant::now() < until {
            assert_eq!(self.ground.balancer.servers_up("http-shop").len(), self.apps.len());
            sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn announcers_that_die_together_take_no_app_with_them() {
    let _turn = light();
    let mut crowd = crowd(3);
    crowd.announcers.iter_mut().for_each(Process::kill);
    crowd.assert_kept(0);
    // One that really dies goes; one that is announced again is no longer kept, and may go politely.
    crowd.apps[0].kill();
    crowd.ground.balancer.wait_servers(PATIENCE, "http-shop", 2);
    until(PATIENCE, "the dead one to leave the file", || !crowd.ground.balancer.file().contains("server shop-1 "));
    let key = "http-services/shop/upstreams/shop-2";
    crowd.ground.etcd.put(key, crowd.apps[1].address.to_string());
    crowd.ground.etcd.delete(key);
    crowd.ground.balancer.wait_servers(PATIENCE, "http-shop", 1);
}

#[test]
fn a_retained_upstream_stays_over_an_operators_maintenance() {
    let _turn = light();
    let mut crowd = crowd(3);
    crowd.announcers.iter_mut().for_each(Process::kill);
    crowd.assert_kept(0);
    let imposed = "http-services/shop/overrides/shop-1";
    crowd.ground.etcd.put(imposed, r#"{"state":"maint"}"#);
    crowd.ground.balancer.wait_servers(TTL, "http-shop", 2);
    // HAProxy is asked once a second.
    let end = Instant::now() + 2 * TTL;
    while Instant::now() < end {
        assert!(crowd.ground.balancer.file().contains("server shop-1 "), "{}", crowd.ground.balancer.file());
        sleep(Duration::from_millis(50));
    }
    crowd.ground.etcd.delete(imposed);
    crowd.ground.balancer.wait_servers(TTL, "http-shop", 3);
}

#[test]
fn announcers_that_are_cut_off_take_no_app_with_them() {
    let _turn = light();
    let mut crowd = crowd(5);
    let load = Plan::new(Kind::PerRequest, crowd.ground.balancer.http(), "shop.test").rate(100).from("shop-").start();
    let cut_off = |crowd: &mut Crowd, signal| crowd.announcers[..3].iter_mut().for_each(|it| it.signal(signal));
    cut_off(&mut crowd, Signal::SIGSTOP);
    crowd.assert_kept(2);
    // What is kept is kept over a restart of confgen.
    assert!(crowd.ground.balancer.ctl(&["restart", "confgen"]).status.success());
    let listed = || crowd.ground.balancer.log("confgen").matches("store listed").count() == 2;
    until(PATIENCE, "confgen to follow again", listed);
    crowd.assert_kept(2);
    cut_off(&mut crowd, Signal::SIGCONT);
    until(PATIENCE, "all to register again", || crowd.keys() == 5);
    crowd.assert_kept(5);
    load.stop().assert_nothing_lost();
    // Back again, they may go politely.
    crowd.announcers.iter_mut().for_each(|announcer| announcer.signal(Signal::SIGTERM));
    crowd.ground.balancer.wait_servers(PATIENCE, "http-shop", 0);
}

#[test]
fn an_upstream_that_is_withdrawn_is_removed_at_once() {
    let _turn = light();
    // All of them politely.
    let mut crowd = crowd(3);
    for announcer in &mut crowd.announcers {
        announcer.signal(Signal::SIGTERM);
    }
    crowd.ground.balancer.wait_servers(PATIENCE, "http-shop", 0);
    drop(crowd);
    // All of them by a person, while their leases live. An announcer would write its record again.
    let etcd = Etcd::start();
    let apps: Vec<App> = (1..=3).map(|number| App::alone(&format!("shop-{number}"))).collect();
    etcd.put("http-services/shop/domain", "shop.test");
    let lease = etcd.grant(600);
    let key = |app: &App| format!("http-services/shop/upstreams/{}", app.name);
    apps.iter().for_each(|app| etcd.put_leased(&key(app), app.address.to_string(), lease));
    let balancer = Balancer::start(&etcd);
    balancer.wait_servers(PATIENCE, "http-shop", 3);
    apps.iter().for_each(|app| etcd.delete(&key(app)));
    balancer.wait_servers(PATIENCE, "http-shop", 0);
    assert!(!balancer.log("confgen").contains("retaining upstreams without keys"), "{}", balancer.log("confgen"));
}

#[test]
fn a_service_that_is_nothing_but_upstreams_is_kept_too() {
    let _turn = light();
    let etcd = Etcd::start();
    let apps = [App::alone("one"), App::alone("two")];
    let announce = |lease| {
        for app in &apps {
            let key = format!("http-services/default/upstreams/{}", app.name);
            etcd.put_leased(&key, app.address.to_string(), lease);
        }
    };
    let lease = etcd.grant(60);
    announce(lease);
    let balancer = Balancer::start(&etcd);
    balancer.wait_status(PATIENCE, "any.test", "/", 200);
    until(PATIENCE, "both to be found up", || balancer.servers_up("http-default").len() == 2);
    balancer.wait_in_sync(PATIENCE);
    etcd.revoke(lease);
    until(PATIENCE, "the crowd to be seen", || {
        balancer
            .log("confgen")
            .contains("retaining upstreams without keys until a check fails service=http-default count=2")
    });
    let end = Instant::now() + 2 * TTL;
    while Instant::now() < end {
        assert_eq!(balancer.wait_status(TTL, "any.test", "/", 200).status, 200);
        assert_eq!(balancer.servers_up("http-default").len(), 2);
        sleep(Duration::from_millis(50));
    }
    // They come back, and are deleted: nobody is kept whose lease lives, and nothing is left of the service.
    announce(etcd.grant(60));
    until(PATIENCE, "them to be back", || balancer.log("confgen").contains("retained upstreams released"));
    etcd.delete_all("http-services/default/");
    balancer.wait_status(PATIENCE, "any.test", "/", 404);
}

#[test]
fn a_service_that_is_deleted_serves_no_host_and_its_retained_upstreams_wait_for_it() {
    let _turn = light();
    let mut crowd = crowd(2);
    crowd.announcers.iter_mut().for_each(Process::kill);
    crowd.assert_kept(0);
    let (etcd, balancer) = (&crowd.ground.etcd, &crowd.ground.balancer);
    balancer.wait_status(PATIENCE, "shop.test", "/", 200);
    // Settings hang on no lease: only a client deletes them.
    etcd.delete_all("http-services/shop/");
    balancer.wait_status(PATIENCE, "shop.test", "/", 404);
    let said = "service deleted, its retained upstreams serve no host or port service=http-shop count=2";
    until(PATIENCE, "confgen to say so", || balancer.log("confgen").contains(said));
    let api = || balancer.asked("/api/v1/services/http-shop").unwrap().body;
    until(PATIENCE, "the API to say so", || api().contains("the service was deleted, and its retained upstreams"));
    etcd.put("http-services/shop/domain", "shop.test");
    balancer.wait_status(PATIENCE, "shop.test", "/", 200);
    assert_eq!(balancer.servers_up("http-shop").len(), 2);
}

/// The announcers of two services are cut off from etcd for good, as by an expired client certificate. Their leases end one
/// after the other, within 50 s; each is further from the next than `--guard-window`. A third service keeps the share of all
/// lost upstreams small.
#[test]
fn a_slow_and_long_loss_of_all_leases_takes_no_app_down() {
    let _turn = long();
    let (etcd, folder) = (Etcd::start(), Scratch::new());
    let mut apps: Vec<App> =
        ["shop-1", "shop-2", "shop-3", "shop-4", "mail-1", "mail-2", "bulk"].map(App::alone).into();
    for number in 0..8 {
        etcd.put(&format!("http-services/bulk/upstreams/b{number}"), apps[6].address.to_string());
    }
    let of = |app: &App| app.name.split('-').next().unwrap().to_owned();
    let ttls = [5, 20, 35, 50, 5, 20].map(Duration::from_secs);
    let mut announcers: Vec<Process> =
        apps.iter().zip(ttls).map(|(app, ttl)| announce(&etcd, &folder, &of(app), app, ttl)).collect();
    let balancer = Balancer::start(&etcd);
    balancer.wait_servers(PATIENCE, "http-shop", 4);
    balancer.wait_servers(PATIENCE, "http-mail", 2);
    balancer.wait_in_sync(PATIENCE);
    let load = |service: &str| {
        let plan = Plan::new(Kind::PerRequest, balancer.http(), &format!("{service}.test"));
        plan.rate(50).from(&format!("{service}-")).start()
    };
    let loads = [load("shop"), load("mail")];
    announcers.iter_mut().for_each(|announcer| announcer.signal(Signal::SIGSTOP));
    let keys = |service: &str| etcd.keys(&format!("http-services/{service}/upstreams/")).len();
    let says = |words: &str| balancer.log("confgen").contains(words);
    let minute = Duration::from_secs(60);

    // The first loss is one of four, and is followed. Its app ends too, and nobody knows.
    until(minute, "the first lease to end", || keys("shop") == 3);
    balancer.wait_servers(PATIENCE, "http-shop", 3);
    apps[0].kill();
    // mail loses its second 15 s after its first.
    until(minute, "mail to lose both", || keys("mail") == 0);
    until(PATIENCE, "mail's first to return", || says("pending a check service=http-mail count=1"));
    balancer.wait_servers(PATIENCE, "http-mail", 2);
    // What was lost is remembered over a restart of confgen.
    until(minute, "the second lease to end", || keys("shop") == 2);
    balancer.wait_servers(PATIENCE, "http-shop", 2);
    balancer.wait_in_sync(PATIENCE);
    assert!(balancer.ctl(&["restart", "confgen"]).status.success());
    until(minute, "shop to lose its third", || keys("shop") == 1);
    until(PATIENCE, "shop's first two to return", || says("pending a check service=http-shop count=2"));
    balancer.wait_servers(PATIENCE, "http-shop", 3);
    until(minute, "all to be lost", || keys("shop") == 0);
    // With a timer of 5 s, all would have gone by the end of this.
    let end = Instant::now() + 4 * Duration::from_secs(5);
    while Instant::now() < end {
        let up: BTreeSet<String> = balancer.servers_up("http-shop").into_iter().collect();
        assert_eq!(up, ["shop-2", "shop-3", "shop-4"].map(str::to_owned).into(), "shop-1 has ended");
        assert_eq!(balancer.servers_up("http-mail").len(), 2);
        sleep(Duration::from_millis(200));
    }
    for load in loads {
        let report = load.stop();
        println!("{report}");
        report.assert_nothing_lost();
    }
    // It is told, loudly, and a person can end it.
    let metrics = balancer.asked("/metrics").unwrap().body;
    assert!(metrics.contains("confgen_retained_upstreams{service=\"http-mail\",by=\"guard\"} 2"), "{metrics}");
    let oldest = metrics.lines().find_map(|line| line.strip_prefix("confgen_oldest_retained_seconds "));
    assert!(oldest.unwrap().parse::<u64>().unwrap() >= 30, "{oldest:?}");
    let mut accept = Command::new(bin("discoverctl"));
    let output = accept.args(["--endpoints", &etcd.endpoints(), "accept-store"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    balancer.wait_servers(TTL, "http-shop", 0);
    balancer.wait_servers(TTL, "http-mail", 0);
    balancer.wait_servers(TTL, "http-bulk", 8);
    announcers.iter_mut().for_each(|announcer| announcer.signal(Signal::SIGCONT));
    balancer.wait_servers(PATIENCE, "http-mail", 2);
}
