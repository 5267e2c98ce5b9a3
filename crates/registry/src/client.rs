//! The client: one connection at a time, shared by all its clones, and the turn to the next endpoint.
//!
//! It decides when a connection is given up and whether a request is repeated. `classification` decides what failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use discovery::Entry;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::args::Config;
use crate::classification::{Context, Failure};
use crate::connect::{CONNECT_TIMEOUT, Connection, open_connection};
use crate::error::{Error, Operation};

/// One request and its whole answer. An election takes one to two seconds. etcd answers a proposal that was lost with its
/// leader after 7 s, when another member could have answered for long.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// A client of etcd. Clones share one connection. Every call ends within a bounded time. After an endpoint failed, the
/// next call goes to the next one.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    /// The number of the current connection. It begins at random and grows by one each time that a connection is given up.
    /// Modulo the number of endpoints it is the endpoint.
    turn: AtomicUsize,
    /// The connection with its turn. `None` before the first call.
    connection: Mutex<Option<(usize, Connection)>>,
}

/// The requests that may be sent a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// After every failure of the connection. For reads.
    Always,
    /// Only if the first request can't have left. For writes, which etcd may have applied without an answer.
    IfUnsent,
}

impl Client {
    /// A client without a connection. The first call connects.
    pub fn new(config: Config) -> Self {
        // At random: all hosts have one list, and its first member would get every client.
        let turn = AtomicUsize::new(fastrand::usize(..config.endpoints().len().max(1)));
        Self { shared: Arc::new(Shared { config, turn, connection: Mutex::new(None) }) }
    }

    /// The configuration that the client was made from.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// The endpoint of the next call, as a URL. For messages, and to find the local address towards etcd.
    pub fn current_endpoint(&self) -> String {
        self.config().endpoint_at(self.current_turn()).to_string()
    }

    /// One key as it is now (linearizable). `None` if it doesn't exist.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let prefix = &self.config().prefix;
        let key = prefix.absolute_key(key);
        let operation = Operation::Get(key.clone());
        let answer = self.call_with_repeats(&operation, REQUEST_TIMEOUT, Repeat::Always, |mut connection| {
            let key = key.clone();
            async move { connection.kv.get(key, None).await }
        });
        Ok(answer.await?.take_kvs().into_iter().next().map(|kv| prefix.entry_from(kv.0)))
    }

    /// Sends one request, each attempt within `limit`. It goes to the next endpoint after a failure that `repeat` allows.
    pub(crate) async fn call_with_repeats<T, Fut>(
        &self,
        operation: &Operation,
        limit: Duration,
        repeat: Repeat,
        send: impl Fn(Connection) -> Fut,
    ) -> Result<T, Error>
    where
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        // Try a single endpoint twice, because the current connection may have broken long ago, unnoticed.
        let attempts = self.config().endpoints().len().max(2);
        let mut attempt = 1;
        loop {
            let failure = match self.call_once(operation, limit, &send).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let may_repeat = failure.is_unsent || (repeat == Repeat::Always && failure.ends_connection);
            if attempt >= attempts || !may_repeat {
                return Err(failure.error);
            }
            tracing::debug!(error = %failure.error, attempt, "repeating an etcd request");
            attempt += 1;
        }
    }

    /// One attempt on the current endpoint. With a connect it takes at most [`CONNECT_TIMEOUT`] plus `limit`.
    pub(crate) async fn call_once<T, Fut>(
        &self,
        operation: &Operation,
        limit: Duration,
        send: impl Fn(Connection) -> Fut,
    ) -> Result<T, Failure>
    where
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        let (turn, connection) = self.current_connection().await?;
        match timeout(limit, send(connection)).await {
            Ok(answer) => {
                answer.map_err(|error| self.record_failure(turn, operation, |context| context.classify_error(&error)))
            }
            Err(_) => Err(self.record_failure(turn, operation, |context| context.no_answer(limit))),
        }
    }

    /// The current connection with its turn. It connects if there is none.
    pub(crate) async fn current_connection(&self) -> Result<(usize, Connection), Failure> {
        let turn = self.current_turn();
        let failure = match timeout(CONNECT_TIMEOUT, self.connect_current_turn()).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(failure)) => failure,
            Err(_) => self.record_failure(turn, &Operation::Connect, |context| context.no_answer(CONNECT_TIMEOUT)),
        };
        // After every failed connect, whatever its cause: the next endpoint may have another certificate or role.
        self.advance_turn(turn);
        Err(Failure { is_unsent: true, ..failure })
    }

    async fn connect_current_turn(&self) -> Result<(usize, Connection), Failure> {
        // The lock makes all callers share one connect.
        let mut slot = self.shared.connection.lock().await;
        let turn = self.current_turn();
        match slot.as_ref() {
            Some((connected, connection)) if *connected == turn => Ok((turn, connection.clone())),
            _ => {
                *slot = None;
                let connection = open_connection(self.config(), self.config().endpoint_at(turn)).await?;
                *slot = Some((turn, connection.clone()));
                Ok((turn, connection))
            }
        }
    }

    /// Classifies a failure on the connection of this turn, and gives up the connection if the failure ends it.
    pub(crate) fn record_failure(
        &self,
        turn: usize,
        operation: &Operation,
        classify: impl FnOnce(Context<'_>) -> Failure,
    ) -> Failure {
        let endpoint = self.config().endpoint_at(turn).to_string();
        let user = self.config().login.as_ref().map(|login| login.name.as_str());
        let failure = classify(Context { endpoint: &endpoint, operation, user });
        if failure.ends_connection {
            self.advance_turn(turn);
        }
        failure
    }

    /// Turns to the next endpoint, unless another caller did so: many notice one loss, and each would skip an endpoint.
    fn advance_turn(&self, turn: usize) {
        let next = turn.wrapping_add(1);
        let _ = self.shared.turn.compare_exchange(turn, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn current_turn(&self) -> usize {
        self.shared.turn.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::args::tests::resolve_args;

    #[test]
    fn a_fleet_with_one_list_spreads_over_its_members() {
        let config = resolve_args(&["--endpoints", "a,b,c"]).expect("valid");
        let mut fleet = BTreeMap::new();
        for _ in 0..300 {
            *fleet.entry(Client::new(config.clone()).current_endpoint()).or_default() += 1;
        }
        // A hundred each; less than forty by chance, once in 10^14 runs.
        assert_eq!(fleet.len(), 3);
        assert!(fleet.values().all(|count: &usize| *count >= 40), "{fleet:?}");
    }
}
