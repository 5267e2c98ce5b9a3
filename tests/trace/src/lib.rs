//! Traces of real runs: what a test records of the store, of stopped apps and of old HAProxy processes, one JSON object a line.
//!
//! [`explain`] follows a trace, judges acknowledgements with the product's own function, and names the first observation that
//! breaks a promise of the protocol. Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use discovery::{
    BalancerRecord, BalancerRecords, Change, Entry, Key, Node, ServiceId, Snapshot, Upstream, UpstreamId, UpstreamState,
};
use serde::{Deserialize, Serialize};

/// One observation. Keys are relative to the prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Observation {
    /// All keys were listed, because the watch began or could not resume. The keys follow as `put`.
    Listing {
        /// The cluster id, as text.
        cluster: String,
        /// The revision of the listing.
        revision: i64,
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
    /// An app got its stop signal after its announcer had found the drain acknowledged by every balancer.
    Stop {
        /// The app's address, as its record has it.
        address: String,
        /// The store's revision after the signal. The announcer knew no later one.
        revision: i64,
    },
    /// The old HAProxy processes of a balancer were asked for their sessions.
    Old {
        /// The balancer.
        node: String,
        /// The session count by upstream (`http-shop/a`), of all its old processes.
        sessions: BTreeMap<String, u64>,
    },
}

/// The first observation that breaks a promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unexplained {
    /// The line of the trace, counted from 1.
    pub line: usize,
    /// The promise that the observation breaks.
    pub reason: String,
}

impl fmt::Display for Unexplained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

/// The observation as one line of a trace, without the line break. Prints the JSON object that [`parse_trace`] reads.
impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// Reads a trace, one observation a line.
///
/// # Errors
/// The first line that is no observation.
pub fn parse_trace(text: &str) -> Result<Vec<Observation>, Unexplained> {
    let lines = text.lines().enumerate();
    let parse = |(at, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| Unexplained { line: at + 1, reason: error.to_string() })
    };
    lines.map(parse).collect()
}

/// Follows a trace.
///
/// # Errors
/// The first observation that breaks a promise.
pub fn explain(trace: &[Observation]) -> Result<(), Unexplained> {
    let mut world = World::default();
    for (at, observation) in trace.iter().enumerate() {
        world.apply(observation).map_err(|reason| Unexplained { line: at + 1, reason })?;
    }
    Ok(())
}

/// Counts the observations of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Listings.
    pub listings: usize,
    /// Writes of keys.
    pub puts: usize,
    /// Deletions of keys.
    pub deletions: usize,
    /// Stops of apps after an acknowledged drain.
    pub stops: usize,
    /// Questions to the old processes of a balancer.
    pub questions: usize,
}

impl Counts {
    /// Counts a trace.
    pub fn of_trace(trace: &[Observation]) -> Self {
        let mut counts = Self::default();
        for observation in trace {
            *match observation {
                Observation::Listing { .. } => &mut counts.listings,
                Observation::Put { .. } => &mut counts.puts,
                Observation::Delete { .. } => &mut counts.deletions,
                Observation::Stop { .. } => &mut counts.stops,
                Observation::Old { .. } => &mut counts.questions,
            } += 1;
        }
        counts
    }
}

/// The state that a trace has led to.
#[derive(Debug, Default)]
struct World {
    /// The revision of the last listing. Keys of the listing have revisions up to this one, in any order.
    listed: i64,
    /// The newest revision.
    revision: i64,
    balancers: BalancerRecords,
    /// The last applied revision of each confgen process in this store, by node and instance.
    applied: BTreeMap<(Node, String), i64>,
    /// What announcers have written, by key and address. Another address under the same key is another app.
    records: BTreeMap<String, BTreeMap<String, Announced>>,
    /// The upstreams with a stopped app, as HAProxy names them.
    stopped: BTreeSet<String>,
    /// True if records or balancers have changed since acknowledgements were judged.
    is_stale: bool,
}

/// An address that an announcer has written.
#[derive(Clone, Debug)]
struct Announced {
    service: ServiceId,
    id: UpstreamId,
    /// `None` after the record was deleted, or replaced by one with another address.
    state: Option<UpstreamState>,
    lease: i64,
    /// The revision since which the record has this state.
    since: i64,
    /// True if every balancer had acknowledged this state, or the drain before the deletion, at some revision.
    is_acknowledged: bool,
    /// True between the app's stop and the deletion of its record.
    is_stopped: bool,
}

impl Announced {
    fn name(&self) -> String {
        BalancerRecord::server_name(&self.service, &self.id)
    }

    /// The drain that every balancer has acknowledged stays so after the deletion.
    fn set_gone(&mut self, revision: i64) {
        if self.state.take().is_some() {
            self.is_stopped = false;
            if !self.is_acknowledged {
                self.since = revision;
            }
        }
    }

    /// The balancers that have not acknowledged the record's state or deletion.
    fn list_missing<'a>(&self, balancers: &'a BalancerRecords) -> Vec<&'a str> {
        let cluster = balancers.cluster_id();
        let acknowledges =
            |record: &BalancerRecord| record.acknowledges_upstream(cluster, self.since, &self.service, &self.id);
        balancers.disagreeing_nodes(acknowledges).into_iter().map(Node::as_str).collect()
    }
}

impl World {
    fn apply(&mut self, observation: &Observation) -> Result<(), String> {
        match observation {
            Observation::Listing { cluster, revision } => self.begin_listing(cluster, *revision),
            Observation::Put { revision, key, value, lease } => {
                self.advance(*revision)?;
                match key.parse::<Key>() {
                    Ok(Key::Upstream { service, id, .. }) => {
                        self.put_record(key, (service, id), value, (*revision, *lease))
                    }
                    Ok(Key::Balancer(node)) => self.put_balancer(&node, key, value, (*revision, *lease)),
                    _ => Ok(()),
                }
            }
            Observation::Delete { revision, key } => {
                self.advance(*revision)?;
                self.delete(key, *revision);
                Ok(())
            }
            Observation::Stop { address, revision } => self.stop_app(address, *revision),
            Observation::Old { node, sessions } => self.check_sessions(node, sessions),
        }
    }

    /// A listing tells neither the order of changes nor the revision of a deletion. So nothing from before it counts.
    fn begin_listing(&mut self, cluster: &str, revision: i64) -> Result<(), String> {
        let cluster = cluster.parse().map_err(|_| format!("{cluster} is no cluster id"))?;
        let empty = Snapshot { cluster, revision, raft_term: 0, entries: Vec::new() };
        let balancers = BalancerRecords::from_snapshot(&empty);
        *self = Self { listed: revision, revision, balancers, ..Self::default() };
        Ok(())
    }

    fn advance(&mut self, revision: i64) -> Result<(), String> {
        if revision > self.revision {
            // Transactions are whole: acknowledgements are judged between two revisions.
            self.judge_acknowledgements();
            self.revision = revision;
        } else if revision < self.revision && revision > self.listed {
            return Err(format!("the store goes back from revision {} to {revision}", self.revision));
        }
        Ok(())
    }

    /// Notes each record whose state every balancer acknowledges now. The announcer may have seen any revision, so one is
    /// enough.
    fn judge_acknowledgements(&mut self) {
        // An announcer that finds no balancer doesn't call the drain acknowledged.
        if !std::mem::take(&mut self.is_stale) || self.balancers.is_empty() {
            return;
        }
        for record in self.records.values_mut().flat_map(BTreeMap::values_mut) {
            let is_waited_for = record.state != Some(UpstreamState::Ready) && !record.is_acknowledged;
            if is_waited_for && record.list_missing(&self.balancers).is_empty() {
                record.is_acknowledged = true;
            }
        }
    }

    fn put_record(
        &mut self,
        key: &str,
        (service, id): (ServiceId, UpstreamId),
        value: &str,
        (revision, lease): (i64, i64),
    ) -> Result<(), String> {
        // Balancers keep the last valid value of a key, and so does this.
        let Ok(upstream) = Upstream::parse(value.as_bytes()) else { return Ok(()) };
        let (address, state) = (upstream.address.to_string(), upstream.state);
        self.is_stale = true;
        let by_address = self.records.entry(key.to_owned()).or_default();
        by_address.iter_mut().filter(|(at, _)| **at != address).for_each(|(_, other)| other.set_gone(revision));
        let name = BalancerRecord::server_name(&service, &id);
        if state == UpstreamState::Ready {
            self.stopped.remove(&name);
        }
        let Some(record) = by_address.get_mut(&address) else {
            // An operator's own record, without a lease, has no announcer that waits for its drain.
            if lease != 0 {
                let (is_acknowledged, is_stopped) = (false, false);
                let state = Some(state);
                let new = Announced { service, id, state, lease, since: revision, is_acknowledged, is_stopped };
                by_address.insert(address, new);
            }
            return Ok(());
        };
        if record.is_stopped && state == UpstreamState::Ready && record.lease == lease {
            return Err(format!("{name} is ready again under the lease of its stopped app"));
        }
        if record.state != Some(state) || record.lease != lease {
            (record.state, record.since) = (Some(state), revision);
            (record.is_acknowledged, record.is_stopped) = (false, false);
        }
        record.lease = lease;
        Ok(())
    }

    fn put_balancer(
        &mut self,
        node: &Node,
        key: &str,
        value: &str,
        (revision, lease): (i64, i64),
    ) -> Result<(), String> {
        self.is_stale = true;
        self.check_balancer(node, value, (revision, lease))?;
        let value = value.into();
        // The creation counts only for more than a thousand balancers.
        let entry = Entry { key: key.to_owned(), value, create_revision: 0, mod_revision: revision, lease };
        self.balancers.apply_change(&Change::Put(entry));
        Ok(())
    }

    /// Checks a balancer record that confgen has written.
    fn check_balancer(&mut self, node: &Node, value: &str, (revision, lease): (i64, i64)) -> Result<(), String> {
        let Ok(record) = BalancerRecord::parse(value.as_bytes()) else { return Ok(()) };
        // A record by hand has no lease or names no process. Announcers take it as it is, and it promises nothing.
        let Some(instance) = record.instance.filter(|_| lease != 0) else { return Ok(()) };
        if record.cluster != self.balancers.cluster_id() {
            return Ok(());
        }
        let newest = record.applied.max(record.seen);
        if newest >= revision {
            // A wiped store may have the same cluster id, and announcers can't tell.
            return Err(format!("{node} has seen revision {newest}, and writes its record at {revision}"));
        }
        let before = self.applied.insert((node.clone(), instance), record.applied);
        match before.filter(|before| *before > record.applied) {
            Some(before) => Err(format!("{node} has applied {} after {before}", record.applied)),
            None => Ok(()),
        }
    }

    fn delete(&mut self, key: &str, revision: i64) {
        self.is_stale = true;
        self.balancers.apply_change(&Change::Delete { key: key.to_owned(), revision, previous: None });
        for record in self.records.get_mut(key).into_iter().flat_map(BTreeMap::values_mut) {
            record.set_gone(revision);
        }
    }

    fn stop_app(&mut self, address: &str, revision: i64) -> Result<(), String> {
        if revision < self.revision {
            return Err(format!("the stop at revision {revision} stands after revision {}", self.revision));
        }
        self.judge_acknowledgements();
        for record in self.records.values_mut().filter_map(|by_address| by_address.get_mut(address)) {
            let name = record.name();
            if record.state == Some(UpstreamState::Ready) {
                return Err(format!("the app of {name} is stopped while its record is ready"));
            }
            if !record.is_acknowledged {
                let (missing, since) = (record.list_missing(&self.balancers).join(", "), record.since);
                return Err(format!("the app of {name} is stopped, and {missing} has not acknowledged {since}"));
            }
            record.is_stopped = record.state.is_some();
            self.stopped.insert(name);
        }
        Ok(())
    }

    fn check_sessions(&self, node: &str, sessions: &BTreeMap<String, u64>) -> Result<(), String> {
        let open = sessions.iter().find(|(name, count)| **count > 0 && self.stopped.contains(*name));
        open.map_or(Ok(()), |(name, count)| {
            Err(format!("an old process of {node} has {count} sessions on {name}, whose app is stopped"))
        })
    }
}

#[cfg(test)]
mod tests;
