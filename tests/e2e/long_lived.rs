//! What lasts longer than a process of HAProxy: WebSockets, downloads, connections of TCP services.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use lab::{Ground, PATIENCE, WebSocket, light, until};

/// Lines of a download, and the time between two: some eight seconds, over two restarts.
const LINES: usize = 40;
const PAUSE: u32 = 200;

/// A download under way.
struct Download {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: thread::JoinHandle<()>,
}

impl Download {
    fn begin(address: SocketAddr, host: &str) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request =
            format!("GET /drip?lines={LINES}&ms={PAUSE} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let read = Arc::clone(&bytes);
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                read.lock().unwrap().extend_from_slice(&buffer[..length]);
            }
        });
        Self { bytes, reader }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    fn lines(&self) -> usize {
        self.text().matches("line ").count()
    }
}

#[test]
fn nothing_is_cut_by_a_restart() {
    let _turn = light();
    let ground = Ground::build().http("shop", "shop.test", &["shop"]).tcp("chat", &["shop"]).start();
    let Ground { etcd, balancer, apps, tcp } = ground;

    let (http, https, tcp) = (balancer.http(), balancer.https(), tcp["chat"]);
    let mut sockets = [(http, false), (https, true), (tcp, false)]
        .map(|(address, secure)| (address, WebSocket::open(address, "shop.test", secure)));
    let mut say = |text: &str| {
        for (address, socket) in &mut sockets {
            let answer = socket.ask(text).unwrap_or_else(|error| panic!("{address}, {text}: {error}"));
            assert_eq!(answer, text, "{address}");
        }
    };
    say("before");
    let downloads = [http, tcp].map(|address| Download::begin(address, "shop.test"));
    let under_way = |lines: usize| {
        until(PATIENCE, "the downloads", || downloads.iter().all(|download| download.lines() > lines));
    };
    under_way(0);
    let mut workers = vec![balancer.worker()];

    // By hand, and by confgen for a new service.
    balancer.restart();
    until(PATIENCE, "another process", || !workers.contains(&balancer.worker()));
    workers.push(balancer.worker());
    say("after a restart");
    etcd.http_service("blog", "blog.test", &[&apps[0]]);
    balancer.wait_status(PATIENCE, "blog.test", "/", 200);
    until(PATIENCE, "another process", || !workers.contains(&balancer.worker()));
    say("after another");
    assert!(
        downloads.iter().all(|download| download.lines() < LINES),
        "the downloads have been under way all the time"
    );

    for Download { bytes, reader } in downloads {
        reader.join().unwrap();
        let text = String::from_utf8_lossy(&bytes.lock().unwrap()).into_owned();
        let whole = (0..LINES).all(|number| text.contains(&format!("line {number}\n")));
        assert!(whole && text.ends_with("\r\n0\r\n\r\n"), "cut: {text}");
    }
    say("after all");
}
