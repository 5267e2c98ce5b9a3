//! Asks etcd which leases live. If a key disappeared while its lease lives, a client deleted it. It decides nothing itself.

use std::collections::BTreeSet;
use std::time::Duration;

use registry::{Client, LeaseId};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::reconcile::LeaseLookup;

/// The number of questions in progress at once. etcd answers one in a millisecond, so thousands in sequence would take seconds.
const AT_ONCE: usize = 64;
/// A reconcile waits for the answers, and later changes wait for the reconcile. etcd answers ten thousand questions within this.
const WITHIN: Duration = Duration::from_secs(3);

/// The lookup for threads outside of the async runtime. A lease that etcd doesn't answer for in time counts as dead, so that the
/// removal guard may retain its upstreams.
pub fn new_lease_lookup(client: Client) -> LeaseLookup {
    let runtime = Handle::current();
    Box::new(move |leases| runtime.block_on(find_alive(&client, leases, WITHIN)))
}

async fn find_alive(client: &Client, leases: BTreeSet<i64>, within: Duration) -> BTreeSet<i64> {
    let deadline = Instant::now() + within;
    let mut leases = leases.into_iter();
    let mut questions = JoinSet::new();
    let mut alive = BTreeSet::new();
    for lease in leases.by_ref().take(AT_ONCE) {
        spawn_question(&mut questions, client, lease);
    }
    loop {
        match timeout_at(deadline, questions.join_next()).await {
            Ok(None) => return alive,
            Ok(Some(Ok((lease, Ok(Some(_)))))) => drop(alive.insert(lease)),
            Ok(Some(Ok((_, Ok(None))) | Err(_))) => {}
            Ok(Some(Ok((_, Err(error))))) => {
                tracing::warn!(%error, "can't ask etcd which leases live, upstreams without an answer count as lost");
                return alive;
            }
            Err(_) => {
                tracing::warn!(
                    ?within,
                    "etcd is slow to say which leases live, upstreams without an answer count as lost"
                );
                return alive;
            }
        }
        if let Some(lease) = leases.next() {
            spawn_question(&mut questions, client, lease);
        }
    }
}

type Answer = (i64, Result<Option<Duration>, registry::Error>);

fn spawn_question(questions: &mut JoinSet<Answer>, client: &Client, lease: i64) {
    let client = client.clone();
    questions.spawn(async move { (lease, client.time_to_live(LeaseId::from(lease)).await) });
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_silent_etcd_is_given_up_and_says_that_nobody_lives() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = silent.local_addr().unwrap().to_string();
        let client =
            Client::new(Cli::parse_from(["confgen", "--endpoints", &endpoint]).common.store.resolve().unwrap());
        let asked = Instant::now();
        assert!(find_alive(&client, (1..1000).collect(), Duration::from_millis(100)).await.is_empty());
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        assert!(find_alive(&client, BTreeSet::new(), WITHIN).await.is_empty());
    }
}
