//! A way to the engine that can break, hang, or let only reads through.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const OPEN: u8 = 0;
const CUT: u8 = 1;
const FROZEN: u8 = 2;

/// The way. Dropping it closes what goes over it.
pub(crate) struct EngineLink {
    mode: Arc<AtomicU8>,
    path: PathBuf,
    address: Option<SocketAddr>,
    streams: Arc<Mutex<Vec<UnixStream>>>,
}

impl EngineLink {
    /// A socket at `path` that leads to the engine's.
    pub(crate) fn open(path: &Path, engine: &'static str) -> Self {
        let link = Self::new(path.to_owned(), None);
        let listener = UnixListener::bind(path).unwrap();
        let (mode, streams) = (link.mode.clone(), link.streams.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if mode.load(Ordering::Relaxed) != CUT {
                    forward(client, engine, &mode, &streams);
                }
            }
        });
        link
    }

    /// A port that answers 403 to everything but GET and HEAD.
    pub(crate) fn reading_at_port(engine: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = Self::new(PathBuf::new(), listener.local_addr().ok());
        let (mode, streams) = (link.mode.clone(), link.streams.clone());
        thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let mut begin = [0; 4];
                if client.peek(&mut begin).is_ok() && &begin != b"GET " && &begin != b"HEAD" {
                    let _ = client.read(&mut [0; 4096]);
                    let answer = "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
                    let _ = client.write_all(answer.as_bytes());
                    continue;
                }
                forward(client, engine, &mode, &streams);
            }
        });
        link
    }

    fn new(path: PathBuf, address: Option<SocketAddr>) -> Self {
        Self { mode: Arc::new(AtomicU8::new(OPEN)), path, address, streams: Arc::default() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address.expect("a port")
    }

    /// Closes all connections, and every new one at once.
    pub(crate) fn cut(&mut self) {
        self.mode.store(CUT, Ordering::Relaxed);
        self.close();
    }

    /// Lets connections come, and no byte through.
    pub(crate) fn freeze(&mut self) {
        self.mode.store(FROZEN, Ordering::Relaxed);
    }

    /// Lets everything through again. What hung is closed.
    pub(crate) fn heal(&mut self) {
        self.close();
        self.mode.store(OPEN, Ordering::Relaxed);
    }

    fn close(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for EngineLink {
    fn drop(&mut self) {
        self.cut();
    }
}

/// A stream that both ends can read and write.
trait Stream: Read + Write + Send + Sized + 'static {
    fn twin(&self) -> io::Result<Self>;
    fn end(&self);
}

impl Stream for UnixStream {
    fn twin(&self) -> io::Result<Self> {
        self.try_clone()
    }

    fn end(&self) {
        let _ = self.shutdown(std::net::Shutdown::Both);
    }
}

impl Stream for TcpStream {
    fn twin(&self) -> io::Result<Self> {
        self.try_clone()
    }

    fn end(&self) {
        let _ = self.shutdown(std::net::Shutdown::Both);
    }
}

fn forward(client: impl Stream, engine: &str, mode: &Arc<AtomicU8>, streams: &Arc<Mutex<Vec<UnixStream>>>) {
    let Ok(server) = UnixStream::connect(engine) else { return };
    streams.lock().unwrap().push(server.twin().unwrap());
    let (client_in, server_in) = (client.twin().unwrap(), server.twin().unwrap());
    let modes = (mode.clone(), mode.clone());
    thread::spawn(move || pump(client_in, server_in, &modes.0));
    thread::spawn(move || pump(server, client, &modes.1));
}

fn pump(mut from: impl Stream, mut to: impl Stream, mode: &AtomicU8) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        while mode.load(Ordering::Relaxed) == FROZEN {
            thread::sleep(Duration::from_millis(20));
        }
        if to.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    to.end();
    from.end();
}
