//! `balancers/<node>`: what a balancer says of itself is true, and said in time. Records are written by hand.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use lab::http::Request;
use lab::{App, Balancer, Etcd, Ground, PATIENCE, Setup, light, until};
use serde_json::{Value, json};

use crate::rejected_config::PROFILE;

const KEY: &str = "balancers/lab";

/// Shorter than what must not be waited for; long enough for a machine that does other things too.
const AT_ONCE: Duration = Duration::from_millis(3_500);

pub fn start(setup: Setup) -> Balancer {
    setup.flags(&["--node", "lab"]).start()
}

/// What the key says; null where there is none.
pub fn said(etcd: &Etcd) -> Value {
    etcd.get(KEY).map_or(Value::Null, |value| serde_json::from_str(&value).unwrap())
}

fn applied(value: &Value) -> i64 {
    value["applied"].as_i64().unwrap_or(-1)
}

fn names(value: &Value, service: &str) -> bool {
    value["pending"].as_array().is_some_and(|pending| pending.contains(&json!(service)))
}

/// The answer that a drain of this revision waits for, as the contract has it.
pub fn acknowledges(value: &Value, revision: i64, server: &str) -> bool {
    let service = server.split('/').next().unwrap();
    let is_held = value["held"].as_array().is_some_and(|held| held.contains(&json!(server)));
    applied(value) >= revision && !names(value, service) && !is_held && value["draining"].get(server).is_none()
}

#[track_caller]
pub fn wait_acknowledged(etcd: &Etcd, revision: i64, server: &str) {
    until(PATIENCE, &format!("{server} to be acknowledged at {revision}"), || {
        let value = said(etcd);
        if acknowledges(&value, revision, server) { Ok(()) } else { Err(value.to_string()) }
    });
}

#[track_caller]
pub fn wait_said(etcd: &Etcd, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    until(PATIENCE, what, || {
        let value = said(etcd);
        if holds(&value) { Ok(value) } else { Err(value.to_string()) }
    })
}

fn drain(etcd: &Etcd, folder: &str, app: &App) -> i64 {
    let record = json!({"address": app.address.to_string(), "state": "drain"});
    etcd.put(&format!("{folder}/upstreams/{}", app.name), record.to_string())
}

/// A request that takes so long; it answers when it ended, and what came.
pub fn slow(to: SocketAddr, host: &'static str, millis: u64) -> JoinHandle<(Instant, u16)> {
    let request = Request::get(host, &format!("/slow?ms={millis}"));
    spawn(move || {
        let status = request.send(to).map_or(0, |response| response.status);
        (Instant::now(), status)
    })
}

/// The server of the shop that has a request in hand.
fn busy(balancer: &Balancer) -> String {
    until(PATIENCE, "the request to reach an app", || balancer.busy_servers("http-shop").pop())
}

/// Two apps in one service, drained as they come.
struct Shop(Ground);

impl Shop {
    /// Ready, and HAProxy was restarted so long ago that nothing waits for that.
    fn open() -> Self {
        let build = Ground::build().http("shop", "shop.test", &["shop-1", "shop-2"]).tcp("raw", &["shop-1"]);
        let shop = Self(build.http("probe", "probe.test", &["shop-1"]).flags(&["--node", "lab"]).start());
        let Ground { etcd, apps, .. } = &shop.0;
        let revision = drain(etcd, "http-services/probe", &apps[0]);
        wait_acknowledged(etcd, revision, "http-probe/shop-1");
        shop
    }

    /// Drains the app that has a request of so long in hand; between that and its acknowledgement something happens.
    /// Returns the other app.
    fn drain_busy(&self, millis: u64, meanwhile: impl FnOnce()) -> &App {
        let Ground { etcd, balancer, apps, .. } = &self.0;
        etcd.http_service("shop", "shop.test", &[&apps[0], &apps[1]]);
        balancer.wait_servers(PATIENCE, "http-shop", 2);
        let request = slow(balancer.http(), "shop.test", millis);
        let busy = busy(balancer);
        let (app, other) = if busy == apps[0].name { (0, 1) } else { (1, 0) };
        let server = format!("http-shop/{busy}");
        let revision = drain(etcd, "http-services/shop", &apps[app]);
        wait_said(etcd, "the request to be counted", |value| value["draining"][&server] == json!(1));
        meanwhile();
        wait_acknowledged(etcd, revision, &server);
        let acknowledged = Instant::now();
        assert!(request.is_finished(), "acknowledged while the request was in flight");
        let (ended, status) = request.join().unwrap();
        assert_eq!(status, 200);
        assert!(acknowledged - ended < AT_ONCE, "{:?}", acknowledged - ended);
        &apps[other]
    }

    /// Drains an app without requests, and returns how long that took.
    fn drain_idle(&self, app: &App) -> Duration {
        let began = Instant::now();
        let revision = drain(&self.0.etcd, "http-services/shop", app);
        wait_acknowledged(&self.0.etcd, revision, &format!("http-shop/{}", app.name));
        began.elapsed()
    }
}

#[test]
fn a_drain_waits_for_what_is_in_hand_and_for_nothing_else() {
    let _turn = light();
    let shop = Shop::open();
    let other = shop.drain_busy(3_000, || ());

    // Kept connections on either side are no requests: this client's, and HAProxy's own to the app.
    let mut idle = TcpStream::connect(shop.0.balancer.http()).unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").unwrap();
    assert!(idle.read(&mut [0; 4096]).unwrap() > 0);
    let took = shop.drain_idle(other);
    println!("idle upstream: drain → acknowledged {took:?}");
    assert!(took < AT_ONCE, "{took:?}");
    drop(idle);

    // A TCP session lasts as long as its connection; so does what an operator or a deletion takes away.
    let raw = TcpStream::connect(shop.0.tcp["raw"]).unwrap();
    let revision = shop.0.etcd.put("tcp-services/raw/overrides/shop-1", r#"{"state":"maint"}"#);
    wait_said(&shop.0.etcd, "the session to be counted", |value| value["draining"]["tcp-raw/shop-1"] == json!(1));
    shop.0.etcd.delete("tcp-services/raw/upstreams/shop-1");
    let value = wait_said(&shop.0.etcd, "its deletion to be applied", |value| applied(value) > revision);
    assert_eq!(value["draining"]["tcp-raw/shop-1"], json!(1), "{value}");
    drop(raw);
    wait_acknowledged(&shop.0.etcd, revision + 1, "tcp-raw/shop-1");
    assert_eq!(said(&shop.0.etcd)["draining"], json!({}));

    // The request is the old process' then; it is longer than a restart and all that is waited for after one.
    let other = shop.drain_busy(7_000, || {
        shop.0.balancer.restart();
        assert!(shop.0.balancer.busy_servers("http-shop").is_empty(), "the new process has it in hand");
    });

    // Idle, and the old process has no connection over which a request could come.
    shop.0.balancer.restart();
    let took = shop.drain_idle(other);
    println!("idle upstream after a restart: drain → acknowledged {took:?}");
    assert!(took < AT_ONCE, "{took:?}");
}

#[test]
fn what_is_not_followed_is_named() {
    let _turn = light();
    let build = Ground::build().http("shop", "shop.test", &["shop-1"]).file("conf.d/mine.cfg", PROFILE);
    let ground = build.flags(&["--node", "lab", "--restart-interval", "4s"]).start();
    let (Ground { etcd, balancer, .. }, app) = (&ground, ground.app("shop-1"));
    let value = wait_said(etcd, "the key", |value| applied(value) > 0 && value.get("haproxy").is_some());
    assert!(value["haproxy"].as_str().is_some_and(|version| version.starts_with(char::is_numeric)), "{value}");
    assert_eq!(value["url"], format!("http://{}", balancer.admin()));
    assert!(value["cluster"].is_string(), "{value}");

    // What touches no service moves it too.
    let revision = etcd.put("control/nothing-of-ours", "x");
    let value = wait_said(etcd, "it to move", |value| applied(value) >= revision);
    assert_eq!(value["seen"], value["applied"], "nothing is left to do");

    // A restart alone brings the second one, and those that may follow each other at once have just been made.
    for name in ["spare", "other", "first"] {
        etcd.http_service(name, &format!("{name}.test"), &[app]);
        balancer.wait_status(PATIENCE, &format!("{name}.test"), "/", 200);
    }
    etcd.http_service("second", "second.test", &[app]);
    // The key's own revision: the store's counts what balancers say of themselves too.
    let revision = etcd.put("http-services/second/balance", "leastconn");
    wait_said(etcd, "the second to wait", |value| names(value, "http-second") && applied(value) >= revision);
    assert!(acknowledges(&said(etcd), revision, "http-shop/shop-1"), "nobody else waits");
    wait_said(etcd, "the second to be there", |value| !names(value, "http-second"));
    for _ in 0..50 {
        let answer = balancer.get("second.test", "/");
        assert_eq!(answer.status, 200, "not every process serves it");
    }

    // A service that HAProxy refuses is quarantined, and its upstreams go nevertheless.
    etcd.put("http-services/shop/profile", "mine");
    let refused = |value: &Value| value["quarantined"].get("http-services/shop/").is_some();
    let value = wait_said(etcd, "the culprit to be named", refused);
    assert!(!names(&value, "http-shop"), "{value}");
    let revision = drain(etcd, "http-services/shop", app);
    wait_acknowledged(etcd, revision, "http-shop/shop-1");
    until(PATIENCE, "it to be out", || balancer.servers_up("http-shop").is_empty());
    wait_said(etcd, "the culprit to be named again", refused);
    assert!(balancer.servers_up("http-shop").is_empty(), "it came back");
    assert!(acknowledges(&said(etcd), revision, "http-shop/shop-1"));
    let revision = etcd.put("http-services/shop/balance", "sideways");
    let key = "http-services/shop/balance";
    let value = wait_said(etcd, "the bad value", |value| value["quarantined"][key].is_string());
    assert!(applied(&value) >= revision, "{value}");

    etcd.put_all((0..2_100).map(|n| (format!("http-services/bad{n}/balance"), b"sideways".to_vec())));
    let value = wait_said(etcd, "the list to be cut", |value| value["more"] == json!(["quarantined"]));
    let listed = value["quarantined"].as_object().unwrap().len();
    let missing = value["cut"]["quarantined"].as_array().unwrap().len();
    assert!(listed <= 2_000 && listed + missing >= 2_100, "{listed} are listed, {missing} services are cut");
}

#[test]
fn it_is_written_on_change_and_comes_back_by_itself() {
    let _turn = light();
    let ground = Ground::build().http("shop", "shop.test", &["shop-1"]).flags(&["--node", "lab"]).start();
    let Ground { mut etcd, balancer, apps, .. } = ground;
    let app = &apps[0];
    wait_said(&etcd, "the key", |value| applied(value) > 0);

    // Two with one name: the second doesn't touch the key, and says so.
    let lease = etcd.lease_of(KEY).unwrap();
    let second = start(Setup::new().confgen(&etcd));
    second.wait_logged("another confgen writes it");
    assert_eq!(etcd.lease_of(KEY), Some(lease));
    drop(second);

    // At most once a second, and not at all when nothing changes.
    let began = Instant::now();
    let before = writes(&etcd);
    let mut revision = 0;
    for weight in 1..=100 {
        let record = json!({"address": app.address.to_string(), "weight": weight});
        revision = etcd.put("http-services/shop/upstreams/shop-1", record.to_string());
        sleep(Duration::from_millis(30));
    }
    wait_said(&etcd, "the last change", |value| applied(value) >= revision);
    let (count, seconds) = (writes(&etcd) - before, began.elapsed().as_secs_f64());
    println!("100 changes in {seconds:.1} s: {count} writes");
    assert!(count as f64 <= seconds + 2.0, "{count} writes in {seconds} s");
    let before = writes(&etcd);
    sleep(Duration::from_secs(3));
    assert_eq!(writes(&etcd), before, "a quiet balancer writes nothing");

    // A restarted confgen takes it over before its old lease ends.
    balancer.kill("confgen");
    let killed = Instant::now();
    until(PATIENCE, "the key under another lease", || etcd.lease_of(KEY).expect("always there") != lease);
    println!("confgen killed → key under its new lease {:?}", killed.elapsed());

    etcd.wipe();
    let wiped = Instant::now();
    etcd.http_service("shop", "shop.test", &[app]);
    let revision = etcd.revision();
    wait_said(&etcd, "the key in the new store", |value| applied(value) >= revision && applied(value) < 100);
    println!("store wiped → key {:?}", wiped.elapsed());
    // Somebody's hand.
    etcd.delete(KEY);
    wait_said(&etcd, "the key again", |value| applied(value) > 0);
}

/// How often the key was written since it came to be.
fn writes(etcd: &Etcd) -> i64 {
    let key = format!("{}{KEY}", lab::PREFIX);
    let found = etcd.ask(async move |mut client| client.get(key, None).await);
    found.kvs().first().map_or(0, etcd_client::KeyValue::version)
}
