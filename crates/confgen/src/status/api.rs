//! What `/api/v1/` answers, as data. Pure: a report and what HAProxy counts come in, values that serde writes go out.
//!
//! Others read it: a name that was given stays, a new one may come. Times are RFC 3339 in UTC, durations are seconds.

mod certificates;
mod service;
mod upstream;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use discovery::{BalancerRecord, ServiceId};
use serde::Serialize;

use crate::status::activity::UnderWay;
use crate::status::{HistoryEntry, OperatorFilesStatus, Status};

pub use certificates::show_certificates;
pub use service::{ServiceInFull, find_service, show_first_services, show_services};
pub use upstream::{UpstreamShown, show_upstreams};

pub use crate::status::figures::Counted;

/// The balancer and the store that an answer is about. Every answer has it as `identity`: one URL may lead to different
/// balancers, as 127.0.0.1 does on every host.
#[derive(Debug, Serialize)]
pub struct IdentityShown {
    /// The balancer's name: `--node`.
    pub node: String,
    /// The store's cluster id, as text. None before the store is listed and the first round is over: until then the answer
    /// lacks what HAProxy may serve.
    pub cluster: Option<String>,
    /// What all keys are below of: `--prefix`.
    pub prefix: String,
    /// This process of confgen, as `balancers/<node>` says too.
    pub instance: String,
}

/// The identity of now.
pub fn show_identity(report: &Status) -> IdentityShown {
    let crate::status::Identity { node, prefix, instance } = (*report.identity).clone();
    let is_known = report.has_reconciled && report.seen.cluster != 0;
    IdentityShown { node, cluster: is_known.then(|| report.seen.cluster.to_string()), prefix, instance }
}

/// `/api/v1/status`: how things stand in all.
#[derive(Debug, Serialize)]
pub struct StatusShown {
    /// confgen's own version.
    pub version: &'static str,
    /// Whether HAProxy runs what the store asks for, as `/ready` has it.
    pub in_sync: bool,
    /// The same in words.
    pub words: String,
    /// The store.
    pub store: Store,
    /// The HAProxy that answers, if one does.
    pub haproxy: Option<Haproxy>,
    /// HAProxy processes that take no new requests and finish their last ones.
    pub old_haproxys: OldHaproxys,
    /// The revision that HAProxy follows, but for what is pending.
    pub applied: Option<i64>,
    /// The revision that haproxy.cfg has; 0 is none yet.
    pub filed: i64,
    /// Services of which a change waits for a restart.
    pub pending: Vec<String>,
    /// Upstreams that are served although their keys have gone.
    pub held: Vec<String>,
    /// The operator's own files.
    pub operator_files: OperatorFilesShown,
    /// What confgen is at, the longest first.
    pub under_way: Vec<UnderWayShown>,
    /// How many keys are not followed.
    pub quarantined: usize,
    /// How many services are served.
    pub services: usize,
    /// How many upstreams are served.
    pub upstreams: usize,
}

/// An act that has begun and not ended.
#[derive(Debug, Serialize)]
pub struct UnderWayShown {
    /// `start`, `look`, `runtime`, `file`, `restart`.
    pub kind: &'static str,
    /// What it is about.
    pub reason: String,
    /// How long it has been under way.
    pub seconds: f64,
}

impl From<UnderWay> for UnderWayShown {
    fn from(UnderWay { kind, reason, taken }: UnderWay) -> Self {
        Self { kind, reason, seconds: taken.as_secs_f64() }
    }
}

/// How the operator's own files stand.
#[derive(Debug, Serialize)]
pub struct OperatorFilesShown {
    /// Why HAProxy or confgen refuses them; then those that were taken last count.
    pub refused: Option<String>,
    /// Files that HAProxy would refuse filled, and why.
    pub not_filled: Vec<String>,
    /// What could not be understood in them, or not be done.
    pub remarks: Vec<String>,
}

impl From<&OperatorFilesStatus> for OperatorFilesShown {
    fn from(it: &OperatorFilesStatus) -> Self {
        Self {
            refused: it.refused.as_ref().map(|it| it.reason().to_owned()),
            not_filled: it.not_filled.clone(),
            remarks: it.remarks.clone(),
        }
    }
}

/// The store, as it is known.
#[derive(Debug, Serialize)]
pub struct Store {
    /// Whether it is followed.
    pub connected: bool,
    /// Why not.
    pub error: Option<String>,
    /// Its cluster id, as text: JSON's numbers end at 2^53 for many readers.
    pub cluster: String,
    /// The newest revision that is known.
    pub seen: i64,
}

/// The running HAProxy.
#[derive(Debug, Serialize)]
pub struct Haproxy {
    /// Its worker.
    pub pid: u32,
    /// Its release.
    pub version: String,
    /// The generation of its file.
    pub generation: Option<String>,
    /// When it was last seen to be another process.
    pub started: Option<String>,
}

/// HAProxy processes that a restart has left to finish their requests.
#[derive(Debug, Serialize)]
pub struct OldHaproxys {
    /// How many there are.
    pub processes: usize,
    /// The time since the oldest of them was started; 0 if there is none.
    pub oldest_seconds: u64,
}

/// The status of now.
pub fn show_status(report: &Status) -> StatusShown {
    let standing = &report.reconcile;
    let in_sync = report.check_in_sync();
    StatusShown {
        version: env!("CARGO_PKG_VERSION"),
        in_sync: in_sync.is_ok(),
        words: in_sync.unwrap_or_else(|reason| reason),
        store: Store {
            connected: report.store_error.is_none(),
            error: report.store_error.clone(),
            cluster: report.seen.cluster.to_string(),
            seen: report.seen.revision,
        },
        haproxy: report.running.as_ref().map(|running| Haproxy {
            pid: running.pid,
            version: running.version.to_string(),
            generation: running.generation.clone(),
            started: report.started.map(format_time),
        }),
        old_haproxys: OldHaproxys { processes: report.old.count, oldest_seconds: report.old.oldest_uptime.as_secs() },
        applied: applied_revision(report),
        filed: standing.published,
        pending: standing.pending.iter().map(ServiceId::to_string).collect(),
        held: standing.retained.keys().map(|(service, id)| BalancerRecord::server_name(service, id)).collect(),
        operator_files: OperatorFilesShown::from(&standing.operator_files),
        under_way: report.activities.under_way().into_iter().map(UnderWayShown::from).collect(),
        quarantined: standing.quarantined.len(),
        services: standing.desired.services().count(),
        upstreams: standing.desired.services().map(|(_, wanted)| wanted.servers.len()).sum(),
    }
}

/// `/api/v1/quarantine`: the keys that are not followed.
#[derive(Debug, Serialize)]
pub struct Quarantine {
    /// By key, relative to the prefix: why.
    pub quarantine: BTreeMap<String, String>,
}

/// What is quarantined now.
pub fn show_quarantine(report: &Status) -> Quarantine {
    Quarantine { quarantine: report.reconcile.quarantined.clone() }
}

/// `/api/v1/history`: the last acts, newest first.
#[derive(Debug, Serialize)]
pub struct History {
    /// At most 200.
    pub history: Vec<Act>,
}

/// An act that is over.
#[derive(Debug, Serialize)]
pub struct Act {
    /// When it began.
    pub at: String,
    /// `runtime`, `file`, `restart`.
    pub kind: &'static str,
    /// Why.
    pub reason: String,
    /// The newest revision that it knew.
    pub revision: i64,
    /// How long it took.
    pub seconds: f64,
    /// Whether it succeeded.
    pub ok: bool,
    /// What came of it, in words.
    pub outcome: String,
}

impl From<&HistoryEntry> for Act {
    fn from(done: &HistoryEntry) -> Self {
        Self {
            at: format_time(done.began_at),
            kind: done.kind.name(),
            reason: done.reason.clone(),
            revision: done.revision,
            seconds: done.took.as_secs_f64(),
            ok: done.outcome.is_ok(),
            outcome: done.outcome.clone().unwrap_or_else(|reason| reason),
        }
    }
}

/// The last acts.
pub fn show_history(report: &Status) -> History {
    History { history: report.history.iter().map(|done| Act::from(&**done)).collect() }
}

/// The revision that HAProxy follows, but for what is pending.
fn applied_revision(report: &Status) -> Option<i64> {
    report.reconcile.applied.map(|position| position.revision)
}

fn format_time(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// None before 1970, and after the year 9999, which RFC 3339 can't write.
fn format_unix_time(seconds: i64) -> Option<String> {
    const YEAR_10000: u64 = 253_402_300_800;
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds < YEAR_10000)?;
    Some(humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).to_string())
}

#[cfg(test)]
mod tests;
