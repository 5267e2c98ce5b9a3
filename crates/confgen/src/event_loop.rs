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
use crate::drain::task::Drains;
use crate::event_loop::job::Acted;
use crate::local_files::expiry;
use crate::publish::{Filed, Filing};
use crate::status::admin;
use crate::status::balancer_record::Acknowledging;

use crate::event_loop::observer::{Look, look};
use crate::event_loop::scheduler::{Act, Pace};
use crate::reconcile::Rounds;
use crate::status::{Identity, Report};
use crate::store::Mirror;

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
    let report: watch::Sender<Report> = watch::Sender::default();
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
    let acknowledging = Acknowledging { client: client.clone(), node, leases };
    let mut beats = interval(systemd::watchdog_interval().unwrap_or(BEAT_EVERY).min(BEAT_EVERY));
    let opening = tokio::task::spawn_blocking(move || {
        let _activity = activities.begin("start", "files are read and checked");
        let mut rounds = Rounds::open(options, lives)?;
        rounds.compare_with_remembered();
        Ok(rounds)
    });
    let Some(opened) = opened(opening, &mut beats, &pulse, &shutdown).await else { return Ok(()) };
    let mut rounds = opened?;
    let outside_changed = rounds.is_unopened();
    let mirror = Mirror::remembering(rounds.take_stored());
    let mut daemon =
        Daemon { mirror, prefix, report, outside_changed, ..Daemon::new(Some(rounds), Drains::of(socket), &pacing) };
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
    mut opening: JoinHandle<anyhow::Result<Rounds>>,
    beats: &mut Interval,
    pulse: &Pulse,
    shutdown: &Shutdown,
) -> Option<anyhow::Result<Rounds>> {
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
struct Daemon {
    mirror: Mirror,
    /// The store's prefix, to tell people which key to write.
    prefix: String,
    pace: Pace,
    /// None while an act has them.
    rounds: Option<Rounds>,
    acting: Option<JoinHandle<Acted>>,
    filing: Option<JoinHandle<Wrote>>,
    /// What was written last, to be told to the next act.
    written: Option<(Filing, Filed)>,
    /// Why HAProxy has to be restarted.
    restart: Option<String>,
    /// Files changed since they were last read.
    outside_changed: bool,
    /// HAProxy may run something else than it was found to.
    doubt: bool,
    /// Sections whose servers are to be queued for their turns again.
    requeued: BTreeSet<String>,
    seen: Look,
    ready: bool,
    /// When the log told last what is retained.
    retained_told: Option<Instant>,
    drains: Drains,
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
    report: watch::Sender<Report>,
}

impl Daemon {
    fn new(rounds: Option<Rounds>, drains: Drains, pacing: &Pacing) -> Self {
        Self {
            mirror: Mirror::default(),
            prefix: String::new(),
            pace: Pace::new(pacing.min_wait, pacing.restart_interval),
            rounds,
            acting: None,
            filing: None,
            written: None,
            restart: None,
            outside_changed: false,
            doubt: false,
            requeued: BTreeSet::new(),
            seen: Look::default(),
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
