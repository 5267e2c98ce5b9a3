//! `rollback`: a service's settings and overrides as they were.

use std::collections::BTreeSet;

use clap::Args;
use discovery::ServiceId;

use crate::context::{Context, at_revision};
use crate::durable_keys::{self, KeyScope};
use crate::edit::Edit;
use crate::error::{Error, Outcome};
use crate::shared_options::Changing;
use crate::store::Store;
use crate::target::ServiceArg;

pub(crate) const EXAMPLES: &str = "Examples:
  Print what would be written:
      discoverctl rollback shop 1200 --dry-run
  Restore the state at revision 1200, which `discoverctl history shop` lists:
      discoverctl rollback shop 1200

It restores settings and overrides in one transaction, and leaves upstreams' records alone.";

#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The service: shop, or http-shop or tcp-shop if two have the name
    #[arg(value_name = "SVC")]
    service: ServiceArg,
    /// Restore the state at this revision
    #[arg(value_name = "REV")]
    revision: i64,
    #[command(flatten)]
    changing: Changing,
}

impl Rollback {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let then = at_revision::read_store_at(context, self.revision, &store).await?;
        let id = durable_keys::find_service(&self.service, &store.topology, &then.topology)?;
        let edit = plan_rollback(&store, &then, &id)?;
        // Another service may have taken a host or a port since then.
        durable_keys::check_claims(&store, &edit)?;
        context.apply_edit(&store, &edit, &self.changing, BTreeSet::new()).await
    }
}

/// Plans the edit that restores the settings and overrides of `then`.
fn plan_rollback(store: &Store, then: &Store, id: &ServiceId) -> Result<Edit, Error> {
    let old = KeyScope::Settings.select_entries(&then.entries, Some(id));
    // An empty past would delete all present settings, which an operator has to ask `delete` for.
    if old.is_empty() {
        let words = format!("{id} had no settings at revision {}; nothing was changed", then.revision);
        return Err(Error::Refused(format!("{words} (discoverctl delete takes a service away)")));
    }
    let mut edit = Edit::default();
    for (key, entry) in &old {
        let key = key.parse().map_err(|oddity| Error::Failed(format!("{key}: {oddity}")))?;
        edit.put(store, &key, durable_keys::value_text(entry)?);
    }
    // Keys that are newer than the revision did not exist then.
    for key in KeyScope::Settings.select_entries(&store.entries, Some(id)).keys().filter(|key| !old.contains_key(*key))
    {
        edit.delete(store, key);
    }
    Ok(edit)
}

#[cfg(test)]
mod tests {
    use discovery::{Entry, Snapshot};

    use super::*;

    #[test]
    fn keys_come_back_and_newer_ones_go() {
        let store = |revision, keys: &[(&str, &str)]| {
            let entry = |(key, value): &(&str, &str)| Entry {
                key: format!("http-services/{key}"),
                value: (*value).into(),
                create_revision: 1,
                mod_revision: revision,
                lease: 0,
            };
            let entries = keys.iter().map(entry).collect();
            Store::from_snapshot(Snapshot { cluster: 1, revision, raft_term: 1, entries })
        };
        let then = store(5, &[("a/balance", "random"), ("a/domain", "a.com"), ("a/upstreams/x", "10.0.0.1:80")]);
        let now = store(
            9,
            &[("a/domain", "a.com"), ("a/hsts", "180d"), ("a/upstreams/y", "10.0.0.2:80"), ("b/domain", "b.com")],
        );
        let id = |text: &str| text.parse::<discovery::Key>().unwrap().service_id().unwrap().clone();
        let edit = plan_rollback(&now, &then, &id("http-services/a/domain")).unwrap();
        let changes: Vec<_> = edit.changes().map(|(key, change)| (key.as_str(), change.after.as_deref())).collect();
        assert_eq!(changes, [("http-services/a/balance", Some("random")), ("http-services/a/hsts", None)]);
        assert!(plan_rollback(&now, &then, &id("http-services/b/domain")).is_err());
    }
}
