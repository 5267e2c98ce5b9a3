//! Follows the announcer's own keys, so that changes by other writers come as news. All their watches share one stream. It
//! decides nothing.

use std::collections::HashMap;

use discovery::Change;
use registry::{Client, Event, FollowOptions};
use tokio::{sync::mpsc, time::Duration};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::registrar::record_set::KeyObservation;

/// Silence after which etcd is asked whether a watch lives. The connection's pings, which the lease's renewal shares,
/// notice a dead connection within 9 s. A thousand announcers would otherwise ask for little else.
const QUIET: Duration = Duration::from_secs(30);

/// An event of one key.
#[derive(Debug)]
pub(crate) struct KeyNews {
    key: String,
    event: Event,
    /// True if the store changed its cluster or was restored to an older revision.
    is_other_store: bool,
}

impl KeyNews {
    /// States of the key, in their order. Empty while the store can't be followed.
    pub(crate) fn observations(&self) -> impl Iterator<Item = (&str, KeyObservation<'_>)> {
        let seen: Vec<KeyObservation<'_>> = match &self.event {
            Event::Snapshot(snapshot) => {
                let entry = snapshot.entries.iter().find(|entry| entry.key == self.key);
                vec![KeyObservation { entry, revision: snapshot.revision, is_other_store: self.is_other_store }]
            }
            Event::Changes { changes, .. } => changes.iter().map(observe_change).collect(),
            Event::Disconnected { .. } => Vec::new(),
        };
        seen.into_iter().map(|seen| (self.key.as_str(), seen))
    }
}

fn observe_change(change: &Change) -> KeyObservation<'_> {
    match change {
        Change::Put(entry) => {
            KeyObservation { entry: Some(entry), revision: entry.mod_revision, is_other_store: false }
        }
        Change::Delete { revision, .. } => KeyObservation { entry: None, revision: *revision, is_other_store: false },
    }
}

/// Position of a key's watch.
#[derive(Clone, Copy, Debug, Default)]
struct FollowProgress {
    cluster: u64,
    revision: i64,
    is_followed: bool,
}

/// Watches of our keys. Dropping it ends them.
pub(crate) struct OwnKeys {
    client: Client,
    progress: HashMap<String, FollowProgress>,
    sender: mpsc::Sender<(String, Event)>,
    inbox: mpsc::Receiver<(String, Event)>,
    /// True after etcd's refusal to let a key be followed was logged.
    is_refused: bool,
    end: CancellationToken,
    _ends_with_us: DropGuard,
}

impl OwnKeys {
    pub(crate) fn new(client: Client) -> Self {
        let (sender, inbox) = mpsc::channel(16);
        let end = CancellationToken::new();
        let _ends_with_us = end.clone().drop_guard();
        Self { client, progress: HashMap::new(), sender, inbox, is_refused: false, end, _ends_with_us }
    }

    /// Starts to follow these keys, in addition to the earlier ones.
    pub(crate) fn follow_keys(&mut self, keys: impl Iterator<Item = String>) {
        for key in keys {
            if self.progress.contains_key(&key) {
                continue;
            }
            let options = FollowOptions { max_silence: QUIET, shares_stream: true, ..FollowOptions::default() };
            let mut events = self.client.follow_key(&key, options, self.end.clone());
            let (sender, name) = (self.sender.clone(), key.clone());
            tokio::spawn(async move {
                while let Some(event) = events.recv().await {
                    if sender.send((name.clone(), event)).await.is_err() {
                        return;
                    }
                }
            });
            self.progress.insert(key, FollowProgress::default());
        }
    }

    /// True if a change of this key would be noticed now.
    pub(crate) fn is_following(&self, key: &str) -> bool {
        self.progress.get(key).is_some_and(|place| place.is_followed)
    }

    /// Waits for the next news. Cancellation loses none.
    pub(crate) async fn next_news(&mut self) -> KeyNews {
        // `self.sender` keeps the channel open, so it never ends.
        let Some((key, event)) = self.inbox.recv().await else { return std::future::pending().await };
        self.log_outage(&key, &event);
        let place = self.progress.entry(key.clone()).or_default();
        let is_other_store = place.record_event(&event);
        KeyNews { key, event, is_other_store }
    }

    /// Logs once that etcd refuses the watch. The lease's renewal logs that etcd is unreachable.
    fn log_outage(&mut self, key: &str, event: &Event) {
        match event {
            Event::Disconnected { error, .. } if error.is_unreachable() => {
                tracing::debug!(key, %error, "can't watch the record for now");
            }
            Event::Disconnected { error, .. } => {
                if !std::mem::replace(&mut self.is_refused, true) {
                    tracing::warn!(key, %error, "can't watch the record, its loss may go unnoticed");
                }
            }
            Event::Snapshot(_) | Event::Changes { .. } => self.is_refused = false,
        }
    }
}

impl FollowProgress {
    /// Records the event's position. True if the store changed its cluster or was restored to an older revision.
    fn record_event(&mut self, event: &Event) -> bool {
        match event {
            Event::Snapshot(snapshot) => {
                let before = *self;
                *self = Self { cluster: snapshot.cluster, revision: snapshot.revision, is_followed: true };
                before.cluster != 0 && (before.cluster != snapshot.cluster || snapshot.revision < before.revision)
            }
            Event::Changes { revision, .. } => {
                (self.revision, self.is_followed) = (*revision, true);
                false
            }
            Event::Disconnected { .. } => {
                self.is_followed = false;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use discovery::Snapshot;

    use super::*;

    fn snapshot(cluster: u64, revision: i64) -> Event {
        Event::Snapshot(Snapshot { cluster, revision, raft_term: 1, entries: Vec::new() })
    }

    #[test]
    fn a_store_that_went_back_is_another_one() {
        let mut place = FollowProgress::default();
        assert!(!place.record_event(&snapshot(7, 10)), "the first listing");
        assert!(!place.record_event(&Event::Changes { revision: 20, changes: Vec::new() }));
        assert!(!place.record_event(&snapshot(7, 20)), "a listing every so often");
        assert!(place.record_event(&snapshot(7, 3)), "an older store");
        assert!(place.record_event(&snapshot(8, 30)), "another cluster");
    }
}
