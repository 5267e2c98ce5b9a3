//! What a recorder has seen so far. Pure: no I/O.

use std::collections::BTreeSet;

use trace::Observation;

/// The most characters of a value that the checker doesn't read. `Etcd::fill` writes some megabytes.
const VALUE_LIMIT: usize = 200;

/// The observations, and what the watch needs to go on.
#[derive(Default)]
pub(crate) struct Record {
    observations: Vec<Observation>,
    stops: Vec<PlacedStop>,
    /// The stops whose place is being found.
    pub(crate) stops_under_way: usize,
    /// The polite stops without a place: the store didn't answer, or was another one.
    pub(crate) left_out: usize,
    /// The listings so far.
    pub(crate) listings: usize,
    /// The store's cluster id, as of the last listing.
    pub(crate) cluster: u64,
    /// The newest revision of a listing or event.
    pub(crate) revision: i64,
    /// The keys that are there at `revision`.
    keys: BTreeSet<String>,
    /// True if the watch can't resume, whatever the store's id and revision.
    pub(crate) must_list: bool,
}

/// A stop, which may become known before the events that led to it.
struct PlacedStop {
    /// The number of listings before it.
    listings: usize,
    revision: i64,
    observations: Vec<Observation>,
}

/// The state of the store at a revision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    /// The listings before the store was read.
    pub(crate) listings: usize,
    pub(crate) cluster: u64,
    pub(crate) revision: i64,
    /// The newest revision of a key that is there.
    pub(crate) newest: i64,
    /// The number of keys.
    pub(crate) keys: usize,
}

impl Record {
    /// Begins anew with a listing. Its keys follow by [`put`](Self::put).
    pub(crate) fn list(&mut self, cluster: u64, revision: i64) {
        (self.listings, self.cluster, self.revision) = (self.listings + 1, cluster, revision);
        (self.must_list, self.keys) = (false, BTreeSet::new());
        self.observations.push(Observation::Listing { cluster: cluster.to_string(), revision });
    }

    pub(crate) fn put(&mut self, key: String, value: &[u8], revision: i64, lease: i64) {
        self.revision = self.revision.max(revision);
        self.keys.insert(key.clone());
        let mut value = String::from_utf8_lossy(value).into_owned();
        let is_read = key.starts_with("balancers/") || key.contains("/upstreams/");
        if let Some((end, _)) = value.char_indices().nth(VALUE_LIMIT).filter(|_| !is_read) {
            value.truncate(end);
            value.push('…');
        }
        self.observations.push(Observation::Put { revision, key, value, lease });
    }

    pub(crate) fn delete(&mut self, key: String, revision: i64) {
        self.revision = self.revision.max(revision);
        self.keys.remove(&key);
        self.observations.push(Observation::Delete { revision, key });
    }

    /// True once all events up to this position are here. `None` if they never come: the store was listed anew, or is
    /// another one.
    pub(crate) fn has_reached(&self, position: Position) -> Option<bool> {
        if self.listings != position.listings || self.cluster != position.cluster {
            return None;
        }
        let has_all = self.revision >= position.newest && self.keys.len() == position.keys;
        Some(self.revision > position.revision || has_all)
    }

    /// Adds a stop with what was observed at once after it.
    pub(crate) fn add_stop(&mut self, position: Position, observations: Vec<Observation>) {
        let Position { listings, revision, .. } = position;
        self.stops.push(PlacedStop { listings, revision, observations });
    }

    /// All observations. A stop comes after the events up to its revision, and before all later ones.
    pub(crate) fn to_trace(&self) -> Vec<Observation> {
        let mut stops: Vec<&PlacedStop> = self.stops.iter().collect();
        stops.sort_by_key(|stop| (stop.listings, stop.revision));
        let mut stops = stops.into_iter().peekable();
        let (mut trace, mut listings) = (Vec::new(), 0);
        for observation in &self.observations {
            let (is_listing, revision) = match observation {
                Observation::Listing { revision, .. } => (true, *revision),
                Observation::Put { revision, .. } | Observation::Delete { revision, .. } => (false, *revision),
                Observation::Stop { .. } | Observation::Old { .. } => (false, 0),
            };
            let is_before = |stop: &&PlacedStop| match is_listing {
                true => stop.listings <= listings,
                false => stop.listings == listings && stop.revision < revision,
            };
            while let Some(stop) = stops.next_if(is_before) {
                trace.extend_from_slice(&stop.observations);
            }
            listings += usize::from(is_listing);
            trace.push(observation.clone());
        }
        stops.for_each(|stop| trace.extend_from_slice(&stop.observations));
        trace
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_stands_between_the_events_that_it_follows_and_the_next() {
        let mut record = Record::default();
        record.list(7, 1);
        record.put("a".to_owned(), b"", 2, 0);
        let position = Position { listings: 1, cluster: 7, revision: 3, newest: 3, keys: 1 };
        assert_eq!(record.has_reached(position), Some(false));
        let stop = Observation::Stop { address: "10.0.0.1:80".to_owned(), revision: 3 };
        record.add_stop(position, vec![stop.clone()]);
        record.put("a".to_owned(), b"", 3, 0);
        assert_eq!(record.has_reached(position), Some(true));
        record.delete("a".to_owned(), 4);
        assert_eq!(record.has_reached(position), Some(true), "a later event comes after it");
        assert_eq!(record.to_trace().iter().position(|it| *it == stop), Some(3));
        record.list(7, 1);
        assert_eq!(record.has_reached(position), None);
        record.put("b".to_owned(), b"", 2, 0);
        assert_eq!(record.to_trace().iter().position(|it| *it == stop), Some(3));
        let last = Position { listings: 2, revision: 2, ..position };
        record.add_stop(last, vec![stop.clone()]);
        assert_eq!(record.to_trace().last(), Some(&stop));
    }

    #[test]
    fn a_deletion_that_is_on_its_way_shows_by_the_number_of_keys() {
        let mut record = Record::default();
        record.list(7, 1);
        record.put("a".to_owned(), b"", 2, 0);
        let position = Position { listings: 1, cluster: 7, revision: 3, newest: 2, keys: 0 };
        assert_eq!(record.has_reached(position), Some(false));
        record.delete("a".to_owned(), 3);
        assert_eq!(record.has_reached(position), Some(true));
    }

    #[test]
    fn a_long_value_is_cut_unless_the_checker_reads_it() {
        let mut record = Record::default();
        record.put("filler/1".to_owned(), &[b'x'; 999], 2, 0);
        record.put("balancers/lb1".to_owned(), &[b'x'; 999], 3, 0);
        let length = |at: usize| record.observations[at].to_string().len();
        assert!(length(0) < 400 && length(1) > 999);
    }
}
