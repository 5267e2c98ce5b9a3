//! One list of changes from etcd, the entries below `log/` and the balancers' logs. Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use discovery::balancer_api::{AppliedChange, Changes};
use discovery::{Author, Key, LogEntry, Node};
use serde::Serialize;

/// The change of one key, as all sources together describe it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PastChange {
    /// The revision. If `after_revision` is there, the change has this revision at most.
    pub(crate) revision: i64,
    /// Only balancers that were away know of the change. The key changed after this revision, perhaps more than once.
    pub(crate) after_revision: Option<i64>,
    /// The key, relative to the prefix.
    pub(crate) key: String,
    /// None if the key was absent.
    pub(crate) before: Option<String>,
    /// None if the key was deleted.
    pub(crate) after: Option<String>,
    /// The values aren't whole, so they can't be written again.
    pub(crate) is_cut: bool,
    /// The time of the write by its author's clock, or the time at which the first balancer learned of it. None if nobody says.
    pub(crate) time: Option<SystemTime>,
    /// None if discoverctl didn't make the change.
    pub(crate) author: Option<Author>,
    /// The balancers that know of the change.
    pub(crate) balancers: BTreeMap<Node, AppliedBy>,
}

/// A balancer's part of a change.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct AppliedBy {
    /// The time at which the balancer learned of the change.
    pub(crate) time: String,
    /// `runtime` or `restart`; null if the change isn't applied.
    pub(crate) applied_by: Option<String>,
    /// The time until HAProxy had the change; null if it isn't applied.
    pub(crate) seconds: Option<f64>,
    /// The reason why the change isn't applied.
    pub(crate) refused: Option<String>,
}

impl AppliedBy {
    fn from_change(change: &AppliedChange) -> Self {
        let AppliedChange { time, applied_by, seconds, refused, .. } = change.clone();
        Self { time, applied_by, seconds, refused }
    }
}

impl PastChange {
    fn from_applied(change: &AppliedChange) -> Self {
        let AppliedChange { revision, after_revision, key, before, after, cut, author, .. } = change.clone();
        Self { revision, after_revision, key, before, after, is_cut: cut, author, ..Self::default() }
    }

    fn add_balancer(&mut self, node: &Node, change: &AppliedChange) {
        self.balancers.insert(node.clone(), AppliedBy::from_change(change));
        self.author = self.author.take().or_else(|| change.author.clone());
        // A balancer that was away learned of the change late.
        if change.after_revision == self.after_revision
            && let Ok(time) = humantime::parse_rfc3339(&change.time)
        {
            self.time = Some(self.time.map_or(time, |known| known.min(time)));
        }
    }
}

/// Merges the sources. Each change is in the list once, in the order of the revisions.
pub(crate) fn merge_sources(
    from_etcd: Vec<PastChange>,
    entries: &BTreeMap<i64, LogEntry>,
    from_balancers: &BTreeMap<Node, Changes>,
) -> Vec<PastChange> {
    let mut exact: BTreeMap<(i64, String), PastChange> =
        from_etcd.into_iter().map(|change| ((change.revision, change.key.clone()), change)).collect();
    let told = || from_balancers.iter().flat_map(|(node, answer)| answer.changes.iter().map(move |it| (node, it)));
    for (node, change) in told().filter(|(_, it)| it.after_revision.is_none() && !is_balancer(&it.key)) {
        let place = exact.entry((change.revision, change.key.clone()));
        place.or_insert_with(|| PastChange::from_applied(change)).add_balancer(node, change);
    }
    let mut missed: Vec<PastChange> = Vec::new();
    for (node, change) in told().filter(|(_, it)| it.after_revision.is_some() && !is_balancer(&it.key)) {
        // The changes that the balancer missed, as another source followed them. The last one has to lead to the same value.
        let followed = exact.values_mut().filter(|it| it.key == change.key && is_within(it.revision, change));
        if let Some(last) = followed.last().filter(|last| last.after == change.after) {
            last.add_balancer(node, change);
            continue;
        }
        // Two balancers may have been away at once.
        let same = missed
            .iter_mut()
            .find(|it| it.key == change.key && it.after == change.after && is_within(it.revision, change));
        match same {
            Some(same) => same.add_balancer(node, change),
            None => {
                let mut missing = PastChange::from_applied(change);
                missing.add_balancer(node, change);
                missed.push(missing);
            }
        }
    }
    let mut changes: Vec<PastChange> = exact.into_values().chain(missed).collect();
    for change in &mut changes {
        if let Some(entry) = entries.get(&change.revision) {
            change.author = Some(entry.author.clone());
            change.time = humantime::parse_rfc3339(&entry.time).ok().or(change.time);
        }
    }
    changes.sort_by(|one, other| (one.revision, &one.key).cmp(&(other.revision, &other.key)));
    changes
}

/// True if a change of this revision may be part of one that a balancer missed.
fn is_within(revision: i64, missed: &AppliedChange) -> bool {
    missed.after_revision.is_some_and(|after| after < revision) && revision <= missed.revision
}

fn is_balancer(key: &str) -> bool {
    matches!(key.parse(), Ok(Key::Balancer(_)))
}

/// Finds balancers that others have seen go, and that are not back. `alive` have a key now.
pub(crate) fn find_vanished(
    from_balancers: &BTreeMap<Node, Changes>,
    alive: &BTreeSet<Node>,
) -> BTreeMap<Node, String> {
    let mut last: BTreeMap<Node, &AppliedChange> = BTreeMap::new();
    for change in from_balancers.values().flat_map(|answer| &answer.changes) {
        if let Ok(Key::Balancer(node)) = change.key.parse()
            && last.get(&node).is_none_or(|known| known.revision <= change.revision)
        {
            last.insert(node, change);
        }
    }
    let gone = last.into_iter().filter(|(node, change)| change.after.is_none() && !alive.contains(node));
    gone.map(|(node, change)| (node, format!("its key is gone since {}", change.time))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "http-services/shop/balance";

    fn node(name: &str) -> Node {
        name.parse().unwrap()
    }

    fn from_etcd(revision: i64, before: &str, after: &str) -> PastChange {
        let (before, after) = (Some(before.to_owned()), Some(after.to_owned()));
        PastChange { revision, key: KEY.into(), before, after, ..PastChange::default() }
    }

    fn applied(revision: i64, before: &str, after: &str) -> AppliedChange {
        let text = |value: &str| (value != "–").then(|| value.to_owned());
        AppliedChange {
            time: format!("2026-11-30T10:13:{revision:02}Z"),
            revision,
            key: KEY.into(),
            before: text(before),
            after: text(after),
            applied_by: Some("runtime".into()),
            ..AppliedChange::default()
        }
    }

    fn missed(revisions: (i64, i64), before: &str, after: &str) -> AppliedChange {
        AppliedChange { after_revision: Some(revisions.0), ..applied(revisions.1, before, after) }
    }

    fn answers(all: &[(&str, Vec<AppliedChange>)]) -> BTreeMap<Node, Changes> {
        let answer = |changes: &Vec<AppliedChange>| Changes { changes: changes.clone(), ..Changes::default() };
        all.iter().map(|(name, changes)| (node(name), answer(changes))).collect()
    }

    /// `a→b@7 lb1,lb2`, with `?` before a change that was missed.
    fn describe(changes: &[PastChange]) -> Vec<String> {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "–".into());
        let line = |it: &PastChange| {
            let by: Vec<&str> = it.balancers.keys().map(Node::as_str).collect();
            let mark = if it.after_revision.is_some() { "?" } else { "" };
            format!("{mark}{}→{}@{} {}", text(&it.before), text(&it.after), it.revision, by.join(","))
        };
        changes.iter().map(line).collect()
    }

    #[test]
    fn each_change_is_there_once_whoever_knows_it() {
        let all = answers(&[
            ("lb1", vec![applied(3, "a", "b"), applied(5, "b", "c"), applied(8, "c", "d")]),
            ("lb2", vec![applied(3, "a", "b"), missed((3, 8), "b", "d")]),
        ]);
        let entry = LogEntry {
            time: "2026-11-30T10:13:04.500Z".into(),
            author: Author { user: "alice".into(), ..Author::default() },
            ..LogEntry::default()
        };
        let changes = merge_sources(vec![from_etcd(8, "c", "d"), from_etcd(9, "d", "e")], &[(5, entry)].into(), &all);
        assert_eq!(describe(&changes), ["a→b@3 lb1,lb2", "b→c@5 lb1", "c→d@8 lb1,lb2", "d→e@9 "]);
        assert_eq!(changes[1].author.as_ref().unwrap().user, "alice");
        let times: Vec<Option<String>> =
            changes.iter().map(|it| it.time.map(|time| humantime::format_rfc3339_millis(time).to_string())).collect();
        let time = |second: &str| Some(format!("2026-11-30T10:13:{second}Z"));
        assert_eq!(times, [time("03.000"), time("04.500"), time("08.000"), None]);
    }

    #[test]
    fn a_missed_change_stays_if_nobody_followed_it() {
        let all = answers(&[
            ("lb1", vec![applied(3, "a", "b"), missed((3, 9), "b", "d")]),
            ("lb2", vec![applied(3, "a", "b"), missed((5, 9), "c", "d"), missed((9, 12), "d", "–")]),
        ]);
        let changes = merge_sources(Vec::new(), &BTreeMap::new(), &all);
        assert_eq!(describe(&changes), ["a→b@3 lb1,lb2", "?b→d@9 lb1,lb2", "?d→–@12 lb2"]);
        // A source that knows only a part of it doesn't replace it.
        let changes = merge_sources(
            vec![from_etcd(6, "b", "c")],
            &BTreeMap::new(),
            &answers(&[("lb1", vec![missed((3, 9), "b", "d")])]),
        );
        assert_eq!(describe(&changes), ["b→c@6 ", "?b→d@9 lb1"]);
    }

    #[test]
    fn a_balancer_that_went_is_named_until_it_is_back() {
        let state = |revision, name: &str, is_there: bool| AppliedChange {
            key: format!("balancers/{name}"),
            ..if is_there { applied(revision, "–", "alive") } else { applied(revision, "alive", "–") }
        };
        let all = answers(&[("lb1", vec![state(3, "lb2", false), state(5, "lb3", false), state(7, "lb3", true)])]);
        let alive = BTreeSet::from([node("lb1"), node("lb3")]);
        let gone = find_vanished(&all, &alive);
        assert_eq!(gone, [(node("lb2"), "its key is gone since 2026-11-30T10:13:03Z".to_owned())].into());
        assert!(merge_sources(Vec::new(), &BTreeMap::new(), &all).is_empty());
        assert!(find_vanished(&all, &[node("lb2"), node("lb3")].into()).is_empty());
    }
}
