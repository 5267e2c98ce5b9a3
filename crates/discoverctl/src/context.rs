//! What every command has at hand, and how one that changes something goes about it.

pub(crate) mod at_revision;

use std::collections::{BTreeMap, BTreeSet};

use discovery::{BalancerRecords, ServiceId, UpstreamId};
use registry::Client;
use serde::Serialize;

use crate::balancer_api::BalancerApi;
use crate::edit::{Change, Edit};
use crate::error::Error;
use crate::error::Outcome;
use crate::print::{Block, Printable, Screen};
use crate::shared_options::Api;
use crate::shared_options::Changing;
use crate::shared_options::Common;
use crate::store::Store;
use crate::wait::{FollowGoal, goal_of_write, wait_until_followed};

/// The store, the balancers, and the screen.
pub(crate) struct Context {
    /// etcd.
    pub(crate) client: Client,
    api: Api,
    /// Where answers go.
    pub(crate) screen: Screen,
}

impl Context {
    /// Nothing is asked yet.
    pub(crate) fn new(common: Common) -> Result<Self, Error> {
        let client = Client::new(common.etcd.resolve()?);
        Ok(Self { client, api: common.api, screen: Screen::new(common.output) })
    }

    /// Everything below the prefix, at one revision.
    pub(crate) async fn read_store(&self) -> Result<Store, Error> {
        Ok(Store::from_snapshot(self.client.read_snapshot("").await?))
    }

    /// The API of the balancers that the store knows.
    pub(crate) fn balancer_api(&self, store: &Store) -> Result<BalancerApi, Error> {
        self.balancer_api_of(&store.balancers)
    }

    /// The API of these balancers.
    pub(crate) fn balancer_api_of(&self, balancers: &BalancerRecords) -> Result<BalancerApi, Error> {
        BalancerApi::new(&self.api, balancers, self.client.config().prefix())
    }

    /// Whether a fleet asks these balancers, as their keys describe them now.
    pub(crate) fn is_api_of(&self, fleet: &BalancerApi, balancers: &BalancerRecords) -> bool {
        fleet.matches_balancers(balancers, self.client.config().prefix())
    }

    /// Writes it and answers the revision; None where there is nothing to write.
    pub(crate) async fn commit_edit(&self, edit: &Edit) -> Result<Option<i64>, Error> {
        let mut revision = None;
        for txn in edit.to_transactions() {
            let committed = self.client.commit(txn).await?;
            if !committed.succeeded {
                let what = if revision.is_none() { "nothing was changed" } else { "a part of it was changed" };
                return Err(Error::Refused(format!("somebody changed the same keys in between: {what}; try again")));
            }
            revision = Some(committed.revision);
        }
        Ok(revision)
    }

    /// Writes it, waits for the balancers, and says what was done; with --dry-run says what would be. `drained` must have no
    /// request left.
    pub(crate) async fn apply_edit(
        &self,
        store: &Store,
        edit: &Edit,
        changing: &Changing,
        drained: BTreeSet<(ServiceId, UpstreamId)>,
    ) -> Result<Outcome, Error> {
        self.apply_edit_until(store, edit, changing, FollowGoal { drained, ..FollowGoal::default() }).await
    }

    /// The same where something else has to come true than that balancers follow, or more.
    pub(crate) async fn apply_edit_until(
        &self,
        store: &Store,
        edit: &Edit,
        changing: &Changing,
        what: FollowGoal,
    ) -> Result<Outcome, Error> {
        let mut done = ChangeReport::from_edit(edit);
        if changing.dry_run {
            done.is_dry = true;
        } else {
            let written = self.commit_edit(edit).await?;
            // What stands already may not be followed yet. Balancers say how far they follow the services' keys: the
            // store's own revision may be ahead of that for ever.
            let revision =
                written.unwrap_or_else(|| store.newest_revision_of(what.drained.iter().map(|(service, _)| service)));
            done.revision = written;
            if !changing.no_wait {
                let keys = edit.changes().map(|(key, _)| key.clone());
                let FollowGoal { revision, services, keys, .. } = goal_of_write(revision, keys);
                let awaited = FollowGoal { revision, services, keys, ..what };
                let followed = wait_until_followed(&self.client, &awaited, changing.timeout).await;
                if followed.is_err() && !self.screen.is_for_programs() {
                    self.screen.show(&done)?;
                }
                let followed = followed?;
                done.followed_by = Some(followed.by.iter().map(ToString::to_string).collect());
                done.seconds = Some(followed.took.as_secs_f64());
            }
        }
        self.screen.show(&done)?;
        Ok(Outcome::Yes)
    }
}

/// What a command did, or would do.
#[derive(Clone, Debug, Default, Serialize)]
struct ChangeReport {
    /// By key, relative to the prefix.
    changed: BTreeMap<String, Values>,
    /// Nothing was written: --dry-run.
    is_dry: bool,
    /// Where it was written; null where nothing was.
    revision: Option<i64>,
    /// The balancers that follow; null where nobody was waited for.
    followed_by: Option<Vec<String>>,
    /// How long that took.
    seconds: Option<f64>,
}

/// A key's value before and after; null is no key.
#[derive(Clone, Debug, Serialize)]
struct Values {
    before: Option<String>,
    after: Option<String>,
}

impl ChangeReport {
    fn from_edit(edit: &Edit) -> Self {
        let values = |Change { before, after }: &Change| Values {
            before: before.as_ref().map(|entry| String::from_utf8_lossy(&entry.value).into_owned()),
            after: after.clone(),
        };
        let changed = edit.changes().map(|(key, change)| (key.clone(), values(change))).collect();
        Self { changed, ..Self::default() }
    }
}

impl Printable for ChangeReport {
    fn to_blocks(&self) -> Vec<Block> {
        let line = |(key, Values { before, after }): (&String, &Values)| match (before, after) {
            (None, Some(after)) => format!("{key}: {after}"),
            (Some(before), Some(after)) => format!("{key}: {before} → {after}"),
            (Some(before), None) => format!("{key}: deleted, was {before}"),
            (None, None) => key.clone(),
        };
        // A value may be of several lines; each stays on its own.
        let mut lines: Vec<String> = self.changed.iter().map(line).map(|line| line.replace('\n', "\\n")).collect();
        if lines.is_empty() {
            lines.push("nothing to change".into());
        }
        let written = self.revision.map(|revision| format!("written at revision {revision}; ")).unwrap_or_default();
        lines.push(match &self.followed_by {
            _ if self.is_dry => "nothing was written: --dry-run".into(),
            None => format!("{written}no balancer was waited for"),
            Some(by) if by.is_empty() => format!("{written}no balancer lives that could follow"),
            Some(by) => format!("followed by {} after {:.1} s", by.join(", "), self.seconds.unwrap_or_default()),
        });
        vec![Block::Text(lines.join("\n"))]
    }
}
