//! The status of confgen, for the API, the metrics, the console and the balancer record. Data only: the event loop alone writes it.

pub(crate) mod activity;
pub(crate) mod admin;
mod api;
pub(crate) mod balancer_record;
mod console;
mod figures;
mod limits;
pub(crate) mod metrics;
mod problems;
pub(crate) mod series;
pub(crate) mod share;
mod tally;
mod upstream_info;
mod verdict;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use discovery::{Node, Profile, RetainedAfterReset, ServiceId, UpstreamId};
use haproxy::cutoffs::Cutoffs;
use haproxy::masters::OldProcesses;
use haproxy::runtime::Limits;
use haproxy::version::Version;

use crate::desired::DesiredState;
use crate::drain::DrainedUpstream;
use crate::local_files::certificates::Certificates;
use crate::operator_files::parse::{ClosingLines, ReferencedSection};
use crate::operator_files::validate::Rejection;
use crate::status::activity::Activities;
use crate::status::metrics::{ActionCounters, RequeueCounters};
use crate::status::series::SharedSeries;
use crate::status::share::Starving;
use crate::store::StoreRevision;

/// The most actions in the history. Older ones are dropped.
const REMEMBERED: usize = 200;

/// The most of them that keep what they changed in haproxy.cfg. A difference has some kilobytes.
const WITH_DIFFERENCE: usize = 20;

/// The facts that the admin port and the balancer record show. A clone costs little, because clones share the large parts.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The newest revision that concerns confgen. All zero before the store is known.
    pub seen: StoreRevision,
    /// The reason why etcd can't be watched. `None` while it is.
    pub store_error: Option<String>,
    /// The reconciler's results, as of the last action that ended.
    pub reconcile: Arc<ReconcileStatus>,
    /// The reason why the last action failed. `None` once HAProxy is in sync again.
    pub out_of_sync: Option<String>,
    /// The release of the HAProxy that answered last.
    pub haproxy: Option<Version>,
    /// Draining upstreams, with their sessions in all HAProxy processes.
    pub draining: Arc<BTreeMap<DrainedUpstream, u64>>,
    /// The time when HAProxy was last observed to be another process.
    pub started: Option<SystemTime>,
    /// The number of drains that have ended in this process.
    pub drains_ended: u64,
    /// The reason why the last publish failed. `None` if it didn't.
    pub publish_error: Option<String>,
    /// The HAProxy that answers on the Runtime API, if one does.
    pub running: Option<RunningHaproxy>,
    /// The limits of the whole process that answers.
    pub limits: Option<Limits>,
    /// The problem, if HAProxy was started with other files than confgen checks.
    pub unexpected_files: Option<String>,
    /// The problem, if HAProxy serves on and supervisord doesn't run it.
    pub unsupervised: Option<String>,
    /// The HAProxy processes that finish their last requests.
    pub old: Arc<OldProcesses>,
    /// Those of them that handover has cut off, because there were too many or they had too much memory.
    pub cutoffs: Cutoffs,
    /// The last 200 actions, newest first.
    pub history: VecDeque<Arc<HistoryEntry>>,
    /// The activities in progress. Clones share them.
    pub activities: Activities,
    /// The actions of this process, counted. Clones share the counters.
    pub actions: ActionCounters,
    /// Upstreams that HAProxy finds up and doesn't choose, by section and name.
    pub starving: Arc<Starving>,
    /// The sections whose servers were requeued, counted. Clones share the counters.
    pub requeues: RequeueCounters,
    /// The traffic of the last fifteen minutes. Clones share it.
    pub series: SharedSeries,
    /// The admin port's URL, if it has an address that other hosts can call.
    pub url: Option<String>,
    /// This process and the store that it is configured for.
    pub identity: Arc<Identity>,
    /// At least one action is over. Before that `reconcile` is empty although HAProxy may serve all services.
    pub has_reconciled: bool,
}

/// The identity of this process of confgen. It never changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The balancer's name: `--node`.
    pub node: String,
    /// The prefix of all keys: `--prefix`.
    pub prefix: String,
    /// 16 hexadecimal digits that no other process has. Two balancers may have one name by mistake.
    pub instance: String,
}

impl Identity {
    /// Each call makes another `instance`.
    pub fn new(node: &Node, prefix: &str) -> Self {
        // The standard library takes the keys of its hash maps from the system's random numbers.
        let random = RandomState::new().build_hasher().finish();
        Self { node: node.to_string(), prefix: prefix.to_owned(), instance: format!("{random:016x}") }
    }
}

/// A HAProxy that answers on the Runtime API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningHaproxy {
    /// The worker's pid.
    pub pid: u32,
    pub version: Version,
    /// The generation id of its file. `None` if confgen didn't write the file.
    pub generation: Option<String>,
}

/// The results of the last reconcile.
#[derive(Clone, Debug, Default)]
pub struct ReconcileStatus {
    /// HAProxy runs all services as of this revision, except for pending ones. `None` before the first successful reconcile.
    pub applied: Option<StoreRevision>,
    /// The revision of haproxy.cfg on disk. 0 before the first publish.
    pub published: i64,
    /// The desired state as of the last action, applied or not.
    pub desired: Arc<DesiredState>,
    /// Services that wait for a restart.
    pub pending: BTreeSet<ServiceId>,
    /// Pending services that no request reaches before the restart.
    pub unrouted: BTreeSet<ServiceId>,
    /// Services that get requests until the restart although another service has their routes by now.
    pub reached_until_restart: BTreeSet<ServiceId>,
    /// The service that gets the ACME challenges of all hosts.
    pub acme: Option<ServiceId>,
    /// Upstreams that are served although their keys are gone.
    pub retained: BTreeMap<(ServiceId, UpstreamId), Retained>,
    /// A summary of the keys that are retained since the store was reset.
    pub reset_lost: RetainedAfterReset,
    /// Quarantined keys, each with the reason.
    pub quarantined: BTreeMap<String, String>,
    /// Served and rejected certificates.
    pub certificates: Arc<Certificates>,
    /// The number of rejected error pages.
    pub refused_error_pages: usize,
    /// The operator's own files.
    pub operator_files: OperatorFilesStatus,
    /// The number of manual changes over the Runtime API that were found, by kind.
    pub manual_changes: BTreeMap<&'static str, u64>,
}

/// An upstream that is served although its key is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retained {
    /// The mechanism.
    pub by: Retainer,
    /// `None` if an older confgen noticed the loss.
    pub since: Option<SystemTime>,
}

/// The mechanism that retains an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retainer {
    /// The removal guard (`--guard`): the upstream disappeared together with others.
    Guard,
    /// The store was reset and lacks the key.
    Reset,
}

impl Retainer {
    /// The word in the API, the metrics and the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guard => "guard",
            Self::Reset => "reset",
        }
    }
}

/// The verdict of HAProxy and confgen on the operator's own files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperatorFilesStatus {
    /// The reason why they aren't accepted. The last accepted ones count.
    pub refused: Option<Rejection>,
    /// Files that HAProxy would reject if confgen filled them, with HAProxy's words. They stay as they are.
    pub not_filled: Vec<String>,
    /// Facts that need an operator's attention.
    pub remarks: Vec<String>,
    /// The services' sections that they name, with the lines.
    pub named_sections: BTreeMap<String, ReferencedSection>,
    /// Their `defaults` sections with `option allbackups`.
    pub all_backup_profiles: BTreeSet<Profile>,
    /// The lines of their `defaults` sections that may keep every request from a service's upstreams.
    pub closing_lines: BTreeMap<Profile, ClosingLines>,
    /// The rates that their `global` lines limit, by keyword. `None` for a value that only HAProxy knows.
    pub rate_limits: BTreeMap<&'static str, Option<u64>>,
}

impl OperatorFilesStatus {
    /// The first reason why HAProxy doesn't run them as they are.
    fn first_problem(&self) -> Option<String> {
        let refused = self.refused.as_ref().map(Rejection::to_string);
        refused.or_else(|| self.not_filled.first().cloned())
    }
}

/// The kinds of actions, as the history and the metrics tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ActionKind {
    /// Changes over the Runtime API.
    Runtime,
    /// haproxy.cfg was written.
    File,
    /// HAProxy was restarted.
    Restart,
}

impl ActionKind {
    /// The word in the API, the metrics and the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runtime => "runtime",
            Self::File => "file",
            Self::Restart => "restart",
        }
    }
}

impl fmt::Display for ActionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An action that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    pub began_at: SystemTime,
    pub took: Duration,
    pub kind: ActionKind,
    pub reason: String,
    /// The store revision that the action had.
    pub revision: i64,
    /// What was done, or why it failed.
    pub outcome: Result<String, String>,
    /// The lines that the action took from haproxy.cfg and added to it. `None` if there are none, and for an older action.
    pub difference: Option<Arc<str>>,
}

impl Status {
    /// Counts an action and adds it to the history.
    pub fn record_action(&mut self, done: HistoryEntry) {
        self.actions.count_action(&done);
        self.history.push_front(Arc::new(done));
        self.history.truncate(REMEMBERED);
        if let Some(old) = self.history.get_mut(WITH_DIFFERENCE).filter(|old| old.difference.is_some()) {
            Arc::make_mut(old).difference = None;
        }
    }

    /// The quarantined keys of a service, each with the reason.
    pub fn quarantined_keys(&self, id: &ServiceId) -> impl Iterator<Item = (&String, &String)> {
        // The ancestor's layout has HTTP services only.
        let ancestors = (id.kind == discovery::Kind::Http).then(|| format!("services/{}/", id.name));
        let folders = [id.folder_path()].into_iter().chain(ancestors);
        folders.flat_map(|folder| {
            let below = self.reconcile.quarantined.range(folder.clone()..);
            below.take_while(move |(key, _)| key.starts_with(&folder))
        })
    }

    /// Checks that HAProxy runs what the store asks for, for `/ready`. A pending service, or an etcd that can't be reached, is no
    /// reason for an error.
    pub fn check_in_sync(&self) -> Result<String, String> {
        // The facts below are those of the last action that ended. While an action hangs, they are out of date.
        let long = self.activities.find_long();
        if let Some(hanging) = long.as_ref().filter(|it| it.is_hanging()) {
            return Err(format!("confgen hangs, {}", hanging.describe()));
        }
        let suffix = long.map(|long| format!("; {}", long.describe())).unwrap_or_default();
        self.check_last_actions().map(|words| words + &suffix).map_err(|problem| problem + &suffix)
    }

    /// Judges the last actions and observations, whatever is in progress now.
    fn check_last_actions(&self) -> Result<String, String> {
        let away =
            self.store_error.as_ref().map(|reason| format!("the store is away, HAProxy keeps what it has: {reason}"));
        // The operator's files come first: a rejected file also stops every publish and every restart.
        let operators = self.reconcile.operator_files.first_problem();
        let reasons = [&operators, &self.out_of_sync, &self.publish_error, &self.unexpected_files, &self.unsupervised];
        if let Some(reason) = reasons.into_iter().flatten().next() {
            return Err(format!("out of sync: {reason}"));
        }
        if self.running.is_none() {
            return Err("HAProxy doesn't answer on its Runtime API".into());
        }
        let Some(applied) = &self.reconcile.applied else {
            let listed = self.seen != StoreRevision::default();
            let waits =
                if listed { "HAProxy doesn't follow the store yet" } else { "the store has not been listed yet" };
            return Err(away.map_or_else(|| waits.to_owned(), |away| format!("{waits}; {away}")));
        };
        let waiting = self.reconcile.pending.len();
        let mut words = vec![format!("in sync at revision {}", applied.revision)];
        words.extend((waiting > 0).then(|| format!("services that wait for a restart: {waiting}")));
        words.extend(self.changed_limits().iter().map(ToString::to_string));
        // An etcd that is away is named and is no error, because HAProxy serves on without it.
        words.extend(away);
        Ok(words.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_act_that_takes_long_is_mentioned_and_one_that_hangs_is_not_ready() {
        use crate::status::activity::tests::begun_ago;
        use crate::status::activity::{HANGS, LONG};
        let second = Duration::from_secs(1);
        let running = RunningHaproxy { pid: 7, version: Version::new(2, 6, 12), generation: None };
        let standing = ReconcileStatus { applied: Some(StoreRevision::default()), ..ReconcileStatus::default() };
        let report = Status { running: Some(running), reconcile: Arc::new(standing), ..Status::default() };
        let words = |taken| {
            let (activities, _activity) = begun_ago("restart", taken);
            Status { activities, ..report.clone() }.check_in_sync()
        };
        assert_eq!(words(second), Ok("in sync at revision 0".into()));
        let long = Ok("in sync at revision 0; under way for 6 s: restart (a test)".into());
        assert_eq!(words(LONG + second), long);
        assert_eq!(words(HANGS + second), Err("confgen hangs, under way for 16 s: restart (a test)".into()));
    }

    #[test]
    fn what_is_ready_and_what_is_not() {
        let mut report = Status::default();
        let words = |report: &Status| report.check_in_sync();
        assert_eq!(words(&report), Err("HAProxy doesn't answer on its Runtime API".into()));
        let running = RunningHaproxy { pid: 7, version: Version::new(2, 6, 12), generation: None };
        report.running = Some(running);
        assert_eq!(words(&report), Err("the store has not been listed yet".into()));
        report.store_error = Some("refused".into());
        assert!(words(&report).unwrap_err().ends_with("HAProxy keeps what it has: refused"));
        report.seen.revision = 7;
        assert!(words(&report).unwrap_err().starts_with("HAProxy doesn't follow the store yet"));
        let standing = ReconcileStatus { applied: Some(report.seen), ..ReconcileStatus::default() };
        report.reconcile = Arc::new(standing);
        assert!(words(&report).is_ok_and(|words| words.starts_with("in sync at revision 7; the store is away")));
        report.publish_error = Some("no disk".into());
        assert_eq!(words(&report), Err("out of sync: no disk".into()));
        report.unexpected_files = Some("other files".into());
        assert_eq!(words(&report), Err("out of sync: no disk".into()));
        report.publish_error = None;
        assert_eq!(words(&report), Err("out of sync: other files".into()));
        report.unexpected_files = None;
        report.unsupervised = Some("given up".into());
        assert_eq!(words(&report), Err("out of sync: given up".into()));
        report.out_of_sync = Some("no start".into());
        assert_eq!(words(&report), Err("out of sync: no start".into()));
        let operators = OperatorFilesStatus {
            not_filled: vec!["mine.cfg can't be filled".into()],
            ..OperatorFilesStatus::default()
        };
        report.reconcile = Arc::new(ReconcileStatus { operator_files: operators, ..ReconcileStatus::default() });
        assert_eq!(words(&report), Err("out of sync: mine.cfg can't be filled".into()));
        Arc::make_mut(&mut report.reconcile).operator_files.refused = Some(Rejection::Haproxy("bnid".into()));
        assert!(words(&report).unwrap_err().starts_with("out of sync: HAProxy refuses the operator's own files"));
    }
}
