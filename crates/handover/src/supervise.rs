//! A start: the one loop that turns what happens into events, and decisions into acts.

use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use haproxy::check::{self, CheckResult};
use haproxy::masters;
use haproxy::runtime::{self, Socket};
use haproxy::{config, failure, state_file};

use crate::args::Settings;
use crate::capture::Capture;
use crate::directory::{Directory, Missing};
use crate::guard::WatchdogHandle;
use crate::launch;
use crate::linger::Message;
use crate::processes::{Haproxy, find_start};
use crate::release::{self, Releases};
use crate::run_dir::{Lock, RunDir, new_start_name};
use crate::signals::{Signals, Supervision, reap_children};
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
const SIGNAL_INTERVAL: Duration = Duration::from_secs(1);

/// Runs HAProxy as the settings say, until it ends or this process is told to go.
pub(crate) fn run_haproxy(settings: Settings, signals: Signals) -> anyhow::Result<Outcome> {
    let supervision = Supervision::of_this_process();
    let place = RunDir::open(&settings.socket, settings.group.as_ref())?;
    let start = new_start_name();
    let watchdog = launch::Watchdog {
        socket: &settings.socket.path,
        start: &start,
        linger: settings.linger,
        supervisord: supervision.supervisord_pid(),
    };
    let guard =
        WatchdogHandle::start_watchdog(&watchdog).inspect_err(|error| place.write_failure(&format!("{error:#}")))?;
    let mut serve = Handover {
        settings,
        run_dir: place,
        start,
        lock: None,
        signals,
        supervision,
        watchdog: Some(guard),
        master: None,
        capture: Capture::default(),
        ready_since: None,
        silent_since: None,
        releases: Releases::default(),
        signalled_at: Instant::now(),
        has_old: false,
        failure: String::new(),
        state_since: Instant::now(),
    };
    let outcome = serve.run_to_end();
    if let Err(error) = &outcome {
        serve.failure = format!("{error:#}");
    }
    if !serve.failure.is_empty() {
        serve.run_dir.write_failure(&serve.failure);
    }
    outcome
}

struct Handover {
    settings: Settings,
    run_dir: RunDir,
    start: String,
    /// Held until the new HAProxy serves.
    lock: Option<Lock>,
    signals: Signals,
    supervision: Supervision,
    /// The watchdog. None once it has been dismissed.
    watchdog: Option<WatchdogHandle>,
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
    signalled_at: Instant,
    /// Whether old ones may still be finishing their requests; their sockets are removed behind them.
    has_old: bool,
    /// Why this start failed, in handover's words and HAProxy's.
    failure: String,
    /// When the state began.
    state_since: Instant,
}

impl Handover {
    fn run_to_end(&mut self) -> anyhow::Result<Outcome> {
        // From here on no other watchdog ends the HAProxy that serves. If that can't be said, the other one stays.
        if let Err(error) = self.run_dir.announce_start(&self.start) {
            self.dismiss_watchdog();
            return Err(error);
        }
        self.lock = Some(self.run_dir.lock_within(self.settings.wait)?);
        if lacks_server_state(&self.settings.state_file) {
            write_server_state(&self.settings.state_file, state_file::EMPTY)?;
        }
        let mut state = State::Checking;
        loop {
            if let State::Done(outcome) = state {
                self.run_dir.list_haproxys();
                if matches!(outcome, Outcome::Stopped | Outcome::Ended(_)) {
                    self.dismiss_watchdog();
                }
                return Ok(outcome);
            }
            let Some(event) = self.next_event(state)? else { continue };
            let (next, action) = step(state, event);
            self.log_transition(state, event);
            if next != state {
                tracing::debug!("{state:?} → {next:?} on {event:?}");
                (state, self.state_since) = (next, Instant::now());
            }
            if state == State::Serving && self.lock.is_some() {
                self.complete_takeover();
            }
            if let Some(action) = action {
                self.perform_action(action)?;
            }
        }
    }

    /// The new HAProxy has taken over.
    fn complete_takeover(&mut self) {
        self.message_watchdog(Message::Serving);
        self.run_dir.write_failure("");
        self.lock = None;
    }

    fn message_watchdog(&mut self, word: Message) {
        if let Some(guard) = &mut self.watchdog {
            guard.send_message(word);
        }
    }

    fn dismiss_watchdog(&mut self) {
        if let Some(guard) = self.watchdog.take() {
            guard.dismiss();
        }
    }

    /// What happens next, if anything does within a tick.
    fn next_event(&mut self, state: State) -> anyhow::Result<Option<Event>> {
        if state == State::Checking {
            let verdict = self.check_config()?;
            let signal = self.signals.next_within(Duration::ZERO)?;
            return Ok(signal.and_then(|signal| self.supervision.interpret_signal(signal)).or(Some(verdict)));
        }
        let (tick, limit) = match state {
            State::Starting => (STARTING_TICK, Some(self.settings.wait)),
            State::Draining => (ENDING_TICK, Some(self.settings.drain)),
            State::Ending => (ENDING_TICK, Some(ENDING_LIMIT)),
            State::Serving if !self.releases.have_stopped_listening() => (release::TICK, None),
            State::Checking | State::Serving | State::Done(_) => (SERVING_TICK, None),
        };
        if let Some(event) =
            self.signals.next_within(tick)?.and_then(|signal| self.supervision.interpret_signal(signal))
        {
            return Ok(Some(event));
        }
        if let Some(code) = reap_children(self.master) {
            return Ok(Some(Event::Ended(code)));
        }
        if limit.is_some_and(|limit| self.state_since.elapsed() >= limit) {
            return Ok(Some(Event::Timeout));
        }
        Ok(match state {
            State::Starting => {
                self.check_new_haproxy().or_else(|| self.supervision.is_orphaned().then_some(Event::Orphaned))
            }
            State::Draining | State::Ending => {
                let left = self.run_dir.list_haproxys();
                if state == State::Draining && self.signalled_at.elapsed() >= SIGNAL_INTERVAL {
                    self.signal_finish(&left);
                }
                left.is_empty().then_some(Event::AllEnded)
            }
            State::Checking | State::Serving | State::Done(_) => {
                self.releases.check_progress(&self.run_dir);
                self.has_old = self.has_old && !self.list_old().is_empty();
                None
            }
        })
    }

    fn perform_action(&mut self, action: Action) -> anyhow::Result<()> {
        match action {
            Action::Launch => self.launch_haproxy()?,
            Action::ReleaseOld => {
                for old in self.list_old() {
                    tracing::info!("HAProxy {} finishes its requests", old.pid());
                    self.releases.release_haproxy(&old, self.silent_since);
                    self.has_old = true;
                }
            }
            Action::FinishAll => {
                let all = self.run_dir.list_haproxys();
                self.signal_finish(&all);
            }
            Action::TerminateAll => self.run_dir.list_haproxys().iter().for_each(Haproxy::terminate),
            Action::KillAll => self.run_dir.list_haproxys().iter().for_each(Haproxy::kill),
            Action::KillNew => self.list_new().iter().for_each(Haproxy::kill),
            Action::AbandonNew => self.abandon_takeover(),
            Action::LeaveToWatchdog => self.leave_to_watchdog(),
            Action::StartAfresh => return Err(launch::reexec_self(true)),
            Action::Reload => self.reload_config()?,
        }
        Ok(())
    }

    /// HAProxy's own word on the files.
    fn check_config(&mut self) -> anyhow::Result<Event> {
        match check::run_check(&launch::check_command(&self.settings.command), self.settings.wait)? {
            CheckResult::Valid { .. } => Ok(Event::Accepted),
            CheckResult::Rejected { output } => {
                // As HAProxy wrote it, with its line breaks.
                program::output::print_message(&output);
                self.failure = format!("HAProxy refuses the configuration: {}", failure::summarize_output(&output));
                Ok(Event::Rejected)
            }
        }
    }

    fn launch_haproxy(&mut self) -> anyhow::Result<()> {
        let socket = Socket::new(&self.settings.socket.path).with_timeout(ANSWER_TIMEOUT);
        let asked = Instant::now();
        let old = match socket.show_info() {
            Ok(info) => Some(info),
            Err(runtime::Error::Absent { .. }) => None,
            Err(error) => {
                tracing::warn!("{error}: the new HAProxy binds its sockets itself");
                self.silent_since = Some(asked);
                None
            }
        };
        self.save_server_state(old.as_ref().map(|_| &socket))?;
        let from = old.as_ref().map(|_| self.settings.socket.path.as_path()).filter(|_| !self.settings.afresh);
        let (settings, master) = (&self.settings, self.run_dir.master_socket(&self.start));
        let line = launch::start_command(&settings.command, &master, settings.group.as_ref(), from);
        let mut child = launch::spawn_haproxy(&line, &self.settings.socket.path, &self.start)?;
        self.capture = Capture::follow_child(&mut child);
        self.master = Some(child.id());
        let Some(old) = old else {
            tracing::info!("HAProxy {} starts", child.id());
            return Ok(());
        };
        tracing::info!("HAProxy {} takes over from {}", child.id(), old.pid);
        if self.find_start_by_pid(old.pid).is_none() {
            tracing::warn!("HAProxy {} wasn't started by handover and will go on serving: end it", old.pid);
        }
        Ok(())
    }

    /// Writes what the new HAProxy takes over from the old one's servers.
    fn save_server_state(&self, old: Option<&Socket>) -> anyhow::Result<()> {
        let text = match old.map(Socket::show_servers_state) {
            Some(Ok(state)) => {
                let files = config::read_files(&self.settings.command.config_files()).context("the servers' state")?;
                state_file::filter_servers(&state, &config::parse_servers(&files))
            }
            Some(Err(_)) | None => state_file::EMPTY.to_owned(),
        };
        write_server_state(&self.settings.state_file, &text)
    }

    /// Whether it is the new HAProxy that answers on the runtime socket's path. While both hold the listener, either may. If
    /// only another one answers there for long, the new one is asked over its own master: it may serve, and the path lead past it.
    fn check_new_haproxy(&mut self) -> Option<Event> {
        let on_path = Socket::new(&self.settings.socket.path).with_timeout(ANSWER_TIMEOUT).show_info().ok()?;
        if self.find_start_by_pid(on_path.pid).as_ref() == Some(&self.start) {
            return Some(Event::Answered);
        }
        if self.settings.afresh || !self.is_new_ready() {
            return None;
        }
        let ready_since = *self.ready_since.get_or_insert_with(Instant::now);
        (ready_since.elapsed() >= ASTRAY_AFTER).then_some(Event::Bypassed)
    }

    /// Whether the new HAProxy serves, by its own master.
    fn is_new_ready(&self) -> bool {
        let workers = masters::list_workers_of(&self.run_dir.master_socket(&self.start)).unwrap_or_default();
        workers.iter().any(|worker| worker.show_info().is_ok_and(|info| !info.stopping))
    }

    fn find_start_by_pid(&self, pid: u32) -> Option<String> {
        find_start(i32::try_from(pid).ok()?, &self.settings.socket.path)
    }

    fn signal_finish(&mut self, all: &[Haproxy]) {
        self.signalled_at = Instant::now();
        all.iter().for_each(Haproxy::finish_requests);
    }

    /// Gives the takeover up: the new one finishes if an old one serves. The watchdog sees to it that it ends.
    fn abandon_takeover(&mut self) {
        if !self.list_old().is_empty() {
            for new in self.list_new() {
                tracing::warn!("the takeover is given up: HAProxy {} finishes its requests", new.pid());
                new.finish_requests();
            }
        }
        self.leave_to_watchdog();
    }

    fn leave_to_watchdog(&mut self) {
        self.message_watchdog(Message::Detaching);
        // It goes on by itself.
        self.watchdog = None;
    }

    fn reload_config(&mut self) -> anyhow::Result<()> {
        match self.check_config()? {
            Event::Accepted => Err(launch::reexec_self(false)),
            _ => {
                self.failure.clear();
                tracing::error!("HAProxy refuses the configuration; the old one serves on");
                Ok(())
            }
        }
    }

    /// The HAProxys of other starts.
    fn list_old(&self) -> Vec<Haproxy> {
        self.run_dir.list_haproxys().into_iter().filter(|haproxy| haproxy.start != self.start).collect()
    }

    /// The HAProxy of this start, if it lives.
    fn list_new(&self) -> Vec<Haproxy> {
        self.run_dir.list_haproxys().into_iter().filter(|haproxy| haproxy.start == self.start).collect()
    }

    /// Says what people look for in the log, and keeps why the start failed.
    fn log_transition(&mut self, state: State, event: Event) {
        match (state, event) {
            (State::Checking, Event::Rejected) => {
                tracing::error!("HAProxy refuses the configuration; {}", self.describe_old());
            }
            (State::Starting, Event::Ended(code)) => {
                let words = format!("the new HAProxy ended with status {code} before it answered");
                tracing::error!("{words}; {}", self.describe_old());
                self.record_failure(words);
            }
            (State::Starting, Event::Timeout) => {
                let words = format!(
                    "the new HAProxy didn't answer on {} within {:?}: does the configuration have `stats socket` with \
                     that path?",
                    self.settings.socket.path.display(),
                    self.settings.wait
                );
                tracing::error!("{words} {}", self.describe_old());
                self.record_failure(words);
            }
            (State::Starting, Event::Bypassed) => tracing::warn!(
                "{} doesn't lead to the new HAProxy, which has inherited another listener: it is given up, and another \
                 one binds its sockets itself",
                self.settings.socket.path.display()
            ),
            (State::Checking | State::Starting, Event::Orphaned) => {
                tracing::error!("supervisord is gone: the new HAProxy is given up");
            }
            (State::Starting, Event::Answered) => tracing::info!("HAProxy serves"),
            (State::Serving, Event::Ended(code)) => tracing::warn!("HAProxy ended with status {code}"),
            (State::Checking | State::Starting | State::Serving, Event::Detach) => tracing::info!(
                "leaving HAProxy to a successor, or to its end in {}",
                humantime::format_duration(self.settings.linger)
            ),
            (State::Starting | State::Serving, Event::Finish) => tracing::info!("HAProxy finishes its requests"),
            (State::Draining, Event::Timeout) => tracing::warn!("requests are cut off after {:?}", self.settings.drain),
            _ => {}
        }
    }

    fn describe_old(&self) -> String {
        match self.list_old().first() {
            Some(old) => format!("the old one, {}, serves on", old.pid()),
            None => "nothing serves".to_owned(),
        }
    }

    /// Keeps why the start failed, with what HAProxy has said.
    fn record_failure(&mut self, words: String) {
        let said = failure::summarize_output(&self.capture.read_text());
        self.failure = if said.is_empty() { words } else { format!("{words}: {said}") };
    }
}

/// Whether HAProxy would warn of that state file: missing or empty. What is no file is none: HAProxy would wait for a FIFO.
fn lacks_server_state(path: &Path) -> bool {
    let (dir, name) = split_directory(path);
    Directory::open(dir, Missing::Fail).map_or(true, |dir| !dir.has_nonempty_file(name))
}

fn write_server_state(path: &Path, text: &str) -> anyhow::Result<()> {
    let (dir, name) = split_directory(path);
    // Addresses and states, nothing to hide.
    let written = Directory::open(dir, Missing::Fail).and_then(|dir| dir.replace_file(name, text, 0o644));
    written.with_context(|| format!("can't write {}", path.display()))
}

fn split_directory(path: &Path) -> (&Path, &OsStr) {
    let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
    (dir, path.file_name().unwrap_or_default())
}
