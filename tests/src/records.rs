//! What becomes of records: when they were written, which lease they hang on, which were deleted.

use std::collections::BTreeMap;

use etcd_client::{Error, EventType, GetOptions, KeyValue, WatchOptions};

use crate::Etcd;
use crate::etcd::absolute;

/// A key that stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The revision at which it came.
    pub created: i64,
    /// The revision at which it was last written.
    pub written: i64,
    /// The lease that it hangs on; 0 is none.
    pub lease: i64,
}

impl Etcd {
    /// All keys that start with `below`, absolute.
    pub fn records(&self, below: &str) -> BTreeMap<String, Record> {
        let options = GetOptions::new().with_prefix();
        let below = absolute(below);
        let found = self.ask(async move |mut client| client.get(below, Some(options)).await);
        let record = |entry: &KeyValue| {
            let record =
                Record { created: entry.create_revision(), written: entry.mod_revision(), lease: entry.lease() };
            (String::from_utf8_lossy(entry.key()).into_owned(), record)
        };
        found.kvs().iter().map(record).collect()
    }

    /// The seconds that each of these leases will live without a renewal; below 0 where it has ended.
    ///
    /// # Errors
    /// While there is no leader.
    pub fn remaining(&self, leases: &[i64]) -> Result<Vec<i64>, Error> {
        let leases = leases.to_vec();
        self.try_ask(async move |client| {
            let mut remaining = Vec::new();
            for lease in leases {
                remaining.push(client.lease_client().time_to_live(lease, None).await?.ttl());
            }
            Ok(remaining)
        })
    }

    /// All deletions of keys that start with `below`, absolute, in order, whoever or whatever lease was behind them: from
    /// one revision to another, at which a key below was written or deleted.
    ///
    /// # Panics
    /// Where that history was compacted.
    pub fn deletions(&self, below: &str, from: i64, to: i64) -> Vec<String> {
        let options = WatchOptions::new().with_prefix().with_start_revision(from);
        let below = absolute(below);
        self.ask(async move |mut client| {
            let mut stream = client.watch(below, Some(options)).await?;
            let (mut deleted, mut reached) = (Vec::new(), 0);
            while reached < to {
                let message = stream.message().await?.expect("the watch goes on");
                assert!(!message.canceled(), "the watch was ended: {}", message.cancel_reason());
                for event in message.events() {
                    let key = event.kv().expect("an event's key");
                    reached = key.mod_revision();
                    if event.event_type() == EventType::Delete {
                        deleted.push(String::from_utf8_lossy(key.key()).into_owned());
                    }
                }
            }
            Ok(deleted)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PREFIX;

    #[test]
    fn a_deletion_shows_however_it_came() {
        let etcd = Etcd::start();
        let lease = etcd.grant(60);
        etcd.put_leased("balancers/a", "{}", lease);
        etcd.put("balancers/b", "{}");
        let a = etcd.records("balancers/")[&format!("{PREFIX}balancers/a")];
        assert_eq!((a.lease, a.created), (lease, a.written));
        assert!((1..=60).contains(&etcd.remaining(&[lease]).unwrap()[0]));
        etcd.revoke(lease);
        assert_eq!(etcd.remaining(&[lease]).unwrap(), [-1]);
        etcd.delete("balancers/b");
        let end = etcd.put("balancers/b", "{}");
        let both = ["a", "b"].map(|name| format!("{PREFIX}balancers/{name}"));
        assert_eq!(etcd.deletions("balancers/", a.created, end), both);
        assert_eq!(etcd.deletions("balancers/", end, end), Vec::<String>::new());
    }
}
