//! `balance`, weights, `backup`, `maxconn`, `slowstart`, `profile`: who gets a request, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use lab::http::Request;
use lab::{PATIENCE, light, until};

use super::scene::SCENE;

/// How often each upstream answers.
fn counts(answers: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for name in answers {
        *counts.entry(name).or_default() += 1;
    }
    counts
}

/// Who answers the service's requests for these targets.
fn asked(service: &str, targets: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    counts(targets.map(|target| SCENE.get(service, &target).app().to_owned()))
}

/// Who answers over one address, to clients from these.
fn from(address: SocketAddr, host: &str, clients: &[String]) -> Vec<String> {
    let ask = |client: &String| Request::get(host, "/").from(client).send(address).unwrap().app().to_owned();
    clients.iter().map(ask).collect()
}

fn same(target: &str, times: usize) -> impl Iterator<Item = String> {
    std::iter::repeat_n(target.to_owned(), times)
}

fn both(one: usize, two: usize) -> BTreeMap<String, usize> {
    [("one".to_owned(), one), ("two".to_owned(), two)].into()
}

/// No other test asks these services: whose turn it is is counted exactly.
#[test]
fn in_turns_by_weight() {
    let _turn = light();
    assert_eq!(asked("turns", same("/", 20)), both(10, 10));
    assert_eq!(asked("weighted", same("/", 40)), both(30, 10));
    let tcp = |_| Request::get("x", "/").send(SCENE.tcp("turns")).unwrap().app().to_owned();
    assert_eq!(counts((0..20).map(tcp)), both(10, 10));
}

#[test]
fn the_fewest_connections() {
    let _turn = light();
    for (kind, address) in [("http", SCENE.balancer.http()), ("tcp", SCENE.tcp("fewest"))] {
        let slow = thread::spawn(move || Request::get("fewest.test", "/slow?ms=3000").send(address).unwrap());
        let backend = format!("{kind}-fewest");
        let is_busy = |server: &str| SCENE.stat(&backend, server)["scur"] != "0";
        let busy = until(PATIENCE, "a request under way", || ["one", "two"].into_iter().find(|server| is_busy(server)));
        let other = if busy == "one" { "two" } else { "one" };
        for _ in 0..6 {
            // A request counts for a moment longer than its client waits.
            until(PATIENCE, "the last request to be over", || !is_busy(other));
            let response = Request::get("fewest.test", "/").send(address).unwrap();
            assert_ne!(response.app(), busy, "{kind}: the one that is busy");
        }
        assert_eq!(slow.join().unwrap().app(), busy, "{kind}");
    }
}

#[test]
fn by_chance() {
    let _turn = light();
    // One and the same 64 times in a row: once in 2^63.
    assert_eq!(asked("chance", same("/", 64)).len(), 2);
    let tcp = |_| Request::get("x", "/").send(SCENE.tcp("chance")).unwrap().app().to_owned();
    assert_eq!(counts((0..64).map(tcp)).len(), 2);
}

#[test]
fn by_the_client_or_by_the_path() {
    let _turn = light();
    let clients: Vec<String> = (1..=40).map(|n| format!("127.0.1.{n}")).collect();
    for address in [SCENE.balancer.http(), SCENE.tcp("by-source")] {
        let first = from(address, "by-source.test", &clients);
        assert_eq!(from(address, "by-source.test", &clients), first, "a client stays");
        assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 2, "clients are spread: {first:?}");
    }
    let paths = || (0..40).map(|n| format!("/{n}"));
    let first: Vec<_> = paths().map(|path| SCENE.get("by-uri", &path).app().to_owned()).collect();
    let again: Vec<_> = paths().map(|path| SCENE.get("by-uri", &format!("{path}?x")).app().to_owned()).collect();
    assert_eq!(first, again, "a path stays, whatever its query");
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 2, "paths are spread: {first:?}");
}

#[test]
fn a_spare_upstream_is_used_when_no_other_is_up() {
    let _turn = light();
    for (kind, address) in [("http", SCENE.balancer.http()), ("tcp", SCENE.tcp("spare"))] {
        let app = || Request::get("spare.test", "/").send(address).map(|response| response.app().to_owned());
        for _ in 0..6 {
            assert_eq!(app().unwrap(), "one", "{kind}");
        }
        let key = format!("{kind}-services/spare/overrides/one");
        SCENE.etcd.put(&key, r#"{"state":"maint"}"#);
        until(PATIENCE, "the spare one", || app().is_ok_and(|name| name == "two"));
        SCENE.etcd.delete(&key);
        until(PATIENCE, "the first one again", || app().is_ok_and(|name| name == "one"));
    }
}

/// What is beyond `maxconn` waits for its turn, and is answered.
#[test]
fn a_full_upstream_has_a_queue() {
    let _turn = light();
    let two_at_once = |address: SocketAddr, host: &'static str| {
        let begun = Instant::now();
        let ask = move || Request::get(host, "/slow?ms=1500").send(address).unwrap().status;
        let threads = [(); 2].map(|()| thread::spawn(ask));
        assert_eq!(threads.map(|thread| thread.join().unwrap()), [200, 200], "{host}");
        begun.elapsed()
    };
    let turns = Duration::from_millis(3_000);
    assert!(two_at_once(SCENE.balancer.http(), "queued.test") >= turns);
    assert!(two_at_once(SCENE.tcp("queued"), "queued.test") >= turns);
    assert_eq!(SCENE.stat("http-queued", "one")["slim"], "1");
    assert_eq!(SCENE.stat("http-unqueued", "one")["slim"], "");
}

/// An upstream that has been down comes back with a weight that grows.
#[test]
fn a_recovering_upstream_starts_slowly() {
    let _turn = light();
    for backend in ["http-slow-start", "tcp-slow-start"] {
        SCENE.balancer.ask(&format!("set server {backend}/one health down"));
        let weight = until(PATIENCE, "the upstream to be up again", || {
            let row = SCENE.stat(backend, "one");
            if row["status"] == "UP" {
                row["weight"].parse::<u32>().map_err(|e| e.to_string())
            } else {
                Err(row["status"].clone())
            }
        });
        assert!((1..100).contains(&weight), "{backend}: {weight}");
    }
    assert_eq!(SCENE.stat("http-turns", "one")["weight"], "100");
}

#[test]
fn an_operators_defaults_count() {
    let _turn = light();
    assert_eq!(SCENE.get("hasty", "/slow?ms=3000").status, 504);
    assert_eq!(SCENE.get("turns", "/slow?ms=1000").status, 200);
    let slow = Request::get("x", "/slow?ms=3000").send(SCENE.tcp("hasty"));
    assert!(slow.is_err(), "{slow:?}");
    assert_eq!(SCENE.http("hasty").status, 200);
}
