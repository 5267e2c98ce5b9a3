//! `rollback`: a service's settings and overrides as they were.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use discovery::{Entry, ServiceId, Snapshot};

use crate::context::past::Past;
use crate::context::past::point::{Point, TimeArg};
use crate::context::past::undo::{compare_with_point, undo_changes};
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
  Restore the state of two hours ago, or of a point in time:
      discoverctl rollback shop --to 2h
      discoverctl rollback shop --to 2026-11-30T10:13:06Z

What etcd has compacted away comes from the balancers' logs. It is refused if they have not every change since then. It restores settings and overrides in one transaction, and leaves upstreams' records alone.";

#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The service: shop, or http-shop or tcp-shop if two have the name
    #[arg(value_name = "SVC")]
    service: ServiceArg,
    /// Restore the state at this revision
    #[arg(value_name = "REV", required_unless_present = "to")]
    revision: Option<i64>,
    /// Restore the state at this time, or this long ago
    #[arg(long, value_name = "TIME", conflicts_with = "revision")]
    to: Option<TimeArg>,
    #[command(flatten)]
    changing: Changing,
}

impl Rollback {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let (id, then) = match (self.to, self.revision) {
            (Some(TimeArg(time)), _) => self.read_logged(context, &store, Point::Time(time)).await?,
            (None, Some(revision)) => self.read_revision(context, &store, revision).await?,
            (None, None) => return Err(Error::Usage("a REV, or --to TIME".into())),
        };
        let edit = plan_rollback(&store, &then, &id)?;
        // Another service may have taken a host or a port since then.
        durable_keys::check_claims(&store, &edit)?;
        context.apply_edit(&store, &edit, &self.changing, BTreeSet::new()).await
    }
}

impl Rollback {
    /// Reads the service at a revision, from etcd or else from the balancers' logs.
    async fn read_revision(
        &self,
        context: &Context,
        store: &Store,
        revision: i64,
    ) -> Result<(ServiceId, Store), Error> {
        match at_revision::read_store_at(context, revision, store).await {
            Ok(then) => Ok((durable_keys::find_service(&self.service, &store.topology, &then.topology)?, then)),
            // etcd's error says how far back etcd reaches.
            Err(Error::Refused(compacted)) => {
                let logged = self.read_logged(context, store, Point::Revision(revision)).await;
                logged.map_err(|error| Error::Refused(format!("{compacted}, and {error}")))
            }
            Err(other) => Err(other),
        }
    }

    /// Finds the service and its past. A deleted service still has one.
    async fn find_past(&self, context: &Context, store: &Store) -> Result<(ServiceId, Past), Error> {
        let (ids, not_found) = self.service.find_with_past(&store.topology);
        // Two services may have had the name. The one with a past is meant.
        for id in ids {
            let past = context.read_past(store, std::slice::from_ref(&id), KeyScope::Settings, 1).await?;
            if not_found.is_none() || !past.changes.is_empty() {
                return Ok((id, past));
            }
        }
        Err(not_found.unwrap_or_else(|| Error::Refused(format!("no service {} in the store", self.service))))
    }

    /// Computes the service at a point from the logs of changes.
    async fn read_logged(&self, context: &Context, store: &Store, point: Point) -> Result<(ServiceId, Store), Error> {
        let (id, mut past) = self.find_past(context, store).await?;
        // Another client may have changed a key since the store was read. Then the transaction is refused.
        past.changes.retain(|change| change.revision <= store.revision);
        check_reach(&past, point).map_err(|why| Error::Refused(format!("{why}{}", describe_missing(&past))))?;
        let mut now = BTreeMap::new();
        for (key, entry) in KeyScope::Settings.select_entries(&store.entries, Some(&id)) {
            now.insert(key.to_owned(), durable_keys::value_text(entry)?.to_owned());
        }
        let then = undo_changes(&now, &past.changes, point)
            .map_err(|error| Error::Refused(format!("{error}; nothing was changed{}", describe_missing(&past))))?;
        let entry = |(key, value): (String, String)| Entry {
            key,
            value: value.into_bytes(),
            create_revision: 1,
            mod_revision: 1,
            lease: 0,
        };
        let revision = match point {
            Point::Revision(revision) => revision,
            Point::Time(_) => last_revision(&past, point),
        };
        let entries = then.into_iter().map(entry).collect();
        Ok((id, Store::from_snapshot(Snapshot { cluster: store.cluster, revision, raft_term: 0, entries })))
    }
}

/// Checks that the list has every change after the point.
fn check_reach(past: &Past, point: Point) -> Result<(), String> {
    // A log that ends before etcd's history begins leaves a gap.
    let mut whole = past.logs.values().filter(|log| log.until_revision >= past.etcd_since);
    let is_logged = whole.any(|log| match point {
        Point::Time(at) => log.since <= at,
        Point::Revision(at) => log.since_revision <= at,
    });
    let is_in_etcd = match point {
        Point::Revision(at) => past.etcd_since <= at,
        // A change before the point that etcd has shows that etcd has all later ones too.
        Point::Time(_) => last_revision(past, point) >= past.etcd_since.max(1),
    };
    if !past.is_compacted || is_logged || is_in_etcd {
        return Ok(());
    }
    let logs = match past.logged_since() {
        Some(time) => format!("the balancers' logs begin at {}", humantime::format_rfc3339_millis(time)),
        None => "no balancer has a log".to_owned(),
    };
    Err(format!("{logs}, and etcd's history begins at revision {}; nothing was changed", past.etcd_since))
}

/// The revision of the last change before the point; 0 if there is none.
fn last_revision(past: &Past, point: Point) -> i64 {
    let later = compare_with_point(&past.changes, point);
    let earlier = past.changes.iter().zip(later).filter(|(_, is_later)| *is_later == Some(false));
    earlier.map(|(change, _)| change.revision).max().unwrap_or_default()
}

fn describe_missing(past: &Past) -> String {
    past.missing.iter().map(|(node, why)| format!("; {node}'s log is missing: {why}")).collect()
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
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::context::past::LogReach;
    use crate::context::past::merge::PastChange;

    #[test]
    fn a_point_is_refused_unless_a_source_has_every_later_change() {
        let at = |second: u64| Point::Time(UNIX_EPOCH + Duration::from_secs(second));
        let time = Some(UNIX_EPOCH + Duration::from_secs(50));
        let change = PastChange { revision: 5, time, ..PastChange::default() };
        let past = Past { etcd_since: 4, is_compacted: true, changes: vec![change], ..Past::default() };
        assert!(check_reach(&past, Point::Revision(4)).is_ok() && check_reach(&past, at(50)).is_ok());
        let refused = check_reach(&past, at(49)).unwrap_err();
        assert_eq!(refused, "no balancer has a log, and etcd's history begins at revision 4; nothing was changed");
        assert!(check_reach(&past, Point::Revision(3)).is_err());
        let since = UNIX_EPOCH + Duration::from_secs(30);
        let log = LogReach { since, since_revision: 3, until_revision: 4 };
        let late = LogReach { until_revision: 3, ..log };
        let lagging = Past { logs: [("lb1".parse().unwrap(), late)].into(), ..Past::default() };
        assert!(check_reach(&Past { etcd_since: 4, is_compacted: true, ..lagging }, at(30)).is_err());
        let logged = Past { logs: [("lb1".parse().unwrap(), log)].into(), ..past };
        assert!(check_reach(&logged, Point::Revision(3)).is_ok() && check_reach(&logged, at(30)).is_ok());
        assert!(
            check_reach(&logged, at(29))
                .unwrap_err()
                .starts_with("the balancers' logs begin at 1970-01-01T00:00:30.000Z")
        );
        assert!(check_reach(&Past { is_compacted: false, ..logged }, at(1)).is_ok());
    }

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
