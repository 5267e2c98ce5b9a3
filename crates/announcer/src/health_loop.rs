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
use crate::config::address::{AddressError, Whereabouts};
use crate::config::upstream::Upstream;
use crate::health::Health;
use crate::health::check::Checks;
use crate::health_loop::probe::Probe;
use crate::message::Message;
use crate::processes::reaper::Reaper;
use crate::status::metrics::CheckedOne;
use crate::{health, retry};

/// How long the first look for the address may put the app's start off; only a slow name server takes any time.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// A full accept queue or a firewall answers nothing at all.
const CONNECT: Duration = Duration::from_secs(1);

/// The time between checks of an app that is only starting: what is waited for is its first success.
const STARTING: Duration = Duration::from_millis(200);

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
async fn find_patiently(whereabouts: &Whereabouts, endpoints: &[Endpoint]) -> UpstreamAddress {
    let mut delays = retry::store_delays();
    loop {
        match address::find(whereabouts, endpoints).await {
            Ok(address) => return address,
            Err(error) => tracing::debug!(%error, "no address yet"),
        }
        sleep(delays.next().unwrap_or_default()).await;
    }
}

/// One upstream to be watched.
pub(crate) struct Watch {
    /// Its place among the configured ones.
    pub(crate) index: usize,
    pub(crate) upstream: Upstream,
    /// The address, if it is known already.
    pub(crate) address: Option<UpstreamAddress>,
    /// The app is ours: it has to answer even without a check.
    pub(crate) wraps: bool,
    pub(crate) checked: CheckedOne,
    pub(crate) reports: mpsc::Sender<Message>,
}

impl Watch {
    /// Reports each time that the upstream begins to work, or no longer does.
    pub(crate) async fn run(self, endpoints: Vec<Endpoint>, reaper: Reaper) {
        let address = match self.address {
            Some(address) => address,
            None => find_patiently(&self.upstream.whereabouts, &endpoints).await,
        };
        let listens = match self.upstream.listens.as_slice() {
            [] => vec![address.socket()],
            listens => listens.to_vec(),
        };
        let checks = &self.upstream.checks;
        if !checks.all.is_empty() {
            let probes = checks.all.iter().map(|check| Probe::new(check.clone(), &listens, &reaper)).collect();
            return self.follow(address, probes).await;
        }
        if self.wraps {
            until_listening(&listens).await;
            tracing::info!(%address, "the app accepts connections");
        }
        self.report(address, Health::Up(0)).await;
    }

    async fn follow(&self, address: UpstreamAddress, mut probes: Vec<Probe>) {
        let checks = &self.upstream.checks;
        let began = Instant::now();
        let (mut health, mut is_late) = (Health::New(0), false);
        loop {
            let due = Instant::now() + pace(checks, health);
            let outcome;
            (probes, outcome) = run_all(probes, checks.timeout).await;
            self.checked.count(outcome.is_ok());
            let before = health;
            health = health::step(before, outcome.is_ok(), checks.thresholds);
            let was_late = std::mem::replace(&mut is_late, began.elapsed() >= checks.grace);
            say(address, before, health, &outcome, is_late && !was_late);
            if health.is_up() != before.is_up() {
                self.report(address, health).await;
            }
            sleep_until(due).await;
        }
    }

    async fn report(&self, address: UpstreamAddress, health: Health) {
        let _ = self.reports.send(Message::Health { upstream: self.index, address, health }).await;
    }
}

/// What changes is said once; an app that is late too.
fn say(address: UpstreamAddress, before: Health, health: Health, outcome: &Result<(), String>, is_newly_late: bool) {
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
fn pace(checks: &Checks, health: Health) -> Duration {
    match health {
        Health::New(_) => checks.interval.min(STARTING),
        Health::Up(_) | Health::Down(_) => checks.interval,
    }
}

/// All checks at the same time. The failure is that of the first in their order.
async fn run_all(probes: Vec<Probe>, limit: Duration) -> (Vec<Probe>, Result<(), String>) {
    let mut running = JoinSet::new();
    for (place, mut probe) in probes.into_iter().enumerate() {
        running.spawn(async move {
            let outcome = probe.run(limit).await;
            (place, probe, outcome)
        });
    }
    let mut done = running.join_all().await;
    done.sort_by_key(|(place, ..)| *place);
    let outcome = done.iter().try_for_each(|(.., outcome)| outcome.clone());
    (done.into_iter().map(|(_, probe, _)| probe).collect(), outcome)
}

/// Waits until one of the addresses accepts a connection, for as long as that takes.
async fn until_listening(addresses: &[SocketAddr]) {
    for delay in retry::local_delays() {
        if matches!(timeout(CONNECT, probe::connects(addresses)).await, Ok(Ok(()))) {
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
        let waits = timeout(Duration::from_millis(100), until_listening(&[closed])).await;
        assert!(waits.is_err());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        until_listening(&[closed, listener.local_addr().unwrap()]).await;
    }

    #[tokio::test]
    async fn all_checks_have_to_pass_and_the_first_that_fails_is_named() {
        let (_held, closed) = closed();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = |address| Probe::Tcp(vec![address]);
        let (probes, outcome) = run_all(vec![at(listener.local_addr().unwrap())], CONNECT).await;
        assert_eq!((probes.len(), outcome), (1, Ok(())));
        let both = vec![at(listener.local_addr().unwrap()), at(closed)];
        let (probes, outcome) = run_all(both, CONNECT).await;
        assert!(probes.len() == 2 && outcome.unwrap_err().contains(&closed.to_string()));
    }
}
