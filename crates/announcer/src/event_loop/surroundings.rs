//! The parts of the process that all runs of the app share. It decides nothing.

use std::time::Duration;

use anyhow::Context;
use registry::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admin::{RunSources, StatusSources};
use crate::config::Config;
use crate::config::upstream::Upstream;
use crate::processes::reaper::Reaper;
use crate::processes::tether::Limit;
use crate::status::metrics::CheckCounters;

/// Parts of the process that outlive a run of the app.
pub(crate) struct Surroundings {
    pub(crate) reaper: Reaper,
    /// One connection for all leases of the process.
    pub(crate) client: Client,
    pub(crate) check_counters: CheckCounters,
    /// Published for the admin port.
    pub(crate) sources: watch::Sender<Option<RunSources>>,
    /// Set when the process stops, not only this run. systemd is told only then.
    pub(crate) process_stop: CancellationToken,
    /// Time until when the app may run. `None` for an app that may outlive a killed announcer.
    pub(crate) limits: Option<watch::Receiver<Limit>>,
}

impl Surroundings {
    /// Must be called before the first child starts: a child that ends earlier would never be reaped.
    pub(crate) fn new(config: &Config, process_stop: CancellationToken) -> anyhow::Result<Self> {
        let reaper = Reaper::start().context("can't handle signals")?;
        let (check_counters, sources) = (CheckCounters::default(), watch::Sender::default());
        let client = Client::new(config.etcd.clone());
        Ok(Self { reaper, client, check_counters, sources, process_stop, limits: None })
    }

    /// Sources of the admin port's answers.
    pub(crate) fn status_sources(&self, config: &Config, ttl: Duration) -> StatusSources {
        StatusSources {
            names: config.upstreams.iter().map(Upstream::service_and_id).collect(),
            ttl,
            check_counters: self.check_counters.clone(),
            run: self.sources.subscribe(),
            slot: None,
        }
    }
}
