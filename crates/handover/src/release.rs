//! HAProxys that were told to finish: one that hangs is ended, one that lets go of its listening sockets may take its time.
//!
//! [`Release::judge`] decides, purely; [`Releases`] asks and acts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::processes::Haproxy;
use crate::run_dir::{Answer, Place};

/// How long a HAProxy may be silent until it counts as hung. It answers within a millisecond, unless it is starved.
const SILENT_FOR: Duration = Duration::from_secs(5);

/// The same for a process that a signal has stopped (SIGSTOP): that one can't be starved.
const STOPPED_FOR: Duration = Duration::from_secs(1);

/// How long a HAProxy may take to let go of its listening sockets while it answers.
const LISTENS_FOR: Duration = Duration::from_secs(10);

/// How often a HAProxy that answers is told again. One that is just starting may miss the signal.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// How long each measure may take until the next one.
const MEASURE_TAKES: Duration = Duration::from_secs(2);

/// How often they are looked at.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// What is done about a HAProxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Tell it once more to finish.
    TellAgain,
    /// Have it go on if a signal has stopped it: then it finishes.
    Wake,
    /// Have it end now.
    Terminate,
    /// Kill it.
    Kill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Told,
    LetGo,
    Woken(Instant),
    Terminated(Instant),
}

/// One HAProxy that was told to finish.
#[derive(Debug)]
struct Release {
    told: Instant,
    told_again: Instant,
    /// When it last answered, or was first found silent.
    heard: Instant,
    phase: Phase,
}

impl Release {
    fn new(now: Instant, silent_since: Option<Instant>) -> Self {
        Self { told: now, told_again: now, heard: silent_since.unwrap_or(now), phase: Phase::Told }
    }

    /// What is to be done now, by its last answer.
    fn judge(&mut self, now: Instant, answer: Answer, is_stopped: bool) -> Option<Measure> {
        match (self.phase, answer) {
            (Phase::Terminated(since), _) => {
                return (now.duration_since(since) >= MEASURE_TAKES).then_some(Measure::Kill);
            }
            (Phase::LetGo, _) => return None,
            (_, Answer::LetGo) => self.phase = Phase::LetGo,
            (_, Answer::Listens) => return self.judge_listening(now),
            (Phase::Told, Answer::Silent) => {
                let patience = if is_stopped { STOPPED_FOR } else { SILENT_FOR };
                if now.duration_since(self.heard) >= patience {
                    self.phase = Phase::Woken(now);
                    return Some(Measure::Wake);
                }
            }
            (Phase::Woken(since), Answer::Silent) => {
                if now.duration_since(since) >= MEASURE_TAKES {
                    self.phase = Phase::Terminated(now);
                    return Some(Measure::Terminate);
                }
            }
        }
        None
    }

    fn judge_listening(&mut self, now: Instant) -> Option<Measure> {
        self.heard = now;
        self.phase = Phase::Told;
        if now.duration_since(self.told) >= LISTENS_FOR {
            self.phase = Phase::Terminated(now);
            return Some(Measure::Terminate);
        }
        if now.duration_since(self.told_again) >= TELL_EVERY {
            self.told_again = now;
            return Some(Measure::TellAgain);
        }
        None
    }
}

/// All HAProxys that were told to finish, by the name of their start.
#[derive(Debug, Default)]
pub(crate) struct Releases(BTreeMap<String, Release>);

impl Releases {
    /// Tells a HAProxy to finish. It may have been found silent before.
    pub(crate) fn release(&mut self, haproxy: &Haproxy, silent_since: Option<Instant>) {
        haproxy.finish();
        self.0.entry(haproxy.start.clone()).or_insert_with(|| Release::new(Instant::now(), silent_since));
    }

    /// Looks at each that has not let go yet, and ends those that hang.
    pub(crate) fn tend(&mut self, place: &Place) {
        let alive = place.haproxys();
        self.0.retain(|start, _| alive.iter().any(|haproxy| haproxy.start == *start));
        for haproxy in &alive {
            let Some(release) = self.0.get_mut(&haproxy.start).filter(|release| release.phase != Phase::LetGo) else {
                continue;
            };
            let answer = place.ask(haproxy);
            if let Some(measure) = release.judge(Instant::now(), answer, haproxy.is_stopped()) {
                take_measure(haproxy, measure, answer);
            }
        }
    }

    /// Whether nobody is left that was told to finish.
    pub(crate) fn are_over(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether each that still lives has let go of its listening sockets.
    pub(crate) fn have_let_go(&self) -> bool {
        self.0.values().all(|release| release.phase == Phase::LetGo)
    }
}

fn take_measure(haproxy: &Haproxy, measure: Measure, answer: Answer) {
    let pid = haproxy.pid();
    match measure {
        Measure::TellAgain => haproxy.finish(),
        Measure::Wake => {
            tracing::warn!("HAProxy {pid} doesn't answer and keeps its share of the connections: it is woken up");
            haproxy.wake();
            haproxy.finish();
        }
        Measure::Terminate if answer == Answer::Listens => {
            tracing::warn!("HAProxy {pid} was told to finish and goes on taking connections: it is ended");
            haproxy.terminate();
        }
        Measure::Terminate => {
            tracing::warn!("HAProxy {pid} doesn't answer and keeps its share of the connections: it is ended");
            haproxy.terminate();
        }
        Measure::Kill => {
            tracing::warn!("HAProxy {pid} doesn't end: it is killed");
            haproxy.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The measures that are taken against a HAProxy that always answers the same, in tenths of a second.
    fn measures(answer: Answer, is_stopped: bool, silent_before: u32) -> Vec<(u32, Measure)> {
        let begin = Instant::now();
        let told = begin + Duration::from_secs(60);
        let silent_since = Some(told - TICK * silent_before);
        let mut release = Release::new(told, silent_since);
        let judged = (0..200).filter_map(|tick| Some((tick, release.judge(told + TICK * tick, answer, is_stopped)?)));
        judged.take(4).collect()
    }

    #[test]
    fn one_that_hangs_is_woken_ended_and_killed() {
        use Measure::{Kill, Terminate, Wake};
        assert_eq!(measures(Answer::Silent, false, 0), [(50, Wake), (70, Terminate), (90, Kill), (91, Kill)]);
        assert_eq!(measures(Answer::Silent, true, 0), [(10, Wake), (30, Terminate), (50, Kill), (51, Kill)]);
        assert_eq!(measures(Answer::Silent, true, 20)[0], (0, Wake), "it was silent before its successor started");
    }

    #[test]
    fn one_that_goes_on_listening_is_told_again_and_ended() {
        use Measure::TellAgain;
        assert_eq!(measures(Answer::Listens, false, 0)[..2], [(10, TellAgain), (20, TellAgain)]);
        let mut release = Release::new(Instant::now(), None);
        let late = release.told + LISTENS_FOR;
        assert_eq!(release.judge(late, Answer::Listens, false), Some(Measure::Terminate));
    }

    #[test]
    fn one_that_finishes_its_requests_may_take_its_time() {
        assert_eq!(measures(Answer::LetGo, false, 0), []);
        let mut release = Release::new(Instant::now(), None);
        let told = release.told;
        assert_eq!(release.judge(told + SILENT_FOR, Answer::Silent, false), Some(Measure::Wake));
        assert_eq!(release.judge(told + SILENT_FOR, Answer::LetGo, false), None);
        let later = told + Duration::from_secs(3600);
        assert_eq!(release.judge(later, Answer::Silent, false), None, "it has let go, and only its requests are slow");
    }
}
