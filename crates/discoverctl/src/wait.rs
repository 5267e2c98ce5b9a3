//! Waits until every live balancer follows a write.
//!
//! Reads the balancers' records only. It decides on them alone, and asks no balancer's API.

use std::collections::BTreeSet;
use std::time::Duration;

use discovery::{BalancerRecord, BalancerRecords, Key, Node, QuarantinedKey, ServiceId, UpstreamId};
use registry::{Client, Event, FollowOptions};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::progress::Progress;

/// The interval at which the progress line is offered again. The first line is due after 2 s without any event.
const MESSAGE_INTERVAL: Duration = Duration::from_millis(500);

/// The error about a balancer that isn't there any more.
const VANISHED: &str = "vanished before it followed: its key is gone, and its HAProxy may still send requests";

/// The condition that all live balancers must meet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FollowGoal {
    pub(crate) revision: i64,
    /// The services that the write is about.
    pub(crate) services: BTreeSet<ServiceId>,
    /// The upstreams on which no request may be open.
    pub(crate) drained: BTreeSet<(ServiceId, UpstreamId)>,
    /// The keys that no balancer may refuse, relative to the prefix.
    pub(crate) keys: Vec<String>,
    /// No balancer may retain keys or upstreams, after a reset or by the removal guard.
    pub(crate) releases_retained: bool,
    /// A balancer whose key vanishes during the wait must have met the goal before.
    pub(crate) needs_vanished: bool,
}

/// The balancers that follow, and the time until they did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Followed {
    /// Empty if no balancer lives.
    pub(crate) by: Vec<Node>,
    /// The time since the write.
    pub(crate) took: Duration,
}

impl FollowGoal {
    /// The balancer meets the goal, as far as its record says.
    fn is_met_by(&self, cluster: u64, balancer: &BalancerRecord) -> bool {
        self.services.iter().all(|service| balancer.has_applied_service(cluster, self.revision, service))
            && self
                .drained
                .iter()
                .all(|(service, id)| balancer.acknowledges_upstream(cluster, self.revision, service, id))
            // A cut list may lack a refused key, so its silence proves nothing.
            && !self.keys.iter().any(|key| balancer.may_omit_quarantine(key))
            && (!self.releases_retained || self.has_released(cluster, balancer))
    }

    /// The balancer knows the revision, and retains nothing that the store lacks.
    fn has_released(&self, cluster: u64, balancer: &BalancerRecord) -> bool {
        // `seen` of an older confgen says only that it received the revision. `applied` says that HAProxy follows.
        let reached = if balancer.lost.is_some() { balancer.applied } else { balancer.seen };
        balancer.cluster == cluster && reached >= self.revision && !balancer.retains_anything()
    }

    /// The refused keys, of balancers that have applied the write. A reason from before it may be outdated.
    fn find_refused(&self, balancers: &BalancerRecords) -> Vec<QuarantinedKey> {
        let mut refused: Vec<QuarantinedKey> = balancers.quarantined_keys(&self.keys).collect();
        refused.retain(|it| find_record(balancers, &it.node).is_some_and(|record| record.applied >= self.revision));
        refused
    }

    /// Describes the state of the wait in one line.
    fn describe_progress(&self, balancers: &BalancerRecords) -> String {
        let missing = self.describe_missing(balancers);
        if self.drained.len() < 2 {
            return format!("waiting for {missing}");
        }
        let cluster = balancers.cluster_id();
        let is_drained = |(service, id): &&(ServiceId, UpstreamId)| {
            let agrees = |record: &BalancerRecord| record.acknowledges_upstream(cluster, self.revision, service, id);
            balancers.disagreeing_nodes(agrees).is_empty()
        };
        let drained = self.drained.iter().filter(is_drained).count();
        format!("{drained} of {} upstreams drained, waiting for {missing}", self.drained.len())
    }

    /// Notes which balancers have not met the goal since they were first seen.
    fn update_owing(&self, owing: &mut BTreeSet<Node>, balancers: &BalancerRecords) {
        let cluster = balancers.cluster_id();
        for (node, record) in balancers.records_by_node() {
            if record.is_some_and(|record| self.is_met_by(cluster, record)) {
                owing.remove(node);
            } else {
                owing.insert(node.clone());
            }
        }
    }

    /// Describes the balancers that don't follow yet, in one line.
    fn describe_missing(&self, balancers: &BalancerRecords) -> String {
        let cluster = balancers.cluster_id();
        let mut missing = Vec::new();
        for node in balancers.disagreeing_nodes(|balancer| self.is_met_by(cluster, balancer)) {
            missing.push(match self.find_obstacle(cluster, find_record(balancers, node)) {
                Some(obstacle) => format!("{node} ({obstacle})"),
                None => node.to_string(),
            });
        }
        missing.join(", ")
    }

    /// The reason why a balancer doesn't follow, as far as its record says.
    fn find_obstacle(&self, cluster: u64, record: Option<&BalancerRecord>) -> Option<String> {
        let Some(record) = record else { return Some("its key says nothing that makes sense".into()) };
        if record.cluster != cluster {
            return Some("it follows another store".into());
        }
        if let Some(service) = self.services.iter().find(|service| record.pending.contains(&service.to_string())) {
            return Some(format!("{service} waits for a restart"));
        }
        if self.releases_retained && record.retains_anything() && !record.retains_lost_keys() {
            return Some(format!("it retains {} upstreams", record.guarded.unwrap_or_default()));
        }
        if self.releases_retained && record.retains_lost_keys() {
            let keys = record.lost.map(|lost| format!("it retains {} keys", lost.keys));
            return Some(keys.unwrap_or_else(|| format!("it retains {} upstreams", record.held.len())));
        }
        let servers = self.drained.iter().map(|(service, id)| BalancerRecord::server_name(service, id));
        let mut open = servers.filter_map(|server| Some((record.draining.get(&server)?, server)));
        if let Some((sessions, server)) = open.next() {
            let more = match open.count() {
                0 => String::new(),
                more => format!(", the first of {}", more + 1),
            };
            return Some(format!("{server} has {sessions} open{more}"));
        }
        if self.keys.iter().any(|key| record.may_omit_quarantine(key)) {
            return Some("it refuses more keys of the service than it can name".into());
        }
        (record.applied < self.revision).then(|| format!("at revision {}", record.applied))
    }
}

/// Finds a balancer's record; None if its value is invalid.
fn find_record<'a>(balancers: &'a BalancerRecords, node: &Node) -> Option<&'a BalancerRecord> {
    balancers.records_by_node().find(|(it, _)| *it == node).and_then(|(_, record)| record)
}

/// Waits until all live balancers meet the goal. Returns at once if there are none.
///
/// # Errors
/// [`Error::NotFollowed`] if a balancer refuses a key, [`Error::NotInTime`] after `patience`.
pub(crate) async fn wait_until_followed(
    client: &Client,
    goal: &FollowGoal,
    patience: Duration,
) -> Result<Followed, Error> {
    wait_with_records(client, goal, patience, &mut BalancerRecords::default()).await
}

/// Waits like [`wait_until_followed`]. At the end `balancers` are the balancers' records as they were last.
pub(crate) async fn wait_with_records(
    client: &Client,
    goal: &FollowGoal,
    patience: Duration,
    balancers: &mut BalancerRecords,
) -> Result<Followed, Error> {
    let (mut progress, end) = (Progress::new(), CancellationToken::new());
    let _ends_with_us = end.clone().drop_guard();
    let mut events = client.follow_folder(FollowOptions { folder: "balancers", ..FollowOptions::default() }, end);
    let deadline = Instant::now() + patience;
    let (mut has_listing, mut owing) = (false, BTreeSet::new());
    loop {
        // Before the first listing the wait is for etcd itself.
        progress.set_message(match has_listing {
            true => goal.describe_progress(balancers),
            false => "waiting for etcd".to_owned(),
        });
        let event = match timeout_at(deadline.min(Instant::now() + MESSAGE_INTERVAL), events.recv()).await {
            Ok(Some(event)) => event,
            // The progress line skips messages of the first 2 s, so it is set again.
            Err(_) if Instant::now() < deadline => continue,
            _ => {
                let missing = if has_listing { goal.describe_missing(balancers) } else { "etcd".to_owned() };
                return Err(Error::NotInTime { revision: goal.revision, waited: patience, missing });
            }
        };
        match event {
            Event::Snapshot(snapshot) => *balancers = BalancerRecords::from_snapshot(&snapshot),
            Event::Changes { changes, .. } => changes.iter().for_each(|change| balancers.apply_change(change)),
            // The write is done. etcd may be back before the deadline.
            Event::Disconnected { .. } => {
                has_listing = false;
                continue;
            }
        }
        has_listing = true;
        // Waiting doesn't end a refusal. Only another value does.
        if let Some(QuarantinedKey { node, key, reason }) = goal.find_refused(balancers).into_iter().next() {
            let refused = format!("{node} refuses {key}: {reason}");
            return Err(Error::NotFollowed { revision: goal.revision, refused });
        }
        goal.update_owing(&mut owing, balancers);
        let cluster = balancers.cluster_id();
        if balancers.disagreeing_nodes(|balancer| goal.is_met_by(cluster, balancer)).is_empty() {
            if let Some(node) = owing.first().filter(|_| goal.needs_vanished) {
                let refused = format!("{node} {VANISHED}");
                return Err(Error::NotFollowed { revision: goal.revision, refused });
            }
            let by = balancers.records_by_node().map(|(node, _)| node.clone()).collect();
            return Ok(Followed { by, took: progress.elapsed() });
        }
    }
}

/// The goal after a write of these keys.
pub(crate) fn goal_of_write(revision: i64, keys: impl IntoIterator<Item = String>) -> FollowGoal {
    let keys: Vec<String> = keys.into_iter().collect();
    let services = keys.iter().filter_map(|key| key.parse::<Key>().ok()?.service_id().cloned()).collect();
    FollowGoal { revision, services, keys, ..FollowGoal::default() }
}

#[cfg(test)]
mod tests {
    use discovery::{Entry, Snapshot};

    use super::*;

    fn balancers(value: &str) -> BalancerRecords {
        let (key, value) = ("balancers/lb1".into(), value.into());
        let entries = vec![Entry { key, value, create_revision: 1, mod_revision: 1, lease: 7 }];
        BalancerRecords::from_snapshot(&Snapshot { cluster: 7, revision: 9, raft_term: 1, entries })
    }

    #[test]
    fn the_progress_of_a_drain_counts_upstreams() {
        let mut goal = goal_of_write(10, ["http-services/shop/overrides/a".to_owned()]);
        let service = goal.services.first().unwrap().clone();
        for id in ["a", "b", "c"] {
            goal.drained.insert((service.clone(), id.parse().unwrap()));
        }
        let record =
            r#"{"cluster":"7","applied":10,"pending":[],"held":[],"draining":{"http-shop/a":3,"http-shop/c":0}}"#;
        assert_eq!(
            goal.describe_progress(&balancers(record)),
            "1 of 3 upstreams drained, waiting for lb1 (http-shop/a has 3 open, the first of 2)"
        );
    }

    #[test]
    fn a_balancer_that_vanishes_owes_its_answer() {
        let goal = goal_of_write(10, ["http-services/shop/overrides/a".to_owned()]);
        let record = |applied: i64| {
            balancers(&format!(r#"{{"cluster":"7","applied":{applied},"pending":[],"held":[],"draining":{{}}}}"#))
        };
        let mut owing = BTreeSet::new();
        goal.update_owing(&mut owing, &record(9));
        goal.update_owing(&mut owing, &BalancerRecords::default());
        assert_eq!(owing, ["lb1".parse().unwrap()].into(), "it is gone, and had not followed");
        goal.update_owing(&mut owing, &record(10));
        assert!(owing.is_empty());
    }

    #[test]
    fn what_is_waited_for_is_said() {
        let mut goal = goal_of_write(10, ["http-services/shop/overrides/a".to_owned()]);
        let service = goal.services.first().unwrap().clone();
        goal.drained.insert((service, "a".parse().unwrap()));
        let describe = |record: &str| goal.describe_missing(&balancers(record));
        let record = |applied: i64, pending: &str, draining: &str| {
            format!(
                r#"{{"cluster":"7","applied":{applied},"pending":[{pending}],"held":[],"draining":{{{draining}}}}}"#
            )
        };
        assert_eq!(describe(&record(10, "", "")), "");
        assert_eq!(describe(&record(9, "", "")), "lb1 (at revision 9)");
        assert_eq!(describe(&record(10, r#""http-shop""#, "")), "lb1 (http-shop waits for a restart)");
        assert_eq!(describe(&record(10, "", r#""http-shop/a":3"#)), "lb1 (http-shop/a has 3 open)");
        assert_eq!(describe(&record(10, "", "").replace('7', "8")), "lb1 (it follows another store)");
        assert_eq!(describe("?"), "lb1 (its key says nothing that makes sense)");
        let refuses =
            record(10, "", "").replacen('}', r#"},"quarantined":{"http-services/shop/overrides/a":"bad"}"#, 1);
        assert_eq!(goal.find_refused(&balancers(&refuses)).len(), 1);
        assert!(goal.find_refused(&balancers(&refuses.replace("10", "9"))).is_empty(), "it hasn't seen the new value");
    }
}
