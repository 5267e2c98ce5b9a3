//! Three members.

use std::time::{Duration, Instant};

use lab::Etcd;
use registry::{Client, Txn};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::support::{Mirror, client, eventually, report};

const LIMIT: Duration = Duration::from_secs(20);

/// The leader is killed; one follower hangs on it, the other on a member that lives on. Writes go on all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_killed() {
    let mut cluster = Etcd::cluster();
    let leader = cluster.leader();
    let leader_first = endpoints_from(&cluster, leader);
    let mut leader_last = leader_first.clone();
    leader_last.rotate_left(1);
    let (on_leader, on_member) = (client(&leader_first), client(&leader_last));
    let (mut first, mut second) = (Mirror::of(&on_leader), Mirror::of(&on_member));
    for mirror in [&mut first, &mut second] {
        mirror.until("the snapshot", LIMIT, |mirror| mirror.snapshots == 1).await;
    }
    let ttl = Duration::from_secs(6);
    let mut lease = on_leader.keep_lease(ttl, CancellationToken::new());
    lease.wait_for(Option::is_some).await.expect("held");
    let id = *lease.borrow();
    on_leader.commit(Txn::new().put("leased", "", id)).await.expect("committed");

    let writer = client(&leader_last);
    write(&writer, "before", 20).await;
    cluster.kill(leader);
    let began = Instant::now();
    write(&writer, "after", 1).await;
    report("leader killed → next write", began.elapsed());
    let (told_first, told_second) = tokio::join!(first.until_key("after/0", LIMIT), second.until_key("after/0", LIMIT));
    report("… → told to who hung on the leader", began.elapsed().max(told_first));
    report("… → told to who hung on another", began.elapsed().max(told_second));
    write(&writer, "later", 20).await;
    for mirror in [&mut first, &mut second] {
        mirror.until_key("later/19", LIMIT).await;
        assert_eq!(mirror.snapshots, 1, "resumed, not listed anew");
        assert_eq!(mirror.map.len(), 42);
    }
    sleep(ttl + Duration::from_secs(1)).await;
    assert_eq!(*lease.borrow(), id, "the lease lives on");
    assert!(on_leader.get("leased").await.expect("read").is_some());
}

/// Without a quorum a member answers nothing about the present; it must not be taken for alive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quorum_is_lost_for_a_while() {
    let mut cluster = Etcd::cluster();
    let leader = cluster.leader();
    let endpoints = endpoints_from(&cluster, leader);
    // Hangs on the one member that stays.
    let client = client(&[endpoints[2].clone(), endpoints[0].clone(), endpoints[1].clone()]);
    let mut mirror = Mirror::of(&client);
    write(&client, "before", 5).await;
    mirror.until_key("before/4", LIMIT).await;
    let began = Instant::now();
    cluster.kill(leader);
    cluster.kill((leader + 1) % 3);
    mirror.until("the loss", LIMIT, |mirror| !mirror.connected).await;
    report("quorum lost → noticed", began.elapsed());
    assert!(client.get("before/0").await.expect_err("no quorum").is_unreachable());
    cluster.restart(leader);
    let began = Instant::now();
    mirror.until("the way back", LIMIT, |mirror| mirror.connected).await;
    report("quorum back → back", began.elapsed());
    write(&client, "after", 5).await;
    mirror.until_key("after/4", LIMIT).await;
    assert_eq!((mirror.snapshots, mirror.map.len()), (1, 10));
}

/// The endpoints of the cluster, that of this member first.
fn endpoints_from(cluster: &Etcd, member: usize) -> Vec<String> {
    let mut endpoints: Vec<String> = cluster.endpoints().split(',').map(str::to_owned).collect();
    endpoints.rotate_left(member);
    endpoints
}

/// Each key once, tried again until it is there; a write that failed may have been done.
async fn write(client: &Client, name: &str, count: usize) {
    for n in 0..count {
        eventually("a write", LIMIT, async || {
            client.commit(Txn::new().put(format!("{name}/{n}"), "", None)).await.ok()
        })
        .await;
    }
}
