//! `accept-store`: the operator says that keys which the store lacks are meant to be missing.

use clap::Args;
use discovery::{Acceptance, BalancerRecord, BalancerRecords, Key, Node};

use crate::context::Context;
use crate::edit::Edit;
use crate::error::{Error, Outcome};
use crate::shared_options::Changing;
use crate::store::Store;
use crate::wait::FollowGoal;

pub(crate) const EXAMPLES: &str = "Examples:
  Print what is retained, and what would be written:
      discoverctl accept-store --dry-run
  Accept the store as it is:
      discoverctl accept-store

After a store was wiped or restored, balancers serve every old key until that key is written again. If too many upstreams lose
their keys without notice, the removal guard serves them until a check fails. This command says that the missing keys are meant
to be missing. Each balancer stops serving them at once. The command writes control/accept-store, waits for all live balancers,
and deletes the key. It applies to keys that were missing before it, and to none later. If no balancer retains anything, it is
refused (exit code 4).";

#[derive(Debug, Args)]
pub(crate) struct AcceptStore {
    #[command(flatten)]
    changing: Changing,
}

impl AcceptStore {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let retaining = find_retaining(&store.balancers);
        if retaining.is_empty() {
            return self.delete_leftover(context, &store).await;
        }
        let word = Acceptance { cluster: store.cluster, revision: store.revision };
        let mut edit = Edit::default();
        edit.put(&store, &Key::AcceptStore, word.to_string());
        if !context.screen.is_for_programs() {
            context.screen.print(&describe_retained(&retaining));
        }
        let awaited = FollowGoal { releases_retained: true, ..FollowGoal::default() };
        let outcome = context.apply_edit_until(&store, &edit, &self.changing, awaited).await?;
        // Without the wait a balancer may not have read the key yet. `lint` reports a key that is left over.
        if !self.changing.dry_run && !self.changing.no_wait {
            delete_acceptance(context, &word, self.changing.reason.as_deref()).await?;
        }
        Ok(outcome)
    }

    /// Deletes the key of an earlier acceptance. Without such a key there is nothing to accept, and the command is
    /// refused.
    async fn delete_leftover(&self, context: &Context, store: &Store) -> Result<Outcome, Error> {
        let mut edit = Edit::default();
        edit.delete(store, &Key::AcceptStore.to_string());
        if edit.changes().next().is_some() {
            return context.apply_edit_until(store, &edit, &self.changing, FollowGoal::default()).await;
        }
        Err(Error::Refused(match store.balancers.is_empty() {
            true => "no balancer lives that could retain anything: run it again once one does".into(),
            false => "no balancer retains anything that the store lacks: there is nothing to accept".into(),
        }))
    }
}

/// Deletes the acceptance after every balancer applied it. A newer acceptance, of another operator, stays.
async fn delete_acceptance(context: &Context, acceptance: &Acceptance, reason: Option<&str>) -> Result<(), Error> {
    let store = context.read_store().await?;
    let key = Key::AcceptStore.to_string();
    let standing = store.find_entry(&key).and_then(|entry| Acceptance::parse(&entry.value).ok());
    // Another operator may have written a later acceptance, which balancers still have to read.
    if standing.as_ref() == Some(acceptance) {
        let mut edit = Edit::default();
        edit.delete(&store, &key);
        context.commit_edit(&store, &edit, reason).await?;
    }
    Ok(())
}

/// Finds the balancers that retain keys or upstreams.
fn find_retaining(balancers: &BalancerRecords) -> Vec<(&Node, &BalancerRecord)> {
    let record = balancers.records_by_node().filter_map(|(node, record)| Some((node, record?)));
    record.filter(|(_, record)| record.retains_anything()).collect()
}

/// Describes the number of keys and upstreams that each balancer retains.
fn describe_retained(retaining: &[(&Node, &BalancerRecord)]) -> String {
    let mut words = Vec::new();
    for (node, record) in retaining {
        // A record lists at most so many upstreams. `more` says that the list was cut.
        let cut = if record.more.contains("held") { " or more" } else { "" };
        let keys = record.lost.filter(|lost| lost.keys > 0);
        let keys = keys.map(|lost| format!("{} {}, ", lost.keys, if lost.keys == 1 { "key" } else { "keys" }));
        let upstreams = if record.held.len() == 1 && cut.is_empty() { "upstream" } else { "upstreams" };
        words.push(format!("{node} retains {}{}{cut} {upstreams}", keys.unwrap_or_default(), record.held.len()));
    }
    format!("{}: what the store lacks of it goes now", words.join(", "))
}

#[cfg(test)]
mod tests {
    use discovery::{Entry, Snapshot};

    use super::*;

    fn describe_one(held: &str, lost: &str) -> Option<String> {
        let value = format!(r#"{{"cluster":"7","applied":1,"pending":[],"held":[{held}],"draining":{{}}{lost}}}"#);
        let entry =
            Entry { key: "balancers/lb1".into(), value: value.into(), create_revision: 1, mod_revision: 1, lease: 7 };
        let balancers =
            BalancerRecords::from_snapshot(&Snapshot { cluster: 7, revision: 9, raft_term: 1, entries: vec![entry] });
        let retaining = find_retaining(&balancers);
        (!retaining.is_empty()).then(|| describe_retained(&retaining))
    }

    #[test]
    fn each_balancer_that_retains_something_is_named() {
        let lost = |keys: usize| format!(r#","lost":{{"revision":3,"keys":{keys}}}"#);
        assert_eq!(describe_one("", &lost(0)), None);
        assert_eq!(describe_one(r#""http-a/x""#, &lost(0)), None, "an older confgen accepts nothing of its guard");
        let guarded = format!(r#"{},"guarded":1"#, lost(0));
        let words = "lb1 retains 1 upstream: what the store lacks of it goes now";
        assert_eq!(describe_one(r#""http-a/x""#, &guarded).unwrap(), words);
        assert_eq!(
            describe_one(r#""http-a/x""#, &lost(4)).unwrap(),
            "lb1 retains 4 keys, 1 upstream: what the store lacks of it goes now"
        );
        assert!(describe_one("", &lost(4)).is_some(), "settings are retained too");
        // An older confgen names upstreams only.
        assert_eq!(describe_one("", ""), None);
        assert!(describe_one(r#""http-a/x""#, "").unwrap().starts_with("lb1 retains 1 upstream:"));
    }
}
