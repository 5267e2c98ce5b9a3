//! `check`: what HAProxy finds up, and why.

use lab::http::Request;
use lab::light;

use super::scene::SCENE;

#[test]
fn an_upstream_is_checked_as_said() {
    let _turn = light();
    for (backend, server, status, check) in [
        ("http-turns", "one", "UP", "L4OK"),
        ("http-alive", "one", "UP", "L7OK"),
        ("http-sick", "one", "DOWN", "L7STS"),
        ("http-named", "named", "UP", "L7OK"),
        ("http-dead", "nobody", "DOWN", "L4CON"),
        ("http-unchecked", "nobody", "no check", ""),
        ("http-proxied-1", "proxied", "UP", "L7OK"),
        ("http-proxied-2", "proxied", "UP", "L7OK"),
        ("http-clear-2", "h2c", "UP", "L7OK"),
        ("http-secure", "secure", "UP", "L6OK"),
        ("http-fixed", "secure", "UP", "L6OK"),
        ("http-secure-2", "h2", "UP", "L7OK"),
        ("http-sealed", "sealed", "UP", "L7OK"),
        ("http-misnamed-check", "secure", "DOWN", "L6RSP"),
        ("http-nameless", "nameless", "UP", "L6OK"),
        ("tcp-turns", "one", "UP", "L4OK"),
        ("tcp-alive", "one", "UP", "L7OK"),
        ("tcp-sick", "one", "DOWN", "L7STS"),
        ("tcp-dead", "nobody", "DOWN", "L4CON"),
        ("tcp-unchecked", "nobody", "no check", ""),
        ("tcp-proxied-1", "proxied", "UP", "L7OK"),
        ("tcp-proxied-2", "proxied", "UP", "L7OK"),
    ] {
        SCENE.wait_check(backend, server, status, check);
    }
    for service in ["alive", "named"] {
        let response = Request::get(&format!("{service}.test"), "/").send(SCENE.balancer.http()).unwrap();
        assert_eq!(response.status, 200, "{service}: {response:?}");
    }
    for service in ["sick", "dead", "unchecked", "misnamed-check"] {
        let response = SCENE.https(service);
        assert_eq!(response.status, 503, "{service}: {response:?}");
    }
}
