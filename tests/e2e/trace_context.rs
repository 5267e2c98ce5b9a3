//! W3C Trace Context: a client's trace goes on unchanged, and HAProxy begins one if there is none.

use std::collections::BTreeMap;

use lab::http::Request;
use lab::{Ground, PATIENCE, Syslog, light, until};
use serde_json::Value;

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The headers that the upstream got.
fn sent(ground: &Ground, headers: &[(&str, &str)]) -> BTreeMap<String, Vec<String>> {
    let request = headers.iter().fold(Request::get(Ground::HOST, "/echo"), |it, (name, value)| it.header(name, value));
    let answer = request.send(ground.balancer.http()).unwrap();
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

/// A trace that HAProxy began: version 00, sampled, and neither id is zero.
#[track_caller]
fn assert_new(traces: &[String]) {
    let [trace] = traces else { panic!("{traces:?}") };
    let parts: Vec<&str> = trace.split('-').collect();
    let is_hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [2, 32, 16, 2], "{trace}");
    assert!(parts.iter().all(|part| is_hex(part)) && parts[0] == "00" && parts[3] == "01", "{trace}");
    assert!(parts[1..3].iter().all(|part| part.bytes().any(|byte| byte != b'0')), "{trace}");
}

#[test]
fn a_trace_is_passed_on_or_begun_and_logged() {
    let _turn = light();
    let syslog = Syslog::start();
    let ground = Ground::build().http("shop", Ground::HOST, &["shop"]).with(|setup| setup.log(&syslog)).start();

    let later = format!("cc{}-more", &TRACE[2..]);
    for valid in [TRACE, &later] {
        let got = sent(&ground, &[("TraceParent", valid), ("tracestate", "a=1"), ("tracestate", "b=2")]);
        assert_eq!(got["traceparent"], [valid]);
        assert_eq!(got["tracestate"], ["a=1", "b=2"]);
    }

    let zero = [
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
    ];
    let shapes = [
        "",
        "x",
        &TRACE[..54],
        &format!("{TRACE}-more"),
        &format!("ff{}", &TRACE[2..]),
        &TRACE.to_uppercase(),
        &TRACE.replace('-', "_"),
        &format!("{TRACE},{TRACE}"),
        "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
    ];
    for invalid in zero.into_iter().chain(shapes) {
        let got = sent(&ground, &[("traceparent", invalid), ("tracestate", "a=1")]);
        assert_new(&got["traceparent"]);
        assert_ne!(got["traceparent"], [invalid]);
        assert!(!got.contains_key("tracestate"), "{invalid}: {got:?}");
    }
    assert_new(&sent(&ground, &[("traceparent", TRACE), ("traceparent", TRACE)])["traceparent"]);

    let (one, other) = (sent(&ground, &[]), sent(&ground, &[]));
    assert_new(&one["traceparent"]);
    assert_ne!(one["traceparent"][0][3..35], other["traceparent"][0][3..35], "a trace of its own");

    // The log names a client's trace. One that began here has the request's id.
    assert_eq!(logged(&syslog, &sent(&ground, &[("traceparent", TRACE)])), TRACE);
    for got in [one, other] {
        assert_eq!(got["traceparent"][0][3..35], got["x-request-id"][0].replace('-', ""));
        assert_eq!(logged(&syslog, &got), "-");
    }
}

#[test]
fn behind_a_proxy_that_names_requests_the_log_has_every_trace() {
    let _turn = light();
    let syslog = Syslog::start();
    let build = Ground::build().http("shop", Ground::HOST, &["shop"]).flags(&["--trusted-proxies", "127.0.0.0/8"]);
    let ground = build.with(|setup| setup.log(&syslog)).start();
    for (id, headers) in
        [("a", &[("X-Request-Id", "a")][..]), ("b", &[("X-Request-Id", "b"), ("traceparent", TRACE)][..])]
    {
        let got = sent(&ground, headers);
        assert_new(&got["traceparent"]);
        assert_eq!((&*got["x-request-id"][0], got["traceparent"][0] == TRACE), (id, id == "b"));
        assert_eq!(logged(&syslog, &got), got["traceparent"][0]);
    }
}

#[test]
fn with_the_switch_off_headers_pass_as_they_come_and_the_log_has_no_trace() {
    let _turn = light();
    let syslog = Syslog::start();
    let build = Ground::build().http("shop", Ground::HOST, &["shop"]).flags(&["--trace-context", "off"]);
    let ground = build.with(|setup| setup.log(&syslog)).start();
    let none = sent(&ground, &[]);
    assert!(!none.contains_key("traceparent"), "{none:?}");
    for odd in [TRACE, "x"] {
        let got = sent(&ground, &[("traceparent", odd), ("tracestate", "a=1")]);
        assert_eq!((&*got["traceparent"][0], &*got["tracestate"][0]), (odd, "a=1"));
        let line = find_line(&syslog, &got);
        assert!(line.get("traceparent").is_none() && line["status"] == 200, "{line}");
    }
}

/// The trace in the log's line of a request.
fn logged(syslog: &Syslog, sent: &BTreeMap<String, Vec<String>>) -> String {
    find_line(syslog, sent)["traceparent"].as_str().unwrap().to_owned()
}

/// The log's line of a request.
fn find_line(syslog: &Syslog, sent: &BTreeMap<String, Vec<String>>) -> Value {
    until(PATIENCE, "the line of the log", || {
        let lines = syslog.lines();
        let lines = lines.iter().filter_map(|line| line.split_once("]: ").map(|(_, text)| text.to_owned()));
        let mut parsed = lines.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        parsed.find(|line| line["id"] == sent["x-request-id"][0].as_str())
    })
}
