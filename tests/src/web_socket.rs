//! A WebSocket, in the clear or over TLS.

use std::io::{Read, Write};
use std::net::SocketAddr;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use tungstenite::Message;

use crate::http::connect;
use crate::tls;

/// Bytes both ways, encrypted or not.
trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// An open WebSocket. Dropping it hangs up.
pub struct WebSocket(tungstenite::WebSocket<Box<dyn Stream>>);

impl WebSocket {
    /// Opens `/ws` of a host.
    pub fn open(address: SocketAddr, host: &str, secure: bool) -> Self {
        let stream = connect(address, None).expect("a connection");
        let stream: Box<dyn Stream> = if secure {
            let name = ServerName::try_from(host.to_owned()).expect("a host name");
            let connection = ClientConnection::new(tls::client(&["http/1.1"]), name).expect("TLS");
            Box::new(StreamOwned::new(connection, stream))
        } else {
            Box::new(stream)
        };
        let (socket, _) = tungstenite::client(format!("ws://{host}/ws"), stream)
            .unwrap_or_else(|error| panic!("a WebSocket to {host}: {error}"));
        Self(socket)
    }

    /// Says something, and returns what comes back.
    ///
    /// # Errors
    /// What became of the connection.
    pub fn ask(&mut self, text: &str) -> Result<String, tungstenite::Error> {
        self.0.send(Message::text(text))?;
        loop {
            if let Message::Text(answer) = self.0.read()? {
                return Ok(answer.to_string());
            }
        }
    }
}
