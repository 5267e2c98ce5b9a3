//! The topology: the keys service by service, each value parsed or refused with the reason.
//!
//! It holds what the keys say. Claims, colors and last good values are decided elsewhere. Pure: no I/O, no clock.

mod bound;
mod copies;
mod service;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::key::{WRONG_FOLDER, resembles_upstream_key};
use crate::{Change, Entry, Key, KeyError, Node, ServiceId, Upstream};

pub use bound::{KeyLimits, LeftOutKeys};
pub use copies::Copies;
pub use service::{ParsedEntry, Service};

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

/// All keys, in any order of arrival. A change replaces the `Arc` of its own service only. So a caller that derives
/// something from a service can compare pointers to find that nothing changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    services: BTreeMap<ServiceId, Arc<Service>>,
    /// The slots and stand-bys. They are no keys of `services`: a service isn't there because of them, and no balancer needs
    /// them.
    copies: BTreeMap<ServiceId, Arc<Copies>>,
    balancers: BTreeMap<Node, Entry>,
    accept_store: Option<Entry>,
    ignored: BTreeMap<String, KeyError>,
    /// The `Arc` is replaced only if one of the keys appears, disappears or gets another reason.
    malformed: Arc<BTreeMap<String, Box<str>>>,
    limits: KeyLimits,
    /// The records and overrides of all services.
    upstream_keys: usize,
    left_out: Arc<LeftOutKeys>,
}

/// The way in which a value arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    /// The key is one of a listing, or was just created.
    New,
    /// The key had another value before.
    Rewritten,
    /// The key is kept whatever the limits are.
    Forced,
}

impl Topology {
    /// The topology of a set of keys, without limits. If a key comes twice, the last entry counts.
    pub fn from_entries<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let mut topology = Self::default();
        for entry in entries {
            topology.put_entry(entry.clone(), Arrival::New);
        }
        topology.check_invariants();
        topology
    }

    /// The topology of a listing, within limits. Keys that `last` keeps go first, then the oldest ones. So a key that is served
    /// is not displaced.
    /// No value is kept beyond what is read of it.
    pub fn from_listing(mut entries: Vec<Entry>, limits: KeyLimits, last: &Self) -> Self {
        let mut topology = Self::default().with_limits(limits);
        // Most stores are smaller than that, and need no order.
        let smallest = limits.services.min(limits.upstreams_per_service).min(limits.upstreams).min(limits.others);
        if entries.len() > smallest {
            entries.sort_by_cached_key(|entry| (!last.keeps_key(&entry.key), entry.create_revision));
        }
        // Moved, not copied: 10,000 copies between the originals would leave as many holes in the heap.
        for entry in entries {
            topology.put_entry(entry.with_bounded_value(), Arrival::New);
        }
        topology.share_unchanged(last);
        topology.check_invariants();
        topology
    }

    /// Takes each unchanged service's `Arc` from `last`.
    fn share_unchanged(&mut self, last: &Self) {
        for (id, service) in &mut self.services {
            if let Some(known) = last.services.get(id).filter(|known| *known == service) {
                *service = Arc::clone(known);
            }
        }
    }

    /// The same topology with limits for the keys that are still to come.
    #[must_use]
    pub fn with_limits(self, limits: KeyLimits) -> Self {
        Self { limits, ..self }
    }

    /// Applies one event of the watch. Returns the service that the key belongs to. `None` for other keys, so that a
    /// balancer's heartbeat touches no service.
    pub fn apply_change(&mut self, change: &Change) -> Option<ServiceId> {
        let service = match change {
            Change::Put(entry) if entry.create_revision == entry.mod_revision => {
                self.put_entry(entry.clone(), Arrival::New)
            }
            Change::Put(entry) => self.put_entry(entry.clone(), Arrival::Rewritten),
            Change::Delete { key, .. } => self.remove_key(key),
        };
        // Only the changed key: a check of all keys for each change would make a store of 10,000 unusable in debug builds.
        let is_there = matches!(change, Change::Put(_));
        debug_assert!(!self.left_out.is_empty() || self.find_fault_of(change.key(), is_there).is_none(), "{change:?}");
        service
    }

    /// Keeps an entry whatever the limits are.
    pub fn force_entry(&mut self, entry: &Entry) {
        self.put_entry(entry.clone(), Arrival::Forced);
    }

    fn put_entry(&mut self, entry: Entry, arrival: Arrival) -> Option<ServiceId> {
        match entry.key.parse::<Key>() {
            Ok(key) => self.set_key(&key, Some((entry, arrival))),
            Err(error) => {
                let error = refine_key_error(&entry, error);
                self.set_ignored_key(&entry.key, Some((error, arrival)));
                None
            }
        }
    }

    fn remove_key(&mut self, key: &str) -> Option<ServiceId> {
        match key.parse::<Key>() {
            Ok(key) => self.set_key(&key, None),
            Err(_) => {
                self.set_ignored_key(key, None);
                None
            }
        }
    }

    fn set_key(&mut self, key: &Key, entry: Option<(Entry, Arrival)>) -> Option<ServiceId> {
        match key {
            Key::Balancer(node) => {
                self.set_balancer(node, entry);
                None
            }
            Key::AcceptStore => {
                self.accept_store = entry.map(|(entry, _)| entry);
                None
            }
            Key::Log(_) => None,
            Key::Slot { .. } | Key::Standby { .. } => {
                self.set_copy_key(key, entry.map(|(entry, _)| entry));
                None
            }
            Key::Setting { .. } | Key::Upstream { .. } | Key::Override { .. } => {
                let id = key.service_id()?;
                self.set_or_leave_out(id, key, entry);
                Some(id.clone())
            }
        }
    }

    /// Sets a slot or stand-by, if the limits keep them at all.
    fn set_copy_key(&mut self, key: &Key, entry: Option<Entry>) {
        let Some(id) = key.service_id().filter(|_| self.limits.with_copies) else { return };
        let copies = Arc::make_mut(self.copies.entry(id.clone()).or_default());
        copies.set_key(key, entry);
        if copies.is_empty() {
            self.copies.remove(id);
        }
    }

    fn set_balancer(&mut self, node: &Node, entry: Option<(Entry, Arrival)>) {
        let has_room = self.balancers.len() < self.limits.others || self.balancers.contains_key(node);
        match entry {
            Some((entry, _)) if has_room => _ = self.balancers.insert(node.clone(), entry),
            Some((_, arrival)) => self.leave_other_out(arrival),
            None if self.balancers.remove(node).is_none() => self.forget_other(),
            None => {}
        }
    }

    /// Sets a service's key, or only counts it if there is no room.
    fn set_or_leave_out(&mut self, id: &ServiceId, key: &Key, entry: Option<(Entry, Arrival)>) {
        match entry {
            Some((_, arrival)) if arrival != Arrival::Forced && !self.has_room_for(id, key) => {
                if arrival == Arrival::New {
                    Arc::make_mut(&mut self.left_out).add_service_key(id);
                }
            }
            None if self.entry_of(id, key).is_none() => {
                if !self.left_out.is_empty() {
                    Arc::make_mut(&mut self.left_out).remove_service_key(id);
                }
            }
            _ => self.set_service_key(id, key, entry.map(|(entry, _)| entry)),
        }
    }

    fn has_room_for(&self, id: &ServiceId, key: &Key) -> bool {
        let has_room_in_all = matches!(key, Key::Setting { .. }) || self.upstream_keys < self.limits.upstreams;
        match self.services.get(id) {
            Some(service) => service.has_place_of(key) || has_room_in_all && service.has_room_for(key, self.limits),
            // A service that was left out has forgotten keys. It stays out until a listing brings them all.
            None => has_room_in_all && self.services.len() < self.limits.services && !self.left_out.may_concern(id),
        }
    }

    fn entry_of(&self, id: &ServiceId, key: &Key) -> Option<&Entry> {
        match key {
            Key::Slot { .. } | Key::Standby { .. } => self.copies.get(id)?.entry_of(key),
            _ => self.services.get(id)?.entry_of(key),
        }
    }

    /// True if the topology has an entry of this key.
    fn keeps_key(&self, key: &str) -> bool {
        match key.parse::<Key>() {
            Ok(Key::Balancer(node)) => self.balancers.contains_key(&node),
            Ok(Key::AcceptStore) => self.accept_store.is_some(),
            Ok(Key::Log(_)) => false,
            Ok(key) => key.service_id().is_some_and(|id| self.entry_of(id, &key).is_some()),
            Err(_) => self.ignored.contains_key(key),
        }
    }

    fn leave_other_out(&mut self, arrival: Arrival) {
        if arrival == Arrival::New {
            Arc::make_mut(&mut self.left_out).add_other_key();
        }
    }

    /// Notes that a key of no service is gone, which the topology had not kept.
    fn forget_other(&mut self) {
        if !self.left_out.is_empty() {
            Arc::make_mut(&mut self.left_out).remove_other_key();
        }
    }

    /// Sets the error of a key that is none of the project's. `None` removes it.
    fn set_ignored_key(&mut self, key: &str, error: Option<(KeyError, Arrival)>) {
        let is_known = self.ignored.contains_key(key);
        let Some((error, arrival)) = error else {
            if is_known {
                self.ignored.remove(key);
                self.set_malformed_key(key, None);
            } else {
                self.forget_other();
            }
            return;
        };
        let words = match &error {
            KeyError::Malformed(words) => Some(words.clone()),
            _ => None,
        };
        let (malformed, ignored) = (self.malformed.len(), self.ignored.len());
        let count = if words.is_some() { malformed } else { ignored - malformed };
        if !is_known && count >= self.limits.others {
            return self.leave_other_out(arrival);
        }
        self.set_malformed_key(key, words);
        self.ignored.insert(key.to_owned(), error);
    }

    fn set_malformed_key(&mut self, key: &str, words: Option<Box<str>>) {
        // `make_mut` replaces the `Arc` even if nothing changes, and readers compare its pointer.
        if words.as_ref() != self.malformed.get(key) {
            let malformed = Arc::make_mut(&mut self.malformed);
            match words {
                Some(words) => malformed.insert(key.to_owned(), words),
                None => malformed.remove(key),
            };
        }
    }

    fn set_service_key(&mut self, id: &ServiceId, key: &Key, entry: Option<Entry>) {
        let service = self.services.entry(id.clone()).or_insert_with(|| Arc::new(Service::new(id.kind)));
        let service = Arc::make_mut(service);
        let before = service.count_upstream_keys();
        service.set_key(key, entry);
        self.upstream_keys = self.upstream_keys + service.count_upstream_keys() - before;
        if service.is_empty() {
            self.services.remove(id);
        }
    }

    /// The services by kind and name.
    pub fn services(&self) -> &BTreeMap<ServiceId, Arc<Service>> {
        &self.services
    }

    /// The slots and stand-bys of the services that have some, by kind and name.
    pub fn copies(&self) -> &BTreeMap<ServiceId, Arc<Copies>> {
        &self.copies
    }

    /// The entry of a service's key. `None` if there is none, and for other keys.
    pub fn find_entry(&self, key: &Key) -> Option<&Entry> {
        self.entry_of(key.service_id()?, key)
    }

    /// The keys of all services, without slots and stand-bys. [`Topology::from_entries`] makes the same services of them.
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

    /// The account of the keys that are left out because of the limits.
    pub fn left_out(&self) -> &Arc<LeftOutKeys> {
        &self.left_out
    }

    /// The limits of this topology.
    pub fn limits(&self) -> KeyLimits {
        self.limits
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
            if service.kind() != id.kind || service.is_empty() {
                return Some(format!("{id} is empty or of another kind"));
            }
        }
        let count = self.services.values().map(|service| service.count_upstream_keys()).sum::<usize>();
        if self.upstream_keys != count {
            return Some(format!("{} records and overrides instead of {count}", self.upstream_keys));
        }
        let balancers = self.balancers.values().chain(&self.accept_store);
        let copies = self.copies.values().flat_map(|copies| copies.entries());
        let keys = self.entries().chain(copies).chain(balancers).map(|entry| entry.key.as_str());
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
            Ok(Key::Slot { .. } | Key::Standby { .. }) if !self.limits.with_copies => return None,
            Ok(Key::Log(_)) => return None,
            Ok(parsed) => parsed.service_id().and_then(|id| self.entry_of(id, &parsed)),
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
    use crate::{Kind, SettingName};

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
            Just("slots".into()),
            Just("standby".into()),
            Just("1".into()),
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
