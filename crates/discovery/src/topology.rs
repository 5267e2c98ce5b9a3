//! The topology: the keys service by service, each value parsed or refused with the reason.
//!
//! It holds what the keys say. Claims, colors and last good values are decided elsewhere. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::key::{WRONG_FOLDER, resembles_upstream_key};
use crate::{
    Change, Entry, Key, KeyError, Kind, Layout, Node, Override, Refusal, ServiceId, Setting, SettingName,
    StoredSetting, Upstream, UpstreamId,
};

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
    kind: Kind,
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
            Key::Balancer(_) | Key::AcceptStore => return None,
        };
        Some(entry).filter(|entry| entry.key == key)
    }

    /// True if the service has no key.
    pub fn is_empty(&self) -> bool {
        self.settings.is_empty() && self.upstreams.is_empty() && self.overrides.is_empty()
    }

    /// Sets one key of the service. `None` removes it.
    fn set_key(&mut self, key: &Key, entry: Option<&Entry>) {
        match key {
            Key::Setting { layout, name, .. } => {
                let parsed = entry.map(|entry| {
                    let StoredSetting { value, refused_words } = Setting::parse_stored(self.kind, *name, &entry.value);
                    Arc::new(ParsedEntry { entry: entry.clone(), value, refused_words })
                });
                set_layer(&mut self.settings, name, *layout, parsed);
            }
            Key::Upstream { layout, id, .. } => {
                let parsed = entry.map(|entry| new_parsed_entry(entry, Upstream::parse(&entry.value)));
                set_layer(&mut self.upstreams, id, *layout, parsed);
            }
            Key::Override { id, .. } => {
                let parsed = entry.map(|entry| new_parsed_entry(entry, Override::parse(&entry.value)));
                set_layer(&mut self.overrides, id, Layout::Current, parsed);
            }
            Key::Balancer(_) | Key::AcceptStore => {}
        }
    }

    /// The entry that the service has in the place of this key.
    fn entry_of(&self, key: &Key) -> Option<&Entry> {
        match key {
            Key::Setting { layout, name, .. } => layer_entry(&self.settings, name, *layout),
            Key::Upstream { layout, id, .. } => layer_entry(&self.upstreams, id, *layout),
            Key::Override { id, .. } => layer_entry(&self.overrides, id, Layout::Current),
            Key::Balancer(_) | Key::AcceptStore => None,
        }
    }
}

/// In bytes. The longest folder and two names come to some 530. Longer keys are left to `discoverctl lint`: a list of them
/// would not fit into a balancer's record.
const LONGEST_MALFORMED: usize = 600;

/// The error of a key, given its value: a record in an unknown folder was meant for an upstream.
fn refine_key_error(entry: &Entry, error: KeyError) -> KeyError {
    if entry.key.len() > LONGEST_MALFORMED {
        return KeyError::Unknown;
    }
    let is_unknown = error == KeyError::Unknown;
    if is_unknown && (resembles_upstream_key(&entry.key) || Upstream::parse(&entry.value).is_ok()) {
        KeyError::Malformed(WRONG_FOLDER.into())
    } else {
        error
    }
}

fn new_parsed_entry<T>(entry: &Entry, value: Result<T, Refusal>) -> Arc<ParsedEntry<T>> {
    Arc::new(ParsedEntry { entry: entry.clone(), value, refused_words: None })
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

/// All keys, in any order of arrival. A change replaces the `Arc` of its own service only. So a caller that derives
/// something from a service can compare pointers to find that nothing changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    services: BTreeMap<ServiceId, Arc<Service>>,
    balancers: BTreeMap<Node, Entry>,
    accept_store: Option<Entry>,
    ignored: BTreeMap<String, KeyError>,
    /// The `Arc` is replaced only if one of the keys appears, disappears or gets another reason.
    malformed: Arc<BTreeMap<String, Box<str>>>,
}

impl Topology {
    /// The topology of a set of keys. If a key comes twice, the last entry counts.
    pub fn from_entries<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let mut topology = Self::default();
        for entry in entries {
            topology.set_key(&entry.key, Some(entry));
        }
        topology.check_invariants();
        topology
    }

    /// Applies one event of the watch. Returns the service that the key belongs to. `None` for other keys, so that a
    /// balancer's heartbeat touches no service.
    pub fn apply_change(&mut self, change: &Change) -> Option<ServiceId> {
        let service = match change {
            Change::Put(entry) => self.set_key(&entry.key, Some(entry)),
            Change::Delete { key, .. } => self.set_key(key, None),
        };
        // Only the changed key: a check of all keys for each change would make a store of 10,000 unusable in debug builds.
        debug_assert_eq!(self.find_fault_of(change.key(), matches!(change, Change::Put(_))), None);
        service
    }

    fn set_key(&mut self, key: &str, entry: Option<&Entry>) -> Option<ServiceId> {
        match key.parse::<Key>() {
            Ok(Key::Balancer(node)) => {
                match entry {
                    Some(entry) => self.balancers.insert(node, entry.clone()),
                    None => self.balancers.remove(&node),
                };
                None
            }
            Ok(Key::AcceptStore) => {
                self.accept_store = entry.cloned();
                None
            }
            Ok(key) => {
                let id = key.service_id()?;
                self.set_service_key(id, &key, entry);
                Some(id.clone())
            }
            Err(error) => {
                self.set_ignored_key(key, entry.map(|entry| refine_key_error(entry, error)));
                None
            }
        }
    }

    /// Sets the error of a key that is none of the project's. `None` removes it.
    fn set_ignored_key(&mut self, key: &str, error: Option<KeyError>) {
        let words = match &error {
            Some(KeyError::Malformed(words)) => Some(words.clone()),
            _ => None,
        };
        // `make_mut` replaces the `Arc` even if nothing changes, and readers compare its pointer.
        if words.as_ref() != self.malformed.get(key) {
            let malformed = Arc::make_mut(&mut self.malformed);
            match words {
                Some(words) => malformed.insert(key.to_owned(), words),
                None => malformed.remove(key),
            };
        }
        match error {
            Some(error) => self.ignored.insert(key.to_owned(), error),
            None => self.ignored.remove(key),
        };
    }

    fn set_service_key(&mut self, id: &ServiceId, key: &Key, entry: Option<&Entry>) {
        let service = self.services.entry(id.clone()).or_insert_with(|| Arc::new(Service::new(id.kind)));
        let service = Arc::make_mut(service);
        service.set_key(key, entry);
        if service.is_empty() {
            self.services.remove(id);
        }
    }

    /// The services by kind and name.
    pub fn services(&self) -> &BTreeMap<ServiceId, Arc<Service>> {
        &self.services
    }

    /// The keys of all services. [`Topology::from_entries`] makes the same services of them.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.services.values().flat_map(|service| service.entries())
    }

    /// The balancers' records, unparsed: most changes are heartbeats, and most readers need none.
    pub fn balancer_entries(&self) -> &BTreeMap<Node, Entry> {
        &self.balancers
    }

    /// The operator's acceptance of a reset store, unparsed.
    pub fn accept_store(&self) -> Option<&Entry> {
        self.accept_store.as_ref()
    }

    /// Keys that were meant for a service, an upstream or an override, each with its fault.
    pub fn malformed_keys(&self) -> &Arc<BTreeMap<String, Box<str>>> {
        &self.malformed
    }

    /// Keys that mean nothing here, with those of [`Topology::malformed_keys`].
    pub fn ignored_keys(&self) -> &BTreeMap<String, KeyError> {
        &self.ignored
    }

    /// Panics in debug builds if a key is filed under another key's place, so that no name is there twice, if a service
    /// has no key, or if the malformed keys are not those of the ignored ones.
    pub fn check_invariants(&self) {
        debug_assert_eq!(self.find_fault(), None);
    }

    fn find_fault(&self) -> Option<String> {
        for (id, service) in &self.services {
            if service.kind != id.kind || service.is_empty() {
                return Some(format!("{id} is empty or of another kind"));
            }
        }
        let balancers = self.balancers.values().chain(&self.accept_store);
        let keys = self.entries().chain(balancers).map(|entry| entry.key.as_str());
        let mut keys = keys.chain(self.ignored.keys().map(String::as_str));
        keys.find_map(|key| self.find_fault_of(key, true)).or_else(|| {
            let stale = self.malformed.keys().find(|key| !self.ignored.contains_key(*key));
            stale.map(|key| format!("{key} is malformed and not ignored"))
        })
    }

    /// The fault of one key, which is there or not.
    fn find_fault_of(&self, key: &str, is_there: bool) -> Option<String> {
        let ignored = self.ignored.get(key);
        let found = match key.parse::<Key>() {
            Ok(Key::Balancer(node)) => self.balancers.get(&node),
            Ok(Key::AcceptStore) => self.accept_store.as_ref(),
            Ok(parsed) => {
                let service = parsed.service_id().and_then(|id| self.services.get(id));
                service.and_then(|service| service.entry_of(&parsed))
            }
            Err(_) => {
                let words = match ignored {
                    Some(KeyError::Malformed(words)) => Some(words),
                    _ => None,
                };
                let is_listed = ignored.is_some() == is_there && self.malformed.get(key) == words;
                return (!is_listed).then(|| format!("{key} is not listed as it should be"));
            }
        };
        let is_in_place = found.is_some_and(|entry| entry.key == key) == is_there && ignored.is_none();
        (!is_in_place).then(|| format!("{key} is not in its place"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(key: &str, value: &str) -> Entry {
        Entry { key: key.into(), value: value.into(), create_revision: 1, mod_revision: 1, lease: 0 }
    }

    fn http(name: &str) -> ServiceId {
        ServiceId { kind: Kind::Http, name: name.parse().unwrap() }
    }

    #[test]
    fn the_current_layout_beats_the_ancestors_key_by_key() {
        let mut topology = Topology::from_entries(&[
            entry("services/shop/domain", "old.com"),
            entry("services/shop/upstreams/a", "10.0.0.1:80"),
            entry("http-services/shop/domain", "new.com"),
        ]);
        let domain =
            |t: &Topology| t.services()[&http("shop")].setting(SettingName::Domain).unwrap().entry.value.clone();
        assert_eq!(domain(&topology), b"new.com");
        assert_eq!(topology.services()[&http("shop")].upstreams().count(), 1);
        topology.apply_change(&Change::Delete { key: "http-services/shop/domain".into(), revision: 2, previous: None });
        assert_eq!(domain(&topology), b"old.com");
    }

    #[test]
    fn a_bad_value_stands_beside_the_good_ones() {
        let topology = Topology::from_entries(&[
            entry("http-services/shop/domain", "b\"c"),
            entry("http-services/shop/upstreams/a", "unix@/run/x"),
            entry("http-services/shop/upstreams/b", "10.0.0.1:80"),
            entry("http-services/shop/colour", "x"),
        ]);
        let shop = &topology.services()[&http("shop")];
        assert!(shop.setting(SettingName::Domain).unwrap().value.is_err());
        assert_eq!(shop.upstreams().filter(|(_, field)| field.value.is_ok()).count(), 1);
        assert_eq!(topology.ignored_keys().keys().collect::<Vec<_>>(), ["http-services/shop/colour"]);
    }

    #[test]
    fn a_change_touches_its_own_service() {
        let mut topology = Topology::from_entries(&[
            entry("http-services/a/domain", "a.com"),
            entry("http-services/b/domain", "b.com"),
        ]);
        let before = topology.clone();
        assert_eq!(
            topology.apply_change(&Change::Put(entry("http-services/a/upstreams/1", "10.0.0.1:80"))),
            Some(http("a"))
        );
        assert!(!Arc::ptr_eq(&before.services()[&http("a")], &topology.services()[&http("a")]));
        assert!(Arc::ptr_eq(&before.services()[&http("b")], &topology.services()[&http("b")]));
    }

    #[test]
    fn a_malformed_key_of_an_upstream_is_listed() {
        let colon = "http-services/web/upstreams/host:web:8000";
        let mut topology = Topology::from_entries(&[
            entry("http-services/web/domain", "web.test"),
            entry(colon, "10.0.0.1:8000"),
            entry("http-service/web/node-1", "10.0.0.1:8000"),
            entry("http-services/web/Upstreams/node-1", "not even an address"),
            entry("http-services/web/colour", "blue"),
            entry("notes", "hello"),
        ]);
        let keys = |topology: &Topology| topology.malformed_keys().keys().cloned().collect::<Vec<_>>();
        let all = ["http-service/web/node-1", "http-services/web/Upstreams/node-1", colon];
        assert_eq!((keys(&topology), topology.ignored_keys().len()), (all.map(str::to_owned).to_vec(), 5));
        let before = Arc::clone(topology.malformed_keys());
        topology.apply_change(&Change::Put(entry(colon, "10.0.0.2:8000")));
        topology.apply_change(&Change::Put(entry("http-services/web/upstreams/a", "10.0.0.2:8000")));
        assert!(Arc::ptr_eq(&before, topology.malformed_keys()), "it is the same news");
        topology.apply_change(&Change::Delete { key: colon.into(), revision: 2, previous: None });
        assert_eq!(keys(&topology), all[..2]);
    }

    #[test]
    fn a_heartbeat_touches_no_service() {
        let mut topology = Topology::default();
        assert_eq!(topology.apply_change(&Change::Put(entry("balancers/lb1", "{}"))), None);
        assert_eq!(topology.apply_change(&Change::Put(entry("whatever", "x"))), None);
        assert_eq!(topology.balancer_entries().len(), 1);
    }

    #[test]
    fn the_keys_of_a_topology_make_an_equal_one() {
        let entries = [
            entry("http-services/shop/domain", "a b\"c"),
            entry("http-services/shop/upstreams/a", "10.0.0.1:80"),
            entry("services/shop/upstreams/a", "10.0.0.2:80"),
            entry("http-services/shop/overrides/a", "{}"),
            entry("tcp-services/db/ports", "3306"),
        ];
        let topology = Topology::from_entries(&entries);
        assert_eq!(topology.entries().count(), entries.len());
        assert_eq!(Topology::from_entries(topology.entries()), topology);
        let id = "a".parse().unwrap();
        assert_eq!(topology.services()[&http("shop")].upstream(&id).unwrap().entry, entries[1]);
    }

    #[test]
    fn a_key_in_the_place_of_another_is_a_fault() {
        let mut topology = Topology::from_entries(&[entry("http-services/a/domain", "a.com")]);
        assert_eq!(topology.find_fault(), None);
        let service = topology.services.remove(&http("a")).unwrap();
        topology.services.insert(http("b"), service);
        assert_eq!(topology.find_fault().unwrap(), "http-services/a/domain is not in its place");
        let mut topology = Topology::from_entries(&[entry("balancers/lb1", "{}")]);
        topology.balancers.insert("lb2".parse().unwrap(), entry("balancers/lb1", "{}"));
        topology.balancers.remove(&"lb1".parse().unwrap());
        assert_eq!(topology.find_fault().unwrap(), "balancers/lb1 is not in its place");
    }

    #[test]
    fn a_key_of_a_service_that_is_ignored_too_is_a_fault() {
        let mut topology = Topology::from_entries(&[entry("http-services/a/domain", "a.com")]);
        topology.ignored.insert("http-services/a/domain".into(), KeyError::Unknown);
        assert_eq!(topology.find_fault().unwrap(), "http-services/a/domain is not in its place");
    }

    #[test]
    fn a_service_without_keys_or_of_another_kind_is_a_fault() {
        let mut topology = Topology::default();
        topology.services.insert(http("a"), Arc::new(Service::new(Kind::Http)));
        assert_eq!(topology.find_fault().unwrap(), "http-a is empty or of another kind");
        let mut topology = Topology::from_entries(&[entry("http-services/a/domain", "a.com")]);
        Arc::make_mut(topology.services.get_mut(&http("a")).unwrap()).kind = Kind::Tcp;
        assert_eq!(topology.find_fault().unwrap(), "http-a is empty or of another kind");
    }

    #[test]
    fn malformed_keys_that_are_not_the_ignored_ones_are_a_fault() {
        let colon = "http-services/web/upstreams/host:web:8000";
        let mut topology = Topology::from_entries(&[entry(colon, "10.0.0.1:8000")]);
        assert_eq!(topology.find_fault(), None);
        let mut silent = topology.clone();
        Arc::make_mut(&mut silent.malformed).clear();
        assert_eq!(silent.find_fault().unwrap(), format!("{colon} is not listed as it should be"));
        topology.ignored.clear();
        assert_eq!(topology.find_fault().unwrap(), format!("{colon} is malformed and not ignored"));
    }

    #[test]
    #[should_panic(expected = "is not in its place")]
    fn a_topology_with_a_fault_panics_in_debug_builds() {
        let mut topology = Topology::from_entries(&[entry("balancers/lb1", "{}")]);
        topology.accept_store = topology.balancers.remove(&"lb1".parse().unwrap());
        topology.check_invariants();
    }

    fn keys() -> impl Strategy<Value = String> {
        let parts = prop_oneof![
            Just("http-services".to_owned()),
            Just("tcp-services".into()),
            Just("services".into()),
            Just("a".into()),
            Just("b".into()),
            Just("domain".into()),
            Just("ports".into()),
            Just("upstreams".into()),
            Just("overrides".into()),
            Just("color".into()),
            Just("balancers".into()),
            "\\PC{0,6}",
            "[a-z;# \n\"']{0,4}",
        ];
        prop::collection::vec(parts, 1..5).prop_map(|parts| parts.join("/"))
    }

    proptest! {
        #[test]
        fn the_order_of_keys_does_not_matter(
            mut entries in prop::collection::btree_map(keys(), prop::collection::vec(any::<u8>(), 0..40), 0..20),
            seed in any::<u64>(),
        ) {
            let entries: Vec<Entry> = std::mem::take(&mut entries).into_iter()
                .map(|(key, value)| Entry { key, value, create_revision: 1, mod_revision: 1, lease: 0 }).collect();
            let mut shuffled = entries.clone();
            shuffled.sort_by_key(|e| e.key.bytes().fold(seed, |h, b| h.rotate_left(5).wrapping_mul(31) ^ u64::from(b)));
            prop_assert_eq!(Topology::from_entries(&entries), Topology::from_entries(&shuffled));
        }

        #[test]
        fn deleting_every_key_leaves_nothing(keys in prop::collection::btree_set(keys(), 0..20)) {
            let entries: Vec<Entry> = keys.iter().map(|key| entry(key, "10.0.0.1:80")).collect();
            let mut topology = Topology::from_entries(&entries);
            for key in keys {
                topology.apply_change(&Change::Delete { key, revision: 2, previous: None });
            }
            prop_assert_eq!(topology, Topology::default());
        }
    }
}
