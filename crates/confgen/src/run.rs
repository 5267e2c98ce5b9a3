//! The daemon: the only `select!`. Store events and the clock come in; rounds go out, one at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::shutdown::Shutdown;
use daemon::systemd;
use discovery::Topology;
use haproxy::runtime::Socket;
use registry::{Client, Event, Follow};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::args::{Options, Pacing};
use crate::outside::{Glance, Places};
use crate::pace::{Ending, Pace};
use crate::round::{self, Outcome, Rounds};

/// How often the files and the running generation are looked at. A person who edits a file, or restarts HAProxy, is
/// answered about as soon as they look.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Follows the store until told to stop.
pub async fn run(store: registry::Config, options: Options, pacing: Pacing, shutdown: Shutdown) -> anyhow::Result<()> {
    let client = Client::new(store);
    let mut events = client.follow(Follow { resync: pacing.resync }, shutdown.drain.clone());
    let mut looks = look(options.places(), Socket::new(options.runtime_socket.clone()), shutdown.drain.clone());
    let rounds = tokio::task::spawn_blocking(move || Rounds::open(options)).await??;
    let mut daemon = Daemon::new(rounds, &pacing);
    let mut watchdog = interval(systemd::watchdog_interval().unwrap_or(Duration::from_secs(3600)));
    systemd::status("waiting for the store");
    loop {
        let due = daemon.due();
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => daemon.take(event),
                None => break,
            },
            () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => daemon.begin(),
            (rounds, outcome) = finished(&mut daemon.running) => daemon.end(rounds, outcome),
            Ok(()) = looks.changed() => daemon.looked(looks.borrow_and_update().clone()),
            _ = watchdog.tick() => systemd::watchdog(),
            () = shutdown.drain.cancelled() => break,
        }
    }
    systemd::stopping();
    // A round under way finishes: one that is cut short is mended by the next start, but why leave it to that.
    tokio::select! {
        _ = finished(&mut daemon.running), if daemon.running.is_some() => {}
        () = shutdown.abort.cancelled() => {}
        else => {}
    }
    Ok(())
}

/// What a look at the world outside of the store sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Look {
    files: Glance,
    /// The generation that HAProxy runs.
    running: Option<String>,
}

/// Looks every so often; the receiver is told when something is different.
fn look(places: Places, socket: Socket, shutdown: CancellationToken) -> watch::Receiver<Look> {
    let (sender, receiver) = watch::channel(Look::default());
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        loop {
            ticks.tick().await;
            let (places, socket) = (places.clone(), socket.clone());
            let glance = move || Look { files: places.glance(), running: round::running(&socket) };
            if let Ok(seen) = tokio::task::spawn_blocking(glance).await {
                sender.send_if_modified(|last| std::mem::replace(last, seen.clone()) != seen);
            }
        }
    }));
    receiver
}

/// A round that is under way; it gives back what rounds are made with.
type Running = JoinHandle<(Rounds, anyhow::Result<Outcome>)>;

/// Waits for the round under way, for ever if there is none. A panic in a round is one of confgen's.
async fn finished(running: &mut Option<Running>) -> (Rounds, anyhow::Result<Outcome>) {
    let Some(round) = running else { return std::future::pending().await };
    let ended = round.await;
    *running = None;
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// What the daemon knows between two events.
struct Daemon {
    /// None until the store has been listed.
    topology: Option<Arc<Topology>>,
    revision: i64,
    pace: Pace,
    /// None while a round has them.
    rounds: Option<Rounds>,
    running: Option<Running>,
    began: Instant,
    /// The files changed since they were last read.
    outside_changed: bool,
    seen: Look,
    disconnected: bool,
    ready: bool,
}

impl Daemon {
    fn new(rounds: Rounds, pacing: &Pacing) -> Self {
        Self {
            topology: None,
            revision: 0,
            pace: Pace::new(pacing.min_wait, pacing.restart_interval),
            rounds: Some(rounds),
            running: None,
            began: Instant::now(),
            outside_changed: false,
            seen: Look::default(),
            disconnected: false,
            ready: false,
        }
    }

    /// When the next round may begin; never while one is under way, or before the store is known.
    fn due(&self) -> Option<Instant> {
        if self.rounds.is_some() && self.topology.is_some() { self.pace.due() } else { None }
    }

    /// Takes in what the store says.
    fn take(&mut self, event: Event) {
        match event {
            Event::Snapshot(snapshot) => {
                tracing::info!("store listed: {} keys at revision {}", snapshot.entries.len(), snapshot.revision);
                self.topology = Some(Arc::new(Topology::of(&snapshot.entries)));
                self.revision = snapshot.revision;
                self.pace.changed(Instant::now());
            }
            Event::Changes { revision, changes } => {
                let Some(topology) = &mut self.topology else { return };
                let topology = Arc::make_mut(topology);
                // Every change has to be taken in, so no short cut at the first that matters.
                let matter = changes.iter().filter(|change| topology.apply(change)).count();
                self.revision = revision;
                if matter > 0 {
                    self.pace.changed(Instant::now());
                }
            }
            Event::Disconnected { error, .. } => {
                if !self.disconnected {
                    tracing::warn!("store: {error}; HAProxy keeps what it has");
                    systemd::status("the store is away; HAProxy keeps what it has");
                }
                self.disconnected = true;
                return;
            }
        }
        if std::mem::take(&mut self.disconnected) {
            tracing::info!("store: followed again, at revision {}", self.revision);
        }
    }

    /// Takes in what a look saw: files that changed are read anew, a HAProxy that runs something else is mended.
    fn looked(&mut self, seen: Look) {
        let stamp = self.rounds.as_ref().and_then(Rounds::stamp);
        let astray = stamp.is_some() && seen.running.as_deref() != stamp;
        let changed = seen.files != self.seen.files;
        self.outside_changed |= changed;
        self.seen = seen;
        if changed || astray {
            self.pace.changed(Instant::now());
        }
    }

    fn begin(&mut self) {
        let (Some(mut rounds), Some(topology)) = (self.rounds.take(), self.topology.clone()) else { return };
        self.pace.began();
        self.began = Instant::now();
        let look = std::mem::take(&mut self.outside_changed);
        self.running = Some(tokio::task::spawn_blocking(move || {
            let looked = if look { rounds.look_outside() } else { Ok(()) };
            let outcome = looked.and_then(|()| rounds.apply(&topology));
            (rounds, outcome)
        }));
    }

    fn end(&mut self, rounds: Rounds, outcome: anyhow::Result<Outcome>) {
        let took = self.began.elapsed();
        let ending = match &outcome {
            Ok(Outcome::InSync | Outcome::Written | Outcome::Stopped) => Ending::Quiet,
            Ok(Outcome::Restarted) => Ending::Restarted,
            Ok(Outcome::Refused(_) | Outcome::OperatorRefused(_) | Outcome::NotLive(_)) | Err(_) => Ending::Failed,
        };
        match outcome {
            Ok(outcome @ Outcome::InSync) => tracing::debug!("{outcome} ({took:.0?})"),
            Ok(outcome) if ending != Ending::Failed => tracing::info!("{outcome} ({took:.0?})"),
            Ok(outcome) => tracing::error!("out of sync: {outcome}"),
            Err(error) => tracing::error!("out of sync: {error:#}"),
        }
        self.rounds = Some(rounds);
        self.pace.ended(Instant::now(), ending);
        let in_sync = ending != Ending::Failed;
        systemd::status(if in_sync { "in sync with the store" } else { "out of sync: see the log" });
        if in_sync && !std::mem::replace(&mut self.ready, true) {
            systemd::ready();
        }
    }
}
