//! The context of a command: etcd, the balancers' API and the screen. Each command that changes keys does so through
//! it.

pub(crate) mod at_revision;
mod change_log;
pub(crate) mod past;

use std::collections::{BTreeMap, BTreeSet};

use discovery::{BalancerRecords, ServiceId, UpstreamId};
use registry::{Client, Committed, Txn};
use serde::Serialize;

use crate::balancer_api::BalancerApi;
use crate::context::change_log::{ChangeLog, find_surplus_entries};
use crate::edit::{Change, Edit};
use crate::error::{Error, Outcome};
use crate::print::{Block, Printable, Screen};
use crate::shared_options::{Api, Changing, Common};
use crate::store::{Store, lossy_text};
use crate::wait::{FollowGoal, goal_of_write, wait_with_records};

pub(crate) use change_log::{Note, check_reason};

/// The context of one command.
pub(crate) struct Context {
    pub(crate) client: Client,
    api: Api,
    log: ChangeLog,
    /// Writes answers to standard output.
    pub(crate) screen: Screen,
}

impl Context {
    pub(crate) fn new(common: Common) -> Result<Self, Error> {
        let client = Client::new(common.etcd.resolve()?);
        Ok(Self { client, log: ChangeLog::new(&common.logging), api: common.api, screen: Screen::new(common.output) })
    }

    /// Reads everything below the prefix, at one revision.
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

    /// An API asks exactly these balancers, at the URLs that their keys name now.
    pub(crate) fn is_api_of(&self, api: &BalancerApi, balancers: &BalancerRecords) -> bool {
        api.matches_balancers(balancers, self.client.config().prefix())
    }

    /// Runs a transaction, with its entry in the change log.
    pub(crate) async fn commit_logged(&self, txn: Txn, note: &Note<'_>) -> Result<Committed, registry::Error> {
        self.log.commit(&self.client, txn, note).await
    }

    /// Writes an edit, and who did it. Returns the revision, or None if the edit is empty.
    ///
    /// # Errors
    /// [`Error::Refused`] if a key was changed since it was read, [`Error::WrittenInPart`] if that, or another error, came after
    /// the first transaction.
    pub(crate) async fn commit_edit(
        &self,
        store: &Store,
        edit: &Edit,
        reason: Option<&str>,
    ) -> Result<Option<i64>, Error> {
        check_reason(reason)?;
        let mut revision = None;
        let mut surplus = find_surplus_entries(&store.entries);
        for (keys, txn) in edit.to_transactions() {
            let note = Note { keys, reason, surplus: std::mem::take(&mut surplus) };
            let committed = self.commit_logged(txn, &note).await.map_err(Error::from);
            let committed = committed.and_then(|committed| match committed.succeeded {
                true => Ok(committed.revision),
                false => Err(Error::Refused("another client changed the same keys in between".into())),
            });
            // An edit of more than 110 keys has several transactions, and the first ones can't be taken back.
            revision = Some(committed.map_err(|error| match (revision, error) {
                (Some(revision), error) => Error::WrittenInPart { revision, reason: error.to_string() },
                (None, Error::Refused(reason)) => Error::Refused(format!("{reason}: nothing was changed; try again")),
                (None, error) => error,
            })?);
        }
        Ok(revision)
    }

    /// Writes an edit, waits for the balancers, and reports the changes. With --dry-run it only reports them. At the
    /// end no request may be open on the `drained` upstreams.
    pub(crate) async fn apply_edit(
        &self,
        store: &Store,
        edit: &Edit,
        changing: &Changing,
        drained: BTreeSet<(ServiceId, UpstreamId)>,
    ) -> Result<Outcome, Error> {
        self.apply_edit_until(store, edit, changing, FollowGoal { drained, ..FollowGoal::default() }).await
    }

    /// Writes an edit and waits until the balancers meet a goal, like [`Context::apply_edit`].
    pub(crate) async fn apply_edit_until(
        &self,
        store: &Store,
        edit: &Edit,
        changing: &Changing,
        goal: FollowGoal,
    ) -> Result<Outcome, Error> {
        let written = self.write_edit(store, edit, changing, goal).await?;
        // The keys are written, so the operator has to see them before the error.
        if written.followed.is_ok() || !self.screen.is_for_programs() {
            self.screen.show(&written.report)?;
        }
        written.followed.map(|()| Outcome::Yes)
    }

    /// Writes an edit and waits until the balancers meet a goal. With --dry-run it does neither.
    ///
    /// # Errors
    /// If not everything was written. [`Written::followed`] has the error of the wait.
    pub(crate) async fn write_edit(
        &self,
        store: &Store,
        edit: &Edit,
        changing: &Changing,
        goal: FollowGoal,
    ) -> Result<Written, Error> {
        let mut done = Written::from_edit(edit);
        if changing.dry_run {
            done.report.is_dry = true;
            return Ok(done);
        }
        done.report.revision = self.commit_edit(store, edit, changing.reason.as_deref()).await?;
        if changing.no_wait {
            return Ok(done);
        }
        // An unchanged key may still be unapplied. Balancers report the revision of the services' keys. The store's
        // own revision may stay ahead of that for ever, because other keys count there too.
        let services = goal.drained.iter().map(|(service, _)| service);
        done.revision = done.report.revision.unwrap_or_else(|| store.newest_revision_of(services));
        // The caller knows what has to be drained or released, the edit its services and keys.
        let keys = edit.changes().map(|(key, _)| key.clone());
        let FollowGoal { revision, services, keys, .. } = goal_of_write(done.revision, keys);
        let goal = FollowGoal { revision, services, keys, ..goal };
        done.balancers = store.balancers.clone();
        match wait_with_records(&self.client, &goal, changing.timeout, &mut done.balancers).await {
            Ok(followed) => {
                done.report.followed_by = Some(followed.by.iter().map(ToString::to_string).collect());
                done.report.seconds = Some(followed.took.as_secs_f64());
            }
            Err(error) => (done.report.has_waited_in_vain, done.followed) = (true, Err(error)),
        }
        Ok(done)
    }
}

/// The outcome of [`Context::write_edit`].
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) report: ChangeReport,
    /// The revision that balancers were waited for to follow; 0 if the command didn't wait.
    pub(crate) revision: i64,
    /// The balancers' records at the end of the wait.
    pub(crate) balancers: BalancerRecords,
    /// The error of the wait.
    pub(crate) followed: Result<(), Error>,
}

impl Written {
    fn from_edit(edit: &Edit) -> Self {
        let report = ChangeReport::from_edit(edit);
        Self { report, revision: 0, balancers: BalancerRecords::default(), followed: Ok(()) }
    }
}

/// The changes that a command made, or would make.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct ChangeReport {
    /// By key, relative to the prefix.
    changed: BTreeMap<String, Values>,
    /// With --dry-run nothing was written.
    is_dry: bool,
    /// The revision of the write; null if nothing was written.
    revision: Option<i64>,
    /// The balancers that follow; null if the command didn't wait.
    followed_by: Option<Vec<String>>,
    /// The time from the write until all followed; null if the command didn't wait.
    seconds: Option<f64>,
    /// The command waited, and not every balancer followed. The error says which.
    #[serde(skip)]
    has_waited_in_vain: bool,
}

/// A key's value before and after the change; null if the key is absent.
#[derive(Clone, Debug, Serialize)]
struct Values {
    before: Option<String>,
    after: Option<String>,
}

impl ChangeReport {
    pub(crate) fn from_edit(edit: &Edit) -> Self {
        let changed = edit.changes().map(|(key, change)| (key.clone(), Values::from_change(change))).collect();
        Self { changed, ..Self::default() }
    }

    /// The last line for people: the write and the wait.
    pub(crate) fn describe_end(&self) -> String {
        let written = self.revision.map(|revision| format!("written at revision {revision}; ")).unwrap_or_default();
        match &self.followed_by {
            _ if self.is_dry => "nothing was written: --dry-run".into(),
            None if self.has_waited_in_vain => format!("{written}not followed so far"),
            None => format!("{written}no balancer was waited for"),
            Some(by) if by.is_empty() => format!("{written}no balancer lives that could follow"),
            Some(by) => format!("followed by {} after {:.1} s", by.join(", "), self.seconds.unwrap_or_default()),
        }
    }
}

impl Values {
    fn from_change(Change { before, after }: &Change) -> Self {
        Self { before: before.as_ref().map(lossy_text), after: after.clone() }
    }

    fn describe(&self, key: &str) -> String {
        match (&self.before, &self.after) {
            (None, Some(after)) => format!("{key}: {after}"),
            (Some(before), Some(after)) => format!("{key}: {before} → {after}"),
            (Some(before), None) => format!("{key}: deleted, was {before}"),
            (None, None) => key.to_owned(),
        }
    }
}

impl Printable for ChangeReport {
    fn to_blocks(&self) -> Vec<Block> {
        // A value may have line breaks. Each key stays on its own line.
        let changed = self.changed.iter().map(|(key, values)| values.describe(key).replace('\n', "\\n"));
        let mut lines: Vec<String> = changed.collect();
        if lines.is_empty() {
            lines.push("nothing to change".into());
        }
        lines.push(self.describe_end());
        vec![Block::Text(lines.join("\n"))]
    }
}
