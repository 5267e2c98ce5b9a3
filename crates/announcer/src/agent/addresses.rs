//! The host's address in records. It is found again every so often, because a host may get another one while it runs. It
//! decides nothing about records.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use containers::HostAddresses;
use registry::Endpoint;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::agent::engines::News;
use crate::config::address::{self, AddressError, AddressFinder, AddressSource};
use crate::config::container_options::ScopeOptions;
use crate::config::host::Host;

/// Time between two searches. Each one asks the kernel for routes, and the resolver for etcd's names.
const INTERVAL: Duration = Duration::from_secs(10);

/// Time after which a new address must still be found. An interface that is set up has several for a moment.
const CONFIRMATION: Duration = Duration::from_secs(1);

/// A port for the search of an address, which is then left out.
const ANY_PORT: u16 = 9;

/// How the host's address is found.
#[derive(Clone, Debug)]
pub(crate) struct HostAddressFinder {
    interface: Option<String>,
    given: Option<IpAddr>,
    endpoints: Vec<Endpoint>,
}

impl HostAddressFinder {
    pub(crate) fn new(options: &ScopeOptions, endpoints: &[Endpoint]) -> Self {
        let private = || Host::from_system().private_ipv4.and_then(|text| text.parse::<IpAddr>().ok());
        Self {
            interface: options.interface.clone(),
            given: options.host_address.or_else(private),
            endpoints: endpoints.to_vec(),
        }
    }

    /// True if the address may change while the agent runs.
    pub(crate) fn may_change(&self) -> bool {
        self.interface.is_some() || self.given.is_none()
    }

    /// Finds the addresses. They may be none.
    pub(crate) async fn find(&self) -> Result<HostAddresses, AddressError> {
        let given = match &self.interface {
            Some(name) => {
                let by = AddressFinder::Interface(name.clone());
                let found = address::find_address(&AddressSource::Find { port: ANY_PORT, by }, &self.endpoints).await?;
                Some(SocketAddr::ip(&found.socket_addr()))
            }
            None => self.given,
        };
        let places: Vec<_> = self.endpoints.iter().map(|it| (it.host().to_owned(), it.port())).collect();
        Ok(HostAddresses::find_addresses(given, &places).await)
    }
}

/// Reports each change of the host's address, until the agent ends. A host without an address keeps the last one.
pub(crate) async fn follow_address(finder: HostAddressFinder, mut known: HostAddresses, news: mpsc::Sender<News>) {
    loop {
        // Hosts of a fleet need not ask their resolver in one instant.
        sleep(INTERVAL.mul_f64(1.0 - 0.2 * fastrand::f64())).await;
        let Some(found) = find_other(&finder, &known).await else { continue };
        sleep(CONFIRMATION).await;
        if find_other(&finder, &known).await.as_ref() != Some(&found) {
            continue;
        }
        known = found.clone();
        if news.send(News::Moved(found)).await.is_err() {
            return;
        }
    }
}

/// The host's addresses, if they differ from the known ones.
async fn find_other(finder: &HostAddressFinder, known: &HostAddresses) -> Option<HostAddresses> {
    let found = finder.find().await;
    if let Err(error) = &found {
        tracing::debug!(%error, "the host has no address now, keeping the last one");
    }
    found.ok().filter(|found| found.main_address().is_some() && found != known)
}
