//! Headers in which a proxy describes a client: only trusted proxies set them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;

use lab::{Balancer, Ground, light};

/// All of 127.0.0.0/8 is this machine's.
const TRUSTED: &str = "127.0.0.2";
const STRANGER: &str = "127.0.0.1";

/// The page whose table names the headers.
const PAGE: &str = include_str!("../../docs/serving.md");

/// What the test's client writes into every header.
const FORGED: &str = "6.6.6.6";

/// Headers that look alike and are the client's to set.
const INNOCENT: [&str; 9] = [
    "X-Shipping-Address",
    "X-Original-Filename",
    "X-HTTP-Method-Override",
    "X-Client-Id",
    "X-Device-Ip-Count",
    "X-Hostname",
    "Via",
    "CF-Ray",
    "Remote-User",
];

/// The headers that the page's table names.
fn described() -> Vec<&'static str> {
    let section = PAGE.split("## What upstreams are told").nth(1).unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| about |"));
    let words = rows.take(5).flat_map(|row| row.split('`').skip(1).step_by(2));
    // In lower case the page writes parts of names.
    let names: Vec<_> = words.filter(|word| word.starts_with(char::is_uppercase) && !word.contains('…')).collect();
    assert!(names.len() > 50, "{names:?}");
    names
}

/// How a client may speak: what it is called, and curl's arguments.
fn ways(balancer: &Balancer) -> Vec<(&'static str, Vec<String>)> {
    let target = |scheme: &str, address: SocketAddr| {
        let resolve = format!("shop.test:{}:{}", address.port(), address.ip());
        ["--resolve".to_owned(), resolve, format!("{scheme}://shop.test:{}/echo", address.port())]
    };
    let (http, https) = (target("http", balancer.http()), target("https", balancer.https()));
    [
        ("HTTP/1.1", "--http1.1", &http),
        ("HTTP/2 in clear", "--http2-prior-knowledge", &http),
        ("HTTP/1.1 over TLS", "--http1.1", &https),
        ("HTTP/2 over TLS", "--http2", &https),
    ]
    .map(|(name, protocol, target)| (name, [&[protocol.to_owned()], &target[..]].concat()))
    .into()
}

/// The forged headers that reach the upstream from this client.
fn passed_on(way: &[String], from: &str, names: &[String]) -> Vec<String> {
    let headers = names.iter().flat_map(|name| ["-H".to_owned(), format!("{name}: {FORGED}")]);
    let mut curl = Command::new("curl");
    let output = curl.args(["-sSk", "--max-time", "20", "--interface", from]).args(way).args(headers).output().unwrap();
    let echoed: BTreeMap<String, Vec<String>> = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{way:?} from {from}: {error}: {output:?}"));
    let forged = echoed.into_iter().filter(|(_, values)| values.iter().any(|value| value.contains(FORGED)));
    forged.map(|(name, _)| name).collect()
}

#[test]
fn only_a_trusted_proxy_describes_the_client() {
    let _turn = light();
    let ground = Ground::build()
        .http("shop", "shop.test", &["shop"])
        .set("http-services/shop", &[("tls", "both")])
        .certificate(&["shop.test"])
        .flags(&["--trusted-proxies", TRUSTED])
        .start();

    let described = described();
    let spelled = |name: &&str| [(*name).to_owned(), name.replace('-', "_"), name.replacen('-', "_", 1).to_lowercase()];
    for (way, arguments) in ways(&ground.balancer) {
        // HAProxy takes 101 lines.
        for names in described.chunks(25) {
            let names: Vec<String> = names.iter().flat_map(spelled).collect();
            let passed_on = passed_on(&arguments, STRANGER, &names);
            assert!(passed_on.is_empty(), "{way}: a stranger's {passed_on:?} reached the upstream");
        }
        for (from, names) in [(STRANGER, &INNOCENT[..]), (TRUSTED, &INNOCENT[..]), (TRUSTED, &described[..])] {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            let passed_on = passed_on(&arguments, from, &names);
            let missing: Vec<_> = names.iter().filter(|name| !passed_on.contains(&name.to_lowercase())).collect();
            assert!(missing.is_empty(), "{way}, from {from}: {missing:?} did not reach the upstream");
        }
    }
}
