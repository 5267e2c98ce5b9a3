//! What a request gets: by its host and path, over HTTP, HTTPS and TCP.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::LazyLock;

use lab::http::{Request, Response, raw};
use lab::{App, Balancer, Certificate, Etcd, Ground, PATIENCE};

/// One balancer for all tests of this file, which only look at it.
struct Scene {
    ground: Ground,
    shop: Certificate,
    wild: Certificate,
}

static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    let mut build = Ground::build();
    for (name, domain, settings) in [
        ("shop", "shop.test, www.shop.test", &[][..]),
        ("any", "*.wild.test", &[]),
        ("api", "api.wild.test", &[]),
        ("site", "site.test", &[]),
        ("site-api", "site.test", &[("path", "/api")]),
        ("site-v2", "site.test", &[("path", "/api/v2")]),
        ("only", "only.test only.wild.test", &[("path", "/here")]),
        ("secure", "secure.test", &[("tls", "terminate")]),
        ("gate", "gate.test", &[("tls", "terminate"), ("path", "/in")]),
        ("plain", "plain.test", &[("tls", "off")]),
        ("dead", "dead.test", &[]),
    ] {
        let apps: &[&str] = if name == "dead" { &[] } else { &[name] };
        build = build.http(name, domain, apps).set(&format!("http-services/{name}"), settings);
    }
    for (name, expression) in [("legacy", "^/legacy[0-9]+"), ("newer", "^/(legacy1|new)")] {
        let app = App::alone(name);
        let upstream = (format!("upstreams/{name}"), app.address.to_string());
        let settings = [("url_reg", expression), (&*upstream.0, &*upstream.1)];
        build = build.set(&format!("http-services/{name}"), &settings);
        build.apps.push(app);
    }
    let [shop, wild] = [&["shop.test", "www.shop.test"][..], &["*.wild.test"]].map(Certificate::of);
    for (name, certificate) in [("shop", &shop), ("wild", &wild)] {
        certificate.write(build.setup.folder().join(format!("certs/{name}.pem")));
    }
    Scene { ground: build.tcp("db", &["db"]).start(), shop, wild }
});

fn http(host: &str, target: &str) -> Response {
    SCENE.ground.balancer.get(host, target)
}

fn https(host: &str, target: &str) -> Response {
    https_as(host, host, target)
}

fn https_as(name: &str, host: &str, target: &str) -> Response {
    Request::get(host, target).tls(name).send(SCENE.ground.balancer.https()).unwrap()
}

#[track_caller]
fn assert_app(response: &Response, app: &str) {
    assert_eq!((response.status, response.app()), (200, app), "{response:?}");
}

#[test]
fn a_host_is_exact_before_wild_whatever_its_case_port_and_dot() {
    assert_app(&http("shop.test", "/"), "shop");
    assert_app(&http("www.shop.test", "/a/b?c"), "shop");
    assert_app(&http("SHOP.Test:8080", "/"), "shop");
    assert_app(&http("shop.test.", "/"), "shop");
    assert_app(&http("one.wild.test", "/"), "any");
    assert_app(&http("api.wild.test", "/"), "api");
    assert_app(&https("shop.test", "/"), "shop");
}

#[test]
fn a_wildcard_is_one_label_and_a_host_is_matched_whole() {
    for unknown in ["two.one.wild.test", "wild.test", "shop.test.evil.test", "xshop.test", "evil.test", "127.0.0.1"] {
        let response = http(unknown, "/");
        assert_eq!(response.status, 404, "{unknown}: {response:?}");
    }
}

#[test]
fn the_longest_path_wins_at_slashes() {
    for (path, app) in [
        ("/", "site"),
        ("/api", "site-api"),
        ("/api/", "site-api"),
        ("/api/x?y=/z", "site-api"),
        ("/api?x", "site-api"),
        ("/apix", "site"),
        ("/api/v2", "site-v2"),
        ("/api/v2/x", "site-v2"),
        ("/api/v2x", "site-api"),
        ("/other/api", "site"),
    ] {
        let response = http("site.test", path);
        assert_eq!((response.status, response.app()), (200, app), "{path}");
    }
}

#[test]
fn a_known_host_without_a_matching_path_is_404() {
    assert_app(&http("only.test", "/here"), "only");
    assert_eq!(http("only.test", "/there").status, 404);
    assert_eq!(http("only.test", "/hereafter").status, 404);
    // Neither a wildcard nor an expression answers for a host that somebody names.
    assert_app(&http("only.wild.test", "/here"), "only");
    assert_eq!(http("only.wild.test", "/there").status, 404);
    assert_eq!(http("only.test", "/legacy12").status, 404);
}

#[test]
fn a_host_is_one_name_and_the_whole_of_it() {
    for odd in [
        "shop.test, only.test",
        "only.test,shop.test",
        ".wild.test",
        "..wild.test",
        "shop.test:80:80",
        "shop.test/x",
        "x@shop.test",
        "shop.test#",
        "[::1]",
        "",
    ] {
        for response in [http(odd, "/"), https_as("shop.test", odd, "/")] {
            assert!([400, 404].contains(&response.status), "{odd:?}: {response:?}");
        }
    }
    // A wildcard's label is a label, and a port a number: an upstream that builds links of its Host builds none to
    // another host.
    for odd in [
        "2130706433/.wild.test",
        "evil?.wild.test",
        "evil#.wild.test",
        "evil@x.wild.test",
        "\"><script>.wild.test",
        "[x].wild.test",
        "*.wild.test",
        "shop.test:@evil.test",
        "shop.test:80@evil.test",
        "secure.test:x",
    ] {
        for response in [http(odd, "/"), https_as("shop.test", odd, "/")] {
            assert_eq!(response.status, 400, "{odd:?}: {response:?}");
        }
    }
    for known in ["shop.test:", "shop.test.", "SHOP.test.:8080"] {
        assert_app(&http(known, "/"), "shop");
    }
    for (lines, first) in [
        ("Host: shop.test\r\nHost: secure.test", "/"),
        ("Host: secure.test\r\nHost: shop.test", "/"),
        ("Host: shop.test", "http://secure.test/"),
    ] {
        let request = format!("GET {first} HTTP/1.1\r\n{lines}\r\nConnection: close\r\n\r\n");
        let answer = raw(SCENE.ground.balancer.http(), request.as_bytes()).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 400 "), "{lines}: {}", answer.escape_ascii());
    }
    assert_app(&http("shop.test", "http://shop.test/x"), "shop");
}

#[test]
fn url_reg_is_asked_after_the_host() {
    assert_app(&http("whatever.test", "/legacy12/x"), "legacy");
    assert_eq!(http("whatever.test", "/legacy").status, 404);
    assert_app(&http("shop.test", "/legacy12"), "shop");
    assert_app(&http("x.wild.test", "/legacy12"), "any");
    // Both match: the older one is asked first.
    assert_app(&http("whatever.test", "/legacy1"), "legacy");
    assert_app(&http("whatever.test", "/new?legacy1"), "newer");
}

#[test]
fn a_service_without_upstreams_says_when_to_come_back() {
    let response = http("dead.test", "/");
    assert_eq!(response.status, 503, "{response:?}");
    assert!(response.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
}

#[test]
fn http_is_redirected_with_path_and_query_but_without_a_port() {
    for host in ["secure.test", "secure.test:8080"] {
        let response = http(host, "/a/b?c=d&e=%20");
        assert!(matches!(response.status, 301 | 302 | 307 | 308), "{response:?}");
        assert_eq!(response.header("location"), Some("https://secure.test/a/b?c=d&e=%20"));
    }
    assert_app(&https("secure.test", "/a"), "secure");
    // Only where the service answers.
    assert_eq!(http("gate.test", "/in/x").header("location"), Some("https://gate.test/in/x"));
    assert_eq!(http("gate.test", "/out").status, 404);
}

#[test]
fn a_plain_service_is_not_on_https() {
    assert_app(&http("plain.test", "/"), "plain");
    assert_eq!(https("plain.test", "/").status, 404);
}

#[test]
fn the_certificate_is_chosen_by_sni() {
    let shown = |name: &str| {
        let response = Request::get("shop.test", "/").tls(name).send(SCENE.ground.balancer.https()).unwrap();
        response.certificate.unwrap()
    };
    assert_eq!(shown("shop.test"), SCENE.shop.der);
    assert_eq!(shown("www.shop.test"), SCENE.shop.der);
    assert_eq!(shown("one.wild.test"), SCENE.wild.der);
    // The default one is a copy of the first by name.
    assert_eq!(shown("unknown.test"), SCENE.shop.der);
    assert_eq!(shown("127.0.0.1"), SCENE.shop.der, "a client without SNI");
}

#[test]
fn tcp_goes_through() {
    let response = Request::get("anything.test", "/x").send(SCENE.ground.tcp["db"]).unwrap();
    assert_app(&response, "db");
    assert_eq!(response.line("x-forwarded-for"), None, "nothing is added on the way");
}

#[test]
fn what_a_client_says_of_itself_is_replaced() {
    let forged = |request: Request| {
        request
            .header("X-Forwarded-For", "6.6.6.6")
            .header("X-Forwarded-For", "7.7.7.7")
            .header("X-Forwarded-Proto", "gopher")
            .header("X-Forwarded-Port", "1")
            .header("X-Forwarded-Host", "evil.test")
            .header("X-Request-Id", "forged")
    };
    let plain = forged(Request::get("shop.test", "/")).send(SCENE.ground.balancer.http()).unwrap();
    let secure = forged(Request::get("shop.test", "/")).tls("shop.test").send(SCENE.ground.balancer.https()).unwrap();
    for (response, proto, port) in
        [(plain, "http", SCENE.ground.balancer.http().port()), (secure, "https", SCENE.ground.balancer.https().port())]
    {
        let lines = |name: &str| {
            let start = format!("{name}: ");
            response.body.lines().filter_map(|line| line.strip_prefix(&start)).collect::<Vec<_>>()
        };
        assert_eq!(lines("x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(lines("x-forwarded-proto"), [proto]);
        assert_eq!(lines("x-forwarded-port"), [port.to_string()]);
        assert_eq!(lines("x-forwarded-host"), [""; 0]);
        assert_eq!(lines("x-request-id").len(), 1);
        assert_ne!(lines("x-request-id"), ["forged"]);
    }
}

/// `default` takes what nobody else claims, so it has a balancer of its own.
#[test]
fn default_takes_the_rest() {
    let etcd = Etcd::start();
    let apps = ["shop", "rest", "legacy"].map(App::alone);
    etcd.http_service("shop", "shop.test", &[&apps[0]]);
    etcd.put("http-services/shop/path", "/shop");
    // Its `domain` is a claim like any other's.
    etcd.http_service("default", "home.test", &[&apps[1]]);
    etcd.put("http-services/legacy/url_reg", "^/legacy");
    etcd.put("http-services/legacy/upstreams/legacy", apps[2].address.to_string());
    let balancer = Balancer::start(&etcd);
    let ask = |host: &str, target: &str| Request::get(host, target).send(balancer.http()).unwrap();
    balancer.wait_status(PATIENCE, "shop.test", "/shop", 200);
    assert_app(&ask("shop.test", "/shop"), "shop");
    assert_app(&ask("unknown.test", "/"), "rest");
    assert_app(&ask("127.0.0.1", "/x"), "rest");
    assert_app(&ask("unknown.test", "/legacy"), "legacy");
    assert_app(&ask("home.test", "/legacy"), "rest");
    assert_eq!(ask("shop.test", "/elsewhere").status, 404, "the host is known, so its paths decide");

    // A service that has lost its upstreams answers for itself, never through `default`.
    etcd.delete("http-services/shop/upstreams/shop");
    balancer.wait_status(PATIENCE, "shop.test", "/shop", 503);
}
