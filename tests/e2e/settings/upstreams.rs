//! `tls` `reencrypt` with `verify` and `sni`, `proto`, `proxy-protocol`: how an upstream is spoken to.

use std::io::{Read as _, Write as _};
use std::thread;

use lab::http::Request;
use lab::{PATIENCE, light};

use super::scene::SCENE;

/// Over TLS to the balancer, what the upstream saw of it: its answer's lines.
#[track_caller]
fn assert_seen(host: &str, lines: &[(&str, &str)]) {
    let response = Request::get(host, "/").from("127.0.0.9").tls(host).send(SCENE.balancer.https()).unwrap();
    assert_eq!(response.status, 200, "{host}: {response:?}");
    for (name, value) in lines {
        assert_eq!(response.line(name), Some(*value), "{host}: {response:?}");
    }
}

#[test]
fn an_upstream_is_asked_for_the_right_name_over_tls() {
    let _turn = light();
    for backend in ["http-secure", "http-fixed", "http-nameless"] {
        let server = if backend == "http-nameless" { "nameless" } else { "secure" };
        SCENE.wait_check(backend, server, "UP", "L6OK");
    }
    let http1 = ("version", "1.1");
    assert_seen("secure.test", &[("sni", "secure.test"), http1]);
    assert_seen("a.wild.test", &[("sni", "a.wild.test"), http1]);
    assert_seen("any.fixed.test", &[("sni", "up.test"), http1]);
    assert_seen("unverified.test", &[("sni", "unverified.test"), http1]);
    assert_seen("quiet.test", &[("sni", ""), http1]);
    assert_seen("nameless.test", &[("sni", ""), http1]);
    let plain = Request::get("secure.test:8080", "/a?b=c").send(SCENE.balancer.http()).unwrap();
    assert_eq!((plain.status, plain.header("location")), (308, Some("https://secure.test/a?b=c")));
}

/// A certificate of another name, of another authority, and an authority that nobody has: never a request.
#[test]
fn an_upstream_that_cannot_be_believed_gets_nothing() {
    let _turn = light();
    for host in ["b.wild.test", "misnamed.test", "unbelieved.test", "nameless-other.test", "unknown.test"] {
        let response = Request::get(host, "/").tls(host).send(SCENE.balancer.https()).unwrap();
        assert_eq!(response.status, 503, "{host}: {response:?}");
    }
    assert_eq!(SCENE.stat("http-unbelieved", "secure")["status"], "no check", "it is there, and refused by TLS");
    let quarantined = SCENE.balancer.asked("/api/v1/quarantine").unwrap().body;
    assert!(quarantined.contains("no file no-such.pem in --ca-dir"), "{quarantined}");
}

#[test]
fn http2_is_spoken_in_the_clear_and_over_tls() {
    let _turn = light();
    SCENE.wait_check("http-clear-2", "h2c", "UP", "L7OK");
    SCENE.wait_check("http-secure-2", "h2", "UP", "L7OK");
    assert_seen("clear-2.test", &[("version", "2.0")]);
    assert_seen("clear-1.test", &[("version", "1.1")]);
    assert_seen("secure-2.test", &[("version", "2.0"), ("alpn", "h2"), ("sni", "secure-2.test")]);
}

#[test]
fn the_proxy_protocol_tells_of_the_client() {
    let _turn = light();
    for (backend, server) in [("http-proxied-1", "proxied"), ("http-proxied-2", "proxied"), ("http-sealed", "sealed")] {
        SCENE.wait_check(backend, server, "UP", "L7OK");
    }
    for host in ["proxied-1.test", "proxied-2.test", "sealed.test"] {
        assert_seen(host, &[("client", "127.0.0.9")]);
    }
    assert_seen("secure.test", &[("client", "127.0.0.1")]);
    for service in ["proxied-1", "proxied-2"] {
        SCENE.wait_check(&format!("tcp-{service}"), "proxied", "UP", "L7OK");
        let response = Request::get("x", "/").from("127.0.0.9").send(SCENE.tcp(service)).unwrap();
        assert_eq!(response.line("client"), Some("127.0.0.9"), "{service}: {response:?}");
    }
}

/// Text and binary are told apart by the first bytes (proxy-protocol.txt, 2.1 and 2.2).
#[test]
fn the_proxy_protocols_version_is_the_one_said() {
    let _turn = light();
    for (service, upstream, start) in
        [("head-1", "first", &b"PROXY TCP4 127."[..]), ("head-2", "second", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0")]
    {
        let listener = SCENE.bare[upstream].try_clone().unwrap();
        let seen = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut seen = Vec::new();
            // To the request's end: what is closed before it is read is reset.
            while !(seen.windows(5).any(|bytes| bytes == b"GET /") && seen.ends_with(b"\r\n\r\n")) {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                seen.extend(byte);
            }
            stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").unwrap();
            seen
        });
        assert_eq!(SCENE.http(service).status, 204, "{service}");
        let seen = seen.join().unwrap();
        assert!(seen.starts_with(start), "{service}: {}", seen.escape_ascii());
    }
}
