//! The admin port over real sockets. It answers some clients, refuses others, and limits the time of each.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use clap::Parser;
use daemon::admin::{AdminArgs, Daemon, Error, Probes, Pulse, Server, build_routes};
use prometheus_client::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Debug)]
struct Test;

impl Daemon for Test {
    const PREFIX: &'static str = "DAEMON_ADMIN_TEST";
    const ADMIN: &'static str = "127.0.0.1:0";
    const SHOWN: &'static str = "/live and /ready";
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    admin: AdminArgs<Test>,
}

struct Fine;

impl Probes for Fine {
    fn check_ready(&self) -> Result<String, String> {
        Ok("in sync".into())
    }
    fn register_metrics(&self, _: &mut Registry) {}
}

/// A running admin port.
struct Port {
    address: SocketAddr,
    ended: CancellationToken,
    serving: JoinHandle<()>,
    /// Told when `/slow` has begun.
    slow: Arc<Notify>,
}

impl Port {
    async fn open(flags: &[&str]) -> Self {
        let server = bind(flags).await.unwrap();
        let address = server.addresses()[0];
        let ended = CancellationToken::new();
        let slow = Arc::new(Notify::new());
        let begun = Arc::clone(&slow);
        let handler = get(|| async move {
            begun.notify_one();
            tokio::time::sleep(Duration::from_millis(300)).await;
            "slow"
        });
        let routes = build_routes(Pulse::default(), Arc::new(Fine)).merge(Router::new().route("/slow", handler));
        let serving = tokio::spawn(server.serve(routes, ended.clone()));
        Self { address, ended, serving, slow }
    }

    async fn ask(&self, request: &str) -> String {
        let stream = TcpStream::connect(self.address).await.unwrap();
        exchange(stream, request).await.unwrap()
    }
}

async fn bind(flags: &[&str]) -> Result<Server, Error> {
    let cli = Cli::try_parse_from([&["test"], flags].concat()).unwrap();
    Server::bind(cli.admin.resolve().unwrap().unwrap()).await
}

/// Sends a request, and reads until the connection is closed.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> io::Result<String> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn request(method: &str, path: &str, headers: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n")
}

#[track_caller]
fn assert_status(answer: &str, status: u16) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
}

#[tokio::test]
async fn questions_by_its_own_name_are_answered() {
    let port = Port::open(&["--admin-host", "lb1"]).await;
    let live = port.ask(&request("GET", "/live", "Host: localhost:9101\r\n")).await;
    assert_status(&live, 200);
    for header in ["cache-control: no-store", "x-content-type-options: nosniff", "default-src 'none'"] {
        assert!(live.contains(header), "{live}");
    }
    assert_status(&port.ask(&request("GET", "/ready", "Host: LB1\r\n")).await, 200);
    let head = port.ask(&request("HEAD", "/ready", "Host: lb1\r\n")).await;
    assert_status(&head, 200);
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    assert_status(&port.ask(&request("GET", "/nothing", "Host: lb1\r\n")).await, 404);

    assert_status(&port.ask(&request("GET", "/live", "Host: evil.test\r\n")).await, 421);
    assert_status(&port.ask(&request("GET", "/live", "")).await, 421);
    assert_status(&port.ask(&request("GET", "/nothing", "Host: evil.test\r\n")).await, 421);
    let post = port.ask(&request("POST", "/live", "Host: lb1\r\nContent-Length: 1\r\n")).await;
    assert_status(&post, 405);
    assert!(post.contains("allow: GET, HEAD"), "{post}");
}

#[tokio::test]
async fn the_process_shows_its_metrics() {
    let port = Port::open(&[]).await;
    let classic = port.ask(&request("GET", "/metrics", "Host: localhost\r\n")).await;
    assert_status(&classic, 200);
    assert!(classic.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{classic}");
    assert!(classic.contains("# TYPE process_cpu_seconds_total counter\n") && !classic.contains("# EOF"), "{classic}");
    let accept = "Host: localhost\r\nAccept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    let answer = port.ask(&request("GET", "/metrics", accept)).await;
    assert_status(&answer, 200);
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0"), "{answer}");
    let value = |name: &str| -> f64 {
        let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} in {answer}")).parse().unwrap()
    };
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(value("process_open_fds") > 3.0 && value("process_max_fds") >= value("process_open_fds"));
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    // The kernel's clock of process starts is off by up to a second.
    let age = now - value("process_start_time_seconds");
    assert!((-2.0..600.0).contains(&age), "{age}");
    assert!(value("process_cpu_seconds_total") >= 0.0);
    assert!(answer.ends_with("# EOF\n"));
}

#[tokio::test]
async fn the_token_is_asked_for_and_may_be_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    put(&file, "0123456789abcdef");
    let port = Port::open(&["--admin", "0.0.0.0:0", "--admin-token-file", file.to_str().unwrap()]).await;
    let address = SocketAddr::from(([127, 0, 0, 1], port.address.port()));
    let port = Port { address, ..port };
    let bearing =
        |token: &str| request("GET", "/metrics", &format!("Host: localhost\r\nAuthorization: Bearer {token}\r\n"));
    let refused = port.ask(&request("GET", "/metrics", "Host: localhost\r\n")).await;
    assert_status(&refused, 401);
    assert!(!refused.contains("process_") && refused.contains("www-authenticate: Bearer"), "{refused}");
    assert_status(&port.ask(&bearing("0123456789abcdeX")).await, 401);
    assert_status(&port.ask(&bearing("0123456789abcdef")).await, 200);
    put(&file, "fedcba9876543210");
    assert_status(&port.ask(&bearing("0123456789abcdef")).await, 401);
    assert_status(&port.ask(&bearing("fedcba9876543210")).await, 200);
}

#[tokio::test]
async fn what_can_not_be_is_said_at_the_start() {
    let port = Port::open(&[]).await;
    let taken = port.address.to_string();
    let error = bind(&["--admin", &taken]).await.err().unwrap();
    assert!(matches!(error, Error::Bind { .. }) && error.to_string().contains(&taken), "{error}");
    let error = bind(&["--admin-token-file", "/nowhere/token"]).await.err().unwrap();
    assert!(error.to_string().contains("/nowhere/token"), "{error}");
    let error = bind(&["--admin-cert", "/nowhere/cert", "--admin-key", "/nowhere/key"]).await.err().unwrap();
    assert!(error.to_string().contains("/nowhere/cert"), "{error}");
}

#[tokio::test]
async fn silent_clients_neither_stay_nor_keep_others_out() {
    let port = Port::open(&[]).await;
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(TcpStream::connect(port.address).await.unwrap());
    }
    let start = Instant::now();
    let live = request("GET", "/live", "Host: localhost\r\n");
    assert_status(&tokio::time::timeout(Duration::from_secs(20), port.ask(&live)).await.unwrap(), 200);
    assert!(start.elapsed() > Duration::from_secs(2), "64 are all there are: it had to wait");
    for mut stream in silent {
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await;
        closed.expect("a silent client is let go").ok();
    }
}

#[tokio::test]
async fn the_end_waits_for_answers_and_not_for_idlers() {
    let port = Port::open(&[]).await;
    let mut idle = TcpStream::connect(port.address).await.unwrap();
    idle.write_all(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");

    let mut slow = TcpStream::connect(port.address).await.unwrap();
    slow.write_all(request("GET", "/slow", "Host: localhost\r\n").as_bytes()).await.unwrap();
    port.slow.notified().await;
    port.ended.cancel();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("slow"), "{answer}");
    tokio::time::timeout(Duration::from_secs(5), port.serving).await.expect("it ends").unwrap();
    assert!(TcpStream::connect(port.address).await.is_err());
}

/// A CA with what it has signed, as files.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Certificate and key as PEM.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// Asks over TLS, and returns the server's certificate with the answer.
    async fn ask(&self, port: &Port, identity: Option<&(String, String)>) -> io::Result<(Vec<u8>, String)> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let client = match identity {
            None => client.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                client.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        let stream = TcpStream::connect(port.address).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
        let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await?;
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        Ok((shown, exchange(&mut stream, &request("GET", "/live", "Host: localhost\r\n")).await?))
    }
}

#[tokio::test]
async fn clients_without_a_certificate_are_shut_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (ours, theirs) = (Authority::new(), Authority::new());
    let place = |(certificate, key): &(String, String)| {
        put(&path("cert"), certificate);
        put(&path("key"), key);
    };
    place(&ours.sign("localhost"));
    put(&path("ca"), &ours.issuer.pem());
    let files = ["cert", "key", "ca"].map(|name| path(name).to_str().unwrap().to_owned());
    let flags = ["--admin-cert", &files[0], "--admin-key", &files[1], "--admin-client-ca", &files[2]];
    let port = Port::open(&flags).await;

    let client = ours.sign("discoverctl");
    let (first, answer) = ours.ask(&port, Some(&client)).await.unwrap();
    assert_status(&answer, 200);
    assert!(ours.ask(&port, None).await.is_err());
    assert!(ours.ask(&port, Some(&theirs.sign("discoverctl"))).await.is_err());
    let live = request("GET", "/live", "Host: localhost\r\n");
    let plain = exchange(TcpStream::connect(port.address).await.unwrap(), &live).await;
    assert!(!plain.unwrap_or_default().contains("HTTP/1.1 200"));

    // A broken pair leaves the old one; a good one is taken over.
    put(&path("cert"), "broken");
    assert_eq!(ours.ask(&port, Some(&client)).await.unwrap().0, first);
    place(&ours.sign("localhost"));
    let (second, answer) = ours.ask(&port, Some(&client)).await.unwrap();
    assert_status(&answer, 200);
    assert_ne!(second, first);
}

/// Puts a file in place by a rename.
fn put(path: &Path, text: &str) {
    let new = tempfile::NamedTempFile::new_in(path.parent().unwrap()).unwrap();
    io::Write::write_all(&mut new.as_file(), text.as_bytes()).unwrap();
    fs::rename(new.into_temp_path().keep().unwrap(), path).unwrap();
}
