//! The loop of a start: signals, answers and timers become events. It performs what `state::step` decides.

use std::time::{Duration, Instant};

use haproxy::check::{self, CheckResult};
use haproxy::failure;
use haproxy::runtime::{self, Socket};
use program::text::describe_error;

use crate::args::Settings;
use crate::capture::Capture;
use crate::guard::WatchdogHandle;
use crate::launch;
use crate::linger::Message;
use crate::processes::{Haproxy, find_start};
use crate::release::{self, Releases};
use crate::run_dir::{Lock, RunDir, new_start_name};
use crate::server_state;
use crate::signals::{Signals, Supervision, reap_children};
use crate::state::{Action, Event, Outcome, State, step};
use crate::surplus::Surplus;

/// The interval between two questions to a new HAProxy, which takes 40–100 ms to its first answer.
const STARTING_TICK: Duration = Duration::from_millis(10);

/// The interval between two scans while every HAProxy ends.
const ENDING_TICK: Duration = Duration::from_millis(50);

/// The interval between two scans, which remove old masters' sockets, while one HAProxy serves.
const SERVING_TICK: Duration = Duration::from_secs(5);

/// The time between SIGTERM and SIGKILL. A HAProxy that gets SIGTERM closes everything at once.
pub(crate) const ENDING_LIMIT: Duration = Duration::from_secs(2);

/// The time limit for an answer of HAProxy while the loop waits for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The time for which an old HAProxy may answer on the runtime socket's path beside a new one that serves. While both
/// hold the same listener, either may answer. Within this time the new HAProxy gives at least one of the answers.
const BYPASSED_AFTER: Duration = Duration::from_secs(3);

/// The interval between two SIGUSR1. A HAProxy that is just starting may miss the signal.
const SIGNAL_INTERVAL: Duration = Duration::from_secs(1);

/// Runs HAProxy as the settings say, until HAProxy ends or a signal ends this process.
pub(crate) fn run_haproxy(settings: Settings, signals: Signals) -> anyhow::Result<Outcome> {
    let supervision = Supervision::of_this_process();
    let run_dir = RunDir::open(&settings.socket, settings.group.as_ref())?;
    let (start, surplus) = (new_start_name(), Surplus::new(settings.bounds));
    let watchdog = launch::Watchdog {
        socket: &settings.socket.path,
        start: &start,
        linger: settings.linger,
        log_format: settings.log_format,
        supervisord: supervision.supervisord_pid(),
    };
    let watchdog = WatchdogHandle::start_watchdog(&watchdog)
        .inspect_err(|error| run_dir.write_failure(&describe_error(error.as_ref())))?;
    let mut handover = Handover {
        settings,
        run_dir,
        start,
        lock: None,
        signals,
        supervision,
        watchdog: Some(watchdog),
        master: None,
        capture: Capture::default(),
        ready_since: None,
        silent_since: None,
        releases: Releases::default(),
        surplus,
        signalled_at: Instant::now(),
        failure: String::new(),
        state_since: Instant::now(),
    };
    let outcome = handover.run_to_end();
    if let Err(error) = &outcome {
        handover.failure = describe_error(error.as_ref());
    }
    if !handover.failure.is_empty() {
        handover.run_dir.write_failure(&handover.failure);
    }
    outcome
}

struct Handover {
    settings: Settings,
    run_dir: RunDir,
    start: String,
    /// The lock of the takeover, until the new HAProxy serves.
    lock: Option<Lock>,
    signals: Signals,
    supervision: Supervision,
    /// `None` after handover has dismissed the watchdog, or left HAProxy to it.
    watchdog: Option<WatchdogHandle>,
    /// The process id of the new HAProxy's master.
    master: Option<u32>,
    /// The new HAProxy's output.
    capture: Capture,
    /// The time since when the new HAProxy serves, by its own master's answer.
    ready_since: Option<Instant>,
    /// The time of the first question that the old HAProxy did not answer.
    silent_since: Option<Instant>,
    /// The HAProxys that were told to finish.
    releases: Releases,
    surplus: Surplus,
    /// The time of the last SIGUSR1 to all HAProxys.
    signalled_at: Instant,
    /// The reason that this start failed, with HAProxy's output. Empty before a failure.
    failure: String,
    /// The time since when the state lasts.
    state_since: Instant,
}

impl Handover {
    fn run_to_end(&mut self) -> anyhow::Result<Outcome> {
        // From here on no earlier watchdog ends the HAProxy that serves. If this fails, the earlier one stays in charge.
        if let Err(error) = self.run_dir.announce_start(&self.start) {
            self.dismiss_watchdog();
            return Err(error);
        }
        self.lock = Some(self.run_dir.lock_within(self.settings.wait)?);
        server_state::ensure_exists(&self.settings.state_file)?;
        let mut state = State::Checking;
        loop {
            if let State::Done(outcome) = state {
                // The call also removes the sockets of masters that have ended.
                self.run_dir.list_haproxys();
                // After a failed takeover the watchdog stays, and watches over the HAProxy that still serves.
                if matches!(outcome, Outcome::Stopped | Outcome::Ended(_)) {
                    self.dismiss_watchdog();
                }
                return Ok(outcome);
            }
            let Some(event) = self.next_event(state)? else { continue };
            let (next, action) = step(state, event);
            self.log_transition(state, event);
            if next != state {
                tracing::debug!(?state, ?event, ?next, "state changed");
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

    /// Tells the watchdog and confgen that the new HAProxy has taken over, and releases the lock.
    fn complete_takeover(&mut self) {
        self.message_watchdog(Message::Serving);
        self.run_dir.write_failure("");
        self.lock = None;
    }

    fn message_watchdog(&mut self, message: Message) {
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.send_message(message);
        }
    }

    fn dismiss_watchdog(&mut self) {
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.dismiss();
        }
    }

    /// Waits for the next event. `None` if none comes within a tick.
    fn next_event(&mut self, state: State) -> anyhow::Result<Option<Event>> {
        if state == State::Checking {
            let verdict = self.check_config()?;
            // A signal that came during the check counts first.
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
                let all = self.releases.check_progress(&self.run_dir);
                self.surplus.end_surplus(&self.run_dir, &self.start, &all, &mut self.releases);
                None
            }
        })
    }

    fn perform_action(&mut self, action: Action) -> anyhow::Result<()> {
        match action {
            Action::Launch => self.launch_haproxy()?,
            Action::ReleaseOld => {
                for old in self.list_old() {
                    tracing::info!(pid = old.pid(), "HAProxy finishes its requests");
                    self.releases.release_haproxy(&old, self.silent_since);
                }
            }
            Action::FinishAll => {
                let all = self.run_dir.list_haproxys();
                self.signal_finish(&all);
            }
            Action::TerminateAll => self.run_dir.list_haproxys().iter().for_each(Haproxy::terminate),
            Action::KillAll => self.run_dir.list_haproxys().iter().for_each(Haproxy::kill),
            Action::KillNew => self.run_dir.list_of(&self.start).iter().for_each(Haproxy::kill),
            Action::AbandonNew => self.abandon_takeover(),
            Action::LeaveToWatchdog => self.leave_to_watchdog(),
            Action::StartAfresh => return Err(launch::reexec_self(true)),
            Action::Reload => self.reload_config()?,
        }
        Ok(())
    }

    /// Has HAProxy check the files. On a rejection it prints HAProxy's output, and keeps it as the reason.
    fn check_config(&mut self) -> anyhow::Result<Event> {
        match check::run_check(&launch::check_command(&self.settings.command), self.settings.wait)? {
            CheckResult::Valid { .. } => Ok(Event::Accepted),
            CheckResult::Rejected { output } => {
                // Printed as HAProxy wrote it. A log event would lose the line breaks.
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
                tracing::warn!(%error, "old HAProxy doesn't answer, new one binds its own sockets");
                self.silent_since = Some(asked);
                None
            }
        };
        let (settings, master) = (&self.settings, self.run_dir.master_socket(&self.start));
        server_state::save(&settings.state_file, &settings.command, old.as_ref().map(|_| &socket))?;
        let from = old.as_ref().map(|_| settings.socket.path.as_path()).filter(|_| !settings.afresh);
        let line = launch::start_command(&settings.command, &master, settings.group.as_ref(), from);
        let mut child = launch::spawn_haproxy(&line, &settings.socket.path, &self.start)?;
        self.capture = Capture::follow_child(&mut child);
        self.master = Some(child.id());
        let Some(old) = old else {
            tracing::info!(pid = child.id(), "starting HAProxy");
            return Ok(());
        };
        tracing::info!(pid = child.id(), old_pid = old.pid, "starting HAProxy to take over");
        if self.find_start_by_pid(old.pid).is_none() {
            let hint = "end it";
            tracing::warn!(pid = old.pid, hint, "old HAProxy was not started by handover and keeps serving");
        }
        Ok(())
    }

    /// Tells if the new HAProxy answers on the runtime socket's path. While both hold the listener, either may answer.
    /// The path may also lead to another HAProxy for good. So this returns `Bypassed` if another one still answers there
    /// [`BYPASSED_AFTER`] after the new one's master first said that it serves. `None` before either is known.
    fn check_new_haproxy(&mut self) -> Option<Event> {
        let on_path = Socket::new(&self.settings.socket.path).with_timeout(ANSWER_TIMEOUT).show_info().ok()?;
        if self.find_start_by_pid(on_path.pid).as_ref() == Some(&self.start) {
            return Some(Event::Answered);
        }
        if self.settings.afresh || !self.run_dir.is_serving(&self.start) {
            return None;
        }
        let ready_since = *self.ready_since.get_or_insert_with(Instant::now);
        (ready_since.elapsed() >= BYPASSED_AFTER).then_some(Event::Bypassed)
    }

    fn find_start_by_pid(&self, pid: u32) -> Option<String> {
        find_start(i32::try_from(pid).ok()?, &self.settings.socket.path)
    }

    fn signal_finish(&mut self, all: &[Haproxy]) {
        self.signalled_at = Instant::now();
        all.iter().for_each(Haproxy::finish_requests);
    }

    /// Gives the takeover up. If an old HAProxy serves, the new one finishes, and the watchdog sees to its end.
    fn abandon_takeover(&mut self) {
        if !self.list_old().is_empty() {
            for new in self.run_dir.list_of(&self.start) {
                tracing::warn!(pid = new.pid(), "takeover given up, new HAProxy finishes its requests");
                new.finish_requests();
            }
        }
        self.leave_to_watchdog();
    }

    fn leave_to_watchdog(&mut self) {
        self.message_watchdog(Message::Detaching);
        // Dropping the watchdog's handle does not end the watchdog.
        self.watchdog = None;
    }

    fn reload_config(&mut self) -> anyhow::Result<()> {
        match self.check_config()? {
            Event::Accepted => Err(launch::reexec_self(false)),
            _ => {
                self.failure.clear();
                tracing::error!(pid = self.master, "configuration rejected, running HAProxy keeps serving");
                Ok(())
            }
        }
    }

    fn list_old(&self) -> Vec<Haproxy> {
        self.run_dir.list_all_but(&self.start)
    }

    /// Logs the events that an operator looks for, and keeps the reason of a failed start.
    fn log_transition(&mut self, state: State, event: Event) {
        match (state, event) {
            (State::Checking, Event::Rejected) => {
                tracing::error!(serving = %self.describe_old(), "HAProxy rejected the configuration");
            }
            (State::Starting, Event::Ended(code)) => {
                let reason = format!("the new HAProxy ended with status {code} before it answered");
                tracing::error!(status = code, serving = %self.describe_old(), "the new HAProxy ended before it answered");
                self.record_failure(reason);
            }
            (State::Starting, Event::Timeout) => {
                let reason = format!(
                    "the new HAProxy didn't answer on {} within {:?}: does the configuration have `stats socket` with \
                     that path?",
                    self.settings.socket.path.display(),
                    self.settings.wait
                );
                tracing::error!(serving = %self.describe_old(), "{reason}");
                self.record_failure(reason);
            }
            (State::Starting, Event::Bypassed) => tracing::warn!(
                pid = self.master,
                socket = %self.settings.socket.path.display(),
                "giving up the new HAProxy, because the socket's path leads to another one; the next one binds its sockets itself"
            ),
            (State::Checking | State::Starting, Event::Orphaned) => {
                tracing::error!(pid = self.master, "supervisord is gone, giving up the new HAProxy");
            }
            (State::Starting, Event::Answered) => tracing::info!(pid = self.master, "HAProxy serves"),
            (State::Serving, Event::Ended(code)) => tracing::warn!(status = code, "HAProxy ended"),
            (State::Checking | State::Starting | State::Serving, Event::Detach) => tracing::info!(
                linger = %humantime::format_duration(self.settings.linger),
                "handover ends, HAProxy waits for a successor"
            ),
            (State::Starting | State::Serving, Event::Finish) => tracing::info!(
                drain = %humantime::format_duration(self.settings.drain),
                "every HAProxy finishes its requests"
            ),
            (State::Draining, Event::Timeout) => tracing::warn!(
                drain = %humantime::format_duration(self.settings.drain),
                "cutting off the requests that are left"
            ),
            _ => {}
        }
    }

    fn describe_old(&self) -> String {
        match self.list_old().first() {
            Some(old) => format!("the old HAProxy, {}", old.pid()),
            None => "none".to_owned(),
        }
    }

    /// Keeps the reason that the start failed, with HAProxy's output in short.
    fn record_failure(&mut self, reason: String) {
        let output = failure::summarize_output(&self.capture.read_text());
        self.failure = if output.is_empty() { reason } else { format!("{reason}: {output}") };
    }
}
