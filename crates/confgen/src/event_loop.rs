//! The daemon: the rounds' only `select!`. Store events and the clock come in; rounds go out, one at a time.

mod actions;
mod events;
mod job;
mod lease_lookup;
pub(crate) mod malloc;
mod observer;
mod scheduler;
pub(crate) mod share;
mod status_line;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use daemon::admin::Pulse;
use daemon::shutdown::Shutdown;
use daemon::systemd;
use haproxy::runtime::Socket;
use registry::{Client, FollowOptions};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Interval, interval, sleep_until};

use crate::cli::{Options, Pacing};
use crate::drain::task::DrainTask;
use crate::event_loop::job::Finished;
use crate::local_files::expiry;
use crate::publish::{Publication, PublishOutcome};
use crate::status::admin;
use crate::status::balancer_record::RecordConfig;

use crate::event_loop::observer::{Observation, spawn_observer};
use crate::event_loop::scheduler::{Action, Scheduler};
use crate::reconcile::Reconciler;
use crate::status::{Identity, Status};
use crate::store::StoreReplica;

use crate::drain::task::await_task;
use actions::Published;

/// How often the loop shows that it turns.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// Follows the store until told to stop.
pub async fn run(
    store: registry::Config,
    options: Options,
    pacing: Pacing,
    admin: Option<admin::Port>,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let client = Client::new(store);
    let mut events = client.follow_folder(
        FollowOptions { resync_interval: pacing.resync, ..FollowOptions::default() },
        shutdown.drain.clone(),
    );
    let socket = Socket::new(options.runtime_socket.clone());
    let report: watch::Sender<Status> = watch::Sender::default();
    let (activities, pulse) = (report.borrow().activities.clone(), Pulse::default());
    let (control, drain) = (options.build_control()?, shutdown.drain.clone());
    let mut looks = spawn_observer(
        options.local_paths(),
        options.checked_files(),
        socket.clone(),
        control,
        activities.clone(),
        drain,
    );
    let drain = shutdown.drain.clone();
    let mut shares = share::spawn_share_counter(socket.clone(), report.subscribe(), activities.clone(), drain);
    let leases = options.state_dir.join("leases");
    let node = options.resolve_node()?;
    let (lives, prefix) = (lease_lookup::new_lease_lookup(client.clone()), client.config().prefix().to_owned());
    let identity = Identity::new(&node, &prefix);
    report.send_modify(|report| report.identity = identity.into());
    if let Some(admin) = admin {
        admin.serve(&report, pulse.clone(), socket.clone(), shutdown.drain.clone());
    }
    let acknowledging = RecordConfig { client: client.clone(), node, leases };
    let mut beats = interval(systemd::watchdog_interval().unwrap_or(BEAT_EVERY).min(BEAT_EVERY));
    let opening = tokio::task::spawn_blocking(move || {
        let _activity = activities.begin("start", "files are read and checked");
        let mut rounds = Reconciler::open(options, lives)?;
        rounds.compare_with_persisted();
        Ok(rounds)
    });
    let Some(opened) = wait_for_startup(opening, &mut beats, &pulse, &shutdown).await else { return Ok(()) };
    let mut rounds = opened?;
    let outside_changed = rounds.is_startup_incomplete();
    let mirror = StoreReplica::from_persisted(rounds.take_persisted());
    let mut daemon = EventLoop {
        replica: mirror,
        prefix,
        status: report,
        files_changed: outside_changed,
        ..EventLoop::new(Some(rounds), DrainTask::new(socket), &pacing)
    };
    tokio::spawn(acknowledging.run(daemon.status.subscribe(), shutdown.drain.clone()));
    systemd::notify_status("waiting for the store");
    loop {
        let due = daemon.next_action();
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => daemon.on_store_event(event),
                None => break,
            },
            act = wait_until_due(due) => daemon.begin_action(act),
            acted = await_task(&mut daemon.acting) => daemon.end_action(acted),
            filed = await_task(&mut daemon.publishing) => daemon.on_published(filed),
            count = daemon.drains.next_count() => daemon.on_drains_counted(&count),
            Some(seen) = shares.recv() => daemon.on_shares_counted(seen),
            Ok(()) = looks.changed() => daemon.on_observed(looks.borrow_and_update().clone()),
            _ = beats.tick() => {
                pulse.beat();
                systemd::notify_watchdog();
                daemon.check_certificate_dates(expiry::unix_now());
                daemon.repeat_retained_warning(Instant::now());
            }
            () = shutdown.drain.cancelled() => break,
        }
    }
    systemd::notify_stopping();
    // What is under way finishes: what is cut short is mended by the next start, but why leave it to that.
    tokio::select! {
        () = daemon.finish_actions() => {}
        () = shutdown.abort.cancelled() => {}
    }
    Ok(())
}

/// Waits for the start, and shows meanwhile that the loop turns. None if confgen is told to stop before.
async fn wait_for_startup(
    mut opening: JoinHandle<anyhow::Result<Reconciler>>,
    beats: &mut Interval,
    pulse: &Pulse,
    shutdown: &Shutdown,
) -> Option<anyhow::Result<Reconciler>> {
    loop {
        tokio::select! {
            opened = &mut opening => return Some(opened.unwrap_or_else(|error| Err(error.into()))),
            _ = beats.tick() => pulse.beat(),
            () = shutdown.drain.cancelled() => return None,
        }
    }
}

/// Waits until the act is due, for ever if there is none. A sleep takes a millisecond even where the time has come.
async fn wait_until_due(due: Option<(Instant, Action)>) -> Action {
    let Some((at, act)) = due else { return std::future::pending().await };
    if at > Instant::now() {
        sleep_until(at.into()).await;
    }
    act
}

/// What the daemon knows between two events.
struct EventLoop {
    replica: StoreReplica,
    /// The store's prefix, to tell people which key to write.
    prefix: String,
    scheduler: Scheduler,
    /// None while an act has them.
    reconciler: Option<Reconciler>,
    acting: Option<JoinHandle<Finished>>,
    publishing: Option<JoinHandle<Published>>,
    /// What was written last, to be told to the next act.
    last_published: Option<(Publication, PublishOutcome)>,
    /// Why HAProxy has to be restarted.
    restart: Option<String>,
    /// Files changed since they were last read.
    files_changed: bool,
    /// HAProxy may run something else than it was found to.
    observed_stale: bool,
    /// Sections whose servers are to be queued for their turns again.
    requeued: BTreeSet<String>,
    observation: Observation,
    is_ready: bool,
    /// When the log told last what is retained.
    retained_logged_at: Option<Instant>,
    drains: DrainTask,
    /// HAProxy runs all that the last act was given.
    is_current: bool,
    /// Up to where that was.
    applied_up_to: i64,
    /// When the act under way, or the last one, began.
    action_began_at: Instant,
    /// When the latest act began that looked at HAProxy and found it to follow.
    observed_current_at: Option<Instant>,
    /// When HAProxy was last seen to be another process, or to share its sockets with one.
    haproxy_changed_at: Option<Instant>,
    /// When the file on disk was last written.
    published_at: Instant,
    status: watch::Sender<Status>,
}

impl EventLoop {
    fn new(reconciler: Option<Reconciler>, drains: DrainTask, pacing: &Pacing) -> Self {
        Self {
            replica: StoreReplica::default(),
            prefix: String::new(),
            scheduler: Scheduler::new(pacing.min_wait, pacing.restart_interval),
            reconciler,
            acting: None,
            publishing: None,
            last_published: None,
            restart: None,
            files_changed: false,
            observed_stale: false,
            requeued: BTreeSet::new(),
            observation: Observation::default(),
            is_ready: false,
            retained_logged_at: None,
            drains,
            is_current: false,
            applied_up_to: 0,
            action_began_at: Instant::now(),
            observed_current_at: None,
            haproxy_changed_at: None,
            published_at: Instant::now(),
            status: watch::Sender::default(),
        }
    }

    /// What may begin next, and when; nothing while an act is under way, or before the store is known.
    fn next_action(&self) -> Option<(Instant, Action)> {
        if self.reconciler.is_some() && self.replica.is_known() {
            self.scheduler.next_action(self.publishing.is_some())
        } else {
            None
        }
    }
}
