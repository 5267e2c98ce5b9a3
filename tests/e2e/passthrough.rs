//! TLS that is passed through, beside TLS that is terminated, on one port: who answers a client, and what each is told.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use lab::http::{Request, Response};
use lab::{App, Certificate, Front, Ground, PATIENCE, Speaker, Speakers, Syslog, WebSocket, free_port, until};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// A client whose address no connection of HAProxy's own has.
const CLIENT: &str = "127.0.0.7";

/// One balancer for all tests of this file, which only look at it.
struct Scene {
    ground: Ground,
    /// Docker's containers have none.
    ipv6: Option<SocketAddr>,
    syslog: Syslog,
    /// Shown by HAProxy for what it terminates.
    own: Certificate,
    /// Shown by upstreams.
    vault: Front,
    old: Certificate,
    wild: Certificate,
    v1: Certificate,
    _speakers: Speakers,
    _apps: [App; 3],
}

static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    let mut build = Ground::build();
    let apps = ["shop", "near", "far"].map(App::alone);
    let vault = Front::new("vault", "vault.test");
    let [own, old, wild, v1] = ["shop.test", "old.test", "*.wild.test", "v1.far.test"].map(|it| Certificate::of(&[it]));
    let speakers = Speakers::start(&[
        Speaker::new("old", "").tls(&old),
        Speaker::new("wild", "accept-proxy").tls(&wild),
        Speaker::new("v1", "accept-proxy").tls(&v1),
    ]);
    for (service, domain, address, settings) in [
        ("shop", "shop.test", apps[0].address, &[("hsts", "180d")][..]),
        ("near", "near.wild.test", apps[1].address, &[("tls", "terminate")]),
        ("far", "*.far.test", apps[2].address, &[]),
        ("vault", "vault.test", vault.address, &[("tls", "passthrough"), ("check", "http /health")]),
        ("wild", "*.wild.test", speakers.at("wild"), &[("tls", "passthrough"), ("proxy-protocol", "v2")]),
        ("v1", "v1.far.test", speakers.at("v1"), &[("tls", "passthrough"), ("proxy-protocol", "v1")]),
        ("shut", "shut.test", vault.address, &[("tls", "passthrough"), ("allow", "10.0.0.0/8")]),
        ("old", "old.test", speakers.at("old"), &[]),
    ] {
        let (domain, address) = (("domain", domain), address.to_string());
        // The old layout says it by a key's existence.
        let (folder, more) = if service == "old" { ("services", ("sslpass", "")) } else { ("http-services", domain) };
        let settings = [settings, &[domain, more, ("upstreams/1", &address)]].concat();
        build = build.set(&format!("{folder}/{service}"), &settings);
    }
    own.write(build.setup.folder().join("certs/own.pem"));
    let syslog = Syslog::start();
    let ipv6 = TcpListener::bind("[::1]:0").is_ok().then(|| SocketAddr::from((Ipv6Addr::LOCALHOST, free_port())));
    let bind = ipv6.iter().flat_map(|address| ["--https-bind".to_owned(), address.to_string()]);
    let flags: Vec<String> = bind.chain(["--stats-domain".to_owned(), "stats.wild.test".to_owned()]).collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let ground = build.with(|setup| setup.log(&syslog)).flags(&flags).start();
    for service in ["shop", "near", "far", "vault", "old", "wild", "v1"] {
        ground.balancer.wait_servers(PATIENCE, &format!("http-{service}"), 1);
    }
    Scene { ground, ipv6, syslog, own, vault, old, wild, v1, _speakers: speakers, _apps: apps }
});

fn http(host: &str, target: &str) -> Response {
    Request::get(host, target).send(SCENE.ground.balancer.http()).unwrap()
}

fn https(sni: &str, host: &str, target: &str) -> Response {
    Request::get(host, target).tls(sni).send(SCENE.ground.balancer.https()).unwrap()
}

/// What curl gets of `https://HOST/`, and in the last line the status and the version of HTTP.
fn curl(host: &str, arguments: &[&str]) -> String {
    let port = SCENE.ground.balancer.https().port();
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--insecure", "--max-time", "10", "--interface", CLIENT])
        .args(["--write-out", "\n%{http_code} %{http_version}", "--resolve", &format!("{host}:{port}:127.0.0.1")])
        .args(arguments)
        .arg(format!("https://{host}:{port}/"))
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The certificate that OpenSSL's client is shown, if it is.
fn shown(name: &[&str]) -> Option<Vec<u8>> {
    let connect = ["s_client", "-connect", &SCENE.ground.balancer.https().to_string()];
    let output = Command::new("openssl").args(connect).args(name).stdin(Stdio::null()).output().unwrap();
    CertificateDer::from_pem_slice(&output.stdout).ok().map(|certificate| certificate.to_vec())
}

#[test]
fn the_name_in_the_handshake_decides_where_tls_ends() {
    let scene = &*SCENE;
    let own = &scene.own.der[..];
    for (name, certificate, why) in [
        ("vault.test", scene.vault.der(), "passed through"),
        ("VAULT.Test", scene.vault.der(), "whatever its case"),
        ("vault.test.", scene.vault.der(), "and trailing dot"),
        ("old.test", &scene.old.der, "by the old layout's key"),
        ("x.wild.test", &scene.wild.der, "passed through by a wildcard"),
        ("near.wild.test", own, "exact before wildcard: terminated"),
        ("v1.far.test", &scene.v1.der, "exact before wildcard: passed through"),
        ("x.far.test", own, "terminated by a wildcard"),
        ("shop.test", own, "terminated"),
        ("stats.wild.test", own, "reserved for the stats page"),
        ("x.y.wild.test", own, "a wildcard is one label"),
        (".wild.test", own, "which isn't empty"),
        ("wild.test", own, "and has to be there"),
        ("unknown.test", own, "nobody's"),
    ] {
        assert!(shown(&["-servername", name]).as_deref() == Some(certificate), "{name}: {why}");
    }
    assert!(shown(&["-noservername"]).as_deref() == Some(own), "who asks for nobody gets the default");
    assert_eq!(https("vault.test", "vault.test", "/a?b").line("url"), Some("/a?b"));
    assert_eq!(https("127.0.0.1", "shop.test", "/").app(), "shop", "a client without SNI");
}

#[test]
fn over_http_a_host_that_is_passed_through_redirects() {
    for (host, to) in [
        ("vault.test", "vault.test"),
        ("Vault.TEST.:8080", "vault.test"),
        ("x.wild.test", "x.wild.test"),
        ("old.test", "old.test"),
        ("v1.far.test", "v1.far.test"),
    ] {
        let response = http(host, "/a/b?c=d&e=%20");
        assert_eq!(response.status, 308, "{host}: {response:?}");
        assert_eq!(response.header("location"), Some(format!("https://{to}/a/b?c=d&e=%20").as_str()));
        assert_eq!(response.header("strict-transport-security"), None);
    }
    assert_eq!(http("x.far.test", "/").app(), "far", "its neighbour is served over HTTP");
}

/// HTTP/2 clients use a connection for every name in its certificate (RFC 9113, 9.1.1).
#[test]
fn a_request_on_another_hosts_connection_is_misdirected() {
    for host in ["vault.test", "VAULT.test:443", "x.wild.test", "old.test"] {
        assert_eq!(https("shop.test", host, "/").status, 421, "{host}");
        let answer = curl("shop.test", &["--http2", "--header", &format!("Host: {host}")]);
        assert!(answer.ends_with("\n421 2"), "{host}: {answer}");
    }
    assert_eq!(https("shop.test", "near.wild.test", "/").app(), "near", "one that is terminated is welcome");
    assert_eq!(https("shop.test", "x.y.wild.test", "/").status, 404);
    assert_eq!(https("127.0.0.1", "vault.test", "/").status, 421, "nor is one without SNI");
}

#[test]
fn what_is_terminated_knows_its_client_by_ipv4_and_ipv6() {
    let scene = &*SCENE;
    let port = scene.ground.balancer.https().port().to_string();
    for version in ["1.1", "2"] {
        let answer = curl("shop.test", &[&format!("--http{version}")]);
        assert!(answer.ends_with(&format!("\n200 {version}")), "{answer}");
        for line in [
            format!("x-forwarded-for: {CLIENT}"),
            format!("x-forwarded-port: {port}"),
            "x-forwarded-proto: https".into(),
        ] {
            assert!(answer.lines().any(|other| other == line), "{line} in {answer}");
        }
    }
    if let Some(ipv6) = scene.ipv6 {
        let answer = Request::get("shop.test", "/").tls("shop.test").send(ipv6).unwrap();
        assert_eq!(
            (answer.line("x-forwarded-for"), answer.line("x-forwarded-port")),
            (Some("::1"), Some(ipv6.port().to_string().as_str()))
        );
    }
    let answer = https("shop.test", "shop.test", "/");
    assert_eq!(answer.header("strict-transport-security"), Some("max-age=15552000"));
    assert_eq!(http("shop.test", "/").header("strict-transport-security"), None, "not over HTTP");
}

#[test]
fn upstreams_know_their_clients_by_the_proxy_protocol() {
    let scene = &*SCENE;
    for (host, name) in [("x.wild.test", "wild"), ("v1.far.test", "v1")] {
        let answer = curl(host, &["--http1.1"]);
        let told = format!("{name}\nclient: {CLIENT}\nsni: {host}\n");
        assert!(answer.starts_with(&told) && answer.ends_with("\n200 1.1"), "{host}: {answer}");
    }
    if let Some(ipv6) = scene.ipv6 {
        let answer = Request::get("y.wild.test", "/").tls("y.wild.test").send(ipv6).unwrap();
        assert_eq!((answer.app(), answer.line("client")), ("wild", Some("::1")));
    }
    assert_eq!(https("old.test", "old.test", "/").line("client"), Some("127.0.0.1"), "else they know HAProxy");
}

#[test]
fn a_client_outside_allow_is_refused() {
    let answer = curl("shut.test", &[]);
    assert!(answer.contains("\n000 0"), "{answer}");
}

#[test]
fn web_sockets_work_on_either_way() {
    for host in ["shop.test", "vault.test"] {
        let mut socket = WebSocket::open(SCENE.ground.balancer.https(), host, true);
        assert_eq!(socket.ask("hello").unwrap(), "hello", "{host}");
    }
}

#[test]
fn what_is_passed_through_is_in_the_log_and_what_is_terminated_once() {
    let scene = &*SCENE;
    let lines = |word: &str| -> Vec<serde_json::Value> {
        let lines = scene.syslog.access();
        let parsed = lines.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")));
        parsed.filter(|line: &serde_json::Value| line.to_string().contains(word)).collect()
    };
    // A name that would break the line, if anything could.
    shown(&["-servername", "\"},{\\.wild.test"]);
    until(PATIENCE, "the line of the odd name", || {
        lines("wild.test").iter().any(|line| line["sni"] == "\"},{\\.wild.test")
    });
    curl("logged.wild.test", &[]);
    curl("shop.test", &["--user-agent", "x", "--request-target", "/logged-once"]);
    let passed = until(PATIENCE, "the line of what is passed through", || lines("logged.wild.test").pop());
    assert_eq!((passed["client"].as_str(), passed["backend"].as_str()), (Some(CLIENT), Some("http-wild")));
    assert_eq!((passed["sni"].as_str(), passed["server"].as_str()), (Some("logged.wild.test"), Some("1")));
    until(PATIENCE, "the line of what is terminated", || !lines("/logged-once").is_empty());
    assert_eq!(lines("/logged-once")[0]["client"], CLIENT);
    assert_eq!(lines("discover-terminated").len(), 0, "once");
}
