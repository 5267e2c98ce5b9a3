//! The receiving end of HAProxy's log.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread::spawn;

/// A syslog server on UDP that keeps what it gets, until the process ends.
pub struct Syslog {
    address: SocketAddr,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Syslog {
    /// Starts to listen on loopback.
    pub fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a UDP port");
        let address = socket.local_addr().expect("its address");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        spawn(move || {
            // HAProxy cuts a log line at 1,024 bytes unless told; no UDP datagram is longer than this.
            let mut datagram = vec![0; 65_536];
            while let Ok(length) = socket.recv(&mut datagram) {
                let line = String::from_utf8_lossy(&datagram[..length]).into_owned();
                kept.lock().expect("the log").push(line);
            }
        });
        Self { address, lines }
    }

    /// Where to send to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The datagrams so far, with syslog's header.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("the log").clone()
    }

    /// The messages of the access log so far: from the first brace on.
    pub fn access(&self) -> Vec<String> {
        let message = |line: &String| line.find('{').map(|start| line[start..].trim_end().to_owned());
        self.lines().iter().filter_map(message).collect()
    }
}
