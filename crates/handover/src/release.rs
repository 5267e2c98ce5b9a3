//! Watches HAProxys that were told to finish. It ends one that hangs. One that no longer listens may take its time.
//!
//! [`Release::judge_answer`] decides, purely. [`Releases`] asks and acts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::processes::Haproxy;
use crate::run_dir::{MasterAnswer, RunDir};

/// The silence after which a HAProxy counts as hung. It answers within a millisecond, unless it is starved.
pub(crate) const SILENT_LIMIT: Duration = Duration::from_secs(5);

/// The same for a process that a signal has stopped (SIGSTOP). That one can't be starved.
const STOPPED_LIMIT: Duration = Duration::from_secs(1);

/// The time that a HAProxy that answers has to close its listening sockets.
const LISTENING_LIMIT: Duration = Duration::from_secs(10);

/// The interval between two SIGUSR1. A HAProxy that is just starting may miss the signal.
const SIGNAL_INTERVAL: Duration = Duration::from_secs(1);

/// The time between a measure and the next one.
const MEASURE_INTERVAL: Duration = Duration::from_secs(2);

/// The interval between two questions to a HAProxy.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// An act against a HAProxy that doesn't finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Send SIGUSR1 once more.
    SignalAgain,
    /// Send SIGCONT and SIGUSR1. A process that a signal has stopped goes on, and finishes.
    Resume,
    Terminate,
    Kill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Finishing,
    NotListening,
    Resumed(Instant),
    Terminated(Instant),
}

/// One HAProxy that was told to finish.
#[derive(Debug)]
struct Release {
    released_at: Instant,
    signalled_at: Instant,
    /// The time of its last answer, or of the first question that it did not answer.
    silent_since: Instant,
    phase: Phase,
}

impl Release {
    fn new(now: Instant, silent_since: Option<Instant>) -> Self {
        Self { released_at: now, signalled_at: now, silent_since: silent_since.unwrap_or(now), phase: Phase::Finishing }
    }

    /// Decides the next measure by the last answer. `None` means to wait.
    fn judge_answer(&mut self, now: Instant, answer: MasterAnswer, is_stopped: bool) -> Option<Measure> {
        match (self.phase, answer) {
            (Phase::Terminated(since), _) => {
                return (now.duration_since(since) >= MEASURE_INTERVAL).then_some(Measure::Kill);
            }
            // Only its requests are slow, and a worker that serves a client may be silent.
            (Phase::NotListening, _) => return None,
            (_, MasterAnswer::NotListening) => self.phase = Phase::NotListening,
            (_, MasterAnswer::Listening) => return self.judge_listening(now),
            (Phase::Finishing, MasterAnswer::Silent) => {
                let patience = if is_stopped { STOPPED_LIMIT } else { SILENT_LIMIT };
                if now.duration_since(self.silent_since) >= patience {
                    self.phase = Phase::Resumed(now);
                    return Some(Measure::Resume);
                }
            }
            (Phase::Resumed(since), MasterAnswer::Silent) => {
                if now.duration_since(since) >= MEASURE_INTERVAL {
                    self.phase = Phase::Terminated(now);
                    return Some(Measure::Terminate);
                }
            }
        }
        None
    }

    fn judge_listening(&mut self, now: Instant) -> Option<Measure> {
        // The answer shows that it doesn't hang. A later silence is a new one.
        self.silent_since = now;
        self.phase = Phase::Finishing;
        if now.duration_since(self.released_at) >= LISTENING_LIMIT {
            self.phase = Phase::Terminated(now);
            return Some(Measure::Terminate);
        }
        if now.duration_since(self.signalled_at) >= SIGNAL_INTERVAL {
            self.signalled_at = now;
            return Some(Measure::SignalAgain);
        }
        None
    }
}

/// All HAProxys that were told to finish, by the name of their start.
#[derive(Debug, Default)]
pub(crate) struct Releases(BTreeMap<String, Release>);

impl Releases {
    /// Tells a HAProxy to finish. `silent_since` is the time since when it hasn't answered, if it was asked before.
    pub(crate) fn release_haproxy(&mut self, haproxy: &Haproxy, silent_since: Option<Instant>) {
        haproxy.finish_requests();
        self.0.entry(haproxy.start.clone()).or_insert_with(|| Release::new(Instant::now(), silent_since));
    }

    /// Ends a HAProxy and its connections. One that goes on is killed later.
    pub(crate) fn end_haproxy(&mut self, haproxy: &Haproxy) {
        haproxy.terminate();
        let now = Instant::now();
        let release = self.0.entry(haproxy.start.clone()).or_insert_with(|| Release::new(now, None));
        release.phase = Phase::Terminated(now);
    }

    /// Asks each HAProxy that still listens, and takes the measure that is due. Returns all living HAProxys. This scans all
    /// of `/proc`, and removes the sockets of masters that have ended.
    pub(crate) fn check_progress(&mut self, run_dir: &RunDir) -> Vec<Haproxy> {
        let alive = run_dir.list_haproxys();
        self.0.retain(|start, _| alive.iter().any(|haproxy| haproxy.start == *start));
        for haproxy in &alive {
            let Some(release) = self.0.get_mut(&haproxy.start).filter(|release| release.phase != Phase::NotListening)
            else {
                continue;
            };
            let answer = run_dir.ask_master(haproxy);
            if let Some(measure) = release.judge_answer(Instant::now(), answer, haproxy.is_stopped()) {
                take_measure(haproxy, measure, answer);
            }
        }
        alive
    }

    /// True if that start's HAProxy was told to finish and has closed its listening sockets.
    pub(crate) fn is_finishing(&self, start: &str) -> bool {
        self.0.get(start).is_some_and(|release| release.phase == Phase::NotListening)
    }

    /// True if that start's HAProxy was told to end at once.
    pub(crate) fn is_ending(&self, start: &str) -> bool {
        self.0.get(start).is_some_and(|release| matches!(release.phase, Phase::Terminated(_)))
    }

    /// True if no HAProxy is left that was told to finish.
    pub(crate) fn are_all_ended(&self) -> bool {
        self.0.is_empty()
    }

    /// True if every living HAProxy that was told to finish has closed its listening sockets.
    pub(crate) fn have_stopped_listening(&self) -> bool {
        self.0.values().all(|release| release.phase == Phase::NotListening)
    }
}

fn take_measure(haproxy: &Haproxy, measure: Measure, answer: MasterAnswer) {
    let pid = haproxy.pid();
    match measure {
        Measure::SignalAgain => haproxy.finish_requests(),
        Measure::Resume => {
            tracing::warn!(pid, "resuming a HAProxy that doesn't answer and still accepts connections");
            haproxy.wake();
            haproxy.finish_requests();
        }
        Measure::Terminate if answer == MasterAnswer::Listening => {
            tracing::warn!(pid, "ending a HAProxy that was told to finish and still accepts connections");
            haproxy.terminate();
        }
        Measure::Terminate => {
            tracing::warn!(pid, "ending a HAProxy that doesn't answer and still accepts connections");
            haproxy.terminate();
        }
        Measure::Kill => {
            tracing::warn!(pid, "killing a HAProxy that doesn't end");
            haproxy.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The measures that are taken against a HAProxy that always answers the same, in tenths of a second.
    fn measures(answer: MasterAnswer, is_stopped: bool, silent_before: u32) -> Vec<(u32, Measure)> {
        let begin = Instant::now();
        let told = begin + Duration::from_secs(60);
        let silent_since = Some(told - TICK * silent_before);
        let mut release = Release::new(told, silent_since);
        let judged =
            (0..200).filter_map(|tick| Some((tick, release.judge_answer(told + TICK * tick, answer, is_stopped)?)));
        judged.take(4).collect()
    }

    #[test]
    fn one_that_hangs_is_woken_ended_and_killed() {
        use Measure::{Kill, Resume, Terminate};
        assert_eq!(measures(MasterAnswer::Silent, false, 0), [(50, Resume), (70, Terminate), (90, Kill), (91, Kill)]);
        assert_eq!(measures(MasterAnswer::Silent, true, 0), [(10, Resume), (30, Terminate), (50, Kill), (51, Kill)]);
        assert_eq!(
            measures(MasterAnswer::Silent, true, 20)[0],
            (0, Resume),
            "it was silent before its successor started"
        );
    }

    #[test]
    fn one_that_goes_on_listening_is_told_again_and_ended() {
        use Measure::SignalAgain;
        assert_eq!(measures(MasterAnswer::Listening, false, 0)[..2], [(10, SignalAgain), (20, SignalAgain)]);
        let mut release = Release::new(Instant::now(), None);
        let late = release.released_at + LISTENING_LIMIT;
        assert_eq!(release.judge_answer(late, MasterAnswer::Listening, false), Some(Measure::Terminate));
    }

    #[test]
    fn one_that_finishes_its_requests_may_take_its_time() {
        assert_eq!(measures(MasterAnswer::NotListening, false, 0), []);
        let mut release = Release::new(Instant::now(), None);
        let told = release.released_at;
        assert_eq!(release.judge_answer(told + SILENT_LIMIT, MasterAnswer::Silent, false), Some(Measure::Resume));
        assert_eq!(release.judge_answer(told + SILENT_LIMIT, MasterAnswer::NotListening, false), None);
        let later = told + Duration::from_secs(3600);
        assert_eq!(
            release.judge_answer(later, MasterAnswer::Silent, false),
            None,
            "it has let go, and only its requests are slow"
        );
    }
}
