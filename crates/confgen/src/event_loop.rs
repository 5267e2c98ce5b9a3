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
use registry::{Client, Follow};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Interval, interval, sleep_until};

use crate::cli::{Options, Pacing};
use crate::drain::task::DrainTask;
use crate::event_loop::job::Acted;
use crate::local_files::expiry;
use crate::publish::{Publication, PublishOutcome};
use crate::status::admin;
use crate::status::balancer_record::RecordConfig;

use crate::event_loop::observer::{Observation, look};
use crate::event_loop::scheduler::{Act, Scheduler};
use crate::reconcile::Reconciler;
use crate::status::{Identity, Status};
use crate::store::StoreReplica;

use crate::drain::task::finished;
use actions::Wrote;

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
    let mut events = client.follow(Follow { resync: pacing.resync, ..Follow::default() }, shutdown.drain.clone());
    let socket = Socket::new(options.runtime_socket.clone());
    let report: watch::Sender<Status> = watch::Sender::default();
    let (activities, pulse) = (report.borrow().activities.clone(), Pulse::default());
    let (control, drain) = (options.control()?, shutdown.drain.clone());
    let mut looks = look(options.places(), options.checked(), socket.clone(), control, activities.clone(), drain);
    let drain = shutdown.drain.clone();
    let mut shares = share::watch(socket.clone(), report.subscribe(), activities.clone(), drain);
    let leases = options.state_dir.join("leases");
    let node = options.node()?;
    let (lives, prefix) = (lease_lookup::lives(client.clone()), client.config().prefix().to_owned());
    let identity = Identity::new(&node, &prefix);
    report.send_modify(|report| report.identity = identity.into());
    if let Some(admin) = admin {
        admin.open(&report, pulse.clone(), socket.clone(), shutdown.drain.clone());
    }
    let acknowledging = RecordConfig { client: client.clone(), node, leases };
    let mut beats = interval(systemd::watchdog_interval().unwrap_or(BEAT_EVERY).min(BEAT_EVERY));
    let opening = tokio::task::spawn_blocking(move || {
        let _activity = activities.begin("start", "files are read and checked");
        let mut rounds = Reconciler::open(options, lives)?;
        rounds.compare_with_remembered();
        Ok(rounds)
    });
    let Some(opened) = opened(opening, &mut beats, &pulse, &shutdown).await else { return Ok(()) };
    let mut rounds = opened?;
    let outside_changed = rounds.is_unopened();
    let mirror = StoreReplica::remembering(rounds.take_stored());
    let mut daemon = EventLoop {
        mirror,
        prefix,
        report,
        outside_changed,
        ..EventLoop::new(Some(rounds), DrainTask::of(socket), &pacing)
    };
    tokio::spawn(acknowledging.run(daemon.report.subscribe(), shutdown.drain.clone()));
    systemd::status("waiting for the store");
    loop {
        let due = daemon.due();
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => daemon.take(event),
                None => break,
            },
            act = reached(due) => daemon.begin(act),
            acted = finished(&mut daemon.acting) => daemon.end(acted),
            filed = finished(&mut daemon.filing) => daemon.filed(filed),
            count = daemon.drains.count() => daemon.counted(&count),
            Some(seen) = shares.recv() => daemon.counted_shares(seen),
            Ok(()) = looks.changed() => daemon.looked(looks.borrow_and_update().clone()),
            _ = beats.tick() => {
                pulse.beat();
                systemd::watchdog();
                daemon.follow_clock(expiry::now());
                daemon.repeat_retained(Instant::now());
            }
            () = shutdown.drain.cancelled() => break,
        }
    }
    systemd::stopping();
    // What is under way finishes: what is cut short is mended by the next start, but why leave it to that.
    tokio::select! {
        () = daemon.finish() => {}
        () = shutdown.abort.cancelled() => {}
    }
    Ok(())
}

/// Waits for the start, and shows meanwhile that the loop turns. None if confgen is told to stop before.
async fn opened(
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
async fn reached(due: Option<(Instant, Act)>) -> Act {
    let Some((at, act)) = due else { return std::future::pending().await };
    if at > Instant::now() {
        sleep_until(at.into()).await;
    }
    act
}

/// What the daemon knows between two events.
struct EventLoop {
    mirror: StoreReplica,
    /// The store's prefix, to tell people which key to write.
    prefix: String,
    pace: Scheduler,
    /// None while an act has them.
    rounds: Option<Reconciler>,
    acting: Option<JoinHandle<Acted>>,
    filing: Option<JoinHandle<Wrote>>,
    /// What was written last, to be told to the next act.
    written: Option<(Publication, PublishOutcome)>,
    /// Why HAProxy has to be restarted.
    restart: Option<String>,
    /// Files changed since they were last read.
    outside_changed: bool,
    /// HAProxy may run something else than it was found to.
    doubt: bool,
    /// Sections whose servers are to be queued for their turns again.
    requeued: BTreeSet<String>,
    seen: Observation,
    ready: bool,
    /// When the log told last what is retained.
    retained_told: Option<Instant>,
    drains: DrainTask,
    /// HAProxy runs all that the last act was given.
    current: bool,
    /// Up to where that was.
    given: i64,
    /// When the act under way, or the last one, began.
    began: Instant,
    /// When the latest act began that looked at HAProxy and found it to follow.
    confirmed: Option<Instant>,
    /// When HAProxy was last seen to be another process, or to share its sockets with one.
    unsettled: Option<Instant>,
    /// When the file on disk was last written.
    filed_at: Instant,
    report: watch::Sender<Status>,
}

impl EventLoop {
    fn new(rounds: Option<Reconciler>, drains: DrainTask, pacing: &Pacing) -> Self {
        Self {
            mirror: StoreReplica::default(),
            prefix: String::new(),
            pace: Scheduler::new(pacing.min_wait, pacing.restart_interval),
            rounds,
            acting: None,
            filing: None,
            written: None,
            restart: None,
            outside_changed: false,
            doubt: false,
            requeued: BTreeSet::new(),
            seen: Observation::default(),
            ready: false,
            retained_told: None,
            drains,
            current: false,
            given: 0,
            began: Instant::now(),
            confirmed: None,
            unsettled: None,
            filed_at: Instant::now(),
            report: watch::Sender::default(),
        }
    }

    /// What may begin next, and when; nothing while an act is under way, or before the store is known.
    fn due(&self) -> Option<(Instant, Act)> {
        if self.rounds.is_some() && self.mirror.is_known() { self.pace.due(self.filing.is_some()) } else { None }
    }
}
