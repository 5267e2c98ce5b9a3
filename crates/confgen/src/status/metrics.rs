//! The status as Prometheus metrics. Pure, except for the actions' counters.
//!
//! The number of series is bounded. Only certificates and services that retain upstreams have series of their own. HAProxy itself
//! counts the requests of services and upstreams.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use discovery::Cause;

use crate::desired::ServerState;
use crate::status::activity;
use crate::status::api::show_old_haproxys;
use crate::status::figures::{Counted, Figures};
use crate::status::verdict::Judge;
use crate::status::{ActionKind, HistoryEntry, Status};

/// In seconds: a Runtime change takes under a millisecond, a file some 50 ms, a restart some 200 ms, one that fails 15 s.
const BUCKETS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0];

/// The kinds of manual changes, as `runtime/plan/drift.rs` counts them. Each has a series from the start.
const MANUAL_CHANGES: [&str; 4] = ["frontend", "backend", "server", "map_entry"];

/// The actions of this process. Clones share the counters.
#[derive(Clone, Debug)]
pub struct ActionCounters {
    ended: Family<EndedLabels, Counter>,
    took: Family<KindLabel, Histogram, fn() -> Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndedLabels {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

impl Default for ActionCounters {
    /// All counters exist from the start, because Prometheus computes a rate only from a first value.
    fn default() -> Self {
        let acts = Self { ended: Family::default(), took: Family::new_with_constructor(|| Histogram::new(BUCKETS)) };
        for kind in [ActionKind::Runtime, ActionKind::File, ActionKind::Restart].map(ActionKind::name) {
            for result in ["ok", "failed"] {
                drop(acts.ended.get_or_create(&EndedLabels { kind, result }));
            }
            drop(acts.took.get_or_create(&KindLabel { kind }));
        }
        acts
    }
}

impl ActionCounters {
    pub fn count_action(&self, done: &HistoryEntry) {
        let kind = done.kind.name();
        let result = if done.outcome.is_ok() { "ok" } else { "failed" };
        self.ended.get_or_create(&EndedLabels { kind, result }).inc();
        self.took.get_or_create(&KindLabel { kind }).observe(done.took.as_secs_f64());
    }
}

/// The reason to requeue the servers of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequeueReason {
    /// Servers came back or got more weight.
    Grown,
    /// A server was up and got no requests.
    Starved,
}

impl RequeueReason {
    fn name(self) -> &'static str {
        match self {
            Self::Grown => "grown",
            Self::Starved => "starved",
        }
    }
}

/// The sections whose servers were requeued. Clones share the counters.
#[derive(Clone, Debug)]
pub struct RequeueCounters(Family<[(&'static str, &'static str); 1], Counter>);

impl Default for RequeueCounters {
    /// Both counters exist from the start, for the same reason as [`ActionCounters`].
    fn default() -> Self {
        let requeues = Self(Family::default());
        requeues.count_sections(RequeueReason::Grown, 0);
        requeues.count_sections(RequeueReason::Starved, 0);
        requeues
    }
}

impl RequeueCounters {
    pub fn count_sections(&self, reason: RequeueReason, sections: usize) {
        let sections = u64::try_from(sections).unwrap_or(u64::MAX);
        self.0.get_or_create(&[("reason", reason.name())]).inc_by(sections);
    }
}

/// Registers all metrics of confgen, as `confgen_…`.
pub fn register_all(status: &Status, counted: &Counted, registry: &mut Registry) {
    let registry = registry.sub_registry_with_prefix("confgen");
    let reconcile = &status.reconcile;
    let applied = reconcile.applied.map_or(0, |position| position.revision);
    let sessions = to_gauge_value(status.draining.values().sum::<u64>());
    let old = show_old_haproxys(status);
    let gauges = [
        (
            "in_sync",
            "1 while HAProxy runs what the store asks for, as /ready says it",
            i64::from(status.check_in_sync().is_ok()),
        ),
        (
            "store_connected",
            "1 while the store is followed; while it isn't, nothing changes",
            i64::from(status.store_error.is_none()),
        ),
        ("store_seen_revision", "The newest revision of the store that is known", status.seen.revision),
        ("applied_revision", "The revision that HAProxy follows, but for pending services; 0 is none yet", applied),
        ("filed_revision", "The revision that haproxy.cfg has on disk; 0 is none yet", reconcile.published),
        // A reset store counts from 1 again, so its revision may be lower than the applied one.
        ("revision_lag", "Revisions seen and not yet applied", (status.seen.revision - applied).max(0)),
        (
            "quarantined_keys",
            "Keys that are not followed; /api/v1/quarantine says why",
            to_gauge_value(reconcile.quarantined.len()),
        ),
        (
            "held_upstreams",
            "Upstreams that are served although their keys have gone",
            to_gauge_value(reconcile.retained.len()),
        ),
        (
            "draining_upstreams",
            "Upstreams that take no new request and may still have some open",
            to_gauge_value(status.draining.len()),
        ),
        ("draining_sessions", "What is open on them, in old HAProxy processes too", sessions),
        ("pending_services", "Services of which a change waits for a restart", to_gauge_value(reconcile.pending.len())),
        (
            "refused_error_pages",
            "Error pages' files that are not taken over",
            to_gauge_value(reconcile.refused_error_pages),
        ),
        (
            "old_haproxy_processes",
            "HAProxy processes that take no new requests and finish their last ones",
            to_gauge_value(old.processes),
        ),
        (
            "oldest_old_haproxy_seconds",
            "The time since the oldest of them was started; 0 if there is none",
            to_gauge_value(old.oldest_seconds),
        ),
        ("old_haproxy_connections", "Their open client connections", to_gauge_value(old.connections)),
        ("old_haproxy_memory_bytes", "The memory that their ends free", to_gauge_value(old.memory_bytes)),
        (
            "silent_haproxy_processes",
            "Masters and processes of HAProxy that don't answer; old ones may be among them",
            to_gauge_value(old.silent),
        ),
        (
            "changed_limits",
            "Limits of the whole HAProxy process that were changed over the Runtime API; confgen leaves them",
            to_gauge_value(status.changed_limits().len()),
        ),
        ("haproxy_up", "1 while HAProxy answers on its Runtime API", i64::from(status.running.is_some())),
    ];
    for (name, help, value) in gauges {
        registry.register(name, help, new_gauge(value));
    }
    let help = "Old HAProxy processes that handover has ended, because there were too many or they had too much memory";
    registry.register("cut_off_haproxys", help, new_counter(status.cutoffs.processes));
    let help = "Client connections of the HAProxy processes that handover has ended so";
    registry.register("cut_off_connections", help, new_counter(status.cutoffs.connections));
    register_infos(status, registry);
    daemon::admin::register_log(registry);
    register_totals(status, registry);
    register_retained(status, registry);
    register_verdicts(status, counted, registry);
    register_times(status, registry);
    register_certificates(status, registry);
    register_under_way(status, registry);
    registry.register(
        "applies",
        "Acts: changes over the Runtime API, files written, restarts",
        status.actions.ended.clone(),
    );
    let changes = Family::<[(&'static str, &'static str); 1], Counter>::default();
    for kind in MANUAL_CHANGES {
        changes
            .get_or_create(&[("kind", kind)])
            .inc_by(reconcile.manual_changes.get(kind).copied().unwrap_or_default());
    }
    let help =
        "Frontends, backends, servers and entries of maps that were found changed over the Runtime API, past confgen";
    registry.register("manual_changes", help, changes);
    registry.register(
        "requeued_sections",
        "Sections whose servers were queued for their turns again, because some came back or starved",
        status.requeues.0.clone(),
    );
    let help = "How long acts took, with HAProxy's own check or start";
    registry.register("apply_duration_seconds", help, status.actions.took.clone());
}

fn new_counter(value: u64) -> Counter {
    let counter = Counter::default();
    counter.inc_by(value);
    counter
}

fn new_gauge(value: i64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(value);
    gauge
}

/// Saturates at the greatest value of a gauge.
fn to_gauge_value<N: TryInto<i64>>(number: N) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

/// Gauges that are always 1. Their labels are the information.
fn register_infos(status: &Status, registry: &mut Registry) {
    registry.register("build_info", "confgen's version", version_family(env!("CARGO_PKG_VERSION").to_owned()));
    if let Some(running) = &status.running {
        let version = version_family(running.version.to_string());
        registry.register("haproxy_info", "The running HAProxy's version", version);
    }
}

fn version_family(version: String) -> Family<[(&'static str, String); 1], Gauge> {
    let family = Family::<[(&'static str, String); 1], Gauge>::default();
    family.get_or_create(&[("version", version)]).set(1);
    family
}

/// Counts the desired services by kind, and the desired upstreams by state. Servers of previews don't count.
fn register_totals(status: &Status, registry: &mut Registry) {
    let services = Family::<[(&'static str, &'static str); 1], Gauge>::default();
    let upstreams = Family::<[(&'static str, &'static str); 1], Gauge>::default();
    // A kind without services has the value 0. Without a series, an alert on it would find no data.
    for kind in ["http", "tcp"] {
        drop(services.get_or_create(&[("kind", kind)]));
    }
    let mut states =
        [(ServerState::Ready, "ready", 0), (ServerState::Drain, "drain", 0), (ServerState::Maint, "maint", 0)];
    for (id, wanted) in status.reconcile.desired.services() {
        let kind = if id.kind == discovery::Kind::Http { "http" } else { "tcp" };
        services.get_or_create(&[("kind", kind)]).inc();
        for server in &wanted.servers {
            states.iter_mut().filter(|(state, ..)| *state == server.state).for_each(|(.., count)| *count += 1);
        }
    }
    for (_, state, count) in states {
        upstreams.get_or_create(&[("state", state)]).set(count);
    }
    registry.register("services", "Services that are served", services);
    registry.register("upstreams", "Upstreams that are served, by the state that is wanted of them", upstreams);
}

/// Retained upstreams by service. Alerts need the service's name, so it is a label here. The label has at most a hundred values, and
/// goes with the last retained upstream of its service.
fn register_retained(status: &Status, registry: &mut Registry) {
    const MOST: usize = 100;
    let held = &status.reconcile.retained;
    // Sorted by name, so that each scrape cuts the list at the same service.
    let mut counts: BTreeMap<(String, &str), i64> = BTreeMap::new();
    for ((service, _), retained) in held {
        *counts.entry((service.to_string(), retained.by.name())).or_default() += 1;
    }
    let upstreams = Family::<[(&'static str, String); 2], Gauge>::default();
    for ((service, by), count) in counts.into_iter().take(MOST) {
        upstreams.get_or_create(&[("service", service), ("by", by.to_owned())]).set(count);
    }
    let help = "Upstreams that are served although their keys have gone, by service, and by what retains them: the removal \
                guard, or a reset of the store; of 100 services at most";
    registry.register("retained_upstreams", help, upstreams);
    let oldest = held.values().filter_map(|it| it.since).min();
    // The clock may have been set back since.
    let age = oldest.and_then(|since| SystemTime::now().duration_since(since).ok()).unwrap_or_default();
    let help = "For how long the one that is retained longest has been; 0 if none is";
    registry.register("oldest_retained_seconds", help, new_gauge(to_gauge_value(age.as_secs())));
}

/// Counts the upstreams that get requests, and the others by cause.
fn register_verdicts(status: &Status, counted: &Counted, registry: &mut Registry) {
    let unbalanced = Family::<[(&'static str, String); 1], Gauge>::default();
    // Each cause has a series from the start, so that an alert can tell 0 from no data.
    for cause in Cause::ALL.iter().filter(|cause| is_found_here(cause)) {
        drop(unbalanced.get_or_create(&[("cause", cause.name().to_owned())]));
    }
    let (figures, mut balanced) = (Figures::new(counted), 0);
    let desired = &status.reconcile.desired;
    for id in desired.known_services() {
        let judge = Judge::new(status, &figures, id);
        for upstream in desired.explain_upstreams(id) {
            match judge.judge_upstream(&upstream).cause() {
                None => balanced += 1,
                Some(cause) => _ = unbalanced.get_or_create(&[("cause", cause.name().to_owned())]).inc(),
            }
        }
    }
    registry.register("balanced_upstreams", "Upstreams that get new requests", new_gauge(balanced));
    let help = "Upstreams that get no new requests, by the cause that /api/v1/upstreams and discoverctl explain name";
    registry.register("unbalanced_upstreams", help, unbalanced);
}

/// The other causes are about a balancer that can't be asked, or about the store as it is now. Only discoverctl finds them.
fn is_found_here(cause: &Cause) -> bool {
    use Cause::{ApiUnreachable, BalancerUnreadable, Behind, NoBalancer, NoRecord, OtherStore, StandsBy};
    let by_balancers = matches!(cause, NoBalancer | BalancerUnreadable | OtherStore | Behind | ApiUnreachable);
    !by_balancers && !matches!(cause, StandsBy | NoRecord)
}

fn register_times(status: &Status, registry: &mut Registry) {
    let applied = status.history.iter().find(|entry| entry.outcome.is_ok()).map(|entry| entry.began_at + entry.took);
    let help = "When an act last succeeded, in seconds since 1970";
    register_time(registry, "last_apply_timestamp_seconds", help, applied);
    let help = "When HAProxy was last seen to be another process";
    register_time(registry, "haproxy_start_timestamp_seconds", help, status.started);
}

/// Registers nothing for `None`, because 0 would be a time in 1970.
fn register_time(registry: &mut Registry, name: &str, help: &str, time: Option<SystemTime>) {
    let since = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    if let Some(since) = since {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(since.as_secs_f64());
        registry.register(name, help, gauge);
    }
}

/// The age of the longest activity of each kind, in seconds. 0 without one.
fn register_under_way(status: &Status, registry: &mut Registry) {
    let seconds = Family::<[(&'static str, &'static str); 1], Gauge<f64, AtomicU64>>::default();
    let under_way = status.activities.under_way();
    for kind in activity::KINDS {
        // `under_way` is sorted by age, so the first of a kind is its longest.
        let longest = under_way.iter().find(|it| it.kind == kind).map_or(0.0, |it| it.taken.as_secs_f64());
        seconds.get_or_create(&[("kind", kind)]).set(longest);
    }
    registry.register("under_way_seconds", "How long an act has been under way; 0 while there is none", seconds);
}

/// A series for each certificate's file, unless its end can't be read.
fn register_certificates(status: &Status, registry: &mut Registry) {
    let expiry = Family::<[(&'static str, String); 1], Gauge>::default();
    let all = &status.reconcile.certificates;
    // Without a file of the operator's, the self-signed certificate serves.
    let own = all.default_certificate().filter(|_| all.files.is_empty());
    for certificate in all.files.iter().chain(own) {
        let is_own = own.is_some_and(|own| own.file == certificate.file);
        let name = if is_own {
            certificate.file.file_name().unwrap_or_default().to_string_lossy().into_owned()
        } else {
            all.relative_name(&certificate.file)
        };
        if let Some(end) = certificate.not_after {
            expiry.get_or_create(&[("name", name)]).set(end);
        }
    }
    let help = "When the certificate in this file ends, in seconds since 1970";
    registry.register("certificate_expiry_timestamp_seconds", help, expiry);
    let refused = to_gauge_value(status.reconcile.certificates.rejected.len());
    registry.register("refused_certificates", "Certificates' files that are not taken over", new_gauge(refused));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::desired::tests::{settle, topology};
    use crate::status::ReconcileStatus;

    fn text(status: &Status) -> String {
        let mut registry = Registry::default();
        register_all(status, &Err("gone".into()), &mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn they_follow_the_report() {
        let mut status = Status::default();
        let text_before = text(&status);
        assert!(text_before.contains("\nconfgen_in_sync 0\n"), "{text_before}");
        assert!(text_before.contains("confgen_applies_total{kind=\"restart\",result=\"failed\"} 0"), "{text_before}");
        let store = "http-services/a/upstreams/1 10.0.0.1:80\nhttp-services/a/upstreams/2 10.0.0.2:80\n\
                     http-services/a/overrides/2 {\"state\":\"drain\"}\ntcp-services/b/ports 3306";
        let desired = settle(&topology(store), &Default::default(), &Default::default());
        let mut reconcile = ReconcileStatus { desired: desired.into(), ..ReconcileStatus::default() };
        Arc::make_mut(&mut reconcile.quarantined).insert("k".into(), "r".into());
        status.reconcile = Arc::new(reconcile);
        status.seen.revision = 9;
        status.record_action(HistoryEntry {
            began_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1000),
            took: Duration::from_millis(20),
            kind: ActionKind::Runtime,
            reason: "http-a".into(),
            revision: 9,
            outcome: Ok("1 change over the Runtime API".into()),
            difference: None,
        });
        let text = text(&status);
        for line in [
            "confgen_revision_lag 9",
            "confgen_quarantined_keys 1",
            "confgen_services{kind=\"http\"} 1",
            "confgen_upstreams{state=\"ready\"} 1",
            "confgen_upstreams{state=\"drain\"} 1",
            "confgen_balanced_upstreams 0",
            "confgen_unbalanced_upstreams{cause=\"no_domain\"} 2",
            "confgen_unbalanced_upstreams{cause=\"check\"} 0",
            "confgen_applies_total{kind=\"runtime\",result=\"ok\"} 1",
            "confgen_apply_duration_seconds_bucket{le=\"0.025\",kind=\"runtime\"} 1",
            "confgen_apply_duration_seconds_count{kind=\"runtime\"} 1",
            "confgen_last_apply_timestamp_seconds 1000.02",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
        assert!(!text.contains("http-a"), "no label has a name from the store");
    }
}
