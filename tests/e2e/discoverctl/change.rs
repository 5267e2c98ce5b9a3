//! What changes keys: each command waits until the balancer follows, and then it does.

use std::process::Command;
use std::time::{Duration, Instant};

use lab::http::Request;
use lab::{App, Balancer, Etcd, PATIENCE, Scratch, free_port, light, until};
use serde_json::json;

use super::scene::{ctl, json, launch};

/// One balancer, and the app `shop-1` registered by hand as `one`.
fn scene(etcd: &Etcd) -> (Balancer, App) {
    let (balancer, app) = (Balancer::start(etcd), App::alone("shop-1"));
    balancer.wait_settled(PATIENCE);
    let done = json(etcd, &["register", "shop", "one", &app.address.to_string()]);
    assert_eq!(done["followed_by"].as_array().unwrap().len(), 1, "{done}");
    json(etcd, &["set", "shop", "domain", "shop.test"]);
    (balancer, app)
}

fn answers(balancer: &Balancer) -> Option<String> {
    let response = Request::get("shop.test", "/").send(balancer.http()).ok()?;
    (response.status == 200).then(|| response.app().to_owned())
}

#[test]
fn a_change_is_followed_when_the_command_ends() {
    let _turn = light();
    let etcd = Etcd::start();
    let (balancer, _one) = scene(&etcd);
    assert_eq!(answers(&balancer).as_deref(), Some("shop-1"));
    let two = App::alone("shop-2");
    json(&etcd, &["register", "shop", "two", &two.address.to_string(), "--weight", "50"]);
    let record = etcd.get("http-services/shop/upstreams/two").unwrap();
    assert_eq!(record, format!(r#"{{"address":"{}","weight":50,"permanent":true}}"#, two.address));

    json(&etcd, &["maint", "shop/one"]);
    assert_eq!([(); 4].map(|()| answers(&balancer)), [(); 4].map(|()| Some("shop-2".to_owned())));
    json(&etcd, &["weight", "shop/one", "7"]);
    assert_eq!(etcd.get("http-services/shop/overrides/one").unwrap(), r#"{"state":"maint","weight":7}"#);
    json(&etcd, &["weight", "shop/one", "default"]);
    let done = json(&etcd, &["ready", "shop/one"]);
    let change = json!({"before": r#"{"state":"maint"}"#, "after": null});
    assert_eq!(done["changed"], json!({"http-services/shop/overrides/one": change}));
    json(&etcd, &["maint", "http-shop/two"]);
    assert_eq!(answers(&balancer).as_deref(), Some("shop-1"));

    json(&etcd, &["deregister", "shop", "two"]);
    assert_eq!(etcd.entries("http-services/shop/").len(), 2, "its domain and the other upstream");
    let words = ctl(&etcd, &["delete", "shop", "--yes"]);
    words.assert(0);
    assert!(words.stdout.contains("http-services/shop/domain: deleted, was shop.test"), "{words:?}");
    assert!(words.stdout.contains("followed by "), "{words:?}");
    let response = Request::get("shop.test", "/").send(balancer.http()).unwrap();
    assert_eq!(response.status, 404);
}

#[test]
fn a_drain_ends_with_the_last_request() {
    let _turn = light();
    let etcd = Etcd::start();
    let (balancer, _one) = scene(&etcd);
    let http = balancer.http();
    let slow = std::thread::spawn(move || Request::get("shop.test", "/slow?ms=4000").send(http));
    until(PATIENCE, "the request to be under way", || {
        let stat = balancer.ask("show stat");
        // scur, the fifth field (HAProxy management guide, section 9.1).
        let sessions = stat.lines().find(|line| line.starts_with("http-shop,one,"))?.split(',').nth(4)?;
        (sessions == "1").then_some(())
    });
    let begun = Instant::now();
    let folder = Scratch::new();
    let early = ctl(&etcd, &["drain", "shop/one", "--timeout", "1s"]);
    early.assert_error(5, "http-shop/one has 1 open");
    let mut drain = launch(&folder, &etcd, &["drain", "shop/one"]);
    assert!(drain.wait(PATIENCE).success());
    assert!(begun.elapsed() >= Duration::from_secs(2), "it ended while the request was under way");
    let answer = slow.join().unwrap().unwrap();
    assert_eq!(answer.status, 200, "the request was answered");
    let log = drain.log();
    assert!(log.contains("waiting for ") && log.contains("http-shop/one has 1 open"), "{log}");
}

#[test]
fn an_error_is_never_followed_by_an_action() {
    let _turn = light();
    let etcd = Etcd::start();
    etcd.put("http-services/shop/domain", "shop.test");
    etcd.put("http-services/shop/upstreams/one", "10.0.0.1:80");
    let lease = etcd.grant(60);
    etcd.put_leased("http-services/shop/upstreams/leased", "10.0.0.2:80", lease);
    etcd.put("http-services/shop/overrides/odd", "garbage");
    let before = etcd.revision();
    for (status, words, command) in [
        (4, "did you mean shop?", "set shpo balance leastconn"),
        (4, "--create makes a new one", "set new domain new.test"),
        (4, "shop.test/ is named by http-shop already", "set --create new domain shop.test"),
        (2, "expected", "set shop balance fastest"),
        (2, "expected the name of a setting", "set shop colour blue"),
        (4, "no upstream onne in http-shop; did you mean one?", "drain shop/onne"),
        (2, "is no SVC/ID", "drain shop"),
        (4, "makes no sense, mend or delete it", "drain shop/one shop/odd"),
        (2, "a weight from 0 to 256", "weight shop/one 257"),
        (4, "has the address 10.0.0.1:80; --takeover", "register shop one 10.0.0.9:80"),
        (4, "of an announcer", "register shop leased 10.0.0.2:80"),
        (2, "an IP address and a port", "register shop two node:80"),
        (4, "of an announcer", "deregister shop leased"),
        (4, "announcers register 1 of the upstreams", "delete shop --yes"),
        (2, "--yes", "delete shop --force"),
        (4, "the engine at unix:///nowhere can't be reached", "register shop --container a:1 --docker unix:///nowhere"),
    ] {
        ctl(&etcd, &command.split(' ').collect::<Vec<_>>()).assert_error(status, words);
    }
    let dry = ctl(&etcd, &["set", "shop", "balance", "leastconn", "--dry-run"]);
    dry.assert(0);
    assert_eq!(dry.stdout, "http-services/shop/balance: leastconn\nnothing was written: --dry-run\n");
    assert_eq!(etcd.revision(), before, "nothing was written");

    let alone = ctl(&etcd, &["set", "shop", "balance", "leastconn"]);
    alone.assert(0);
    assert!(alone.stdout.contains("no balancer lives that could follow"), "{alone:?}");
}

#[test]
fn a_store_that_is_away_or_refuses_ends_it_at_once() {
    let _turn = light();
    let endpoint = format!("127.0.0.1:{}", free_port());
    let begun = Instant::now();
    let said = Command::new(lab::bin("discoverctl")).args(["list", "--endpoints", &endpoint]).output();
    let said = said.unwrap();
    assert_eq!(said.status.code(), Some(3), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stderr).contains(&endpoint), "{said:?}");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn what_the_roles_forbid_is_named() {
    let _turn = light();
    let etcd = Etcd::start();
    etcd.put("http-services/shop/domain", "shop.test");
    for line in [
        "user add root:secret",
        "user grant-role root root",
        "role add reader",
        "role grant-permission reader read --prefix=true /haproxy-discover/",
        "user add eve:word",
        "user grant-role eve reader",
        "auth enable",
    ] {
        let mut etcdctl = Command::new("etcdctl");
        etcdctl.env("ETCDCTL_API", "3").args(["--endpoints", &etcd.endpoints()]).args(line.split(' '));
        assert!(etcdctl.output().unwrap().status.success(), "{line}");
    }
    ctl(&etcd, &["list", "--user", "eve:word"]).assert(0);
    let key = "/haproxy-discover/http-services/shop/balance";
    let set = ["set", "shop", "balance", "leastconn", "--user", "eve:word"];
    ctl(&etcd, &set).assert_error(4, key);
    ctl(&etcd, &set).assert_error(4, "forbid user eve");
    ctl(&etcd, &["list", "--user", "eve:wrong"]).assert_error(3, "--password-file");
}

#[test]
fn pages_and_completions_of_every_command() {
    for name in ["announcer", "confgen", "handover", "discoverctl"] {
        let run = |arguments: &[&str]| {
            let output = Command::new(lab::bin(name)).args(arguments).output().unwrap();
            assert!(output.status.success() && !output.stdout.is_empty(), "{name} {arguments:?}: {output:?}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        assert!(run(&["man"]).contains(&format!(".TH {name} 1")));
        for shell in ["bash", "zsh", "fish"] {
            assert!(run(&["completions", shell]).contains(name));
        }
    }
}
