//! A start: the one loop that turns what happens into events, and decisions into acts.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use haproxy::check::{self, Verdict};
use haproxy::runtime::Socket;
use haproxy::{config, state_file};

use crate::args::Settings;
use crate::haproxys::{Haproxy, start_of};
use crate::launch;
use crate::place::{Lock, Place, write_whole};
use crate::signals::{Signals, Supervision, reap};
use crate::step::{Action, Event, Outcome, State, step};

/// How often a new HAProxy is asked whether it answers; it takes 40–100 ms to.
const STARTING_TICK: Duration = Duration::from_millis(10);

/// How often the last HAProxy is looked for while all of them end.
const ENDING_TICK: Duration = Duration::from_millis(50);

/// How often the sockets of old masters are looked after while one serves.
const SERVING_TICK: Duration = Duration::from_secs(5);

/// How long HAProxys told to end now may take before they are killed: they close everything at once.
pub(crate) const ENDING_LIMIT: Duration = Duration::from_secs(2);

/// How long one question to HAProxy may take while others wait for the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs HAProxy as the settings say, until it ends or this process is told to go.
pub(crate) fn run(settings: Settings, signals: Signals) -> anyhow::Result<Outcome> {
    let place = Place::open(&settings.socket, settings.group.as_ref())?;
    // Before anything can go wrong: a successor has appeared, so no watchdog ends the one that serves.
    let start = place.announce()?;
    let lock = place.lock(settings.wait)?;
    if lacks_state(&settings.state_file) {
        write_state(&settings.state_file, state_file::EMPTY)?;
    }
    let mut serve = Serve {
        settings,
        place,
        start,
        lock: Some(lock),
        signals,
        supervision: Supervision::of_this_process(),
        master: None,
        old_left: false,
        since: Instant::now(),
    };
    serve.run()
}

struct Serve {
    settings: Settings,
    place: Place,
    start: String,
    /// Held until the new HAProxy serves.
    lock: Option<Lock>,
    signals: Signals,
    supervision: Supervision,
    /// The new HAProxy's master.
    master: Option<u32>,
    /// Whether old ones may still be finishing their requests; their sockets are removed behind them.
    old_left: bool,
    /// When the state began.
    since: Instant,
}

impl Serve {
    fn run(&mut self) -> anyhow::Result<Outcome> {
        let mut state = State::Checking;
        loop {
            if let State::Done(outcome) = state {
                self.place.haproxys();
                return Ok(outcome);
            }
            let Some(event) = self.event(state)? else { continue };
            let (next, action) = step(state, event);
            self.tell(state, event);
            if next != state {
                tracing::debug!("{state:?} → {next:?} on {event:?}");
                (state, self.since) = (next, Instant::now());
            }
            if let Some(action) = action {
                self.act(action)?;
            }
            if state == State::Serving {
                self.lock = None;
            }
        }
    }

    /// What happens next, if anything does within a tick.
    fn event(&mut self, state: State) -> anyhow::Result<Option<Event>> {
        if state == State::Checking {
            let verdict = self.check()?;
            let signal = self.signals.next(Duration::ZERO)?;
            return Ok(signal.and_then(|signal| self.supervision.event(signal)).or(Some(verdict)));
        }
        let (tick, limit) = match state {
            State::Starting => (STARTING_TICK, Some(self.settings.wait)),
            State::Draining => (ENDING_TICK, Some(self.settings.drain)),
            State::Ending => (ENDING_TICK, Some(ENDING_LIMIT)),
            State::Checking | State::Serving | State::Done(_) => (SERVING_TICK, None),
        };
        if let Some(event) = self.signals.next(tick)?.and_then(|signal| self.supervision.event(signal)) {
            return Ok(Some(event));
        }
        if let Some(code) = reap(self.master) {
            return Ok(Some(Event::Ended(code)));
        }
        if limit.is_some_and(|limit| self.since.elapsed() >= limit) {
            return Ok(Some(Event::Late));
        }
        Ok(match state {
            State::Starting => self.answers().then_some(Event::Answered),
            State::Draining | State::Ending => self.place.haproxys().is_empty().then_some(Event::Gone),
            State::Checking | State::Serving | State::Done(_) => {
                self.old_left = self.old_left && !self.old().is_empty();
                None
            }
        })
    }

    fn act(&mut self, action: Action) -> anyhow::Result<()> {
        match action {
            Action::Launch => self.launch()?,
            Action::ReleaseOld => {
                for old in self.old() {
                    tracing::info!("HAProxy {} finishes its requests", old.pid());
                    old.finish();
                    self.old_left = true;
                }
            }
            Action::FinishAll => self.place.haproxys().iter().for_each(Haproxy::finish),
            Action::TerminateAll => self.place.haproxys().iter().for_each(Haproxy::terminate),
            Action::KillAll => self.place.haproxys().iter().for_each(Haproxy::kill),
            Action::KillNew => {
                self.place.haproxys().iter().filter(|haproxy| haproxy.start == self.start).for_each(Haproxy::kill);
            }
            Action::Linger => self.linger(),
            Action::Renew => self.renew()?,
        }
        Ok(())
    }

    /// HAProxy's own word on the files.
    fn check(&self) -> anyhow::Result<Event> {
        match check::run(&launch::check(&self.settings.command), self.settings.wait)? {
            Verdict::Valid { .. } => Ok(Event::Valid),
            Verdict::Refused { output } => {
                // As HAProxy wrote it, with its line breaks.
                program::output::say(&output);
                Ok(Event::Invalid)
            }
        }
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        let socket = Socket::new(&self.settings.socket).with_timeout(ANSWER_TIMEOUT);
        let old = socket.info().ok();
        self.save_state(&socket)?;
        let from = old.as_ref().map(|_| self.settings.socket.as_path());
        let (settings, master) = (&self.settings, self.place.master_socket(&self.start));
        let line = launch::start(&settings.command, &master, settings.group.as_ref(), from);
        let child = launch::spawn_haproxy(&line, &self.settings.socket, &self.start)?;
        self.master = Some(child.id());
        let Some(old) = old else {
            tracing::info!("HAProxy {} starts", child.id());
            return Ok(());
        };
        tracing::info!("HAProxy {} takes over from {}", child.id(), old.pid);
        if self.start_of(old.pid).is_none() {
            tracing::warn!("HAProxy {} wasn't started by handover and will go on serving: end it", old.pid);
        }
        Ok(())
    }

    /// Writes what the new HAProxy takes over from the old one's servers.
    fn save_state(&self, socket: &Socket) -> anyhow::Result<()> {
        let text = match socket.servers_state() {
            Ok(state) => {
                let files = config::read(&self.settings.command.config_files()).context("the servers' state")?;
                state_file::filter(&state, &config::servers(&files))
            }
            Err(_) => state_file::EMPTY.to_owned(),
        };
        write_state(&self.settings.state_file, &text)
    }

    /// Whether it is the new HAProxy that answers; while both hold the socket, either may.
    fn answers(&self) -> bool {
        let info = Socket::new(&self.settings.socket).with_timeout(ANSWER_TIMEOUT).info();
        info.is_ok_and(|info| self.start_of(info.pid).as_ref() == Some(&self.start))
    }

    fn start_of(&self, pid: u32) -> Option<String> {
        start_of(i32::try_from(pid).ok()?, &self.settings.socket)
    }

    fn linger(&self) {
        if let Err(error) = launch::spawn_watchdog(&self.settings.socket, &self.start, self.settings.linger) {
            tracing::error!("{error:#}: HAProxy ends now");
            self.place.haproxys().iter().for_each(Haproxy::finish);
        }
    }

    fn renew(&self) -> anyhow::Result<()> {
        match self.check()? {
            Event::Valid => Err(launch::renew()),
            _ => {
                tracing::error!("HAProxy refuses the configuration; the old one serves on");
                Ok(())
            }
        }
    }

    /// The HAProxys of other starts.
    fn old(&self) -> Vec<Haproxy> {
        self.place.haproxys().into_iter().filter(|haproxy| haproxy.start != self.start).collect()
    }

    /// Says what people look for in the log.
    fn tell(&self, state: State, event: Event) {
        let meanwhile = || match self.old().first() {
            Some(old) => format!("the old one, {}, serves on", old.pid()),
            None => "nothing serves".to_owned(),
        };
        match (state, event) {
            (State::Checking, Event::Invalid) => {
                tracing::error!("HAProxy refuses the configuration; {}", meanwhile());
            }
            (State::Starting, Event::Ended(code)) => {
                tracing::error!("the new HAProxy ended with status {code} before it answered; {}", meanwhile());
            }
            (State::Starting, Event::Late) => tracing::error!(
                "the new HAProxy didn't answer on {} within {:?}: does the configuration have `stats socket` with that \
                 path? {}",
                self.settings.socket.display(),
                self.settings.wait,
                meanwhile()
            ),
            (State::Starting, Event::Answered) => tracing::info!("HAProxy serves"),
            (State::Serving, Event::Ended(code)) => tracing::warn!("HAProxy ended with status {code}"),
            (State::Starting | State::Serving, Event::Leave) => tracing::info!(
                "leaving HAProxy to a successor, or to its end in {}",
                humantime::format_duration(self.settings.linger)
            ),
            (State::Starting | State::Serving, Event::Finish) => tracing::info!("HAProxy finishes its requests"),
            (State::Draining, Event::Late) => tracing::warn!("requests are cut off after {:?}", self.settings.drain),
            _ => {}
        }
    }
}

/// Whether HAProxy would warn of that state file: missing or empty.
fn lacks_state(path: &Path) -> bool {
    std::fs::metadata(path).map_or(true, |file| file.len() == 0)
}

fn write_state(path: &Path, text: &str) -> anyhow::Result<()> {
    // Addresses and states, nothing to hide.
    write_whole(path, text, 0o644)
}
