//! Hostile keys and values: no panic, and nothing accepted that could break a line or a command.

mod safety;

use discovery::SettingName;
use proptest::prelude::*;

/// Pieces that good and hostile values are made of.
const PIECES: &[&str] = &[
    "a.com",
    "*.b.com",
    "/api",
    "10.0.0.1:80",
    "[::1]:80",
    "3306",
    "*:53",
    "10.0.0.0/8",
    "both",
    "passthrough",
    "http",
    "GET",
    "/health",
    "200-299",
    "blue=9",
    "green",
    "30s",
    "180d",
    "leastconn",
    "v2",
    "{\"address\":\"",
    "{\"id\":\"",
    "\",\"host\":\"",
    "\",\"since\":\"",
    "2026-11-30T10:13:06Z",
    "\"}",
    "unix@/x",
    "abns@x",
    " check",
    "\n",
    "\r\n",
    ";",
    "#",
    "\"",
    "'",
    "\\",
    "$HOME",
    "${X}",
    "%[src]",
    " ",
    ",",
    "\t",
    "\0",
    "é",
    "=",
    "-",
    "..",
    "server x 1.2.3.4:5",
    "(?=a)",
    "[a-z]+",
    "^/x$",
    "include-subdomains",
    "internal-ca.pem",
];

fn value() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop::collection::vec(prop::sample::select(PIECES), 0..6).prop_map(|p| p.concat().into_bytes());
    prop_oneof![4 => pieces, 1 => prop::collection::vec(any::<u8>(), 0..64)]
}

fn key() -> impl Strategy<Value = String> {
    let folder = prop::sample::select(&["http-services", "tcp-services", "services"][..]);
    let service = prop_oneof![4 => Just("shop".to_owned()), 1 => "[ -~]{0,6}"];
    let setting = prop::sample::select(SettingName::ALL).prop_map(|name| name.to_string());
    let upstream = prop_oneof![
        Just("upstreams/n1".to_owned()),
        "upstreams/[ -~]{0,6}",
        "overrides/[a-z]{1,2}",
        "slots/[0-9+ ]{0,6}",
        "standby/[ -~]{0,6}"
    ];
    (folder, service, prop_oneof![setting, upstream]).prop_map(|(f, s, rest)| format!("{f}/{s}/{rest}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn nothing_accepted_breaks_a_line(entries in prop::collection::vec((key(), value()), 0..12)) {
        safety::check(&entries);
    }
}
