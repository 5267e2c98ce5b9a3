//! What hostile clients can't do, and what HAProxy itself no longer can: protocols and ciphers, smuggled requests, slow
//! ones, root's rights.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs::{metadata, read_to_string, remove_file};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use lab::http::{Request, raw};
use lab::load::Kind;
use lab::{Balancer, Certificate, Ground, PATIENCE, Process, Scratch, free_port, light, until, write};
use nix::unistd::User;

/// `timeout http-request`.
const REQUEST: Duration = Duration::from_secs(10);

#[test]
fn hostile_clients_get_nowhere() {
    let _turn = light();
    let ground = Ground::new();
    // Beside everything else: it takes its time.
    let slow = a_request_that_never_ends(ground.balancer.http());
    nothing_weak_is_offered(&ground);
    no_request_is_smuggled_in(&ground);
    slow.join().unwrap();
}

/// A header line that grows by a byte now and then: HAProxy ends it, however busy it seems.
fn a_request_that_never_ends(http: SocketAddr) -> JoinHandle<()> {
    let drip = move || {
        let start = Instant::now();
        let mut stream = TcpStream::connect(http).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: shop.test\r\nX-Slow: ").unwrap();
        let (mut answer, mut buffer) = (Vec::new(), [0; 1024]);
        while start.elapsed() < PATIENCE {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => answer.extend_from_slice(&buffer[..length]),
                Err(_) => _ = stream.write_all(b"x"),
            }
        }
        let (took, answer) = (start.elapsed(), String::from_utf8_lossy(&answer).into_owned());
        assert!(answer.starts_with("HTTP/1.1 408 "), "after {took:?}: {answer}");
        assert!(took > REQUEST / 2, "{took:?}");
    };
    spawn(drip)
}

/// What `openssl s_client` comes to with these arguments: the cipher, if there is a handshake.
fn handshake(target: SocketAddr, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &target.to_string(), "-servername", Ground::HOST]).args(arguments);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let cipher = text.lines().find_map(|line| line.split_once(", Cipher is "))?.1;
    (cipher != "(NONE)").then(|| cipher.to_owned())
}

/// All ciphers that are taken of those that openssl knows, be they no encryption at all: each is left out once it was.
fn taken(target: SocketAddr, version: &str, option: &str, all: &str) -> BTreeSet<String> {
    let mut taken = BTreeSet::new();
    loop {
        let list = match option {
            "-ciphersuites" => all.split(':').filter(|it| !taken.contains(*it)).collect::<Vec<_>>().join(":"),
            _ => taken.iter().fold(all.to_owned(), |list, cipher: &String| format!("{list}:!{cipher}")),
        };
        match handshake(target, &[version, option, &list]) {
            Some(cipher) if !list.is_empty() => assert!(taken.insert(cipher), "{list} brought one of {taken:?}"),
            _ => return taken,
        }
    }
}

/// Every cipher, and everything that a client of old could ask for.
const ANY: &str = "ALL:COMPLEMENTOFALL:@SECLEVEL=0";
const ANY_1_3: &str = "TLS_AES_128_CCM_8_SHA256:TLS_AES_128_CCM_SHA256:TLS_AES_128_GCM_SHA256:\
                       TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384";

fn nothing_weak_is_offered(ground: &Ground) {
    let https = ground.balancer.https();
    let rsa = Certificate::rsa(Ground::HOST);
    rsa.write(ground.balancer.folder().join("certs/rsa.pem"));
    until(PATIENCE, "the certificate with an RSA key", || {
        handshake(https, &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"]).is_some()
    });

    // The eye test: the same questions to a server that takes anything.
    let (folder, port) = (Scratch::new(), free_port());
    rsa.write(folder.join("rsa.pem"));
    let weak = SocketAddr::from(([127, 0, 0, 1], port));
    let pem = folder.join("rsa.pem").display().to_string();
    let mut command = Command::new("openssl");
    command.args(["s_server", "-www", "-accept", &weak.to_string(), "-cert", &pem, "-cipher", ANY]);
    let _server = Process::start(&folder, "s_server", &mut command);
    let old =
        [["-tls1", "-cipher", ANY], ["-tls1_1", "-cipher", ANY], ["-tls1_2", "-cipher", "AES128-SHA:@SECLEVEL=0"]];
    for arguments in &old {
        until(PATIENCE, &format!("{arguments:?} of a weak server"), || handshake(weak, arguments).is_some());
        assert_eq!(handshake(https, arguments), None, "{arguments:?}");
    }

    let of = |kind: &str| {
        ["AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305"].map(|it| format!("ECDHE-{kind}-{it}"))
    };
    // 2.6 shows whoever could use any cipher with an ECDSA key that certificate alone.
    let both = [ANY.to_owned(), format!("{ANY}:!aECDSA")].map(|all| taken(https, "-tls1_2", "-cipher", &all));
    let both: BTreeSet<String> = both.into_iter().flatten().collect();
    assert_eq!(both, [of("ECDSA"), of("RSA")].concat().into_iter().collect());
    let three = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
    assert_eq!(taken(https, "-tls1_3", "-ciphersuites", ANY_1_3), three.map(str::to_owned).into());
}

/// An upstream that answers whatever comes, and keeps it.
struct Recorder {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Recorder {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let kept = Arc::clone(&seen);
        spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let kept = Arc::clone(&kept);
                spawn(move || {
                    let (mut request, mut buffer) = (String::new(), [0; 4096]);
                    while !is_whole(&request)
                        && let Ok(length @ 1..) = stream.read(&mut buffer)
                    {
                        request += &String::from_utf8_lossy(&buffer[..length]);
                    }
                    // HAProxy's checks send nothing.
                    if !request.is_empty() {
                        kept.lock().unwrap().push(request);
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                    }
                });
            }
        });
        Self { address, seen }
    }
}

/// Whether nothing of a request is missing, as an upstream that follows RFC 9112 reads it.
fn is_whole(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    if head.contains("transfer-encoding: chunked") { body.ends_with("0\r\n\r\n") } else { body.len() >= length }
}

/// What a client tries: a name that its path bears, and the request from its first header on.
const REFUSED: [(&str, &str); 16] = [
    ("two-lengths", "Content-Length: 3\r\nContent-Length: 40\r\n\r\nabc"),
    ("list-of-lengths", "Content-Length: 3, 40\r\n\r\nabc"),
    ("signed-length", "Content-Length: +3\r\n\r\nabc"),
    ("no-length", "Content-Length: \r\n\r\nGET /evil HTTP/1.1\r\n\r\n"),
    ("unknown-coding", "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("two-codings", "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    ("two-coding-lines", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"),
    ("coding-after-blank", "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    ("coding-after-tab", "Transfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    ("bare-cr", "X: a\rTransfer-Encoding: chunked\r\n\r\n"),
    ("nameless", ": x\r\n\r\n"),
    ("two-hosts", "Host: other.test\r\n\r\n"),
    ("path#fragment", "\r\n"),
    ("long-header", "X: LONG\r\n\r\n"),
    ("many-headers", "MANY\r\n"),
    ("blank in path", "\r\n"),
];

fn no_request_is_smuggled_in(ground: &Ground) {
    let recorder = Recorder::start();
    ground.etcd.put("http-services/raw/domain", "raw.test");
    ground.etcd.put("http-services/raw/upstreams/raw", recorder.address.to_string());
    ground.balancer.wait_status(PATIENCE, "raw.test", "/served", 200);
    ground.balancer.wait_in_sync(PATIENCE);
    ground.balancer.wait_one_haproxy(PATIENCE);
    let http = ground.balancer.http();
    let status = |path: &str, rest: &str| {
        let rest = rest.replace("LONG", &"x".repeat(16_000)).replace("MANY", &"X: y\r\n".repeat(120));
        let request = format!("POST /{path} HTTP/1.1\r\nHost: raw.test\r\n{rest}");
        let answer = raw(http, request.as_bytes()).unwrap_or_default();
        String::from_utf8_lossy(&answer).split_whitespace().nth(1).map(str::to_owned)
    };
    for (path, rest) in REFUSED {
        let status = status(path, rest);
        // 3.2 hangs up without a word on some.
        assert!(
            status.as_deref().is_none_or(|status| status.starts_with("40") || status == "431"),
            "{path}: {status:?}"
        );
    }
    let forwarded = [
        ("coding-beats-length", "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG"),
        ("same-lengths", "Content-Length: 3\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"),
        (
            "h2c",
            "Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        ),
        ("named-headers", "Connection: close, X-Forwarded-For, X-Request-Id\r\n\r\n"),
    ];
    for (path, rest) in forwarded {
        assert_eq!(status(path, rest).as_deref(), Some("200"), "{path}");
    }
    let seen = recorder.seen.lock().unwrap().clone();
    let of = |path: &str| seen.iter().filter(|it| it.contains(&format!(" /{path} "))).cloned().collect::<Vec<_>>();
    for (path, _) in REFUSED {
        assert_eq!(of(path), [""; 0], "{path}");
    }
    assert!(!seen.iter().any(|request| request.contains("evil")), "{seen:?}");
    let whole = forwarded.map(|(path, _)| {
        let request = of(path);
        assert_eq!(request.len(), 1, "{path}: {seen:?}");
        request.concat()
    });
    assert!(whole[0].contains("transfer-encoding: chunked") && !whole[0].contains("content-length"), "{}", whole[0]);
    assert!(whole[1].matches("content-length: 3\r\n").count() == 1 && whole[1].ends_with("\r\nabc"), "{}", whole[1]);
    assert!(!whole[2].contains("upgrade:"), "{}", whole[2]);
    assert!(
        whole.iter().all(|it| !it.contains("connection:") && it.contains("x-forwarded-for: 127.0.0.1")),
        "{whole:?}"
    );
}

/// Whose the running HAProxy is.
fn user(balancer: &Balancer) -> Option<u32> {
    let info = balancer.try_ask("show info").ok()?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid: "))?;
    let status = read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

#[test]
fn a_haproxy_takes_over_from_one_of_other_rights() {
    let _turn = light();
    let mut ground = Ground::new();
    let haproxy = User::from_name("haproxy").unwrap().expect("the user that Debian's package makes").uid.as_raw();
    assert_eq!(user(&ground.balancer), Some(haproxy));
    let socket = metadata(ground.balancer.folder().join("admin.sock")).unwrap();
    assert_eq!((socket.uid(), socket.mode() & 0o777), (0, 0o660), "HAProxy doesn't command itself");
    let operators = ground.balancer.folder().join("conf.d/rights.cfg");
    let reports = ground.under_load(&[Kind::KeepAlive, Kind::PerHandshake], 100, |ground| {
        // The operator's own line beats ours; an HAProxy takes over from one of other rights, in both directions.
        write(&operators, "global\n    user root\n    group root\n");
        until(PATIENCE, "a HAProxy of root's", || user(&ground.balancer) == Some(0));
        ground.wait_served(3);
        ground.wait_one_haproxy(PATIENCE);
        assert!(!ground.balancer.file().contains("user haproxy"), "{}", ground.balancer.file());
        remove_file(&operators).unwrap();
        until(PATIENCE, "a HAProxy of its own user", || user(&ground.balancer) == Some(haproxy));
        ground.wait_served(3);
        ground.wait_one_haproxy(PATIENCE);
    });
    for (_, report) in reports {
        report.assert_nothing_lost();
        assert!(report.sent > 100, "{report}");
    }
    assert_eq!(Request::get(Ground::HOST, "/").send(ground.balancer.http()).unwrap().status, 200);
}
