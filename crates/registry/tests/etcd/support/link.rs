//! A TCP link to a port of this host that can be cut and mended.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub(crate) struct Link {
    port: u16,
    open: watch::Sender<bool>,
    arrivals: Arrivals,
}

type Arrivals = Arc<Mutex<Vec<Instant>>>;

impl Link {
    /// A link to an endpoint of this host.
    pub(crate) async fn to(endpoint: &str) -> Self {
        let (_, port) = endpoint.rsplit_once(':').expect("a port");
        let target = port.parse().expect("a port");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (open, watched) = watch::channel(true);
        let arrivals = Arrivals::default();
        tokio::spawn(accept(listener, target, watched, arrivals.clone()));
        Self { port, open, arrivals }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends every connection, and each new one at once.
    pub(crate) fn cut(&self) {
        self.open.send_replace(false);
    }

    /// When connections came in while it was open.
    pub(crate) fn arrivals(&self) -> Vec<Instant> {
        self.arrivals.lock().expect("not poisoned").clone()
    }

    pub(crate) fn mend(&self) {
        self.open.send_replace(true);
    }
}

async fn accept(listener: TcpListener, target: u16, mut open: watch::Receiver<bool>, arrivals: Arrivals) {
    loop {
        tokio::select! {
            connection = listener.accept() => {
                if let Ok((connection, _)) = connection && *open.borrow() {
                    arrivals.lock().expect("not poisoned").push(Instant::now());
                    tokio::spawn(forward(connection, target, open.clone()));
                }
            }
            changed = open.changed() => if changed.is_err() { return },
        }
    }
}

async fn forward(mut near: TcpStream, target: u16, mut open: watch::Receiver<bool>) {
    let Ok(mut far) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => {}
        _ = open.wait_for(|open| !open) => {}
    }
}
