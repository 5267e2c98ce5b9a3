//! The bound on the keys that a topology keeps, and the account of the keys that it leaves out.
//!
//! Pure: no I/O, no clock. It decides nothing about the order of keys: the caller adds the keys first that must stay.

use std::collections::BTreeMap;

use crate::ServiceId;

/// The most services that the account of left-out keys names. The balancer record names fewer.
const MAX_NAMED_SERVICES: usize = 1_000;

/// The most keys that a topology keeps. Settings of a kept service have no limit but their number of names, since a service
/// without its `allow` would be open to everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyLimits {
    /// The services. Beyond it a service is left out with all its keys.
    pub services: usize,
    /// The records of one service, and as many overrides.
    pub upstreams_per_service: usize,
    /// The records and overrides of all services together.
    pub upstreams: usize,
    /// The malformed keys, as many unknown keys, and as many balancer records.
    pub others: usize,
    /// True keeps the slots and stand-bys too. Balancers need none, so none is left out if they are dropped.
    pub with_copies: bool,
}

impl KeyLimits {
    /// Keeps every key, for a program that shows the whole store and then ends.
    pub const UNLIMITED: Self = Self {
        services: usize::MAX,
        upstreams_per_service: usize::MAX,
        upstreams: usize::MAX,
        others: usize::MAX,
        with_copies: true,
    };
}

impl Default for KeyLimits {
    fn default() -> Self {
        Self::UNLIMITED
    }
}

/// The number of keys that a topology leaves out because of its limits. The keys themselves are forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOutKeys {
    services: BTreeMap<ServiceId, usize>,
    /// Keys of services that are not in `services`.
    unnamed: usize,
    /// Malformed keys, unknown keys and balancer records.
    others: usize,
}

impl LeftOutKeys {
    /// True if no key is left out.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The services with keys that are left out. There may be more of them, see [`LeftOutKeys::has_unnamed_services`].
    pub fn services(&self) -> impl Iterator<Item = &ServiceId> {
        self.services.keys()
    }

    /// True if services that [`LeftOutKeys::services`] lacks have such keys.
    pub fn has_unnamed_services(&self) -> bool {
        self.unnamed > 0
    }

    /// True if keys of no service are left out.
    pub fn has_other_keys(&self) -> bool {
        self.others > 0
    }

    /// True if a key of the service is left out, or may be.
    pub(super) fn may_concern(&self, id: &ServiceId) -> bool {
        self.unnamed > 0 || self.services.contains_key(id)
    }

    pub(super) fn add_service_key(&mut self, id: &ServiceId) {
        if let Some(count) = self.services.get_mut(id) {
            *count += 1;
        } else if self.services.len() < MAX_NAMED_SERVICES {
            self.services.insert(id.clone(), 1);
        } else {
            self.unnamed += 1;
        }
    }

    /// Notes that a key of the service is gone from the store. The topology had not kept it.
    pub(super) fn remove_service_key(&mut self, id: &ServiceId) {
        match self.services.get_mut(id) {
            Some(1) => drop(self.services.remove(id)),
            Some(count) => *count -= 1,
            None => self.unnamed = self.unnamed.saturating_sub(1),
        }
    }

    pub(super) fn add_other_key(&mut self) {
        self.others += 1;
    }

    pub(super) fn remove_other_key(&mut self) {
        self.others = self.others.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{Change, Entry, Kind, Topology};

    const LIMITS: KeyLimits =
        KeyLimits { services: 3, upstreams_per_service: 2, upstreams: 4, others: 2, with_copies: false };

    fn entry(key: &str, created: i64) -> Entry {
        Entry {
            key: key.into(),
            value: "10.0.0.1:80".into(),
            create_revision: created,
            mod_revision: created,
            lease: 0,
        }
    }

    fn http(name: &str) -> ServiceId {
        ServiceId { kind: Kind::Http, name: name.parse().unwrap() }
    }

    /// The names of the upstreams with a record.
    fn kept(topology: &Topology, service: &str) -> Vec<String> {
        let service = topology.services().get(&http(service));
        service.map(|it| it.upstreams().map(|(id, _)| id.to_string()).collect()).unwrap_or_default()
    }

    fn delete(topology: &mut Topology, key: &str) {
        topology.apply_change(&Change::Delete { key: key.into(), revision: 99, previous: None });
    }

    #[test]
    fn the_oldest_keys_of_a_service_are_kept_in_any_order_of_arrival() {
        let record = |id: &str, created| entry(&format!("http-services/shop/upstreams/{id}"), created);
        let mut entries = vec![record("a", 9), record("b", 3), record("c", 5), entry("http-services/shop/domain", 20)];
        for _ in 0..entries.len() {
            entries.rotate_left(1);
            let topology = Topology::from_listing(entries.clone(), LIMITS, &Topology::default());
            assert_eq!(kept(&topology, "shop"), ["b", "c"]);
            assert!(topology.services()[&http("shop")].setting(crate::SettingName::Domain).is_some());
            assert_eq!(topology.left_out().services().collect::<Vec<_>>(), [&http("shop")]);
            topology.check_invariants();
        }
    }

    #[test]
    fn a_kept_record_is_not_displaced_by_an_older_one_that_was_left_out() {
        let all = ["a", "b", "c"].map(|id| entry(&format!("http-services/shop/upstreams/{id}"), 5));
        let mut topology = Topology::from_listing(all.to_vec(), LIMITS, &Topology::default());
        delete(&mut topology, "http-services/shop/upstreams/a");
        topology.apply_change(&Change::Put(entry("http-services/shop/upstreams/d", 9)));
        assert_eq!(kept(&topology, "shop"), ["b", "d"]);
        let now = [&all[1..], &[entry("http-services/shop/upstreams/d", 9)]].concat();
        let listed = Topology::from_listing(now.clone(), LIMITS, &topology);
        assert_eq!(kept(&listed, "shop"), ["b", "d"]);
        assert!(!listed.left_out().is_empty());
    }

    #[test]
    fn the_account_ends_with_the_last_left_out_key() {
        let mut topology = Topology::default().with_limits(LIMITS);
        for (at, id) in ["a", "b", "c", "d"].iter().enumerate() {
            topology.apply_change(&Change::Put(entry(&format!("http-services/shop/upstreams/{id}"), at as i64)));
        }
        // A later write to a key that is left out is no further key.
        let again = Entry { mod_revision: 7, ..entry("http-services/shop/upstreams/d", 3) };
        topology.apply_change(&Change::Put(again));
        delete(&mut topology, "http-services/shop/upstreams/c");
        assert!(!topology.left_out().is_empty());
        delete(&mut topology, "http-services/shop/upstreams/d");
        assert!(topology.left_out().is_empty());
        assert_eq!(kept(&topology, "shop"), ["a", "b"]);
    }

    #[test]
    fn a_service_beyond_the_limit_is_left_out_whole_even_if_there_is_room_later() {
        let setting = |name: &str, leaf: &str, created| entry(&format!("http-services/{name}/{leaf}"), created);
        let entries = [setting("a", "tls", 1), setting("b", "tls", 2), setting("c", "tls", 3), setting("d", "tls", 4)];
        let mut topology = Topology::from_listing(entries.to_vec(), LIMITS, &Topology::default());
        assert_eq!(topology.services().len(), 3);
        topology.apply_change(&Change::Put(setting("d", "allow", 5)));
        delete(&mut topology, "http-services/a/tls");
        // Without its `allow`, which is forgotten, the service would be open to everybody.
        topology.apply_change(&Change::Put(setting("d", "domain", 6)));
        assert_eq!(topology.services().keys().collect::<BTreeSet<_>>(), [&http("b"), &http("c")].into());
        for leaf in ["tls", "allow", "domain"] {
            delete(&mut topology, &format!("http-services/d/{leaf}"));
        }
        topology.apply_change(&Change::Put(setting("d", "domain", 7)));
        assert_eq!(topology.services().len(), 3);
    }

    #[test]
    fn upstreams_of_all_services_have_a_limit_too() {
        let services = ["a", "b", "c"];
        let entries = services.iter().flat_map(|name| {
            let key = move |leaf: &str| format!("http-services/{name}/{leaf}");
            [entry(&key("domain"), 1), entry(&key("upstreams/1"), 2), entry(&key("overrides/1"), 3)]
        });
        let mut topology = Topology::from_listing(entries.collect::<Vec<_>>(), LIMITS, &Topology::default());
        let count = |topology: &Topology| topology.services().values().map(|it| it.entries().count()).sum::<usize>();
        assert_eq!((topology.services().len(), count(&topology)), (3, 3 + 4));
        delete(&mut topology, "http-services/a/upstreams/1");
        topology.apply_change(&Change::Put(entry("http-services/c/upstreams/2", 9)));
        assert_eq!(kept(&topology, "c"), ["1", "2"]);
    }

    #[test]
    fn keys_of_no_service_have_a_limit() {
        let mut entries: Vec<Entry> =
            (0..5).map(|at| entry(&format!("http-services/shop/upstreams/a:{at}"), at)).collect();
        entries.extend((0..5).map(|at| Entry { value: Vec::new(), ..entry(&format!("notes/{at}"), at) }));
        entries.extend((0..5).map(|at| entry(&format!("balancers/lb{at}"), at)));
        let mut topology = Topology::from_listing(entries.clone(), LIMITS, &Topology::default());
        let counts = |topology: &Topology| {
            (topology.malformed_keys().len(), topology.ignored_keys().len(), topology.balancer_entries().len())
        };
        assert_eq!(counts(&topology), (2, 4, 2));
        assert!(topology.left_out().has_other_keys());
        entries.iter().for_each(|entry| delete(&mut topology, &entry.key));
        assert_eq!(topology, Topology::default().with_limits(LIMITS));
    }

    #[test]
    fn slots_and_standbys_count_only_for_a_program_that_keeps_them() {
        let keys = (1..9).flat_map(|at| {
            let folder = format!("http-services/shop{at}");
            [format!("{folder}/slots/{at}"), format!("{folder}/standby/a"), format!("{folder}/slots/{}", at + 10)]
        });
        let entries: Vec<Entry> = keys.map(|key| Entry { value: br#"{"id":"a"}"#.into(), ..entry(&key, 1) }).collect();
        let mut topology = Topology::from_listing(entries.clone(), LIMITS, &Topology::default());
        for entry in &entries {
            assert_eq!(topology.apply_change(&Change::Put(entry.clone())), None);
        }
        assert_eq!(topology, Topology::default().with_limits(LIMITS));
        entries.iter().for_each(|entry| delete(&mut topology, &entry.key));
        assert_eq!(topology, Topology::default().with_limits(LIMITS));

        let mut all = Topology::from_listing(entries.clone(), KeyLimits::UNLIMITED, &Topology::default());
        assert_eq!((all.copies().len(), all.services().len(), all.ignored_keys().len()), (8, 0, 0));
        assert_eq!(all.copies().values().flat_map(|copies| copies.entries()).count(), entries.len());
        entries.iter().for_each(|entry| delete(&mut all, &entry.key));
        assert_eq!(all, Topology::default());
    }

    #[test]
    fn services_that_are_left_out_are_named_up_to_a_number() {
        let entries: Vec<Entry> =
            (0..MAX_NAMED_SERVICES as i64 + 10).map(|at| entry(&format!("http-services/s{at}/domain"), at)).collect();
        let mut topology = Topology::from_listing(entries.clone(), LIMITS, &Topology::default());
        let named = |topology: &Topology| topology.left_out().services().count();
        assert_eq!((named(&topology), topology.left_out().has_unnamed_services()), (MAX_NAMED_SERVICES, true));
        entries.iter().for_each(|entry| delete(&mut topology, &entry.key));
        assert!(topology.left_out().is_empty());
    }
}
