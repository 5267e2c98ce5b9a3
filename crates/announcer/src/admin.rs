//! The admin port: how things stand, shown. Nothing here can change anything, or keep the loop waiting.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use daemon::admin::{Error, Probes, Pulse, Server};
use discovery::{ServiceId, UpstreamId};
use prometheus_client::registry::Registry;
use registry::Beats;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::registrar::Stands;
use crate::status::metrics::Checked;
use crate::status::{LoopStatus, Reception, Standing, Upstream, metrics};

/// An admin port that listens and doesn't answer yet.
pub(crate) struct Port(Server);

impl Port {
    /// Binds it, where there is to be one.
    pub(crate) async fn bind(config: Option<daemon::admin::Config>) -> Result<Option<Self>, Error> {
        let Some(config) = config else { return Ok(None) };
        Ok(Some(Self(Server::bind(config).await?)))
    }

    /// Answers from now on, as long as the process lives: a probe is to see the drain too. Returns what is to beat.
    pub(crate) fn open(self, shown: Shown) -> Pulse {
        let pulse = Pulse::default();
        let routes = daemon::admin::routes(pulse.clone(), Arc::new(shown));
        tokio::spawn(self.0.serve(routes, CancellationToken::new()));
        pulse
    }
}

/// What is shown, as others leave it behind.
pub(crate) struct Shown {
    /// The upstreams, as they are configured.
    pub(crate) names: Vec<(ServiceId, UpstreamId)>,
    pub(crate) now: watch::Receiver<LoopStatus>,
    pub(crate) stands: Stands,
    pub(crate) ttl: Duration,
    pub(crate) beats: watch::Receiver<Beats>,
    pub(crate) checked: Checked,
    pub(crate) reception: watch::Receiver<Reception>,
}

impl Shown {
    fn standing(&self) -> Standing {
        let LoopStatus { state, words, works } = self.now.borrow().clone();
        let upstreams = self.names.iter().enumerate().map(|(index, (service, id))| Upstream {
            service: service.clone(),
            id: id.clone(),
            works: works.get(index).copied().unwrap_or_default(),
            stand: self.stands.of(service, id),
        });
        Standing {
            state,
            words,
            upstreams: upstreams.collect(),
            ttl: self.ttl,
            beats: *self.beats.borrow(),
            failure: self.stands.failure(),
            reception: self.reception.borrow().clone(),
        }
    }
}

impl Probes for Shown {
    fn ready(&self) -> Result<String, String> {
        self.standing().ready(Instant::now())
    }

    fn metrics(&self, registry: &mut Registry) {
        metrics::register(&self.standing(), &self.checked, registry);
    }
}
