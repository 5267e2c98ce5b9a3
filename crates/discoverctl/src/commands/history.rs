//! `history`: the changes of a service's keys, as far back as etcd keeps them.

use std::collections::BTreeMap;

use clap::Args;
use discovery::{Change, Entry, Kind, ServiceId};
use registry::Changes;
use serde::Serialize;

use crate::context::Context;
use crate::durable_keys::{self, KeyScope};
use crate::error::{Error, Outcome};
use crate::print::{Block, Cell, Printable, Table};
use crate::store::lossy_text;
use crate::target::ServiceArg;

pub(crate) const EXAMPLES: &str = "Examples:
  discoverctl history shop
  discoverctl history shop --since 1200
  discoverctl history shop --all --output json | jq '.changes[-1]'

etcd keeps old revisions as its --auto-compaction-retention says.";

#[derive(Debug, Args)]
pub(crate) struct History {
    /// The service: shop, or http-shop or tcp-shop if two have the name
    #[arg(value_name = "SVC")]
    service: ServiceArg,
    /// List only changes after this revision
    #[arg(long, value_name = "REV", default_value_t = 1, hide_default_value = true)]
    since: i64,
    /// List changes of upstreams' records too, which come and go
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Default, Serialize)]
struct ChangeLog {
    /// The revision after which the list begins. Older changes are compacted away, or --since left them out.
    since: i64,
    /// `since` comes from a compaction, not from --since.
    compacted: bool,
    revision: i64,
    changes: Vec<Row>,
}

/// The write or the deletion of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Row {
    /// The revision of the change.
    revision: i64,
    /// The key, relative to the prefix.
    key: String,
    /// Its value before; null if the key was absent.
    before: Option<String>,
    /// Its value after; null if the key was deleted.
    after: Option<String>,
}

impl History {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        if self.since > store.revision {
            return Err(Error::Usage(format!("--since {}: the store is at {}", self.since, store.revision)));
        }
        let found = self.service.find_service(&store.topology);
        // A deleted service still has a history, in both kinds.
        let kinds = [Kind::Http, Kind::Tcp].map(Some);
        let ids: Vec<ServiceId> = match &found {
            Ok(id) => vec![id.clone()],
            Err(Error::Refused(_)) => kinds
                .into_iter()
                .map(|kind| self.service.find_or_name_new(&store.topology, kind))
                .collect::<Result<_, _>>()?,
            Err(_) => Vec::new(),
        };
        let scope = if self.all { KeyScope::SettingsAndUpstreams } else { KeyScope::Settings };
        let mut log = ChangeLog::default();
        for folder in ids.iter().flat_map(durable_keys::list_folders) {
            log.add_changes(&context.client.changes_since(&folder, self.since).await?, scope, self.since);
        }
        log.changes.sort();
        match found {
            Err(error) if log.changes.is_empty() => Err(error),
            _ => context.screen.show(&log).map(|()| Outcome::Yes),
        }
    }
}

impl ChangeLog {
    fn add_changes(&mut self, listed: &Changes, scope: KeyScope, asked: i64) {
        self.since = self.since.max(listed.before.revision);
        self.compacted |= listed.before.revision > asked.max(1);
        self.revision = self.revision.max(listed.revision);
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
                let (before, after) = (before.map(lossy_text), after.map(lossy_text));
                self.changes.push(Row { revision, key: change.key().to_owned(), before, after });
            }
        }
    }
}

impl Printable for ChangeLog {
    fn to_blocks(&self) -> Vec<Block> {
        let mut table = Table::new(["REVISION", "KEY", "BEFORE", "AFTER"]);
        for row in &self.changes {
            let (before, after) = (Cell::or_dash(row.before.as_ref()), Cell::or_dash(row.after.as_ref()));
            table.add_row([row.revision.to_string().into(), row.key.as_str().into(), before, after]);
        }
        let reach = match (self.compacted, self.changes.is_empty()) {
            (true, _) => format!("since revision {}; what was before is compacted away", self.since),
            (false, true) => format!("nothing has changed between revisions {} and {}", self.since, self.revision),
            (false, false) => format!("since revision {}", self.since),
        };
        vec![Block::Table(table), Block::Text(reach)]
    }
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
        let log = |scope| {
            let mut log = ChangeLog::default();
            log.add_changes(&listed, scope, 1);
            log
        };
        let settings = log(KeyScope::Settings);
        assert_eq!((settings.since, settings.compacted, settings.revision), (5, true, 10));
        let row = |revision, before: Option<&str>, after: Option<&str>| Row {
            revision,
            key: "http-services/shop/active".into(),
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
        };
        let step = "blue=90 green=10";
        assert_eq!(settings.changes, [row(6, Some("blue"), Some(step)), row(9, Some(step), None)]);
        assert_eq!(log(KeyScope::SettingsAndUpstreams).changes.len(), 3);
    }
}
