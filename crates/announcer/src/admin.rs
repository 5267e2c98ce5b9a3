//! The admin port: how things stand, shown. Nothing here can change anything, or keep the loop waiting.

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
use crate::status::{KeyStatus, LoopStatus, Status, UpstreamStatus, metrics};

/// An admin port that listens and doesn't answer yet.
pub(crate) struct Port(Server);

impl Port {
    /// Binds it, where there is to be one.
    pub(crate) async fn bind(config: Option<daemon::admin::Config>) -> Result<Option<Self>, Error> {
        let Some(config) = config else { return Ok(None) };
        Ok(Some(Self(Server::bind(config).await?)))
    }

    /// Answers from now on, as long as the process lives: a probe is to see the drain too. Returns what is to beat.
    pub(crate) fn start_serving(self, shown: StatusSources) -> Pulse {
        let pulse = Pulse::default();
        let routes = daemon::admin::build_routes(pulse.clone(), Arc::new(shown));
        tokio::spawn(self.0.serve(routes, CancellationToken::new()));
        pulse
    }
}

/// What is shown, as others leave it behind.
pub(crate) struct StatusSources {
    /// The upstreams, as they are configured.
    pub(crate) names: Vec<(ServiceId, UpstreamId)>,
    pub(crate) loop_status: watch::Receiver<LoopStatus>,
    pub(crate) records: RecordStatuses,
    pub(crate) ttl: Duration,
    pub(crate) lease_stats: watch::Receiver<LeaseStats>,
    pub(crate) check_counters: CheckCounters,
    pub(crate) key_status: watch::Receiver<KeyStatus>,
}

impl StatusSources {
    fn collect_status(&self) -> Status {
        let LoopStatus { state, status_line: words, healthy: works } = self.loop_status.borrow().clone();
        let upstreams = self.names.iter().enumerate().map(|(index, (service, id))| UpstreamStatus {
            service: service.clone(),
            id: id.clone(),
            is_healthy: works.get(index).copied().unwrap_or_default(),
            record: self.records.status_of(service, id),
        });
        Status {
            state,
            status_line: words,
            upstreams: upstreams.collect(),
            ttl: self.ttl,
            lease_stats: *self.lease_stats.borrow(),
            failure: self.records.last_failure(),
            key_status: self.key_status.borrow().clone(),
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
