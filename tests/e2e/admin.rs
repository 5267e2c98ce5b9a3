//! confgen's admin port: what it shows is what HAProxy and the store do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::Command;

use lab::http::Request;
use lab::{App, Balancer, Ground, PATIENCE, bin, free_port, light, until, write};
use serde_json::Value;

#[track_caller]
fn wait_metric(balancer: &Balancer, name: &str, value: f64) {
    until(PATIENCE, &format!("{name} {value}"), || {
        let found = balancer.metric(name);
        if found == Some(value) { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

/// Waits until an upstream is shown as this says.
#[track_caller]
fn wait_upstream(balancer: &Balancer, id: &str, is: impl Fn(&Value) -> bool) -> Value {
    until(PATIENCE, &format!("{id} to be shown so"), || {
        let all = balancer.api("upstreams?service=http-shop");
        let one = all["upstreams"].as_array().unwrap().iter().find(|it| it["id"] == id).cloned();
        one.filter(&is).ok_or_else(|| all.to_string())
    })
}

#[test]
fn what_is_done_is_shown() {
    let _turn = light();
    let Ground { etcd, balancer, apps, .. } = Ground::build().http("shop", "shop.test", &["shop-1"]).start();
    let (one, mut two) = (&apps[0], App::alone("shop-2"));
    assert!(balancer.wait_ready(200, "").starts_with("in sync at revision "));
    assert_eq!(balancer.asked("/live").unwrap().status, 200);

    const RUNTIME: &str = r#"confgen_applies_total{kind="runtime",result="ok"}"#;
    let before = balancer.metric(RUNTIME).unwrap();
    etcd.http_service("shop", "shop.test", &[one, &two]);
    wait_metric(&balancer, r#"confgen_upstreams{state="ready"}"#, 2.0);
    assert!(balancer.metric(RUNTIME).unwrap() > before);
    assert_eq!(balancer.metric("confgen_in_sync"), Some(1.0));

    // HAProxy's own word on each upstream, and its line in the file.
    let up = wait_upstream(&balancer, "shop-2", |it| it["balanced"] == true && it["haproxy"]["check"] == "L4OK");
    for average in ["connect", "response", "total"] {
        assert!(up["haproxy"][format!("{average}_seconds_average")].is_f64(), "{average}: {up}");
    }
    assert_eq!(up["line"], format!("server shop-2 {}", two.address));
    until(PATIENCE, "the line in the file", || balancer.file().contains(up["line"].as_str().unwrap()));
    two.kill();
    let down = wait_upstream(&balancer, "shop-2", |it| it["balanced"] == false);
    assert!(down["not_balanced"].as_str().unwrap().starts_with("HAProxy's check fails: L4CON"), "{down}");
    assert_eq!(down["state"], "ready", "it is still wanted");

    etcd.put("http-services/shop/overrides/shop-1", r#"{"state":"drain"}"#);
    // The API asks HAProxy at once, and the reconcile tells its state a moment later.
    let is_drained = |it: &Value| it["haproxy"]["status"] == "DRAIN" && it["state"] == "drain";
    assert_eq!(wait_upstream(&balancer, "shop-1", is_drained)["why"][0], "an override says drain");

    etcd.put("http-services/shop/balance", "<i>by mood</i>");
    wait_metric(&balancer, "confgen_quarantined_keys", 1.0);
    let shop = balancer.api("services/http-shop");
    assert!(shop["quarantine"]["http-services/shop/balance"].as_str().unwrap().contains("by mood"), "{shop}");
    assert_eq!(
        (&shop["service"]["upstreams"]["total"], &shop["service"]["routes"][0]["host"]),
        (&2.into(), &"shop.test".into())
    );

    // A new service takes a restart.
    etcd.http_service("blog", "blog.test", &[one]);
    balancer.wait_status(PATIENCE, "blog.test", "/", 200);
    let restarts = r#"confgen_apply_duration_seconds_count{kind="restart"}"#;
    until(PATIENCE, "a restart to be counted", || balancer.metric(restarts).is_some_and(|count| count >= 1.0));
    let history = balancer.api("history");
    let acts: Vec<_> = history["history"].as_array().unwrap().iter().map(|act| act["kind"].as_str().unwrap()).collect();
    assert!(["runtime", "file", "restart"].iter().all(|kind| acts.contains(kind)), "{acts:?}");
    assert_eq!(balancer.api("balancer")["url"], format!("http://{}", balancer.admin()));
    assert!(balancer.api("certificates")["certificates"][0]["not_after"].is_string());
    assert_eq!(balancer.asked("/api/v1/services/http-nobody").unwrap().status, 404);

    check_pages(&balancer);
}

/// Checks the console's pages of a store with a service `shop`, whose balance is in quarantine.
fn check_pages(balancer: &Balancer) {
    let page = balancer.asked("/").unwrap();
    assert!(page.body.contains("shop.test<") && !page.body.contains("<i>by mood"), "{}", page.body);
    let problems = balancer.api("problems");
    assert!(problems["problems"].as_array().unwrap().iter().any(|it| it["service"] == "http-shop"), "{problems}");
    for (path, part) in [
        ("/", "data-service=\"http-shop\""),
        ("/services/http-shop", "server shop-1 "),
        ("/certificates", "id=\"certificates\""),
        ("/store", "http-services/shop/balance"),
        ("/haproxy", "id=\"processes\""),
    ] {
        let page = balancer.asked(path).unwrap();
        assert!(page.status == 200 && page.body.contains(part), "{part} in {}", page.body);
        assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
        assert_eq!(page.header("cache-control"), Some("no-store"));
        let policy = page.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"), "{policy}");
    }
    assert_eq!(balancer.asked("/services/http-nobody").unwrap().status, 404);
    let script = balancer.asked("/console.js").unwrap();
    let tag = script.header("etag").unwrap();
    assert_eq!(script.header("cache-control"), Some("no-cache"));
    let again = Request::get("localhost", "/console.js").header("If-None-Match", tag).send(balancer.admin()).unwrap();
    assert_eq!((again.status, again.body.len()), (304, 0));
}

#[test]
fn a_change_is_an_event_and_listeners_leave_room_for_others() {
    let _turn = light();
    let Ground { etcd, balancer, apps: _apps, .. } = Ground::build().http("shop", "shop.test", &["shop-1"]).start();
    let listen = || {
        let mut stream = TcpStream::connect(balancer.admin()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut lines = BufReader::new(stream);
        let mut status = String::new();
        lines.read_line(&mut status).unwrap();
        (status, lines)
    };
    let mut listeners: Vec<_> = (0..32).map(|_| listen()).collect();
    assert!(listeners.iter().all(|(status, _)| status.starts_with("HTTP/1.1 200 ")));
    assert!(listen().0.starts_with("HTTP/1.1 503 "));
    assert_eq!(balancer.asked("/live").unwrap().status, 200);
    let (_, mut lines) = listeners.pop().unwrap();
    let mut wait = |begin: &str| {
        let mut line = String::new();
        while !line.starts_with(begin) {
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0, "no line begins with {begin}");
        }
        line
    };
    assert_eq!(wait("content-type").trim_end(), "content-type: text/event-stream");
    etcd.put("http-services/shop/overrides/shop-1", r#"{"state":"drain"}"#);
    wait("event: changed");
    // A listener that is gone makes room. confgen notices that with its next comment.
    drop(listeners);
    until(PATIENCE, "room for a listener", || listen().0.starts_with("HTTP/1.1 200 "));
}

#[test]
fn what_is_shown_once_a_change_is_followed_is_from_after_it() {
    let _turn = light();
    let Ground { etcd, balancer, apps: _apps, .. } = Ground::build().http("shop", "shop.test", &["shop-1"]).start();
    let balanced = || balancer.api("services/http-shop")["upstreams"][0]["balanced"].clone();
    for state in ["maint", "ready"].repeat(5) {
        let key = "http-services/shop/overrides/shop-1";
        // Asked for just before the change, and then just after it.
        let before = balanced();
        let value = if state == "maint" { r#"{"state":"maint"}"# } else { "{}" };
        let revision = etcd.put(key, value);
        until(PATIENCE, "the change to be followed", || {
            let said = balancer.api("balancer");
            if said["applied"].as_i64() >= Some(revision) { Ok(()) } else { Err(said.to_string()) }
        });
        assert_eq!(balanced(), Value::from(state == "ready"), "{state}; before it was {before}");
    }
}

#[test]
fn ready_says_what_is_wrong() {
    let _turn = light();
    let ground = Ground::build().http("shop", "shop.test", &["shop-1"]).start();
    let Ground { mut etcd, balancer, apps: _apps, .. } = ground;
    let broken = balancer.folder().join("conf.d/mine.cfg");

    write(&broken, "frontend mine\n    bind *:not-a-port\n");
    let words = balancer.wait_ready(503, "");
    assert!(words.starts_with("out of sync: HAProxy refuses the operator's own files"), "{words}");
    wait_metric(&balancer, "confgen_in_sync", 0.0);
    write(&broken, "# mended\n");
    balancer.wait_ready(200, "");

    // An operator's stop: what HAProxy should run, it doesn't.
    assert!(balancer.ctl(&["stop", "haproxy"]).status.success());
    balancer.wait_ready(503, "");
    wait_metric(&balancer, "confgen_haproxy_up", 0.0);
    assert_eq!(balancer.asked("/live").unwrap().status, 200);
    let silent = wait_upstream(&balancer, "shop-1", |it| it["balanced"].is_null());
    assert_eq!(silent["state"], "ready");
    assert!(balancer.ctl(&["start", "haproxy"]).status.success());
    balancer.wait_ready(200, "");

    // etcd away alone is no reason to be unready: HAProxy runs what was asked for.
    etcd.kill(0);
    wait_metric(&balancer, "confgen_store_connected", 0.0);
    assert!(balancer.wait_ready(200, "").contains("the store is away, HAProxy keeps what it has"));
    etcd.restart(0);
    wait_metric(&balancer, "confgen_store_connected", 1.0);
}

#[test]
fn a_port_that_can_not_be_had_is_said_at_the_start() {
    let port = free_port();
    let _holder = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let folder = lab::Scratch::new();
    let confgen = |admin: &str| {
        let mut command = Command::new(bin("confgen"));
        command.args(["--state-dir".as_ref(), folder.join("state").as_os_str(), "--admin".as_ref(), admin.as_ref()]);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, words) = confgen(&format!("127.0.0.1:{port}"));
    assert!(
        code == Some(1) && words.contains(&format!("can't listen on 127.0.0.1:{port}: Address already in use")),
        "{words}"
    );
    let (code, words) = confgen(&format!("0.0.0.0:{port}"));
    assert!(code == Some(2) && words.contains("--admin-token-file"), "{code:?} {words}");
}

#[test]
fn a_token_is_asked_for_and_others_names_are_refused() {
    let build = Ground::build().file("token", "0123456789abcdef0123456789abcdef\n");
    let token = build.setup.folder().join("token");
    let ground = build.flags(&["--admin-token-file", token.to_str().unwrap()]).launch();
    let balancer = &ground.balancer;
    let ask = |host: &str, bearer: &str| {
        let request = Request::get(host, "/api/v1/status").header("Authorization", &format!("Bearer {bearer}"));
        request.send(balancer.admin()).map(|answer| answer.status)
    };
    until(PATIENCE, "the admin port", || ask("localhost", "").is_ok());
    assert_eq!(ask("localhost", "").unwrap(), 401);
    assert_eq!(ask("localhost", "0123456789abcdef0123456789abcdef").unwrap(), 200);
    assert_eq!(ask("shop.test", "0123456789abcdef0123456789abcdef").unwrap(), 421);
}
