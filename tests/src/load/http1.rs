//! A correct client of HTTP/1.1, down to what each byte of the socket meant.

use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Failure, Fault, Kind, Plan, Reply, Tally};
use crate::tls;

/// No answer of HAProxy's or the web app's has more header lines.
const HEADERS: usize = 32;

/// One worker's client, with one connection at most.
pub(super) struct Client {
    plan: Arc<Plan>,
    tls: Option<Arc<ClientConfig>>,
    connection: Option<Connection>,
}

/// Bytes both ways, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

struct Connection {
    stream: Box<dyn Stream>,
    /// The socket below it.
    socket: RawFd,
    /// Requests sent over it: the one that fails tells whether a fresh or a kept connection broke.
    used: u32,
    buffer: Vec<u8>,
}

/// The head of an answer.
struct Head {
    status: u16,
    length: usize,
    body: Option<usize>,
    close: bool,
}

impl Client {
    pub(super) fn new(plan: &Arc<Plan>) -> Self {
        let tls = (plan.kind == Kind::PerHandshake).then(tls::whole_handshakes);
        Self { plan: Arc::clone(plan), tls, connection: None }
    }

    /// Sends the request of this number and reads the whole answer.
    pub(super) async fn exchange(&mut self, number: u64, tally: &Mutex<Tally>) -> Result<Reply, Failure> {
        let kept = self.connection.take().map(Connection::still_open).transpose()?.flatten();
        let mut connection = match kept {
            Some(connection) => connection,
            None => {
                tally.lock().expect("the tally").connected();
                Connection::open(&self.plan, self.tls.as_ref()).await?
            }
        };
        let keep = self.plan.kind == Kind::KeepAlive;
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\n{}\r\n",
            self.plan.target_of(number),
            self.plan.host,
            if keep { "" } else { "Connection: close\r\n" }
        );
        let (reply, close) = connection.exchange(request.as_bytes()).await?;
        if keep && !close {
            self.connection = Some(connection);
        } else {
            connection.finish().await?;
        }
        Ok(reply)
    }
}

impl Connection {
    async fn open(plan: &Plan, tls: Option<&Arc<ClientConfig>>) -> Result<Self, Failure> {
        let opened = TcpStream::connect(plan.target).await;
        let stream = opened.map_err(|error| Failure::of_socket(&error, "connecting"))?;
        let socket = stream.as_raw_fd();
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(stream),
            Some(config) => {
                let name = ServerName::try_from(plan.host.clone()).expect("a host name");
                let secured = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
                Box::new(secured.map_err(|error| Failure::of_socket(&error, "shaking hands"))?)
            }
        };
        Ok(Self { stream, socket, used: 0, buffer: Vec::with_capacity(2_048) })
    }

    /// The connection, unless the server has closed it while it was idle. The kernel is asked: the runtime may not have
    /// seen the FIN yet.
    fn still_open(self) -> Result<Option<Self>, Failure> {
        match recv(self.socket, &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN) => Ok(Some(self)),
            Ok(0) | Err(Errno::ECONNRESET) => Ok(None),
            Ok(_) => Err(Failure::new(Fault::Protocol, format!("{}: bytes nobody asked for", self.place("idle")))),
            Err(error) => Err(Failure::of_socket(&error.into(), self.place("idle"))),
        }
    }

    async fn exchange(&mut self, request: &[u8]) -> Result<(Reply, bool), Failure> {
        self.used += 1;
        self.buffer.clear();
        let written = self.stream.write_all(request).await;
        written.map_err(|error| Failure::of_socket(&error, self.place("sending")))?;
        let head = loop {
            if let Some(head) = self.head()? {
                break head;
            }
            self.more().await?;
        };
        let body = match head.body {
            Some(length) => {
                while self.buffer.len() < head.length + length {
                    self.more().await?;
                }
                &self.buffer[head.length..]
            }
            None => {
                let end = self.stream.read_to_end(&mut self.buffer).await;
                end.map_err(|error| Failure::of_socket(&error, self.place("reading a body")))?;
                &self.buffer[head.length..]
            }
        };
        if head.body.is_some_and(|length| body.len() > length) {
            return Err(Failure::new(Fault::Protocol, format!("{}: more than the answer", self.place("reading"))));
        }
        Ok((Reply { status: head.status, body: body.to_vec() }, head.close || head.body.is_none()))
    }

    async fn more(&mut self) -> Result<(), Failure> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) if self.buffer.is_empty() => {
                Err(Failure::new(Fault::ClosedBeforeAnswer, self.place("waiting for the answer")))
            }
            Ok(0) => Err(Failure::new(Fault::ClosedMidAnswer, self.place("reading the answer"))),
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::of_socket(&error, self.place("reading the answer"))),
        }
    }

    /// Waits for the server's own close, so that the ports in TIME_WAIT are not the client's.
    async fn finish(mut self) -> Result<(), Failure> {
        self.buffer.clear();
        match self.stream.read_buf(&mut self.buffer).await {
            // A reset after a whole answer took nothing away.
            Ok(0) | Err(_) => Ok(()),
            Ok(_) => Err(Failure::new(Fault::Protocol, format!("{}: more than the answer", self.place("closing")))),
        }
    }

    fn head(&self) -> Result<Option<Head>, Failure> {
        let unreadable = |error: &dyn std::fmt::Display| {
            let shown = self.buffer[..self.buffer.len().min(200)].escape_ascii();
            Failure::new(Fault::Protocol, format!("{}: {error}: {shown}", self.place("reading the answer")))
        };
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut head = httparse::Response::new(&mut headers);
        let length = match head.parse(&self.buffer).map_err(|error| unreadable(&error))? {
            httparse::Status::Partial => return Ok(None),
            httparse::Status::Complete(length) => length,
        };
        let find = |name: &str| {
            let found = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            found.and_then(|header| std::str::from_utf8(header.value).ok())
        };
        if let Some(coding) = find("transfer-encoding") {
            return Err(unreadable(&format_args!("this client reads no {coding} answers")));
        }
        let body = find("content-length").map(|length| length.trim().parse()).transpose();
        Ok(Some(Head {
            status: head.code.unwrap_or_default(),
            length,
            body: body.map_err(|error: std::num::ParseIntError| unreadable(&error))?,
            close: find("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
        }))
    }

    fn place(&self, act: &str) -> String {
        format!("{act}, request {} of its connection, {} bytes read", self.used, self.buffer.len())
    }
}
