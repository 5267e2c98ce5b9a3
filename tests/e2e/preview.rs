//! `preview`: a color by its name for some, and as if it weren't there for everybody else.

use lab::http::{Request, Response};
use lab::load::{Kind, Plan, Running};
use lab::{App, Ground, PATIENCE, light, until};
use serde_json::{Value, json};

use super::acknowledgement::{acknowledges, said, wait_acknowledged, wait_said};

const GREEN: &str = "http-shop:preview-green";
/// May preview.
const TESTER: &str = "127.0.0.9";
/// May not.
const VISITOR: &str = "127.0.0.8";
/// May not either, and is believed what it says of its clients.
const PROXY: &str = "127.0.0.5";

/// A shop in blue, and the same in green for those who may see it.
fn open() -> Ground {
    let preview = format!("{TESTER}, 127.0.2.0/24");
    let build = Ground::build().http("plain", "plain.test", &["blue-1", "green-1"]).flags(&["--node", "lab"]);
    let colors = ["blue", "green"].map(|color| record(build.app(&format!("{color}-1")), color));
    let settings = [
        ("domain", "shop.test"),
        ("active", "blue"),
        ("preview", &preview),
        ("upstreams/blue-1", &colors[0]),
        ("upstreams/green-1", &colors[1]),
    ];
    let ground = build.set("http-services/shop", &settings).flags(&["--trusted-proxies", PROXY]).start();
    ground.balancer.wait_servers(PATIENCE, GREEN, 1);
    ground
}

fn ask(shop: &Ground, client: &str, host: &str, color: Option<&str>) -> Response {
    let request = Request::get(host, "/echo").from(client).header("X-Forwarded-For", TESTER);
    let request = color.into_iter().fold(request, |request, color| request.header("X-Discover-Color", color));
    request.send(shop.balancer.http()).unwrap()
}

/// What the app that answers was told of the color; none where it was told nothing.
fn told(shop: &Ground, client: &str, host: &str, color: Option<&str>) -> Option<String> {
    let response = ask(shop, client, host, color);
    assert_eq!(response.status, 200, "{client} {host} {color:?}: {response:?}");
    color_of(&response)
}

fn record(app: &App, color: &str) -> String {
    json!({"address": app.address.to_string(), "color": color}).to_string()
}

/// In any of the spellings that apps read as one.
fn color_of(response: &Response) -> Option<String> {
    let headers: Value = serde_json::from_str(&response.body).unwrap();
    let headers = headers.as_object().unwrap().iter();
    let colors = headers.filter(|(name, _)| name.replace('_', "-") == "x-discover-color");
    let colors: Vec<String> =
        colors.flat_map(|(_, all)| all.as_array().unwrap()).map(|it| it.as_str().unwrap().to_owned()).collect();
    assert!(colors.len() < 2, "{colors:?}");
    colors.into_iter().next()
}

#[test]
fn only_clients_in_the_preview_networks_reach_a_color_by_its_name() {
    let _turn = light();
    let shop = open();
    let green = || Some("green".to_owned());

    // By host and by header, in the clear and over TLS.
    assert_eq!(told(&shop, TESTER, "green.shop.test", None), green());
    assert_eq!(told(&shop, "127.0.2.77", "GREEN.shop.test:80", Some("blue")), green(), "the host decides first");
    assert_eq!(told(&shop, TESTER, "shop.test", Some("green")), green());
    assert_eq!(told(&shop, TESTER, "shop.test", None), None);
    let by_name = |client: &str, host: &str, color: &str| {
        let request = Request::get(host, "/").from(client).header("X-Discover-Color", color);
        request.tls(host).send(shop.balancer.https()).unwrap()
    };
    assert_eq!(by_name(TESTER, "green.shop.test", "").app(), "green-1");
    assert_eq!(by_name(TESTER, "shop.test", "green").app(), "green-1");
    assert_eq!(by_name(VISITOR, "shop.test", "green").app(), "blue-1");

    // Whoever may not: neither the host nor the header does anything, and no app hears of it.
    for client in [VISITOR, PROXY] {
        assert_eq!(ask(&shop, client, "green.shop.test", Some("green")).status, 403);
        assert_eq!(told(&shop, client, "shop.test", Some("green")), None, "{client}");
    }
    for (client, name) in [(VISITOR, "x_discover_color"), (TESTER, "X_Discover-Color"), (PROXY, "X-DISCOVER-COLOR")] {
        let request = Request::get("shop.test", "/echo").from(client).header(name, "green").header(name, "red");
        assert_eq!(color_of(&request.send(shop.balancer.http()).unwrap()), None, "{client} {name}");
    }
    assert_eq!(told(&shop, TESTER, "plain.test", Some("green")), None, "nobody previews it");

    // The active one is asked for as any other.
    let blue = || Some("blue".to_owned());
    assert_eq!(told(&shop, TESTER, "shop.test", Some("blue")), blue());
    assert_eq!(told(&shop, TESTER, "blue.shop.test", None), blue());
    assert_eq!(by_name(TESTER, "shop.test", "blue").app(), "blue-1");
    assert_eq!(told(&shop, VISITOR, "shop.test", Some("blue")), None);

    // A color answers, or nobody does.
    assert_eq!(ask(&shop, TESTER, "shop.test", Some("red")).status, 404);
    assert_eq!(ask(&shop, TESTER, "red.shop.test", None).status, 404);
}

#[test]
fn its_upstreams_come_and_go_without_a_restart() {
    let _turn = light();
    let shop = open();
    let restarts = shop.balancer.restarts();
    let second = App::alone("green-2");
    shop.etcd.put("http-services/shop/upstreams/green-2", record(&second, "green"));
    shop.balancer.wait_servers(PATIENCE, GREEN, 2);
    shop.etcd.put("http-services/shop/overrides/green-2", r#"{"state":"drain"}"#);
    shop.balancer.wait_servers(PATIENCE, GREEN, 1);
    shop.etcd.delete("http-services/shop/upstreams/green-1");
    until(PATIENCE, "nobody to be left", || ask(&shop, TESTER, "green.shop.test", None).status == 503);
    let response = ask(&shop, TESTER, "shop.test", Some("green"));
    assert_eq!((response.status, response.header("retry-after")), (503, Some("5")), "blue isn't what was asked for");
    shop.etcd.delete("http-services/shop/overrides/green-2");
    until(PATIENCE, "the second to be back", || ask(&shop, TESTER, "green.shop.test", None).status == 200);
    // HAProxy follows a moment before it is said.
    let shown: Value = until(PATIENCE, "the second to be shown as ready in its preview", || {
        let shown = shop.balancer.api("services/http-shop");
        let green_2 = shown["upstreams"].as_array().and_then(|all| all.iter().find(|it| it["id"] == "green-2"));
        let is_ready = green_2.is_some_and(|it| it["preview"]["state"] == "ready" && it["preview"]["section"] == GREEN);
        let drains = green_2.is_some_and(|it| it["state"] == "drain");
        if is_ready && drains { Ok(shown) } else { Err(shown.to_string()) }
    });
    assert_eq!(shown["service"]["settings"]["preview"], json!("127.0.0.9/32 127.0.2.0/24"), "{shown}");
    assert_eq!(shown["service"]["previews"][1]["routes"], json!([{"host": "green.shop.test", "path": "/"}]));
    shop.etcd.delete("http-services/shop/active");
    until(PATIENCE, "every color to be active", || shop.balancer.get("shop.test", "/").app() == "green-2");
    assert_eq!(told(&shop, TESTER, "green.shop.test", None).as_deref(), Some("green"));
    assert_eq!(told(&shop, TESTER, "shop.test", Some("blue")).as_deref(), Some("blue"));
    assert_eq!(shop.balancer.restarts(), restarts, "none of it takes a restart");
    // What lies on disk says the same: a HAProxy that starts with it has the same previews.
    shop.etcd.put("http-services/shop/active", "blue");
    until(PATIENCE, "the file to have it", || {
        let file = shop.balancer.file();
        let section =
            file.split("\n\n").find(|block| block.contains(&format!("backend {GREEN}"))).unwrap_or_default().to_owned();
        if section.contains("server green-2 ") { Ok(()) } else { Err(section) }
    });
    shop.balancer.restart();
    assert_eq!(told(&shop, TESTER, "green.shop.test", None).as_deref(), Some("green"));
}

#[test]
fn what_cant_be_previewed_is_said_and_serves() {
    let _turn = light();
    let shop = open();
    for (service, domain, tls, reason) in [
        ("wild", "*.wild.test", "both", "there are no previews of a wildcard"),
        ("passed", "passed.test", "passthrough", "passthrough sees neither a header nor"),
    ] {
        shop.etcd.put(&format!("http-services/{service}/tls"), tls);
        shop.etcd.http_service(service, domain, &[shop.app("blue-1")]);
        let key = format!("http-services/{service}/preview");
        shop.etcd.put(&key, TESTER);
        until(PATIENCE, &format!("{key} to be refused"), || {
            let said = shop.balancer.quarantine()[&key].clone();
            if said.as_str().is_some_and(|said| said.contains(reason)) { Ok(()) } else { Err(said.to_string()) }
        });
    }
    shop.balancer.wait_status(PATIENCE, "one.wild.test", "/", 200);
    shop.balancer.wait_settled(PATIENCE);
    assert_eq!(told(&shop, TESTER, "one.wild.test", Some("green")), None);
}

#[test]
fn colors_switch_under_load_without_a_restart() {
    let _turn = light();
    let shop = open();
    let restarts = shop.balancer.restarts();
    let load = [Kind::PerRequest, Kind::KeepAlive]
        .map(|kind| Plan::new(kind, shop.balancer.http(), "shop.test").rate(100).workers(8).start());
    let met = |running: &Running, app: &str| running.report().upstreams.get(app).map_or(0, |it| it.answers);
    for turn in 0..6 {
        let active = if turn % 2 == 0 { "green" } else { "blue" };
        let app = format!("{active}-1");
        let before: Vec<u64> = load.iter().map(|running| met(running, &app)).collect();
        shop.etcd.put("http-services/shop/active", active);
        until(PATIENCE, &format!("{active} to be active"), || {
            let plain = shop.balancer.get("shop.test", "/");
            if plain.app() == app { Ok(()) } else { Err(plain.body) }
        });
        until(PATIENCE, "both loads to meet it", || {
            load.iter().zip(&before).all(|(running, before)| met(running, &app) > *before)
        });
        for color in ["blue", "green"] {
            assert_eq!(told(&shop, TESTER, &format!("{color}.shop.test"), None).as_deref(), Some(color));
            assert_eq!(told(&shop, TESTER, "shop.test", Some(color)).as_deref(), Some(color));
        }
    }
    for running in load {
        let report = running.stop();
        report.assert_nothing_lost();
    }
    assert_eq!(shop.balancer.restarts(), restarts);
}

#[test]
fn a_drain_waits_for_what_a_preview_has_in_hand() {
    let _turn = light();
    let shop = open();
    let address = shop.balancer.http();
    let request = std::thread::spawn(move || {
        Request::get("green.shop.test", "/slow?ms=8000").from(TESTER).send(address).map_or(0, |it| it.status)
    });
    until(PATIENCE, "the request to reach the app", || {
        shop.balancer.busy_servers(GREEN).contains(&"green-1".to_owned())
    });
    let record = json!({"address": shop.app("green-1").address.to_string(), "color": "green", "state": "drain"});
    let revision = shop.etcd.put("http-services/shop/upstreams/green-1", record.to_string());
    let counted = |value: &Value| value["draining"]["http-shop/green-1"] == json!(1);
    wait_said(&shop.etcd, "the request to be counted", counted);
    // The old process has it then, in a section that the new one has emptied.
    shop.balancer.restart();
    wait_said(&shop.etcd, "it to be counted still", counted);
    assert!(!acknowledges(&said(&shop.etcd), revision, "http-shop/green-1"));
    wait_acknowledged(&shop.etcd, revision, "http-shop/green-1");
    assert!(request.is_finished(), "acknowledged while the request was in flight");
    assert_eq!(request.join().unwrap(), 200);
}
