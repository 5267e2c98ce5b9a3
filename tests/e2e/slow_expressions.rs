//! A `url_reg` that would take HAProxy too long.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use lab::{App, Balancer, Etcd, PATIENCE, bin, cpu_seconds, light, until};

/// Exponential, and its worst URL: each took PCRE2 10 to 40 ms before it gave up.
const SLOW: &str = "^/(a|a)*[bc]$";
const WORST: &str = "/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!";

const REASON: &str = "`(a|a)*`: HAProxy would take too long";

fn discoverctl(etcd: &Etcd, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(bin("discoverctl"));
    let output = command.args(arguments).args(["--endpoints", &etcd.endpoints()]).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_slow_expression_is_refused_and_named() {
    let _turn = light();
    let etcd = Etcd::start();
    let app = App::alone("old");
    for (service, expression) in [("slow", SLOW), ("old", "^/old/.*\\.html$"), ("files", "^/files/")] {
        etcd.put(&format!("http-services/{service}/url_reg"), expression);
        etcd.put(&format!("http-services/{service}/upstreams/1"), app.address.to_string());
    }
    let balancer = Balancer::start(&etcd);
    balancer.wait_status(PATIENCE, "any.test", "/old/x.html", 200);
    until(PATIENCE, "the quarantine to name the part", || {
        let all = balancer.quarantine();
        let reason = all["http-services/slow/url_reg"].as_str().unwrap_or_default();
        if reason.contains(REASON) { Ok(()) } else { Err(all.to_string()) }
    });
    balancer.wait_settled(PATIENCE);

    let (_, said) = discoverctl(&etcd, &["lint"]);
    assert!(said.contains(REASON), "{said}");
    let (is_written, said) = discoverctl(&etcd, &["set", "files", "url_reg", SLOW]);
    assert!(!is_written && said.contains(REASON), "{said}");
    balancer.wait_status(PATIENCE, "any.test", "/files/x", 200);

    // HAProxy compares the beginning of a long URL.
    let long = "x".repeat(5_000);
    for (target, status) in [(format!("/files/{long}"), 200), (format!("/old/{long}.html"), 404)] {
        assert_eq!(balancer.get("any.test", &target).status, status);
    }

    let before = cpu_seconds(balancer.worker());
    for _ in 0..50 {
        assert_eq!(balancer.get("any.test", WORST).status, 404);
    }
    let took = cpu_seconds(balancer.worker()) - before;
    assert!(took < 0.25, "50 requests took HAProxy {took} s");
}
