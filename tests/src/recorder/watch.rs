//! The recorder's watch of all keys, and reads of the store's position.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, Error, EventType, GetOptions, KeyValue, WatchOptions, WatchResponse};
use tokio::time::{sleep, timeout};

use super::Shared;
use super::record::{Position, Record};
use crate::PREFIX;
use crate::etcd::connect;

/// The first and the longest pause before the watch begins again. A test may stop etcd for a minute, or have it ask for a
/// password that the recorder doesn't know.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The limit for a node's answer. A frozen node never gives one.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// The most bytes of one message: a thousand revisions of full transactions.
const MESSAGE_LIMIT: usize = 1 << 30;

/// Follows the store until the task is aborted.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let mut pause = FIRST_PAUSE;
    for endpoint in shared.endpoints.iter().cycle() {
        let revision = || shared.record.lock().expect("no task panics").revision;
        let before = revision();
        // Whatever ended the watch, the next one begins with a look at the store.
        let _ = follow_once(&shared, endpoint).await;
        pause = if revision() == before { LONGEST_PAUSE.min(2 * pause) } else { FIRST_PAUSE };
        sleep(pause).await;
    }
}

/// Lists the store if the watch can't resume, and records changes until the watch ends.
async fn follow_once(shared: &Shared, endpoint: &str) -> Result<(), Error> {
    let mut client = connect(endpoint).await?;
    let header = client.get("health", None).await?;
    let header = header.header().expect("a header");
    let (cluster, revision) = (header.cluster_id(), header.revision());
    let can_resume = |record: &Record| {
        !record.must_list && record.listings > 0 && record.cluster == cluster && record.revision <= revision
    };
    if !shared.update(|record| can_resume(record)) {
        list(shared, &client).await?;
    }
    let next = shared.update(|record| record.revision) + 1;
    let options = WatchOptions::new().with_prefix().with_start_revision(next);
    let mut watch = client.watch_client().max_decoding_message_size(MESSAGE_LIMIT);
    let mut stream = watch.watch(PREFIX, Some(options)).await?;
    while let Some(response) = stream.message().await? {
        if response.canceled() {
            // The history is compacted.
            shared.update(|record| record.must_list = true);
            return Ok(());
        }
        shared.update(|record| add_events(record, &response));
    }
    Ok(())
}

async fn list(shared: &Shared, client: &Client) -> Result<(), Error> {
    let mut store = client.kv_client().max_decoding_message_size(MESSAGE_LIMIT);
    let found = store.get(PREFIX, Some(GetOptions::new().with_prefix())).await?;
    let header = found.header().expect("a header");
    shared.update(|record| {
        record.list(header.cluster_id(), header.revision());
        found.kvs().iter().for_each(|entry| add_entry(record, entry));
    });
    Ok(())
}

fn add_events(record: &mut Record, response: &WatchResponse) {
    for event in response.events() {
        let Some(entry) = event.kv() else { continue };
        match event.event_type() {
            EventType::Put => add_entry(record, entry),
            EventType::Delete => record.delete(relative(entry), entry.mod_revision()),
        }
    }
}

fn add_entry(record: &mut Record, entry: &KeyValue) {
    record.put(relative(entry), entry.value(), entry.mod_revision(), entry.lease());
}

fn relative(entry: &KeyValue) -> String {
    String::from_utf8_lossy(entry.key().strip_prefix(PREFIX.as_bytes()).unwrap_or_default()).into_owned()
}

/// Reads the store's position now. `None` if no node answers.
pub(crate) async fn read_position(shared: &Shared) -> Option<Position> {
    let (listings, known) = shared.update(|record| (record.listings, record.revision));
    for endpoint in &shared.endpoints {
        let read = async {
            let client = connect(endpoint).await?;
            // etcd filters by revision after it has counted all keys below the prefix.
            let options = GetOptions::new().with_prefix().with_keys_only().with_min_mod_revision(known + 1);
            client.kv_client().max_decoding_message_size(MESSAGE_LIMIT).get(PREFIX, Some(options)).await
        };
        let Ok(Ok(found)) = timeout(ANSWER_LIMIT, read).await else { continue };
        let header = found.header()?;
        let newest = found.kvs().iter().map(KeyValue::mod_revision).max().unwrap_or(known);
        let keys = usize::try_from(found.count()).ok()?;
        return Some(Position { listings, cluster: header.cluster_id(), revision: header.revision(), newest, keys });
    }
    None
}

/// Waits until the record has everything up to this position. False if it never will.
pub(crate) async fn reach(shared: &Shared, position: Position) -> bool {
    let reached = shared.wait_record(|record| match record.has_reached(position) {
        Some(false) => None,
        Some(true) => Some(true),
        None => Some(false),
    });
    reached.await
}

/// Waits until the record has everything that the store has now.
pub(crate) async fn catch_up(shared: &Shared) {
    shared.wait_record(|record| (record.listings > 0).then_some(())).await;
    if let Some(position) = read_position(shared).await {
        reach(shared, position).await;
    }
}
