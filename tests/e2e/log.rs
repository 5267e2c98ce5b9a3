//! The access log, whatever is asked; and what upstreams are told of a client that a trusted proxy speaks for.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::process::Command;

use lab::http::{Request, Response, raw};
use lab::{Ground, PATIENCE, Syslog, light, until};
use serde_json::Value;

/// The only peer that is believed. All of 127.0.0.0/8 is this machine's.
const TRUSTED: &str = "127.0.0.2";
const NOBODY: &str = "127.0.0.1";

/// What a syslog daemon takes of a line before it cuts it: rsyslog's `maxMessageSize` unless told.
const TAKEN: usize = 8 * 1024;

/// A balancer that believes one peer, with its log.
struct Scene {
    ground: Ground,
    syslog: Syslog,
}

impl Scene {
    fn new() -> Self {
        let syslog = Syslog::start();
        let ground = Ground::build()
            .http("shop", "shop.test", &["shop"])
            .http("secure", "secure.test", &["secure"])
            .set("http-services/secure", &[("tls", "terminate"), ("hsts", "1d")])
            .tcp("db", &["db"])
            .tcp("dbs", &["db"])
            .set("tcp-services/dbs", &[("tls", "terminate")])
            .certificate(&["shop.test", "secure.test"])
            .flags(&["--trusted-proxies", TRUSTED])
            .with(|setup| setup.log(&syslog))
            .start();
        Self { ground, syslog }
    }

    /// The access log's lines so far: all that isn't HAProxy's own news of its servers and sections.
    fn log(&self) -> Vec<Value> {
        let lines = self.syslog.lines();
        // `Connect from …` is how HAProxy logs a connection unless told otherwise.
        let is_news = |text: &&str| !text.starts_with('{') && !text.starts_with("Connect from ");
        let all = lines.iter().map(|line| message(line)).filter(|line| !is_news(line));
        let parsed = |line: &str| {
            assert!(line.len() < TAKEN, "{} bytes: {line}", line.len());
            serde_json::from_str::<Value>(line)
                .ok()
                .filter(Value::is_object)
                .unwrap_or_else(|| panic!("no JSON: {line}"))
        };
        all.map(parsed).collect()
    }

    /// Waits for a line that bears this, and returns it.
    #[track_caller]
    fn logged(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        until(PATIENCE, &format!("a line of the log: {what}"), || {
            let lines = self.log();
            lines.iter().find(|line| wanted(line)).cloned().ok_or_else(|| format!("{lines:#?}"))
        })
    }

    /// A request over HTTP/2 by curl, with these bytes in path and host.
    fn http2(&self, path: &[u8], host: &[u8]) {
        let url = [b"https://", self.ground.balancer.https().to_string().as_bytes(), path].concat();
        let host = [b"Host: ", host].concat();
        let arguments = [b"-sk".to_vec(), b"--http2".to_vec(), b"-o/dev/null".to_vec(), b"-H".to_vec(), host, url];
        // A request that HAProxy ends is an error to curl; the log is what counts.
        let ran = Command::new("curl").args(arguments.map(OsString::from_vec)).status();
        assert!(ran.is_ok(), "curl: {ran:?}");
    }

    fn ask(&self, from: &str, headers: &[(&str, &str)]) -> BTreeMap<String, String> {
        let request = Request::get("shop.test", "/echo").from(from);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(name, value));
        told(&request.send(self.ground.balancer.http()).unwrap())
    }

    /// The port as it is told where nobody else has a say.
    fn port(&self) -> String {
        self.ground.balancer.http().port().to_string()
    }
}

/// A datagram's message, without syslog's header: `<134>Nov 21 08:58:47 haproxy[3129]: …`.
fn message(line: &str) -> &str {
    line.split_once("]: ").map_or(line, |(_, message)| message).trim_end()
}

#[test]
fn the_log_parses_and_only_trusted_proxies_are_believed() {
    let _turn = light();
    let scene = Scene::new();
    every_line_is_json_whatever_is_asked(&scene);
    connections_of_tcp_and_tls_that_fail_are_json_too(&scene);
    nobody_else_is_believed(&scene);
    what_a_trusted_proxy_says_is_kept_and_the_rest_told(&scene);
    a_redirect_to_https_ends_where_a_trusted_proxy_speaks_tls(&scene);
}

/// Bytes that have broken a log before: not UTF-8, UTF-8 of what is no character, or of one that JSON writes in halves.
const HOSTILE: [&[u8]; 9] = [
    b"\xff\xfe",
    b"\xc3\x28",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xed\xbf\xbf",
    "\u{1d800}\u{1f600}".as_bytes(),
    "\u{2028}é\u{85}".as_bytes(),
    b"\xf4\x90\x80\x80",
    b"\x01\x1f\x7f",
];

fn every_line_is_json_whatever_is_asked(scene: &Scene) {
    let http = scene.ground.balancer.http();
    let long = "%22\"x".repeat(800);
    let mut requests: Vec<Vec<u8>> = [
        "GET /quote\"in'path\\back HTTP/1.1\r\nHost: shop.test\r\n\r\n",
        "GET /q?\"},\"status\":200,{\" HTTP/1.1\r\nHost: \"evil\\\".test\r\n\r\n",
        "GET /tab\there HTTP/1.1\r\nHost: shop.test\r\n\r\n",
        "G\"E\\T /method HTTP/1.1\r\nHost: shop.test\r\n\r\n",
        "GET /version HTTP/\"1\r\nHost: shop.test\r\n\r\n",
        "GET /no-host HTTP/1.0\r\n\r\n",
        "GET /two-hosts HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n",
        "GET http://\"\\.test/absolute HTTP/1.1\r\nHost: shop.test\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: shop.test\r\n\r\n",
        "nonsense \"\\\r\n\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    requests.push(format!("GET /long{long} HTTP/1.1\r\nHost: shop.test\r\n\r\n").into_bytes());
    requests.push(format!("GET /long-host HTTP/1.1\r\nHost: {}\r\n\r\n", "\"\x01".repeat(3_000)).into_bytes());
    requests.push(format!("{} /long-method HTTP/1.1\r\nHost: shop.test\r\n\r\n", "M".repeat(5_000)).into_bytes());
    for bytes in HOSTILE {
        requests.push([b"GET /", bytes, b" HTTP/1.1\r\nHost: shop.test\r\n\r\n"].concat());
        requests.push([b"GET /host HTTP/1.1\r\nHost: x", bytes, b"y\r\n\r\n"].concat());
        requests.push([b"G", bytes, b" /method HTTP/1.1\r\nHost: shop.test\r\n\r\n"].concat());
    }
    let before = scene.log().len();
    let sent = requests.len();
    for request in requests {
        // HAProxy keeps a connection that it has answered for another request.
        let request = if String::from_utf8_lossy(&request).contains("HTTP/1.1") { closing(&request) } else { request };
        let _ = raw(http, &request);
    }
    for bytes in HOSTILE.iter().filter(|bytes| !bytes.contains(&1)) {
        scene.http2(&[b"/h2-", *bytes].concat(), &[b"x", *bytes].concat());
    }
    assert_eq!(Request::get("shop.test", "/the-last-one").send(http).unwrap().status, 200);
    let line = scene.logged("the last one", |line| line["uri"] == "/the-last-one");
    assert_eq!((line["host"].as_str(), line["server"].as_str()), (Some("shop.test"), Some("shop")), "{line}");
    scene.logged("quotes as they came", |line| line["uri"] == "/quote\"in'path\\back" && line["method"] == "GET");
    until(PATIENCE, &format!("a line for each of {sent} requests"), || {
        let more = scene.log().len() - before;
        if more > sent { Ok(()) } else { Err(more) }
    });
    // One that can't be read has a line all the same.
    scene.logged("400", |line| line["status"] == 400 && line["frontend"] == "discover-web");
}

/// The same request with a header that ends the connection.
fn closing(request: &[u8]) -> Vec<u8> {
    let end = request.len() - 2;
    [&request[..end], b"Connection: close\r\n\r\n"].concat()
}

fn connections_of_tcp_and_tls_that_fail_are_json_too(scene: &Scene) {
    let _ = Request::get("db.test", "/").send(scene.ground.tcp["db"]).unwrap();
    let _ = Request::get("db.test", "/").tls("shop.test").send(scene.ground.tcp["dbs"]).unwrap();
    for target in [scene.ground.tcp["dbs"], scene.ground.balancer.https()] {
        let _ = raw(target, b"GET /\"no-tls HTTP/1.1\r\n\r\n");
    }
    let _ = raw(scene.ground.balancer.stats(), b"G\"ET /\\ nonsense\r\n\r\n");
    let line = scene.logged("TCP", |line| line["backend"] == "tcp-db");
    assert_eq!((line["server"].as_str(), line["client"].as_str()), (Some("db"), Some(NOBODY)), "{line}");
    scene.logged("TCP over TLS", |line| line["backend"] == "tcp-dbs" && line["tls"] == "TLSv1.3");
    for frontend in ["tcp-dbs", "discover-web"] {
        let failed = |line: &Value| line["error"] == "SSL handshake failure" && starts(&line["frontend"], frontend);
        scene.logged(&format!("no TLS on {frontend}"), failed);
    }
    scene.logged("no HTTP on the stats page", |line| line["frontend"] == "discover-stats" && line["status"] == 400);
}

fn starts(value: &Value, with: &str) -> bool {
    value.as_str().is_some_and(|text| text.starts_with(with))
}

/// What `/echo` says of the headers that came to the upstream: each with its values, joined.
fn told(response: &Response) -> BTreeMap<String, String> {
    assert_eq!(response.status, 200, "{response:?}");
    let all: BTreeMap<String, Vec<String>> = serde_json::from_str(&response.body).unwrap();
    let about = |name: &str| name.starts_with("x") || ["forwarded", "proxy", "connection", "upgrade"].contains(&name);
    all.into_iter().filter(|(name, _)| about(name)).map(|(name, values)| (name, values.join(" | "))).collect()
}

const SAID: [(&str, &str); 7] = [
    ("Forwarded", "for=6.6.6.6;proto=https"),
    ("X-Forwarded-For", "6.6.6.6"),
    ("X-Forwarded-Host", "evil.test"),
    ("X-Forwarded-Port", "8443"),
    ("X-Forwarded-Proto", "https"),
    ("X-Real-IP", "6.6.6.6"),
    ("X-Request-Id", "said"),
];

fn nobody_else_is_believed(scene: &Scene) {
    let spelled =
        [("X_Forwarded-For", "6.6.6.6"), ("x_forwarded_proto", "https"), ("X_Real_IP", "6"), ("Proxy", "evil")];
    let named = [("Connection", "X-Forwarded-For, X-Request-Id"), ("Upgrade", "h2c"), ("X-Other", "kept")];
    let told = scene.ask(NOBODY, &[&SAID[..], &spelled, &named].concat());
    assert_ne!(told["x-request-id"], "said");
    let told: Vec<_> = told.iter().filter(|(name, _)| *name != "x-request-id").map(|(n, v)| (&**n, &**v)).collect();
    let port = scene.port();
    assert_eq!(
        told,
        [("x-forwarded-for", NOBODY), ("x-forwarded-port", &*port), ("x-forwarded-proto", "http"), ("x-other", "kept")]
    );
}

fn what_a_trusted_proxy_says_is_kept_and_the_rest_told(scene: &Scene) {
    let told = scene.ask(TRUSTED, &SAID);
    for (name, value) in SAID.iter().filter(|(name, _)| *name != "X-Forwarded-For") {
        assert_eq!(told[&name.to_lowercase()], *value, "{told:?}");
    }
    assert_eq!(told["x-forwarded-for"], format!("6.6.6.6 | {TRUSTED}"));
    let line = scene.logged("its id", |line| line["id"] == "said");
    assert_eq!((line["client"].as_str(), line["forwarded_for"].as_str()), (Some(TRUSTED), Some("6.6.6.6")), "{line}");

    let told = scene.ask(TRUSTED, &[]);
    let all = (&*told["x-forwarded-for"], &*told["x-forwarded-port"], &*told["x-forwarded-proto"]);
    assert_eq!(all, (TRUSTED, &*scene.port(), "http"), "one that says nothing");
    scene.logged("an id of ours", |line| line["client"] == TRUSTED && line["id"] == told["x-request-id"].as_str());

    let told = scene.ask(TRUSTED, &[("X-Forwarded-Proto", "https")]);
    assert_eq!(
        (told.get("x-forwarded-port"), &*told["x-forwarded-proto"]),
        (None, "https"),
        "not https on another port"
    );
}

fn a_redirect_to_https_ends_where_a_trusted_proxy_speaks_tls(scene: &Scene) {
    let asked = |from: &str, proto: Option<&str>, tls: bool| {
        let request = Request::get("secure.test", "/a?b").from(from);
        let request = proto.into_iter().fold(request, |request, proto| request.header("X-Forwarded-Proto", proto));
        let (request, target) = if tls {
            (request.tls("secure.test"), scene.ground.balancer.https())
        } else {
            (request, scene.ground.balancer.http())
        };
        let response = request.send(target).unwrap();
        assert_eq!(response.status == 200, response.header("strict-transport-security").is_some(), "{response:?}");
        (response.status, response.header("location").map(str::to_owned))
    };
    let (served, redirected) = ((200, None), (308, Some("https://secure.test/a?b".to_owned())));
    for (from, proto, tls, outcome) in [
        (TRUSTED, Some("https"), false, &served),
        (TRUSTED, Some("HTTPS, http"), false, &served),
        (TRUSTED, Some("wss"), false, &served),
        (TRUSTED, Some("http"), false, &redirected),
        (TRUSTED, None, false, &redirected),
        (TRUSTED, Some("http"), true, &redirected),
        (TRUSTED, None, true, &served),
        (NOBODY, Some("https"), false, &redirected),
        (NOBODY, Some("http"), true, &served),
    ] {
        assert_eq!(&asked(from, proto, tls), outcome, "{from} says {proto:?}, over TLS: {tls}");
    }
}
