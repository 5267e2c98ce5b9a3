//! The topology: what the keys say, service by service, each value parsed or refused with the reason.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::key::{WRONG_FOLDER, resembles_upstream_key};
use crate::{
    Change, Entry, Key, KeyError, Kind, Layout, Node, Override, Refusal, ServiceId, Setting, SettingName,
    StoredSetting, Upstream, UpstreamId,
};

/// A key of a service with what was read from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedEntry<T> {
    /// The key, the value as written, the revisions and the lease.
    pub entry: Entry,
    /// What it says, or why it says nothing.
    pub value: Result<T, Refusal>,
    /// Why some words of a value don't count while the others do. None if all count.
    pub refused_words: Option<Box<str>>,
}

impl<T> ParsedEntry<T> {
    /// Why the value, or some of its words, don't count. None if all of it counts.
    pub fn refusal_text(&self) -> Option<String> {
        let whole = self.value.as_ref().err().map(ToString::to_string);
        whole.or_else(|| self.refused_words.as_ref().map(ToString::to_string))
    }
}

/// A key in the current layout, in the ancestor's, or in both: then the current one counts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layered<T> {
    current: Option<Arc<ParsedEntry<T>>>,
    ancestor: Option<Arc<ParsedEntry<T>>>,
}

impl<T> Default for Layered<T> {
    fn default() -> Self {
        Self { current: None, ancestor: None }
    }
}

impl<T> Layered<T> {
    fn effective_entry(&self) -> Option<&Arc<ParsedEntry<T>>> {
        self.current.as_ref().or(self.ancestor.as_ref())
    }

    /// The keys of both layouts.
    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.current.iter().chain(&self.ancestor).map(|field| &field.entry)
    }

    fn slot_mut(&mut self, layout: Layout) -> &mut Option<Arc<ParsedEntry<T>>> {
        match layout {
            Layout::Current => &mut self.current,
            Layout::Legacy => &mut self.ancestor,
        }
    }
}

/// Everything the store says of one service. It exists while any of its keys does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    kind: Kind,
    settings: BTreeMap<SettingName, Layered<Setting>>,
    upstreams: BTreeMap<UpstreamId, Layered<Upstream>>,
    overrides: BTreeMap<UpstreamId, Layered<Override>>,
}

impl Service {
    /// A service of which the store has nothing.
    pub fn new(kind: Kind) -> Self {
        Self { kind, settings: BTreeMap::new(), upstreams: BTreeMap::new(), overrides: BTreeMap::new() }
    }

    /// HTTP or TCP.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The key of one setting.
    pub fn setting(&self, name: SettingName) -> Option<&Arc<ParsedEntry<Setting>>> {
        self.settings.get(&name).and_then(Layered::effective_entry)
    }

    /// The keys of all settings that are set, by name.
    pub fn settings(&self) -> impl Iterator<Item = (SettingName, &Arc<ParsedEntry<Setting>>)> {
        self.settings.iter().filter_map(|(name, field)| Some((*name, field.effective_entry()?)))
    }

    /// The upstreams' records, by id.
    pub fn upstreams(&self) -> impl Iterator<Item = (&UpstreamId, &Arc<ParsedEntry<Upstream>>)> {
        self.upstreams.iter().filter_map(|(id, field)| Some((id, field.effective_entry()?)))
    }

    /// How many upstreams have a record.
    pub fn upstream_count(&self) -> usize {
        self.upstreams.len()
    }

    /// The record of one upstream.
    pub fn upstream(&self, id: &UpstreamId) -> Option<&Arc<ParsedEntry<Upstream>>> {
        self.upstreams.get(id).and_then(Layered::effective_entry)
    }

    /// The key that imposes something on one upstream.
    pub fn override_of(&self, id: &UpstreamId) -> Option<&Arc<ParsedEntry<Override>>> {
        self.overrides.get(id).and_then(Layered::effective_entry)
    }

    /// Everything that is imposed, by the upstream's id, whether or not that upstream is there.
    pub fn overrides(&self) -> impl Iterator<Item = (&UpstreamId, &Arc<ParsedEntry<Override>>)> {
        self.overrides.iter().filter_map(|(id, field)| Some((id, field.effective_entry()?)))
    }

    /// All its keys, those of the ancestor's layout that count for nothing included.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        let settings = self.settings.values().flat_map(Layered::entries);
        let upstreams = self.upstreams.values().flat_map(Layered::entries);
        settings.chain(upstreams).chain(self.overrides.values().flat_map(Layered::entries))
    }

    /// Whether it has no key.
    pub fn is_empty(&self) -> bool {
        self.settings.is_empty() && self.upstreams.is_empty() && self.overrides.is_empty()
    }

    /// Writes one key of the service, or removes it.
    fn set_key(&mut self, key: &Key, entry: Option<&Entry>) {
        match key {
            Key::Setting { layout, name, .. } => {
                let field = entry.map(|entry| {
                    let StoredSetting { value, refused_words: unread } =
                        Setting::parse_stored(self.kind, *name, &entry.value);
                    Arc::new(ParsedEntry { entry: entry.clone(), value, refused_words: unread })
                });
                set_layer(&mut self.settings, name, *layout, field);
            }
            Key::Upstream { layout, id, .. } => {
                let field = entry.map(|e| new_parsed_entry(e, Upstream::parse(&e.value)));
                set_layer(&mut self.upstreams, id, *layout, field);
            }
            Key::Override { id, .. } => {
                let field = entry.map(|e| new_parsed_entry(e, Override::parse(&e.value)));
                set_layer(&mut self.overrides, id, Layout::Current, field);
            }
            Key::Balancer(_) | Key::AcceptStore => {}
        }
    }
}

/// The longest folder and two names come to some 530 bytes. A longer key is told by `lint` only: a list of such keys would
/// not fit into a balancer's own key.
const LONGEST_MALFORMED: usize = 600;

/// The oddity of a key together with its value: a record in an unknown folder was meant for an upstream.
fn refine_key_error(entry: &Entry, oddity: KeyError) -> KeyError {
    if entry.key.len() > LONGEST_MALFORMED {
        return KeyError::Unknown;
    }
    let is_record = || resembles_upstream_key(&entry.key) || Upstream::parse(&entry.value).is_ok();
    if oddity == KeyError::Unknown && is_record() { KeyError::Malformed(WRONG_FOLDER.into()) } else { oddity }
}

fn new_parsed_entry<T>(entry: &Entry, value: Result<T, Refusal>) -> Arc<ParsedEntry<T>> {
    Arc::new(ParsedEntry { entry: entry.clone(), value, refused_words: None })
}

fn set_layer<K: Ord + Clone, T>(
    fields: &mut BTreeMap<K, Layered<T>>,
    at: &K,
    layout: Layout,
    field: Option<Arc<ParsedEntry<T>>>,
) {
    let layered = fields.entry(at.clone()).or_default();
    *layered.slot_mut(layout) = field;
    if layered.effective_entry().is_none() {
        fields.remove(at);
    }
}

/// What all keys say, whatever order they came in. A change touches its own service alone; the others stay the very
/// same `Arc`s, so that whoever derives something from a service can tell by the pointer that nothing changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    services: BTreeMap<ServiceId, Arc<Service>>,
    balancers: BTreeMap<Node, Entry>,
    accept_store: Option<Entry>,
    ignored: BTreeMap<String, KeyError>,
    /// The same `Arc` until one of them comes, goes or changes.
    malformed: Arc<BTreeMap<String, Box<str>>>,
}

impl Topology {
    /// The topology of a set of keys.
    pub fn from_entries<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let mut topology = Self::default();
        for entry in entries {
            topology.set_key(&entry.key, Some(entry));
        }
        topology
    }

    /// Takes one event of the watch in, and says which service it is about; a balancer's heartbeat is about none.
    pub fn apply_change(&mut self, change: &Change) -> Option<ServiceId> {
        match change {
            Change::Put(entry) => self.set_key(&entry.key, Some(entry)),
            Change::Delete { key, .. } => self.set_key(key, None),
        }
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
            Err(oddity) => {
                self.set_ignored_key(key, entry.map(|entry| refine_key_error(entry, oddity)));
                None
            }
        }
    }

    /// Notes a key that means nothing, or that there is none any more.
    fn set_ignored_key(&mut self, key: &str, oddity: Option<KeyError>) {
        let words = match &oddity {
            Some(KeyError::Malformed(words)) => Some(words.clone()),
            _ => None,
        };
        if words.as_ref() != self.malformed.get(key) {
            let unfollowed = Arc::make_mut(&mut self.malformed);
            match words {
                Some(words) => unfollowed.insert(key.to_owned(), words),
                None => unfollowed.remove(key),
            };
        }
        match oddity {
            Some(oddity) => self.ignored.insert(key.to_owned(), oddity),
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

    /// The keys of all services.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.services.values().flat_map(|service| service.entries())
    }

    /// What the balancers say of themselves.
    pub fn balancer_entries(&self) -> &BTreeMap<Node, Entry> {
        &self.balancers
    }

    /// An operator's word that a wiped store is meant.
    pub fn accept_store(&self) -> Option<&Entry> {
        self.accept_store.as_ref()
    }

    /// Keys that were meant for a service, an upstream or an override and can't be followed, each with the reason.
    pub fn malformed_keys(&self) -> &Arc<BTreeMap<String, Box<str>>> {
        &self.malformed
    }

    /// Keys that mean nothing here, those of [`Topology::unfollowed`] included: ignored, worth a hint.
    pub fn ignored_keys(&self) -> &BTreeMap<String, KeyError> {
        &self.ignored
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
    fn what_was_meant_for_an_upstream_is_not_overlooked() {
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
    fn a_heartbeat_concerns_nobody() {
        let mut topology = Topology::default();
        assert_eq!(topology.apply_change(&Change::Put(entry("balancers/lb1", "{}"))), None);
        assert_eq!(topology.apply_change(&Change::Put(entry("whatever", "x"))), None);
        assert_eq!(topology.balancer_entries().len(), 1);
    }

    #[test]
    fn the_keys_of_its_services_make_it_again() {
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
