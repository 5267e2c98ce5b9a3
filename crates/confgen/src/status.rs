//! How things stand, for whoever asks: plain data, which the rounds write and nothing else does.

pub(crate) mod activity;
pub(crate) mod admin;
mod api;
pub(crate) mod balancer_record;
mod figures;
pub(crate) mod metrics;
mod page;
pub(crate) mod share;
mod verdict;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use discovery::{Node, RetainedAfterReset, ServiceId, UpstreamId};
use haproxy::masters::OldProcesses;
use haproxy::version::Version;

use crate::desired::DesiredState;
use crate::drain::DrainedUpstream;
use crate::local_files::certificates::Certificates;
use crate::operator_files::parse::ReferencedSection;
use crate::operator_files::validate::Rejection;
use crate::status::activity::Activities;
use crate::status::metrics::{ActionCounters, RequeueCounters};
use crate::status::share::Starving;
use crate::store::StoreRevision;

/// How many of the last acts are remembered.
const REMEMBERED: usize = 200;

/// How things stand. A clone costs little: it shares.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Up to where the store is known.
    pub seen: StoreRevision,
    /// Why the store can't be followed, if it can't.
    pub store_error: Option<String>,
    /// What the rounds have come to.
    pub reconcile: Arc<ReconcileStatus>,
    /// Why HAProxy doesn't run what the store asks for, and a try has failed.
    pub out_of_sync: Option<String>,
    /// The release of HAProxy that answered last.
    pub haproxy: Option<Version>,
    /// Upstreams that take no new request, with what is still open on them in all of HAProxy's processes, for as long as
    /// that isn't over.
    pub draining: Arc<BTreeMap<DrainedUpstream, u64>>,
    /// When HAProxy was last seen to be another process, whoever started it.
    pub started: Option<SystemTime>,
    /// How many drains have ended so far.
    pub drains_ended: u64,
    /// Why haproxy.cfg could not be written as it should be, as of the last try.
    pub publish_error: Option<String>,
    /// The HAProxy that answers on the Runtime API, if one does.
    pub running: Option<RunningHaproxy>,
    /// Which files it was started with, in words, where they are not those that confgen checks.
    pub unexpected_files: Option<String>,
    /// Why HAProxy serves on without supervisord, if it does.
    pub unsupervised: Option<String>,
    /// The processes that finish their last requests.
    pub old: OldProcesses,
    /// The last acts, newest first.
    pub history: VecDeque<Arc<HistoryEntry>>,
    /// What confgen is at. Clones share it.
    pub activities: Activities,
    /// All acts of this process, counted. Clones share it.
    pub actions: ActionCounters,
    /// Upstreams that HAProxy has up and doesn't choose, by section and name.
    pub starving: Arc<Starving>,
    /// The sections whose servers were queued for their turns again, counted. Clones share it.
    pub requeues: RequeueCounters,
    /// Where others find the admin port, if it has an address to call.
    pub url: Option<String>,
    /// This process and the store that it is configured for.
    pub identity: Arc<Identity>,
    /// At least one round is over. Before that `standing` is empty, and HAProxy may serve everything.
    pub has_reconciled: bool,
}

/// What tells this confgen from every other. It stays the same for as long as the process lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The balancer's name: `--node`.
    pub node: String,
    /// What all keys are below of: `--prefix`.
    pub prefix: String,
    /// 16 hexadecimal digits that no other process has. Two balancers may bear one name by mistake.
    pub instance: String,
}

impl Identity {
    /// The identity of this process.
    pub fn new(node: &Node, prefix: &str) -> Self {
        // The standard library takes the keys of its hash maps from the system's random numbers.
        let random = RandomState::new().build_hasher().finish();
        Self { node: node.to_string(), prefix: prefix.to_owned(), instance: format!("{random:016x}") }
    }
}

/// A HAProxy that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningHaproxy {
    /// The worker.
    pub pid: u32,
    /// Its release.
    pub version: Version,
    /// The generation of its file; none where that isn't one of ours.
    pub generation: Option<String>,
}

/// What the rounds have come to.
#[derive(Clone, Debug, Default)]
pub struct ReconcileStatus {
    /// HAProxy runs every change of a service up to here, but for what is pending. None until it was found to.
    pub applied: Option<StoreRevision>,
    /// haproxy.cfg on disk has every change up to this revision; 0 is none.
    pub published: i64,
    /// What is wanted.
    pub desired: Arc<DesiredState>,
    /// Services of which some change waits for a restart.
    pub pending: BTreeSet<ServiceId>,
    /// Those of them that no request reaches until then.
    pub unrouted: BTreeSet<ServiceId>,
    /// Services whose routes another service has by now, and that requests go to until the restart.
    pub reached_until_restart: BTreeSet<ServiceId>,
    /// The service that gets the ACME challenges of every host.
    pub acme: Option<ServiceId>,
    /// Upstreams that are served although their keys have gone.
    pub retained: BTreeMap<(ServiceId, UpstreamId), Retained>,
    /// The keys that are retained since the store was reset.
    pub reset_lost: RetainedAfterReset,
    /// Keys that are not followed, and why.
    pub quarantined: BTreeMap<String, String>,
    /// The certificates that are served, and those that are refused.
    pub certificates: Arc<Certificates>,
    /// How many error pages are refused.
    pub refused_error_pages: usize,
    /// The operator's own files.
    pub operator_files: OperatorFilesStatus,
}

/// An upstream that is served although its key is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retained {
    /// Who retains it.
    pub by: Retainer,
    /// Since when; None if it isn't known.
    pub since: Option<SystemTime>,
}

/// Who retains upstreams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retainer {
    /// The removal guard (`--guard`): the upstream disappeared together with others.
    Guard,
    /// The store was reset and lacks the key.
    Reset,
}

impl Retainer {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guard => "guard",
            Self::Reset => "reset",
        }
    }
}

/// How the operator's own files stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperatorFilesStatus {
    /// Why they aren't taken as they stand. Those that were taken last count.
    pub refused: Option<Rejection>,
    /// Files that HAProxy would refuse filled, in its words; they are left as they stand.
    pub not_filled: Vec<String>,
    /// What else an operator should know of them.
    pub remarks: Vec<String>,
    /// The sections of services that they name, with the lines that do.
    pub named_sections: BTreeMap<String, ReferencedSection>,
}

impl OperatorFilesStatus {
    /// Why HAProxy doesn't run what they ask for.
    fn first_problem(&self) -> Option<String> {
        let refused = self.refused.as_ref().map(Rejection::to_string);
        refused.or_else(|| self.not_filled.first().cloned())
    }
}

/// What kind of act it was.
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
    /// In one word.
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

/// An act that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// When it began.
    pub began_at: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// What was done.
    pub kind: ActionKind,
    /// Why, in words.
    pub reason: String,
    /// Up to where the store was known to it.
    pub revision: i64,
    /// What came of it: a word on what was done, or why it failed.
    pub outcome: Result<String, String>,
}

impl Status {
    /// Counts an act and remembers it, and forgets the oldest.
    pub fn record_action(&mut self, done: HistoryEntry) {
        self.actions.count_action(&done);
        self.history.push_front(Arc::new(done));
        self.history.truncate(REMEMBERED);
    }

    /// The keys of a service that are not followed, and why.
    pub fn quarantined_keys(&self, id: &ServiceId) -> impl Iterator<Item = (&String, &String)> {
        // The ancestor's layout has HTTP services only.
        let ancestors = (id.kind == discovery::Kind::Http).then(|| format!("services/{}/", id.name));
        let folders = [id.folder_path()].into_iter().chain(ancestors);
        folders.flat_map(|folder| {
            let below = self.reconcile.quarantined.range(folder.clone()..);
            below.take_while(move |(key, _)| key.starts_with(&folder))
        })
    }

    /// Whether HAProxy runs what the store asks for, in words either way. A service that waits for a restart, or a store
    /// that is away, alone is no reason why not.
    pub fn check_in_sync(&self) -> Result<String, String> {
        let long = self.activities.find_long();
        if let Some(hanging) = long.as_ref().filter(|it| it.is_hanging()) {
            return Err(format!("confgen hangs, {}", hanging.describe()));
        }
        let with_long =
            |words: String| long.as_ref().map_or(words.clone(), |long| format!("{words}; {}", long.describe()));
        self.check_last_actions().map(with_long).map_err(with_long)
    }

    /// Whether HAProxy runs what the store asks for, as of the last acts that ended.
    fn check_last_actions(&self) -> Result<String, String> {
        let away =
            self.store_error.as_ref().map(|reason| format!("the store is away, HAProxy keeps what it has: {reason}"));
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
        let long = Ok("in sync at revision 0; under way for 11 s: restart (a test)".into());
        assert_eq!(words(LONG + second), long);
        assert_eq!(words(HANGS + second), Err("confgen hangs, under way for 91 s: restart (a test)".into()));
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
