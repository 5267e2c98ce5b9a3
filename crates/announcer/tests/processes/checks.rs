//! Only the healthy are announced.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
};

use lab::{Process, Signal, until};

use crate::site::{KEY, SOON, Site};

/// Checks often, so that the tests are short.
pub(crate) const OFTEN: [&str; 4] = ["--check-interval", "50ms", "--check-timeout", "500ms"];

/// A web server that answers one status to everything, or nothing at all with 0.
struct Web {
    address: SocketAddr,
    status: Arc<AtomicU16>,
    asked: Arc<AtomicUsize>,
    last: Arc<Mutex<Vec<String>>>,
}

impl Web {
    fn answering(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let web = Self {
            address: listener.local_addr().unwrap(),
            status: Arc::new(AtomicU16::new(status)),
            asked: Arc::default(),
            last: Arc::default(),
        };
        let (status, asked, last) = (web.status.clone(), web.asked.clone(), web.last.clone());
        std::thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming().flatten() {
                let lines = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
                *last.lock().unwrap() = lines.collect();
                asked.fetch_add(1, Ordering::Relaxed);
                match status.load(Ordering::Relaxed) {
                    0 => silent.push(stream),
                    status => _ = write!(&stream, "HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nok"),
                }
            }
        });
        web
    }

    fn answer(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    /// Waits until it was asked this many times more, and once more, so that the answers have been thought about.
    #[track_caller]
    fn until_asked(&self, times: usize) {
        let before = self.asked.load(Ordering::Relaxed);
        until(SOON, "checks", || self.asked.load(Ordering::Relaxed) > before + times);
    }
}

fn checked(site: &Site, flags: &[&str], checks: &[&str]) -> Process {
    let checks = checks.iter().flat_map(|check| ["--check", check]);
    let flags: Vec<_> = flags.iter().copied().chain(OFTEN).chain(checks).collect();
    site.wrap(&flags, "exec sleep 60")
}

#[test]
fn the_record_follows_the_checks_and_is_written_only_when_that_changes() {
    let site = Site::new();
    let web = Web::answering(503);
    let url = format!("http://{}/health?deep=1", web.address);
    let flags = ["--check-header", "X-Probe: yes", "--check-host", "shop.test", "--check-fall", "3", "--drain", "0s"];
    let mut announcer = checked(&site, &flags, &[&url]);
    web.until_asked(5);
    assert_eq!(site.etcd.get(KEY), None, "nothing is announced before it works");
    let request = web.last.lock().unwrap().clone();
    assert_eq!(request[0], "GET /health?deep=1 HTTP/1.1");
    for header in ["host: shop.test", "x-probe: yes", "connection: close"] {
        assert!(request.iter().any(|line| line.eq_ignore_ascii_case(header)), "{header}: {request:?}");
    }
    web.answer(302);
    site.until_registered();
    let written = site.written_at(KEY);
    web.until_asked(5);
    assert_eq!(site.written_at(KEY), written, "a check that passes again writes nothing");
    web.answer(404);
    site.until_value(&site.value("down"));
    assert!(announcer.log().contains("status 404, expected 200-399"), "{}", announcer.log());
    let written = site.written_at(KEY);
    web.until_asked(5);
    assert_eq!(site.written_at(KEY), written, "a check that fails again writes nothing");
    web.answer(200);
    site.until_registered();
    assert!(announcer.running());
    announcer.signal(Signal::SIGTERM);
    announcer.wait(SOON);
    let ready = site.record();
    let history = [ready.clone(), site.value("down"), ready, site.value("drain"), String::new()];
    assert_eq!(site.history(KEY), history);
}

#[test]
fn all_checks_have_to_pass_each_within_its_time() {
    let site = Site::new();
    let (quick, slow) = (Web::answering(204), Web::answering(0));
    let urls = [&quick, &slow].map(|web| format!("http://{}/", web.address));
    let flags = ["--check-method", "HEAD", "--check-status", "204", "--check-grace", "200ms"];
    let announcer = checked(&site, &flags, &["tcp", &urls[0], &urls[1]]);
    until(SOON, "a word about it", || announcer.log().contains("nothing within 500ms"));
    assert_eq!(announcer.log().matches("app is not up yet").count(), 1, "once: {}", announcer.log());
    assert_eq!(site.etcd.get(KEY), None);
    assert!(quick.last.lock().unwrap()[0].starts_with("HEAD / "));
    slow.answer(204);
    site.until_registered();
}

#[test]
fn an_app_that_does_not_listen_is_named_once_without_a_check_too() {
    let site = Site::new();
    let address = SocketAddr::from(([127, 0, 0, 1], lab::free_port())).to_string();
    let mut command = site.command_at(&address, &["--service", "shop", "--id", "a", "--check-grace", "200ms"]);
    let announcer = Process::start(&site.folder, "announcer", command.args(["--", "sleep", "60"]));
    until(SOON, "a warning", || announcer.log().contains("app is not up yet"));
    let log = announcer.log();
    assert!(log.contains("Connection refused") && log.contains(&address), "{log}");
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(announcer.log().matches("app is not up yet").count(), 1, "once: {}", announcer.log());
    assert_eq!(site.etcd.get(KEY), None);
}

#[test]
fn a_check_that_fails_in_a_drain_changes_nothing() {
    let site = Site::new();
    let web = Web::answering(200);
    let mut announcer = checked(&site, &["--drain", "2s"], &[&format!("http://{}/", web.address)]);
    site.until_registered();
    site.balancer("lb", &site.applied(0, ""));
    announcer.signal(Signal::SIGTERM);
    site.until_value(&site.value("drain"));
    web.answer(500);
    announcer.wait(SOON);
    assert_eq!(site.history(KEY), [site.record(), site.value("drain"), String::new()]);
}

#[test]
fn an_app_that_never_worked_is_stopped_without_a_word() {
    let site = Site::new();
    let mut announcer = checked(&site, &["--drain", "1m"], &["exec:false"]);
    until(SOON, "the app", || announcer.log().contains("the app runs"));
    announcer.signal(Signal::SIGTERM);
    assert_eq!(announcer.wait(SOON).code(), Some(143));
    assert_eq!(site.history(KEY), Vec::<String>::new());
}

/// What HTTPS checks ask: HAProxy itself.
fn https(site: &Site) -> (Process, SocketAddr) {
    let address = SocketAddr::from(([127, 0, 0, 1], lab::free_port()));
    let certificate = lab::Certificate::of(&["shop.test"]);
    certificate.write(site.folder.join("site.pem"));
    let pem = site.folder.join("site.pem");
    let text = format!(
        "defaults\n  mode http\n  timeout client 5s\n  timeout server 5s\n  timeout connect 5s\n\
         frontend f\n  bind {address} ssl crt {}\n  http-request return status 200\n",
        pem.display()
    );
    lab::write(site.folder.join("web.cfg"), text);
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(site.folder.join("web.cfg"));
    let haproxy = Process::start(&site.folder, "haproxy", &mut command);
    until(SOON, "HAProxy", || std::net::TcpStream::connect(address).is_ok());
    (haproxy, address)
}

#[test]
fn https_checks_the_certificate_unless_told_otherwise() {
    let site = Site::new();
    let (_haproxy, address) = https(&site);
    let url = format!("https://{address}/");
    let pem = site.folder.join("site.pem").display().to_string();
    let other = site.folder.join("other.pem");
    lab::Certificate::of(&["shop.test"]).write(&other);

    let mut announcer = checked(&site, &["--check-insecure", "--drain", "0s"], &[&url]);
    site.until_registered();
    announcer.signal(Signal::SIGTERM);
    announcer.wait(SOON);

    let wrong_name = checked(&site, &["--check-ca", &pem, "--check-grace", "0s"], &[&url]);
    until(SOON, "the refusal", || wrong_name.log().contains("not valid for name"));
    drop(wrong_name);

    let path = other.display().to_string();
    let flags = ["--check-ca", &path, "--check-host", "shop.test", "--check-grace", "0s"];
    let stranger = checked(&site, &flags, &[&url]);
    until(SOON, "the refusal", || stranger.log().contains("certificate"));
    assert_eq!(site.etcd.get(KEY), None);
    // The file is replaced by the right one.
    lab::write(&other, std::fs::read(&pem).unwrap());
    site.until_registered();
}
