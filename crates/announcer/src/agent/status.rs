//! The agent's status as plain data, and the answers derived from it. Pure, except for the clock of metrics.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use containers::RunState;
use daemon::admin::Probes;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use registry::LeaseStats;
use tokio::sync::watch;

use crate::agent::life::Life;
use crate::status::metrics::{self, LeaseStatus};

/// Sources of the admin port's answers. The loop writes the status, and the lease's task the counts.
pub(crate) struct AgentSources {
    pub(crate) status: watch::Receiver<AgentStatus>,
    pub(crate) lease_stats: watch::Receiver<LeaseStats>,
    pub(crate) ttl: Duration,
}

impl Probes for AgentSources {
    fn check_ready(&self) -> Result<String, String> {
        self.status.borrow().check_ready(&self.lease_stats.borrow(), self.ttl, Instant::now())
    }

    fn register_metrics(&self, registry: &mut Registry) {
        self.status.borrow().register_metrics(&self.lease_stats.borrow(), self.ttl, registry);
    }
}

/// Status that the agent's loop publishes after each change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AgentStatus {
    /// True once every engine was asked and the first records are written.
    pub(crate) is_ready: bool,
    /// By address, the reason why the engine can't be asked. `None` for one that answers.
    pub(crate) engines: BTreeMap<String, Option<String>>,
    pub(crate) containers: ContainerCounts,
    pub(crate) records: RecordCounts,
    /// Services of containers that aren't registered, because their labels or addresses are wrong.
    pub(crate) refused: usize,
    /// Containers that hold a slot of a service with a limit.
    pub(crate) slots_held: usize,
    /// Containers that wait for a slot.
    pub(crate) standing_by: usize,
}

/// Containers with labels that count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ContainerCounts {
    running: usize,
    paused: usize,
    stopped: usize,
}

/// Records by what they say, as far as this host's containers decide it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RecordCounts {
    ready: usize,
    down: usize,
    drain: usize,
    /// The app has not worked yet, so that there is no record.
    waiting: usize,
}

impl ContainerCounts {
    pub(crate) fn count(states: impl Iterator<Item = RunState>) -> Self {
        let mut counts = Self::default();
        for state in states {
            match state {
                RunState::Running => counts.running += 1,
                RunState::Paused => counts.paused += 1,
                RunState::Stopped(_) => counts.stopped += 1,
            }
        }
        counts
    }
}

impl RecordCounts {
    pub(crate) fn count(lives: impl Iterator<Item = Life>) -> Self {
        let mut counts = Self::default();
        for life in lives {
            match life {
                Life::Serving => counts.ready += 1,
                Life::Failing | Life::Paused => counts.down += 1,
                Life::Draining => counts.drain += 1,
                Life::Starting | Life::Held => counts.waiting += 1,
                Life::Leaving | Life::Gone => {}
            }
        }
        counts
    }

    /// Records that are in the store, or about to be written.
    fn announced(self) -> usize {
        self.ready + self.down + self.drain
    }
}

impl AgentStatus {
    /// Line of `systemctl status`, and of `/ready`.
    pub(crate) fn describe(&self) -> String {
        let RecordCounts { ready, waiting, .. } = self.records;
        let not_ready = self.records.announced() + waiting - ready;
        let mut line = format!("{ready} records ready, {not_ready} not, {} services refused", self.refused);
        if self.slots_held + self.standing_by > 0 {
            line.push_str(&format!(", {} slots held, {} copies stand by", self.slots_held, self.standing_by));
        }
        for reason in self.engines.values().flatten() {
            line.push_str("; ");
            line.push_str(reason);
        }
        line
    }

    /// Answer of `/ready`. An engine that is away costs nothing: its records stay, and the text says it.
    pub(crate) fn check_ready(&self, lease: &LeaseStats, ttl: Duration, now: Instant) -> Result<String, String> {
        if !self.is_ready {
            return Err(format!("the first records aren't written: {}", self.describe()));
        }
        let silence = lease.renewed_at.map_or(Duration::MAX, |last| now.saturating_duration_since(last));
        if silence > ttl {
            return Err("the lease could not be renewed for longer than its time: etcd may have ended it".to_owned());
        }
        let away = if lease.is_failing { "; the lease can't be renewed for now" } else { "" };
        Ok(format!("{}{away}", self.describe()))
    }

    /// Adds all metrics, as `announcer_…`.
    pub(crate) fn register_metrics(&self, lease: &LeaseStats, ttl: Duration, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("announcer");
        let is_ready = self.check_ready(lease, ttl, Instant::now()).is_ok();
        register_gauge(registry, "ready", "1 while /ready is 200", usize::from(is_ready));
        let engines = Family::<[(&'static str, String); 1], Gauge>::default();
        for (address, away) in &self.engines {
            engines.get_or_create(&[("engine", address.clone())]).set(away.is_none().into());
        }
        registry.register("engine_connected", "1 while the engine answers", engines);
        let ContainerCounts { running, paused, stopped } = self.containers;
        let counts = [("running", running), ("paused", paused), ("stopped", stopped)];
        register_states(registry, "containers", "Containers with labels that count", &counts);
        let RecordCounts { ready, down, drain, waiting } = self.records;
        let counts = [("ready", ready), ("down", down), ("drain", drain), ("waiting", waiting)];
        register_states(registry, "records", "Records of this host's containers, by what they say", &counts);
        register_gauge(registry, "services_refused", "Services whose labels or addresses are wrong", self.refused);
        register_gauge(registry, "slots_held", "Slots that this host's containers hold", self.slots_held);
        register_gauge(registry, "copies_standing_by", "Containers that wait for a slot", self.standing_by);
        metrics::register_lease(&LeaseStatus { stats: *lease, ttl }, registry);
        metrics::register_build(registry);
    }
}

fn register_gauge(registry: &mut Registry, name: &'static str, help: &'static str, value: usize) {
    let gauge = Gauge::<i64>::default();
    gauge.set(to_gauge(value));
    registry.register(name, help, gauge);
}

fn register_states(registry: &mut Registry, name: &'static str, help: &'static str, counts: &[(&'static str, usize)]) {
    let family = Family::<[(&'static str, &'static str); 1], Gauge>::default();
    for (state, count) in counts {
        family.get_or_create(&[("state", *state)]).set(to_gauge(*count));
    }
    registry.register(name, help, family);
}

fn to_gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(30);

    fn status() -> AgentStatus {
        let engines = [("unix:///a".to_owned(), None), ("unix:///b".to_owned(), Some("b can't be reached".to_owned()))];
        let lives = [Life::Serving, Life::Serving, Life::Paused, Life::Draining, Life::Starting, Life::Leaving];
        let states = [RunState::Running, RunState::Paused, RunState::Stopped("created".to_owned())];
        AgentStatus {
            is_ready: true,
            engines: engines.into(),
            containers: ContainerCounts::count(states.into_iter()),
            records: RecordCounts::count(lives.into_iter()),
            refused: 1,
            slots_held: 1,
            standing_by: 2,
        }
    }

    fn renewed(at: Instant) -> LeaseStats {
        LeaseStats { renewed: 4, renewed_at: Some(at), ..LeaseStats::default() }
    }

    #[test]
    fn an_engine_that_is_away_leaves_the_agent_ready() {
        let now = Instant::now();
        let line = "2 records ready, 3 not, 1 services refused, 1 slots held, 2 copies stand by; b can't be reached";
        assert_eq!(status().check_ready(&renewed(now), TTL, now), Ok(line.to_owned()));
        let failing = LeaseStats { is_failing: true, ..renewed(now) };
        assert!(status().check_ready(&failing, TTL, now + TTL).unwrap().ends_with("can't be renewed for now"));
        assert!(status().check_ready(&failing, TTL, now + TTL + TTL).is_err());
        let early = AgentStatus { is_ready: false, ..status() };
        assert!(early.check_ready(&renewed(now), TTL, now).unwrap_err().starts_with("the first records aren't"));
    }

    #[test]
    fn metrics_count_what_the_agent_knows() {
        let mut registry = Registry::default();
        status().register_metrics(&renewed(Instant::now()), TTL, &mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "announcer_ready 1",
            "announcer_engine_connected{engine=\"unix:///a\"} 1",
            "announcer_engine_connected{engine=\"unix:///b\"} 0",
            "announcer_containers{state=\"running\"} 1",
            "announcer_containers{state=\"stopped\"} 1",
            "announcer_records{state=\"ready\"} 2",
            "announcer_records{state=\"down\"} 1",
            "announcer_records{state=\"waiting\"} 1",
            "announcer_services_refused 1",
            "announcer_slots_held 1",
            "announcer_copies_standing_by 2",
            "announcer_store_connected 1",
            "announcer_lease_ttl_seconds 30.0",
            "announcer_lease_renewals_total{result=\"ok\"} 4",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
    }
}
