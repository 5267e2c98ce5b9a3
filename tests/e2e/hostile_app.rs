//! An app answers HAProxy's checks with hostile words. HAProxy keeps them, and confgen shows them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::thread::spawn;
use std::time::Duration;

use lab::{App, Balancer, Etcd, bin, light, until, write};

const DEADLINE: Duration = Duration::from_secs(30);

/// A byte that is no UTF-8, a terminal's sequence, its C1 form, a bidi override, and a quote for CSV.
const REASON: &[u8] = b"x\xff\x1b[2J\xc2\x9b2J\xe2\x80\xae\",\"y";

/// An app whose checks fail with these words.
fn fail_checks(reason: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(&[b"HTTP/1.1 500 ", reason, b"\r\nContent-Length: 0\r\n\r\n"].concat());
        }
    });
    address
}

/// The characters of an answer that move a cursor or turn the order of a text.
fn hidden(text: &str) -> Vec<char> {
    let is_hidden = |c: &char| (c.is_control() && *c != '\n') || ('\u{202a}'..='\u{202e}').contains(c);
    text.chars().filter(is_hidden).collect()
}

fn answer(balancer: &Balancer, path: &str) -> String {
    balancer.asked(path).unwrap().body
}

#[test]
fn the_words_of_a_failed_check_hide_no_other_upstream_and_are_shown_whole() {
    let _turn = light();
    let etcd = Etcd::start();
    let app = App::alone("shop-1");
    etcd.http_service("shop", "shop.test", &[&app]);
    etcd.put("http-services/evil/domain", "evil.test");
    etcd.put("http-services/evil/check", "http /");
    etcd.put("http-services/evil/upstreams/evil", fail_checks(REASON).to_string());
    etcd.put("http-services/evil/upstreams/\u{1b}[2J\u{9b}\u{202e}", "127.0.0.1:1");
    let balancer = Balancer::start(&etcd);
    balancer.wait_status(DEADLINE, "shop.test", "/", 200);
    until(DEADLINE, "the words of the check", || {
        let shown = answer(&balancer, "/api/v1/upstreams?service=http-evil");
        if shown.contains("L7STS") && shown.contains("[2J") { Ok(()) } else { Err(shown) }
    });

    // The other service is judged as ever.
    let check = Command::new(bin("discoverctl")).args(["--endpoints", &etcd.endpoints(), "check", "shop"]).output();
    let check = check.unwrap();
    assert_eq!(check.status.code(), Some(0), "{check:?}");
    assert!(answer(&balancer, "/metrics").contains("\nconfgen_balanced_upstreams 1\n"));

    // HAProxy's own words about a file of the operator's are an app's match.
    let mine = [b"frontend mine\n    un\x1b[2J\xc2\x9b\xe2\x80\xae\xffknown\n".as_slice()].concat();
    write(balancer.folder().join("conf.d/mine.cfg"), mine);
    until(DEADLINE, "/ready to name the word", || {
        let ready = answer(&balancer, "/ready");
        if ready.contains("known") { Ok(()) } else { Err(ready) }
    });
    for path in
        ["/", "/ready", "/metrics", "/api/v1/status", "/api/v1/upstreams", "/api/v1/quarantine", "/api/v1/balancer"]
    {
        let shown = answer(&balancer, path);
        assert_eq!(hidden(&shown), [], "{path}: {shown:?}");
    }
    assert!(answer(&balancer, "/").contains(r"\u{1b}[2J"), "the page names the characters");
}
