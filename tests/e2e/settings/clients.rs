//! `allow`, `hsts`: what a client gets.

use lab::http::Request;
use lab::light;

use super::scene::SCENE;

#[test]
fn only_allowed_clients_come_in_whatever_the_headers_say() {
    let _turn = light();
    for (client, http) in [("127.0.0.9", 200), ("127.0.2.77", 200), ("127.0.0.8", 403), ("127.0.3.1", 403)] {
        for forged in ["127.0.0.9", "127.0.0.8"] {
            let request = Request::get("allowed.test", "/").from(client).header("X-Forwarded-For", forged);
            assert_eq!(request.send(SCENE.balancer.http()).unwrap().status, http, "{client} as {forged}");
            let tcp = request.send(SCENE.tcp("allowed"));
            assert_eq!(tcp.is_ok(), http == 200, "{client}: {tcp:?}");
        }
    }
}

#[test]
fn hsts_is_said_over_https_alone() {
    let _turn = light();
    let hsts = |response: &lab::http::Response| response.header("strict-transport-security").map(str::to_owned);
    let strict = SCENE.https("strict");
    assert_eq!(hsts(&strict).as_deref(), Some("max-age=15552000; includeSubDomains; preload"), "{strict:?}");
    assert_eq!(hsts(&SCENE.https("forgetful")).as_deref(), Some("max-age=0"));
    for plain in [SCENE.http("strict"), SCENE.http("forgetful"), SCENE.https("alive")] {
        assert_eq!((plain.status, hsts(&plain)), (200, None));
    }
}
