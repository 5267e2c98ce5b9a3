//! The status as Prometheus reads it. Pure, except for the counters of checks, which outlive an answer.
//!
//! Labels name only what this announcer announces, so the number of series is known beforehand.

use std::{
    sync::atomic::AtomicU64,
    time::{Duration, Instant, SystemTime},
};

use discovery::{Key, ServiceId, UpstreamId, UpstreamState};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use registry::LeaseStats;

use crate::config::upstream;
use crate::state::State;
use crate::status::{Status, UpstreamStatus};

/// A lease's counts of renewals, and its time.
pub(crate) struct LeaseStatus {
    pub(crate) stats: LeaseStats,
    pub(crate) ttl: Duration,
}

impl LeaseStatus {
    /// True if the last renewal succeeded.
    pub(crate) fn is_connected(&self) -> bool {
        self.stats.renewed > 0 && !self.stats.is_failing
    }
}

// Without `Done`: the process ends with it.
const STATES: [(State, &str); 10] = [
    (State::Starting, "starting"),
    (State::Announcing, "announcing"),
    (State::AwaitingBalancers, "spreading"),
    (State::Announced, "announced"),
    (State::Draining, "draining"),
    (State::Stopping, "stopping"),
    (State::Killing, "killing"),
    (State::Leaving, "leaving"),
    (State::Withdrawing, "withdrawing"),
    (State::Clearing, "clearing"),
];

const RECORD_STATES: [(UpstreamState, &str); 3] =
    [(UpstreamState::Ready, "ready"), (UpstreamState::Drain, "drain"), (UpstreamState::Down, "down")];

/// Counters of all upstreams' checks. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct CheckCounters(Family<CheckLabels, Counter>);

/// Counters of one upstream's checks.
#[derive(Clone, Debug, Default)]
pub(crate) struct UpstreamCheckCounters {
    passed: Counter,
    failed: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabels {
    service: String,
    upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabels {
    service: String,
    upstream: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    service: String,
    upstream: String,
    state: &'static str,
}

impl CheckCounters {
    /// Counters of an upstream, shown from now on: a rate needs a first value. An upstream without checks gets counters
    /// that are not shown.
    pub(crate) fn for_upstream(&self, upstream: &upstream::Upstream) -> UpstreamCheckCounters {
        let (service, id) = upstream.service_and_id();
        if upstream.checks.all.is_empty() { UpstreamCheckCounters::default() } else { self.counters_for(&service, &id) }
    }

    fn counters_for(&self, service: &ServiceId, id: &UpstreamId) -> UpstreamCheckCounters {
        UpstreamCheckCounters { passed: self.counter(service, id, "ok"), failed: self.counter(service, id, "failed") }
    }

    fn counter(&self, service: &ServiceId, id: &UpstreamId, result: &'static str) -> Counter {
        let labels = CheckLabels { service: service.to_string(), upstream: id.to_string(), result };
        self.0.get_or_create(&labels).clone()
    }
}

impl UpstreamCheckCounters {
    /// Counts one round of checks.
    pub(crate) fn count_round(&self, has_passed: bool) {
        if has_passed {
            self.passed.inc()
        } else {
            self.failed.inc()
        };
    }
}

/// Adds all metrics, as `announcer_…`.
pub(crate) fn register_metrics(status: &Status, counters: &CheckCounters, registry: &mut Registry) {
    let registry = registry.sub_registry_with_prefix("announcer");
    let ready = status.check_ready(Instant::now()).is_ok();
    registry.register("ready", "1 while every record says ready in the store, as /ready says it", flag_gauge(ready));
    let states = Family::<[(&'static str, &'static str); 1], Gauge>::default();
    for (state, name) in STATES {
        states.get_or_create(&[("state", name)]).set(i64::from(state == status.state && !status.stands_by()));
    }
    if status.slot.is_some() {
        states.get_or_create(&[("state", "standby")]).set(status.stands_by().into());
    }
    registry.register("state", "1 for where the announcer stands in its life", states);
    register_slot(status, registry);
    register_upstreams(status, registry);
    registry.register("checks", "Rounds of an upstream's checks", counters.0.clone());
    register_lease(&LeaseStatus { stats: status.lease_stats, ttl: status.ttl }, registry);
    register_build(registry);
}

/// Adds the version and the log's counters.
pub(crate) fn register_build(registry: &mut Registry) {
    let info = Family::<[(&'static str, &'static str); 1], Gauge>::default();
    info.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
    registry.register("build_info", "announcer's version", info);
    daemon::admin::register_log(registry);
}

fn seconds_gauge(value: f64) -> Gauge<f64, AtomicU64> {
    let gauge = Gauge::<f64, AtomicU64>::default();
    gauge.set(value);
    gauge
}

fn flag_gauge(value: bool) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(value.into());
    gauge
}

fn register_upstreams(status: &Status, registry: &mut Registry) {
    let (healthy, registered) =
        (Family::<UpstreamLabels, Gauge>::default(), Family::<UpstreamLabels, Gauge>::default());
    let (taken, refused) = (Family::<UpstreamLabels, Gauge>::default(), Family::<UpstreamLabels, Gauge>::default());
    let says = Family::<StateLabels, Gauge>::default();
    let (registrations, restorations) =
        (Family::<UpstreamLabels, Counter>::default(), Family::<UpstreamLabels, Counter>::default());
    for UpstreamStatus { service, id, is_healthy: works, record: stand } in &status.upstreams {
        let key = Key::for_upstream(service, id).to_string();
        let refusals = status.key_status.refused_records.iter().filter(|refused| refused.key == key).count();
        let (service, upstream) = (service.to_string(), id.to_string());
        let of = UpstreamLabels { service: service.clone(), upstream: upstream.clone() };
        healthy.get_or_create(&of).set((*works).into());
        registered.get_or_create(&of).set(stand.stored_state.is_some().into());
        taken.get_or_create(&of).set(stand.owner.is_some().into());
        refused.get_or_create(&of).set(i64::try_from(refusals).unwrap_or(i64::MAX));
        registrations.get_or_create(&of).inc_by(stand.registrations);
        restorations.get_or_create(&of).inc_by(stand.restorations);
        for (state, name) in RECORD_STATES {
            let labels = StateLabels { service: service.clone(), upstream: upstream.clone(), state: name };
            says.get_or_create(&labels).set((stand.stored_state == Some(state)).into());
        }
    }
    registry.register("upstream_healthy", "1 while the upstream works, going by its checks", healthy);
    let help = "1 while the upstream's record stands in the store, under this announcer's lease";
    registry.register("upstream_registered", help, registered);
    registry.register("upstream_state", "1 for what the upstream's record says in the store", says);
    let help = "1 while the upstream's id belongs to another owner";
    registry.register("upstream_taken", help, taken);
    let help = "How many live balancers refuse the upstream's record, as of the last look at what they say";
    registry.register("upstream_refused", help, refused);
    let help = "Times that the upstream's record was put into the store; each but the first after it was lost";
    registry.register("registrations", help, registrations);
    let help = "Times that the record was put there since another hand had deleted it or written over it";
    registry.register("restorations", help, restorations);
    let help = "How many settings say otherwise than this announcer was given, as of the last look at them";
    let differing = Gauge::<i64>::default();
    differing.set(i64::try_from(status.key_status.differing_settings.len()).unwrap_or(i64::MAX));
    registry.register("settings_differing", help, differing);
}

fn register_slot(status: &Status, registry: &mut Registry) {
    let Some(slot) = &status.slot else { return };
    let held = Gauge::<i64>::default();
    held.set(slot.slot.unwrap_or_default().into());
    registry.register("slot", "The slot that this copy holds, 0 if none", held);
    let copies = Family::<[(&'static str, &'static str); 1], Gauge>::default();
    let counts = [("wanted", usize::from(slot.wanted)), ("running", slot.running), ("standby", slot.standing_by)];
    for (state, count) in counts {
        copies.get_or_create(&[("state", state)]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    registry.register("copies", "Copies of the service, as this announcer sees them in the store", copies);
}

/// Adds the lease's metrics.
pub(crate) fn register_lease(lease: &LeaseStatus, registry: &mut Registry) {
    let beats = &lease.stats;
    let help = "1 while etcd answers the lease's renewals";
    registry.register("store_connected", help, flag_gauge(lease.is_connected()));
    let help = "How long the records outlive their last renewal";
    registry.register_with_unit("lease_ttl", help, Unit::Seconds, seconds_gauge(lease.ttl.as_secs_f64()));
    let last = beats.renewed_at.and_then(|last| SystemTime::now().checked_sub(last.elapsed()));
    if let Some(last) = last.and_then(|last| last.duration_since(SystemTime::UNIX_EPOCH).ok()) {
        let help = "When the lease was last renewed, in seconds since 1970; missing while there is none";
        registry.register("lease_last_renewal_timestamp_seconds", help, seconds_gauge(last.as_secs_f64()));
    }
    let renewals = Family::<[(&'static str, &'static str); 1], Counter>::default();
    for (result, count) in [("ok", beats.renewed), ("failed", beats.failed)] {
        renewals.get_or_create(&[("result", result)]).inc_by(count);
    }
    registry.register("lease_renewals", "Renewals of the lease, with its grants", renewals);
}

#[cfg(test)]
mod tests {
    use discovery::QuarantinedKey;

    use super::*;
    use crate::status::SlotStatus;
    use crate::status::tests::announced;

    fn text(status: &Status, counters: &CheckCounters) -> String {
        let mut registry = Registry::default();
        register_metrics(status, counters, &mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn they_follow_the_standing() {
        let mut status = announced(Instant::now());
        status.upstreams[1].is_healthy = false;
        status.upstreams[1].record.stored_state = Some(UpstreamState::Down);
        status.lease_stats.failed = 2;
        status.upstreams[1].record.owner = Some("another".to_owned());
        status.upstreams[0].record.restorations = 3;
        let (node, key) = ("lb".parse().unwrap(), "http-services/shop/upstreams/a".to_owned());
        status.key_status.refused_records.insert(QuarantinedKey { node, key, reason: "why".to_owned() });
        let counters = CheckCounters::default();
        let of_a = counters.counters_for(&status.upstreams[0].service, &status.upstreams[0].id);
        [true, true, false].into_iter().for_each(|passed| of_a.count_round(passed));
        let text = text(&status, &counters);
        for line in [
            "announcer_ready 0",
            "announcer_state{state=\"announced\"} 1",
            "announcer_state{state=\"draining\"} 0",
            "announcer_upstream_healthy{service=\"http-shop\",upstream=\"a\"} 1",
            "announcer_upstream_healthy{service=\"http-shop\",upstream=\"b\"} 0",
            "announcer_upstream_registered{service=\"http-shop\",upstream=\"b\"} 1",
            "announcer_upstream_state{service=\"http-shop\",upstream=\"b\",state=\"down\"} 1",
            "announcer_upstream_state{service=\"http-shop\",upstream=\"b\",state=\"ready\"} 0",
            "announcer_registrations_total{service=\"http-shop\",upstream=\"a\"} 1",
            "announcer_restorations_total{service=\"http-shop\",upstream=\"a\"} 3",
            "announcer_upstream_taken{service=\"http-shop\",upstream=\"b\"} 1",
            "announcer_upstream_taken{service=\"http-shop\",upstream=\"a\"} 0",
            "announcer_upstream_refused{service=\"http-shop\",upstream=\"a\"} 1",
            "announcer_settings_differing 0",
            "announcer_checks_total{service=\"http-shop\",upstream=\"a\",result=\"ok\"} 2",
            "announcer_checks_total{service=\"http-shop\",upstream=\"a\",result=\"failed\"} 1",
            "announcer_store_connected 1",
            "announcer_lease_ttl_seconds 10.0",
            "announcer_lease_renewals_total{result=\"ok\"} 4",
            "announcer_lease_renewals_total{result=\"failed\"} 2",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
        assert!(text.contains("\nannouncer_lease_last_renewal_timestamp_seconds "), "{text}");
    }

    #[test]
    fn a_copy_shows_its_slot_or_that_it_stands_by() {
        let mut status = announced(Instant::now());
        let slot = SlotStatus {
            runs_app: true,
            slot: Some(2),
            wanted: 3,
            running: 3,
            standing_by: 1,
            ..SlotStatus::default()
        };
        status.slot = Some(slot.clone());
        let running = text(&status, &CheckCounters::default());
        status.slot = Some(SlotStatus { runs_app: false, slot: None, ..slot });
        let standing_by = text(&status, &CheckCounters::default());
        for (text, line) in [
            (&running, "announcer_slot 2"),
            (&running, "announcer_state{state=\"standby\"} 0"),
            (&running, "announcer_state{state=\"announced\"} 1"),
            (&running, "announcer_copies{state=\"wanted\"} 3"),
            (&running, "announcer_copies{state=\"standby\"} 1"),
            (&standing_by, "announcer_slot 0"),
            (&standing_by, "announcer_state{state=\"standby\"} 1"),
            (&standing_by, "announcer_state{state=\"announced\"} 0"),
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
    }

    #[test]
    fn every_state_but_the_end_has_a_name() {
        let mut status = announced(Instant::now());
        for (state, name) in STATES {
            status.state = state;
            let text = text(&status, &CheckCounters::default());
            let ones: Vec<_> = text.lines().filter(|line| line.starts_with("announcer_state{")).collect();
            let ones: Vec<_> = ones.into_iter().filter(|line| line.ends_with(" 1")).collect();
            assert_eq!(ones, [format!("announcer_state{{state=\"{name}\"}} 1")]);
        }
    }
}
