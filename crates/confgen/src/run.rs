//! The daemon: the only `select!`. Store events and the clock come in; rounds go out, one at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::shutdown::Shutdown;
use daemon::systemd;
use discovery::{ServiceId, Topology, UpstreamId};
use haproxy::runtime::Socket;
use registry::{Client, Event, Follow, LeaseId};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::args::{Options, Pacing};
use crate::filing::{Filed, Filing};
use crate::guard::goodbye;
use crate::outside::{Glance, Places};
use crate::pace::{Act, Pace};
use crate::proxy;
use crate::round::{Left, Outcome, Rounds};
use crate::settle::Changed;

/// How often the files and the running generation are looked at. A restart or a crash of HAProxy is mended as soon as it
/// is seen; four questions a second are nothing to it.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Follows the store until told to stop.
pub async fn run(store: registry::Config, options: Options, pacing: Pacing, shutdown: Shutdown) -> anyhow::Result<()> {
    let client = Client::new(store);
    let mut events = client.follow(Follow { resync: pacing.resync }, shutdown.drain.clone());
    let mut looks = look(options.places(), Socket::new(options.runtime_socket.clone()), shutdown.drain.clone());
    let (asked, runtime) = (client.clone(), Handle::current());
    let lives = move |lease| matches!(runtime.block_on(asked.time_to_live(LeaseId::from(lease))), Ok(Some(_)));
    let rounds = tokio::task::spawn_blocking(move || Rounds::open(options, Box::new(lives))).await??;
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
            () = sleep_until(due.map_or_else(Instant::now, |(at, _)| at).into()), if due.is_some() => {
                daemon.begin(due.map(|(_, act)| act));
            }
            (rounds, done) = finished(&mut daemon.acting) => daemon.end(rounds, done),
            filed = finished(&mut daemon.filing) => daemon.filed(filed),
            Ok(()) = looks.changed() => daemon.looked(looks.borrow_and_update().clone()),
            _ = watchdog.tick() => systemd::watchdog(),
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

/// What a look at the world outside of the store sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Look {
    files: Glance,
    /// HAProxy's process, and the generation that it runs.
    running: Option<(u32, String)>,
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
            let glance = move || {
                let running = socket.info().ok().map(|info| info.pid).zip(proxy::running(&socket));
                Look { files: places.glance(), running }
            };
            if let Ok(seen) = tokio::task::spawn_blocking(glance).await {
                sender.send_if_modified(|last| std::mem::replace(last, seen.clone()) != seen);
            }
        }
    }));
    receiver
}

/// Waits for what is under way, for ever if there is nothing. A panic in it is one of confgen's.
async fn finished<T>(task: &mut Option<JoinHandle<T>>) -> T {
    let Some(running) = task else { return std::future::pending().await };
    let ended = running.await;
    *task = None;
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// What an act came to.
enum Done {
    /// With why the operator's files or the certificates couldn't be read, if so: the last ones count.
    Followed(Left, anyhow::Result<()>),
    Restarted(Outcome),
    Swept(Left),
}

/// An act that is under way; it gives back what rounds are made with.
type Acting = JoinHandle<(Rounds, (Act, anyhow::Result<Done>))>;

/// What the daemon knows between two events.
struct Daemon {
    /// None until the store has been listed.
    topology: Option<Arc<Topology>>,
    revision: i64,
    changed: Changed,
    /// Upstreams that said they would go, and went.
    goodbyes: BTreeSet<(ServiceId, UpstreamId)>,
    pace: Pace,
    /// None while an act has them.
    rounds: Option<Rounds>,
    acting: Option<Acting>,
    filing: Option<JoinHandle<(Filing, anyhow::Result<Filed>)>>,
    /// What was written last, to be told to the next act.
    written: Option<(Filing, Filed)>,
    /// Why HAProxy has to be restarted.
    restart: Option<String>,
    /// Files changed since they were last read.
    outside_changed: bool,
    /// HAProxy may run something else than it was found to.
    doubt: bool,
    seen: Look,
    disconnected: bool,
    ready: bool,
}

impl Daemon {
    fn new(rounds: Rounds, pacing: &Pacing) -> Self {
        Self {
            topology: None,
            revision: 0,
            changed: Changed::All,
            goodbyes: BTreeSet::new(),
            pace: Pace::new(pacing.min_wait, pacing.restart_interval),
            rounds: Some(rounds),
            acting: None,
            filing: None,
            written: None,
            restart: None,
            outside_changed: false,
            doubt: false,
            seen: Look::default(),
            disconnected: false,
            ready: false,
        }
    }

    /// What may begin next, and when; nothing while an act is under way, or before the store is known.
    fn due(&self) -> Option<(Instant, Act)> {
        if self.rounds.is_some() && self.topology.is_some() { self.pace.due(self.filing.is_some()) } else { None }
    }

    /// Takes in what the store says.
    fn take(&mut self, event: Event) {
        match event {
            Event::Snapshot(snapshot) => {
                tracing::info!("store listed: {} keys at revision {}", snapshot.entries.len(), snapshot.revision);
                self.topology = Some(Arc::new(Topology::of(&snapshot.entries)));
                self.revision = snapshot.revision;
                (self.changed, self.doubt) = (Changed::All, true);
                self.pace.changed(Instant::now());
            }
            Event::Changes { revision, changes } => {
                let Some(topology) = &mut self.topology else { return };
                let topology = Arc::make_mut(topology);
                let mut matter = false;
                self.goodbyes.extend(changes.iter().filter_map(goodbye));
                for change in &changes {
                    if let Some(id) = topology.apply(change) {
                        self.changed.join(id);
                        matter = true;
                    }
                }
                self.revision = revision;
                if matter {
                    self.pace.changed(Instant::now());
                }
            }
            Event::Disconnected { error, .. } => {
                if !std::mem::replace(&mut self.disconnected, true) {
                    tracing::warn!("store: {error}; HAProxy keeps what it has");
                    systemd::status("the store is away; HAProxy keeps what it has");
                }
                return;
            }
        }
        if std::mem::take(&mut self.disconnected) {
            tracing::info!("store: followed again, at revision {}", self.revision);
            systemd::status("following the store");
        }
    }

    /// Takes in what a look saw: files that changed are read anew, a HAProxy that isn't the one we know is mended.
    fn looked(&mut self, seen: Look) {
        let files = seen.files != self.seen.files;
        let proxy = seen.running != self.seen.running;
        self.outside_changed |= files;
        self.doubt |= proxy;
        self.seen = seen;
        if files || proxy {
            self.pace.changed(Instant::now());
        }
    }

    fn begin(&mut self, act: Option<Act>) {
        let (Some(act), Some(topology)) = (act, self.topology.clone()) else { return };
        if act == Act::File {
            self.pace.began(act);
            let filing = self.rounds.as_ref().map(Rounds::filing);
            self.filing = filing.map(|filing| {
                tokio::task::spawn_blocking(move || {
                    let filed = filing.write();
                    (filing, filed)
                })
            });
            return;
        }
        let Some(mut rounds) = self.rounds.take() else { return };
        self.pace.began(act);
        let written = self.written.take();
        let (mut changed, mut goodbyes) = (Changed::nothing(), BTreeSet::new());
        let (mut outside, mut reason) = (false, String::new());
        match act {
            Act::Follow => {
                std::mem::swap(&mut changed, &mut self.changed);
                std::mem::swap(&mut goodbyes, &mut self.goodbyes);
                if std::mem::take(&mut self.doubt) {
                    rounds.doubt();
                }
                outside = std::mem::take(&mut self.outside_changed);
            }
            Act::Restart => reason = self.restart.take().unwrap_or_default(),
            Act::File | Act::Sweep => {}
        }
        self.acting = Some(tokio::task::spawn_blocking(move || {
            if let Some((filing, filed)) = written {
                rounds.filed(&filing, &filed);
            }
            let done = match act {
                Act::Restart => rounds.restart(&reason).map(Done::Restarted),
                Act::Sweep => rounds.sweep().map(Done::Swept),
                Act::Follow | Act::File => follow(&mut rounds, &topology, &changed, &goodbyes, outside),
            };
            rounds.tell_quarantine();
            (rounds, (act, done))
        }));
    }

    fn end(&mut self, rounds: Rounds, (act, done): (Act, anyhow::Result<Done>)) {
        let now = Instant::now();
        self.rounds = Some(rounds);
        match done {
            Ok(Done::Followed(left, looked)) => {
                self.pace.restart(now, left.restart.is_some(), left.silent);
                if left.file {
                    self.pace.file(now);
                }
                if left.sweep {
                    self.pace.sweep(now);
                }
                if left.restart.is_none() {
                    self.in_sync();
                }
                // Otherwise it is told with the file, off the quick path.
                if let Some(rounds) = &mut self.rounds
                    && (!left.file || left.restart.is_some())
                {
                    rounds.tell_quarantine();
                }
                self.restart = left.restart;
                if let Err(error) = looked {
                    self.failed(act, &format!("{error:#}"));
                }
            }
            Ok(Done::Swept(left)) => {
                if left.file {
                    self.pace.file(now);
                }
                if left.sweep {
                    self.pace.sweep(now);
                }
            }
            Ok(Done::Restarted(outcome @ (Outcome::Restarted | Outcome::InSync))) => {
                tracing::info!("{outcome}");
                self.pace.restarted(now);
                self.in_sync();
            }
            // Its start by whoever stopped it is seen, and it finds the file ready.
            Ok(Done::Restarted(Outcome::Stopped)) => tracing::warn!("{}", Outcome::Stopped),
            Ok(Done::Restarted(Outcome::Refused(filed @ Filed::Culprits(_)))) => {
                tracing::warn!("{filed}");
                // It may have been found out by a restart that failed.
                self.pace.restarted(now);
                self.everything_anew();
            }
            Ok(Done::Restarted(outcome)) => self.failed(act, &outcome.to_string()),
            Err(error) => self.failed(act, &format!("{error:#}")),
        }
    }

    fn filed(&mut self, (filing, filed): (Filing, anyhow::Result<Filed>)) {
        if let Ok(filed) = &filed {
            self.written = Some((filing, filed.clone()));
        }
        match filed {
            Ok(filed @ (Filed::Same | Filed::Written)) => {
                tracing::debug!("{filed}");
                let due = self.restart.is_some() || self.acting.is_some() || self.doubt || self.outside_changed;
                if !due {
                    self.pace.recovered();
                }
            }
            Ok(filed @ Filed::Culprits(_)) => {
                tracing::warn!("{filed}");
                self.everything_anew();
            }
            Ok(refused) => self.failed(Act::File, &refused.to_string()),
            Err(error) => self.failed(Act::File, &format!("{error:#}")),
        }
    }

    /// Services are left out, or were found to be another: what is wanted is decided anew.
    fn everything_anew(&mut self) {
        (self.changed, self.doubt) = (Changed::All, true);
        self.pace.changed(Instant::now());
    }

    fn failed(&mut self, act: Act, reason: &str) {
        tracing::error!("out of sync: {reason}");
        systemd::status("out of sync: see the log");
        // What a look had seen may not have been taken in.
        (self.changed, self.doubt, self.outside_changed) = (Changed::All, true, true);
        self.pace.failed(Instant::now(), act);
    }

    fn in_sync(&mut self) {
        systemd::status("HAProxy runs what the store asks for");
        if !std::mem::replace(&mut self.ready, true) {
            systemd::ready();
        }
    }

    /// Waits for what is under way.
    async fn finish(&mut self) {
        if self.acting.is_some() {
            let _ = finished(&mut self.acting).await;
        }
        if self.filing.is_some() {
            let _ = finished(&mut self.filing).await;
        }
    }
}

fn follow(
    rounds: &mut Rounds,
    topology: &Topology,
    changed: &Changed,
    goodbyes: &BTreeSet<(ServiceId, UpstreamId)>,
    outside: bool,
) -> anyhow::Result<Done> {
    let looked = if outside { rounds.look_outside() } else { Ok(()) };
    let left = rounds.quick(topology, if outside { &Changed::All } else { changed }, goodbyes)?;
    Ok(Done::Followed(left, looked))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without its rounds: nothing begins.
    fn daemon() -> Daemon {
        let second = Duration::from_secs(1);
        Daemon {
            topology: None,
            revision: 0,
            changed: Changed::nothing(),
            goodbyes: BTreeSet::new(),
            pace: Pace::new(Duration::ZERO, second),
            rounds: None,
            acting: None,
            filing: None,
            written: None,
            restart: None,
            outside_changed: false,
            doubt: false,
            seen: Look::default(),
            disconnected: false,
            ready: false,
        }
    }

    #[test]
    fn a_failed_act_is_tried_again_with_everything_it_was_to_take_in() {
        let mut daemon = daemon();
        daemon.failed(Act::Follow, "the operator's directory can't be listed");
        assert_eq!((&daemon.changed, daemon.doubt, daemon.outside_changed), (&Changed::All, true, true));
        assert!(daemon.pace.due(false).is_some());
    }
}
