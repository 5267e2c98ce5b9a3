//! Against a real HAProxy, and against sockets that misbehave.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command as Process, Stdio};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};

use super::*;

struct Proxy {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // A worker ends with its master.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("admin.sock");
        let config = dir.path().join("haproxy.cfg");
        let text = format!(
            "global\n stats socket {} level admin\n setenv CONFGEN_GEN 1a=2b\n\
             defaults\n mode http\n timeout client 1s\n timeout server 1s\n timeout connect 1s\n\
             backend http-app\n server one 127.0.0.1:8001 weight 7\n server two [::1]:8002 disabled\n",
            socket.display()
        );
        std::fs::File::create(&config).unwrap().write_all(text.as_bytes()).unwrap();
        let child = Process::new("haproxy")
            .args(["-W", "-db", "-S"])
            .arg(dir.path().join("master.sock"))
            .arg("-f")
            .arg(&config)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let proxy = Self { child, dir };
        let deadline = Instant::now() + Duration::from_secs(10);
        // The master binds its own socket when it executes itself anew, which may be after its worker answers.
        while proxy.socket().info().is_err() || proxy.master().ask(&Command::show_proc()).is_err() {
            assert!(Instant::now() < deadline, "HAProxy doesn't answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        proxy
    }

    fn socket(&self) -> Socket {
        Socket::new(self.dir.path().join("admin.sock"))
    }

    fn master(&self) -> Socket {
        Socket::new(self.dir.path().join("master.sock"))
    }
}

#[test]
fn asks_a_real_haproxy() {
    let proxy = Proxy::start();
    let socket = proxy.socket();

    let info = socket.info().unwrap();
    assert!(!info.stopping);

    assert_eq!(socket.env(&"CONFGEN_GEN".parse().unwrap()).unwrap().as_deref(), Some("1a=2b"));
    assert_eq!(socket.env(&"CONFGEN".parse().unwrap()).unwrap(), None);

    let servers = socket.servers_state().unwrap().servers;
    let summary: Vec<_> = servers
        .iter()
        .map(|s| (s.backend.as_str(), s.server.as_str(), s.address.as_str(), s.port, s.weight, s.admin.maintenance()))
        .collect();
    let expected = [("http-app", "one", "127.0.0.1", 8001, 7, false), ("http-app", "two", "::1", 8002, 1, true)];
    assert_eq!(summary, expected);

    let error = ServersState::parse(&socket.ask(&Command::show_proc()).unwrap());
    assert_eq!(error, None, "a worker knows no `show proc`");
}

#[test]
fn asks_a_worker_through_its_master() {
    let proxy = Proxy::start();
    let worker = proxy.socket().info().unwrap().pid;
    let master = proxy.master();
    assert!(master.ask(&Command::show_proc()).unwrap().contains(&format!("\n{worker} ")));
    let connections = master.ask(&Command::show_servers_conn().to_worker(worker)).unwrap();
    assert!(connections.contains("\nhttp-app/one "), "{connections}");
    let refused = master.ask(&Command::show_info().to_worker(1)).unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
}

#[test]
fn nobody_there_is_told_from_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    assert!(matches!(Socket::new(&path).info(), Err(Error::Absent { .. })));
    drop(UnixListener::bind(&path).unwrap());
    assert!(matches!(Socket::new(&path).info(), Err(Error::Absent { .. })), "a file left behind");
}

#[test]
fn a_silent_listener_costs_no_more_than_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&listener, Backlog::new(1).unwrap()).unwrap();
    let bound = Duration::from_millis(50);

    let begun = Instant::now();
    let silent = Socket::new(&path).with_timeout(bound).info().unwrap_err();
    assert!(matches!(silent, Error::Exchange { .. }), "{silent}");
    // The queue is full with two that nobody takes; the standard library would wait for ever to join it.
    let _queued: Vec<_> = (0..2).map(|_| exchange::connect_unix(&path, bound)).collect();
    let full = Socket::new(&path).with_timeout(bound).info().unwrap_err();
    assert!(matches!(full, Error::Absent { .. }), "{full}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn half_an_answer_is_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = [0; 32];
        let read = stream.read(&mut line).unwrap();
        stream.write_all(b"1\n# header\n2 be 1 s 127.0").unwrap();
        line[..read].to_vec()
    });
    let error = Socket::new(&path).servers_state().unwrap_err();
    assert!(matches!(error, Error::CutShort { length: 25, .. }), "{error}");
    assert_eq!(server.join().unwrap(), b"show servers state\n");
}
