//! The records of all live balancers, for programs that wait until every balancer agrees.
//!
//! It follows records, and never waits itself. Pure: no I/O, no clock.

use std::collections::BTreeMap;

use crate::{BalancerRecord, Change, Entry, Key, Node, Snapshot};

/// The balancers that have a record. Each record has its confgen's lease, so that a dead balancer isn't waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BalancerRecords {
    cluster: u64,
    /// `None` is a record that can't be parsed. It agrees to nothing.
    nodes: BTreeMap<Node, Option<BalancerRecord>>,
}

/// A key that a balancer doesn't apply.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QuarantinedKey {
    /// The balancer's name.
    pub node: Node,
    /// The key, relative to the prefix.
    pub key: String,
    /// The reason, in the balancer's words.
    pub reason: String,
}

impl BalancerRecords {
    /// The records of a listing. Other keys are ignored.
    pub fn from_snapshot(snapshot: &Snapshot) -> Self {
        let mut records = Self { cluster: snapshot.cluster, nodes: BTreeMap::new() };
        snapshot.entries.iter().for_each(|entry| records.set_record(entry));
        records
    }

    /// Applies one event of the watch.
    pub fn apply_change(&mut self, change: &Change) {
        match change {
            Change::Put(entry) => self.set_record(entry),
            Change::Delete { key, .. } => {
                if let Ok(Key::Balancer(node)) = key.parse() {
                    self.nodes.remove(&node);
                }
            }
        }
    }

    fn set_record(&mut self, entry: &Entry) {
        if let Ok(Key::Balancer(node)) = entry.key.parse() {
            // An unreadable record still belongs to a balancer that runs, so callers must wait for it.
            self.nodes.insert(node, BalancerRecord::parse(&entry.value).ok());
        }
    }

    /// The cluster id of the listing's store.
    pub fn cluster_id(&self) -> u64 {
        self.cluster
    }

    /// True if no balancer has a record.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// All balancers. `None` is a record that can't be parsed.
    pub fn records_by_node(&self) -> impl Iterator<Item = (&Node, Option<&BalancerRecord>)> {
        self.nodes.iter().map(|(node, record)| (node, record.as_ref()))
    }

    /// The balancers with a record that `agrees` is false for, or that can't be parsed.
    pub fn disagreeing_nodes(&self, agrees: impl Fn(&BalancerRecord) -> bool) -> Vec<&Node> {
        let disagreeing = self.records_by_node().filter(|(_, record)| !record.is_some_and(&agrees));
        disagreeing.map(|(node, _)| node).collect()
    }

    /// The given keys that a balancer lists as quarantined, once for each such balancer.
    pub fn quarantined_keys<'a>(&'a self, keys: &'a [String]) -> impl Iterator<Item = QuarantinedKey> + 'a {
        let records = self.records_by_node().filter_map(|(node, record)| Some((node, record?)));
        records.flat_map(move |(node, record)| keys.iter().filter_map(move |key| quarantined_key(node, record, key)))
    }
}

fn quarantined_key(node: &Node, record: &BalancerRecord, key: &str) -> Option<QuarantinedKey> {
    let reason = record.quarantine_reason(key)?.to_owned();
    Some(QuarantinedKey { node: node.clone(), key: key.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str) -> Entry {
        Entry { key: key.into(), value: value.into(), create_revision: 1, mod_revision: 1, lease: 7 }
    }

    const FOLLOWS: &str = r#"{"cluster":"7","applied":10,"pending":[],"held":[],"draining":{}}"#;

    #[test]
    fn garbage_agrees_to_nothing_and_a_key_that_goes_is_not_waited_for() {
        let entries = vec![entry("balancers/fine", FOLLOWS), entry("balancers/mad", "?"), entry("balancers/x/y", "?")];
        let mut balancers =
            BalancerRecords::from_snapshot(&Snapshot { cluster: 7, revision: 9, raft_term: 1, entries });
        let service = "http-services/shop/domain".parse::<Key>().unwrap().service_id().unwrap().clone();
        let missing = |balancers: &BalancerRecords, revision| -> Vec<String> {
            let missing =
                balancers.disagreeing_nodes(|it| it.has_applied_service(balancers.cluster_id(), revision, &service));
            missing.into_iter().map(ToString::to_string).collect()
        };
        assert_eq!(missing(&balancers, 10), ["mad"]);
        assert_eq!(missing(&balancers, 11), ["fine", "mad"]);
        balancers.apply_change(&Change::Put(entry("balancers/mad", &FOLLOWS.replace("[]", "[\"http-shop\"]"))));
        assert_eq!(missing(&balancers, 10), ["mad"]);
        balancers.apply_change(&Change::Delete { key: "balancers/mad".into(), revision: 11, previous: None });
        assert!(missing(&balancers, 10).is_empty() && !balancers.is_empty());
    }
}
