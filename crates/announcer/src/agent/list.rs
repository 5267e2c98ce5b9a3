//! `announcer containers --list`: what each container is registered as, or why it isn't. It asks the engines, etcd and the
//! apps, and changes nothing. No agent need run.

use std::collections::BTreeMap;

use anyhow::Context as _;
use containers::{Container, Engine, EngineAddress, EngineError, HealthStatus, RunState};
use discovery::{Copies, Key, Topology, UpstreamState, explain_missing_copy};
use program::output;
use registry::Client;
use serde::Serialize;
use tokio::time::{Duration, Instant};

use crate::agent::copies::explain_no_rights;
use crate::agent::plan::{Plan, PlannedCopy, Scope, plan_container};
use crate::agent::table::render_list;
use crate::config::address::AddressSource;
use crate::config::container_options::Output;
use crate::config::upstream::Upstream;
use crate::health_loop::probe_once;
use crate::processes::reaper::Reaper;
use crate::record::Record;
use crate::retry;

/// Exit code if an engine can't be asked.
const ENGINE_AWAY: u8 = 5;

/// Limit for each answer of etcd.
const STORE_LIMIT: Duration = Duration::from_secs(5);

/// The whole list.
#[derive(Debug, Serialize)]
pub(crate) struct List {
    /// Containers with labels that count, sorted by engine and name.
    pub(crate) containers: Vec<ListedContainer>,
    /// Engines that can't be asked, with the reason.
    pub(crate) unreachable: BTreeMap<String, String>,
}

/// A container with labels that count.
#[derive(Debug, Serialize)]
pub(crate) struct ListedContainer {
    pub(crate) engine: String,
    pub(crate) id: String,
    pub(crate) name: String,
    /// `running`, `paused`, or the engine's word for a container that doesn't run.
    pub(crate) state: String,
    /// Result of its HEALTHCHECK. `None` without one.
    pub(crate) health: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) services: Vec<ListedService>,
    /// Labels that can't be read, and services that can't be reached.
    pub(crate) faults: Vec<String>,
}

/// A service of a container.
#[derive(Debug, Serialize)]
pub(crate) struct ListedService {
    pub(crate) service: String,
    pub(crate) key: String,
    pub(crate) address: String,
    /// State of the record in the store. `None` without one of this container.
    pub(crate) record: Option<UpstreamState>,
    /// Why there is no record, or none that is ready. `None` for a ready one.
    pub(crate) reason: Option<String>,
    /// The container's slot, or why it has none. `None` if the service's copies aren't limited.
    pub(crate) copy: Option<ListedCopy>,
}

/// A container whose service has a limited number of copies.
#[derive(Debug, Serialize)]
pub(crate) struct ListedCopy {
    pub(crate) replicas: u16,
    /// Number of the slot that the container holds. `None` if it holds none.
    pub(crate) slot: Option<u16>,
    /// How it stands: `holds slot 1 of 2`, `it stands by: …`.
    pub(crate) standing: String,
}

/// Prints the list. Returns the exit status.
pub(crate) async fn print_list(
    client: &Client,
    engines: &[EngineAddress],
    scope: &Scope,
    form: Output,
) -> anyhow::Result<u8> {
    // A check may be a command's, in principle. Labels ask for none.
    let reaper = Reaper::start().context("can't handle signals")?;
    let mut list = List { containers: Vec::new(), unreachable: BTreeMap::new() };
    for address in engines {
        match list_engine(address).await {
            Ok(all) => {
                let mut may_start = None;
                for container in all {
                    let mut plan = plan_container(&container, scope);
                    if plan.copy.is_some() {
                        check_rights(address, &mut may_start, &mut plan).await;
                    }
                    if !plan.is_empty() {
                        list.containers.push(describe_container(client, &reaper, address, container, plan).await);
                    }
                }
            }
            Err(error) => _ = list.unreachable.insert(address.to_string(), error.to_string()),
        }
    }
    list.containers.sort_by(|one, other| (&one.engine, &one.name).cmp(&(&other.engine, &other.name)));
    let text = match form {
        Output::Text => render_list(&list, engines.len() > 1),
        Output::Json => program::text::escape_json(&serde_json::to_string_pretty(&list)?).into_owned() + "\n",
    };
    output::print_answer(&text)?;
    Ok(if list.unreachable.is_empty() { 0 } else { ENGINE_AWAY })
}

async fn list_engine(address: &EngineAddress) -> Result<Vec<Container>, EngineError> {
    let engine = Engine::connect(address)?;
    let mut all = Vec::new();
    for listed in engine.list(true).await? {
        all.extend(engine.inspect(&listed.id).await?);
    }
    Ok(all)
}

async fn describe_container(
    client: &Client,
    reaper: &Reaper,
    engine: &EngineAddress,
    container: Container,
    plan: Plan,
) -> ListedContainer {
    let mut services = Vec::new();
    let mut listed_copy = None;
    if let Some(copy) = &plan.copy {
        listed_copy = Some(describe_copy(client, copy, &container).await);
    }
    for upstream in &plan.upstreams {
        let mut service = describe_service(client, reaper, &container, upstream).await;
        if plan.copy.as_ref().is_some_and(|copy| copy.service == upstream.announcement.service) {
            service.copy = listed_copy.take();
        }
        services.push(service);
    }
    if let (Some(copy), Some(listed)) = (&plan.copy, listed_copy) {
        services.push(ListedService {
            service: copy.service.to_string(),
            key: Key::for_upstream(&copy.service, &copy.id).to_string(),
            address: String::new(),
            record: None,
            reason: None,
            copy: Some(listed),
        });
    }
    ListedContainer {
        engine: engine.to_string(),
        id: container.id,
        name: container.name,
        state: container.state.to_string(),
        health: container.health.map(|health| health.to_string()),
        labels: container.labels,
        services,
        faults: plan.faults,
    }
}

async fn describe_service(
    client: &Client,
    reaper: &Reaper,
    container: &Container,
    upstream: &Upstream,
) -> ListedService {
    let (service, id) = upstream.service_and_id();
    let key = Key::for_upstream(&service, &id).to_string();
    let address = match upstream.address_source {
        AddressSource::Given(address) => address.to_string(),
        AddressSource::Find { .. } => String::new(),
    };
    let (record, reason) = match read_record(client, &key).await {
        Err(error) => (None, Some(format!("the record isn't known: {error}"))),
        Ok(Some((found, state))) if found.address().to_string() == address => {
            (Some(state), explain_state(state, container, upstream, reaper).await)
        }
        Ok(Some((found, _))) => (None, Some(format!("the record has another address, {}", found.address()))),
        Ok(None) => (None, Some(explain_absence(container, upstream, reaper).await)),
    };
    ListedService { service: service.to_string(), key, address, record, reason, copy: None }
}

/// Refuses the copy if the engine lets no container be started. It is asked once.
async fn check_rights(address: &EngineAddress, may_start: &mut Option<bool>, plan: &mut Plan) {
    // Most hosts have no such container, and then the question is needless.
    if may_start.is_none()
        && let Ok(engine) = Engine::connect(address)
    {
        *may_start = engine.may_start().await.ok();
    }
    if *may_start == Some(false) {
        plan.refuse_copy(&explain_no_rights(&address.to_string()));
    }
}

/// The copy's slot, or the reason why it has none, in the words that `discoverctl explain` has.
async fn describe_copy(client: &Client, copy: &PlannedCopy, container: &Container) -> ListedCopy {
    let (replicas, folder) = (copy.limit.replicas.get(), copy.service.folder_path());
    let read = retry::retry_until(Instant::now() + STORE_LIMIT, || client.read_snapshot(&folder)).await;
    let snapshot = match read {
        Ok(snapshot) => snapshot,
        Err(error) => {
            return ListedCopy { replicas, slot: None, standing: format!("its slot isn't known: {error}") };
        }
    };
    let topology = Topology::from_entries(&snapshot.entries);
    let copies = topology.copies().get(&copy.service).map(|copies| Copies::clone(copies)).unwrap_or_default();
    let held = copies.slots().find(|(_, parsed)| parsed.value.as_ref().is_ok_and(|slot| slot.id == copy.id));
    let slot = held.map(|(number, _)| number.get());
    let standing = match slot {
        Some(number) => format!("holds slot {number} of {replicas}"),
        None => {
            explain_missing_copy(&copies, &copy.id).map_or_else(|| explain_no_copy(container), |reason| reason.words)
        }
    };
    ListedCopy { replicas, slot, standing }
}

/// Why a container has neither a slot nor a stand-by.
fn explain_no_copy(container: &Container) -> String {
    match container.state {
        RunState::Stopped(_) => "doesn't stand by: it was stopped by hand, or no agent runs; start it to have it back",
        RunState::Running | RunState::Paused => "has no slot: is `announcer containers` running?",
    }
    .to_owned()
}

async fn read_record(client: &Client, key: &str) -> Result<Option<(Record, UpstreamState)>, retry::StoreError> {
    let entry = retry::retry_until(Instant::now() + STORE_LIMIT, || client.get(key)).await?;
    Ok(entry.as_ref().and_then(Record::from_entry))
}

/// Why a record isn't ready. `None` if it is.
async fn explain_state(
    state: UpstreamState,
    container: &Container,
    upstream: &Upstream,
    reaper: &Reaper,
) -> Option<String> {
    match state {
        UpstreamState::Ready => None,
        UpstreamState::Drain => Some("the container was told to stop".to_owned()),
        UpstreamState::Down => {
            Some(find_obstacle(container, upstream, reaper).await.unwrap_or_else(|| "it failed just now".to_owned()))
        }
    }
}

async fn explain_absence(container: &Container, upstream: &Upstream, reaper: &Reaper) -> String {
    let obstacle = find_obstacle(container, upstream, reaper).await;
    obstacle
        .unwrap_or_else(|| "it works, and no agent has registered it: is `announcer containers` running?".to_owned())
}

/// What keeps a container from being announced. `None` if nothing does.
async fn find_obstacle(container: &Container, upstream: &Upstream, reaper: &Reaper) -> Option<String> {
    match (&container.state, container.health) {
        (RunState::Stopped(_) | RunState::Paused, _) => Some(format!("the container is {}", container.state)),
        (RunState::Running, Some(health @ (HealthStatus::Starting | HealthStatus::Unhealthy))) => {
            Some(format!("its HEALTHCHECK is {health}"))
        }
        (RunState::Running, _) => probe_once(upstream, reaper).await.err(),
    }
}
