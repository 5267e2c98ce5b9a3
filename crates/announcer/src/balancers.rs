//! The live balancers' records, followed in the store, and the balancers that have not confirmed a change. It writes
//! nothing.

pub(crate) mod key_status;
pub(crate) mod wait;

use discovery::{BalancerRecord, BalancerRecords, Key, Node, QuarantinedKey, ServiceId, UpstreamId};
use registry::{Client, Event, FollowOptions};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::registrar::Written;

/// Confirmation that the announcer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The balancer sends requests to our records and refuses none of them.
    Runs,
    /// The balancer sends no request to our records any more, and no session is open.
    Acknowledges,
}

/// Replica of `balancers/`, without its watch. Pure.
#[derive(Clone, Debug, Default)]
pub struct BalancerStates {
    all: BalancerRecords,
    /// False while the watch is interrupted.
    pub is_connected: bool,
    /// True after the first listing. From then on the missing balancers are known by name.
    pub was_connected: bool,
}

impl BalancerStates {
    /// Applies a change of the store. A listing replaces everything.
    pub fn apply_event(&mut self, event: Event) {
        self.is_connected = !matches!(event, Event::Disconnected { .. });
        self.was_connected |= self.is_connected;
        match event {
            Event::Snapshot(snapshot) => self.all = BalancerRecords::from_snapshot(&snapshot),
            Event::Changes { changes, .. } => changes.iter().for_each(|change| self.all.apply_change(change)),
            Event::Disconnected { .. } => {}
        }
    }

    /// True if no live balancer has a record.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Nodes that have not confirmed at least one of the records, sorted.
    pub fn list_unconfirmed(&self, question: Question, written: &Written) -> Vec<&str> {
        let nodes = self.all.disagreeing_nodes(|balancer| match question {
            Question::Runs => {
                written.our_names().all(|(service, id)| self.has_applied(balancer, written.revision, service, id))
            }
            // A deleted record needs a confirmation too: the balancer may still serve it.
            Question::Acknowledges => written.all_names().all(|(service, id)| {
                balancer.acknowledges_upstream(self.all.cluster_id(), written.revision, service, id)
            }),
        });
        nodes.into_iter().map(Node::as_str).collect()
    }

    /// True if the balancer serves the record and doesn't refuse it.
    fn has_applied(&self, balancer: &BalancerRecord, revision: i64, service: &ServiceId, id: &UpstreamId) -> bool {
        let key = Key::for_upstream(service, id).to_string();
        // A cut list of refusals may hide this record, so it counts as refused.
        let is_refused = balancer.quarantine_reason(&key).is_some() || balancer.may_omit_quarantine(&key);
        balancer.has_applied_upstream(self.all.cluster_id(), revision, service, id) && !is_refused
    }

    /// Refusals of these keys, with the balancer and its reason.
    pub fn list_refusals<'a>(&'a self, keys: &'a [String]) -> impl Iterator<Item = QuarantinedKey> + 'a {
        self.all.quarantined_keys(keys)
    }
}

/// Watch of `balancers/`. Dropping it ends the watch.
pub struct BalancerWatch {
    pub balancers: BalancerStates,
    events: mpsc::Receiver<Event>,
    /// True after the interruption was logged, so that each one is logged once.
    is_outage_logged: bool,
    _ends_with_us: DropGuard,
}

impl BalancerWatch {
    /// Starts to follow `balancers/`. The first listing is not applied yet.
    pub fn start(client: &Client) -> Self {
        let end = CancellationToken::new();
        // An agent that withdraws a host has one watch for each container.
        let options = FollowOptions { folder: "balancers", shares_stream: true, ..FollowOptions::default() };
        let events = client.follow_folder(options, end.clone());
        Self { balancers: BalancerStates::default(), events, is_outage_logged: false, _ends_with_us: end.drop_guard() }
    }

    /// Waits for the next event and applies it. Cancellation loses no event.
    pub(crate) async fn apply_next(&mut self) {
        // The channel ends only when the runtime shuts down.
        let Some(event) = self.events.recv().await else { return std::future::pending().await };
        if let Event::Disconnected { error, .. } = &event
            && !std::mem::replace(&mut self.is_outage_logged, true)
        {
            tracing::warn!(%error, "can't read the balancers' records, trying again");
        }
        self.balancers.apply_event(event);
        self.is_outage_logged &= !self.balancers.is_connected;
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use discovery::{Change, Snapshot};

    use super::*;
    use crate::record::tests::{entry, record_of};

    const ACKNOWLEDGED: &str = r#"{"cluster":"7","applied":10,"pending":[],"held":[],"draining":{}}"#;

    fn snapshot(values: &[(&str, &str)]) -> Event {
        let entries = values.iter().map(|(key, value)| entry(key, value, 1)).collect();
        Event::Snapshot(Snapshot { cluster: 7, revision: 9, raft_term: 1, entries })
    }

    fn reached(revision: i64) -> Written {
        let ours = [record_of("a", "10.0.0.1:80"), record_of("b", "10.0.0.2:80")].map(Arc::new).to_vec();
        Written { revision, ours, ..Written::default() }
    }

    fn missing(known: &BalancerStates, revision: i64) -> Vec<&str> {
        known.list_unconfirmed(Question::Acknowledges, &reached(revision))
    }

    #[test]
    fn every_balancer_has_to_acknowledge_every_record() {
        let mut known = BalancerStates::default();
        assert!(known.is_empty() && !known.is_connected);
        let draining = ACKNOWLEDGED.replace("{}", r#"{"http-shop/b":1}"#);
        known.apply_event(snapshot(&[
            ("balancers/fine", ACKNOWLEDGED),
            ("balancers/busy", &draining),
            ("balancers/mad", "?"),
            ("balancers/x/y", "no balancer"),
        ]));
        assert_eq!(missing(&known, 10), ["busy", "mad"]);
        assert_eq!(missing(&known, 11), ["busy", "fine", "mad"]);
        assert_eq!(known.list_unconfirmed(Question::Runs, &reached(10)), ["mad"], "a drain of before is no obstacle");
        let changes = vec![
            Change::Put(entry("balancers/busy", ACKNOWLEDGED, 1)),
            Change::Delete { key: "balancers/mad".to_owned(), revision: 11, previous: None },
        ];
        known.apply_event(Event::Changes { revision: 11, changes });
        assert!(missing(&known, 10).is_empty() && !known.is_empty());
    }

    #[test]
    fn a_balancer_that_refuses_the_record_sends_nothing_to_it() {
        let (a, domain) = ("http-services/shop/upstreams/a".to_owned(), "http-services/shop/domain".to_owned());
        let with = |key: &str| ACKNOWLEDGED.replacen('}', &format!(r#"}},"quarantined":{{"{key}":"why"}}"#), 1);
        let mut known = BalancerStates::default();
        known.apply_event(snapshot(&[
            ("balancers/fine", ACKNOWLEDGED),
            ("balancers/odd", &with(&domain)),
            ("balancers/other", &with("http-services/shop/upstreams/z")),
            ("balancers/strict", &with(&a)),
        ]));
        assert_eq!(known.list_unconfirmed(Question::Runs, &reached(10)), ["strict"]);
        assert!(missing(&known, 10).is_empty(), "there is nothing to drain");
        let cut = |service: &str| {
            ACKNOWLEDGED.replacen(
                '}',
                &format!(r#"}},"more":["quarantined"],"cut":{{"quarantined":["{service}"]}}"#),
                1,
            )
        };
        let mut silent = BalancerStates::default();
        silent.apply_event(snapshot(&[("balancers/a", &cut("http-shop")), ("balancers/b", &cut("http-other"))]));
        assert_eq!(
            silent.list_unconfirmed(Question::Runs, &reached(10)),
            ["a"],
            "it may refuse the record and not say so"
        );
        let refused: Vec<_> = known.list_refusals(&[a.clone(), domain.clone()]).collect();
        let of = |node: &str, key: &str| QuarantinedKey {
            node: node.parse().unwrap(),
            key: key.into(),
            reason: "why".into(),
        };
        assert_eq!(refused, [of("odd", &domain), of("strict", &a)]);
    }

    #[test]
    fn another_store_acknowledges_nothing_and_a_new_listing_forgets_the_old() {
        let mut known = BalancerStates::default();
        known.apply_event(snapshot(&[("balancers/old", &ACKNOWLEDGED.replace('7', "8"))]));
        assert_eq!(missing(&known, 10), ["old"]);
        known.apply_event(snapshot(&[]));
        assert!(known.is_empty() && missing(&known, 10).is_empty());
        let error = registry::Error::Silent {
            endpoint: "http://e".to_owned(),
            operation: registry::Operation::Connect,
            limit: std::time::Duration::from_secs(1),
        };
        known.apply_event(Event::Disconnected { error, since: Instant::now() });
        assert!(!known.is_connected && known.was_connected);
    }
}
