//! Following a single etcd through everything that can happen to it.

use std::time::{Duration, Instant};

use discovery::{Change, Entry};
use etcd_client::{EventType, WatchOptions};
use lab::Etcd;
use registry::{Client, Event, FollowOptions, Txn};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::support::{Link, Mirror, PREFIX, client, raw_client, report};

/// Longer than any recovery should take, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(20);

/// A follower whose watch stands.
async fn standing(client: &Client) -> Mirror {
    let mut mirror = Mirror::of(client);
    mirror.until("the snapshot", LIMIT, |mirror| mirror.snapshots == 1).await;
    put(client, "warm").await;
    mirror.until_key("warm", LIMIT).await;
    mirror
}

async fn put(client: &Client, key: &str) {
    client.commit(Txn::new().put(key, key, None)).await.expect("committed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_told_at_once_and_only_below_the_prefix() {
    let etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    put(&client, "before").await;
    let mut mirror = Mirror::of(&client);
    mirror.until("the snapshot", LIMIT, |mirror| mirror.snapshots == 1).await;
    assert_eq!(mirror.values(), [("before".to_owned(), b"before".to_vec())]);
    raw_client(&etcd).await.put(format!("{PREFIX}2/x"), "", None).await.expect("put");
    put(&client, "warm").await;
    mirror.until_key("warm", LIMIT).await;
    let began = Instant::now();
    put(&client, "after").await;
    mirror.until_key("after", LIMIT).await;
    report("put → told", began.elapsed());
    client.commit(Txn::new().delete("before")).await.expect("committed");
    mirror.until("the deletion", LIMIT, |mirror| !mirror.map.contains_key("before")).await;
    assert_eq!(mirror.map.keys().collect::<Vec<_>>(), ["after", "warm"]);
    assert_eq!((mirror.snapshots, mirror.losses.len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_alone_can_be_followed() {
    let etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    for key in ["folder", "folder/a", "folder2/x"] {
        put(&client, key).await;
    }
    let mut mirror = Mirror::with(
        &client,
        FollowOptions { folder: "folder", resync_interval: Duration::from_millis(20), ..FollowOptions::default() },
    );
    mirror.until("the second listing", LIMIT, |mirror| mirror.snapshots >= 2).await;
    put(&client, "other").await;
    put(&client, "folder/b").await;
    mirror.until_key("folder/b", LIMIT).await;
    assert_eq!(mirror.map.keys().collect::<Vec<_>>(), ["folder/a", "folder/b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_alone_can_be_followed() {
    let etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    for key in ["a", "a/b", "a2"] {
        put(&client, key).await;
    }
    let mut events = client.follow_key("a", FollowOptions::default(), CancellationToken::new());
    let Some(Event::Snapshot(snapshot)) = events.recv().await else { panic!("a listing first") };
    assert_eq!(snapshot.entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["a"]);
    for key in ["a/c", "a0", "a"] {
        put(&client, key).await;
    }
    client.commit(Txn::new().delete("a")).await.expect("committed");
    let mut told = Vec::new();
    while told.len() < 2 {
        match events.recv().await.expect("it goes on") {
            Event::Changes { changes, .. } => told.extend(changes),
            other => panic!("{other:?}"),
        }
    }
    let [Change::Put(Entry { key: put, .. }), Change::Delete { key: deleted, .. }] = &*told else { panic!("{told:?}") };
    assert_eq!((put.as_str(), deleted.as_str()), ("a", "a"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_is_merely_quiet_is_left_alone() {
    let etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let mut mirror = standing(&client).await;
    // Longer than a frozen etcd would go unnoticed.
    sleep(Duration::from_secs(8)).await;
    put(&client, "after").await;
    mirror.until_key("after", LIMIT).await;
    assert_eq!((mirror.snapshots, mirror.losses.len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_killed_and_restarted() {
    let mut etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let mut mirror = standing(&client).await;
    let began = Instant::now();
    etcd.kill(0);
    mirror.until("the loss", LIMIT, |mirror| !mirror.connected).await;
    report("killed → noticed", began.elapsed());
    sleep(Duration::from_secs(5)).await;
    etcd.restart(0);
    let began = Instant::now();
    mirror.until("the way back", LIMIT, |mirror| mirror.connected).await;
    report("up again after 5 s → back", began.elapsed());
    put(&client, "after").await;
    mirror.until_key("after", LIMIT).await;
    assert_eq!(mirror.snapshots, 1, "resumed, not listed anew");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_frozen_for_10_s() {
    let mut etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let mut mirror = standing(&client).await;
    let frozen = Instant::now();
    etcd.freeze(0);
    mirror.until("the loss", LIMIT, |mirror| !mirror.connected).await;
    report("frozen → noticed", frozen.elapsed());
    assert!(frozen.elapsed() < Duration::from_secs(10));
    sleep(Duration::from_secs(10).saturating_sub(frozen.elapsed())).await;
    etcd.thaw(0);
    let began = Instant::now();
    mirror.until("the way back", LIMIT, |mirror| mirror.connected).await;
    report("thawed after 10 s → back", began.elapsed());
    put(&client, "after").await;
    mirror.until_key("after", LIMIT).await;
    assert_eq!(mirror.snapshots, 1, "resumed, not listed anew");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compacted_while_away() {
    let etcd = Etcd::start();
    let writer = client(&[etcd.endpoints()]);
    let link = Link::to(&etcd.endpoints()).await;
    let mut mirror = Mirror::of(&client(&[link.endpoint()]));
    put(&writer, "goes").await;
    mirror.until_key("goes", LIMIT).await;
    link.cut();
    mirror.until("the loss", LIMIT, |mirror| !mirror.connected).await;
    writer.commit(Txn::new().delete("goes")).await.expect("committed");
    for n in 0..50 {
        put(&writer, &format!("k{n}")).await;
    }
    let revision = writer.read_snapshot("").await.expect("listed").revision;
    raw_client(&etcd).await.compact(revision, None).await.expect("compacted");
    let listed = mirror.snapshots;
    link.mend();
    let took = mirror.until("a snapshot", LIMIT, |mirror| mirror.snapshots > listed).await;
    report("compacted while away: mended → listed anew", took);
    assert_eq!((mirror.map.len(), mirror.revision), (50, revision));
    put(&writer, "after").await;
    mirror.until_key("after", LIMIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wiped_and_recreated() {
    let mut etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let mut mirror = Mirror::of(&client);
    for n in 0..20 {
        put(&client, &format!("k{n}")).await;
    }
    mirror.until("all keys", LIMIT, |mirror| mirror.map.len() == 20).await;
    let (cluster, revision) = (mirror.cluster, mirror.revision);
    etcd.wipe();
    let listed = mirror.snapshots;
    let took = mirror.until("a snapshot", LIMIT, |mirror| mirror.snapshots > listed).await;
    report("wiped and up again → listed anew", took);
    assert!(mirror.map.is_empty() && mirror.revision < revision);
    assert_eq!(mirror.cluster, cluster, "the same flags make the same cluster id");
    put(&client, "after").await;
    mirror.until_key("after", LIMIT).await;
}

/// The store was wiped, and its revision is beyond the old one before the follower sees it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wiped_and_ahead_again_is_seen_by_its_raft_term() {
    let mut etcd = Etcd::start();
    // One more election, so that the wiped store's term is lower.
    etcd.restart(0);
    let writer = client(&[etcd.endpoints()]);
    let link = Link::to(&etcd.endpoints()).await;
    let mut mirror = Mirror::of(&client(&[link.endpoint()]));
    put(&writer, "old").await;
    mirror.until_key("old", LIMIT).await;
    link.cut();
    etcd.wipe();
    for n in 0..50 {
        put(&writer, &format!("k{n}")).await;
    }
    assert!(writer.read_snapshot("").await.expect("listed").revision > mirror.revision);
    let listed = mirror.snapshots;
    link.mend();
    mirror.until("a snapshot", LIMIT, |mirror| mirror.snapshots > listed).await;
    assert_eq!(mirror.map.len(), 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keys_of_one_transaction_come_together() {
    let etcd = Etcd::start();
    let writer = client(&[etcd.endpoints()]);
    let link = Link::to(&etcd.endpoints()).await;
    let mut mirror = Mirror::of(&client(&[link.endpoint()]));
    mirror.until("the snapshot", LIMIT, |mirror| mirror.snapshots == 1).await;
    // etcd's limit of operations a transaction, as small ones while watching …
    write_transactions(&writer, "live", 3, 128, 10).await;
    mirror.until_key("live/2/127", LIMIT).await;
    // … and as 6 MB in a burst of fragments that part transactions.
    link.cut();
    mirror.until("the loss", LIMIT, |mirror| !mirror.connected).await;
    write_transactions(&writer, "burst", 6, 128, 8 << 10).await;
    link.mend();
    let took = mirror.until_key("burst/5/127", LIMIT).await;
    report("6 MB of events: mended → all told", took);
    assert_eq!((mirror.snapshots, mirror.map.len()), (1, 9 * 128));
    for (number, change) in &mirror.changes {
        let transaction = |key: &str| key.rsplit_once('/').map(|(transaction, _)| transaction.to_owned());
        let together = mirror.changes.iter().filter(|(other, _)| other == number);
        let together = together.filter(|(_, other)| transaction(other.key()) == transaction(change.key()));
        assert_eq!(together.count(), 128, "{}", change.key());
    }
}

async fn write_transactions(client: &Client, name: &str, count: usize, keys: usize, bytes: usize) {
    for n in 0..count {
        let txn = (0..keys).fold(Txn::new(), |txn, key| txn.put(format!("{name}/{n}/{key}"), vec![b'x'; bytes], None));
        client.commit(txn).await.expect("committed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_consumer_misses_nothing() {
    let etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let mut mirror = Mirror::of(&client);
    mirror.until("the snapshot", LIMIT, |mirror| mirror.snapshots == 1).await;
    // Far more than the buffers between etcd and here hold.
    for n in 0..400 {
        client.commit(Txn::new().put(format!("k{n}"), vec![b'x'; 64 << 10], None)).await.expect("committed");
    }
    // Longer than an etcd that says nothing would be waited for.
    sleep(Duration::from_secs(6)).await;
    put(&client, "last").await;
    mirror.until_key("last", LIMIT).await;
    assert_eq!((mirror.map.len(), mirror.snapshots, mirror.losses.len()), (401, 1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resync_lists_anew_and_loses_nothing() {
    let etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    // Pages enough for changes to come while they are read.
    write_transactions(&client, "many", 40, 100, 10).await;
    let mut mirror =
        Mirror::with(&client, FollowOptions { resync_interval: Duration::from_millis(20), ..FollowOptions::default() });
    let writing = async {
        for n in 0..500 {
            client.commit(random_txn()).await.expect("committed");
            put(&client, &format!("k{}", n % 50)).await;
        }
        put(&client, "last").await;
    };
    let told = mirror.until_key("last", LIMIT);
    tokio::join!(writing, told);
    println!("{} snapshots among {} changes", mirror.snapshots, mirror.changes.len());
    assert!(mirror.snapshots > 10 && mirror.losses.is_empty());
    let plain = client.read_snapshot("").await.expect("listed");
    assert_eq!(mirror.map.into_values().collect::<Vec<_>>(), plain.entries);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_when_told_to() {
    let etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let shutdown = CancellationToken::new();
    let mut events = client.follow_folder(FollowOptions::default(), shutdown.clone());
    assert!(events.recv().await.is_some());
    shutdown.cancel();
    assert!(events.recv().await.is_none());
}

/// Random writes and deletions, etcd killed and frozen and the link cut in between: what the follower was told is etcd's
/// own history, event by event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missed_and_nothing_told_twice() {
    let mut etcd = Etcd::start();
    let writer = client(&[etcd.endpoints()]);
    let link = Link::to(&etcd.endpoints()).await;
    let mut mirror = Mirror::of(&client(&[link.endpoint()]));
    mirror.until("the snapshot", LIMIT, |mirror| mirror.snapshots == 1).await;
    let mut written = 0;
    for round in 0..8 {
        for _ in 0..150 {
            // What meets a dying etcd may fail; etcd's history says what was written.
            written += usize::from(writer.commit(random_txn()).await.is_ok_and(|done| done.succeeded));
        }
        match round % 4 {
            0 => link.cut(),
            1 => etcd.restart(0),
            2 => link.mend(),
            _ => {
                etcd.freeze(0);
                sleep(Duration::from_millis(300)).await;
                etcd.thaw(0);
            }
        }
    }
    link.mend();
    put(&writer, "last").await;
    mirror.until_key("last", LIMIT).await;
    assert!(written > 1000, "{written}");
    let plain = writer.read_snapshot("").await.expect("listed");
    assert_eq!(mirror.map.into_values().collect::<Vec<_>>(), plain.entries);
    let told: Vec<_> = mirror.changes.iter().map(|(_, change)| fingerprint(change)).collect();
    let history = history(&etcd, plain.revision).await;
    if mirror.snapshots == 1 {
        assert_eq!(told, history);
    } else {
        // After a watch broke twice at one revision, the follower lists. The listing replaces the events before it.
        let mut rest = history.iter();
        assert!(told.iter().all(|event| rest.any(|other| other == event)), "each once, in etcd's own order");
    }
}

fn random_txn() -> Txn {
    let keys = [fastrand::u8(0..20), fastrand::u8(20..40)];
    keys.into_iter().fold(Txn::new(), |txn, key| match fastrand::u8(0..3) {
        0 => txn.delete(format!("k{key}")),
        _ => txn.put(format!("k{key}"), [fastrand::u8(..)], None),
    })
}

fn fingerprint(change: &Change) -> (i64, String, bool) {
    match change {
        Change::Put(entry) => (entry.mod_revision, entry.key.clone(), true),
        Change::Delete { key, revision, .. } => (*revision, key.clone(), false),
    }
}

/// Every event from the first revision to this one, straight from etcd.
async fn history(etcd: &Etcd, last: i64) -> Vec<(i64, String, bool)> {
    let options = WatchOptions::new().with_prefix().with_start_revision(2);
    let mut watch = raw_client(etcd).await.watch(format!("{PREFIX}/"), Some(options)).await.expect("a watch");
    let mut history = Vec::new();
    while history.last().is_none_or(|(revision, _, _)| *revision < last) {
        let message = watch.message().await.expect("a message").expect("a stream");
        for event in message.events() {
            let kv = event.kv().expect("a key");
            let key = kv.key_str().expect("UTF-8").trim_start_matches(PREFIX).trim_start_matches('/').to_owned();
            history.push((kv.mod_revision(), key, event.event_type() == EventType::Put));
        }
    }
    history
}
