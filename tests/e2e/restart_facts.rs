//! What a restart of HAProxy must not forget: who is dead, who went, who is drained, and which client belongs to whom.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::{sleep, spawn};
use std::time::Duration;

use lab::http::{Request, Response};
use lab::load::{Kind, Plan};
use lab::{App, Balancer, Ground, Mirror, PATIENCE, heavy_on, light, until};

const SHOP: &str = "http-services/shop";
const APPS: [&str; 3] = ["shop-1", "shop-2", "shop-3"];
/// Requests a second: enough to hit a server of three within milliseconds of a restart.
const RATE: u32 = 500;

/// Answers every request, but fails its health checks when told to, and counts what it gets besides them.
struct Sick {
    address: SocketAddr,
    ill: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
}

impl Sick {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (ill, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let sick =
            Self { address: listener.local_addr().unwrap(), ill: Arc::clone(&ill), requests: Arc::clone(&requests) };
        spawn(move || {
            for stream in listener.incoming().flatten() {
                let (ill, requests) = (Arc::clone(&ill), Arc::clone(&requests));
                spawn(move || answer(stream, &ill, &requests));
            }
        });
        sick
    }
}

fn answer(mut stream: TcpStream, ill: &AtomicBool, requests: &AtomicUsize) {
    let mut bytes = [0; 4096];
    let length = stream.read(&mut bytes).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    let Some(target) = text.split(' ').nth(1) else { return };
    let check = target == "/health";
    if !check {
        requests.fetch_add(1, Relaxed);
    }
    let status = if check && ill.load(Relaxed) { "503 Ill" } else { "200 OK" };
    let body = format!("shop-sick\nurl: {target}\n");
    let _ = write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
}

fn ask(balancer: &Balancer, host: &str, cookie: Option<&str>) -> Response {
    let request = Request::get(host, "/");
    let request = cookie.into_iter().fold(request, |request, cookie| request.header("Cookie", cookie));
    request.send(balancer.http()).unwrap()
}

/// The apps that answer so many requests, more than there are servers.
fn answering(balancer: &Balancer, host: &str) -> BTreeSet<String> {
    (0..12)
        .map(|_| ask(balancer, host, None))
        .filter(|answer| answer.status == 200)
        .map(|a| a.app().to_owned())
        .collect()
}

fn names(of: &[&str]) -> BTreeSet<String> {
    of.iter().map(ToString::to_string).collect()
}

#[test]
fn the_dead_and_the_drained_get_nothing_and_weights_stay_over_restarts() {
    let sick = Sick::start();
    let (_turn, Ground { etcd, balancer, apps: _apps, .. }) = heavy_on(|| {
        let settings = [("check", "http /health"), ("upstreams/sick", &sick.address.to_string())];
        let build = Ground::build().http("shop", Ground::HOST, &APPS).set(SHOP, &settings);
        // The fourth server is one that the builder doesn't know.
        let ground = build.launch();
        ground.balancer.wait_servers(PATIENCE, "http-shop", 4);
        ground.balancer.wait_settled(PATIENCE);
        ground
    });
    let load = Plan::new(Kind::PerRequest, balancer.http(), Ground::HOST).rate(RATE).from("shop-").start();
    until(PATIENCE, "all four to answer", || load.report().upstreams.len() == 4);

    sick.ill.store(true, Relaxed);
    balancer.wait_servers(PATIENCE, "http-shop", 3);
    etcd.put(&format!("{SHOP}/overrides/shop-1"), r#"{"state":"drain"}"#);
    etcd.put(&format!("{SHOP}/overrides/shop-2"), r#"{"weight":25}"#);
    until(PATIENCE, "the override", || Mirror::agree(&balancer, &etcd).map(|_| ()));
    // What was on its way when that was said has arrived.
    sleep(Duration::from_millis(200));
    let (before, sick_before) = (load.report(), sick.requests.load(Relaxed));
    // One by hand, one by confgen, and the last twice in a row.
    balancer.restart();
    for service in ["blog", "wiki"] {
        etcd.put(&format!("http-services/{service}/domain"), format!("{service}.test"));
        balancer.wait_status(PATIENCE, &format!("{service}.test"), "/", 503);
    }
    sleep(Duration::from_secs(1));
    let report = load.stop();
    println!("{report}");
    report.assert_nothing_lost();
    let since = |name: &str| report.upstreams[name].answers - before.upstreams[name].answers;
    assert_eq!(sick.requests.load(Relaxed), sick_before, "one that is down got a request after a restart");
    assert_eq!(since("shop-1"), 0, "one that is drained got a request after a restart");
    let share = since("shop-2") as f64 / (since("shop-2") + since("shop-3")) as f64;
    assert!((0.17..0.23).contains(&share), "25 of 125 is a fifth: {share}");
}

#[test]
fn what_changed_while_haproxy_was_down_is_so_from_its_first_answer_on() {
    let _turn = light();
    let build = Ground::build().http("shop", Ground::HOST, &APPS).http("blog", "blog.test", &["shop-3"]);
    let Ground { etcd, balancer, apps, .. } = build.start();
    until(PATIENCE, "the first state", || Mirror::agree(&balancer, &etcd));
    assert!(balancer.ctl(&["stop", "haproxy"]).status.success());
    until(PATIENCE, "HAProxy to be gone", || balancer.try_ask("show info").is_err());

    // shop-1 goes; shop-2's address becomes blog's; shop-2 and blog's server bear their old names.
    etcd.delete(&format!("{SHOP}/upstreams/shop-1"));
    etcd.put(&format!("{SHOP}/upstreams/shop-2"), apps[2].address.to_string());
    etcd.delete(&format!("{SHOP}/upstreams/shop-3"));
    etcd.put("http-services/blog/upstreams/shop-3", apps[1].address.to_string());
    let wanted = Mirror::wanted(&etcd);
    until(PATIENCE, "the file to follow", || {
        let filed = Mirror::filed(&balancer)?;
        if filed.servers == wanted.servers { Ok(()) } else { Err(format!("{:?}", filed.servers)) }
    });
    assert!(balancer.try_ask("show info").is_err(), "an operator's stop is respected");
    assert!(balancer.ctl(&["start", "haproxy"]).status.success());
    until(PATIENCE, "HAProxy's first answer", || Request::get(Ground::HOST, "/").send(balancer.http()).is_ok());
    for _ in 0..20 {
        assert_eq!(answering(&balancer, Ground::HOST), names(&["shop-3"]));
        assert_eq!(answering(&balancer, "blog.test"), names(&["shop-2"]));
    }
    until(PATIENCE, "all to agree", || Mirror::agree(&balancer, &etcd));
}

/// A client's cookie leads to its server, whether that stood in the file or was added while HAProxy ran, and whatever it
/// has become since.
#[test]
fn sticky_clients_stay_over_restarts_and_re_adds() {
    let _turn = light();
    let build = Ground::build().http("shop", Ground::HOST, &APPS[..2]).set(SHOP, &[("sticky", "cookie")]);
    let Ground { etcd, balancer, apps, .. } = build.start();
    let late = App::alone("shop-3");
    let worker = balancer.worker();
    let cookie_of = |name: &str| {
        until(PATIENCE, &format!("a cookie of {name}"), || {
            let answer = ask(&balancer, Ground::HOST, None);
            let cookie = answer.header("set-cookie").and_then(|line| line.split(';').next()).map(str::to_owned);
            cookie.filter(|_| answer.app() == name)
        })
    };
    let stays = |name: &str, cookie: &str| {
        let answers: BTreeSet<String> =
            (0..10).map(|_| ask(&balancer, Ground::HOST, Some(cookie)).app().to_owned()).collect();
        assert_eq!(answers, names(&[name]), "{cookie}");
    };
    let first = cookie_of("shop-1");
    stays("shop-1", &first);

    // One of the file goes, and comes back while HAProxy runs; another comes for the first time.
    let key = format!("{SHOP}/upstreams/shop-1");
    etcd.delete(&key);
    balancer.wait_servers(PATIENCE, "http-shop", 1);
    assert_eq!(ask(&balancer, Ground::HOST, Some(&first)).app(), "shop-2", "it has to go elsewhere meanwhile");
    etcd.put(&key, apps[0].address.to_string());
    etcd.put(&format!("{SHOP}/upstreams/shop-3"), late.address.to_string());
    balancer.wait_servers(PATIENCE, "http-shop", 3);
    stays("shop-1", &first);
    let third = cookie_of("shop-3");
    stays("shop-3", &third);
    assert_eq!(balancer.worker(), worker, "they came without a restart");
    until(PATIENCE, "the file to follow", || Mirror::agree(&balancer, &etcd));

    balancer.restart();
    for (name, cookie) in [("shop-1", &first), ("shop-3", &third)] {
        stays(name, cookie);
    }
    // A drain leaves them where they are; new clients go elsewhere.
    etcd.put(&format!("{SHOP}/overrides/shop-3"), r#"{"state":"drain"}"#);
    until(PATIENCE, "the drain", || Mirror::agree(&balancer, &etcd));
    stays("shop-3", &third);
    assert_eq!(answering(&balancer, Ground::HOST), names(&["shop-1", "shop-2"]));
    balancer.restart();
    stays("shop-3", &third);
    assert_eq!(answering(&balancer, Ground::HOST), names(&["shop-1", "shop-2"]));
}
