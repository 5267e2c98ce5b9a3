//! Replica of a service's slots and stand-bys. Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};

use discovery::{Change, Entry, HostName, Key, ServiceId, Slot, SlotNumber, Standby, UpstreamId};
use registry::{Event, LeaseId};

/// Slots and stand-bys of one service, as last seen.
#[derive(Clone, Debug)]
pub struct View {
    service: ServiceId,
    slots: BTreeMap<SlotNumber, SeenSlot>,
    standbys: BTreeMap<UpstreamId, SeenStandby>,
    /// Cluster and revision of the last event.
    cluster: u64,
    revision: i64,
    /// Revision of our last write, which the view must show before anything is decided.
    required_revision: i64,
    /// False while the watch is interrupted, and before the first listing.
    is_connected: bool,
}

/// A slot's key.
#[derive(Clone, Debug)]
pub struct SeenSlot {
    /// `None` if the value can't be read. The slot is taken nevertheless.
    pub slot: Option<Slot>,
    /// 0 without a lease.
    pub lease: i64,
    /// The revision of the last write.
    pub mod_revision: i64,
}

/// A stand-by's key.
#[derive(Clone, Debug)]
pub struct SeenStandby {
    /// `None` if the value can't be read. The copy is no candidate then.
    pub standby: Option<Standby>,
    pub lease: i64,
}

impl View {
    /// An empty view that follows nothing yet.
    pub fn new(service: ServiceId) -> Self {
        Self {
            service,
            slots: BTreeMap::new(),
            standbys: BTreeMap::new(),
            cluster: 0,
            revision: 0,
            required_revision: 0,
            is_connected: false,
        }
    }

    /// Decides nothing more before the view has this revision, that of our own write.
    pub fn require_revision(&mut self, revision: i64) {
        self.required_revision = revision;
    }

    /// True if the view has our last write, and follows the store.
    pub fn is_current(&self) -> bool {
        self.is_connected && self.revision >= self.required_revision
    }

    /// True while the store is followed.
    pub fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// Applies a change of the store. A listing replaces everything.
    pub fn apply_event(&mut self, event: &Event) {
        self.is_connected = !matches!(event, Event::Disconnected { .. });
        match event {
            Event::Snapshot(snapshot) => {
                // A store that went back will never reach the revision.
                if snapshot.cluster != self.cluster || snapshot.revision < self.revision {
                    self.required_revision = 0;
                }
                self.cluster = snapshot.cluster;
                self.slots.clear();
                self.standbys.clear();
                snapshot.entries.iter().for_each(|entry| self.set_key(&entry.key, Some(entry)));
                self.revision = snapshot.revision;
            }
            Event::Changes { revision, changes } => {
                for change in changes {
                    match change {
                        Change::Put(entry) => self.set_key(&entry.key, Some(entry)),
                        Change::Delete { key, .. } => self.set_key(key, None),
                    }
                }
                self.revision = *revision;
            }
            Event::Disconnected { .. } => {}
        }
    }

    fn set_key(&mut self, key: &str, entry: Option<&Entry>) {
        match (key.parse(), entry) {
            (Ok(Key::Slot { service, number }), Some(entry)) if service == self.service => {
                let (slot, lease) = (Slot::parse(&entry.value).ok(), entry.lease);
                self.slots.insert(number, SeenSlot { slot, lease, mod_revision: entry.mod_revision });
            }
            (Ok(Key::Standby { service, id }), Some(entry)) if service == self.service => {
                let (standby, lease) = (Standby::parse(&entry.value).ok(), entry.lease);
                self.standbys.insert(id, SeenStandby { standby, lease });
            }
            (Ok(Key::Slot { service, number }), None) if service == self.service => _ = self.slots.remove(&number),
            (Ok(Key::Standby { service, id }), None) if service == self.service => _ = self.standbys.remove(&id),
            // Settings stand between the two folders.
            _ => {}
        }
    }

    /// The slot's key. `None` if the slot is free.
    pub fn slot(&self, number: SlotNumber) -> Option<&SeenSlot> {
        self.slots.get(&number)
    }

    /// All slots that are taken, by number.
    pub fn slots(&self) -> impl Iterator<Item = (SlotNumber, &SeenSlot)> {
        self.slots.iter().map(|(number, seen)| (*number, seen))
    }

    /// Slots with readable values.
    pub fn read_slots(&self) -> impl Iterator<Item = (SlotNumber, &SeenSlot, &Slot)> {
        self.slots.iter().filter_map(|(number, seen)| Some((*number, seen, seen.slot.as_ref()?)))
    }

    /// The stand-by of this copy.
    pub fn standby(&self, id: &UpstreamId) -> Option<&SeenStandby> {
        self.standbys.get(id)
    }

    /// The slot that this copy holds under this lease.
    pub fn slot_of(&self, id: &UpstreamId, lease: LeaseId) -> Option<(SlotNumber, &SeenSlot, &Slot)> {
        self.read_slots().find(|(_, seen, slot)| seen.lease == lease.get() && slot.id == *id)
    }

    /// The offered slot that names this copy as its successor.
    pub fn promised_slot(&self, id: &UpstreamId) -> Option<(SlotNumber, &SeenSlot)> {
        let promised = self.read_slots().find(|(_, _, slot)| slot.leaving && slot.successor.as_ref() == Some(id));
        promised.map(|(number, seen, _)| (number, seen))
    }

    /// The successor of an offered slot that still stands by, so that it lives.
    fn live_successor<'a>(&self, slot: &'a Slot) -> Option<&'a UpstreamId> {
        slot.successor.as_ref().filter(|id| self.standbys.contains_key(id))
    }

    /// True if the slot is offered, and no living copy has claimed it.
    pub fn is_on_offer(&self, slot: &Slot) -> bool {
        slot.leaving && self.live_successor(slot).is_none()
    }

    /// Copies that would take a slot, without those that take one over already.
    pub fn candidates(&self) -> impl Iterator<Item = (&UpstreamId, &Standby)> {
        let busy: BTreeSet<&UpstreamId> = self
            .read_slots()
            .filter(|(_, _, slot)| slot.leaving)
            .filter_map(|(_, _, slot)| slot.successor.as_ref())
            .collect();
        let standbys = self.standbys.iter().filter_map(|(id, seen)| Some((id, seen.standby.as_ref()?)));
        standbys.filter(move |(id, standby)| standby.until.is_none() && !busy.contains(id))
    }

    /// Hosts of the copies that run and stay, one for each copy. A copy that leaves counts on its successor's host.
    pub fn hosts_with_copies(&self) -> impl Iterator<Item = &HostName> {
        self.read_slots().filter_map(|(_, _, slot)| {
            if !slot.leaving {
                return slot.host.as_ref();
            }
            let successor = self.standbys.get(self.live_successor(slot)?)?;
            successor.standby.as_ref()?.host.as_ref()
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use discovery::{Kind, Snapshot};

    use super::*;

    pub(crate) fn service() -> ServiceId {
        ServiceId { kind: Kind::Http, name: "shop".parse().unwrap() }
    }

    pub(crate) fn entry(key: &str, value: &str, lease: i64) -> Entry {
        let key = format!("http-services/shop/{key}");
        Entry { key, value: value.into(), create_revision: 3, mod_revision: lease + 100, lease }
    }

    /// A view of these keys below the service.
    pub(crate) fn view(keys: &[(&str, &str, i64)]) -> View {
        let mut view = View::new(service());
        let entries = keys.iter().map(|(key, value, lease)| entry(key, value, *lease)).collect();
        view.apply_event(&Event::Snapshot(Snapshot { cluster: 7, revision: 9, raft_term: 1, entries }));
        view
    }

    #[test]
    fn other_keys_are_none_of_it() {
        let mut view = view(&[
            ("slots/1", r#"{"id":"a"}"#, 1),
            ("slots/2", "garbage", 2),
            ("slots/x", r#"{"id":"a"}"#, 2),
            ("slowstart", "1m", 0),
            ("sni", "off", 0),
            ("standby/b", "{}", 3),
        ]);
        assert_eq!(view.slots().count(), 2, "a slot that can't be read is taken");
        assert_eq!(view.read_slots().count(), 1);
        assert_eq!(view.candidates().count(), 1);
        let other = "http-services/other/slots/1".to_owned();
        let changes = vec![
            Change::Delete { key: other, revision: 10, previous: None },
            Change::Delete { key: "http-services/shop/slots/2".to_owned(), revision: 10, previous: None },
        ];
        view.apply_event(&Event::Changes { revision: 10, changes });
        assert_eq!((view.slots().count(), view.revision), (1, 10));
    }

    #[test]
    fn nothing_is_decided_before_our_own_write_shows() {
        let mut view = view(&[]);
        assert!(view.is_current());
        view.require_revision(12);
        assert!(!view.is_current());
        view.apply_event(&Event::Changes { revision: 12, changes: Vec::new() });
        assert!(view.is_current());
        view.require_revision(90);
        let entries = Vec::new();
        view.apply_event(&Event::Snapshot(Snapshot { cluster: 8, revision: 3, raft_term: 1, entries }));
        assert!(view.is_current(), "another store will never have that revision");
    }

    /// A view that doesn't follow the store.
    pub(crate) fn cut_off(view: &View) -> View {
        View { is_connected: false, ..view.clone() }
    }

    #[test]
    fn a_slot_is_ours_by_id_and_lease() {
        let view = view(&[("slots/1", r#"{"id":"a"}"#, 1), ("slots/2", r#"{"id":"b"}"#, 2)]);
        let ours = |id: &str, lease: i64| {
            view.slot_of(&id.parse().unwrap(), LeaseId::from(lease)).map(|(number, ..)| number.get())
        };
        assert_eq!((ours("a", 1), ours("b", 2), ours("a", 2), ours("c", 1)), (Some(1), Some(2), None, None));
    }

    #[test]
    fn a_dead_successor_leaves_the_slot_on_offer() {
        let leaving = r#"{"id":"a","host":"h1","leaving":true,"successor":"b"}"#;
        let alive = view(&[("slots/1", leaving, 1), ("standby/b", r#"{"host":"h2"}"#, 2)]);
        let is_on_offer = |view: &View| view.read_slots().any(|(_, _, slot)| view.is_on_offer(slot));
        assert!(!is_on_offer(&alive) && alive.candidates().next().is_none());
        assert_eq!(alive.hosts_with_copies().map(HostName::as_str).collect::<Vec<_>>(), ["h2"]);
        let dead = view(&[("slots/1", leaving, 1), ("standby/c", "{}", 2)]);
        assert!(is_on_offer(&dead) && dead.hosts_with_copies().next().is_none());
    }
}
