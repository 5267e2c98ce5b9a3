//! The app behind HAProxy, and clients that count every request.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lab::PATIENCE;

use crate::lab::Lab;

/// An app that answers `/slow` over 4 s, and everything else at once.
pub(crate) fn serve_app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

/// `/slow` is this many lines, 100 ms apart.
pub(crate) const SLOW_LINES: usize = 40;

fn serve(stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    while let Some(path) = read_request(&mut reader)? {
        if path == "/slow" {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", SLOW_LINES * 5)?;
            for _ in 0..SLOW_LINES {
                stream.write_all(b"slow\n")?;
                std::thread::sleep(Duration::from_millis(100));
            }
        } else {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")?;
        }
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut path = None;
    for line in reader.lines() {
        let line = line?;
        if line.is_empty() {
            return Ok(path);
        }
        path.get_or_insert_with(|| line.split(' ').nth(1).unwrap_or_default().to_owned());
    }
    Ok(None)
}

/// The body of a 200, and whether HAProxy closes the connection behind it.
fn request(stream: &mut TcpStream, path: &str, connection: &str) -> Result<(String, bool), String> {
    stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    // In one piece: several small ones would wait for each other's acknowledgement.
    let text = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(text.as_bytes()).map_err(|error| format!("send: {error}"))?;
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).map_err(|error| format!("head: {error}"))? == 0 {
            return Err(format!("closed after {} bytes", head.len()));
        }
    }
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let closes = head.lines().any(|line| line == "connection: close");
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).map_err(|error| format!("body: {error}"))?;
    let body = String::from_utf8(body).map_err(|error| error.to_string())?;
    if head.starts_with("http/1.1 200 ") {
        Ok((body, closes))
    } else {
        Err(head.lines().next().unwrap_or("?").to_owned())
    }
}

/// Clients that ask again and again until they are stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<(usize, Vec<String>)>>,
}

impl Load {
    /// Starts four clients with a new connection for each request, and two that keep theirs as long as HAProxy does.
    pub(crate) fn on(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..6).map(|client| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || ask_until(&stop, address, client >= 4))
        });
        Self { clients: clients.collect(), stop }
    }

    /// Stops them; every request must have been answered, and there must have been some.
    pub(crate) fn stop_without_a_loss(self, lab: &Lab) {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = String::new();
        let mut asked = 0;
        for client in self.clients {
            let (requests, failures) = client.join().unwrap();
            asked += requests;
            failures.iter().for_each(|failure| writeln!(report, "{failure}").unwrap());
        }
        assert!(asked > 100, "only {asked} requests");
        assert!(report.is_empty(), "of {asked} requests:\n{report}{}", lab.log());
    }
}

fn ask_until(stop: &AtomicBool, address: SocketAddr, keep: bool) -> (usize, Vec<String>) {
    let (mut requests, mut failures) = (0, Vec::new());
    let mut kept: Option<TcpStream> = None;
    while !stop.load(Ordering::Relaxed) {
        requests += 1;
        let stream = kept.take().map_or_else(|| TcpStream::connect(address), Ok);
        let answer = stream.map_err(|error| format!("connect: {error}")).and_then(|mut stream| {
            let (_, closes) = request(&mut stream, "/", if keep { "keep-alive" } else { "close" })?;
            kept = Some(stream).filter(|_| keep && !closes);
            Ok(())
        });
        failures.extend(answer.err().map(|error| format!("request {requests}, kept {keep}: {error}")));
        std::thread::sleep(Duration::from_millis(5));
    }
    (requests, failures)
}
