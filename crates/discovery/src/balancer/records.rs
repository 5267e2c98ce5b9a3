//! The records of all live balancers, for programs that wait until every balancer agrees.
//!
//! It follows records, and never waits itself. Pure: no I/O, no clock.

use std::collections::BTreeMap;

use crate::{BalancerRecord, Change, Entry, Key, Node, Snapshot};

/// The most balancers whose records are kept. A writer of `balancers/` could fill an announcer's memory otherwise.
const MAX_BALANCERS: usize = 1_000;

/// The balancers that have a record. Each record has its confgen's lease, so that a dead balancer isn't waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BalancerRecords {
    cluster: u64,
    /// `None` is a record that can't be parsed. It agrees to nothing.
    nodes: BTreeMap<Node, Option<BalancerRecord>>,
    left_out: LeftOut,
}

/// The balancers beyond [`MAX_BALANCERS`]. They agree to nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct LeftOut {
    count: usize,
    /// The last one. `None` if all are kept.
    last: Option<Node>,
}

impl LeftOut {
    fn add(&mut self, node: Node) {
        *self = Self { count: self.count + 1, last: Some(node) };
    }

    fn remove_one(&mut self) {
        self.count = self.count.saturating_sub(1);
        if self.count == 0 {
            self.last = None;
        }
    }
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
        let mut records = Self { cluster: snapshot.cluster, ..Self::default() };
        snapshot.entries.iter().for_each(|entry| records.set_record(entry, true));
        records
    }

    /// Applies one event of the watch.
    pub fn apply_change(&mut self, change: &Change) {
        match change {
            Change::Put(entry) => self.set_record(entry, entry.create_revision == entry.mod_revision),
            Change::Delete { key, .. } => {
                if let Ok(Key::Balancer(node)) = key.parse()
                    && self.nodes.remove(&node).is_none()
                {
                    self.left_out.remove_one();
                }
            }
        }
    }

    /// `is_new`: the key was not there before.
    fn set_record(&mut self, entry: &Entry, is_new: bool) {
        let Ok(Key::Balancer(node)) = entry.key.parse() else { return };
        // An unreadable record still belongs to a balancer that runs, so callers must wait for it.
        let record = BalancerRecord::parse(&entry.value).ok();
        if self.nodes.len() < MAX_BALANCERS || self.nodes.contains_key(&node) {
            self.nodes.insert(node, record);
            return;
        }
        // One unreadable record is as good as many.
        let unreadable = self.nodes.iter().find(|(_, kept)| kept.is_none()).map(|(node, _)| node.clone());
        match unreadable.filter(|_| record.is_some()) {
            Some(unreadable) => {
                self.nodes.remove(&unreadable);
                self.left_out.add(unreadable);
                self.nodes.insert(node, record);
            }
            None if is_new => self.left_out.add(node),
            None => {}
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

    /// All balancers, but at most one beyond the first thousand. `None` is a record that can't be parsed, or that one.
    pub fn records_by_node(&self) -> impl Iterator<Item = (&Node, Option<&BalancerRecord>)> {
        let kept = self.nodes.iter().map(|(node, record)| (node, record.as_ref()));
        kept.chain(self.left_out.last.iter().map(|node| (node, None)))
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
    fn of_too_many_balancers_the_readable_ones_are_kept_and_the_others_agree_to_nothing() {
        let garbage = (0..MAX_BALANCERS + 50).map(|at| entry(&format!("balancers/garbage{at:05}"), "?"));
        let entries = garbage.chain([entry("balancers/lb1", FOLLOWS)]).collect::<Vec<_>>();
        let keys: Vec<String> = entries.iter().map(|entry| entry.key.clone()).collect();
        let mut balancers =
            BalancerRecords::from_snapshot(&Snapshot { cluster: 7, revision: 9, raft_term: 1, entries });
        assert_eq!(balancers.records_by_node().count(), MAX_BALANCERS + 1);
        assert!(balancers.records_by_node().any(|(node, record)| node.as_str() == "lb1" && record.is_some()));
        assert_eq!(balancers.disagreeing_nodes(|_| true).len(), MAX_BALANCERS);
        for key in &keys[..keys.len() - 1] {
            balancers.apply_change(&Change::Delete { key: key.clone(), revision: 10, previous: None });
        }
        assert!(balancers.disagreeing_nodes(|_| true).is_empty() && !balancers.is_empty());
    }

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
