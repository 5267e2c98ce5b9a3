//! Follows the engines: their events, and a listing every so often. It decides nothing about containers.

use std::time::{Duration, Instant, SystemTime};

use containers::{Container, Engine, EngineAddress, EngineError, Event, HostAddresses, LabelRules, Listed};
use registry::Backoff;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::agent::copies::CopyKey;
use crate::agent::leased::Adopted;
use crate::agent::members::ContainerKey;

/// Time between two listings. They show what events did not: an event that the engine dropped or that comes late, an engine
/// that hangs.
const LIST_INTERVAL: Duration = Duration::from_secs(10);

/// Questions for a container before the next listing. Podman holds a container's lock while it starts, and answers nothing
/// then. On a busy host that took more than the 5 s that a question has.
const QUESTIONS: usize = 3;

/// Events of this time before the listing are sent again.
const OVERLAP: Duration = Duration::from_secs(1);

/// News for the agent's loop.
pub(crate) enum News {
    /// The keys that hang on the lease of an earlier agent.
    Adopted(Adopted),
    /// All containers of an engine that run, and those that may stand by for a slot. `None` if those aren't known.
    Listed { engine: usize, client: Engine, running: Vec<Listed>, stopped: Option<Vec<Listed>>, began: Instant },
    /// Something happened to a container.
    Event { engine: usize, event: Event },
    /// An engine can't be asked. Attempts go on.
    Away { engine: usize, reason: String },
    /// An answer to the question about a container. `None` if the engine knows it no longer.
    Inspected { key: ContainerKey, generation: u64, fingerprint: String, found: Result<Option<Box<Container>>, String> },
    /// A member's stop time is over. The number tells it from earlier signals.
    Survived { serial: usize, signals: u64 },
    /// A container that failed works again, and so the store was asked for its record. True if `containers stop` drains it.
    Recovered { serial: usize, is_drained: bool },
    /// A record's container has had another name long enough.
    Retired { serial: usize },
    /// The host has another address.
    Moved(HostAddresses),
    /// True if this agent may start the engine's containers.
    Rights { engine: usize, may_start: bool },
    /// The start of a container that has a slot is over. An error if the engine doesn't start it.
    CopyStarted { name: CopyKey, run: u64, result: Result<(), String> },
    /// A container that has a slot ended some time ago.
    CopyEnded { name: CopyKey, run: u64 },
}

/// Delays between attempts at an engine, without end.
fn engine_delays() -> impl Iterator<Item = Duration> {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(2)).with_jitter().delays()
}

/// Asks for a container, and asks again a few times if the engine doesn't answer.
pub(crate) async fn inspect_patiently(client: &Engine, id: &str) -> Result<Option<Container>, EngineError> {
    let mut delays = engine_delays();
    for _ in 1..QUESTIONS {
        match client.inspect(id).await {
            Err(error) => tracing::debug!(container = id, %error, "can't ask for a container, trying again"),
            answer => return answer,
        }
        sleep(delays.next().unwrap_or_default()).await;
    }
    client.inspect(id).await
}

/// Follows one engine until the agent ends. Subscribes first, then lists, then follows.
pub(crate) async fn follow_engine(engine: usize, address: EngineAddress, rules: LabelRules, news: mpsc::Sender<News>) {
    let mut delays = engine_delays();
    loop {
        let began = Instant::now();
        let error = follow_once(engine, &address, &rules, &news).await;
        let reason = error.to_string();
        if news.send(News::Away { engine, reason }).await.is_err() {
            return;
        }
        // A stream that lasted starts the delays anew.
        if began.elapsed() > LIST_INTERVAL {
            delays = engine_delays();
        }
        sleep(delays.next().unwrap_or_default()).await;
    }
}

/// Follows one connection until its end.
async fn follow_once(
    engine: usize,
    address: &EngineAddress,
    rules: &LabelRules,
    news: &mpsc::Sender<News>,
) -> EngineError {
    let client = match Engine::connect(address) {
        Ok(client) => client,
        Err(error) => return error,
    };
    // The stream may begin after the listing, so it begins with what happened before.
    let mut events = client.follow(SystemTime::now() - OVERLAP);
    let pump = async {
        loop {
            match events.next().await {
                Ok(event) => _ = news.send(News::Event { engine, event }).await,
                Err(error) => return error,
            }
        }
    };
    // Both at once: a listing that hangs on one container must delay no event.
    tokio::select! {
        error = pump => error,
        never = list_forever(engine, &client, rules, news) => match never {},
    }
}

/// Lists at once and then every so often. A failure doesn't end the stream of events.
async fn list_forever(
    engine: usize,
    client: &Engine,
    rules: &LabelRules,
    news: &mpsc::Sender<News>,
) -> std::convert::Infallible {
    let mut delays = engine_delays();
    loop {
        let began = Instant::now();
        // A host may have thousands of stopped ones, and Podman takes its time for each. Such a listing may fail alone.
        let (running, stopped) = tokio::join!(client.list(false), client.list_stopped(|label| rules.is_limit(label)));
        if let Err(error) = &stopped {
            tracing::debug!(%error, "can't list the containers that may stand by");
        }
        let pause = match running {
            Ok(running) => {
                let (client, stopped) = (client.clone(), stopped.ok());
                let _ = news.send(News::Listed { engine, client, running, stopped, began }).await;
                delays = engine_delays();
                // 20 % of jitter: the hosts of a fleet need not list in one instant.
                LIST_INTERVAL.mul_f64(1.0 - 0.2 * fastrand::f64())
            }
            Err(error) => {
                let _ = news.send(News::Away { engine, reason: error.to_string() }).await;
                delays.next().unwrap_or_default()
            }
        };
        sleep(pause).await;
    }
}
