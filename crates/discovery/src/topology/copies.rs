//! The slots and stand-bys of one service, each value parsed or refused with the reason. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::service::{ParsedEntry, new_parsed_entry};
use crate::{Entry, Key, Slot, SlotNumber, Standby, UpstreamId};

/// The limited number of copies of a service. A topology has it while one of its keys exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copies {
    slots: BTreeMap<SlotNumber, Arc<ParsedEntry<Slot>>>,
    standby: BTreeMap<UpstreamId, Arc<ParsedEntry<Standby>>>,
}

impl Copies {
    /// The slots that are taken, by number. Their values may be refused.
    pub fn slots(&self) -> impl Iterator<Item = (SlotNumber, &Arc<ParsedEntry<Slot>>)> {
        self.slots.iter().map(|(number, parsed)| (*number, parsed))
    }

    /// The copies that wait for a slot, by the name of their upstream. Their values may be refused.
    pub fn standby(&self) -> impl Iterator<Item = (&UpstreamId, &Arc<ParsedEntry<Standby>>)> {
        self.standby.iter()
    }

    /// The keys of the slots and stand-bys.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        let slots = self.slots.values().map(|parsed| &parsed.entry);
        slots.chain(self.standby.values().map(|parsed| &parsed.entry))
    }

    /// True if no slot is taken, and no copy waits for one.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.standby.is_empty()
    }

    /// Sets one key. `None` removes it.
    pub(super) fn set_key(&mut self, key: &Key, entry: Option<Entry>) {
        match key {
            Key::Slot { number, .. } => {
                let parsed = entry.map(|entry| new_parsed_entry(entry, Slot::parse));
                set_entry(&mut self.slots, *number, parsed);
            }
            Key::Standby { id, .. } => {
                let parsed = entry.map(|entry| new_parsed_entry(entry, Standby::parse));
                set_entry(&mut self.standby, id.clone(), parsed);
            }
            _ => {}
        }
    }

    /// The entry of this slot or stand-by.
    pub(super) fn entry_of(&self, key: &Key) -> Option<&Entry> {
        match key {
            Key::Slot { number, .. } => Some(&self.slots.get(number)?.entry),
            Key::Standby { id, .. } => Some(&self.standby.get(id)?.entry),
            _ => None,
        }
    }
}

fn set_entry<K: Ord, T>(entries: &mut BTreeMap<K, Arc<ParsedEntry<T>>>, name: K, parsed: Option<Arc<ParsedEntry<T>>>) {
    match parsed {
        Some(parsed) => _ = entries.insert(name, parsed),
        None => _ = entries.remove(&name),
    }
}
