//! One service's keys, each value parsed or refused with the reason. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bound::KeyLimits;
use crate::{Entry, Key, Kind, Layout, Override, Refusal, Setting, SettingName, StoredSetting, Upstream, UpstreamId};

/// A key of a service with its parsed value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedEntry<T> {
    /// The key, the value as written, the revisions and the lease.
    pub entry: Entry,
    /// The parsed value, or the reason why it is refused.
    pub value: Result<T, Refusal>,
    /// The reason why some words of the value are ignored while the others count. `None` if all count, or none.
    pub refused_words: Option<Box<str>>,
}

impl<T> ParsedEntry<T> {
    /// The reason why the value, or some of its words, are refused. `None` if all of it counts.
    pub fn refusal_text(&self) -> Option<String> {
        let whole = self.value.as_ref().err().map(ToString::to_string);
        whole.or_else(|| self.refused_words.as_ref().map(ToString::to_string))
    }
}

/// A key in the current layout, in the legacy one, or in both. The current one counts. At least one is there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layered<T> {
    current: Option<Arc<ParsedEntry<T>>>,
    legacy: Option<Arc<ParsedEntry<T>>>,
}

impl<T> Default for Layered<T> {
    fn default() -> Self {
        Self { current: None, legacy: None }
    }
}

impl<T> Layered<T> {
    fn effective_entry(&self) -> Option<&Arc<ParsedEntry<T>>> {
        self.current.as_ref().or(self.legacy.as_ref())
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.current.iter().chain(&self.legacy).map(|parsed| &parsed.entry)
    }

    fn slot_mut(&mut self, layout: Layout) -> &mut Option<Arc<ParsedEntry<T>>> {
        match layout {
            Layout::Current => &mut self.current,
            Layout::Legacy => &mut self.legacy,
        }
    }
}

/// Everything that the store says of one service. A topology has it while any of its keys exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub(super) kind: Kind,
    settings: BTreeMap<SettingName, Layered<Setting>>,
    upstreams: BTreeMap<UpstreamId, Layered<Upstream>>,
    overrides: BTreeMap<UpstreamId, Layered<Override>>,
}

impl Service {
    /// A service without keys.
    pub fn new(kind: Kind) -> Self {
        Self { kind, settings: BTreeMap::new(), upstreams: BTreeMap::new(), overrides: BTreeMap::new() }
    }

    /// The kind, which is that of the service's id.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The key of one setting. `None` if it isn't set.
    pub fn setting(&self, name: SettingName) -> Option<&Arc<ParsedEntry<Setting>>> {
        self.settings.get(&name).and_then(Layered::effective_entry)
    }

    /// The keys of all settings that are set, by name. Their values may be refused.
    pub fn settings(&self) -> impl Iterator<Item = (SettingName, &Arc<ParsedEntry<Setting>>)> {
        self.settings.iter().filter_map(|(name, layered)| Some((*name, layered.effective_entry()?)))
    }

    /// The upstreams' records, by id. Their values may be refused.
    pub fn upstreams(&self) -> impl Iterator<Item = (&UpstreamId, &Arc<ParsedEntry<Upstream>>)> {
        self.upstreams.iter().filter_map(|(id, layered)| Some((id, layered.effective_entry()?)))
    }

    /// The number of upstreams with a record, refused ones included.
    pub fn upstream_count(&self) -> usize {
        self.upstreams.len()
    }

    /// The record of one upstream. `None` without a record.
    pub fn upstream(&self, id: &UpstreamId) -> Option<&Arc<ParsedEntry<Upstream>>> {
        self.upstreams.get(id).and_then(Layered::effective_entry)
    }

    /// The override of one upstream. `None` without an override.
    pub fn override_of(&self, id: &UpstreamId) -> Option<&Arc<ParsedEntry<Override>>> {
        self.overrides.get(id).and_then(Layered::effective_entry)
    }

    /// The overrides by the upstream's id. Some upstreams may have no record.
    pub fn overrides(&self) -> impl Iterator<Item = (&UpstreamId, &Arc<ParsedEntry<Override>>)> {
        self.overrides.iter().filter_map(|(id, layered)| Some((id, layered.effective_entry()?)))
    }

    /// All keys of the service, with those of the legacy layout that don't count.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        let settings = self.settings.values().flat_map(Layered::entries);
        let upstreams = self.upstreams.values().flat_map(Layered::entries);
        settings.chain(upstreams).chain(self.overrides.values().flat_map(Layered::entries))
    }

    /// The keys that count, without those of the legacy layout that the current one replaces.
    pub fn effective_entries(&self) -> impl Iterator<Item = &Entry> {
        let settings = self.settings().map(|(_, parsed)| &parsed.entry);
        let upstreams = self.upstreams().map(|(_, parsed)| &parsed.entry);
        settings.chain(upstreams).chain(self.overrides().map(|(_, parsed)| &parsed.entry))
    }

    /// The entry of this key. `None` if the service lacks it, or if it doesn't count.
    pub fn effective_entry(&self, key: &str) -> Option<&Entry> {
        let entry = match key.parse::<Key>().ok()? {
            Key::Setting { name, .. } => &self.setting(name)?.entry,
            Key::Upstream { id, .. } => &self.upstream(&id)?.entry,
            Key::Override { id, .. } => &self.override_of(&id)?.entry,
            Key::Slot { .. } | Key::Standby { .. } | Key::Balancer(_) | Key::AcceptStore | Key::Log(_) => return None,
        };
        Some(entry).filter(|entry| entry.key == key)
    }

    /// True if the service has no key.
    pub fn is_empty(&self) -> bool {
        self.settings.is_empty() && self.upstreams.is_empty() && self.overrides.is_empty()
    }

    /// The number of records and overrides.
    pub(super) fn count_upstream_keys(&self) -> usize {
        self.upstreams.len() + self.overrides.len()
    }

    /// True if the service may have the key, too, within its limit.
    pub(super) fn has_room_for(&self, key: &Key, limits: KeyLimits) -> bool {
        let most = limits.upstreams_per_service;
        match key {
            Key::Upstream { id, .. } => self.upstreams.contains_key(id) || self.upstreams.len() < most,
            Key::Override { id, .. } => self.overrides.contains_key(id) || self.overrides.len() < most,
            _ => true,
        }
    }

    /// True if the service has the setting, record or override, in any layout.
    pub(super) fn has_place_of(&self, key: &Key) -> bool {
        match key {
            Key::Upstream { id, .. } => self.upstreams.contains_key(id),
            Key::Override { id, .. } => self.overrides.contains_key(id),
            Key::Setting { name, .. } => self.settings.contains_key(name),
            Key::Slot { .. } | Key::Standby { .. } | Key::Balancer(_) | Key::AcceptStore | Key::Log(_) => false,
        }
    }

    /// Sets one key of the service. `None` removes it.
    pub(super) fn set_key(&mut self, key: &Key, entry: Option<Entry>) {
        match key {
            Key::Setting { layout, name, .. } => {
                let parsed = entry.map(|entry| {
                    let StoredSetting { value, refused_words } = Setting::parse_stored(self.kind, *name, &entry.value);
                    Arc::new(ParsedEntry { entry, value, refused_words })
                });
                set_layer(&mut self.settings, name, *layout, parsed);
            }
            Key::Upstream { layout, id, .. } => {
                let parsed = entry.map(|entry| new_parsed_entry(entry, Upstream::parse));
                set_layer(&mut self.upstreams, id, *layout, parsed);
            }
            Key::Override { id, .. } => {
                let parsed = entry.map(|entry| new_parsed_entry(entry, Override::parse));
                set_layer(&mut self.overrides, id, Layout::Current, parsed);
            }
            Key::Slot { .. } | Key::Standby { .. } | Key::Balancer(_) | Key::AcceptStore | Key::Log(_) => {}
        }
    }

    /// The entry that the service has in the place of this key.
    pub(super) fn entry_of(&self, key: &Key) -> Option<&Entry> {
        match key {
            Key::Setting { layout, name, .. } => layer_entry(&self.settings, name, *layout),
            Key::Upstream { layout, id, .. } => layer_entry(&self.upstreams, id, *layout),
            Key::Override { id, .. } => layer_entry(&self.overrides, id, Layout::Current),
            Key::Slot { .. } | Key::Standby { .. } | Key::Balancer(_) | Key::AcceptStore | Key::Log(_) => None,
        }
    }
}

pub(super) fn new_parsed_entry<T>(entry: Entry, parse: fn(&[u8]) -> Result<T, Refusal>) -> Arc<ParsedEntry<T>> {
    let value = parse(&entry.value);
    Arc::new(ParsedEntry { entry, value, refused_words: None })
}

fn set_layer<K: Ord + Clone, T>(
    entries: &mut BTreeMap<K, Layered<T>>,
    name: &K,
    layout: Layout,
    parsed: Option<Arc<ParsedEntry<T>>>,
) {
    let layered = entries.entry(name.clone()).or_default();
    *layered.slot_mut(layout) = parsed;
    // An empty pair would keep a deleted service alive.
    if layered.effective_entry().is_none() {
        entries.remove(name);
    }
}

fn layer_entry<'a, K: Ord, T>(entries: &'a BTreeMap<K, Layered<T>>, name: &K, layout: Layout) -> Option<&'a Entry> {
    let layered = entries.get(name)?;
    let parsed = match layout {
        Layout::Current => layered.current.as_ref()?,
        Layout::Legacy => layered.legacy.as_ref()?,
    };
    Some(&parsed.entry)
}
