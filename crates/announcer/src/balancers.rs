//! What the balancers say, and who has not said it yet.

pub(crate) mod reception;
pub(crate) mod wait;

use discovery::{Balancer, Balancers, Key, Node, RefusedKey, ServiceId, UpstreamId};
use registry::{Client, Event, Follow};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::registrar::Written;

/// What is asked of each balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// Whether it sends requests to our records, none of which it refuses.
    Runs,
    /// Whether it no longer does, and none is open.
    Acknowledges,
}

/// What all live balancers say. Pure.
#[derive(Debug, Default)]
pub(crate) struct Known {
    all: Balancers,
    /// The store can be followed now.
    pub(crate) is_heard: bool,
    /// It could be once: those who are missing are known by name.
    pub(crate) was_heard: bool,
}

impl Known {
    /// What else the store told.
    pub(crate) fn hear(&mut self, event: Event) {
        self.is_heard = !matches!(event, Event::Disconnected { .. });
        self.was_heard |= self.is_heard;
        match event {
            Event::Snapshot(snapshot) => self.all = Balancers::of(&snapshot),
            Event::Changes { changes, .. } => changes.iter().for_each(|change| self.all.apply(change)),
            Event::Disconnected { .. } => {}
        }
    }

    /// Whether there is any balancer.
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The balancers whose answer for one of the records isn't yes.
    pub(crate) fn missing(&self, question: Question, reached: &Written) -> Vec<&str> {
        let cluster = self.all.cluster();
        let agrees = |balancer: &Balancer, service: &ServiceId, id: &UpstreamId| match question {
            Question::Runs => {
                let key = Key::upstream(service, id).to_string();
                let is_refused = balancer.refuses(&key).is_some() || balancer.may_refuse_unsaid(&key);
                balancer.runs(cluster, reached.revision, service, id) && !is_refused
            }
            Question::Acknowledges => balancer.acknowledges(cluster, reached.revision, service, id),
        };
        let missing = self.all.missing(|balancer| match question {
            Question::Runs => reached.names().all(|(service, id)| agrees(balancer, service, id)),
            Question::Acknowledges => reached.all_names().all(|(service, id)| agrees(balancer, service, id)),
        });
        missing.into_iter().map(Node::as_str).collect()
    }

    /// Which of these keys are refused, by whom and why.
    pub(crate) fn refused<'a>(&'a self, keys: &'a [String]) -> impl Iterator<Item = RefusedKey> + 'a {
        self.all.refused(keys)
    }
}

/// The balancers, followed until this is dropped.
pub(crate) struct Listening {
    pub(crate) known: Known,
    events: mpsc::Receiver<Event>,
    /// The log has heard that they can't be heard.
    is_said: bool,
    _ends_with_us: DropGuard,
}

impl Listening {
    /// Begins to listen.
    pub(crate) fn to(client: &Client) -> Self {
        let end = CancellationToken::new();
        let events = client.follow(Follow { below: "balancers", ..Follow::default() }, end.clone());
        Self { known: Known::default(), events, is_said: false, _ends_with_us: end.drop_guard() }
    }

    /// Takes the next news in.
    pub(crate) async fn next(&mut self) {
        let Some(event) = self.events.recv().await else { return std::future::pending().await };
        if let Event::Disconnected { error, .. } = &event
            && !std::mem::replace(&mut self.is_said, true)
        {
            tracing::warn!(%error, "balancers can't be heard");
        }
        self.known.hear(event);
        self.is_said &= !self.known.is_heard;
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

    fn missing(known: &Known, revision: i64) -> Vec<&str> {
        known.missing(Question::Acknowledges, &reached(revision))
    }

    #[test]
    fn every_balancer_has_to_acknowledge_every_record() {
        let mut known = Known::default();
        assert!(known.is_empty() && !known.is_heard);
        let draining = ACKNOWLEDGED.replace("{}", r#"{"http-shop/b":1}"#);
        known.hear(snapshot(&[
            ("balancers/fine", ACKNOWLEDGED),
            ("balancers/busy", &draining),
            ("balancers/mad", "?"),
            ("balancers/x/y", "no balancer"),
        ]));
        assert_eq!(missing(&known, 10), ["busy", "mad"]);
        assert_eq!(missing(&known, 11), ["busy", "fine", "mad"]);
        assert_eq!(known.missing(Question::Runs, &reached(10)), ["mad"], "a drain of before is no obstacle");
        let changes = vec![
            Change::Put(entry("balancers/busy", ACKNOWLEDGED, 1)),
            Change::Delete { key: "balancers/mad".to_owned(), revision: 11, previous: None },
        ];
        known.hear(Event::Changes { revision: 11, changes });
        assert!(missing(&known, 10).is_empty() && !known.is_empty());
    }

    #[test]
    fn a_balancer_that_refuses_the_record_sends_nothing_to_it() {
        let (a, domain) = ("http-services/shop/upstreams/a".to_owned(), "http-services/shop/domain".to_owned());
        let with = |key: &str| ACKNOWLEDGED.replacen('}', &format!(r#"}},"quarantined":{{"{key}":"why"}}"#), 1);
        let mut known = Known::default();
        known.hear(snapshot(&[
            ("balancers/fine", ACKNOWLEDGED),
            ("balancers/odd", &with(&domain)),
            ("balancers/other", &with("http-services/shop/upstreams/z")),
            ("balancers/strict", &with(&a)),
        ]));
        assert_eq!(known.missing(Question::Runs, &reached(10)), ["strict"]);
        assert!(missing(&known, 10).is_empty(), "there is nothing to drain");
        let cut = |service: &str| {
            ACKNOWLEDGED.replacen(
                '}',
                &format!(r#"}},"more":["quarantined"],"cut":{{"quarantined":["{service}"]}}"#),
                1,
            )
        };
        let mut silent = Known::default();
        silent.hear(snapshot(&[("balancers/a", &cut("http-shop")), ("balancers/b", &cut("http-other"))]));
        assert_eq!(silent.missing(Question::Runs, &reached(10)), ["a"], "it may refuse the record and not say so");
        let refused: Vec<_> = known.refused(&[a.clone(), domain.clone()]).collect();
        let of =
            |node: &str, key: &str| RefusedKey { node: node.parse().unwrap(), key: key.into(), reason: "why".into() };
        assert_eq!(refused, [of("odd", &domain), of("strict", &a)]);
    }

    #[test]
    fn another_store_acknowledges_nothing_and_a_new_listing_forgets_the_old() {
        let mut known = Known::default();
        known.hear(snapshot(&[("balancers/old", &ACKNOWLEDGED.replace('7', "8"))]));
        assert_eq!(missing(&known, 10), ["old"]);
        known.hear(snapshot(&[]));
        assert!(known.is_empty() && missing(&known, 10).is_empty());
        let error = registry::Error::Silent {
            endpoint: "http://e".to_owned(),
            act: registry::Act::Connect,
            limit: std::time::Duration::from_secs(1),
        };
        known.hear(Event::Disconnected { error, since: Instant::now() });
        assert!(!known.is_heard && known.was_heard);
    }
}
