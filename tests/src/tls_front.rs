//! TLS that an app has in front of it on its own host.

use std::io;
use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::{App, Certificate, runtime, tls};

/// A web app behind a listener of this process that speaks TLS. Dropping it ends both.
pub struct Front {
    /// The app, which can be reached by itself too.
    pub app: App,
    /// Where the listener is.
    pub address: SocketAddr,
    certificate: Certificate,
    listening: JoinHandle<()>,
}

impl Front {
    /// An app with a certificate of its own for this host.
    pub fn new(name: &str, host: &str) -> Self {
        let (app, certificate) = (App::alone(name), Certificate::of(&[host]));
        let (acceptor, to) = (TlsAcceptor::from(tls::server(&certificate)), app.address);
        let listener = runtime::run(TcpListener::bind("127.0.0.1:0")).expect("a port of loopback");
        let address = listener.local_addr().expect("its address");
        let listening = runtime::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // How it ends is the client's to see; a check hangs up at once.
                runtime::spawn(carry(stream, acceptor.clone(), to));
            }
        });
        Self { app, address, certificate, listening }
    }

    /// What a client is shown: a certificate in DER.
    pub fn der(&self) -> &[u8] {
        &self.certificate.der
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn carry(stream: TcpStream, acceptor: TlsAcceptor, to: SocketAddr) -> io::Result<()> {
    let mut client = acceptor.accept(stream).await?;
    copy_bidirectional(&mut client, &mut TcpStream::connect(to).await?).await?;
    Ok(())
}
