//! A start: the one loop that turns what happens into events, and decisions into acts.

use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use haproxy::check::{self, Verdict};
use haproxy::masters;
use haproxy::runtime::{self, Socket};
use haproxy::{config, failure, state_file};

use crate::args::Settings;
use crate::capture::Capture;
use crate::directory::{Directory, Missing};
use crate::guard::Guard;
use crate::launch;
use crate::linger::Word;
use crate::processes::{Haproxy, start_of};
use crate::release::{self, Releases};
use crate::run_dir::{Lock, Place, new_start};
use crate::signals::{Signals, Supervision, reap};
use crate::state::{Action, Event, Outcome, State, step};

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

/// How long an old HAProxy may answer on the runtime socket's path beside a new one that serves. While both hold the same
/// listener, either answers; in so many questions the new one is among them.
const ASTRAY_AFTER: Duration = Duration::from_secs(3);

/// How often HAProxys that are to finish are told again: one that is just starting may miss the signal.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Runs HAProxy as the settings say, until it ends or this process is told to go.
pub(crate) fn run(settings: Settings, signals: Signals) -> anyhow::Result<Outcome> {
    let supervision = Supervision::of_this_process();
    let place = Place::open(&settings.socket, settings.group.as_ref())?;
    let start = new_start();
    let watchdog = launch::Watchdog {
        socket: &settings.socket.path,
        start: &start,
        linger: settings.linger,
        supervisord: supervision.supervisord(),
    };
    let guard = Guard::start(&watchdog).inspect_err(|error| place.leave_words(&format!("{error:#}")))?;
    let mut serve = Serve {
        settings,
        place,
        start,
        lock: None,
        signals,
        supervision,
        guard: Some(guard),
        master: None,
        capture: Capture::default(),
        ready_since: None,
        silent_since: None,
        releases: Releases::default(),
        told: Instant::now(),
        old_left: false,
        failure: String::new(),
        since: Instant::now(),
    };
    let outcome = serve.run();
    if let Err(error) = &outcome {
        serve.failure = format!("{error:#}");
    }
    if !serve.failure.is_empty() {
        serve.place.leave_words(&serve.failure);
    }
    outcome
}

struct Serve {
    settings: Settings,
    place: Place,
    start: String,
    /// Held until the new HAProxy serves.
    lock: Option<Lock>,
    signals: Signals,
    supervision: Supervision,
    /// The watchdog. None once it has been dismissed.
    guard: Option<Guard>,
    /// The new HAProxy's master.
    master: Option<u32>,
    /// The new HAProxy's output.
    capture: Capture,
    /// When the new HAProxy was first found to serve, by its own master.
    ready_since: Option<Instant>,
    /// When an old HAProxy that doesn't answer was first asked.
    silent_since: Option<Instant>,
    /// The HAProxys that were told to finish.
    releases: Releases,
    /// When all HAProxys were last told to finish.
    told: Instant,
    /// Whether old ones may still be finishing their requests; their sockets are removed behind them.
    old_left: bool,
    /// Why this start failed, in handover's words and HAProxy's.
    failure: String,
    /// When the state began.
    since: Instant,
}

impl Serve {
    fn run(&mut self) -> anyhow::Result<Outcome> {
        // From here on no other watchdog ends the HAProxy that serves. If that can't be said, the other one stays.
        if let Err(error) = self.place.announce(&self.start) {
            self.dismiss_guard();
            return Err(error);
        }
        self.lock = Some(self.place.lock(self.settings.wait)?);
        if lacks_state(&self.settings.state_file) {
            write_state(&self.settings.state_file, state_file::EMPTY)?;
        }
        let mut state = State::Checking;
        loop {
            if let State::Done(outcome) = state {
                self.place.haproxys();
                if matches!(outcome, Outcome::Stopped | Outcome::Ended(_)) {
                    self.dismiss_guard();
                }
                return Ok(outcome);
            }
            let Some(event) = self.event(state)? else { continue };
            let (next, action) = step(state, event);
            self.tell(state, event);
            if next != state {
                tracing::debug!("{state:?} → {next:?} on {event:?}");
                (state, self.since) = (next, Instant::now());
            }
            if state == State::Serving && self.lock.is_some() {
                self.serves();
            }
            if let Some(action) = action {
                self.act(action)?;
            }
        }
    }

    /// The new HAProxy has taken over.
    fn serves(&mut self) {
        self.tell_guard(Word::Serves);
        self.place.leave_words("");
        self.lock = None;
    }

    fn tell_guard(&mut self, word: Word) {
        if let Some(guard) = &mut self.guard {
            guard.tell(word);
        }
    }

    fn dismiss_guard(&mut self) {
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
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
            State::Serving if !self.releases.have_let_go() => (release::TICK, None),
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
            State::Starting => self.answer().or_else(|| self.supervision.is_orphaned().then_some(Event::Orphaned)),
            State::Draining | State::Ending => {
                let left = self.place.haproxys();
                if state == State::Draining && self.told.elapsed() >= TELL_EVERY {
                    self.tell_to_finish(&left);
                }
                left.is_empty().then_some(Event::Gone)
            }
            State::Checking | State::Serving | State::Done(_) => {
                self.releases.tend(&self.place);
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
                    self.releases.release(&old, self.silent_since);
                    self.old_left = true;
                }
            }
            Action::FinishAll => {
                let all = self.place.haproxys();
                self.tell_to_finish(&all);
            }
            Action::TerminateAll => self.place.haproxys().iter().for_each(Haproxy::terminate),
            Action::KillAll => self.place.haproxys().iter().for_each(Haproxy::kill),
            Action::KillNew => self.new_ones().iter().for_each(Haproxy::kill),
            Action::Abandon => self.abandon(),
            Action::Linger => self.linger(),
            Action::Afresh => return Err(launch::renew(true)),
            Action::Renew => self.renew()?,
        }
        Ok(())
    }

    /// HAProxy's own word on the files.
    fn check(&mut self) -> anyhow::Result<Event> {
        match check::run(&launch::check(&self.settings.command), self.settings.wait)? {
            Verdict::Valid { .. } => Ok(Event::Valid),
            Verdict::Refused { output } => {
                // As HAProxy wrote it, with its line breaks.
                program::output::say(&output);
                self.failure = format!("HAProxy refuses the configuration: {}", failure::in_short(&output));
                Ok(Event::Invalid)
            }
        }
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        let socket = Socket::new(&self.settings.socket.path).with_timeout(ANSWER_TIMEOUT);
        let asked = Instant::now();
        let old = match socket.info() {
            Ok(info) => Some(info),
            Err(runtime::Error::Absent { .. }) => None,
            Err(error) => {
                tracing::warn!("{error}: the new HAProxy binds its sockets itself");
                self.silent_since = Some(asked);
                None
            }
        };
        self.save_state(old.as_ref().map(|_| &socket))?;
        let from = old.as_ref().map(|_| self.settings.socket.path.as_path()).filter(|_| !self.settings.afresh);
        let (settings, master) = (&self.settings, self.place.master_socket(&self.start));
        let line = launch::start(&settings.command, &master, settings.group.as_ref(), from);
        let mut child = launch::spawn_haproxy(&line, &self.settings.socket.path, &self.start)?;
        self.capture = Capture::of(&mut child);
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
    fn save_state(&self, old: Option<&Socket>) -> anyhow::Result<()> {
        let text = match old.map(Socket::servers_state) {
            Some(Ok(state)) => {
                let files = config::read(&self.settings.command.config_files()).context("the servers' state")?;
                state_file::filter(&state, &config::servers(&files))
            }
            Some(Err(_)) | None => state_file::EMPTY.to_owned(),
        };
        write_state(&self.settings.state_file, &text)
    }

    /// Whether it is the new HAProxy that answers on the runtime socket's path. While both hold the listener, either may. If
    /// only another one answers there for long, the new one is asked over its own master: it may serve, and the path lead past it.
    fn answer(&mut self) -> Option<Event> {
        let on_path = Socket::new(&self.settings.socket.path).with_timeout(ANSWER_TIMEOUT).info().ok()?;
        if self.start_of(on_path.pid).as_ref() == Some(&self.start) {
            return Some(Event::Answered);
        }
        if self.settings.afresh || !self.is_ready() {
            return None;
        }
        let ready_since = *self.ready_since.get_or_insert_with(Instant::now);
        (ready_since.elapsed() >= ASTRAY_AFTER).then_some(Event::Astray)
    }

    /// Whether the new HAProxy serves, by its own master.
    fn is_ready(&self) -> bool {
        let workers = masters::workers_of(&self.place.master_socket(&self.start)).unwrap_or_default();
        workers.iter().any(|worker| worker.info().is_ok_and(|info| !info.stopping))
    }

    fn start_of(&self, pid: u32) -> Option<String> {
        start_of(i32::try_from(pid).ok()?, &self.settings.socket.path)
    }

    fn tell_to_finish(&mut self, all: &[Haproxy]) {
        self.told = Instant::now();
        all.iter().for_each(Haproxy::finish);
    }

    /// Gives the takeover up: the new one finishes if an old one serves. The watchdog sees to it that it ends.
    fn abandon(&mut self) {
        if !self.old().is_empty() {
            for new in self.new_ones() {
                tracing::warn!("the takeover is given up: HAProxy {} finishes its requests", new.pid());
                new.finish();
            }
        }
        self.linger();
    }

    fn linger(&mut self) {
        self.tell_guard(Word::Leaves);
        // It goes on by itself.
        self.guard = None;
    }

    fn renew(&mut self) -> anyhow::Result<()> {
        match self.check()? {
            Event::Valid => Err(launch::renew(false)),
            _ => {
                self.failure.clear();
                tracing::error!("HAProxy refuses the configuration; the old one serves on");
                Ok(())
            }
        }
    }

    /// The HAProxys of other starts.
    fn old(&self) -> Vec<Haproxy> {
        self.place.haproxys().into_iter().filter(|haproxy| haproxy.start != self.start).collect()
    }

    /// The HAProxy of this start, if it lives.
    fn new_ones(&self) -> Vec<Haproxy> {
        self.place.haproxys().into_iter().filter(|haproxy| haproxy.start == self.start).collect()
    }

    /// Says what people look for in the log, and keeps why the start failed.
    fn tell(&mut self, state: State, event: Event) {
        match (state, event) {
            (State::Checking, Event::Invalid) => {
                tracing::error!("HAProxy refuses the configuration; {}", self.meanwhile());
            }
            (State::Starting, Event::Ended(code)) => {
                let words = format!("the new HAProxy ended with status {code} before it answered");
                tracing::error!("{words}; {}", self.meanwhile());
                self.keep_failure(words);
            }
            (State::Starting, Event::Late) => {
                let words = format!(
                    "the new HAProxy didn't answer on {} within {:?}: does the configuration have `stats socket` with \
                     that path?",
                    self.settings.socket.path.display(),
                    self.settings.wait
                );
                tracing::error!("{words} {}", self.meanwhile());
                self.keep_failure(words);
            }
            (State::Starting, Event::Astray) => tracing::warn!(
                "{} doesn't lead to the new HAProxy, which has inherited another listener: it is given up, and another \
                 one binds its sockets itself",
                self.settings.socket.path.display()
            ),
            (State::Checking | State::Starting, Event::Orphaned) => {
                tracing::error!("supervisord is gone: the new HAProxy is given up");
            }
            (State::Starting, Event::Answered) => tracing::info!("HAProxy serves"),
            (State::Serving, Event::Ended(code)) => tracing::warn!("HAProxy ended with status {code}"),
            (State::Checking | State::Starting | State::Serving, Event::Leave) => tracing::info!(
                "leaving HAProxy to a successor, or to its end in {}",
                humantime::format_duration(self.settings.linger)
            ),
            (State::Starting | State::Serving, Event::Finish) => tracing::info!("HAProxy finishes its requests"),
            (State::Draining, Event::Late) => tracing::warn!("requests are cut off after {:?}", self.settings.drain),
            _ => {}
        }
    }

    fn meanwhile(&self) -> String {
        match self.old().first() {
            Some(old) => format!("the old one, {}, serves on", old.pid()),
            None => "nothing serves".to_owned(),
        }
    }

    /// Keeps why the start failed, with what HAProxy has said.
    fn keep_failure(&mut self, words: String) {
        let said = failure::in_short(&self.capture.words());
        self.failure = if said.is_empty() { words } else { format!("{words}: {said}") };
    }
}

/// Whether HAProxy would warn of that state file: missing or empty. What is no file is none: HAProxy would wait for a FIFO.
fn lacks_state(path: &Path) -> bool {
    let (dir, name) = in_its_directory(path);
    Directory::open(dir, Missing::Fails).map_or(true, |dir| !dir.has_text(name))
}

fn write_state(path: &Path, text: &str) -> anyhow::Result<()> {
    let (dir, name) = in_its_directory(path);
    // Addresses and states, nothing to hide.
    let written = Directory::open(dir, Missing::Fails).and_then(|dir| dir.write_whole(name, text, 0o644));
    written.with_context(|| format!("can't write {}", path.display()))
}

fn in_its_directory(path: &Path) -> (&Path, &OsStr) {
    let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
    (dir, path.file_name().unwrap_or_default())
}
