//! What all live balancers say of themselves: who is waited for.

use std::collections::BTreeMap;

use crate::{BalancerRecord, Change, Entry, Key, Node, Snapshot};

/// The balancers that have a key, which hangs on their lease: a balancer without one isn't waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BalancerRecords {
    cluster: u64,
    /// None: it says nothing that makes sense, and agrees to nothing.
    nodes: BTreeMap<Node, Option<BalancerRecord>>,
}

/// A key that a balancer doesn't follow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QuarantinedKey {
    /// The balancer.
    pub node: Node,
    /// The key, relative to the prefix.
    pub key: String,
    /// The balancer's word for it.
    pub reason: String,
}

impl BalancerRecords {
    /// Those of a listing; its other keys say nothing here.
    pub fn from_snapshot(snapshot: &Snapshot) -> Self {
        let mut balancers = Self { cluster: snapshot.cluster, nodes: BTreeMap::new() };
        snapshot.entries.iter().for_each(|entry| balancers.set_record(entry));
        balancers
    }

    /// Takes one event of the watch in.
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
            self.nodes.insert(node, BalancerRecord::parse(&entry.value).ok());
        }
    }

    /// The store that they are asked about.
    pub fn cluster_id(&self) -> u64 {
        self.cluster
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// All of them; None says nothing that makes sense.
    pub fn records_by_node(&self) -> impl Iterator<Item = (&Node, Option<&BalancerRecord>)> {
        self.nodes.iter().map(|(node, balancer)| (node, balancer.as_ref()))
    }

    /// Those that don't agree.
    pub fn disagreeing_nodes(&self, agrees: impl Fn(&BalancerRecord) -> bool) -> Vec<&Node> {
        let missing = self.records_by_node().filter(|(_, balancer)| !balancer.is_some_and(&agrees));
        missing.map(|(node, _)| node).collect()
    }

    /// Which of these keys are refused, by whom and why.
    pub fn quarantined_keys<'a>(&'a self, keys: &'a [String]) -> impl Iterator<Item = QuarantinedKey> + 'a {
        let balancers = self.records_by_node().filter_map(|(node, balancer)| Some((node, balancer?)));
        balancers.flat_map(move |(node, balancer)| {
            let of = move |key: &'a String| Some((key, balancer.quarantine_reason(key)?));
            keys.iter().filter_map(of).map(move |(key, reason)| QuarantinedKey {
                node: node.clone(),
                key: key.clone(),
                reason: reason.to_owned(),
            })
        })
    }
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
