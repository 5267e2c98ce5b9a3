//! A follower's picture of the store, which checks what it is told.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use discovery::{Change, Entry};
use registry::{Client, Event, FollowOptions};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) struct Mirror {
    events: mpsc::Receiver<Event>,
    pub(crate) map: BTreeMap<String, Entry>,
    pub(crate) revision: i64,
    pub(crate) cluster: u64,
    pub(crate) snapshots: usize,
    /// Every change, with the number of the event that brought it.
    pub(crate) changes: Vec<(usize, Change)>,
    /// When and why it was told of a loss.
    pub(crate) losses: Vec<(Instant, String)>,
    pub(crate) connected: bool,
    told: usize,
    _stop: DropGuard,
}

impl Mirror {
    pub(crate) fn of(client: &Client) -> Self {
        Self::with(client, FollowOptions::default())
    }

    pub(crate) fn with(client: &Client, options: FollowOptions) -> Self {
        let stop = CancellationToken::new();
        Self {
            events: client.follow_folder(options, stop.clone()),
            map: BTreeMap::new(),
            revision: 0,
            cluster: 0,
            snapshots: 0,
            changes: Vec::new(),
            losses: Vec::new(),
            connected: false,
            told: 0,
            _stop: stop.drop_guard(),
        }
    }

    /// Takes events until it holds; the time that took.
    pub(crate) async fn until(&mut self, what: &str, limit: Duration, holds: impl Fn(&Self) -> bool) -> Duration {
        let began = Instant::now();
        while !holds(self) {
            let left = limit.saturating_sub(began.elapsed());
            match timeout(left, self.events.recv()).await {
                Ok(Some(event)) => self.take(event),
                Ok(None) => panic!("{what}: the follower ended"),
                Err(_) => panic!("{what}: not within {limit:?}; losses: {:?}", self.losses),
            }
        }
        began.elapsed()
    }

    pub(crate) async fn until_key(&mut self, key: &str, limit: Duration) -> Duration {
        self.until(key, limit, |mirror| mirror.map.contains_key(key)).await
    }

    pub(crate) fn values(&self) -> Vec<(String, Vec<u8>)> {
        self.map.values().map(|entry| (entry.key.clone(), entry.value.clone())).collect()
    }

    fn take(&mut self, event: Event) {
        self.told += 1;
        match event {
            Event::Snapshot(snapshot) => {
                assert!(snapshot.entries.is_sorted_by(|one, other| one.key < other.key), "entries are sorted");
                self.map = snapshot.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
                self.revision = snapshot.revision;
                self.cluster = snapshot.cluster;
                self.snapshots += 1;
                self.connected = true;
            }
            Event::Changes { revision, changes } => {
                let before = self.revision;
                for change in changes {
                    self.apply(before, change);
                }
                assert!(revision >= before, "an event's revision goes forward");
                self.revision = revision;
                self.connected = true;
            }
            Event::Disconnected { error, .. } => {
                self.losses.push((Instant::now(), error.to_string()));
                self.connected = false;
            }
        }
    }

    /// Checks each change against what it changes: a missed or doubled one would not fit.
    fn apply(&mut self, before: i64, change: Change) {
        let held = self.map.get(change.key());
        match &change {
            Change::Put(entry) => {
                assert!(entry.mod_revision > before, "{} came twice", entry.key);
                let is_new = entry.create_revision == entry.mod_revision;
                assert_eq!(held.is_none(), is_new, "{} at {}", entry.key, entry.mod_revision);
                if let Some(held) = held {
                    assert_eq!(held.create_revision, entry.create_revision, "{}", entry.key);
                    assert!(held.mod_revision < entry.mod_revision, "{} is in order", entry.key);
                }
                self.map.insert(entry.key.clone(), entry.clone());
            }
            Change::Delete { key, revision, previous } => {
                assert!(*revision > before, "{key} came twice");
                assert_eq!(held, previous.as_ref(), "{key} as it was before {revision}");
                self.map.remove(key);
            }
        }
        self.changes.push((self.told, change));
    }
}
