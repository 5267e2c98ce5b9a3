//! Follows the model etcd as `registry/follow.rs` follows the real one. `registry`'s own functions decide.

use discovery::{Change, Snapshot, StoreRevision};
use registry::decisions::{Decision, Message, Revisions, decide_resume};

use crate::bugs::Bug;
use crate::etcd::Etcd;

/// An event for the program that follows.
#[derive(Clone, Debug)]
pub enum Event {
    /// All keys.
    Snapshot(Snapshot),
    /// The changes of whole revisions.
    Changes(i64, Vec<Change>),
    /// The store can't be followed.
    Disconnected,
    /// A sign of life.
    Nothing,
}

/// A follower of all keys.
#[derive(Debug)]
pub struct Follower {
    client: usize,
    position: Option<StoreRevision>,
    resumed_behind_at: Option<i64>,
    watch: Option<Watch>,
    is_connected: bool,
}

#[derive(Debug)]
struct Watch {
    revisions: Revisions,
    /// The revision up to which messages were sent.
    sent: i64,
    /// The rest of a message that was cut into fragments.
    fragment: Vec<Change>,
    is_created: bool,
    /// The cluster and the store's number of resets that it was opened at. A reset ends its connection.
    resets: u32,
}

impl Follower {
    /// A follower that knows nothing yet.
    pub fn new(client: usize) -> Self {
        Self { client, position: None, resumed_behind_at: None, watch: None, is_connected: true }
    }

    /// Ends the watch, as a broken connection does.
    pub fn end_watch(&mut self) {
        self.watch = None;
    }

    /// True if all changes were delivered.
    pub fn is_up_to_date(&self, etcd: &Etcd) -> bool {
        let now = etcd.position();
        let known = self.position.is_some_and(|it| (it.cluster, it.raft_term) == (now.cluster, now.raft_term));
        known && self.watch.as_ref().is_some_and(|watch| watch.sent == now.revision && watch.fragment.is_empty())
    }

    /// Lists all keys, and goes on from there. This happens every `--resync`, too.
    pub fn list(&mut self, etcd: &Etcd) -> Event {
        let Ok(snapshot) = etcd.list(self.client, "") else { return Event::Disconnected };
        self.position = Some(StoreRevision::from_snapshot(&snapshot));
        self.is_connected = true;
        if let Some(watch) = &mut self.watch {
            watch.revisions.skip_to(snapshot.revision);
        }
        Event::Snapshot(snapshot)
    }

    /// Gets the next message, of at most so many revisions. `cut` splits it into fragments.
    pub fn next_event(&mut self, etcd: &Etcd, most: usize, cut: bool, bug: Option<Bug>) -> Event {
        if etcd.is_cut_off(self.client) {
            self.watch = None;
            self.is_connected = false;
            return Event::Disconnected;
        }
        if self.watch.as_ref().is_some_and(|watch| watch.resets != etcd.resets) {
            self.watch = None;
        }
        let Some(position) = self.position else { return self.list(etcd) };
        if self.watch.is_none() {
            return self.open(etcd, position, bug);
        }
        self.receive(etcd, most, cut, bug)
    }

    fn open(&mut self, etcd: &Etcd, position: StoreRevision, bug: Option<Bug>) -> Event {
        let Ok(now) = etcd.read_position(self.client) else { return Event::Disconnected };
        let resumed = match bug {
            Some(Bug::ResumeAnyStore) => Ok(StoreRevision { raft_term: now.raft_term, ..position }),
            _ => decide_resume(position, now, &mut self.resumed_behind_at),
        };
        let Ok(position) = resumed else {
            self.position = None;
            return self.list(etcd);
        };
        self.position = Some(position);
        let Some(revisions) = Revisions::new(position) else { return Event::Nothing };
        let sent = position.revision;
        self.watch = Some(Watch { revisions, sent, fragment: Vec::new(), is_created: false, resets: etcd.resets });
        Event::Nothing
    }

    fn receive(&mut self, etcd: &Etcd, most: usize, cut: bool, bug: Option<Bug>) -> Event {
        let Some(watch) = &mut self.watch else { return Event::Nothing };
        let message = watch.next_message(etcd, most, cut);
        let was_created = message.is_created;
        match watch.revisions.accept_message(message) {
            Decision::Created if was_created && !std::mem::replace(&mut self.is_connected, true) => {
                Event::Changes(self.position.map_or(0, |it| it.revision), Vec::new())
            }
            Decision::Created | Decision::Alive => Event::Nothing,
            Decision::Deliver { revision, mut changes } => {
                self.position = self.position.map(|it| StoreRevision { revision, ..it });
                if bug == Some(Bug::LoseChange) && changes.len() > 2 {
                    changes.pop();
                }
                Event::Changes(revision, changes)
            }
            Decision::Resync(_) => {
                (self.watch, self.position) = (None, None);
                self.list(etcd)
            }
            Decision::Canceled(_) => {
                (self.watch, self.position) = (None, None);
                Event::Nothing
            }
        }
    }
}

impl Watch {
    fn next_message(&mut self, etcd: &Etcd, most: usize, cut: bool) -> Message {
        let store = etcd.position();
        if !self.is_created {
            self.is_created = true;
            if self.sent < etcd.compacted() {
                return Message { compact_revision: etcd.compacted(), store, ..Message::default() };
            }
            return Message { is_created: true, store, ..Message::default() };
        }
        if !self.fragment.is_empty() {
            return Message { changes: std::mem::take(&mut self.fragment), store, ..Message::default() };
        }
        let Some(mut changes) = etcd.changes_since(self.sent, most) else {
            // etcd's watch has read these before they were compacted, or ends.
            return Message { compact_revision: etcd.compacted(), store, ..Message::default() };
        };
        if let Some(last) = changes.last() {
            self.sent = revision_of(last);
        }
        let is_fragment = cut && changes.len() > 1;
        if is_fragment {
            self.fragment = changes.split_off(changes.len() / 2);
        }
        Message { is_fragment, changes, store, ..Message::default() }
    }
}

fn revision_of(change: &Change) -> i64 {
    match change {
        Change::Put(entry) => entry.mod_revision,
        Change::Delete { revision, .. } => *revision,
    }
}
