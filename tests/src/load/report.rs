//! What came of a load.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

/// What went wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The port was closed.
    Refused,
    /// The connection was reset.
    Reset,
    /// The connection was closed after the request was sent, before a byte of the answer came.
    ClosedBeforeAnswer,
    /// The connection was closed in the middle of the answer.
    ClosedMidAnswer,
    /// No whole answer in time.
    Timeout,
    /// Another status than 200.
    WrongStatus,
    /// A body that is no answer to this request.
    WrongBody,
    /// What came was no HTTP, or TLS failed.
    Protocol,
    /// This machine had no port or file descriptor left for the client: no fault of what is tested.
    Lab,
}

/// One failed request.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What went wrong.
    pub fault: Fault,
    /// What was seen.
    pub detail: String,
    /// When, after the start of the load.
    pub at: Duration,
}

impl Failure {
    pub(super) fn new(fault: Fault, detail: String) -> Self {
        Self { fault, detail, at: Duration::ZERO }
    }

    /// What an error of the socket means, and where it happened.
    pub(super) fn of_socket(error: &io::Error, place: impl fmt::Display) -> Self {
        use io::ErrorKind as Kind;
        let fault = match error.kind() {
            Kind::ConnectionRefused => Fault::Refused,
            Kind::ConnectionReset | Kind::BrokenPipe | Kind::ConnectionAborted => Fault::Reset,
            Kind::UnexpectedEof => Fault::ClosedBeforeAnswer,
            Kind::TimedOut => Fault::Timeout,
            Kind::InvalidData | Kind::InvalidInput => Fault::Protocol,
            _ => Fault::Lab,
        };
        Self::new(fault, format!("{place}: {error}"))
    }
}

/// What one upstream, known by the name in its answers, did.
#[derive(Clone, Copy, Debug)]
pub struct Upstream {
    /// How many good answers it gave.
    pub answers: u64,
    /// When its first one came.
    pub first: Instant,
    /// When its last one came.
    pub last: Instant,
}

/// What came of a load, up to now or to its end.
#[derive(Clone, Debug)]
pub struct Report {
    /// When the load started.
    pub started: Instant,
    /// How long it has been going on.
    pub elapsed: Duration,
    /// Requests sent; those neither good nor failed are under way.
    pub sent: u64,
    /// Good answers.
    pub good: u64,
    /// Connections tried.
    pub connections: u64,
    /// Requests sent late: the generator or the machine was held up.
    pub late: u64,
    /// The latest one's delay.
    pub latest: Duration,
    /// Requests that were due, but not sent before the stop.
    pub unsent: u64,
    /// HTTP/2: requests sent once more because the server said that it had not processed them (RFC 9113, 6.8 and 8.7).
    pub retried: u64,
    /// Every failed request.
    pub failures: Vec<Failure>,
    /// By the name in the answers.
    pub upstreams: BTreeMap<String, Upstream>,
    /// Microseconds that good answers took, sorted.
    latencies: Vec<u32>,
    /// When the requests of good answers were sent, in microseconds after the start, and how long their answers took.
    answers: Vec<(u64, u32)>,
}

impl Report {
    /// The latency that this share (0–1) of good answers didn't exceed.
    pub fn latency(&self, share: f64) -> Duration {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank in a list")]
        let rank = (self.latencies.len() as f64 * share) as usize;
        let micros = self.latencies.get(rank.min(self.latencies.len().saturating_sub(1)));
        Duration::from_micros(micros.copied().unwrap_or_default().into())
    }

    /// When each request with a good answer was sent, after the start, and how long its answer took.
    pub fn answers(&self) -> impl Iterator<Item = (Duration, Duration)> {
        self.answers.iter().map(|(at, took)| (Duration::from_micros(*at), Duration::from_micros((*took).into())))
    }

    /// Good answers a second.
    pub fn rate(&self) -> f64 {
        self.good as f64 / self.elapsed.as_secs_f64()
    }

    /// Whether at least nine tenths of `rate` good answers a second came: less shows nothing of that rate.
    pub fn kept_pace(&self, rate: u32) -> bool {
        self.rate() > f64::from(rate) * 0.9
    }

    /// Asserts that nothing was lost.
    ///
    /// # Panics
    /// With the whole report, when a request failed.
    #[track_caller]
    pub fn assert_nothing_lost(&self) {
        assert!(self.failures.is_empty(), "requests were lost:\n{self}");
    }

    /// Asserts that the load was as heavy as meant.
    ///
    /// # Panics
    /// With the whole report, when it wasn't.
    #[track_caller]
    pub fn assert_pace(&self, rate: u32) {
        assert!(self.kept_pace(rate), "the load was too light to show anything of {rate} requests a second:\n{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| self.latency(share));
        writeln!(
            f,
            "{} failed of {} requests over {} connections in {:.1?} ({:.0} good ones a second); \
             p50 {p50:.1?}, p99 {p99:.1?}, max {max:.1?}",
            self.failures.len(),
            self.sent,
            self.connections,
            self.elapsed,
            self.rate()
        )?;
        if self.late + self.unsent + self.retried > 0 {
            let (late, latest, unsent, retried) = (self.late, self.latest, self.unsent, self.retried);
            writeln!(f, "  {late} late (up to {latest:.0?}), {unsent} due but not sent, {retried} retried")?;
        }
        for (name, upstream) in &self.upstreams {
            let [first, last] = [upstream.first, upstream.last].map(|time| time - self.started);
            writeln!(f, "  {name}: {} answers, first {first:.3?}, last {last:.3?}", upstream.answers)?;
        }
        let mut faults: BTreeMap<Fault, Vec<&Failure>> = BTreeMap::new();
        for failure in &self.failures {
            faults.entry(failure.fault).or_default().push(failure);
        }
        for (fault, failures) in faults {
            writeln!(f, "  {fault:?}: {}", failures.len())?;
            // Ten of a kind show what it is; a refused port can mean thousands.
            for Failure { at, detail, .. } in failures.into_iter().take(10) {
                writeln!(f, "    {at:.3?} {detail}")?;
            }
        }
        Ok(())
    }
}

/// The report in the making.
pub(super) struct Tally(Report);

impl Tally {
    pub(super) fn new(started: Instant) -> Self {
        Self(Report {
            started,
            elapsed: Duration::ZERO,
            sent: 0,
            good: 0,
            connections: 0,
            late: 0,
            latest: Duration::ZERO,
            unsent: 0,
            retried: 0,
            failures: Vec::new(),
            upstreams: BTreeMap::new(),
            latencies: Vec::new(),
            answers: Vec::new(),
        })
    }

    pub(super) fn sent(&mut self, late: Option<Duration>) {
        self.0.sent += 1;
        if let Some(late) = late {
            self.0.late += 1;
            self.0.latest = self.0.latest.max(late);
        }
    }

    pub(super) fn connected(&mut self) {
        self.0.connections += 1;
    }

    pub(super) fn unsent(&mut self, count: u64) {
        self.0.unsent += count;
    }

    pub(super) fn retried(&mut self) {
        self.0.retried += 1;
    }

    pub(super) fn done(&mut self, start: Instant, outcome: Result<String, Failure>) {
        let now = Instant::now();
        match outcome {
            Err(failure) => self.0.failures.push(Failure { at: now - self.0.started, ..failure }),
            Ok(name) => {
                self.0.good += 1;
                let took = u32::try_from((now - start).as_micros()).unwrap_or(u32::MAX);
                let at = u64::try_from((start - self.0.started).as_micros()).unwrap_or(u64::MAX);
                self.0.answers.push((at, took));
                let fresh = Upstream { answers: 0, first: now, last: now };
                let upstream = self.0.upstreams.entry(name).or_insert(fresh);
                upstream.answers += 1;
                upstream.last = now;
            }
        }
    }

    pub(super) fn report(&self) -> Report {
        let mut report = self.0.clone();
        report.elapsed = report.started.elapsed();
        report.latencies = report.answers.iter().map(|answer| answer.1).collect();
        report.latencies.sort_unstable();
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_each_outcome_once() {
        let mut tally = Tally::new(Instant::now());
        tally.sent(None);
        tally.done(Instant::now(), Ok("a".to_owned()));
        tally.sent(Some(Duration::from_millis(30)));
        tally.done(Instant::now(), Err(Failure::new(Fault::Reset, "reading".to_owned())));
        let report = tally.report();
        assert_eq!((report.sent, report.good, report.failures.len(), report.late), (2, 1, 1, 1));
        assert_eq!(report.upstreams["a"].answers, 1);
        assert!(report.to_string().contains("Reset: 1"), "{report}");
    }

    #[test]
    fn latencies_are_ranks() {
        let mut report = Tally::new(Instant::now()).report();
        assert_eq!(report.latency(0.5), Duration::ZERO);
        report.latencies = (1..=100).collect();
        assert_eq!(report.latency(0.5), Duration::from_micros(51));
        assert_eq!(report.latency(1.0), Duration::from_micros(100));
    }
}
