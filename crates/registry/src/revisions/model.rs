//! Messages of a watch that name no type of etcd's client, for the seeded simulation. Pure: no I/O, no clock.

use discovery::{Change, StoreRevision};
use etcd_client::proto::{PbEvent, PbKeyValue, PbResponseHeader, PbWatchResponse};

use super::{Decision, revision_of};
use crate::entry::Prefix;

/// The prefix of the keys in messages.
const PREFIX: &str = "/model";

/// A message of a watch.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// The answer to the request of the watch.
    pub is_created: bool,
    /// A part of a message. The last revision of its changes may not be whole.
    pub is_fragment: bool,
    /// The revision up to which the store is compacted, if the watch began below it. 0 otherwise.
    pub compact_revision: i64,
    /// The reason why etcd ended the watch. `None` while the watch lives.
    pub cancel_reason: Option<String>,
    /// The store at the time of the message.
    pub store: StoreRevision,
    /// The changes, in their order.
    pub changes: Vec<Change>,
}

/// The revisions of one watch, in order.
#[derive(Debug)]
pub struct Revisions(super::Revisions);

impl Revisions {
    /// A watch that continues at this position.
    pub fn new(position: StoreRevision) -> Option<Self> {
        Some(Self(super::Revisions::new(Prefix::parse(PREFIX).ok()?, position)))
    }

    /// Decides on the next message.
    pub fn accept_message(&mut self, message: Message) -> Decision {
        self.0.accept_message(message.into_response())
    }

    /// Drops the changes that a listing has delivered, up to this revision.
    pub fn skip_to(&mut self, known: i64) {
        self.0.skip_to(known);
    }
}

impl Message {
    fn into_response(self) -> PbWatchResponse {
        // As etcd's own message, so that the decision reads the same fields.
        let StoreRevision { cluster, raft_term, revision } = self.store;
        PbWatchResponse {
            header: Some(PbResponseHeader { cluster_id: cluster, member_id: 0, revision, raft_term }),
            created: self.is_created,
            canceled: self.cancel_reason.is_some(),
            compact_revision: self.compact_revision,
            cancel_reason: self.cancel_reason.unwrap_or_default(),
            fragment: self.is_fragment,
            events: self.changes.into_iter().map(to_event).collect(),
            ..PbWatchResponse::default()
        }
    }
}

fn to_event(change: Change) -> PbEvent {
    let key_value = |entry: discovery::Entry| PbKeyValue {
        key: format!("{PREFIX}/{}", entry.key).into_bytes(),
        value: entry.value,
        create_revision: entry.create_revision,
        mod_revision: entry.mod_revision,
        lease: entry.lease,
        version: 0,
    };
    let revision = revision_of(&change);
    // The numbers are those of etcd's `mvccpb.Event.EventType`.
    match change {
        Change::Put(entry) => PbEvent { r#type: 0, kv: Some(key_value(entry)), prev_kv: None },
        Change::Delete { key, previous, .. } => {
            let kv = PbKeyValue {
                key: format!("{PREFIX}/{key}").into_bytes(),
                mod_revision: revision,
                ..PbKeyValue::default()
            };
            PbEvent { r#type: 1, kv: Some(kv), prev_kv: previous.map(key_value) }
        }
    }
}
