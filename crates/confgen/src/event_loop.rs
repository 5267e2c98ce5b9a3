//! The daemon: its only `select!`. Store events, observations and timers come in, actions go out. It decides nothing:
//! `scheduler.rs` does.

mod actions;
mod changes;
mod drift;
mod events;
mod lease_lookup;
pub(crate) mod malloc;
mod observer;
pub(crate) mod once;
mod program_pages;
mod reconciler_thread;
pub(crate) mod scheduler;
pub(crate) mod share;
mod status_line;
mod task;

use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::admin::Pulse;
use daemon::shutdown::Shutdown;
use daemon::systemd;
use haproxy::runtime::Socket;
use registry::{Client, FollowOptions};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Interval, interval, sleep_until};

use crate::cli::{HookArgs, Options, Pacing};
use crate::drain::task::{DrainTask, await_task};
use crate::event_loop::changes::ChangeRecorder;
use crate::event_loop::observer::{Observation, spawn_observer};
use crate::event_loop::reconciler_thread::ReconcilerThread;
use crate::event_loop::scheduler::{Action, Input, Scheduler};
use crate::local_files::expiry;
use crate::reconcile::Reconciler;
use crate::state_dir::OwnFile;
use crate::state_dir::change_log::LogEnd;
use crate::status::admin;
use crate::status::balancer_record::RecordConfig;
use crate::status::{Identity, Status};
use crate::store::{StoreReplica, bound_entry};
use actions::Published;

/// The loop shows this often that it turns. systemd's watchdog may ask for more.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// Follows the store until confgen is told to stop.
pub async fn run(
    store: registry::Config,
    options: Options,
    pacing: Pacing,
    admin: Option<admin::Port>,
    hooks: &HookArgs,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let client = Client::new(store);
    let mut events = client.follow_folder(
        FollowOptions { resync_interval: pacing.resync, keep: bound_entry, ..FollowOptions::default() },
        shutdown.drain.clone(),
    );
    let socket = Socket::new(options.runtime_socket.clone());
    let status: watch::Sender<Status> = watch::Sender::default();
    let (activities, pulse) = (status.borrow().activities.clone(), Pulse::default());
    let (control, drain) = (options.build_control()?, shutdown.drain.clone());
    let (paths, checked, own_cfg) = (options.local_paths(), options.checked_files(), OwnFile::default());
    let mut observations =
        spawn_observer(paths, own_cfg.clone(), checked, socket.clone(), control, activities.clone(), drain);
    let drain = shutdown.drain.clone();
    let mut shares = share::spawn_share_counter(socket.clone(), status.subscribe(), activities.clone(), drain);
    let leases = options.state_dir.join("leases");
    let node = options.resolve_node()?;
    let (lease_lookup, prefix) = (lease_lookup::new_lease_lookup(client.clone()), client.config().prefix().to_owned());
    let identity = Identity::new(&node, &prefix);
    status.send_modify(|status| status.identity = identity.into());
    let (state_dir, log_end) = (options.state_dir.clone(), Arc::<LogEnd>::default());
    // Before the start of the reconciler, which waits for HAProxy's checks. So `/ready` shows a start that hangs.
    if let Some(admin) = admin {
        let sources = admin::Sources {
            state_dir: state_dir.clone(),
            log_end: Arc::clone(&log_end),
            haproxy_cfg: options.haproxy_cfg.clone(),
            client: client.clone(),
        };
        admin.serve(&status, pulse.clone(), socket.clone(), sources, shutdown.drain.clone());
    }
    let node_name = node.to_string();
    let record = RecordConfig { client: client.clone(), node, leases };
    let mut beats = interval(systemd::watchdog_interval().unwrap_or(BEAT_EVERY).min(BEAT_EVERY));
    let startup_activities = activities.clone();
    let startup = tokio::task::spawn_blocking(move || {
        let _activity = startup_activities.begin("start", "files are read and checked");
        let mut reconciler = Reconciler::open(options, lease_lookup, own_cfg)?;
        reconciler.compare_with_persisted();
        Ok(reconciler)
    });
    let Some(reconciler) = wait_for_startup(startup, &mut beats, &pulse, &shutdown).await else { return Ok(()) };
    let mut reconciler = reconciler?;
    let replica = StoreReplica::from_persisted(reconciler.take_persisted());
    let is_startup_incomplete = reconciler.is_startup_incomplete();
    let mut event_loop = EventLoop {
        replica,
        prefix,
        scheduler: Scheduler::new(&pacing),
        reconciler: ReconcilerThread::spawn(reconciler, activities.clone())?,
        publishing: None,
        restarting: None,
        reading: None,
        published_meanwhile: None,
        published_at: Instant::now(),
        reconciled_revision: 0,
        observation: Observation::default(),
        drains: DrainTask::new(socket),
        is_ready: false,
        retained_logged_at: None,
        resync: pacing.resync,
        followed_at: Instant::now(),
        changes: ChangeRecorder::spawn(state_dir, node_name, hooks, log_end)?,
        status,
    };
    let steps = event_loop.reconciler.step_sender();
    let mut drifts = drift::spawn_drift_check(steps, activities, shutdown.drain.clone());
    if is_startup_incomplete {
        // A full disk may have kept the start from its files.
        event_loop.schedule(Input::FilesChanged);
    }
    // A task of its own, so that an etcd that doesn't answer holds up no reconcile.
    tokio::spawn(record.run(event_loop.status.subscribe(), shutdown.drain.clone()));
    systemd::notify_status("waiting for the store");
    loop {
        let next = event_loop.scheduler.next();
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => event_loop.on_store_event(event),
                None => break,
            },
            action = wait_until_due(next) => event_loop.begin_action(action),
            reply = event_loop.reconciler.next_reply() => event_loop.on_reply(reply),
            published = await_task(&mut event_loop.publishing) => event_loop.on_published(published),
            read = await_task(&mut event_loop.reading) => event_loop.on_files_read(read),
            // Its end comes as a reply of the reconciler's. This notices a panic.
            () = await_task(&mut event_loop.restarting) => {}
            count = event_loop.drains.next_count() => event_loop.on_drains_counted(&count),
            Some(()) = drifts.recv() => event_loop.schedule(Input::HaproxyChanged),
            Some(changes) = shares.recv() => event_loop.on_shares_counted(changes),
            Ok(()) = observations.changed() => event_loop.on_observed(observations.borrow_and_update().clone()),
            _ = beats.tick() => {
                pulse.beat();
                systemd::notify_watchdog();
                event_loop.check_certificate_dates(expiry::unix_now());
                event_loop.repeat_retained_warning(Instant::now());
                event_loop.observe_without_store(Instant::now());
            }
            () = shutdown.drain.cancelled() => break,
        }
    }
    systemd::notify_stopping();
    // Actions in progress end first. The next start would repair an interrupted one, but only then.
    tokio::select! {
        () = event_loop.finish_actions() => {}
        () = shutdown.abort.cancelled() => {}
    }
    event_loop.changes.finish().await;
    Ok(())
}

/// Waits for the start, and shows meanwhile that the loop turns. `None` if confgen is told to stop before.
async fn wait_for_startup(
    mut startup: JoinHandle<anyhow::Result<Reconciler>>,
    beats: &mut Interval,
    pulse: &Pulse,
    shutdown: &Shutdown,
) -> Option<anyhow::Result<Reconciler>> {
    loop {
        tokio::select! {
            opened = &mut startup => return Some(opened.unwrap_or_else(|error| Err(error.into()))),
            _ = beats.tick() => pulse.beat(),
            () = shutdown.drain.cancelled() => return None,
        }
    }
}

/// Waits until the action is due, for ever if there is none.
async fn wait_until_due(next: Option<(Instant, Action)>) -> Action {
    let Some((at, action)) = next else { return std::future::pending().await };
    // A sleep of tokio's takes a millisecond even if the time has come.
    if at > Instant::now() {
        sleep_until(at.into()).await;
    }
    action
}

/// The daemon between two events. The reconciler's state is its thread's, all timers are the scheduler's.
struct EventLoop {
    replica: StoreReplica,
    /// The store's prefix. Log lines name keys that an operator may write.
    prefix: String,
    scheduler: Scheduler,
    reconciler: ReconcilerThread,
    publishing: Option<JoinHandle<Published>>,
    restarting: Option<JoinHandle<()>>,
    reading: Option<JoinHandle<anyhow::Result<()>>>,
    /// The revision of a file that was published since the last action began.
    published_meanwhile: Option<i64>,
    /// The time when haproxy.cfg last changed or was found to be as it should be.
    published_at: Instant,
    /// The store revision of the last reconcile.
    reconciled_revision: i64,
    observation: Observation,
    drains: DrainTask,
    /// systemd was told that confgen is ready.
    is_ready: bool,
    /// `None` while nothing is retained.
    retained_logged_at: Option<Instant>,
    /// HAProxy is observed this often while the store is away.
    resync: Duration,
    /// The last time when the store was followed, or HAProxy was observed without it.
    followed_at: Instant,
    /// The way to the log of changes.
    changes: ChangeRecorder,
    status: watch::Sender<Status>,
}
