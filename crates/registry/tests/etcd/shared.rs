//! Many watches on one stream.

use std::time::Duration;

use discovery::Change;
use lab::Etcd;
use registry::{Client, Event, FollowOptions, Txn};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::support::{Link, client, eventually, raw_client};

const LIMIT: Duration = Duration::from_secs(20);

/// What a follower of one key was told.
struct Told {
    key: String,
    events: mpsc::Receiver<Event>,
    value: Option<Vec<u8>>,
    snapshots: usize,
    losses: usize,
}

impl Told {
    fn of(client: &Client, key: &str) -> Self {
        let options = FollowOptions { shares_stream: true, ..FollowOptions::default() };
        let events = client.follow_key(key, options, CancellationToken::new());
        Self { key: key.to_owned(), events, value: None, snapshots: 0, losses: 0 }
    }

    /// Takes events until the key has this value.
    async fn until_value(&mut self, value: &str) {
        self.until(value, |told| told.value.as_deref() == Some(value.as_bytes())).await;
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            let event = timeout(LIMIT, self.events.recv()).await;
            self.take(event.unwrap_or_else(|_| panic!("{}: {what}", self.key)).expect("it goes on"));
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Snapshot(snapshot) => {
                self.snapshots += 1;
                assert!(snapshot.entries.iter().all(|entry| entry.key == self.key), "{snapshot:?}");
                self.value = snapshot.entries.into_iter().next().map(|entry| entry.value);
            }
            Event::Changes { changes, .. } => {
                for change in changes {
                    assert_eq!(change.key(), self.key, "a watch gets its own key's changes");
                    self.value = match change {
                        Change::Put(entry) => Some(entry.value),
                        Change::Delete { .. } => None,
                    };
                }
            }
            Event::Disconnected { .. } => self.losses += 1,
        }
    }
}

async fn put(client: &Client, key: &str, value: &str) {
    client.commit(Txn::new().put(key, value, None)).await.expect("committed");
}

/// Followers of these keys, whose watches stand.
async fn standing(writer: &Client, reader: &Client, count: usize) -> Vec<Told> {
    let mut all: Vec<Told> = (0..count).map(|n| Told::of(reader, &format!("k{n}"))).collect();
    for told in &mut all {
        told.until("the listing", |told| told.snapshots == 1).await;
        put(writer, &told.key, "first").await;
        told.until_value("first").await;
    }
    all
}

async fn until_streams(etcd: &Etcd, streams: f64, watchers: f64) {
    let wanted = (streams, watchers);
    eventually(&format!("{wanted:?} streams and watchers"), LIMIT, async || {
        let streams = etcd.metric("etcd_debugging_mvcc_watch_stream_total");
        ((streams, etcd.metric("etcd_debugging_mvcc_watcher_total")) == wanted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_keys_share_one_stream() {
    let etcd = Etcd::unrecorded();
    let client = client(&[etcd.endpoints()]);
    let mut all = standing(&client, &client, 50).await;
    until_streams(&etcd, 1.0, 50.0).await;
    let mut folder = client.follow_folder(FollowOptions::default(), CancellationToken::new());
    assert!(folder.recv().await.is_some());
    until_streams(&etcd, 2.0, 51.0).await;
    drop(folder);
    // One watch ends, and then all but one.
    drop(all.remove(20));
    until_streams(&etcd, 1.0, 49.0).await;
    for told in &mut all {
        put(&client, &told.key, "second").await;
        told.until_value("second").await;
        assert_eq!((told.snapshots, told.losses), (1, 0), "{}", told.key);
    }
    all.truncate(1);
    until_streams(&etcd, 1.0, 1.0).await;
    drop(all);
    until_streams(&etcd, 0.0, 0.0).await;
    let mut again = Told::of(&client, "k0");
    again.until_value("second").await;
    until_streams(&etcd, 1.0, 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_consumer_and_a_compaction_concern_one_watch() {
    let etcd = Etcd::unrecorded();
    let client = client(&[etcd.endpoints()]);
    let mut all = standing(&client, &client, 2).await;
    let (mut slow, mut other) = (all.remove(0), all.remove(0));
    // More than the events and messages that wait for one consumer.
    for n in 0..200 {
        put(&client, &slow.key, &n.to_string()).await;
    }
    until_streams(&etcd, 1.0, 1.0).await;
    put(&client, &other.key, "meanwhile").await;
    other.until_value("meanwhile").await;
    let revision = client.read_snapshot("").await.expect("listed").revision;
    raw_client(&etcd).await.compact(revision, None).await.expect("compacted");
    slow.until("all changes, and a listing", |told| told.value.as_deref() == Some(b"199") && told.snapshots == 2).await;
    put(&client, &slow.key, "after").await;
    slow.until_value("after").await;
    put(&client, &other.key, "after").await;
    other.until_value("after").await;
    assert_eq!((slow.losses, other.losses, other.snapshots), (0, 0, 1));
    until_streams(&etcd, 1.0, 2.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_watches_of_a_connection_that_dies_come_back_on_one_stream() {
    let etcd = Etcd::unrecorded();
    let writer = client(&[etcd.endpoints()]);
    let link = Link::to(&etcd.endpoints()).await;
    let mut all = standing(&writer, &client(&[link.endpoint()]), 20).await;
    link.cut();
    for told in &mut all {
        told.until("the loss", |told| told.losses > 0).await;
        put(&writer, &told.key, "missed").await;
    }
    link.mend();
    for told in &mut all {
        told.until_value("missed").await;
        assert_eq!(told.snapshots, 1, "resumed, not listed anew");
    }
    until_streams(&etcd, 1.0, 20.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_etcd_is_noticed_by_every_watch() {
    let mut etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let mut all = standing(&client, &client, 5).await;
    etcd.freeze(0);
    for told in &mut all {
        told.until("the loss", |told| told.losses > 0).await;
    }
    etcd.thaw(0);
    for told in &mut all {
        put_until(&client, &told.key, "after").await;
        told.until_value("after").await;
    }
}

async fn put_until(client: &Client, key: &str, value: &str) {
    eventually("a write", LIMIT, async || client.commit(Txn::new().put(key, value, None)).await.ok()).await;
}
