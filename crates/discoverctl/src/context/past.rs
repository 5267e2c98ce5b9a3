//! The past of a service's keys, from three sources: etcd's own history, the entries below `log/`, and the logs of the balancers.
//!
//! `merge` makes one list of them, and `undo` computes the values at an earlier point. This module asks.

pub(crate) mod merge;
pub(crate) mod point;
pub(crate) mod undo;

use std::collections::BTreeMap;
use std::time::SystemTime;

use discovery::{Change, Entry, Key, LogEntry, Node, ServiceId};
use registry::Changes;

use crate::balancer_api::{Answers, Changes as BalancerChanges};
use crate::context::Context;
use crate::durable_keys::{self, KeyScope};
use crate::error::Error;
use crate::store::{Store, lossy_text};
use merge::{PastChange, find_vanished, merge_sources};

/// The most changes that a balancer is asked for. confgen gives no more.
const LIMIT: usize = 10_000;

/// The past of some services.
#[derive(Debug, Default)]
pub(crate) struct Past {
    /// The oldest first.
    pub(crate) changes: Vec<PastChange>,
    /// The revision after which etcd's own history begins.
    pub(crate) etcd_since: i64,
    /// etcd has compacted away what was before.
    pub(crate) is_compacted: bool,
    /// The revision of etcd's listing.
    pub(crate) revision: i64,
    /// The part of the past that each balancer knows as a whole.
    pub(crate) logs: BTreeMap<Node, LogReach>,
    /// Balancers that don't answer, or whose keys are gone, each with the reason.
    pub(crate) missing: BTreeMap<Node, String>,
}

/// A balancer knows every change in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogReach {
    pub(crate) since: SystemTime,
    /// The revision at `since`.
    pub(crate) since_revision: i64,
    /// 0 if the balancer doesn't know its store.
    pub(crate) until_revision: i64,
}

impl Past {
    /// The earliest time from which on a balancer knows every change. None without such a balancer.
    pub(crate) fn logged_since(&self) -> Option<SystemTime> {
        self.logs.values().map(|log| log.since).min()
    }

    /// The revision after which the list begins.
    pub(crate) fn since_revision(&self) -> i64 {
        self.logs.values().map(|log| log.since_revision).chain([self.etcd_since]).min().unwrap_or_default()
    }
}

impl Context {
    /// Reads the past of these services' keys after a revision of etcd's. The balancers' logs may begin earlier.
    pub(crate) async fn read_past(
        &self,
        store: &Store,
        ids: &[ServiceId],
        scope: KeyScope,
        since: i64,
    ) -> Result<Past, Error> {
        let mut past = Past::default();
        let mut from_etcd = Vec::new();
        for folder in ids.iter().flat_map(durable_keys::list_folders) {
            let listed = self.client.changes_since(&folder, since).await?;
            past.etcd_since = past.etcd_since.max(listed.before.revision);
            past.is_compacted |= listed.before.revision > since.max(1);
            past.revision = past.revision.max(listed.revision);
            from_etcd.extend(list_etcd_changes(&listed, scope));
        }
        let mut from_balancers: BTreeMap<Node, BalancerChanges> = BTreeMap::new();
        // All balancers are asked, since one that was away lacks what another followed.
        let api = self.balancer_api(store)?;
        for id in ids {
            let keys = if scope == KeyScope::Settings { "settings" } else { "all" };
            let answers: Answers<BalancerChanges> =
                api.ask_all(&format!("changes?service={id}&keys={keys}&limit={LIMIT}")).await;
            for (node, answer) in answers {
                match answer {
                    Ok(answer) => add_answer(from_balancers.entry(node).or_default(), answer),
                    Err(why) => _ = past.missing.insert(node, why),
                }
            }
        }
        for (node, answer) in &from_balancers {
            past.logs.extend(find_log_reach(answer).map(|reach| (node.clone(), reach)));
        }
        let alive = store.balancers.records_by_node().map(|(node, _)| node.clone()).collect();
        past.missing.extend(find_vanished(&from_balancers, &alive));
        past.changes = merge_sources(from_etcd, &list_log_entries(&store.entries), &from_balancers);
        Ok(past)
    }
}

/// Adds the answer about another service of the same balancer.
fn add_answer(all: &mut BalancerChanges, answer: BalancerChanges) {
    let BalancerChanges { changes, since, since_revision, until_revision, more } = answer;
    all.changes.extend(changes);
    (all.since, all.since_revision, all.until_revision) = (since, since_revision, until_revision);
    all.more |= more;
}

/// The part of the past of which the answer has every change. None if that isn't known.
fn find_log_reach(answer: &BalancerChanges) -> Option<LogReach> {
    let (mut time, mut revision) = (answer.since.clone()?, answer.since_revision);
    if answer.more {
        let first = answer.changes.first()?;
        (time, revision) = (first.time.clone(), first.revision);
    }
    let since = humantime::parse_rfc3339(&time).ok()?;
    Some(LogReach { since, since_revision: revision, until_revision: answer.until_revision })
}

/// The entries of the change log, by the revision of their transaction. One that can't be read names no author.
fn list_log_entries(entries: &[Entry]) -> BTreeMap<i64, LogEntry> {
    let logged = entries.iter().filter(|entry| Key::is_log(&entry.key));
    logged.filter_map(|entry| Some((entry.mod_revision, LogEntry::parse(&entry.value).ok()?))).collect()
}

/// Lists the changes that etcd still has.
fn list_etcd_changes(listed: &Changes, scope: KeyScope) -> Vec<PastChange> {
    let mut found = Vec::new();
    let mut values: BTreeMap<&str, &Entry> =
        listed.before.entries.iter().map(|entry| (entry.key.as_str(), entry)).collect();
    for change in &listed.changes {
        // The event of a write comes without the value before it, so the listing at the first revision is carried along.
        let (before, after, revision) = match change {
            Change::Put(entry) => (values.insert(&entry.key, entry), Some(entry), entry.mod_revision),
            Change::Delete { key, revision, .. } => (values.remove(key.as_str()), None, *revision),
        };
        // A deleted key has only a value before.
        let is_kept = before.or(after).is_some_and(|entry| scope.has_entry(entry));
        // etcd reports the write of an unchanged value, too.
        if is_kept && before.map(|it| &it.value) != after.map(|it| &it.value) {
            let is_secret = change.key().parse::<Key>().is_ok_and(|key| key.is_secret());
            let is_text = |entry: &Entry| std::str::from_utf8(&entry.value).is_ok();
            let is_whole = !is_secret && [before, after].into_iter().flatten().all(is_text);
            let show = |entry: &Entry| if is_secret { "…".to_owned() } else { lossy_text(entry) };
            let (before, after) = (before.map(show), after.map(show));
            let key = change.key().to_owned();
            found.push(PastChange { revision, key, before, after, is_cut: !is_whole, ..PastChange::default() });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use discovery::Snapshot;

    use super::*;

    fn entry(key: &str, value: &str, mod_revision: i64) -> Entry {
        Entry {
            key: format!("http-services/shop/{key}"),
            value: value.into(),
            create_revision: 1,
            mod_revision,
            lease: 0,
        }
    }

    #[test]
    fn a_change_has_what_was_before() {
        let entries = vec![entry("active", "blue", 3)];
        let before = Snapshot { cluster: 1, revision: 5, raft_term: 1, entries };
        let gone = Change::Delete { key: "http-services/shop/active".into(), revision: 9, previous: None };
        let changes = vec![
            Change::Put(entry("active", "blue=90 green=10", 6)),
            Change::Put(entry("upstreams/a", "10.0.0.1:80", 7)),
            Change::Put(entry("active", "blue=90 green=10", 8)),
            gone,
        ];
        let listed = Changes { before, changes, revision: 10 };
        let row = |revision, before: Option<&str>, after: Option<&str>| PastChange {
            revision,
            key: "http-services/shop/active".into(),
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
            ..PastChange::default()
        };
        let step = "blue=90 green=10";
        assert_eq!(
            list_etcd_changes(&listed, KeyScope::Settings),
            [row(6, Some("blue"), Some(step)), row(9, Some(step), None)]
        );
        assert_eq!(list_etcd_changes(&listed, KeyScope::SettingsAndUpstreams).len(), 3);
    }

    #[test]
    fn a_cut_answer_is_whole_from_its_first_change() {
        let change = |revision| discovery::balancer_api::AppliedChange {
            time: format!("2026-11-30T10:13:0{revision}Z"),
            revision,
            ..Default::default()
        };
        let since = Some("2026-11-30T10:13:01Z".to_owned());
        let changes = vec![change(4), change(5)];
        let answer = |more| BalancerChanges {
            changes: changes.clone(),
            since: since.clone(),
            since_revision: 1,
            until_revision: 5,
            more,
        };
        assert_eq!(find_log_reach(&answer(false)).unwrap().since_revision, 1);
        assert_eq!(find_log_reach(&answer(true)).unwrap().since_revision, 4);
        assert_eq!(find_log_reach(&BalancerChanges::default()), None);
    }
}
