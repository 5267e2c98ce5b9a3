//! The lease loop.

use std::time::{Duration, Instant};

use lab::Etcd;
use registry::{Client, LeaseId, Txn};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::{Link, client, report};

const LIMIT: Duration = Duration::from_secs(20);
/// Short, but with time for two more tries on a machine that is busy.
const TTL: Duration = Duration::from_secs(3);

async fn held(lease: &mut watch::Receiver<Option<LeaseId>>, other_than: Option<LeaseId>) -> LeaseId {
    let found = timeout(LIMIT, lease.wait_for(|held| held.is_some() && *held != other_than)).await;
    found.expect("in time").expect("the loop runs").expect("is some")
}

async fn is_alive(client: &Client, lease: LeaseId) -> bool {
    client.time_to_live(lease).await.expect("asked").is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_kept_and_no_value_changes() {
    let etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let shutdown = CancellationToken::new();
    let mut lease = client.keep_lease(TTL, shutdown.clone());
    let id = held(&mut lease, None).await;
    let put = client.commit(Txn::new().put("upstream", "v", Some(id))).await.expect("committed");
    sleep(TTL * 2).await;
    let snapshot = client.read_snapshot("").await.expect("listed");
    assert_eq!((snapshot.revision, snapshot.entries.len()), (put.revision, 1), "a heartbeat writes nothing");
    assert_eq!(*lease.borrow(), Some(id));
    shutdown.cancel();
    assert!(lease.wait_for(|_| false).await.is_err(), "the loop ends");
    assert!(is_alive(&client, id).await, "and revokes nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_behind_the_back() {
    let etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let mut lease = client.keep_lease(TTL, CancellationToken::new());
    let first = held(&mut lease, None).await;
    client.revoke_lease(first).await.expect("revoked");
    let began = Instant::now();
    let second = held(&mut lease, Some(first)).await;
    report("revoked → another lease (TTL 3 s)", began.elapsed());
    assert!(began.elapsed() < TTL * 3);
    assert!(is_alive(&client, second).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_doubted_is_asked_for_at_once() {
    let etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let (counted, _beats) = watch::channel(registry::LeaseStats::default());
    let doubt = std::sync::Arc::<tokio::sync::Notify>::default();
    // Its next beat is 20 minutes away.
    let ttl = Duration::from_secs(3600);
    let mut lease = client.keep_lease_with_stats(ttl, None, CancellationToken::new(), counted, doubt.clone());
    let first = held(&mut lease, None).await;
    client.revoke_lease(first).await.expect("revoked");
    doubt.notify_one();
    held(&mut lease, Some(first)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_etcd_is_no_loss() {
    let mut etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let mut lease = client.keep_lease(TTL, CancellationToken::new());
    let id = held(&mut lease, None).await;
    client.commit(Txn::new().put("upstream", "v", Some(id))).await.expect("committed");
    etcd.kill(0);
    // Longer than the TTL: etcd renews what it finds when it starts.
    sleep(TTL + Duration::from_secs(1)).await;
    etcd.restart(0);
    sleep(TTL * 2).await;
    assert_eq!(*lease.borrow(), Some(id));
    assert_eq!(client.get("upstream").await.expect("read").map(|entry| entry.lease), Some(id.get()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_past_the_ttl() {
    let mut etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let mut lease = client.keep_lease(TTL, CancellationToken::new());
    let first = held(&mut lease, None).await;
    etcd.freeze(0);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(*lease.borrow(), Some(first), "an unreachable etcd is no loss");
    etcd.thaw(0);
    let began = Instant::now();
    // etcd ends what has expired; only a renewal that it finds waiting can come before.
    let second = timeout(LIMIT, lease.wait_for(|held| held.is_some() && *held != Some(first)));
    match timeout(TTL * 3, second).await {
        Ok(second) => {
            let second = second.expect("in time").expect("the loop runs").expect("is some");
            report("thawed after 10 s → another lease (TTL 3 s)", began.elapsed());
            assert!(is_alive(&client, second).await);
        }
        Err(_) => assert!(is_alive(&client, first).await, "it was renewed in time"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_store_knows_no_lease() {
    let mut etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let mut lease = client.keep_lease(TTL, CancellationToken::new());
    let first = held(&mut lease, None).await;
    etcd.wipe();
    let began = Instant::now();
    let second = held(&mut lease, Some(first)).await;
    report("wiped and up again → another lease", began.elapsed());
    assert!(is_alive(&client, second).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_may_come_later() {
    let mut etcd = Etcd::start();
    etcd.kill(0);
    let client = client(&[etcd.endpoints()]);
    let mut lease = client.keep_lease(TTL, CancellationToken::new());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(*lease.borrow_and_update(), None);
    etcd.restart(0);
    let began = Instant::now();
    held(&mut lease, None).await;
    report("first start of etcd → a lease", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_lost_etcd_together_come_back_spread_out() {
    const MANY: usize = 200;
    let etcd = Etcd::start();
    let link = Link::to(&etcd.endpoints()).await;
    // A cut of a third of it and 3 s, and the way back, fit into it.
    let ttl = Duration::from_secs(24);
    let mut leases = Vec::new();
    for _ in 0..MANY {
        leases.push(client(&[link.endpoint()]).keep_lease(ttl, CancellationToken::new()));
    }
    let mut ids = Vec::new();
    for lease in &mut leases {
        ids.push(held(lease, None).await);
    }
    let before = link.arrivals().len();
    link.cut();
    // Wait until each lease's next renewal was due, and has failed several times.
    sleep(ttl / 3 + Duration::from_secs(3)).await;
    link.mend();
    let began = Instant::now();
    while link.arrivals().len() < before + MANY {
        assert!(began.elapsed() < LIMIT);
        sleep(Duration::from_millis(10)).await;
    }
    let arrivals = link.arrivals().split_off(before);
    let within = |from: &Instant| {
        arrivals.iter().filter(|at| **at >= *from && **at - *from < Duration::from_millis(100)).count()
    };
    let busiest = arrivals.iter().map(within).max().expect("arrivals");
    report("200 that lost etcd together: all back within", began.elapsed());
    println!("… of them within the busiest 100 ms: {busiest}");
    // Without jitter it is all of them; a busy machine lets some wait for each other.
    assert!(busiest < MANY / 3, "{busiest}");
    let now: Vec<_> = leases.iter().map(|lease| lease.borrow().expect("held")).collect();
    assert_eq!(now, ids, "and nobody lost its lease");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_an_earlier_process_is_resumed_with_its_keys() {
    let etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let before = client.grant_lease(TTL).await.expect("granted");
    client.commit(Txn::new().put("upstream", "v", Some(before))).await.expect("committed");
    let resume = |lease| {
        let (counted, doubt) = (watch::Sender::default(), std::sync::Arc::default());
        client.keep_lease_with_stats(TTL, Some(lease), CancellationToken::new(), counted, doubt)
    };
    let mut lease = resume(before);
    assert_eq!(held(&mut lease, None).await, before);
    assert_eq!(client.lease_keys(before).await.expect("asked"), Some(vec!["upstream".to_owned()]));
    sleep(TTL * 2).await;
    assert!(is_alive(&client, before).await, "it is renewed");
    // One that has ended meanwhile is replaced.
    client.revoke_lease(before).await.expect("revoked");
    assert_eq!(client.lease_keys(before).await.expect("asked"), None);
    assert_ne!(held(&mut resume(before), Some(before)).await, before);
}
