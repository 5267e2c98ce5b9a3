//! The value of each key that counts. Nearly always it is the key's own, which the service has already, so only the others are kept
//! here. Pure.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use discovery::{Entry, Service};

/// The keys of one service whose own value doesn't count.
#[derive(Clone, Debug, Default)]
pub(super) struct GoodValues {
    unused: BTreeSet<String>,
    /// By such a key, the earlier value that counts instead.
    earlier: BTreeMap<String, String>,
}

impl GoodValues {
    /// Notes that the key's own value doesn't count.
    pub(super) fn mark_unused(&mut self, key: &str) {
        self.unused.insert(key.to_owned());
    }

    /// Notes the earlier value of a key whose own value doesn't count.
    pub(super) fn insert_earlier(&mut self, key: &str, value: String) {
        self.earlier.insert(key.to_owned(), value);
    }

    /// True if some value of the key counts. `key` is one of the service's.
    pub(super) fn has_value(&self, key: &str) -> bool {
        !self.unused.contains(key) || self.earlier.contains_key(key)
    }

    /// All values that count, by key. `source` has the keys from which these values were read.
    pub(super) fn collect(&self, source: &Service) -> BTreeMap<String, String> {
        let own = source.effective_entries().filter(|entry| !self.unused.contains(&entry.key));
        let own = own.map(|entry| (entry.key.clone(), own_text(entry).into_owned()));
        own.chain(self.earlier.clone()).collect()
    }
}

/// The values that counted when a service was read last.
#[derive(Clone, Copy, Debug)]
pub(super) enum LastGood<'a> {
    /// The service was not read before.
    Nothing,
    /// A previous process of confgen read it.
    Persisted(&'a BTreeMap<String, String>),
    /// This process read it from these keys.
    Read(&'a Service, &'a GoodValues),
}

impl<'a> LastGood<'a> {
    /// The value of the key that counted. `None` if none did.
    pub(super) fn find(self, key: &str) -> Option<Cow<'a, str>> {
        match self {
            Self::Nothing => None,
            Self::Persisted(values) => values.get(key).map(|text| Cow::Borrowed(text.as_str())),
            Self::Read(_, values) if values.unused.contains(key) => {
                values.earlier.get(key).map(|text| Cow::Borrowed(text.as_str()))
            }
            Self::Read(source, _) => source.effective_entry(key).map(own_text),
        }
    }
}

fn own_text(entry: &Entry) -> Cow<'_, str> {
    String::from_utf8_lossy(&entry.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::tests::topology;

    #[test]
    fn the_value_that_counts_is_the_keys_own_an_earlier_one_or_none() {
        let [domain, legacy, bad, gone] = [
            "http-services/a/domain",
            "services/a/domain",
            "http-services/a/upstreams/1",
            "http-services/a/upstreams/2",
        ];
        let store = topology(&format!("{domain} a.test\n {legacy} old.test\n {bad} nonsense\n {gone} nonsense"));
        let service = store.services().values().next().unwrap();
        let mut values = GoodValues::default();
        [bad, gone].iter().for_each(|key| values.mark_unused(key));
        values.insert_earlier(bad, "10.0.0.1:80".into());
        let all = values.collect(service);
        assert_eq!(all, [(domain.into(), "a.test".into()), (bad.into(), "10.0.0.1:80".into())].into());
        for last in [LastGood::Read(service, &values), LastGood::Persisted(&all)] {
            let found = [domain, legacy, bad, gone].map(|key| last.find(key).map(Cow::into_owned));
            assert_eq!(found, [Some("a.test".into()), None, Some("10.0.0.1:80".into()), None], "{last:?}");
        }
        assert_eq!([domain, bad, gone].map(|key| values.has_value(key)), [true, true, false]);
        assert_eq!(LastGood::Nothing.find(domain), None);
    }
}
