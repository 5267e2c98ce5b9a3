//! `history`: the changes of a service's keys, from etcd, the change log and the balancers' logs.

use std::collections::BTreeMap;
use std::time::SystemTime;

use clap::Args;
use discovery::{Author, Node};
use serde::Serialize;

use crate::context::Context;
use crate::context::past::Past;
use crate::context::past::merge::{AppliedBy, PastChange};
use crate::context::past::point::Point;
use crate::context::past::undo::compare_with_point;
use crate::durable_keys::KeyScope;
use crate::error::{Error, Outcome};
use crate::print::{Block, Cell, Printable, Table};
use crate::target::ServiceArg;

pub(crate) const EXAMPLES: &str = "Examples:
  discoverctl history shop
  discoverctl history shop --since 7d
  discoverctl history shop --since 1200
  discoverctl history shop --all --output json | jq '.changes[-1]'

etcd keeps old revisions as its --auto-compaction-retention says. The balancers' logs reach further back. An entry of the change log
says who made a change by discoverctl. The writer of any other change is unknown.";

#[derive(Debug, Args)]
pub(crate) struct History {
    /// The service: shop, or http-shop or tcp-shop if two have the name
    #[arg(value_name = "SVC")]
    service: ServiceArg,
    /// List only changes after this revision, this time, or this long ago: 1200, 2026-11-30T10:13:06Z, 7d
    #[arg(long, value_name = "POINT")]
    since: Option<Point>,
    /// List changes of upstreams' records too, which come and go
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Default, Serialize)]
struct HistoryReport {
    /// The revision after which the list begins. Older changes are compacted away, or --since left them out.
    since: i64,
    /// The time from which on a balancer's log has every change; null without such a balancer.
    logged_since: Option<String>,
    /// etcd's own history begins after --since, because of a compaction.
    compacted: bool,
    revision: i64,
    changes: Vec<Row>,
    /// Balancers whose part is missing, each with the reason.
    missing: BTreeMap<Node, String>,
    /// The revision after which etcd's own history begins.
    #[serde(skip)]
    etcd_since: i64,
}

/// The write or the deletion of a key.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    /// The revision of the change.
    revision: i64,
    /// The key, relative to the prefix.
    key: String,
    /// Its value before; null if the key was absent.
    before: Option<String>,
    /// Its value after; null if the key was deleted.
    after: Option<String>,
    /// The time of the change; null if neither an entry nor a balancer says it.
    time: Option<String>,
    /// The key changed after this revision, perhaps more than once: every balancer was away, and etcd has compacted the changes.
    after_revision: Option<i64>,
    /// The writer; null if discoverctl didn't make the change.
    author: Option<Author>,
    /// What became of the change at each balancer that knows of it.
    balancers: BTreeMap<Node, AppliedBy>,
}

impl History {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let since = match self.since {
            Some(Point::Revision(revision)) if revision > store.revision => {
                return Err(Error::Usage(format!("--since {revision}: the store is at {}", store.revision)));
            }
            Some(Point::Revision(revision)) => revision,
            _ => 1,
        };
        // A deleted service still has a history.
        let (ids, not_found) = self.service.find_with_past(&store.topology);
        let scope = if self.all { KeyScope::SettingsAndUpstreams } else { KeyScope::Settings };
        let past = context.read_past(&store, &ids, scope, since).await?;
        match not_found {
            Some(error) if past.changes.is_empty() => Err(error),
            _ => context.screen.show(&HistoryReport::new(past, self.since)).map(|()| Outcome::Yes),
        }
    }
}

impl HistoryReport {
    fn new(past: Past, since: Option<Point>) -> Self {
        let is_later = compare_with_point(&past.changes, since.unwrap_or(Point::Revision(0)));
        let reach = past.since_revision().max(match since {
            Some(Point::Revision(revision)) => revision,
            _ => 0,
        });
        Self {
            since: reach,
            logged_since: past.logged_since().map(format_time),
            compacted: past.is_compacted,
            revision: past.revision,
            etcd_since: past.etcd_since,
            missing: past.missing,
            // A change that may be older than --since is listed too.
            changes: past
                .changes
                .into_iter()
                .zip(is_later)
                .filter(|(_, is_later)| *is_later != Some(false))
                .map(|(change, _)| Row::from_change(change))
                .collect(),
        }
    }

    /// Says how far back the list reaches.
    fn describe_reach(&self) -> String {
        let since = self.since;
        match (&self.logged_since, self.compacted, self.changes.is_empty()) {
            (Some(time), true, _) if since < self.etcd_since => {
                format!(
                    "since revision {since}; before revision {} from the balancers' logs, which begin at {time}",
                    self.etcd_since
                )
            }
            (_, true, _) => format!("since revision {since}; what was before is compacted away"),
            (_, false, true) => format!("nothing has changed between revisions {since} and {}", self.revision),
            (_, false, false) => format!("since revision {since}"),
        }
    }
}

impl Row {
    fn from_change(change: PastChange) -> Self {
        let PastChange { revision, after_revision, key, before, after, time, author, balancers, .. } = change;
        Self { revision, key, before, after, time: time.map(format_time), after_revision, author, balancers }
    }

    fn describe_author(&self) -> Cell {
        match &self.author {
            Some(author) => author.to_string().into(),
            None => "unknown".into(),
        }
    }

    fn describe_reason(&self) -> Option<String> {
        let author = self.author.as_ref()?;
        Some(author.reason.clone().unwrap_or_else(|| author.command.clone()))
    }

    /// `lb1 runtime, lb2 restart`.
    fn describe_balancers(&self) -> Option<String> {
        let describe = |(node, it): (&Node, &AppliedBy)| match (&it.refused, &it.applied_by) {
            (Some(_), _) => format!("{node} refused"),
            (None, Some(by)) => format!("{node} {by}"),
            (None, None) => format!("{node} –"),
        };
        let all: Vec<String> = self.balancers.iter().map(describe).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }
}

fn format_time(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

impl Printable for HistoryReport {
    fn to_blocks(&self) -> Vec<Block> {
        let mut table = Table::new(["REVISION", "KEY", "BEFORE", "AFTER", "TIME", "BY", "REASON", "APPLIED"]);
        for row in &self.changes {
            let (before, after) = (Cell::or_dash(row.before.as_ref()), Cell::or_dash(row.after.as_ref()));
            table.add_row([
                row.revision.to_string().into(),
                row.key.as_str().into(),
                before,
                after,
                Cell::or_dash(row.time.as_ref()),
                row.describe_author(),
                Cell::or_dash(row.describe_reason()),
                Cell::or_dash(row.describe_balancers()),
            ]);
        }
        let missing = self.missing.iter().map(|(node, why)| format!("{node}'s log is missing: {why}"));
        let text: Vec<String> = [self.describe_reach()].into_iter().chain(missing).collect();
        vec![Block::Table(table), Block::Text(text.join("\n"))]
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::context::past::LogReach;

    fn change(revision: i64, author: Option<Author>) -> PastChange {
        let time = Some(UNIX_EPOCH + Duration::from_secs(revision.unsigned_abs()));
        PastChange { revision, key: "http-services/shop/active".into(), time, author, ..PastChange::default() }
    }

    #[test]
    fn the_list_begins_at_the_point_and_says_how_far_it_reaches() {
        let log = LogReach { since: UNIX_EPOCH, since_revision: 2, until_revision: 9 };
        let past = || Past {
            changes: vec![change(3, None), change(7, None), change(9, None)],
            etcd_since: 8,
            is_compacted: true,
            revision: 9,
            logs: [("lb1".parse().unwrap(), log)].into(),
            missing: BTreeMap::new(),
        };
        let listed = |since| HistoryReport::new(past(), since);
        let revisions = |report: &HistoryReport| report.changes.iter().map(|row| row.revision).collect::<Vec<_>>();
        let all = listed(None);
        assert_eq!(revisions(&all), [3, 7, 9]);
        let reach =
            "since revision 2; before revision 8 from the balancers' logs, which begin at 1970-01-01T00:00:00.000Z";
        assert_eq!(all.describe_reach(), reach);
        assert_eq!(revisions(&listed(Some(Point::Revision(3)))), [7, 9]);
        assert_eq!(revisions(&listed(Some(Point::Time(UNIX_EPOCH + Duration::from_secs(8))))), [9]);
        let alone = HistoryReport::new(Past { logs: BTreeMap::new(), ..past() }, None);
        assert_eq!(alone.describe_reach(), "since revision 8; what was before is compacted away");
    }

    #[test]
    fn a_writer_without_an_entry_is_unknown() {
        let author = Author {
            user: "alice".into(),
            host: "h".into(),
            command: "discoverctl color shop blue".into(),
            reason: None,
        };
        let cells = |change: PastChange| {
            let row = Row::from_change(change);
            (row.describe_author().text().to_owned(), row.describe_reason())
        };
        assert_eq!(cells(change(3, None)), ("unknown".into(), None));
        let command = author.command.clone();
        assert_eq!(cells(change(3, Some(author.clone()))), ("alice@h".into(), Some(command)));
        let author = Author { reason: Some("release".into()), ..author };
        assert_eq!(cells(change(3, Some(author))).1.as_deref(), Some("release"));
    }
}
