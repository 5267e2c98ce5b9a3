//! Clients of the lab's etcd, links that can be cut, and a follower's mirror of the store.

pub(crate) mod link;
pub(crate) mod mirror;

use std::time::{Duration, Instant};

use lab::Etcd;
pub(crate) use link::Link;
pub(crate) use mirror::Mirror;
use registry::{Args, Client};

pub(crate) const PREFIX: &str = "/haproxy-discover";

/// The options for these endpoints and nothing else.
pub(crate) fn args(endpoints: &[String]) -> Args {
    Args {
        endpoints: endpoints.to_vec(),
        cacert: None,
        cert: None,
        key: None,
        user: None,
        password: None,
        password_file: None,
        discovery_srv: None,
        prefix: PREFIX.to_owned(),
    }
}

/// A client that begins with the first of these. By itself it begins with any.
pub(crate) fn client(endpoints: &[String]) -> Client {
    let config = args(endpoints).resolve().expect("valid options");
    loop {
        let client = Client::new(config.clone());
        if client.current_endpoint() == endpoints[0] {
            return client;
        }
    }
}

/// A client of the client library, which this crate's own is compared with. It doesn't log in.
pub(crate) async fn raw_client(etcd: &Etcd) -> etcd_client::Client {
    etcd_client::Client::connect([etcd.endpoints()], None).await.expect("a lazy connect")
}

/// Asks until the answer is there, at most for the limit. [`lab::until`] is for questions that block.
pub(crate) async fn eventually<T>(what: &str, limit: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(began.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One figure of the test's report.
pub(crate) fn report(what: &str, figure: Duration) {
    println!("{what}: {:.3} s", figure.as_secs_f64());
}
