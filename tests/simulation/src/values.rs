//! The keys and values that operators write. Some must never be applied.

use registry::Write;

/// Keys that an operator writes, with their values.
pub const KEYS: [(&str, &[&str]); 24] = [
    ("http-services/a/domain", &["a.test", "a.test x.test", "*.w.test a.test", "x.test"]),
    ("http-services/a/path", &["/", "/x", "/x /y"]),
    ("http-services/a/tls", &["both", "passthrough"]),
    ("http-services/a/balance", &["roundrobin", "leastconn", "uri"]),
    ("http-services/a/active", &["blue", "green"]),
    ("http-services/a/preview", &["10.0.0.0/8"]),
    ("http-services/a/check", &["/health", "off", "/refused"]),
    ("http-services/a/overrides/1", &[r#"{"state":"drain"}"#, r#"{"state":"maint"}"#, r#"{"weight":7}"#]),
    ("http-services/a/overrides/2", &[r#"{"state":"drain"}"#, r#"{"weight":0}"#]),
    (
        "http-services/a/upstreams/hand",
        &["10.0.0.50:80", r#"{"address":"10.0.0.50:81","color":"green"}"#, "10.0.0.2:80"],
    ),
    ("http-services/a/upstreams/old", &[r#"{"address":"10.0.0.52:80","color":"blue"}"#]),
    ("http-services/b/domain", &["b.test", "b.test x.test", "q.w.test", "a.test b.test"]),
    ("http-services/b/path", &["/", "/y"]),
    ("http-services/b/balance", &["roundrobin", "source"]),
    ("http-services/b/sticky", &["source", "cookie"]),
    ("http-services/b/upstreams/hand", &["10.0.0.51:80", r#"{"address":"10.0.0.51:80","weight":0}"#]),
    ("http-services/c/domain", &["c.test", "x.test", "b.test c.test", "*.test"]),
    ("http-services/c/path", &["/", "/y"]),
    ("http-services/c/tls", &["passthrough"]),
    ("http-services/c/upstreams/hand", &["10.0.0.53:80", "10.0.0.4:80"]),
    ("tcp-services/d/ports", &["3306", "3307", "3306 3307"]),
    ("tcp-services/d/balance", &["leastconn"]),
    ("tcp-services/e/ports", &["3306", "3308"]),
    ("tcp-services/e/upstreams/hand", &["10.0.0.54:3306"]),
];

/// The keys that are there at first.
pub const FIRST: [(&str, &str); 3] =
    [("http-services/a/domain", "a.test"), ("http-services/b/domain", "b.test"), ("tcp-services/d/ports", "3306")];

/// Services that are written in one transaction.
pub const WHOLE: [&[(&str, &str)]; 3] = [
    &[("http-services/c/domain", "c.test"), ("http-services/c/upstreams/hand", "10.0.0.53:80")],
    &[("tcp-services/e/ports", "3308"), ("tcp-services/e/upstreams/hand", "10.0.0.54:3306")],
    &[("http-services/b/domain", "b.test"), ("http-services/b/path", "/"), ("http-services/b/balance", "roundrobin")],
];

/// The announcers' services, ids, addresses and whether they take an id over. The last one has the id of the first.
pub const ANNOUNCERS: [(&str, &str, &str, bool); 6] = [
    ("http-services/a/domain", "1", "10.0.0.1:80", false),
    ("http-services/a/domain", "2", "10.0.0.2:80", false),
    ("http-services/a/domain", "3", "10.0.0.3:80", false),
    ("http-services/b/domain", "1", "10.0.0.4:80", false),
    ("tcp-services/d/ports", "1", "10.0.0.5:3306", false),
    ("http-services/a/domain", "1", "10.0.0.9:80", true),
];

/// The hosts and paths that clients ask for. A name that begins with `tcp-` is a port's section.
pub const REQUESTS: [(&str, &str); 8] = [
    ("a.test", "/"),
    ("x.test", "/x"),
    ("x.test", "/y/z"),
    ("b.test", "/"),
    ("q.w.test", "/"),
    ("c.test", "/"),
    ("tcp-d", ""),
    ("tcp-e", ""),
];

/// Values that no key takes: bytes that are no text, a character that can't be seen, a `;`, and one that is too long.
pub fn rejected_values() -> [Vec<u8>; 4] {
    [b"\xff\x00".to_vec(), "\u{202e}evil".into(), b"a;b".to_vec(), vec![b'a'; 20_000]]
}

/// True for one of those values.
pub fn is_rejected_value(value: &[u8]) -> bool {
    let is_cut = value.starts_with(b"\0cut from ");
    is_cut || value.len() == 20_000 || value == b"\xff\x00" || value == "\u{202e}evil".as_bytes() || value == b"a;b"
}

/// A write without a lease.
pub fn put(key: &str, value: impl Into<Vec<u8>>) -> Write {
    Write::Put { key: key.to_owned(), value: value.into(), lease: None }
}
