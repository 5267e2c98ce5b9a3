//! Whatever is in the store: a valid file every time, and the good services served.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use lab::{Balancer, Ground, PATIENCE, PREFIX, free_port, light, until};

/// So that a failure can be had again.
const SEED: u64 = 20_260_214;

/// `haproxy -c` accepts the files as they lie there, without a warning.
#[track_caller]
fn assert_valid(balancer: &Balancer) {
    let output = Command::new("haproxy")
        .arg("-c")
        .arg("-f")
        .arg(balancer.folder().join("conf.d"))
        .arg("-f")
        .arg(balancer.haproxy_cfg())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "haproxy -c refuses the file: {said}");
    // It reads the servers' states too, and warns about each that was down: on a busy machine a restart came after a check.
    let of_the_file = said.lines().filter(|line| !line.contains("changed from server-state after a reload"));
    for word in ["[WARNING]", "[ALERT]"] {
        assert!(!of_the_file.clone().any(|line| line.contains(word)), "haproxy -c isn't content: {said}");
    }
}

#[test]
fn empty() {
    let _turn = light();
    let Ground { balancer, etcd: _etcd, .. } = Ground::build().start();
    balancer.wait_status(PATIENCE, "anything.test", "/", 404);
    assert_valid(&balancer);
}

#[test]
fn one_key_of_garbage() {
    let _turn = light();
    let broken = ("upstreams/broken", "127.0.0.1:80 check\n  server evil 127.0.0.1:1\u{7}");
    let build = Ground::build().http("shop", "shop.test", &["shop-1"]).set("http-services/shop", &[broken]);
    let Ground { etcd, balancer, apps, .. } = build.start();
    assert!(!balancer.file().contains("evil"), "the garbage got into the file");
    assert_valid(&balancer);

    // The same while it runs, and what comes after it is not held up.
    etcd.put("http-services/blog/domain", "\u{0}'\"; quit\n");
    etcd.put("http-services/wiki/domain", "wiki.test");
    etcd.put("http-services/wiki/upstreams/shop-1", apps[0].address.to_string());
    balancer.wait_status(PATIENCE, "wiki.test", "/", 200);
    balancer.wait_in_sync(PATIENCE);
    assert_valid(&balancer);
}

#[test]
fn the_log_names_a_bad_value_that_changes_nothing() {
    let _turn = light();
    let build = Ground::build().http("shop", "shop.test", &["shop-1"]);
    let build = build.set("http-services/shop", &[("balance", "at the start")]);
    let Ground { etcd, balancer, apps: _apps, .. } = build.start();
    balancer.wait_logged("key quarantined key=http-services/shop/balance");

    let before = balancer.file();
    etcd.put("http-services/shop/domain", "what is \"this\"");
    balancer.wait_logged("key quarantined key=http-services/shop/domain");
    etcd.put("http-services/shop/domain", "shop.test");
    balancer.wait_logged("quarantine ended key=http-services/shop/domain");
    assert_eq!(balancer.file(), before);
}

#[test]
fn ten_thousand_random_keys() {
    let _turn = light();
    let build = Ground::build().http("shop", "shop.test", &["shop-1"]);
    let mut random = fastrand::Rng::with_seed(SEED);
    let ports = std::array::from_fn(|_| free_port());
    build.etcd.put_all(std::iter::repeat_with(|| random_entry(&mut random, ports)).take(10_000));
    assert!(build.etcd.keys("").len() > 9_000, "few of the keys are alike");
    let Ground { etcd, balancer, apps, .. } = build.start();
    assert_valid(&balancer);

    // The store goes on to be followed.
    etcd.http_service("blog", "blog.test", &[&apps[0]]);
    balancer.wait_status(PATIENCE, "blog.test", "/", 200);
    assert_valid(&balancer);
    etcd.delete_all(PREFIX);
    until(PATIENCE, "the service to go", || !balancer.file().contains("http-shop"));
    balancer.wait_in_sync(PATIENCE);
    assert_valid(&balancer);
}

/// The addresses to bind are this host's own and free: others are no matter of the file, but of HAProxy's start.
fn random_entry(random: &mut fastrand::Rng, ports: [u16; 3]) -> (String, Vec<u8>) {
    let [plain, all, own] = ports;
    let key = random_key(random);
    let value = match random_value(random) {
        address if key.ends_with("/ports") && address.starts_with(b"172.") => format!("*:{all}").into_bytes(),
        _ if key.ends_with("/ports") && random.bool() => format!("127.0.0.1:{own}, {plain}").into_bytes(),
        value => value,
    };
    (key, value)
}

/// Keys as they come, from almost right to noise; never one of the good service's own.
fn random_key(random: &mut fastrand::Rng) -> String {
    let kinds = ["http-services", "tcp-services", "services", "balancers", "control", "", "HTTP-services"];
    #[rustfmt::skip]
    let leaves = [
        "domain", "path", "url_reg", "sslpass", "tls", "ports", "balance", "check", "sticky", "allow",
        "maxconn", "slowstart", "hsts", "proxy-protocol", "proto", "verify", "sni", "profile", "active",
        "preview", "color", "upstreams/a", "upstreams/b", "upstreams/", "upstreams/a/b", "overrides/a",
        "overrides/zz", "nonsense", "",
    ];
    let kind = random.choice(kinds).unwrap();
    let leaf = random.choice(leaves).unwrap();
    let service = match random.u8(..10) {
        0 => noise(random, 12),
        1 => "x".repeat(random.usize(1..400)),
        _ => format!("s{}", random.u16(..600)),
    };
    match random.u8(..20) {
        0 => noise(random, 40),
        1 => format!("{kind}/{service}"),
        _ => format!("{kind}/{service}/{leaf}").trim_start_matches('/').to_owned(),
    }
}

/// Values as they come: right, almost right, hostile, noise.
fn random_value(random: &mut fastrand::Rng) -> Vec<u8> {
    #[rustfmt::skip]
    let right = [
        "a.test", "*.b.test", "c.test, d.test", "/", "/api", "^/old", "both", "terminate", "off", "passthrough",
        "reencrypt", "blue", "blue=90 green=10", "leastconn", "tcp", "http GET /health 200", "cookie",
        "10.0.0.0/8", "100", "30s", "v2", "h2", "on", "172.17.8.101:8000", "[::1]:80",
        r#"{"address":"172.17.8.101:8000","weight":100,"color":"blue","state":"ready"}"#,
        r#"{"state":"drain"}"#,
    ];
    #[rustfmt::skip]
    let hostile = [
        "a.test\n  bind :1", "127.0.0.1:80 check", "unix@/tmp/x", "abns@x", "/run/haproxy/admin.sock",
        "host:80", "1.2.3.4:0", "1.2.3.4:99999", "1.2.3.4", "(((((", "a{1000000}", "'; quit #", "\"$HOME\"",
        "%[env(HOME)]", "\\", "{", r#"{"address":"1.2.3.4:5","weight":-1}"#, r#"{"address":7}"#, "..", "*",
        "*.*", "blue=999999999999",
    ];
    match random.u8(..10) {
        0..5 => random.choice(right).unwrap().as_bytes().to_vec(),
        5..8 => random.choice(hostile).unwrap().as_bytes().to_vec(),
        8 => format!("172.17.{}.{}:{}", random.u8(..), random.u8(..), random.u16(1..)).into_bytes(),
        _ => (0..random.usize(..300)).map(|_| random.u8(..)).collect(),
    }
}

fn noise(random: &mut fastrand::Rng, length: usize) -> String {
    (0..random.usize(1..length)).map(|_| random.char(..)).collect()
}
