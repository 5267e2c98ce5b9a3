//! `--proxy-protocol-from`: a TCP load balancer in front says who the client is, on every public port, and nobody else can.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use lab::http::{Request, Response, connect};
use lab::{Certificate, Ground, PATIENCE, Speaker, Speakers, Syslog, light, until};

/// The load balancer in front. All of 127.0.0.0/8 is this machine's.
const FRONT: &str = "127.0.0.3";
/// A peer that isn't believed.
const STRANGER: &str = "127.0.0.4";
/// Clients that `allow` lets in. No connection of this machine has such an address (RFC 5737, RFC 3849).
const CLIENTS: [&str; 2] = ["192.0.2.7", "2001:db8::7"];
/// A client that `allow` keeps out.
const OUTSIDER: &str = "198.51.100.1";
/// A proxy for HTTP that is believed by its headers, behind the load balancer.
const CDN: &str = "192.0.2.50";

#[derive(Clone, Copy, Debug)]
enum Version {
    V1,
    V2,
}

/// The header for a connection from this client (the PROXY protocol's specification, 2.1 and 2.2).
fn header(version: Version, client: &str) -> Vec<u8> {
    const PORTS: [u16; 2] = [50_007, 443];
    let client: IpAddr = client.parse().unwrap();
    let (family, local) = match client {
        IpAddr::V4(_) => ("TCP4", "203.0.113.1".parse::<IpAddr>().unwrap()),
        IpAddr::V6(_) => ("TCP6", "2001:db8::1".parse().unwrap()),
    };
    match version {
        Version::V1 => format!("PROXY {family} {client} {local} {} {}\r\n", PORTS[0], PORTS[1]).into_bytes(),
        Version::V2 => {
            let addresses: Vec<u8> = [client, local]
                .iter()
                .flat_map(|address| match address {
                    IpAddr::V4(v4) => v4.octets().to_vec(),
                    IpAddr::V6(v6) => v6.octets().to_vec(),
                })
                .chain(PORTS.iter().flat_map(|port| port.to_be_bytes()))
                .collect();
            let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
            [SIGNATURE, &[0x21, if client.is_ipv4() { 0x11 } else { 0x21 }], &length, &addresses].concat()
        }
    }
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2's LOCAL: the load balancer's own connection, a health check of its.
fn local() -> Vec<u8> {
    [SIGNATURE, &[0x20, 0, 0, 0]].concat()
}

struct Scene {
    ground: Ground,
    syslog: Syslog,
    _speakers: Speakers,
}

impl Scene {
    fn new() -> Self {
        let vault = Certificate::of(&["vault.test"]);
        let speakers = Speakers::start(&[Speaker::new("vault", "accept-proxy").tls(&vault)]);
        let (address, syslog) = (speakers.at("vault").to_string(), Syslog::start());
        let allow = ("allow", &*CLIENTS.join(" "));
        let passed = [("tls", "passthrough"), ("proxy-protocol", "v2"), ("upstreams/1", &address), allow];
        let ground = Ground::build()
            .http("shop", "shop.test", &["shop"])
            .set("http-services/shop", &[("sticky", "source"), allow])
            .http("open", "open.test", &["open"])
            .http("vault", "vault.test", &[])
            .set("http-services/vault", &passed)
            .tcp("db", &["db"])
            .set("tcp-services/db", &[allow])
            .tcp("dbs", &["db"])
            .set("tcp-services/dbs", &[("tls", "terminate"), allow])
            .certificate(&["shop.test", "open.test"])
            .flags(&["--proxy-protocol-from", FRONT, "--trusted-proxies", CDN])
            .with(|setup| setup.log(&syslog))
            .start();
        ground.balancer.wait_servers(PATIENCE, "http-vault", 1);
        Self { ground, syslog, _speakers: speakers }
    }

    /// Each way in, with a request that takes it.
    fn ways(&self) -> [(&'static str, SocketAddr, Request); 5] {
        let Ground { balancer, tcp, .. } = &self.ground;
        let (http, https) = (balancer.http(), balancer.https());
        [
            ("HTTP", http, Request::get("shop.test", "/")),
            ("HTTPS", https, Request::get("shop.test", "/").tls("shop.test")),
            ("pass-through", https, Request::get("vault.test", "/").tls("vault.test")),
            ("TCP", tcp["db"], Request::get("db.test", "/")),
            ("TCP over TLS", tcp["dbs"], Request::get("db.test", "/").tls("shop.test")),
        ]
    }
}

/// Sends a request over a connection from `peer` that begins with `first`.
fn ask(peer: &str, first: &[u8], address: SocketAddr, request: &Request) -> io::Result<Response> {
    request.send_over(begin(peer, first, address)?)
}

fn begin(peer: &str, first: &[u8], address: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = connect(address, Some(peer.parse().unwrap()))?;
    stream.write_all(first)?;
    Ok(stream)
}

#[test]
fn only_a_listed_load_balancer_names_the_client() {
    let _turn = light();
    let scene = Scene::new();
    the_client_is_known_on_every_public_port(&scene);
    a_client_is_kept_out_by_its_own_address(&scene);
    a_stranger_is_not_believed(&scene);
    the_load_balancer_itself_gets_in_only_with_a_header(&scene);
    http2_knows_the_client(&scene);
    a_trusted_proxy_is_one_by_the_address_in_the_header(&scene);
    the_log_and_the_sticky_table_name_the_client(&scene);
}

fn the_client_is_known_on_every_public_port(scene: &Scene) {
    for (version, client) in [Version::V1, Version::V2].into_iter().flat_map(|it| CLIENTS.map(|client| (it, client))) {
        for (way, address, request) in scene.ways() {
            let answer = ask(FRONT, &header(version, client), address, &request);
            let answer = answer.unwrap_or_else(|error| panic!("{way} {version:?} {client}: {error}"));
            assert_eq!(answer.status, 200, "{way} {version:?} {client}: {answer:?}");
            // Behind TCP the web app is told nothing.
            let told = match way {
                "HTTP" | "HTTPS" => answer.line("x-forwarded-for"),
                "pass-through" => answer.line("client"),
                _ => Some(client),
            };
            assert_eq!(told, Some(client), "{way} {version:?}: {answer:?}");
            if way == "HTTP" {
                assert_eq!(answer.line("x-forwarded-port"), Some("443"), "the port that the client asked: {answer:?}");
            }
        }
    }
}

/// Whether the answer is one of somebody who may not come in.
fn is_kept_out(answer: &io::Result<Response>) -> bool {
    answer.as_ref().map_or(true, |answer| answer.status == 403)
}

fn a_client_is_kept_out_by_its_own_address(scene: &Scene) {
    for (way, address, request) in scene.ways() {
        let answer = ask(FRONT, &header(Version::V2, OUTSIDER), address, &request);
        assert!(is_kept_out(&answer), "{way}: {answer:?}");
        let answer = ask(STRANGER, b"", address, &request);
        assert!(is_kept_out(&answer), "{way}, without the load balancer: {answer:?}");
    }
    let told = ask(STRANGER, b"", scene.ground.balancer.http(), &Request::get("open.test", "/")).unwrap();
    assert_eq!(told.line("x-forwarded-for"), Some(STRANGER), "who comes by itself is who it is");
}

fn a_stranger_is_not_believed(scene: &Scene) {
    for version in [Version::V1, Version::V2] {
        for (way, address, request) in scene.ways() {
            let answer = ask(STRANGER, &header(version, CLIENTS[0]), address, &request);
            assert!(answer.as_ref().map_or(true, |answer| answer.status == 400), "{way} {version:?}: {answer:?}");
        }
        let answer =
            ask(STRANGER, &header(version, CLIENTS[0]), scene.ground.balancer.http(), &Request::get("open.test", "/"));
        assert!(answer.map_or(true, |answer| answer.status == 400), "{version:?}");
    }
}

fn the_load_balancer_itself_gets_in_only_with_a_header(scene: &Scene) {
    for (way, address, request) in scene.ways() {
        let answer = ask(FRONT, b"", address, &request);
        assert!(answer.is_err(), "{way}: {answer:?}");
        let answer = ask(FRONT, &local(), address, &request);
        assert!(is_kept_out(&answer), "{way}: a health check is no client: {answer:?}");
    }
    let open = Request::get("open.test", "/");
    for first in [local(), b"PROXY UNKNOWN\r\n".to_vec()] {
        let answer = ask(FRONT, &first, scene.ground.balancer.http(), &open).unwrap();
        assert_eq!((answer.status, answer.line("x-forwarded-for")), (200, Some(FRONT)));
    }
    // A check that only connects is fine, and the stats page's port isn't behind the load balancer.
    drop(begin(FRONT, b"", scene.ground.balancer.http()).unwrap());
    let answer = ask(FRONT, b"", scene.ground.balancer.stats(), &Request::get("localhost", "/admin?stats")).unwrap();
    assert_eq!(answer.status, 401, "{answer:?}");
}

/// A load balancer for one connection, which says that it comes from this client.
fn in_front_of(to: SocketAddr, first: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = begin(FRONT, &first, to).unwrap();
        let (mut client_again, mut server_again) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        // What ends one way ends with the test.
        thread::spawn(move || io::copy(&mut client, &mut server));
        let _ = io::copy(&mut server_again, &mut client_again);
    });
    address
}

fn http2_knows_the_client(scene: &Scene) {
    for (version, client) in [(Version::V1, CLIENTS[1]), (Version::V2, CLIENTS[0])] {
        let port = in_front_of(scene.ground.balancer.https(), header(version, client)).port();
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--insecure", "--http2", "--max-time", "10"])
            .args([
                "--write-out",
                "\n%{http_code} %{http_version}",
                "--resolve",
                &format!("shop.test:{port}:127.0.0.1"),
            ])
            .arg(format!("https://shop.test:{port}/"))
            .output()
            .unwrap();
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(answer.ends_with("\n200 2"), "{answer}{}", String::from_utf8_lossy(&output.stderr));
        assert!(answer.lines().any(|line| line == format!("x-forwarded-for: {client}")), "{answer}");
    }
}

/// First the load balancer says who the peer is, then that peer's headers count, or don't.
fn a_trusted_proxy_is_one_by_the_address_in_the_header(scene: &Scene) {
    let request = Request::get("open.test", "/echo").header("X-Forwarded-For", "6.6.6.6");
    let told = |client: &str| {
        let first = header(Version::V2, client);
        let answer = ask(FRONT, &first, scene.ground.balancer.http(), &request).unwrap();
        let all: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        all["x-forwarded-for"].to_string()
    };
    assert_eq!(told(CDN), format!("[\"6.6.6.6\",\"{CDN}\"]"));
    assert_eq!(told(OUTSIDER), format!("[\"{OUTSIDER}\"]"));
}

fn the_log_and_the_sticky_table_name_the_client(scene: &Scene) {
    let http = scene.ground.balancer.http();
    ask(FRONT, &header(Version::V2, CLIENTS[0]), http, &Request::get("shop.test", "/logged")).unwrap();
    for (what, uri, backend) in [("a request", Some("/logged"), "http-shop"), ("a connection", None, "tcp-db")] {
        until(PATIENCE, &format!("the line of {what}"), || {
            let lines = scene.syslog.access();
            let parsed = lines.iter().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            let found = parsed
                .filter(|line| line["backend"] == backend && line["client"] == CLIENTS[0])
                .any(|line| uri.is_none_or(|uri| line["uri"] == uri));
            if found { Ok(()) } else { Err(format!("{lines:#?}")) }
        });
    }
    let table = scene.ground.balancer.ask("show table http-shop");
    for client in CLIENTS {
        assert!(table.contains(client), "{client}: {table}");
    }
    assert!(!table.contains(FRONT), "{table}");
}
