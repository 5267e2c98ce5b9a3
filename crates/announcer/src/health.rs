//! Whether the app works, and where. Health checks will live here; until then, an app that accepts a connection works.

use std::{net::SocketAddr, time::Duration};

use discovery::UpstreamAddress;
use registry::Endpoint;
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    address::{self, AddressError, Whereabouts},
    report::Report,
    retry,
};

/// How long the first look for the address may put the app's start off; only a slow name server takes any time.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// A full accept queue or a firewall answers nothing at all.
const CONNECT: Duration = Duration::from_secs(1);

/// The address, if it can be known before the app is started; an error if it never will be.
pub(crate) async fn first_look(
    whereabouts: &Whereabouts,
    endpoints: &[Endpoint],
) -> Result<Option<UpstreamAddress>, AddressError> {
    match timeout(FIRST_LOOK, address::find(whereabouts, endpoints)).await {
        Ok(Ok(address)) => Ok(Some(address)),
        Ok(Err(error)) if !error.is_temporary() => Err(error),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the app's address can't be found for now; trying on");
            Ok(None)
        }
        Err(_) => {
            tracing::warn!("the app's address can't be found for now: the name server doesn't answer; trying on");
            Ok(None)
        }
    }
}

/// The address, however long it takes.
pub(crate) async fn find_patiently(whereabouts: &Whereabouts, endpoints: &[Endpoint]) -> UpstreamAddress {
    let mut delays = retry::store_delays();
    loop {
        match address::find(whereabouts, endpoints).await {
            Ok(address) => return address,
            Err(error) => tracing::debug!(%error, "no address yet"),
        }
        sleep(delays.next().unwrap_or_default()).await;
    }
}

/// Reports the app as healthy once it is. An app of our own has to answer first, at one of the addresses that it
/// `listens` at, or where it is announced if there are none; with an app that something else runs there is no wait.
pub(crate) async fn watch(address: UpstreamAddress, listens: Option<Vec<SocketAddr>>, reports: mpsc::Sender<Report>) {
    if let Some(mut listens) = listens {
        if listens.is_empty() {
            listens.push(address.socket());
        }
        until_listening(&listens).await;
        tracing::info!(%address, "the app accepts connections");
    }
    let _ = reports.send(Report::Healthy(address)).await;
}

/// Waits until one of the addresses accepts a connection, for as long as that takes.
async fn until_listening(addresses: &[SocketAddr]) {
    for delay in retry::local_delays() {
        for address in addresses {
            if matches!(timeout(CONNECT, TcpStream::connect(address)).await, Ok(Ok(_))) {
                return;
            }
        }
        sleep(delay).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn waits_for_the_first_that_listens() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = taken.local_addr().unwrap();
        drop(taken);
        let waits = timeout(Duration::from_millis(100), until_listening(&[closed])).await;
        assert!(waits.is_err());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        until_listening(&[closed, listener.local_addr().unwrap()]).await;
    }
}
