//! `diff`: differences between two revisions.

use std::collections::BTreeSet;

use clap::Args;
use serde::Serialize;

use crate::context::{Context, at_revision};
use crate::durable_keys::{self, KeyScope};
use crate::error::{Error, Outcome};
use crate::print::{Block, Cell, Printable, Table};
use crate::store::{Store, lossy_text};
use crate::target::ServiceArg;

pub(crate) const EXAMPLES: &str = "Examples:
  Show the changes since revision 1200:
      discoverctl diff 1200
  Compare one service between two revisions:
      discoverctl diff 1200 1250 --service shop

Exit code 1 if anything differs.";

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// Compare this revision, the older one
    #[arg(value_name = "REV")]
    from: i64,
    /// Compare with this revision instead of the present one
    #[arg(value_name = "REV")]
    to: Option<i64>,
    /// Compare this service instead of all
    #[arg(long, value_name = "SVC")]
    service: Option<ServiceArg>,
    /// Compare upstreams' records too, which come and go
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Serialize)]
struct Differences {
    from: i64,
    to: i64,
    differences: Vec<Difference>,
}

/// A key with different values.
#[derive(Debug, Serialize)]
struct Difference {
    /// The key, relative to the prefix.
    key: String,
    /// Its value at `from`; null if the key is absent.
    before: Option<String>,
    /// Its value at `to`; null if the key is absent.
    after: Option<String>,
}

impl Diff {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let now = context.read_store().await?;
        let before = at_revision::read_store_at(context, self.from, &now).await?;
        let after = match self.to {
            Some(to) => at_revision::read_store_at(context, to, &now).await?,
            None => now,
        };
        let only =
            self.service.as_ref().map(|named| durable_keys::find_service(named, &after.topology, &before.topology));
        let scope = if self.all { KeyScope::SettingsAndUpstreams } else { KeyScope::Settings };
        let differences = Differences::between(&before, &after, scope, only.transpose()?.as_ref());
        context.screen.show(&differences)?;
        Ok(if differences.differences.is_empty() { Outcome::Yes } else { Outcome::No })
    }
}

impl Differences {
    fn between(before: &Store, after: &Store, scope: KeyScope, only: Option<&discovery::ServiceId>) -> Self {
        let (old, new) = (scope.select_entries(&before.entries, only), scope.select_entries(&after.entries, only));
        let keys: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
        let mut differences = Vec::new();
        for key in keys {
            let (before, after) = (old.get(key), new.get(key));
            if before.map(|entry| &entry.value) != after.map(|entry| &entry.value) {
                let (before, after) = (before.map(|it| lossy_text(it)), after.map(|it| lossy_text(it)));
                differences.push(Difference { key: key.to_owned(), before, after });
            }
        }
        Self { differences, from: before.revision, to: after.revision }
    }
}

impl Printable for Differences {
    fn to_blocks(&self) -> Vec<Block> {
        let Self { from, to, differences } = self;
        if differences.is_empty() {
            return vec![Block::Text(format!("nothing differs between revisions {from} and {to}"))];
        }
        let (old, new) = (format!("revision {from}"), format!("revision {to}"));
        let mut table = Table::new(["KEY", "BEFORE", "AFTER"]);
        for it in differences {
            table.add_row([
                it.key.as_str().into(),
                Cell::or_dash(it.before.as_ref()),
                Cell::or_dash(it.after.as_ref()),
            ]);
        }
        vec![Block::Text(format!("{old} and {new}")), Block::Table(table)]
    }
}

#[cfg(test)]
mod tests {
    use discovery::{Entry, Snapshot};

    use super::*;

    #[test]
    fn keys_that_came_went_or_say_something_else() {
        let store = |revision, keys: &[(&str, &str, i64)]| {
            let entry = |(key, value, lease): &(&str, &str, i64)| Entry {
                key: format!("http-services/{key}"),
                value: (*value).into(),
                create_revision: 1,
                mod_revision: revision,
                lease: *lease,
            };
            let entries = keys.iter().map(entry).collect();
            Store::from_snapshot(Snapshot { cluster: 1, revision, raft_term: 1, entries })
        };
        let before =
            store(5, &[("a/balance", "random", 0), ("a/domain", "a.com", 0), ("a/upstreams/x", "10.0.0.1:80", 3)]);
        let after = store(9, &[("a/domain", "a.com b.com", 0), ("b/domain", "c.com", 0)]);
        let all = |scope, only| {
            let found = Differences::between(&before, &after, scope, only).differences;
            found.into_iter().map(|it| (it.key, it.before, it.after)).collect::<Vec<_>>()
        };
        let settings = all(KeyScope::Settings, None);
        assert_eq!(settings.len(), 3);
        assert_eq!(settings[0], ("http-services/a/balance".into(), Some("random".into()), None));
        assert_eq!(settings[2].1, None);
        let id = after.topology.services().keys().next().unwrap();
        assert_eq!(all(KeyScope::SettingsAndUpstreams, Some(id)).len(), 3);
    }
}
