//! A store full of hostile keys and values: no line or command of theirs, no service but their own touched, no panic; and
//! once they are gone, all is as it was.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use etcd_client::{DeleteOptions, Txn, TxnOp};
use lab::load::{Kind, Plan};
use lab::{App, Balancer, Etcd, Ground, Mirror, PATIENCE, PREFIX, free_port, medium, resident, until};

/// A debug build takes in 100,000 refused keys, and writes a log line for each. That is its work for a minute, beside others.
const IN_SYNC: Duration = Duration::from_secs(240);

/// How many keys there are in all.
const KEYS: usize = 100_000;

/// etcd's `--max-txn-ops` is 128 unless told.
const TXN_OPS: usize = 128;

/// Below etcd's 1.5 MiB a request.
const TXN_SIZE: usize = 1 << 20;

/// What the keys themselves hold is about 30 MB; confgen keeps each with its reason, and a debug build's own code is in
/// there too.
const MEMORY: u64 = 600 << 20;

const SETTINGS: [&str; 22] = [
    "domain",
    "path",
    "url_reg",
    "sslpass",
    "tls",
    "ports",
    "balance",
    "check",
    "sticky",
    "allow",
    "maxconn",
    "slowstart",
    "hsts",
    "proxy-protocol",
    "proto",
    "verify",
    "sni",
    "profile",
    "active",
    "preview",
    "upstreams/a",
    "overrides/a",
];

fn values() -> Vec<Vec<u8>> {
    let many = |count: usize, word: &dyn Fn(usize) -> String| (0..count).map(word).collect::<Vec<_>>().join(" ");
    let nested = |depth: usize| format!("{}{}", r#"{"address":"#.repeat(depth), "}".repeat(depth));
    let mut values: Vec<Vec<u8>> = [
        "",
        " ",
        "\n",
        "\0",
        ";",
        "#",
        "\"",
        "'",
        "\\",
        "{",
        "[]",
        "null",
        "-1",
        "0",
        "999999999999999999999999999999",
        "1e999",
        "evil.test\n    server evil 127.0.0.1:1",
        "evil.test\r\nbackend http-evil",
        "evil.test # x",
        "evil.test;show info",
        "a.test\u{2028}b.test",
        "\u{202e}tset",
        "$HOME",
        "%[env(HOME)]",
        "\"$(id)\"",
        "../../etc/passwd",
        "{ nbsrv }",
        "unix@/tmp/evil.sock",
        "abns@evil",
        "/run/haproxy/admin.sock",
        "fd@3",
        "sockpair@3",
        "127.0.0.1:1 check",
        "127.0.0.1:1 addr 127.0.0.1",
        "127.0.0.1:1\tbackup",
        "localhost:80",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "+127.0.0.1:1",
        "127.0.0.1",
        "[::1%lo]:80",
        "127.0.0.1:1 ssl verify none",
        "http GET /\r\nX:\u{20}y",
        "http GET /;quit",
        "http GET /\" 200",
        "cookie evil insert",
        "source 1.2.3.4",
        "10.0.0.0/8 }",
        "0.0.0.0/0\n",
        "blue=90\n",
        "blue green=1;x",
        "(a+)+$",
        "a{1000}{1000}",
        "^/%[src]",
        "30s\n",
        "99999999999999d",
        "max-age=1\r\nSet-Cookie: x=y",
        "v2\n",
        "h2 verify none",
        "mine\n",
        "http-shop",
        r#"{"address":"127.0.0.1:1\n    server evil 127.0.0.1:2"}"#,
        r#"{"address":"127.0.0.1:1","weight":1e400}"#,
        r#"{"address":"127.0.0.1:1","weight":-1}"#,
        r#"{"address":"127.0.0.1:1","state":"ready;quit"}"#,
        r#"{"address":"unix@/tmp/x"}"#,
        r#"{"state":"maint\n"}"#,
        r#"{"weight":99999999999}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    values.push(b"\xff\xfe\x00\x80 check\n".to_vec());
    values.push(nested(2_000).into_bytes());
    // Good in themselves, and many: hosts of somebody else among them.
    values.push(many(1_500, &|n| format!("d{n}.many")).into_bytes());
    values.push(many(3_000, &|n| format!("/{n}")).into_bytes());
    values.push(many(300, &|n| format!("127.77.0.1:{}", 2_000 + n)).into_bytes());
    values.push(format!("{} www.{}", Ground::HOST, Ground::HOST).into_bytes());
    values
}

/// Each value at each setting, in services of their own; and keys that are hostile themselves.
fn entries() -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut entries = BTreeMap::new();
    let mut put = |key: Vec<u8>, value: &[u8]| entries.insert([PREFIX.as_bytes(), &key].concat(), value.to_vec());
    for (number, value) in values().iter().enumerate() {
        for (kind, short) in [("http-services", "h"), ("tcp-services", "t"), ("services", "o")] {
            for leaf in SETTINGS {
                put(format!("{kind}/{short}{number}/{leaf}").into_bytes(), value);
            }
        }
    }
    // Hosts with paths: each with each would be millions.
    let pairs = |word: &dyn Fn(usize) -> String| (0..3_000).map(word).collect::<Vec<_>>().join(" ").into_bytes();
    put(b"http-services/bomb/domain".to_vec(), &pairs(&|n| format!("{n}.b")));
    put(b"http-services/bomb/path".to_vec(), &pairs(&|n| format!("/{n}")));
    for key in [
        "../../x",
        "http-services/../../x/domain",
        "http-services/shop\n/domain",
        "http-services/shop;quit/domain",
        "http-services/shop shop/domain",
        "http-services/shop\u{0}/domain",
        "http-services//domain",
        "http-services/shop/",
        "http-services/shop/upstreams/a\nb",
        "http-services/shop/upstreams/../../x",
        "http-services/shop/upstreams/a;quit",
        "http-services/shop/upstreams/evil/b",
        "http-services/shop#/domain",
        "services/shop /domain",
        "tcp-services/*/ports",
        "balancers/../x",
        "balancers/a b",
        "control/accept-store/x",
        "//",
        "\u{202e}",
        "http-services/\"/domain",
    ] {
        put(key.as_bytes().to_vec(), b"evil.test");
    }
    put([b"http-services/".as_slice(), &[b'x'; 10_000], b"/domain"].concat(), b"long.test");
    put(vec![b'/'; 10_000], b"slashes");
    put(b"http-services/\xff\xfe/domain".to_vec(), b"bytes.test");
    put(b"http-services/shop/upstreams/\xff".to_vec(), b"127.0.0.1:1");
    // What is left are many small ones: unknown, refused, and imposed on nobody.
    let mut random = fastrand::Rng::with_seed(20_261_121);
    let left = KEYS - entries.len();
    for number in 0..left {
        let noise: String = (0..random.usize(1..24)).map(|_| random.char(' '..'\u{3ff}')).collect();
        let key = match number % 10 {
            0..4 => format!("http-services/crowd{}/upstreams/u{number}", number % 30),
            4..6 => format!("http-services/crowd{}/overrides/u{number}", number % 30),
            6 => format!("http-services/lone{number}/domain"),
            7 => format!("http-services/crowd{}/{noise}{number}", number % 30),
            8 => format!("balancers/{noise}{number}"),
            _ => format!("{noise}{number}"),
        };
        entries.insert(format!("{PREFIX}{key}").into_bytes(), noise.into_bytes());
    }
    entries
}

fn fill(etcd: &Etcd) {
    let entries: Vec<_> = entries().into_iter().collect();
    assert_eq!(entries.len(), KEYS);
    etcd.ask(async move |mut client| {
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            let mut size = 0;
            let fits = |(key, value): &&(Vec<u8>, Vec<u8>)| {
                size += key.len() + value.len();
                size < TXN_SIZE
            };
            let (some, more) = rest.split_at(rest.iter().take(TXN_OPS).take_while(fits).count());
            let puts: Vec<TxnOp> =
                some.iter().map(|(key, value)| TxnOp::put(key.clone(), value.clone(), None)).collect();
            client.txn(Txn::new().and_then(puts)).await?;
            rest = more;
        }
        // A megabyte each, by themselves: etcd takes 1.5 MiB a request.
        for (number, leaf) in SETTINGS.iter().enumerate() {
            let key = format!("{PREFIX}http-services/large{number}/{leaf}");
            client.put(key, "127.0.0.1:1 a.test\n".repeat(50_000), None).await?;
        }
        Ok(())
    });
}

/// Deletes all below the prefix but the good service.
fn clean(etcd: &Etcd) {
    let shop = format!("{PREFIX}http-services/shop/");
    // `0` follows on `/`.
    let ranges = [
        (PREFIX.as_bytes().to_vec(), format!("{shop}domain")),
        (format!("{shop}domain\0").into_bytes(), format!("{shop}upstreams/shop-1")),
        (format!("{shop}upstreams/shop-1\0").into_bytes(), PREFIX.replace("r/", "r0")),
    ];
    let delete = |(start, end)| TxnOp::delete(start, Some(DeleteOptions::new().with_range(end)));
    let deletes: Vec<TxnOp> = ranges.into_iter().map(delete).collect();
    etcd.ask(async move |mut client| client.txn(Txn::new().and_then(deletes)).await);
}

/// Waits until HAProxy serves and the file has what is written only now, by which time all before it is taken in.
fn in_sync(etcd: &Etcd, balancer: &Balancer, mark: &str) -> Duration {
    let start = Instant::now();
    etcd.put("http-services/shop/domain", format!("{} {mark}.test", Ground::HOST));
    balancer.wait_status(IN_SYNC, &format!("{mark}.test"), "/", 200);
    let quick = start.elapsed();
    until(IN_SYNC, "the file to have it too", || balancer.file().contains(&format!("{mark}.test/")));
    quick
}

/// The file while there is a service of each kind that the common part has to do something for: some of the hostile ones
/// are of it. Leaves the store as it was.
fn with_all(etcd: &Etcd, balancer: &Balancer) -> String {
    let before = balancer.file();
    let entry = |key: &str, value: &str| (key.to_owned(), value.as_bytes().to_vec());
    etcd.put_all([
        entry("http-services/through/domain", "through.test"),
        entry("http-services/through/tls", "passthrough"),
        entry("tcp-services/through/ports", &free_port().to_string()),
        entry("http-services/seen/preview", "10.0.0.1"),
        entry("http-services/seen/url_reg", "^/seen"),
    ]);
    balancer.wait_status(PATIENCE, "through.test", "/", 308);
    balancer.wait_in_sync(PATIENCE);
    let file = balancer.file();
    etcd.delete_all("http-services/through/");
    etcd.delete_all("tcp-services/through/");
    etcd.delete_all("http-services/seen/");
    until(PATIENCE, "the first state again", || without_shapes(&balancer.file()) == without_shapes(&before));
    balancer.wait_in_sync(PATIENCE);
    file
}

/// The file without its generation and without shapes: those that HAProxy has stay until a restart (3.4).
fn without_shapes(file: &str) -> String {
    let file = normal(file);
    let is_shape = |block: &&str| block.lines().any(|line| line.starts_with("defaults ") && line.contains(" from "));
    file.split("\n\n").filter(|block| !is_shape(block)).collect::<Vec<_>>().join("\n\n")
}

/// The file without its generation, which names what all services are.
fn normal(file: &str) -> String {
    let stamp = file.lines().find_map(|line| line.trim().strip_prefix("setenv CONFGEN_GEN ")).unwrap();
    file.replace(stamp, "GENERATION")
}

/// The lines in two: those of sections that no service has a part in, and those of services and of their shapes.
fn ours_and_theirs(file: &str) -> (Vec<&str>, Vec<&str>) {
    let mut is_ours = true;
    file.lines().partition(|line| {
        if !line.is_empty() && !line.starts_with([' ', '#']) {
            let words: Vec<&str> = line.split(' ').collect();
            is_ours = match words.as_slice() {
                ["defaults", _, "from", ..] => false,
                [_, name, ..] => name.starts_with("discover-"),
                _ => true,
            };
        }
        is_ours && !line.starts_with('#')
    })
}

/// What no service has a part in, and the section of the good one.
fn common_and_shop(file: &str) -> (String, String) {
    let file = normal(file);
    let common: Vec<&str> =
        ours_and_theirs(&file).0.into_iter().filter(|line| !line.is_empty() && !is_previews(line)).collect();
    let shop = file.split("\n\n").find(|part| part.contains("backend http-shop from ")).unwrap();
    // The comment above it names its hosts, which the marks change.
    (common.join("\n"), shop.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n"))
}

fn is_name(text: &str) -> bool {
    text.len() <= 260 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte))
}

fn are_networks(words: &[&str]) -> bool {
    words.iter().all(|network| network.split('/').next().unwrap().parse::<IpAddr>().is_ok())
}

/// Whether a line of the common part is one of those that it has for each service that is previewed.
fn is_previews(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["acl", acl, "src", networks @ ..] => {
            acl.strip_suffix(":preview").is_some_and(is_name) && are_networks(networks)
        }
        [
            "http-request",
            "set-var(txn.preview)",
            what,
            "if",
            "{",
            "var(txn.backend)",
            "-m",
            "str",
            section,
            "}",
            acl,
        ] => {
            *what == "var(txn.backend),concat(:preview-,txn.color)"
                && is_name(section)
                && acl.strip_suffix(":preview") == Some(section)
        }
        _ => false,
    }
}

/// Every line of a service's section is one that the template has, and what comes from the store is a plain word in it.
fn assert_known(line: &str) {
    let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
    let plain = |word: &&str| word.bytes().all(|byte| byte.is_ascii_graphic());
    assert!(words.iter().all(plain), "{line:?}");
    let number = |word: &str| word.parse::<u64>().is_ok();
    let known = match words.as_slice() {
        [] => true,
        [first, ..] if first.starts_with('#') => line.starts_with("# "),
        ["backend" | "listen" | "defaults", name, "from", parent] => {
            !line.starts_with(' ') && is_name(name) && is_name(parent)
        }
        ["server", name, address, options @ ..] => {
            let mut options = options.iter();
            let mut fine = is_name(name) && address.parse::<SocketAddr>().is_ok_and(|address| address.port() > 0);
            while let Some(option) = options.next() {
                fine &= match *option {
                    "weight" => options.next().is_some_and(|weight| number(weight)),
                    option => ["backup", "disabled"].contains(&option),
                };
            }
            fine
        }
        ["bind", address, rest @ ..] => {
            address.replace('*', "0.0.0.0").parse::<SocketAddr>().is_ok()
                && (rest.is_empty() || matches!(rest, ["v4v6" | "v6only"]) || rest[0] == "ssl" && rest[1] == "crt-list")
        }
        ["balance", how] => ["leastconn", "random", "source", "uri"].contains(how),
        ["acl", "allowed" | "previewed", "src", networks @ ..] => are_networks(networks),
        ["default-server", options @ ..] => options.iter().all(|option| is_name(option)),
        ["dynamic-cookie-key", name] => is_name(name),
        ["http-check", "send", "meth", method, "uri", _, ..] => ["GET", "HEAD", "OPTIONS"].contains(method),
        ["http-check", "expect", "status", status] => is_name(status),
        ["http-request" | "tcp-request" | "http-response", ..] => {
            TEMPLATE.contains(&line.trim()) || line.contains("Strict-Transport-Security")
        }
        ["hash-type", "consistent"] | ["option", "httpchk"] | ["stick", "on", "src"] | ["mode", "http" | "tcp"] => true,
        ["cookie", "discover", "insert", "indirect", "nocache", "httponly", "dynamic"] => true,
        ["stick-table", "type", "ipv6", "size", "100k", "expire", "30m"] => true,
        _ => false,
    };
    assert!(known, "no line of ours: {line:?}");
}

const TEMPLATE: [&str; 7] = [
    "http-request set-header X-Discover-Color %[be_name,regsub(^.*:preview-,)]",
    "http-request deny unless previewed",
    "http-request deny unless allowed",
    "tcp-request content reject unless allowed",
    "tcp-request connection reject unless allowed",
    "http-request redirect code 308 location https://%[var(txn.host)]%[pathq] unless { ssl_fc }",
    r#"http-request return status 404 content-type text/plain string "404 Not Found: this service speaks plain HTTP only\n" if { ssl_fc }"#,
];

/// Sections that are no service's are compared as a whole.
fn assert_grammar(file: &str) {
    ours_and_theirs(&normal(file)).1.into_iter().for_each(assert_known);
}

fn assert_clean(balancer: &Balancer) {
    assert_grammar(&balancer.file());
    let mut check = Command::new("haproxy");
    check.arg("-c").arg("-f").arg(balancer.folder().join("conf.d")).arg("-f").arg(balancer.haproxy_cfg());
    let output = check.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let running = Mirror::running(balancer).unwrap();
    for name in running.servers.keys() {
        assert!(name.split('/').all(is_name), "{name:?}");
    }
    for (key, value) in running.hosts.iter().chain(&running.paths) {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_*/".contains(&byte);
        assert!(key.bytes().all(plain), "{key:?}");
        assert!(is_name(value.trim_start_matches('*')), "{value:?}");
    }
    let log = balancer.log("confgen");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn hostile_values_reach_neither_the_file_nor_other_services() {
    let _turn = medium();
    let etcd = Etcd::start();
    let app = App::alone("shop-1");
    etcd.http_service("shop", Ground::HOST, &[&app]);
    let balancer = Balancer::start(&etcd);
    balancer.wait_status(PATIENCE, Ground::HOST, "/", 200);
    until(PATIENCE, "the first state", || Mirror::agree(&balancer, &etcd));
    let confgen = balancer.pid("confgen");
    let with_all = with_all(&etcd, &balancer);
    let before = balancer.file();
    let load = Plan::new(Kind::PerRequest, balancer.http(), Ground::HOST).rate(200).from("shop-").start();

    let start = Instant::now();
    fill(&etcd);
    let written = start.elapsed();
    let quick = in_sync(&etcd, &balancer, "first");
    println!("{KEYS} hostile keys written in {written:.1?}, in sync after {:.1?}", start.elapsed());
    let calm = in_sync(&etcd, &balancer, "second");
    let resident = resident(confgen.unwrap());
    println!(
        "a host of the good service: {quick:.1?} right behind them, {calm:.1?} later; confgen has {} MiB",
        resident >> 20
    );
    assert!(resident < MEMORY, "{resident}");
    assert_clean(&balancer);
    assert_eq!(common_and_shop(&balancer.file()), common_and_shop(&with_all));

    let start = Instant::now();
    clean(&etcd);
    etcd.put("http-services/shop/domain", Ground::HOST);
    until(IN_SYNC, "all to be as before", || {
        Mirror::agree(&balancer, &etcd)?;
        if normal(&balancer.file()) == normal(&before) { Ok(()) } else { Err(balancer.file()) }
    });
    println!("gone again after {:.1?}", start.elapsed());
    assert_clean(&balancer);
    let report = load.stop();
    println!("{report}");
    report.assert_nothing_lost();
    assert_eq!(balancer.pid("confgen"), confgen, "it is the same confgen");
}
