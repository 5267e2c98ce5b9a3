//! The life of a copy of a service with `--replicas`: stand by, hold a slot, run the app, hand the slot over.
//!
//! `state` decides on events, `choice` on slots, `write` on transactions, `fence` and `restarts` on times. They are pure.
//! `keeper` feeds them and acts. A run of the app is `event_loop`'s, which knows nothing of slots.

mod choice;
mod fence;
mod keeper;
mod restarts;
mod state;
mod tempo;
mod view;
mod write;

use std::{sync::Arc, time::SystemTime};

use daemon::shutdown::Shutdown;
use discovery::Timestamp;
use tokio::sync::{mpsc, watch};

use crate::admin::{Port, SlotSources};
use crate::child;
use crate::config::{Config, ReplicaOptions, RunParameters};
use crate::event_loop::surroundings::Surroundings;
use crate::lease::Lease;
use crate::slots::choice::Us;
use crate::slots::keeper::{Keeper, Parts};
use crate::slots::view::View;
use crate::slots::write::Facts;
use crate::status::SlotStatus;
use crate::status::heartbeat::Heartbeat;

/// Stands by for a slot and runs the app while it holds one, until a stop signal. Returns the exit status.
pub(crate) async fn run_copy(
    config: Config,
    mut parameters: RunParameters,
    options: ReplicaOptions,
    shutdown: &Shutdown,
) -> anyhow::Result<u8> {
    let mut surroundings = Surroundings::new(&config, shutdown.drain.clone())?;
    // A copy that stands by must not die of a signal that is meant for the app.
    drop(child::handle_forwarded_signals(&parameters.stop_on)?);
    let (limits, limit) = watch::channel(None);
    surroundings.limits = Some(limit);
    let admin = Port::bind(parameters.admin.take()).await?;
    let lease = Lease::keep_alive(surroundings.client.clone(), parameters.ttl);
    let (shown, status) = watch::channel(SlotStatus::default());
    let heartbeat = Heartbeat::new(admin.map(|port| {
        let mut sources = surroundings.status_sources(&config, parameters.ttl);
        sources.slot = Some(SlotSources { status, lease_stats: lease.stats.clone() });
        port.start_serving(sources)
    }));
    // `config` has refused upstreams of several services.
    let Some(announcement) = config.upstreams.first().map(|upstream| upstream.announcement.clone()) else {
        return Ok(0);
    };
    let us = Us {
        id: announcement.id,
        replicas: options.count,
        has_fence: options.has_fence,
        lease: None,
        last_slot: None,
        since: None,
    };
    let facts = Facts {
        service: announcement.service.clone(),
        host: announcement.host,
        prefer: options.prefer,
        standing_since: Timestamp::from_time(SystemTime::now()),
        rests_until: None,
    };
    let (messages, inbox) = mpsc::channel(4);
    let keeper = Keeper::new(Parts {
        config: Arc::new(config),
        parameters: Arc::new(parameters),
        options,
        surroundings: Arc::new(surroundings),
        lease,
        view: View::new(announcement.service),
        us,
        facts,
        limits,
        messages,
        shown,
        first_signal: shutdown.first_signal.clone(),
    });
    Ok(keeper.run_until_done(inbox, heartbeat, shutdown).await)
}
