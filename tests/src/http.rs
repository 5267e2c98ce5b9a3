//! One request at a time, for assertions on its answer.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::tls;

/// Longer than any answer takes, and shorter than a test waits for anything.
const ANSWERS: Duration = Duration::from_secs(10);

/// No answer of HAProxy's or the web app's has more header lines.
const HEADERS: usize = 64;

/// A request to be sent over a connection of its own.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    tls: Option<String>,
    key: Option<&'static str>,
    from: Option<IpAddr>,
    body: String,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The header lines in their order, names lower-cased.
    pub headers: Vec<(String, String)>,
    /// The body as it came, chunks not joined.
    pub body: String,
    /// Over TLS: the server's certificate (DER).
    pub certificate: Option<Vec<u8>>,
}

impl Request {
    /// `GET target` for a host. `target` is sent as it is.
    pub fn get(host: &str, target: &str) -> Self {
        let headers = vec![("Host".to_owned(), host.to_owned())];
        Self {
            method: "GET".to_owned(),
            target: target.to_owned(),
            headers,
            tls: None,
            key: None,
            from: None,
            body: String::new(),
        }
    }

    /// Another method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        method.clone_into(&mut self.method);
        self
    }

    /// One more header line.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Over TLS, asking for a certificate of this name; an IP address means without SNI.
    #[must_use]
    pub fn tls(mut self, name: &str) -> Self {
        self.tls = Some(name.to_owned());
        self
    }

    /// Over TLS 1.2, as a client that takes certificates with one kind of key only: `RSA` or `ECDSA`.
    #[must_use]
    pub fn key(mut self, kind: &'static str) -> Self {
        self.key = Some(kind);
        self
    }

    /// With this body; its length is for the caller to tell.
    #[must_use]
    pub fn body(mut self, body: &str) -> Self {
        body.clone_into(&mut self.body);
        self
    }

    /// From this address of this machine.
    #[must_use]
    pub fn from(mut self, address: &str) -> Self {
        self.from = Some(address.parse().expect("an IP address"));
        self
    }

    /// Sends it and reads the answer until the connection is closed.
    ///
    /// # Errors
    /// What the socket or TLS said, or that the answer is no HTTP.
    pub fn send(&self, address: SocketAddr) -> io::Result<Response> {
        self.send_over(connect(address, self.from)?)
    }

    /// The same over a connection that has been open for a while.
    ///
    /// # Errors
    /// As [`Request::send`].
    pub fn send_over(&self, stream: TcpStream) -> io::Result<Response> {
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "Connection: close\r\n\r\n";
        text += &self.body;
        match &self.tls {
            None => parse(&exchange(stream, text.as_bytes())?),
            Some(name) => {
                let config = self.key.map_or_else(|| tls::client(&["http/1.1"]), tls::client_of);
                over_tls(stream, config, name, text.as_bytes())
            }
        }
    }
}

impl Response {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The value of a `name: value` line in the web app's answer.
    pub fn line(&self, name: &str) -> Option<&str> {
        self.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The name of the web app that answered, its answer's first line.
    pub fn app(&self) -> &str {
        self.body.lines().next().unwrap_or_default()
    }
}

/// Sends bytes as they are over a new connection and returns all that comes back until it is closed.
///
/// # Errors
/// What the socket said. Bytes that came before an error are returned.
pub fn raw(address: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    exchange(connect(address, None)?, request)
}

fn exchange(mut stream: TcpStream, request: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(request)?;
    read_all(&mut stream)
}

fn over_tls(stream: TcpStream, config: Arc<ClientConfig>, name: &str, request: &[u8]) -> io::Result<Response> {
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    stream.write_all(request)?;
    let mut response = parse(&read_all(&mut stream)?)?;
    response.certificate =
        stream.conn.peer_certificates().and_then(|chain| chain.first()).map(|certificate| certificate.to_vec());
    Ok(response)
}

/// A connection over which nobody waits for ever.
///
/// # Errors
/// What the socket said.
pub fn connect(address: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let stream = match from {
        None => TcpStream::connect_timeout(&address, ANSWERS)?,
        Some(from) => connect_from(from, address)?,
    };
    stream.set_read_timeout(Some(ANSWERS))?;
    stream.set_write_timeout(Some(ANSWERS))?;
    Ok(stream)
}

fn connect_from(from: IpAddr, address: SocketAddr) -> io::Result<TcpStream> {
    let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket.into())
}

fn read_all(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        // HAProxy closes TLS connections without close_notify.
        Err(error) if bytes.is_empty() || error.kind() == ErrorKind::WouldBlock => Err(error),
        _ => Ok(bytes),
    }
}

fn parse(bytes: &[u8]) -> io::Result<Response> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    match head.parse(bytes).map_err(io::Error::other)? {
        httparse::Status::Partial => Err(io::Error::other(format!("half an answer: {}", bytes.escape_ascii()))),
        httparse::Status::Complete(length) => Ok(Response {
            status: head.code.unwrap_or_default(),
            headers: head.headers.iter().map(owned).collect(),
            body: String::from_utf8_lossy(&bytes[length..]).into_owned(),
            certificate: None,
        }),
    }
}

fn owned(header: &httparse::Header<'_>) -> (String, String) {
    (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).into_owned())
}
