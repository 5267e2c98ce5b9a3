//! Where an upstream is, and whether it works, for as long as that is of interest.

mod probe;

use std::{net::SocketAddr, time::Duration};

use discovery::UpstreamAddress;
use registry::Endpoint;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::config::address;
use crate::config::address::{AddressError, AddressSource};
use crate::config::upstream::Upstream;
use crate::health::Health;
use crate::health::check::Checks;
use crate::health_loop::probe::Probe;
use crate::message::Message;
use crate::processes::reaper::Reaper;
use crate::status::metrics::UpstreamCheckCounters;
use crate::{health, retry};

/// How long the first look for the address may put the app's start off; only a slow name server takes any time.
const FIRST_ATTEMPT_LIMIT: Duration = Duration::from_secs(1);

/// A full accept queue or a firewall answers nothing at all.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// The time between checks of an app that is only starting: what is waited for is its first success.
const STARTING_INTERVAL: Duration = Duration::from_millis(200);

/// The address, if it can be known before the app is started; an error if it never will be.
pub(crate) async fn find_address_once(
    whereabouts: &AddressSource,
    endpoints: &[Endpoint],
) -> Result<Option<UpstreamAddress>, AddressError> {
    match timeout(FIRST_ATTEMPT_LIMIT, address::find_address(whereabouts, endpoints)).await {
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
async fn find_address_with_retries(whereabouts: &AddressSource, endpoints: &[Endpoint]) -> UpstreamAddress {
    let mut delays = retry::store_delays();
    loop {
        match address::find_address(whereabouts, endpoints).await {
            Ok(address) => return address,
            Err(error) => tracing::debug!(%error, "no address yet"),
        }
        sleep(delays.next().unwrap_or_default()).await;
    }
}

/// One upstream to be watched.
pub(crate) struct HealthLoop {
    /// Its place among the configured ones.
    pub(crate) index: usize,
    pub(crate) upstream: Upstream,
    /// The address, if it is known already.
    pub(crate) address: Option<UpstreamAddress>,
    /// The app is ours: it has to answer even without a check.
    pub(crate) runs_app: bool,
    pub(crate) counters: UpstreamCheckCounters,
    pub(crate) messages: mpsc::Sender<Message>,
}

impl HealthLoop {
    /// Reports each time that the upstream begins to work, or no longer does.
    pub(crate) async fn run(self, endpoints: Vec<Endpoint>, reaper: Reaper) {
        let address = match self.address {
            Some(address) => address,
            None => find_address_with_retries(&self.upstream.address_source, &endpoints).await,
        };
        let listens = match self.upstream.listen_addresses.as_slice() {
            [] => vec![address.socket_addr()],
            listens => listens.to_vec(),
        };
        let checks = &self.upstream.checks;
        if !checks.all.is_empty() {
            let probes = checks.all.iter().map(|check| Probe::new(check.clone(), &listens, &reaper)).collect();
            return self.run_checks(address, probes).await;
        }
        if self.runs_app {
            wait_until_listening(&listens).await;
            tracing::info!(%address, "the app accepts connections");
        }
        self.report_health(address, Health::Up(0)).await;
    }

    async fn run_checks(&self, address: UpstreamAddress, mut probes: Vec<Probe>) {
        let checks = &self.upstream.checks;
        let began = Instant::now();
        let (mut health, mut is_late) = (Health::New(0), false);
        loop {
            let due = Instant::now() + check_interval(checks, health);
            let outcome;
            (probes, outcome) = run_probes(probes, checks.timeout).await;
            self.counters.count_round(outcome.is_ok());
            let before = health;
            health = health::step(before, outcome.is_ok(), checks.thresholds);
            let was_late = std::mem::replace(&mut is_late, began.elapsed() >= checks.grace);
            log_transition(address, before, health, &outcome, is_late && !was_late);
            if health.is_up() != before.is_up() {
                self.report_health(address, health).await;
            }
            sleep_until(due).await;
        }
    }

    async fn report_health(&self, address: UpstreamAddress, health: Health) {
        let _ = self.messages.send(Message::Health { upstream: self.index, address, health }).await;
    }
}

/// What changes is said once; an app that is late too.
fn log_transition(
    address: UpstreamAddress,
    before: Health,
    health: Health,
    outcome: &Result<(), String>,
    is_newly_late: bool,
) {
    match (before, health, outcome) {
        (Health::Up(_), Health::Down(_), Err(reason)) => tracing::warn!(%address, reason, "no longer works"),
        (_, Health::New(_), Err(reason)) if is_newly_late => {
            tracing::warn!(%address, reason, "still doesn't work, and isn't announced; checking on");
        }
        (_, _, Err(reason)) => tracing::debug!(%address, reason, ?health, "a check failed"),
        (Health::New(_) | Health::Down(_), Health::Up(_), Ok(())) => tracing::info!(%address, "works"),
        (_, _, Ok(())) => {}
    }
}

/// The time until the next check.
fn check_interval(checks: &Checks, health: Health) -> Duration {
    match health {
        Health::New(_) => checks.interval.min(STARTING_INTERVAL),
        Health::Up(_) | Health::Down(_) => checks.interval,
    }
}

/// All checks at the same time. The failure is that of the first in their order.
async fn run_probes(probes: Vec<Probe>, limit: Duration) -> (Vec<Probe>, Result<(), String>) {
    let mut running = JoinSet::new();
    for (place, mut probe) in probes.into_iter().enumerate() {
        running.spawn(async move {
            let outcome = probe.run_within(limit).await;
            (place, probe, outcome)
        });
    }
    let mut done = running.join_all().await;
    done.sort_by_key(|(place, ..)| *place);
    let outcome = done.iter().try_for_each(|(.., outcome)| outcome.clone());
    (done.into_iter().map(|(_, probe, _)| probe).collect(), outcome)
}

/// Waits until one of the addresses accepts a connection, for as long as that takes.
async fn wait_until_listening(addresses: &[SocketAddr]) {
    for delay in retry::local_delays() {
        if matches!(timeout(CONNECT_LIMIT, probe::connect_to_any(addresses)).await, Ok(Ok(()))) {
            return;
        }
        sleep(delay).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::health_loop::probe::tests::closed;

    #[tokio::test]
    async fn waits_for_the_first_that_listens() {
        let (_held, closed) = closed();
        let waits = timeout(Duration::from_millis(100), wait_until_listening(&[closed])).await;
        assert!(waits.is_err());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        wait_until_listening(&[closed, listener.local_addr().unwrap()]).await;
    }

    #[tokio::test]
    async fn all_checks_have_to_pass_and_the_first_that_fails_is_named() {
        let (_held, closed) = closed();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = |address| Probe::Tcp(vec![address]);
        let (probes, outcome) = run_probes(vec![at(listener.local_addr().unwrap())], CONNECT_LIMIT).await;
        assert_eq!((probes.len(), outcome), (1, Ok(())));
        let both = vec![at(listener.local_addr().unwrap()), at(closed)];
        let (probes, outcome) = run_probes(both, CONNECT_LIMIT).await;
        assert!(probes.len() == 2 && outcome.unwrap_err().contains(&closed.to_string()));
    }
}
