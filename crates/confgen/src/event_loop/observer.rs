//! Observes the world outside of the store four times a second: files, the day, the running HAProxy. It changes nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use haproxy::cutoffs::{Cutoffs, read_cutoffs};
use haproxy::masters::OldProcesses;
use haproxy::runtime::{Limits, Socket};
use haproxy::supervisor::{Control, State};
use haproxy::{masters, process};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::event_loop::scheduler::Input;
use crate::local_files::LocalPaths;
use crate::local_files::expiry;
use crate::local_files::file_stamps::FileStamps;
use crate::runtime;
use crate::state_dir::OwnFile;
use crate::status::RunningHaproxy;
use crate::status::activity::Activities;

/// A restart or a crash of HAProxy is mended once it is observed. Four questions a second are no load for HAProxy.
const OBSERVE_EVERY: Duration = Duration::from_millis(250);

/// One observation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// The stamps of all local files.
    pub files: Arc<FileStamps>,
    /// The HAProxy that answers, if one does.
    pub running: Option<RunningHaproxy>,
    /// Days since 1970. Certificates that expire are logged once a day.
    pub day: i64,
    /// The worker's pid, and the time when it was first observed.
    pub process: Option<(u32, Instant)>,
    /// Another process listens too, and may answer questions on the Runtime API.
    pub old_process_listens: bool,
    /// The problem, if HAProxy was started with other files than confgen checks.
    pub unexpected_files: Option<String>,
    /// The problem, if HAProxy serves on and supervisord doesn't run it.
    pub unsupervised: Option<String>,
    /// The HAProxy processes that finish their last requests.
    pub old: Arc<OldProcesses>,
    /// Those of them that handover has cut off.
    pub cutoffs: Cutoffs,
    /// The limits of the whole process that answers.
    pub limits: Option<Limits>,
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

/// supervisord has one thread, and takes 2 ms for an answer. It and the old processes are asked only this often.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// supervisord may have the program stopped for this long while HAProxy serves on. A restart is a stop and a start, and after a stop
/// HAProxy ends only after handover's `--linger`.
const STOPPED_FOR: Duration = Duration::from_secs(8);

/// supervisord counts as frozen if it has not answered for this long. One question waits 5 s, so a single slow answer isn't enough.
const SILENT_FOR: Duration = Duration::from_secs(8);

/// The answers of other programs than the running HAProxy. Their questions run beside the observations, because a frozen program
/// holds them up for seconds.
#[derive(Clone, Debug, Default)]
struct SlowAnswers {
    at: Option<Instant>,
    /// The time when supervisord was first observed to have the program stopped.
    stopped: Option<Instant>,
    /// The time of the first question that supervisord left without an answer.
    silent: Option<(Instant, SystemTime)>,
    unsupervised: Option<String>,
    old: Arc<OldProcesses>,
    cutoffs: Cutoffs,
}

impl SlowAnswers {
    fn is_due(&self) -> bool {
        self.at.is_none_or(|at| at.elapsed() >= ASK_EVERY)
    }

    /// Asks again.
    fn refresh(self, observer: &Observer) -> Self {
        let _activity = observer.activities.begin("look", "supervisord and old HAProxy processes");
        let (now, socket, control) = (Instant::now(), &observer.socket, &observer.control);
        let answer = control.query_process();
        let is_silent = matches!(&answer, Some(Err(error)) if error.is_timeout());
        let silent = is_silent.then(|| self.silent.unwrap_or((now, SystemTime::now())));
        let process = answer.and_then(Result::ok);
        let is_stopped = process.as_ref().is_some_and(|process| process.state == State::Stopped);
        let stopped = is_stopped.then(|| self.stopped.unwrap_or(now));
        let problem = process.and_then(|process| {
            let words = control.read_failure_message(socket.path(), SystemTime::now());
            describe_problem(process.state, stopped.map(|since| now.duration_since(since)), words)
        });
        let frozen =
            silent.filter(|(since, _)| since.elapsed() >= SILENT_FOR).map(|(_, since)| describe_silence(since));
        let old = Arc::new(masters::list_old_processes(socket.path()));
        let cutoffs = read_cutoffs(socket.path());
        Self { at: Some(Instant::now()), stopped, silent, unsupervised: frozen.or(problem), old, cutoffs }
    }
}

fn describe_silence(since: SystemTime) -> String {
    let since = humantime::format_rfc3339_seconds(since);
    format!("supervisord has not answered since {since}, so HAProxy can't be started anew; the one that runs serves on")
}

/// The problem of a HAProxy that serves while supervisord has its program in that state. `words` are those of a start that failed.
/// `None` without a problem.
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

/// From the start of a HAProxy to the end of the old process, handover takes less than this. A process that is younger at confgen's
/// own start may still share the sockets with an old one.
const START: Duration = Duration::from_secs(5);

/// The paths and sockets that an observation needs.
struct Observer {
    paths: LocalPaths,
    own_cfg: OwnFile,
    checked: Vec<PathBuf>,
    socket: Socket,
    control: Control,
    activities: Activities,
}

/// Observes four times a second. The receiver gets an observation if it differs from the last one. `checked` are the files that
/// confgen checks, in the order in which HAProxy must be started with them. `own_cfg` is the haproxy.cfg that confgen wrote.
pub fn spawn_observer(
    paths: LocalPaths,
    own_cfg: OwnFile,
    checked: Vec<PathBuf>,
    socket: Socket,
    control: Control,
    activities: Activities,
    shutdown: CancellationToken,
) -> watch::Receiver<Observation> {
    let observer = Arc::new(Observer { paths, own_cfg, checked, socket, control, activities });
    let (sender, receiver) = watch::channel(Observation::default());
    let mut ticks = interval(OBSERVE_EVERY);
    // tokio's default makes up for missed ticks at once. After a stall HAProxy would get them as a burst.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        let (mut last, mut answers) = (Observation::default(), SlowAnswers::default());
        let mut asking: Option<JoinHandle<SlowAnswers>> = None;
        loop {
            ticks.tick().await;
            if let Some(asked) = asking.take_if(|asking| asking.is_finished()) {
                answers = asked.await.unwrap_or_default();
            }
            if asking.is_none() && answers.is_due() {
                let (observer, before) = (Arc::clone(&observer), answers.clone());
                asking = Some(tokio::task::spawn_blocking(move || before.refresh(&observer)));
            }
            let (observer, before, slow) = (Arc::clone(&observer), last.clone(), answers.clone());
            let observed = tokio::task::spawn_blocking(move || observer.observe(&before, &slow)).await;
            let Ok(observation) = observed else { continue };
            last = observation.clone();
            sender.send_if_modified(|last| std::mem::replace(last, observation.clone()) != observation);
        }
    }));
    receiver
}

impl Observer {
    fn observe(&self, last: &Observation, answers: &SlowAnswers) -> Observation {
        let _activity = self.activities.begin("look", "files and the running HAProxy");
        let info = self.socket.show_info().ok();
        let process = match &info {
            Some(info) => Some(process_since(last.process, info.pid, info.uptime)),
            // No answer is no proof of another process. It may be busy, or restarting.
            None => last.process,
        };
        // A process that listened alone does so until it is another process.
        let may_share = last.old_process_listens || process != last.process;
        let old_process_listens = may_share && masters::other_process_listens(&self.socket);
        Observation {
            process,
            old_process_listens,
            unexpected_files: info.as_ref().and_then(|info| describe_unexpected_files(info.pid, &self.checked)),
            files: Arc::new(self.paths.take_stamps(&self.own_cfg, &last.files, SystemTime::now())),
            day: expiry::day_of(expiry::unix_now()),
            unsupervised: answers.unsupervised.clone().filter(|_| info.is_some()),
            old: Arc::clone(&answers.old),
            cutoffs: answers.cutoffs,
            limits: info.as_ref().map(|info| info.limits),
            running: info.map(|info| RunningHaproxy {
                pid: info.pid,
                version: info.version,
                generation: runtime::running_generation(&self.socket),
            }),
        }
    }
}

/// `None` if the process was started with the files that confgen checks, or if the kernel doesn't say.
fn describe_unexpected_files(pid: u32, checked: &[PathBuf]) -> Option<String> {
    let running = process::find_config_files(pid).filter(|running| !process::are_same_files(running, checked))?;
    let (running, checked) = (format_file_options(&running), format_file_options(checked));
    Some(format!("HAProxy was started with {running}, and confgen checks {checked}"))
}

fn format_file_options(files: &[PathBuf]) -> String {
    files.iter().map(|file| format!("-f {}", file.display())).collect::<Vec<String>>().join(" ")
}

/// The process that answers, and the time when it was first observed. confgen's first observation takes its uptime.
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
