//! Connections that are opened early and get their first request late, as browsers open them.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use crate::http::connect;
use crate::tls;

/// How far the client is when it pauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// It has connected, in the clear.
    Connected,
    /// It has sent a part of a request, in the clear.
    InRequest,
    /// It has connected, and its TLS handshake has not begun.
    BeforeHandshake,
    /// Its TLS handshake is complete.
    AfterHandshake,
    /// It has sent a part of a request over TLS.
    InTlsRequest,
    /// It has opened a connection of HTTP/2.
    Http2,
    /// It has sent a part of a request over HTTP/2.
    InHttp2Request,
}

impl Pause {
    /// Each of them.
    pub const ALL: [Self; 7] = [
        Self::Connected,
        Self::InRequest,
        Self::BeforeHandshake,
        Self::AfterHandshake,
        Self::InTlsRequest,
        Self::Http2,
        Self::InHttp2Request,
    ];

    fn is_tls(self) -> bool {
        !matches!(self, Self::Connected | Self::InRequest)
    }

    fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::InHttp2Request)
    }

    fn is_in_request(self) -> bool {
        matches!(self, Self::InRequest | Self::InTlsRequest | Self::InHttp2Request)
    }
}

/// Bytes both ways, encrypted or not.
trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// The client.
pub struct Early {
    pause: Pause,
    stream: Box<dyn Stream>,
    /// The rest of its request.
    rest: Vec<u8>,
}

/// What opens a connection of HTTP/2 (RFC 9113, section 3.4): the preface and empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Frames' types and the flag of a stream's last one.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

impl Early {
    /// Opens a connection and goes on until the pause. The host's `/` is what it will ask for.
    ///
    /// # Errors
    /// What the socket or TLS said.
    pub fn open(pause: Pause, address: SocketAddr, host: &str) -> io::Result<Self> {
        let mut socket = connect(address, None)?;
        let mut stream: Box<dyn Stream> = if pause.is_tls() {
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
            let alpn = if pause.is_http2() { "h2" } else { "http/1.1" };
            let mut connection = ClientConnection::new(tls::client(&[alpn]), name).map_err(io::Error::other)?;
            if pause != Pause::BeforeHandshake {
                while connection.is_handshaking() {
                    connection.complete_io(&mut socket)?;
                }
            }
            Box::new(StreamOwned::new(connection, socket))
        } else {
            Box::new(socket)
        };
        let mut rest = if pause.is_http2() {
            stream.write_all(PREFACE)?;
            http2_request(host)
        } else {
            format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").into_bytes()
        };
        if pause.is_in_request() {
            let later = rest.split_off(rest.len() / 2);
            stream.write_all(&rest)?;
            rest = later;
        }
        stream.flush()?;
        Ok(Self { pause, stream, rest })
    }

    /// Completes the request, and returns the name of the web app that answers.
    ///
    /// # Errors
    /// What the socket said, or what came instead of a whole answer.
    pub fn finish(mut self) -> io::Result<String> {
        self.stream.write_all(&self.rest)?;
        self.stream.flush()?;
        let body = if self.pause.is_http2() { self.read_http2()? } else { self.read_http1()? };
        Ok(body.lines().next().unwrap_or_default().to_owned())
    }

    fn read_http1(&mut self) -> io::Result<String> {
        let mut bytes = Vec::new();
        // HAProxy closes TLS connections without close_notify.
        let ended = self.stream.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        match text.strip_prefix("HTTP/1.1 200").and_then(|text| text.split_once("\r\n\r\n")) {
            Some((_, body)) if !body.is_empty() => Ok(body.to_owned()),
            _ => Err(io::Error::other(format!("{:?}: {text:?}, then {ended:?}", self.pause))),
        }
    }

    fn read_http2(&mut self) -> io::Result<String> {
        let mut body = Vec::new();
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head)?;
            let [a, b, c, kind, flags, stream @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.stream.read_exact(&mut payload)?;
            match (kind, u32::from_be_bytes(stream)) {
                (DATA, 1) => body.extend(payload),
                (RST_STREAM, 1) => return Err(io::Error::other(format!("{:?}: reset: {payload:?}", self.pause))),
                _ => {}
            }
            if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                return Ok(String::from_utf8_lossy(&body).into_owned());
            }
        }
    }
}

/// `GET /` as the first stream of a connection, with its fields as literals (RFC 7541, section 6.2.2).
fn http2_request(host: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [(":method", "GET"), (":scheme", "https"), (":authority", host), (":path", "/")] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("a short field"));
            block.extend(text.as_bytes());
        }
    }
    let length = u32::try_from(block.len()).expect("a short block").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([HEADERS, END_STREAM | END_HEADERS, 0, 0, 0, 1]);
    frame.extend(block);
    frame
}
