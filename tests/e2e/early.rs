//! A drain after a restart, while the old process has connections that were opened before it: once the drain is
//! acknowledged, no process sends the upstream a request.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use lab::{Early, Ground, PATIENCE, Pause, light};
use serde_json::json;

use crate::acknowledgement::{slow, wait_acknowledged};

/// So many clients pause at once.
const CLIENTS: usize = 200;

/// So long after a client has connected it sends its request. `timeout http-request` is 10 s.
const PAUSE: Duration = Duration::from_secs(7);

/// `timeout http-keep-alive` in haproxy.cfg, and the time for a restart to be seen and a drain to be acknowledged on a
/// machine that does other things too.
const BOUND: Duration = Duration::from_millis(4_250 + 3_500);

/// Shorter than anything that a drain waits for after a restart.
const AT_ONCE: Duration = Duration::from_millis(3_500);

/// Two apps in one service. Both go on running, so that they answer whatever HAProxy sends them.
struct Shop(Ground);

/// A request of an early client: when it was sent, and which app answered.
type Asked = JoinHandle<(Instant, String)>;

impl Shop {
    fn open() -> Self {
        let build = Ground::build().http("shop", "shop.test", &["leaving", "staying"]).certificate(&["shop.test"]);
        Self(build.flags(&["--node", "lab"]).start())
    }

    /// Opens connections, each of which gets its first request a while later.
    fn open_early(&self) -> Vec<Asked> {
        let began = Instant::now();
        let opened = (0..CLIENTS).map(|number| {
            let pause = Pause::ALL[number % Pause::ALL.len()];
            let is_plain = matches!(pause, Pause::Connected | Pause::InRequest);
            let address = if is_plain { self.0.balancer.http() } else { self.0.balancer.https() };
            let client = Early::open(pause, address, "shop.test").unwrap();
            let at = Instant::now() + PAUSE;
            spawn(move || {
                sleep(at.saturating_duration_since(Instant::now()));
                let sent = Instant::now();
                (sent, client.finish().unwrap_or_else(|error| panic!("{pause:?}: a request is lost: {error}")))
            })
        });
        let opened = opened.collect();
        println!("{CLIENTS} connections opened in {:?}", began.elapsed());
        assert!(began.elapsed() < PAUSE / 2, "the machine is too slow for this test");
        opened
    }

    fn drain(&self) -> i64 {
        let record = json!({"address": self.0.app("leaving").address.to_string(), "state": "drain"});
        self.0.etcd.put("http-services/shop/upstreams/leaving", record.to_string())
    }

    /// Has the old process of a restart send a request to the app that stays, and know both upstreams.
    fn ask_staying<T>(&self, ask: impl FnOnce(&Self) -> T) -> T {
        let began = Instant::now();
        self.wait_acknowledged(self.drain());
        println!("drain without a restart → acknowledged {:?}", began.elapsed());
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
        let asked = ask(self);
        lab::until(PATIENCE, "the request to reach the app", || !self.0.balancer.busy_servers("http-shop").is_empty());
        self.0.etcd.http_service("shop", "shop.test", &self.0.apps.iter().collect::<Vec<_>>());
        self.0.balancer.wait_servers(PATIENCE, "http-shop", 2);
        self.0.balancer.restart();
        asked
    }

    /// Waits for the acknowledgement and returns when it was seen.
    fn wait_acknowledged(&self, revision: i64) -> Instant {
        wait_acknowledged(&self.0.etcd, revision, "http-shop/leaving");
        Instant::now()
    }
}

/// Checks that every request is answered, and none by the upstream if it was sent after the acknowledgement. Returns how
/// many requests the upstream has answered.
fn check(asked: Vec<Asked>, acknowledged: Instant) -> usize {
    let answers: Vec<_> = asked.into_iter().map(|asked| asked.join().unwrap()).collect();
    assert!(answers.iter().all(|(_, app)| app == "leaving" || app == "staying"), "{answers:?}");
    let leaving: Vec<_> = answers.iter().filter(|(_, app)| app == "leaving").collect();
    let late = leaving.iter().filter(|(sent, _)| *sent > acknowledged).count();
    println!("{} of {} requests reached the upstream, {late} after the acknowledgement", leaving.len(), answers.len());
    assert_eq!(late, 0, "requests reached the upstream after the acknowledgement");
    leaving.len()
}

#[test]
fn a_drain_after_a_restart_is_acknowledged_once_no_early_connection_can_reach_the_upstream() {
    let _turn = light();
    let shop = Shop::open();
    let asked = shop.open_early();
    shop.0.balancer.restart();
    sleep(Duration::from_millis(800));
    let began = Instant::now();
    let revision = shop.drain();
    let acknowledged = shop.wait_acknowledged(revision);
    println!("drain after a restart → acknowledged {:?}", acknowledged - began);
    let reached = check(asked, acknowledged);
    assert!(reached > CLIENTS / 4, "the old process, which takes no drain, answered the early connections");
}

#[test]
fn a_restart_in_the_middle_of_a_drain_ends_like_one_before_it() {
    let _turn = light();
    let shop = Shop::open();
    let asked = shop.open_early();
    let began = Instant::now();
    let revision = shop.drain();
    shop.0.balancer.restart();
    let acknowledged = shop.wait_acknowledged(revision);
    println!("drain with a restart in its middle → acknowledged {:?}", acknowledged - began);
    check(asked, acknowledged);
}

#[test]
fn a_long_answer_of_another_upstream_in_an_old_process_does_not_hold_a_drain_up() {
    let _turn = light();
    let shop = Shop::open();
    let mut download = shop.ask_staying(|shop| {
        let mut stream = TcpStream::connect(shop.0.balancer.http()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /drip?lines=300&ms=200 HTTP/1.1\r\nHost: shop.test\r\n\r\n").unwrap();
        assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
        stream
    });
    let began = Instant::now();
    shop.wait_acknowledged(shop.drain());
    let took = began.elapsed();
    println!("drain beside a download in an old process → acknowledged {took:?}");
    assert!(took < BOUND, "{took:?}");
    let mut buffer = [0; 4096];
    let goes_on = (0..3).all(|_| download.read(&mut buffer).is_ok_and(|length| length > 0));
    assert!(goes_on, "the download was cut, or ended before the drain");
}

#[test]
fn a_request_that_an_old_process_may_send_again_is_waited_for() {
    let _turn = light();
    let shop = Shop::open();
    // If the app ends the connection before it answers, HAProxy sends the request to another one. A client of the lab waits
    // 10 s.
    let request = shop.ask_staying(|shop| slow(shop.0.balancer.http(), "shop.test", 9_000));
    let acknowledged = shop.wait_acknowledged(shop.drain());
    assert!(request.is_finished(), "acknowledged before the answer");
    let (ended, status) = request.join().unwrap();
    println!("answer in an old process → acknowledged {:?}", acknowledged - ended);
    assert_eq!(status, 200);
    assert!(acknowledged - ended < AT_ONCE, "{:?}", acknowledged - ended);
}
