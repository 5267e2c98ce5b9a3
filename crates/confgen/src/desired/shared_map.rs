//! A sorted map in parts. Clones share their parts, and a change copies one of them. So a clone costs nothing, and a comparison with an
//! earlier clone costs what changed since. Pure.
//!
//! `rpds` has no such comparison, and neither it nor `imbl` has a licence of `deny.toml`.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::pairs::pair_by_key;

/// The most entries of a part. A change copies one part, and the list of all parts if a clone has that too.
const LARGEST: usize = 64;

/// Two neighbours with so few entries become one part.
const SMALLEST: usize = LARGEST / 2;

/// Sorted entries, at least one.
type Part<K, V> = Arc<Vec<(K, V)>>;

/// A sorted map. Its clones share their parts.
#[derive(Debug)]
pub struct SharedMap<K, V> {
    /// Sorted.
    parts: Arc<Vec<Part<K, V>>>,
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self { parts: Arc::clone(&self.parts) }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { parts: Arc::default() }
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || self.iter().eq(other.iter())
    }
}

impl<K: Eq, V: Eq> Eq for SharedMap<K, V> {}

impl<K, V> SharedMap<K, V> {
    /// The entries in the order of their keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.parts.iter().flat_map(|part| part.iter()).map(|(key, value)| (key, value))
    }

    /// The keys in their order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// The values in the order of their keys.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// True if nothing was changed in either since one was cloned from the other.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.parts, &other.parts)
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// The value of a key. `None` if the map lacks it.
    pub(crate) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.get_key_value(key).map(|(_, value)| value)
    }

    /// The value of a key, with the map's own copy of the key.
    pub(crate) fn get_key_value<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        let part = self.parts.get(self.part_of(key)?)?;
        part.get(place_in(part, key).ok()?).map(|(key, value)| (key, value))
    }

    pub(crate) fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// The value of a key, to be changed. Copies the part that it is in if a clone has that too.
    pub(crate) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        // A key that is missing copies nothing.
        let at = self.part_of(key)?;
        let place = place_in(self.parts.get(at)?, key).ok()?;
        let part = Arc::make_mut(&mut self.parts).get_mut(at)?;
        Arc::make_mut(part).get_mut(place).map(|(_, value)| value)
    }

    /// Sets the value of a key, and returns the one before.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        if let Some(before) = self.get_mut(&key) {
            return Some(std::mem::replace(before, value));
        }
        let at = self.part_of(&key).unwrap_or_default();
        let parts = Arc::make_mut(&mut self.parts);
        let is_last = at + 1 == parts.len();
        let Some(part) = parts.get_mut(at).map(Arc::make_mut) else {
            parts.push(Arc::new(vec![(key, value)]));
            return None;
        };
        let (Ok(place) | Err(place)) = place_in(part, &key);
        part.insert(place, (key, value));
        if part.len() > LARGEST {
            // Keys that come in their order leave full parts behind.
            let rest = part.split_off(if is_last && place == LARGEST { place } else { LARGEST / 2 });
            part.shrink_to_fit();
            parts.insert(at + 1, Arc::new(rest));
        }
        None
    }

    /// Removes a key, and returns its value.
    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let at = self.part_of(key)?;
        let place = place_in(self.parts.get(at)?, key).ok()?;
        let parts = Arc::make_mut(&mut self.parts);
        let part = Arc::make_mut(parts.get_mut(at)?);
        let (_, value) = part.remove(place);
        if part.is_empty() {
            parts.remove(at);
            return Some(value);
        }
        // Small parts would make each later change and comparison dearer.
        merge_with_next(parts, at);
        if let Some(before) = at.checked_sub(1) {
            merge_with_next(parts, before);
        }
        Some(value)
    }

    /// Removes the entries for which `stays` is false. Walks through all.
    pub(crate) fn retain(&mut self, mut stays: impl FnMut(&K, &V) -> bool) {
        let kept = self.iter().filter(|(key, value)| stays(key, value));
        *self = kept.map(|(key, value)| (key.clone(), value.clone())).collect();
    }

    /// The entries from this key on, in the order of their keys.
    pub(crate) fn iter_from<'a, Q: Ord + ?Sized>(
        &'a self,
        key: &Q,
    ) -> impl Iterator<Item = (&'a K, &'a V)> + use<'a, K, V, Q>
    where
        K: Borrow<Q>,
    {
        let at = self.part_of(key).unwrap_or_default();
        let place = self.parts.get(at).map_or(0, |part| place_in(part, key).unwrap_or_else(|place| place));
        let entries = self.parts.iter().skip(at).flat_map(|part| part.iter()).skip(place);
        entries.map(|(key, value)| (key, value))
    }

    /// Each key with a value that may differ from that in `before`, with both values. No key with another value is left out.
    pub(crate) fn changes_since<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = (&'a K, Option<&'a V>, Option<&'a V>)> {
        let unshared = UnsharedParts::find(&before.parts, &self.parts);
        pair_by_key(entries_of(unshared.before), entries_of(unshared.after))
    }

    /// The number of the part that has the key, or would have it. `None` without a part.
    fn part_of<Q: Ord + ?Sized>(&self, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
    {
        // The last part that doesn't begin behind the key, else the first one.
        let begins_before = |first: &K| Borrow::<Q>::borrow(first) <= key;
        let behind = self.parts.partition_point(|part| first_key(part).is_some_and(begins_before));
        if self.parts.is_empty() { None } else { Some(behind.saturating_sub(1)) }
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        map.extend(entries);
        map
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Serialize, V: Serialize> Serialize for SharedMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, K: Deserialize<'de> + Ord + Clone, V: Deserialize<'de> + Clone> Deserialize<'de> for SharedMap<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(|entries: BTreeMap<K, V>| entries.into_iter().collect())
    }
}

fn first_key<K, V>(part: &Part<K, V>) -> Option<&K> {
    part.first().map(|(key, _)| key)
}

fn place_in<K: Borrow<Q>, V, Q: Ord + ?Sized>(part: &[(K, V)], key: &Q) -> Result<usize, usize> {
    part.binary_search_by(|(other, _)| Borrow::<Q>::borrow(other).cmp(key))
}

fn entries_of<K, V>(parts: Vec<&Part<K, V>>) -> impl Iterator<Item = (&K, &V)> {
    parts.into_iter().flat_map(|part| part.iter()).map(|(key, value)| (key, value))
}

fn merge_with_next<K: Clone, V: Clone>(parts: &mut Vec<Part<K, V>>, at: usize) {
    let length = |at: usize| parts.get(at).map(|part| part.len());
    if length(at).zip(length(at + 1)).is_none_or(|(one, next)| one + next > SMALLEST) {
        return;
    }
    let next = parts.remove(at + 1);
    if let Some(part) = parts.get_mut(at) {
        Arc::make_mut(part).extend(next.iter().cloned());
    }
}

/// The parts that only one of two maps has. An entry of a shared part is the same in both maps, and in no other part.
struct UnsharedParts<'a, K, V> {
    before: Vec<&'a Part<K, V>>,
    after: Vec<&'a Part<K, V>>,
}

impl<'a, K: Ord, V> UnsharedParts<'a, K, V> {
    fn find(before: &'a Arc<Vec<Part<K, V>>>, after: &'a Arc<Vec<Part<K, V>>>) -> Self {
        let mut unshared = Self { before: Vec::new(), after: Vec::new() };
        if Arc::ptr_eq(before, after) {
            return unshared;
        }
        let by_first = |parts: &'a [Part<K, V>]| parts.iter().filter_map(|part| Some((first_key(part)?, part)));
        for (_, one, other) in pair_by_key(by_first(before), by_first(after)) {
            if !one.zip(other).is_some_and(|(one, other)| Arc::ptr_eq(one, other)) {
                unshared.before.extend(one);
                unshared.after.extend(other);
            }
        }
        unshared
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
        /// The first violated invariant.
        fn check_invariants(&self) -> Result<(), String> {
            let sizes: Vec<usize> = self.parts.iter().map(|part| part.len()).collect();
            let is_small = sizes.windows(2).any(|pair| pair[0] + pair[1] <= SMALLEST);
            if sizes.contains(&0) || sizes.iter().any(|size| *size > LARGEST) || is_small {
                return Err(format!("parts of {sizes:?} entries"));
            }
            match self.keys().is_sorted_by(|one, next| one < next) {
                true => Ok(()),
                false => Err("keys out of order".into()),
            }
        }
    }

    proptest! {
        /// After each change the map has the entries of a plain one, and tells every difference to an earlier clone.
        #[test]
        fn it_is_a_sorted_map_that_tells_its_differences(
            steps in prop::collection::vec((0..400_u16, prop::option::weighted(0.6, 0..4_u8), prop::bool::weighted(0.02)), 1..1_500),
        ) {
            let (mut map, mut plain) = (SharedMap::default(), BTreeMap::new());
            let (mut earlier, mut earlier_plain) = (map.clone(), plain.clone());
            for (key, value, is_kept) in steps {
                match value {
                    Some(value) => prop_assert_eq!(map.insert(key, value), plain.insert(key, value)),
                    None => prop_assert_eq!(map.remove(&key), plain.remove(&key)),
                }
                prop_assert_eq!(map.get(&key), plain.get(&key));
                prop_assert!(map.iter_from(&key).eq(plain.range(key..)));
                if is_kept {
                    prop_assert!(map.iter().eq(&plain));
                    prop_assert_eq!(map.check_invariants(), Ok(()));
                    let told = map.changes_since(&earlier).filter(|(_, old, new)| old != new);
                    let differ = pair_by_key(&earlier_plain, &plain).filter(|(_, old, new)| old != new);
                    prop_assert!(told.eq(differ));
                    (earlier, earlier_plain) = (map.clone(), plain.clone());
                }
            }
            prop_assert!(earlier.iter().eq(&earlier_plain), "a change leaves clones alone");
        }
    }

    /// One change of a map.
    #[derive(Clone, Debug)]
    enum Step {
        Insert(u16, u8),
        Remove(u16),
        /// Writes through `get_mut`, if the map has the key.
        Set(u16, u8),
        /// Inserts so many keys from this one on, in their order.
        Fill(u16, u16),
        /// Removes so many keys from this one on.
        Clear(u16, u16),
        /// Removes the keys that this number divides.
        Thin(u16),
    }

    /// The keys, some ten times as many as a part has entries.
    const KEYS: std::ops::Range<u16> = 0..600;

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (KEYS, any::<u8>()).prop_map(|(key, value)| Step::Insert(key, value)),
            4 => KEYS.prop_map(Step::Remove),
            2 => (KEYS, any::<u8>()).prop_map(|(key, value)| Step::Set(key, value)),
            2 => (KEYS, 1..200_u16).prop_map(|(key, count)| Step::Fill(key, count)),
            1 => (KEYS, 1..200_u16).prop_map(|(key, count)| Step::Clear(key, count)),
            1 => (2..9_u16).prop_map(Step::Thin),
        ]
    }

    type Maps = (SharedMap<u16, u8>, BTreeMap<u16, u8>);

    /// Each key with another value after than before, in their order.
    fn differences(before: &BTreeMap<u16, u8>, after: &BTreeMap<u16, u8>) -> Vec<(u16, Option<u8>, Option<u8>)> {
        let keys: BTreeSet<u16> = before.keys().chain(after.keys()).copied().collect();
        let values = keys.into_iter().map(|key| (key, before.get(&key).copied(), after.get(&key).copied()));
        values.filter(|(_, old, new)| old != new).collect()
    }

    impl Step {
        /// Changes both maps. They have to return the same.
        fn apply(&self, (map, plain): &mut Maps) {
            match *self {
                Self::Insert(key, value) => assert_eq!(map.insert(key, value), plain.insert(key, value)),
                Self::Remove(key) => assert_eq!(map.remove(&key), plain.remove(&key)),
                Self::Set(key, value) => {
                    let places = (map.get_mut(&key), plain.get_mut(&key));
                    assert_eq!(places.0, places.1);
                    if let (Some(one), Some(other)) = places {
                        (*one, *other) = (value, value);
                    }
                }
                Self::Fill(from, count) => {
                    let entries = (from..from + count).map(|key| (key, 1));
                    map.extend(entries.clone());
                    plain.extend(entries);
                }
                Self::Clear(from, count) => {
                    (from..from + count).for_each(|key| assert_eq!(map.remove(&key), plain.remove(&key)));
                }
                Self::Thin(number) => {
                    map.retain(|key, _| key % number != 0);
                    plain.retain(|key, _| key % number != 0);
                }
            }
        }

        /// The most parts of the map before that this step may replace. `None` for all.
        fn most_replaced_parts(&self) -> Option<usize> {
            match self {
                // A removal may join its part with both neighbours.
                Self::Insert(..) | Self::Remove(_) | Self::Set(..) => Some(3),
                Self::Fill(..) | Self::Clear(..) | Self::Thin(_) => None,
            }
        }
    }

    proptest! {
        /// Every version stays as it was, and the differences between any two of them are exact, from either side.
        #[test]
        fn every_version_stays_and_any_two_tell_their_differences(steps in prop::collection::vec(step(), 1..20)) {
            let mut versions: Vec<Maps> = vec![Maps::default()];
            for step in &steps {
                let before = versions.last().unwrap();
                let mut next = before.clone();
                prop_assert!(next.0.is_same(&before.0), "a clone shares all");
                step.apply(&mut next);
                prop_assert_eq!(next.0.check_invariants(), Ok(()), "{:?}", step);
                let replaced = UnsharedParts::find(&before.0.parts, &next.0.parts).before.len();
                prop_assert!(step.most_replaced_parts().is_none_or(|most| replaced <= most), "{:?}: {} parts", step, replaced);
                versions.push(next);
            }
            for (map, plain) in &versions {
                prop_assert!(map.iter().eq(plain), "a change leaves clones alone");
                prop_assert!(map.keys().eq(plain.keys()) && map.values().eq(plain.values()));
                for (before, plain_before) in &versions {
                    let told = map.changes_since(before).filter(|(_, old, new)| old != new);
                    let told: Vec<_> = told.map(|(key, old, new)| (*key, old.copied(), new.copied())).collect();
                    prop_assert_eq!(told, differences(plain_before, plain));
                    prop_assert_eq!(map == before, plain == plain_before);
                }
            }
        }

        /// What is saved is read back, and has no more parts than it needs.
        #[test]
        fn a_map_survives_its_json(entries in prop::collection::btree_map(any::<u16>(), any::<u8>(), 0..400)) {
            let map: SharedMap<u16, u8> = entries.clone().into_iter().collect();
            let text = serde_json::to_string(&map).unwrap();
            prop_assert_eq!(&text, &serde_json::to_string(&entries).unwrap());
            let read: SharedMap<u16, u8> = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read.parts.len(), entries.len().div_ceil(LARGEST));
            prop_assert_eq!(read, map);
        }
    }

    #[test]
    fn a_change_copies_one_part() {
        let before: SharedMap<u32, u32> = (0..10_000).map(|number| (number, 0)).collect();
        let mut after = before.clone();
        assert!(after.is_same(&before) && after.changes_since(&before).next().is_none());
        *after.get_mut(&5_000).unwrap() = 1;
        assert!(after.changes_since(&before).count() <= LARGEST);
        assert_eq!(after.changes_since(&before).find(|(_, old, new)| old != new), Some((&5_000, Some(&0), Some(&1))));
        assert_eq!(after.get_mut(&10_000), None);
        after.retain(|number, _| number % 1_000 == 0);
        assert_eq!(after.keys().count(), 10);
        assert_eq!(after.check_invariants(), Ok(()));
    }
}
