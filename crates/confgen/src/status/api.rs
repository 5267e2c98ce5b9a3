//! The answers of the admin port below `/api/v1/`, built from the status and HAProxy's counters.
//!
//! Pure: `discovery::balancer_api` has their types, and `admin` sends them. Times are RFC 3339 in UTC, durations are
//! seconds.

mod certificates;
mod changes;
mod service;
mod upstream;

use std::time::{Duration, SystemTime};

use discovery::balancer_api::{
    self, Act, CutOff, FilesStatus, HaproxyStatus, History, OldProcess, OldProcesses, Quarantine, StoreStatus,
    UnfinishedAct,
};
use discovery::{BalancerRecord, ServiceId};
use haproxy::cutoffs::Cutoffs;
use haproxy::masters;

use crate::status::activity::UnderWay;
use crate::status::{HistoryEntry, Identity, OperatorFilesStatus, RunningHaproxy, Status};

pub use certificates::show_certificates;
pub use changes::parse_change_query;
pub use service::{find_service, show_services};
pub use upstream::show_upstreams;

pub use crate::status::figures::Counted;

/// The identity of this confgen. It names the cluster only once the answers are complete.
pub fn show_identity(report: &Status) -> balancer_api::Identity {
    let Identity { node, prefix, instance } = (*report.identity).clone();
    // Before the first reconcile HAProxy may serve what no answer has yet. discoverctl takes a missing cluster for "ask again".
    let is_known = report.has_reconciled && report.seen.cluster != 0;
    balancer_api::Identity { node, cluster: is_known.then(|| report.seen.cluster.to_string()), prefix, instance }
}

/// The answer to `/api/v1/status`.
pub fn show_status(report: &Status) -> balancer_api::Status {
    let reconcile = &report.reconcile;
    let in_sync = report.check_in_sync();
    balancer_api::Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        in_sync: in_sync.is_ok(),
        words: in_sync.unwrap_or_else(|reason| reason),
        store: StoreStatus {
            connected: report.store_error.is_none(),
            error: report.store_error.clone(),
            cluster: report.seen.cluster.to_string(),
            seen: report.seen.revision,
        },
        haproxy: report.running.as_ref().map(|running| show_haproxy(running, report.started)),
        old_haproxys: show_old_haproxys(report),
        applied: applied_revision(report),
        filed: reconcile.published,
        pending: reconcile.pending.iter().map(ServiceId::to_string).collect(),
        held: reconcile.retained.keys().map(|(service, id)| BalancerRecord::server_name(service, id)).collect(),
        operator_files: show_operator_files(&reconcile.operator_files),
        under_way: report.activities.under_way().into_iter().map(show_unfinished_act).collect(),
        quarantined: reconcile.quarantined.len(),
        services: reconcile.desired.services().count(),
        upstreams: reconcile.desired.services().map(|(_, wanted)| wanted.servers.len()).sum(),
    }
}

fn show_haproxy(running: &RunningHaproxy, started: Option<SystemTime>) -> HaproxyStatus {
    HaproxyStatus {
        pid: running.pid,
        version: running.version.to_string(),
        generation: running.generation.clone(),
        started: started.map(format_time),
    }
}

/// The HAProxy processes that finish their last requests, and those that handover has cut off.
pub fn show_old_haproxys(report: &Status) -> OldProcesses {
    let list: Vec<OldProcess> = report.old.list.iter().map(show_old_process).collect();
    let Cutoffs { processes, connections, last } = report.cutoffs;
    OldProcesses {
        processes: list.len(),
        oldest_seconds: list.first().map(|oldest| oldest.seconds).unwrap_or_default(),
        connections: list.iter().map(|process| process.connections).sum(),
        memory_bytes: list.iter().filter_map(|process| process.memory_bytes).sum(),
        silent: report.old.silent,
        list,
        cut_off: CutOff { processes, connections, last: last.map(format_time) },
    }
}

fn show_old_process(process: &masters::OldProcess) -> OldProcess {
    OldProcess {
        pid: process.pid,
        seconds: process.uptime.as_secs(),
        connections: process.connections,
        memory_bytes: process.memory,
    }
}

fn show_operator_files(files: &OperatorFilesStatus) -> FilesStatus {
    FilesStatus {
        refused: files.refused.as_ref().map(|it| it.reason().to_owned()),
        not_filled: files.not_filled.clone(),
        remarks: files.remarks.clone(),
    }
}

fn show_unfinished_act(UnderWay { kind, reason, taken }: UnderWay) -> UnfinishedAct {
    UnfinishedAct { kind: kind.to_owned(), reason, seconds: taken.as_secs_f64() }
}

/// The answer to `/api/v1/quarantine`.
pub fn show_quarantine(report: &Status) -> Quarantine {
    Quarantine { quarantine: report.reconcile.quarantined.as_ref().clone() }
}

/// The answer to `/api/v1/history`.
pub fn show_history(report: &Status) -> History {
    History { history: report.history.iter().map(|done| show_act(done)).collect() }
}

fn show_act(done: &HistoryEntry) -> Act {
    Act {
        at: format_time(done.began_at),
        kind: done.kind.name().to_owned(),
        reason: done.reason.clone(),
        revision: done.revision,
        seconds: done.took.as_secs_f64(),
        ok: done.outcome.is_ok(),
        outcome: done.outcome.clone().unwrap_or_else(|reason| reason),
    }
}

/// The revision that HAProxy follows, except for pending services; None before the first one.
fn applied_revision(report: &Status) -> Option<i64> {
    report.reconcile.applied.map(|position| position.revision)
}

pub(super) fn format_time(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// Formats Unix seconds; None before 1970, and after the year 9999, which RFC 3339 can't write.
fn format_unix_time(seconds: i64) -> Option<String> {
    // humantime can't display later times, and `to_string` panics then. A certificate may name any time.
    const YEAR_10000: u64 = 253_402_300_800;
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds < YEAR_10000)?;
    Some(humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).to_string())
}

#[cfg(test)]
mod tests;
