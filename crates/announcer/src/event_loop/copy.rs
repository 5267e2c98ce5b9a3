//! A copy of a service with `--replicas`, whose app is a process: each run of the app is one of this loop's. `slots` decides
//! when there is a run.

use std::sync::{Arc, OnceLock};

use daemon::shutdown::Shutdown;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::admin::{Port, SlotSources};
use crate::child::{self, ChildError};
use crate::config::{Config, ReplicaOptions, RunParameters};
use crate::event_loop::run_once;
use crate::event_loop::surroundings::Surroundings;
use crate::lease::Lease;
use crate::slots::app::{App, AppEvent, AppEventKind};
use crate::slots::keeper::{CopyName, Keeper, Outlets};
use crate::state::State;
use crate::status::SlotStatus;
use crate::status::heartbeat::Heartbeat;

/// Exit status of a run that failed without an app's status.
const FAILED: u8 = 1;

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
    let name = CopyName { service: announcement.service, id: announcement.id, host: announcement.host };
    let (events, inbox) = mpsc::channel(4);
    let app = ProcessApp {
        config: Arc::new(config),
        parameters: Arc::new(parameters),
        surroundings: Arc::new(surroundings),
        first_signal: shutdown.first_signal.clone(),
        events,
        run: Shutdown::default(),
        tasks: JoinSet::new(),
    };
    let keeper = Keeper::new(name, options, lease, Outlets { limits, shown }, app);
    Ok(keeper.run_until_done(inbox, heartbeat, shutdown).await)
}

/// The app of a copy: a process that this one starts.
struct ProcessApp {
    config: Arc<Config>,
    parameters: Arc<RunParameters>,
    surroundings: Arc<Surroundings>,
    /// First stop signal, which decides the app's stop signal.
    first_signal: Arc<OnceLock<i32>>,
    events: mpsc::Sender<AppEvent>,
    /// Stops the current run.
    run: Shutdown,
    /// The current run, and the task that waits for its announcement.
    tasks: JoinSet<()>,
}

impl App for ProcessApp {
    fn start(&mut self, run: u64) {
        self.run = Shutdown { first_signal: self.first_signal.clone(), ..Shutdown::default() };
        self.surroundings.sources.send_replace(None);
        // The task of an earlier run may still wait.
        self.tasks = JoinSet::new();
        self.tasks.spawn(report_announced(self.surroundings.clone(), run, self.events.clone()));
        let (config, parameters, surroundings) =
            (self.config.clone(), self.parameters.clone(), self.surroundings.clone());
        let (told, events) = (self.run.clone(), self.events.clone());
        self.tasks.spawn(async move {
            let mut running = JoinSet::new();
            let sources = surroundings.sources.clone();
            running
                .spawn(async move { run_once(&config, parameters, &surroundings, Heartbeat::silent(), &told).await });
            // A task of its own, so that a run that panics is a run that failed.
            let Some(ended) = running.join_next().await else { return };
            sources.send_replace(None);
            let status = exit_status(ended.unwrap_or_else(|error| Err(error.into())));
            let _ = events.send(AppEvent { run, kind: AppEventKind::Ended(status) }).await;
        });
    }

    fn stop(&mut self, _is_awaited: bool) {
        self.run.drain.cancel();
    }

    fn kill(&mut self) {
        self.run.drain.cancel();
        self.run.abort.cancel();
    }

    fn is_start_waiting(&self) -> bool {
        let run = self.surroundings.sources.borrow().clone();
        run.is_none_or(|run| matches!(run.loop_status.borrow().state, State::Announcing | State::AwaitingBalancers))
    }
}

fn exit_status(ended: anyhow::Result<u8>) -> u8 {
    ended.unwrap_or_else(|error| {
        tracing::error!(error = %program::text::describe_error(error.as_ref()), "can't run the app");
        error.downcast_ref::<ChildError>().map_or(FAILED, ChildError::exit_code)
    })
}

/// Reports once that the run has announced its app.
async fn report_announced(surroundings: Arc<Surroundings>, run: u64, events: mpsc::Sender<AppEvent>) {
    let mut sources = surroundings.sources.subscribe();
    let Ok(mut status) = sources.wait_for(Option::is_some).await.map(|found| found.clone().map(|run| run.loop_status))
    else {
        return;
    };
    if let Some(status) = &mut status
        && status.wait_for(|status| status.state == State::Announced).await.is_ok()
    {
        let _ = events.send(AppEvent { run, kind: AppEventKind::Announced }).await;
    }
}
