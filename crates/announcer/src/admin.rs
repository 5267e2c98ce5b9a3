//! The admin port serves the announcer's status, metrics and probes. It changes nothing and never delays the loop.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use daemon::admin::{Error, Probes, Pulse, Server};
use discovery::{ServiceId, UpstreamId};
use prometheus_client::registry::Registry;
use registry::LeaseStats;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::registrar::RecordStatuses;
use crate::status::metrics::CheckCounters;
use crate::status::{KeyStatus, LoopStatus, SlotStatus, Status, UpstreamStatus, metrics};

/// A bound admin port. Connections wait in the kernel's queue until [`Port::start_serving`].
pub(crate) struct Port(Server);

impl Port {
    /// Binds the port. `None` if `--admin` is off.
    pub(crate) async fn bind(config: Option<daemon::admin::Config>) -> Result<Option<Self>, Error> {
        let Some(config) = config else { return Ok(None) };
        Ok(Some(Self(Server::bind(config).await?)))
    }

    /// Serves until the process ends, so that a probe sees the drain too. The returned pulse must be beaten by the
    /// loop, or `/live` fails.
    pub(crate) fn start_serving(self, sources: impl Probes) -> Pulse {
        let pulse = Pulse::default();
        let routes = daemon::admin::build_routes(pulse.clone(), Arc::new(sources));
        // Never cancelled: the port ends with the process.
        tokio::spawn(self.0.serve(routes, CancellationToken::new()));
        pulse
    }
}

/// Sources of an answer. Each is written by the task that owns it, and read on demand.
pub(crate) struct StatusSources {
    /// In the order of the configuration.
    pub(crate) names: Vec<(ServiceId, UpstreamId)>,
    pub(crate) ttl: Duration,
    pub(crate) check_counters: CheckCounters,
    /// Sources of the latest run of the app. `None` before the first one.
    pub(crate) run: watch::Receiver<Option<RunSources>>,
    /// `None` without `--replicas`.
    pub(crate) slot: Option<SlotSources>,
}

/// Sources of a copy with `--replicas`.
pub(crate) struct SlotSources {
    pub(crate) status: watch::Receiver<SlotStatus>,
    /// Those of the slot's lease, which counts while the app doesn't run.
    pub(crate) lease_stats: watch::Receiver<LeaseStats>,
}

/// Sources that belong to one run of the app.
#[derive(Clone)]
pub(crate) struct RunSources {
    pub(crate) loop_status: watch::Receiver<LoopStatus>,
    pub(crate) records: RecordStatuses,
    pub(crate) lease_stats: watch::Receiver<LeaseStats>,
    pub(crate) key_status: watch::Receiver<KeyStatus>,
}

impl StatusSources {
    fn collect_status(&self) -> Status {
        let run = self.run.borrow().clone();
        let run = run.as_ref();
        let LoopStatus { state, status_line, healthy } =
            run.map(|run| run.loop_status.borrow().clone()).unwrap_or_default();
        let upstreams = self.names.iter().enumerate().map(|(index, (service, id))| UpstreamStatus {
            service: service.clone(),
            id: id.clone(),
            is_healthy: healthy.get(index).copied().unwrap_or_default(),
            record: run.map(|run| run.records.status_of(service, id)).unwrap_or_default(),
        });
        let slot_stats = self.slot.as_ref().map(|slot| &slot.lease_stats);
        let lease_stats = run.map(|run| &run.lease_stats).or(slot_stats);
        Status {
            state,
            status_line,
            upstreams: upstreams.collect(),
            ttl: self.ttl,
            lease_stats: lease_stats.map(|stats| *stats.borrow()).unwrap_or_default(),
            failure: run.and_then(|run| run.records.last_failure()),
            key_status: run.map(|run| run.key_status.borrow().clone()).unwrap_or_default(),
            slot: self.slot.as_ref().map(|slot| slot.status.borrow().clone()),
        }
    }
}

impl Probes for StatusSources {
    fn check_ready(&self) -> Result<String, String> {
        self.collect_status().check_ready(Instant::now())
    }

    fn register_metrics(&self, registry: &mut Registry) {
        metrics::register_metrics(&self.collect_status(), &self.check_counters, registry);
    }
}
