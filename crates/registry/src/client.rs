//! The client: one connection at a time, shared by all its clones, and the turn to the next endpoint.

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

/// One request and its whole answer. An election takes one to two seconds; a proposal lost with its leader is answered
/// by etcd after 7 s, when another member has long been able to.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// A client of etcd. Clones share one connection. Every call ends within a bounded time; when an endpoint fails,
/// the next call goes to the next one.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    /// Which connection this is, counted up from any, each time one is given up; modulo the endpoints it is the endpoint.
    turn: AtomicUsize,
    /// The connection and its turn.
    connection: Mutex<Option<(usize, Connection)>>,
}

/// Whether doing it twice does harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Reads are asked again on the next endpoint.
    Always,
    /// Writes are, too, but only where the first request can't have left.
    IfUnsent,
}

impl Client {
    /// A client that isn't connected yet; the first call connects. It begins with any of the endpoints: of a fleet with the
    /// same list, the first one would get all.
    pub fn new(config: Config) -> Self {
        let turn = AtomicUsize::new(fastrand::usize(..config.endpoints().len().max(1)));
        Self { shared: Arc::new(Shared { config, turn, connection: Mutex::new(None) }) }
    }

    /// The configuration it was made from.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// The endpoint in use now, for messages and for finding the local address towards etcd.
    pub fn current_endpoint(&self) -> String {
        self.config().endpoint_at(self.current_turn()).to_string()
    }

    /// One key as it is now (linearizable), None if it isn't there.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let prefix = &self.config().prefix;
        let key = prefix.absolute_key(key);
        let run = |mut connection: Connection| {
            let key = key.clone();
            async move { connection.kv.get(key, None).await }
        };
        let mut answer =
            self.call_with_repeats(&Operation::Get(key.clone()), REQUEST_TIMEOUT, Repeat::Always, run).await?;
        Ok(answer.take_kvs().into_iter().next().map(|kv| prefix.entry_from(kv.0)))
    }

    /// Runs one request, each attempt within `limit`, on the next endpoint if need be and if `repeat` allows it.
    pub(crate) async fn call_with_repeats<T, Fut>(
        &self,
        act: &Operation,
        limit: Duration,
        repeat: Repeat,
        run: impl Fn(Connection) -> Fut,
    ) -> Result<T, Error>
    where
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        // Twice with a single endpoint: the connection at hand may have broken long ago, unnoticed.
        let attempts = self.config().endpoints().len().max(2);
        let mut attempt = 1;
        loop {
            let failure = match self.call_once(act, limit, &run).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let again = failure.is_unsent || (repeat == Repeat::Always && failure.ends_connection);
            if attempt >= attempts || !again {
                return Err(failure.error);
            }
            tracing::debug!(error = %failure.error, "trying again");
            attempt += 1;
        }
    }

    /// One attempt on the endpoint in use, connecting first if need be: at most [`CONNECT`] plus `limit`.
    pub(crate) async fn call_once<T, Fut>(
        &self,
        act: &Operation,
        limit: Duration,
        run: impl Fn(Connection) -> Fut,
    ) -> Result<T, Failure>
    where
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        let (turn, connection) = self.current_connection().await?;
        match timeout(limit, run(connection)).await {
            Ok(answer) => {
                answer.map_err(|error| self.record_failure(turn, act, |context| context.classify_error(&error)))
            }
            Err(_) => Err(self.record_failure(turn, act, |context| context.no_answer(limit))),
        }
    }

    /// The connection in use, made if there is none.
    pub(crate) async fn current_connection(&self) -> Result<(usize, Connection), Failure> {
        let turn = self.current_turn();
        let failure = match timeout(CONNECT_TIMEOUT, self.connect_current_turn()).await {
            Ok(Ok(made)) => return Ok(made),
            Ok(Err(failure)) => failure,
            Err(_) => self.record_failure(turn, &Operation::Connect, |context| context.no_answer(CONNECT_TIMEOUT)),
        };
        self.advance_turn(turn);
        Err(Failure { is_unsent: true, ..failure })
    }

    async fn connect_current_turn(&self) -> Result<(usize, Connection), Failure> {
        let mut slot = self.shared.connection.lock().await;
        let turn = self.current_turn();
        match slot.as_ref() {
            Some((made, connection)) if *made == turn => Ok((turn, connection.clone())),
            _ => {
                *slot = None;
                let connection = open_connection(self.config(), self.config().endpoint_at(turn)).await?;
                *slot = Some((turn, connection.clone()));
                Ok((turn, connection))
            }
        }
    }

    /// What a failure on the connection of this turn means; one that is broken is given up.
    pub(crate) fn record_failure(
        &self,
        turn: usize,
        act: &Operation,
        what: impl FnOnce(Context<'_>) -> Failure,
    ) -> Failure {
        let endpoint = self.config().endpoint_at(turn).to_string();
        let user = self.config().login.as_ref().map(|login| login.name.as_str());
        let failure = what(Context { endpoint: &endpoint, operation: act, user });
        if failure.ends_connection {
            self.advance_turn(turn);
        }
        failure
    }

    /// Turns to the next endpoint, unless that has happened already: many notice the same loss.
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
