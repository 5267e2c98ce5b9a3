//! What is outside of the store, looked at four times a second: files, the day, the running HAProxy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use haproxy::masters::OldProcesses;
use haproxy::runtime::{Info, Socket};
use haproxy::supervisor::{Control, State};
use haproxy::{masters, process};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::event_loop::scheduler::Input;
use crate::local_files::LocalPaths;
use crate::local_files::expiry;
use crate::local_files::file_stamps::FileStamps;
use crate::runtime;
use crate::status::RunningHaproxy;
use crate::status::activity::Activities;

/// How often the files and the running generation are looked at. A restart or a crash of HAProxy is mended as soon as it
/// is seen; four questions a second are nothing to it.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What a look at the world outside of the store sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// The files.
    pub files: Arc<FileStamps>,
    /// What HAProxy runs.
    pub running: Option<RunningHaproxy>,
    /// A new day: certificates that expire are named once a day.
    pub day: i64,
    /// The process, and when it was last seen to be another one.
    pub process: Option<(u32, Instant)>,
    /// Another process listens too, and may have answered what was asked after this look.
    pub old_process_listens: bool,
    /// Which files it was started with, where they are not those that confgen checks.
    pub unexpected_files: Option<String>,
    /// Why HAProxy serves on without supervisord, if it does.
    pub unsupervised: Option<String>,
    /// The processes that finish their last requests.
    pub old: OldProcesses,
}

impl Observation {
    /// The scheduler's inputs, from the differences to the last observation.
    pub fn inputs_since(&self, last: &Self) -> Vec<Input> {
        // While two processes listen, either may have answered.
        let listens_alone = last.old_process_listens && !self.old_process_listens;
        let is_unsettled = self.process != last.process || self.old_process_listens || listens_alone;
        let inputs = [
            (is_unsettled, Input::HaproxyUnsettled),
            (self.running != last.running || listens_alone, Input::HaproxyChanged),
            (self.files != last.files, Input::FilesChanged),
            (self.day != last.day, Input::DayBegan),
        ];
        inputs.into_iter().filter_map(|(happened, input)| happened.then_some(input)).collect()
    }
}

/// How often supervisord and the old processes are asked. supervisord has one thread, and answers in 2 ms.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// How long the program may be stopped while HAProxy serves on: a restart is a stop and a start, and a stop ends HAProxy only
/// after handover's `--linger`.
const STOPPED_FOR: Duration = Duration::from_secs(8);

/// What is asked less often.
#[derive(Clone, Debug, Default)]
struct SlowAnswers {
    at: Option<Instant>,
    /// Since when supervisord has had the program stopped.
    stopped: Option<Instant>,
    unsupervised: Option<String>,
    old: OldProcesses,
}

impl SlowAnswers {
    /// The answers of now, or those of a moment ago.
    fn refresh(self, socket: &Socket, control: &Control) -> Self {
        let now = Instant::now();
        if self.at.is_some_and(|at| now.duration_since(at) < ASK_EVERY) {
            return self;
        }
        let process = control.query_process();
        let is_stopped = process.as_ref().is_some_and(|process| process.state == State::Stopped);
        let stopped = is_stopped.then(|| self.stopped.unwrap_or(now));
        let unsupervised = process.and_then(|process| {
            let words = control.read_failure_message(socket.path(), SystemTime::now());
            describe_problem(process.state, stopped.map(|since| now.duration_since(since)), words)
        });
        Self { at: Some(now), stopped, unsupervised, old: masters::count_old_processes(socket.path()) }
    }
}

/// What is wrong with a HAProxy that serves while supervisord has its program in that state, and the words of a start that
/// failed. `None` if nothing is.
fn describe_problem(state: State, stopped_for: Option<Duration>, words: Option<String>) -> Option<String> {
    let problem = match state {
        State::Fatal => {
            "supervisord has given up starting HAProxy anew (FATAL), and the one that runs serves on without it; when the \
             cause is mended: supervisorctl start haproxy"
        }
        State::Stopped if stopped_for.is_some_and(|time| time >= STOPPED_FOR) => {
            "supervisord has HAProxy stopped, and the one that runs serves on without it; supervisorctl start haproxy has \
             it taken over, handover stop ends it"
        }
        State::Backoff => TRIES_AGAIN,
        // A start that fails late counts as one that succeeded, and supervisord starts it again for ever.
        _ if words.is_some() => TRIES_AGAIN,
        _ => return None,
    };
    Some(words.map_or_else(|| problem.to_owned(), |words| format!("{problem}: {words}")))
}

const TRIES_AGAIN: &str = "HAProxy can't be started anew, supervisord tries again, and the one that runs serves on";

/// A start takes handover less than this from HAProxy's first breath to the last of the old process: what was running
/// before confgen may be a restart under way.
const START: Duration = Duration::from_secs(5);

/// Looks every so often; the receiver is told when something is different. `checked` are the files that confgen checks, as
/// HAProxy is to be started with them.
pub fn spawn_observer(
    places: LocalPaths,
    checked: Vec<PathBuf>,
    socket: Socket,
    control: Control,
    activities: Activities,
    shutdown: CancellationToken,
) -> watch::Receiver<Observation> {
    let checked: Arc<[PathBuf]> = checked.into();
    let (sender, receiver) = watch::channel(Observation::default());
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        let (mut process, mut shared): (Option<(u32, Instant)>, bool) = (None, false);
        let mut files: Arc<FileStamps> = Arc::default();
        let mut asked = SlowAnswers::default();
        loop {
            ticks.tick().await;
            let (places, checked, socket, last) = (places.clone(), Arc::clone(&checked), socket.clone(), process);
            let (stamps, activities) = (Arc::clone(&files), activities.clone());
            let (control, before) = (control.clone(), asked.clone());
            let glance = move || {
                let _activity = activities.begin("look", "files and the running HAProxy");
                let info = socket.show_info().ok();
                let process = info.as_ref().map_or(last, |info| Some(process_since(last, info.pid, info.uptime)));
                // A process that was found alone stays so until it is another one.
                let shared = (shared || process != last) && masters::other_process_listens(&socket);
                let strange = info.as_ref().and_then(|info| describe_unexpected_files(info.pid, &checked));
                let generation = || runtime::running_generation(&socket);
                let running =
                    |info: Info| RunningHaproxy { pid: info.pid, version: info.version, generation: generation() };
                let files = Arc::new(places.take_stamps(&stamps, SystemTime::now()));
                let day = expiry::day_of(expiry::unix_now());
                let asked = before.refresh(&socket, &control);
                let (unsupervised, old) = (asked.unsupervised.clone().filter(|_| info.is_some()), asked.old);
                let running = info.map(running);
                (
                    Observation {
                        files,
                        running,
                        process,
                        old_process_listens: shared,
                        day,
                        unexpected_files: strange,
                        unsupervised,
                        old,
                    },
                    asked,
                )
            };
            if let Ok((seen, answers)) = tokio::task::spawn_blocking(glance).await {
                (process, shared, asked, files) =
                    (seen.process, seen.old_process_listens, answers, Arc::clone(&seen.files));
                sender.send_if_modified(|last| std::mem::replace(last, seen.clone()) != seen);
            }
        }
    }));
    receiver
}

/// Says how the files differ that a process was started with; where they can't be told, they count as the same.
fn describe_unexpected_files(pid: u32, checked: &[PathBuf]) -> Option<String> {
    let running = process::find_config_files(pid).filter(|running| !process::are_same_files(running, checked))?;
    let words = |files: &[PathBuf]| {
        let words: Vec<String> = files.iter().map(|file: &PathBuf| format!("-f {}", Path::display(file))).collect();
        words.join(" ")
    };
    Some(format!("HAProxy was started with {}, and confgen checks {}", words(&running), words(checked)))
}

/// The process that answers, and when it was last seen to be another one.
fn process_since(last: Option<(u32, Instant)>, pid: u32, uptime: Duration) -> (u32, Instant) {
    let now = Instant::now();
    match last {
        Some((known, since)) if known == pid => (pid, since),
        Some(_) => (pid, now),
        None => (pid, now.checked_sub(uptime.saturating_sub(START)).unwrap_or(now)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn haproxy_is_observed_again_once_it_listens_alone() {
        let process = Some((7, Instant::now()));
        let mut last = Observation { process, ..Observation::default() };
        for (old_process_listens, is_stale) in [(true, false), (true, false), (false, true), (false, false)] {
            let now = Observation { old_process_listens, ..last.clone() };
            let inputs = now.inputs_since(&last);
            assert_eq!(inputs.contains(&Input::HaproxyChanged), is_stale, "{old_process_listens}");
            last = now;
        }
    }

    #[test]
    fn a_program_that_fails_to_start_is_told_from_one_that_is_restarted() {
        let told = |state, seconds| describe_problem(state, Some(Duration::from_secs(seconds)), None).is_some();
        assert!(told(State::Backoff, 0) && told(State::Fatal, 0));
        assert!(!told(State::Stopped, 1) && told(State::Stopped, 60));
        assert!(![State::Running, State::Starting, State::Stopping].into_iter().any(|state| told(state, 60)));
        let words = describe_problem(State::Running, None, Some("[ALERT] no".into())).unwrap();
        assert!(words.ends_with("serves on: [ALERT] no"), "{words}");
    }
}
