//! Which leases live: what vanished while its lease lives was deleted by somebody.

use std::collections::BTreeSet;
use std::time::Duration;

use registry::{Client, LeaseId};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::reconcile::LeaseLookup;

/// The questions that are under way at once: etcd answers one in a millisecond, one behind the other is too slow for
/// thousands.
const AT_ONCE: usize = 64;
/// A round waits for the answers, and with it whatever changes meanwhile. An etcd that has just told of the keys' end
/// answers ten thousand questions within this; a silent one has to be given up.
const WITHIN: Duration = Duration::from_secs(3);

/// Asks etcd, from outside of the runtime. A lease that it doesn't answer for in time counts as dead: what hung on it is
/// kept rather than lost.
pub fn new_lease_lookup(client: Client) -> LeaseLookup {
    let runtime = Handle::current();
    Box::new(move |leases| runtime.block_on(find_alive(&client, leases, WITHIN)))
}

async fn find_alive(client: &Client, leases: BTreeSet<i64>, within: Duration) -> BTreeSet<i64> {
    let deadline = Instant::now() + within;
    let mut leases = leases.into_iter();
    let mut questions = JoinSet::new();
    let mut alive = BTreeSet::new();
    let ask = |questions: &mut JoinSet<_>, lease: i64| {
        let client = client.clone();
        questions.spawn(async move { (lease, client.time_to_live(LeaseId::from(lease)).await) });
    };
    leases.by_ref().take(AT_ONCE).for_each(|lease| ask(&mut questions, lease));
    loop {
        match timeout_at(deadline, questions.join_next()).await {
            Ok(None) => return alive,
            Ok(Some(Ok((lease, Ok(Some(_)))))) => drop(alive.insert(lease)),
            Ok(Some(Ok((_, Ok(None))) | Err(_))) => {}
            Ok(Some(Ok((_, Err(error))))) => {
                tracing::warn!("{error}; upstreams whose leases can't be asked after count as lost");
                return alive;
            }
            Err(_) => {
                tracing::warn!("etcd doesn't say in {within:?} which leases live; the others' upstreams count as lost");
                return alive;
            }
        }
        if let Some(lease) = leases.next() {
            ask(&mut questions, lease);
        }
    }
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
