//! The upstreams' records that count. Nearly always they are the keys' own, which the service has already, so only the others are
//! kept here. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use discovery::{ParsedEntry, Service, Upstream, UpstreamId};

/// The records of one service that count.
#[derive(Clone, Debug)]
pub(super) struct GoodRecords {
    source: Arc<Service>,
    /// The upstreams whose own record doesn't count, with the earlier one that counts instead. Without room for 35,000 upstreams, as
    /// many have none.
    replaced: BTreeMap<UpstreamId, Option<Box<Upstream>>>,
    count: usize,
}

impl GoodRecords {
    /// The service's own records, as far as they can be parsed.
    pub(super) fn new(source: Arc<Service>) -> Self {
        let mut records = Self { source, replaced: BTreeMap::new(), count: 0 };
        records.count = records.iter().count();
        records
    }

    /// Notes that the own record of an upstream doesn't count, and the earlier one that counts instead. `None` if there is none.
    pub(super) fn replace(&mut self, id: &UpstreamId, earlier: Option<Upstream>) {
        self.count -= usize::from(self.contains(id));
        self.count += usize::from(earlier.is_some());
        self.replaced.insert(id.clone(), earlier.map(Box::new));
    }

    /// The records by the upstream's id.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&UpstreamId, &Upstream)> {
        self.source.upstreams().filter_map(|(id, own)| Some((id, self.choose(id, own)?)))
    }

    /// The record of one upstream. `None` if none counts.
    pub(super) fn get(&self, id: &UpstreamId) -> Option<&Upstream> {
        self.choose(id, self.source.upstream(id)?)
    }

    /// True if the upstream has a record that counts.
    pub(super) fn contains(&self, id: &UpstreamId) -> bool {
        self.get(id).is_some()
    }

    /// The number of upstreams with a record that counts.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    fn choose<'a>(&'a self, id: &UpstreamId, own: &'a ParsedEntry<Upstream>) -> Option<&'a Upstream> {
        match self.replaced.get(id) {
            Some(earlier) => earlier.as_deref(),
            None => own.value.as_ref().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::tests::topology;

    #[test]
    fn an_earlier_record_counts_instead_of_a_bad_one() {
        let store = topology(
            "http-services/a/upstreams/1 10.0.0.1:80\n http-services/a/upstreams/2 bad\n http-services/a/upstreams/3 10.0.0.3:80",
        );
        let [one, two, three] = ["1", "2", "3"].map(|id| id.parse::<UpstreamId>().unwrap());
        let mut records = GoodRecords::new(Arc::clone(store.services().values().next().unwrap()));
        let names = |records: &GoodRecords| records.iter().map(|(id, _)| id.to_string()).collect::<Vec<_>>();
        assert_eq!((names(&records), records.len()), (vec!["1".to_owned(), "3".to_owned()], 2));
        let earlier = Upstream::parse(b"10.0.0.9:80").unwrap();
        records.replace(&two, Some(earlier.clone()));
        records.replace(&three, None);
        assert_eq!((names(&records), records.len()), (vec!["1".to_owned(), "2".to_owned()], 2));
        assert_eq!(records.get(&two), Some(&earlier));
        assert!(records.contains(&one) && !records.contains(&three));
        records.replace(&two, None);
        assert_eq!((names(&records), records.len()), (vec!["1".to_owned()], 1));
    }
}
