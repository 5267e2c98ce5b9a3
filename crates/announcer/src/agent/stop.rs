//! `announcer containers stop`: drains containers, waits for every balancer, and then has the engine stop them. The records
//! stay the running agent's, which deletes them when the containers have ended.

use std::sync::Arc;
use std::time::Duration;

use containers::{Container, Engine, EngineAddress, EngineError, RunState};
use daemon::shutdown::Shutdown;
use discovery::{Entry, UpstreamState};
use futures_util::future::join_all;
use registry::{Client, LeaseId};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::agent::plan::{PlannedCopy, Scope, plan_container};
use crate::lease::Lease;
use crate::record::{Record, Want};
use crate::registrar::{Registrar, Written};
use crate::retry::{self, StoreError};
use crate::slots::offer::offer_slot;
use crate::withdraw::{DRAIN_WRITE_LIMIT, await_acknowledgement};

/// Exit codes, as `--help` lists them.
const INTERRUPTED: u8 = 1;
const NOT_ACKNOWLEDGED: u8 = 3;
const NOT_STOPPED: u8 = 4;
const ENGINE_AWAY: u8 = 5;

/// Time between two attempts at an engine that doesn't stop a container.
const STOP_PAUSE: Duration = Duration::from_secs(5);

/// What is to be stopped, and how long it may take.
pub(crate) struct Stop {
    pub(crate) names: Vec<String>,
    pub(crate) drain: Duration,
    pub(crate) handover: Duration,
    pub(crate) time: Option<Duration>,
}

/// A container, with the engine that runs it.
struct Found {
    engine: Engine,
    container: Container,
}

/// A record of a container, as it was before the drain.
struct Leased {
    /// Index of its container.
    of: usize,
    lease: i64,
    record: Arc<Record>,
    state: UpstreamState,
}

/// Drains and stops. Returns the exit status: the worst of all containers. A stop signal before the containers' stop puts
/// their records back.
pub(crate) async fn stop_containers(
    client: &Client,
    engines: &[EngineAddress],
    scope: &Scope,
    stop: &Stop,
    shutdown: &Shutdown,
) -> anyhow::Result<u8> {
    let (found, mut status) = find_containers(engines, &stop.names).await;
    let offers = found.iter().filter_map(|it| find_running_copy(&it.container, scope));
    let offers = join_all(offers.map(|copy| async move {
        // Its successor starts beside it, so that the number of copies that serve never falls.
        offer_slot(client, &copy.service, &copy.id, stop.handover).await;
    }));
    tokio::select! {
        _ = offers => {}
        () = shutdown.drain.cancelled() => {
            tracing::warn!("interrupted, the agent stops the containers whose slots are offered");
            return Ok(INTERRUPTED);
        }
    }
    let leased = read_records(client, &found, scope).await;
    if leased.is_err() {
        status = status.max(NOT_ACKNOWLEDGED);
    }
    let leased = leased.unwrap_or_else(|error| {
        tracing::warn!(%error, "can't read the records, stopping without a drain");
        Vec::new()
    });
    // All are drained together: one after the other, each would wait for the balancers anew.
    let is_acknowledged = tokio::select! {
        is_acknowledged = drain(client, &leased, stop.drain) => is_acknowledged,
        () = shutdown.drain.cancelled() => {
            tracing::warn!("interrupted, the containers serve on");
            put_back(client, &leased.iter().collect::<Vec<_>>()).await;
            return Ok(INTERRUPTED);
        }
    };
    if !is_acknowledged {
        status = status.max(NOT_ACKNOWLEDGED);
    }
    for (index, stopped) in join_all(found.iter().map(|it| stop_one(it, stop.time))).await.into_iter().enumerate() {
        status = status.max(stopped);
        if stopped != 0 {
            // It runs on, and would get no request until the agent writes its record for another reason.
            put_back(client, &leased.iter().filter(|record| record.of == index).collect::<Vec<_>>()).await;
        }
    }
    Ok(status)
}

/// Drains one container, waits for every balancer, and has the engine stop it, as often as that takes.
pub(crate) async fn stop_politely(
    client: &Client,
    engine: Engine,
    container: Container,
    scope: &Scope,
    limit: Duration,
) {
    let found = [Found { engine, container }];
    match read_records(client, &found, scope).await {
        Ok(leased) => _ = drain(client, &leased, limit).await,
        Err(error) => tracing::warn!(%error, "can't read the records, stopping without a drain"),
    }
    let [found] = found;
    while stop_one(&found, None).await != 0 {
        sleep(STOP_PAUSE).await;
    }
}

/// The copy that a running container is. `None` if its service has no limit.
fn find_running_copy(container: &Container, scope: &Scope) -> Option<PlannedCopy> {
    let is_running = !matches!(container.state, RunState::Stopped(_));
    plan_container(container, scope).copy.filter(|_| is_running)
}

/// The containers of these names, and the exit status of those that aren't found.
async fn find_containers(engines: &[EngineAddress], names: &[String]) -> (Vec<Found>, u8) {
    let (mut found, mut status) = (Vec::new(), 0);
    for name in names {
        match find_container(engines, name).await {
            Ok(Some(container)) => found.push(container),
            Ok(None) => {
                tracing::error!(name, "no engine knows this container");
                status = status.max(NOT_STOPPED);
            }
            Err(error) => {
                tracing::error!(name, %error, "can't ask for the container");
                status = status.max(ENGINE_AWAY);
            }
        }
    }
    (found, status)
}

/// The container in the first engine that knows it. An error if none does and one can't be asked.
async fn find_container(engines: &[EngineAddress], name: &str) -> Result<Option<Found>, EngineError> {
    let mut failure = None;
    for address in engines {
        let asked = async {
            let engine = Engine::connect(address)?;
            let container = engine.inspect(name).await?;
            Ok(container.map(|container| Found { engine, container }))
        };
        match asked.await {
            Ok(Some(found)) => return Ok(Some(found)),
            Ok(None) => {}
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(None), Err)
}

fn list_keys(container: &Container, scope: &Scope) -> Vec<String> {
    let plan = plan_container(container, scope);
    let keys = plan.upstreams.iter().map(|upstream| {
        let (service, id) = upstream.service_and_id();
        discovery::Key::for_upstream(&service, &id).to_string()
    });
    keys.collect()
}

/// The records of the containers. One without a lease is a person's, and stays.
async fn read_records(client: &Client, found: &[Found], scope: &Scope) -> Result<Vec<Leased>, StoreError> {
    let deadline = Instant::now() + DRAIN_WRITE_LIMIT;
    let mut leased = Vec::new();
    for (of, key) in found
        .iter()
        .enumerate()
        .flat_map(|(of, it)| list_keys(&it.container, scope).into_iter().map(move |key| (of, key)))
    {
        let entry: Option<Entry> = retry::retry_until(deadline, || client.get(&key)).await?;
        let Some(entry) = entry.filter(|entry| entry.lease != 0) else { continue };
        if let Some((record, state)) = Record::from_entry(&entry) {
            leased.push(Leased { of, lease: entry.lease, record: Arc::new(record), state });
        }
    }
    Ok(leased)
}

/// Drains the records. True if every balancer has acknowledged it, or if there are none.
async fn drain(client: &Client, leased: &[Leased], limit: Duration) -> bool {
    if leased.is_empty() {
        tracing::info!("nothing to drain: no record of the containers is in the store");
        return true;
    }
    let all: Vec<&Leased> = leased.iter().collect();
    let drains = group_records(&all, |_| UpstreamState::Drain).into_iter().map(|(lease, state, records)| async move {
        match write_state(client, lease, records, state).await {
            Ok((_, written)) if written.unwritten_count > 0 => {
                tracing::warn!(records = written.unwritten_count, "can't write `drain` for all records");
                false
            }
            // The agent may write `drain` too, at a later revision.
            Ok((registrar, _)) => await_acknowledgement(client, || registrar.latest_written(), limit).await,
            Err(error) => {
                tracing::warn!(%error, "can't write `drain`, stopping without it");
                false
            }
        }
    });
    join_all(drains).await.into_iter().all(|is_acknowledged| is_acknowledged)
}

/// Gives records the state that they had before.
async fn put_back(client: &Client, leased: &[&Leased]) {
    for (lease, state, records) in group_records(leased, |record| record.state) {
        if let Err(error) = write_state(client, lease, records, state).await {
            let hint = "restart the agent, or the container";
            tracing::warn!(%error, hint, "can't put the records back, they say `drain`");
        }
    }
}

/// Records by their lease and the state to write.
fn group_records(
    leased: &[&Leased],
    state_of: impl Fn(&Leased) -> UpstreamState,
) -> Vec<(LeaseId, UpstreamState, Vec<Arc<Record>>)> {
    let mut groups: Vec<(LeaseId, UpstreamState, Vec<Arc<Record>>)> = Vec::new();
    for it in leased {
        let (lease, state) = (LeaseId::from(it.lease), state_of(it));
        match groups.iter_mut().find(|(of, wanted, _)| (*of, *wanted) == (lease, state)) {
            Some((.., records)) => records.push(it.record.clone()),
            None => groups.push((lease, state, vec![it.record.clone()])),
        }
    }
    groups
}

/// Writes a state under the agent's lease, which the agent goes on renewing. The registrar follows the records as long as it is kept.
async fn write_state(
    client: &Client,
    lease: LeaseId,
    records: Vec<Arc<Record>>,
    state: UpstreamState,
) -> Result<(Registrar, Written), StoreError> {
    // Nothing is reported to anyone here.
    let (messages, _) = mpsc::channel(1);
    let registrar = Registrar::start(Lease::of_agent(client.clone(), lease), records.len(), messages);
    let want = Want::IfPresent(state);
    registrar.set_wants(records.into_iter().map(|record| (record, want)).collect());
    let written = registrar.set_all_and_wait(want, Instant::now() + DRAIN_WRITE_LIMIT).await?;
    Ok((registrar, written))
}

/// Stops one container. Returns the exit status.
async fn stop_one(found: &Found, time: Option<Duration>) -> u8 {
    let Found { engine, container } = found;
    let name = container.name.as_str();
    tracing::info!(container = name, "stopping the container");
    match engine.stop(container, time).await {
        Ok(()) => {
            tracing::info!(container = name, "the container has ended");
            0
        }
        Err(error @ EngineError::Refused { .. }) => {
            tracing::error!(container = name, %error, "the engine doesn't stop the container");
            NOT_STOPPED
        }
        Err(error) => {
            tracing::error!(container = name, %error, "can't have the container stopped");
            ENGINE_AWAY
        }
    }
}
