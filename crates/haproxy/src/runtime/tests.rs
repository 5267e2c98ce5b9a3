//! Against a real HAProxy, and against sockets that misbehave.

use std::io::{Read, Write};
use std::num::NonZeroU32;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::slice;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};

use super::proxy::Proxy;
use super::*;

impl Proxy {
    /// Two servers, in a worker below a master.
    fn with_servers() -> Self {
        let proxy = Self::start_haproxy(&["-W", "-S", "unix@master.sock"], |_| {
            " setenv CONFGEN_GEN 1a=2b\n\
             defaults\n mode http\n timeout client 1s\n timeout server 1s\n timeout connect 1s\n\
             backend http-app\n server one 127.0.0.1:8001 weight 7\n server two [::1]:8002 disabled\n\
             backend http-secure\n default-server ssl verify required ca-file @system-ca\n"
                .to_owned()
        });
        // The master binds its own socket when it executes itself anew, which may be after its worker answers.
        proxy.wait_until(|| proxy.master().send_command(&Command::show_proc()).is_ok());
        proxy
    }

    fn master(&self) -> Socket {
        Socket::new(self.path("master.sock"))
    }
}

#[test]
fn asks_a_real_haproxy() {
    let proxy = Proxy::with_servers();
    let socket = proxy.socket();

    let info = socket.show_info().unwrap();
    assert!(!info.stopping);

    assert_eq!(socket.show_env(&"CONFGEN_GEN".parse().unwrap()).unwrap().as_deref(), Some("1a=2b"));
    assert_eq!(socket.show_env(&"CONFGEN".parse().unwrap()).unwrap(), None);

    let servers = socket.show_servers_state().unwrap().servers;
    let summary: Vec<_> = servers
        .iter()
        .map(|s| {
            (s.backend.as_str(), s.server.as_str(), s.address.as_str(), s.port, s.weight, s.admin.is_in_maintenance())
        })
        .collect();
    let expected = [("http-app", "one", "127.0.0.1", 8001, 7, false), ("http-app", "two", "::1", 8002, 1, true)];
    assert_eq!(summary, expected);

    let error = ServersState::parse(&socket.send_command(&Command::show_proc()).unwrap());
    assert_eq!(error, None, "a worker knows no `show proc`");
}

#[test]
fn backends_are_counted_with_the_process_that_counts_them() {
    let proxy = Proxy::with_servers();
    let socket = proxy.socket();
    let names = |rows: &[Stat]| -> Vec<(String, String)> {
        rows.iter().map(|row| (row.proxy.clone(), row.name.clone())).collect()
    };
    let pair = |proxy: &str, name: &str| (proxy.to_owned(), name.to_owned());
    let (pid, backends) = socket
        .read_turns(|pid, rows| (pid, rows.map(|row| (row.proxy.to_owned(), row.proxy_id)).collect::<Vec<_>>()))
        .unwrap();
    assert_eq!(pid, socket.show_info().unwrap().pid);
    let (backends, ids): (Vec<String>, Vec<u32>) = backends.into_iter().unzip();
    assert_eq!(backends, ["http-app", "http-secure"]);
    let (again, rows) = socket.show_servers_of(&[ids[1], ids[0]]).unwrap();
    let all = ["one", "two", "BACKEND"].map(|name| pair("http-app", name));
    assert_eq!((again, names(&rows)), (pid, [&[pair("http-secure", "BACKEND")][..], &all].concat()));
    assert_eq!(socket.show_servers_of(&[]).unwrap(), (pid, Vec::new()));
    let many = socket.show_servers_of(&vec![ids[0]; 500]).unwrap().1;
    assert_eq!(many.len(), 1_500, "they fit into HAProxy's line");
}

#[test]
fn asks_a_worker_through_its_master() {
    let proxy = Proxy::with_servers();
    let worker = proxy.socket().show_info().unwrap().pid;
    let master = proxy.master();
    assert!(master.send_command(&Command::show_proc()).unwrap().contains(&format!("\n{worker} ")));
    let connections = master.send_command(&Command::show_servers_conn().to_worker(worker)).unwrap();
    assert!(connections.contains("\nhttp-app/one "), "{connections}");
    let backends = ["http-app", "http-none"].map(|backend| backend.parse().unwrap());
    let of_worker = master.count_sessions(&backends, Some(worker)).unwrap();
    assert_eq!(of_worker, proxy.socket().count_sessions(&backends, None).unwrap());
    let servers: Vec<_> = of_worker.iter().map(|it| (it.server.as_str(), it.count)).collect();
    assert_eq!(servers, [("one", 0), ("two", 0)]);
    let many: Vec<Word> = (0..1000).map(|n| format!("b{n}").parse().unwrap()).collect();
    assert_eq!(master.count_sessions(&many, Some(worker)).unwrap(), of_worker, "all there are");
    // If a master of 3.0 leaks some of the connections, it has none left before the last request.
    for _ in 0..300 {
        let refused = master.send_command(&Command::show_info().to_worker(1)).unwrap_err();
        assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    }
}

#[test]
fn changes_are_made_without_a_complaint() {
    let proxy = Proxy::with_servers();
    let socket = proxy.socket();
    let name = |server: &str| ServerName { backend: "http-app".parse().unwrap(), server: server.parse().unwrap() };
    let options = ServerOptions {
        id: None,
        weight: 100,
        check: true,
        liveness: true,
        check_tls: Some(CheckTls { sni: Some("a.test".parse().unwrap()) }),
        backup: true,
        maxconn: NonZeroU32::new(9),
        h2: true,
        send_proxy: Some(2),
        slowstart: Some(Duration::from_secs(1)),
        tls: None,
    };
    let tls = ServerTls {
        authorities: Some("@system-ca".parse().unwrap()),
        sni: Some(Sni::Variable("txn.host".parse().unwrap())),
        check_sni: Some("a.test".parse().unwrap()),
        verify_host: Some("a.test".parse().unwrap()),
    };
    let secure = ServerOptions { tls: Some(tls), check_tls: None, ..options.clone() };
    let named = ServerTls { sni: Some(Sni::Fixed("a.test".parse().unwrap())), ..ServerTls::default() };
    let unverified = ServerOptions { tls: Some(named), ..ServerOptions::default() };
    let at = |address: &str| Change::SetAddress(name("new"), address.parse().unwrap());
    let changes = [
        Change::AddServer(name("new"), "127.0.0.1:8003".parse().unwrap(), options, AdminState::Drain),
        Change::AddServer(name("secure"), "127.0.0.1:8003".parse().unwrap(), secure, AdminState::Maint),
        Change::AddServer(name("unverified"), "127.0.0.1:8003".parse().unwrap(), unverified, AdminState::Maint),
        Change::RefreshCookies("http-app".parse().unwrap()),
        Change::SetState(name("new"), AdminState::Ready),
        Change::SetWeight(name("new"), 7),
        at("127.0.0.1:8003"),
        at("127.0.0.1:8004"),
        at("127.0.0.2:8004"),
        at("[::1]:8005"),
        Change::SetState(name("one"), AdminState::Maint),
    ];
    for change in &changes {
        assert_eq!(socket.apply_changes(slice::from_ref(change)).unwrap(), Vec::<String>::new(), "{change}");
    }
    // From 3.0 on an address is taken over a moment after it was set.
    let seen = || {
        let servers = socket.show_servers_state().unwrap().servers;
        let new = servers.iter().find(|server| server.server == "new").unwrap();
        (new.address.clone(), new.port, new.weight)
    };
    proxy.wait_until(|| seen() == ("::1".to_owned(), 8005, 7));
    let servers = socket.show_servers_state().unwrap().servers;
    assert!(servers.iter().any(|server| server.server == "one" && server.admin.is_in_maintenance()));

    assert_eq!(socket.apply_changes(&[Change::SetWeight(name("nobody"), 7)]).unwrap(), ["No such server."]);
    for server in ["new", "secure", "unverified", "one", "one"] {
        assert_eq!(socket.remove_server(&name(server)).unwrap(), Removal::Removed, "{server}");
    }
    assert_eq!(socket.show_servers_state_of(&"http-app".parse().unwrap()).unwrap().servers.len(), 1);
}

#[test]
fn nobody_there_is_told_from_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    assert!(matches!(Socket::new(&path).show_info(), Err(Error::Absent { .. })));
    drop(UnixListener::bind(&path).unwrap());
    assert!(matches!(Socket::new(&path).show_info(), Err(Error::Absent { .. })), "a file left behind");
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
    let silent = Socket::new(&path).with_timeout(bound).show_info().unwrap_err();
    assert!(matches!(silent, Error::Exchange { .. }), "{silent}");
    // Two connections that the listener never accepts fill the queue. The standard library would wait there forever.
    let _queued: Vec<_> = (0..2).map(|_| socket_io::connect_unix(&path, bound)).collect();
    let full = Socket::new(&path).with_timeout(bound).show_info().unwrap_err();
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
    let error = Socket::new(&path).show_servers_state().unwrap_err();
    assert!(matches!(error, Error::CutShort { length: 25, .. }), "{error}");
    assert_eq!(server.join().unwrap(), b"show servers state\n");
}
