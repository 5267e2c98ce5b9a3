//! Finds an upstream's address and runs its checks. It reports changes and decides nothing about the record.

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
use crate::processes::reaper::Reaper;
use crate::state::message::Message;
use crate::status::metrics::UpstreamCheckCounters;
use crate::{health, retry};

/// Longest delay of the app's start by the search for its address. Only a slow name server takes time.
const FIRST_ATTEMPT_LIMIT: Duration = Duration::from_secs(1);

/// Limit of a connection. A full accept queue or a firewall answers nothing.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// Interval of checks while the app starts, so that its first success is noticed soon.
const STARTING_INTERVAL: Duration = Duration::from_millis(200);

/// The address if it is found before the app starts. An error if it can never be found.
pub(crate) async fn find_address_once(
    source: &AddressSource,
    endpoints: &[Endpoint],
) -> Result<Option<UpstreamAddress>, AddressError> {
    match timeout(FIRST_ATTEMPT_LIMIT, address::find_address(source, endpoints)).await {
        Ok(Ok(address)) => Ok(Some(address)),
        Ok(Err(error)) if !error.is_temporary() => Err(error),
        Ok(Err(error)) => {
            tracing::warn!(%error, "can't find the app's address, trying again");
            Ok(None)
        }
        Err(_) => {
            let limit = humantime::format_duration(FIRST_ATTEMPT_LIMIT);
            tracing::warn!(%limit, "can't find the app's address: the name server doesn't answer, trying again");
            Ok(None)
        }
    }
}

/// The address, after as many attempts as it takes.
async fn find_address_with_retries(source: &AddressSource, endpoints: &[Endpoint]) -> UpstreamAddress {
    let mut delays = retry::store_delays();
    loop {
        match address::find_address(source, endpoints).await {
            Ok(address) => return address,
            Err(error) => tracing::debug!(%error, "no address yet"),
        }
        sleep(delays.next().unwrap_or_default()).await;
    }
}

/// Task for one upstream.
pub(crate) struct HealthLoop {
    /// Index in the configuration.
    pub(crate) index: usize,
    pub(crate) upstream: Upstream,
    /// `None` if it still has to be found.
    pub(crate) address: Option<UpstreamAddress>,
    /// True if the announcer runs the app, which must then accept a connection even without a check.
    pub(crate) runs_app: bool,
    /// Health before the first check. An app whose record stands already must not count as one that never worked.
    pub(crate) initial: Health,
    pub(crate) counters: UpstreamCheckCounters,
    pub(crate) messages: mpsc::Sender<Message>,
}

impl HealthLoop {
    /// Runs until it is aborted. Reports each change between working and not working.
    pub(crate) async fn run(self, endpoints: Vec<Endpoint>, reaper: Reaper) {
        let address = match self.address {
            Some(address) => address,
            None => find_address_with_retries(&self.upstream.address_source, &endpoints).await,
        };
        let addresses = match self.upstream.listen_addresses.as_slice() {
            [] => vec![address.socket_addr()],
            addresses => addresses.to_vec(),
        };
        let checks = &self.upstream.checks;
        if !checks.all.is_empty() {
            let probes = checks.all.iter().map(|check| Probe::new(check.clone(), &addresses, &reaper)).collect();
            return self.run_checks(address, probes).await;
        }
        if self.runs_app {
            wait_until_listening(&addresses, checks.grace).await;
            tracing::info!(%address, "the app accepts connections");
        }
        // Without a check, an app that something else runs counts as working.
        self.report_health(address, Health::Up(0)).await;
    }

    /// Runs the checks until the task is aborted.
    async fn run_checks(&self, address: UpstreamAddress, mut probes: Vec<Probe>) {
        let checks = &self.upstream.checks;
        let began = Instant::now();
        let (mut health, mut is_late) = (self.initial, false);
        loop {
            // From start to start: a slow check doesn't stretch the interval.
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

/// Runs an upstream's checks once. The error is that of the first failed check.
pub(crate) async fn probe_once(upstream: &Upstream, reaper: &Reaper) -> Result<(), String> {
    let AddressSource::Given(address) = upstream.address_source else { return Ok(()) };
    let checks = &upstream.checks;
    let probes = checks.all.iter().map(|check| Probe::new(check.clone(), &[address.socket_addr()], reaper)).collect();
    run_probes(probes, checks.timeout).await.1
}

/// Logs each change once, and once that the app is late.
fn log_transition(
    address: UpstreamAddress,
    before: Health,
    health: Health,
    outcome: &Result<(), String>,
    is_newly_late: bool,
) {
    match (before, health, outcome) {
        (Health::Up(_), Health::Down(_), Err(reason)) => tracing::warn!(%address, reason, "app is down"),
        (_, Health::New(_), Err(reason)) if is_newly_late => {
            tracing::warn!(%address, reason, "app is not up yet, checking again");
        }
        (_, _, Err(reason)) => tracing::debug!(%address, reason, ?health, "a check failed"),
        (Health::New(_) | Health::Down(_), Health::Up(_), Ok(())) => tracing::info!(%address, "app is up"),
        (_, _, Ok(())) => {}
    }
}

/// Time from the start of one round to the start of the next.
fn check_interval(checks: &Checks, health: Health) -> Duration {
    match health {
        Health::New(_) => checks.interval.min(STARTING_INTERVAL),
        Health::Up(_) | Health::Down(_) => checks.interval,
    }
}

/// Runs all checks at once. The error is that of the first failed check in their order.
async fn run_probes(probes: Vec<Probe>, limit: Duration) -> (Vec<Probe>, Result<(), String>) {
    let mut running = JoinSet::new();
    for (index, mut probe) in probes.into_iter().enumerate() {
        running.spawn(async move {
            let outcome = probe.run_within(limit).await;
            (index, probe, outcome)
        });
    }
    // Sorted, so that the log names the same check each time although they end in any order.
    let mut done = running.join_all().await;
    done.sort_by_key(|(index, ..)| *index);
    let outcome = done.iter().try_for_each(|(.., outcome)| outcome.clone());
    (done.into_iter().map(|(_, probe, _)| probe).collect(), outcome)
}

/// Waits without limit until one of the addresses accepts a connection. Logs once if this takes longer than `grace`.
async fn wait_until_listening(addresses: &[SocketAddr], grace: Duration) {
    let began = Instant::now();
    let mut is_late = false;
    for delay in retry::local_delays() {
        let reason = match timeout(CONNECT_LIMIT, probe::connect_to_any(addresses)).await {
            Ok(Ok(())) => return,
            Ok(Err(reason)) => reason,
            Err(_) => format!("no answer within {}", humantime::format_duration(CONNECT_LIMIT)),
        };
        // A mistyped port looks like an app that starts slowly, and the app's own output gives no hint.
        if !is_late && began.elapsed() >= grace {
            is_late = true;
            let tried = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            tracing::warn!(address = tried, reason, "app is not up yet, checking again");
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
        let waits = timeout(Duration::from_millis(100), wait_until_listening(&[closed], CONNECT_LIMIT)).await;
        assert!(waits.is_err());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        wait_until_listening(&[closed, listener.local_addr().unwrap()], CONNECT_LIMIT).await;
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
