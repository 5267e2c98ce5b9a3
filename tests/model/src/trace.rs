//! Traces of real runs. A test records what it sees of the store, of old HAProxy processes and of stopped apps, one JSON object a line.
//! [`explain`] follows the trace, judges acknowledgements with the product's own function, and names the first observation that no
//! run of the model has.

use std::collections::BTreeMap;
use std::fmt;

use discovery::{BalancerRecord, Key, Node, ServiceId, Upstream, UpstreamId, UpstreamState};
use serde::{Deserialize, Serialize};

/// One observation. Keys are relative to the prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Observation {
    /// The watch began, or begins again in another store. All keys follow as `put`.
    Listing {
        /// The cluster id, as text.
        cluster: String,
    },
    /// A key was written.
    Put {
        /// The revision of the write.
        revision: i64,
        /// The key.
        key: String,
        /// The value. Bytes that are no UTF-8 are U+FFFD.
        value: String,
        /// The lease. 0 is none.
        lease: i64,
    },
    /// A key was deleted.
    Delete {
        /// The revision of the deletion.
        revision: i64,
        /// The key.
        key: String,
    },
    /// An app got its stop signal, and was not in a hurry.
    Stop {
        /// The key of its record.
        key: String,
    },
    /// The old HAProxy processes of a balancer, with the sessions of each on an upstream (`http-shop/a`).
    Old {
        /// The balancer.
        node: String,
        /// The sessions by upstream, of all its old processes.
        sessions: BTreeMap<String, u64>,
    },
}

/// The first observation that the model doesn't have, counted from 1, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unexplained {
    /// The line of the trace.
    pub line: usize,
    /// The promise that the observation breaks.
    pub reason: String,
}

impl fmt::Display for Unexplained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

/// Reads a trace, one observation a line.
pub fn parse(text: &str) -> Result<Vec<Observation>, Unexplained> {
    let lines = text.lines().enumerate();
    let parse = |(at, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| Unexplained { line: at + 1, reason: error.to_string() })
    };
    lines.map(parse).collect()
}

/// Follows a trace. An error names the first observation that no run of the model has.
pub fn explain(trace: &[Observation]) -> Result<(), Unexplained> {
    let mut world = World::default();
    for (at, observation) in trace.iter().enumerate() {
        world.take(observation).map_err(|reason| Unexplained { line: at + 1, reason })?;
    }
    Ok(())
}

/// What a trace has told so far.
#[derive(Debug, Default)]
struct World {
    cluster: u64,
    revision: i64,
    records: BTreeMap<String, Seen>,
    balancers: BTreeMap<Node, BalancerRecord>,
    /// Upstreams with a stopped app, as HAProxy names them.
    stopped: BTreeMap<String, String>,
}

/// An upstream's record, or how it was last.
#[derive(Clone, Debug)]
struct Seen {
    state: UpstreamState,
    lease: i64,
    /// The revision since which the record has this state.
    since: i64,
    is_there: bool,
}

impl World {
    fn take(&mut self, observation: &Observation) -> Result<(), String> {
        match observation {
            Observation::Listing { cluster } => {
                self.cluster = cluster.parse().map_err(|_| format!("{cluster} is no cluster id"))?;
                self.revision = 0;
                self.balancers.clear();
                Ok(())
            }
            Observation::Put { revision, key, value, lease } => {
                self.advance(*revision);
                match key.parse::<Key>() {
                    Ok(Key::Upstream { service, id, .. }) => self.put_record(key, (&service, &id), value, *lease),
                    Ok(Key::Balancer(node)) => self.put_balancer(node, value),
                    _ => Ok(()),
                }
            }
            Observation::Delete { revision, key } => {
                self.advance(*revision);
                match key.parse::<Key>() {
                    Ok(Key::Balancer(node)) => _ = self.balancers.remove(&node),
                    _ => {
                        if let Some(seen) = self.records.get_mut(key) {
                            (seen.is_there, seen.since) = (false, *revision);
                        }
                    }
                }
                Ok(())
            }
            Observation::Stop { key } => self.stop(key),
            Observation::Old { node, sessions } => {
                let open = sessions.iter().find(|(name, count)| **count > 0 && self.stopped.contains_key(*name));
                open.map_or(Ok(()), |(name, count)| {
                    Err(format!("an old process of {node} has {count} sessions on {name}, whose app is stopped"))
                })
            }
        }
    }

    /// The keys of a listing come by name, and so in any order of revisions.
    fn advance(&mut self, revision: i64) {
        self.revision = self.revision.max(revision);
    }

    fn put_record(
        &mut self,
        key: &str,
        (service, id): (&ServiceId, &UpstreamId),
        value: &str,
        lease: i64,
    ) -> Result<(), String> {
        let Ok(upstream) = Upstream::parse(value.as_bytes()) else { return Ok(()) };
        let before = self.records.get(key).filter(|seen| seen.is_there && seen.lease == lease && lease != 0);
        if before.is_some_and(|seen| seen.state == UpstreamState::Drain) && upstream.state == UpstreamState::Ready {
            return Err(format!("{key} is ready again under the lease that it drained under: a stop is taken back"));
        }
        let since = match before {
            Some(seen) if seen.state == upstream.state => seen.since,
            _ => self.revision,
        };
        self.stopped.remove(&BalancerRecord::server_name(service, id));
        self.records.insert(key.to_owned(), Seen { state: upstream.state, lease, since, is_there: true });
        Ok(())
    }

    fn put_balancer(&mut self, node: Node, value: &str) -> Result<(), String> {
        let record = BalancerRecord::parse(value.as_bytes()).map_err(|refusal| format!("{node}: {refusal}"))?;
        if record.cluster == self.cluster && record.applied.max(record.seen) > self.revision {
            return Err(format!("{node} has applied {}, and the store is at {}", record.applied, self.revision));
        }
        let before = self.balancers.get(&node).filter(|it| it.instance == record.instance);
        if let Some(before) = before.filter(|it| it.cluster == record.cluster && it.applied > record.applied) {
            return Err(format!("{node} has applied {} after {}", record.applied, before.applied));
        }
        self.balancers.insert(node, record);
        Ok(())
    }

    fn stop(&mut self, key: &str) -> Result<(), String> {
        let Ok(Key::Upstream { service, id, .. }) = key.parse::<Key>() else {
            return Err(format!("{key} is no record's key"));
        };
        let name = BalancerRecord::server_name(&service, &id);
        let Some(seen) = self.records.get(key) else { return Ok(()) };
        if seen.is_there && seen.state == UpstreamState::Ready {
            return Err(format!("the app of {name} is stopped while its record is ready"));
        }
        let acknowledges =
            |record: &BalancerRecord| record.acknowledges_upstream(self.cluster, seen.since, &service, &id);
        if let Some((node, _)) = self.balancers.iter().find(|(_, record)| !acknowledges(record)) {
            return Err(format!("the app of {name} is stopped, and {node} has not acknowledged {}", seen.since));
        }
        self.stopped.insert(name, key.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "http-services/shop/upstreams/a";

    fn put(revision: i64, key: &str, value: &str) -> Observation {
        Observation::Put { revision, key: key.into(), value: value.into(), lease: 7 }
    }

    fn drained() -> Vec<Observation> {
        let record = |applied: i64, draining: &str| {
            format!(
                r#"{{"cluster":"7","seen":{applied},"applied":{applied},"pending":[],"held":[],"draining":{draining}}}"#
            )
        };
        vec![
            Observation::Listing { cluster: "7".into() },
            put(3, KEY, "10.0.0.1:80"),
            put(4, "balancers/lb1", &record(3, "{}")),
            put(5, KEY, r#"{"address":"10.0.0.1:80","state":"drain"}"#),
            put(6, "balancers/lb1", &record(5, r#"{"http-shop/a":1}"#)),
            put(7, "balancers/lb1", &record(5, "{}")),
            Observation::Stop { key: KEY.into() },
            Observation::Old { node: "lb1".into(), sessions: [("http-shop/a".to_owned(), 0)].into() },
            Observation::Delete { revision: 8, key: KEY.into() },
        ]
    }

    fn reason(trace: &[Observation]) -> String {
        explain(trace).unwrap_err().to_string()
    }

    #[test]
    fn a_polite_stop_is_explained_and_reads_back() {
        assert_eq!(explain(&drained()), Ok(()));
        let text: String = drained().iter().map(|it| serde_json::to_string(it).unwrap() + "\n").collect();
        assert_eq!(parse(&text), Ok(drained()));
        assert_eq!(parse("{}").unwrap_err().line, 1);
    }

    #[test]
    fn a_stop_before_the_last_acknowledgement_is_not_explained() {
        let mut early = drained();
        early.swap(5, 6);
        assert_eq!(reason(&early), "line 6: the app of http-shop/a is stopped, and lb1 has not acknowledged 5");
        let mut ready = drained();
        ready.swap(3, 6);
        assert_eq!(reason(&ready), "line 4: the app of http-shop/a is stopped while its record is ready");
    }

    #[test]
    fn a_session_on_a_stopped_app_is_not_explained() {
        let mut open = drained();
        open[7] = Observation::Old { node: "lb1".into(), sessions: [("http-shop/a".to_owned(), 2)].into() };
        assert!(reason(&open).starts_with("line 8: an old process of lb1 has 2 sessions"), "{}", reason(&open));
    }

    #[test]
    fn a_stop_that_is_taken_back_is_not_explained() {
        let mut back = drained();
        back.insert(6, put(8, KEY, "10.0.0.1:80"));
        assert!(reason(&back).ends_with("a stop is taken back"), "{}", reason(&back));
    }

    #[test]
    fn a_balancer_applies_what_there_is_and_forgets_nothing() {
        let mut early = drained();
        early[2] =
            put(4, "balancers/lb1", r#"{"cluster":"7","seen":9,"applied":9,"pending":[],"held":[],"draining":{}}"#);
        assert_eq!(reason(&early), "line 3: lb1 has applied 9, and the store is at 4");
        let mut back = drained();
        back[5] = back[2].clone();
        assert_eq!(reason(&back), "line 6: lb1 has applied 3 after 5");
    }
}
