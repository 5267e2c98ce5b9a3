//! Keeps the traffic of the last fifteen minutes, service by service, for the console's plots. Pure: no I/O, no clock.
//!
//! A sample has 8 bytes, and a service 60 samples. The caller takes the figures from a reading that it makes anyway.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use discovery::ServiceId;
use haproxy::runtime::Turns;
use tokio::sync::watch;

use crate::desired::names::{PREVIEW, parse_section};

/// The time between two samples. A reading comes each second, or more seldom if HAProxy has more than 500 backends.
const SAMPLE_EVERY: Duration = Duration::from_secs(15);

/// The samples of a service: a quarter of an hour.
pub const SAMPLES: usize = 60;

/// A figure in two bytes: the upper half of an `f32`, which is exact to 0.4 %. A plot shows no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Figure(u16);

impl Figure {
    /// There is no figure.
    const NONE: Self = Self(u16::MAX);

    fn new(value: Option<f32>) -> Self {
        let finite = value.filter(|value| value.is_finite() && *value >= 0.0);
        // Half of the lowest kept bit rounds to the nearest value.
        finite.map_or(Self::NONE, |value| Self((value.to_bits().saturating_add(1 << 15) >> 16) as u16))
    }

    fn value(self) -> Option<f32> {
        (self != Self::NONE).then(|| f32::from_bits(u32::from(self.0) << 16))
    }
}

/// One sample of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    sessions: Figure,
    requests: Figure,
    errors: Figure,
    latency: Figure,
}

/// The counters of a service at its last sample, which begin at 0 with each HAProxy process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counters {
    requests: u64,
    errors: Option<u64>,
}

/// The samples of one service, the oldest first. A service that is new has fewer than there are times.
#[derive(Debug)]
struct Ring {
    points: VecDeque<Point>,
    counters: Counters,
}

/// The samples of all services.
#[derive(Debug, Default)]
pub struct Series {
    /// The times of the samples, the oldest first.
    times: VecDeque<Instant>,
    /// The worker that gave the last sample.
    pid: Option<u32>,
    rings: BTreeMap<ServiceId, Ring>,
}

/// One service's samples, the oldest first. A `None` is a gap. The age of each sample is in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trend {
    pub ages: Vec<f32>,
    pub sessions: Vec<Option<f32>>,
    /// Requests in a second, or connections of a TCP service.
    pub requests: Vec<Option<f32>>,
    /// Answers with 5xx in a second. Only gaps for a TCP service.
    pub errors: Vec<Option<f32>>,
    /// In ms: of an HTTP service until the answer's first byte, of a TCP service until the last byte.
    pub latency: Vec<Option<f32>>,
}

/// A service's last sample, by which services are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latest {
    pub requests: Option<f32>,
    pub errors: Option<f32>,
    pub latency: Option<f32>,
}

impl Series {
    /// True if a sample is due.
    fn is_due(&self, now: Instant) -> bool {
        self.times.back().is_none_or(|last| now.saturating_duration_since(*last) >= SAMPLE_EVERY)
    }

    /// Takes in the figures of all backends. Services that HAProxy has no longer are forgotten.
    fn add_sample<'a>(&mut self, now: Instant, pid: u32, rows: impl Iterator<Item = Turns<'a>>) {
        let is_same_process = self.pid.replace(pid) == Some(pid);
        let since = self.times.back().map(|last| now.saturating_duration_since(*last));
        // The oldest sample leaves before the newest comes, so that no ring grows beyond its room.
        if self.times.len() == SAMPLES {
            self.times.pop_front();
        }
        self.times.push_back(now);
        let mut before = std::mem::take(&mut self.rings);
        for row in rows.filter(|row| !row.proxy.contains(PREVIEW)) {
            let Some(id) = parse_section(row.proxy) else { continue };
            let counters = Counters { requests: row.requests.unwrap_or(row.sessions_total), errors: row.errors };
            let known = before.remove(&id);
            // Another process counts from 0, and so do all after `clear counters`. The time between has no rate.
            let last = known.as_ref().map(|ring| ring.counters);
            let last = last.filter(|last| is_same_process && last.requests <= counters.requests);
            let span = since.filter(|span| !span.is_zero());
            let mut points = known.map(|ring| ring.points).unwrap_or_default();
            if points.len() == SAMPLES {
                points.pop_front();
            }
            points.push_back(make_point(&row, counters, last.zip(span)));
            self.rings.insert(id, Ring { points, counters });
        }
    }

    /// One service's last sample.
    pub fn latest(&self, id: &ServiceId) -> Latest {
        let last = self.rings.get(id).and_then(|ring| ring.points.back());
        last.map_or_else(Latest::default, |point| Latest {
            requests: point.requests.value(),
            errors: point.errors.value(),
            latency: point.latency.value(),
        })
    }

    /// One service's samples as of `now`. Empty for an unknown service.
    pub fn trend(&self, id: &ServiceId, now: Instant) -> Trend {
        let Some(ring) = self.rings.get(id) else { return Trend::default() };
        let times = self.times.iter().skip(self.times.len().saturating_sub(ring.points.len()));
        let of = |figure: fn(&Point) -> Figure| ring.points.iter().map(|point| figure(point).value()).collect();
        Trend {
            ages: times.map(|at| now.saturating_duration_since(*at).as_secs_f32()).collect(),
            sessions: of(|point| point.sessions),
            requests: of(|point| point.requests),
            errors: of(|point| point.errors),
            latency: of(|point| point.latency),
        }
    }
}

fn make_point(row: &Turns, counters: Counters, last: Option<(Counters, Duration)>) -> Point {
    let rate = |now: Option<u64>, before: fn(&Counters) -> Option<u64>| {
        let (last, span) = last.as_ref()?;
        Some(now?.checked_sub(before(last)?)? as f32 / span.as_secs_f32())
    };
    let requests = rate(Some(counters.requests), |last| Some(last.requests));
    let is_http = row.requests.is_some();
    let latency = if is_http { row.response_ms } else { row.total_ms };
    Point {
        sessions: Figure::new(Some(row.sessions as f32)),
        requests: Figure::new(requests),
        errors: Figure::new(rate(counters.errors, |last| last.errors)),
        // HAProxy keeps the average of the last requests while there are none.
        latency: Figure::new(requests.filter(|rate| *rate > 0.0).map(|_| latency as f32)),
    }
}

/// The samples, and the news that HAProxy's figures changed. Clones share them.
#[derive(Clone, Debug)]
pub struct SharedSeries(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    series: Mutex<Series>,
    /// False without an admin port, on which alone samples are shown.
    is_shown: AtomicBool,
    /// A hash of what HAProxy says of its backends. It changes with each sample, too.
    changes: watch::Sender<u64>,
}

impl Default for SharedSeries {
    fn default() -> Self {
        let (series, is_shown) = (Mutex::default(), AtomicBool::default());
        Self(Arc::new(Shared { series, is_shown, changes: watch::Sender::default() }))
    }
}

impl SharedSeries {
    /// Keeps samples from now on.
    pub fn keep_samples(&self) {
        self.0.is_shown.store(true, Ordering::Relaxed);
    }

    /// Takes a reading of all backends in: as a sample if one is due, and as news if a server came or went while a client waits for
    /// news. Does nothing before `keep_samples`.
    pub fn observe_backends(&self, now: Instant, pid: u32, rows: &[Turns]) {
        // Without an admin port nothing shows them, and 1,000 services have half a megabyte.
        if !self.0.is_shown.load(Ordering::Relaxed) {
            return;
        }
        let is_due = {
            let mut series = self.lock();
            let is_due = series.is_due(now);
            if is_due {
                series.add_sample(now, pid, rows.iter().copied());
            }
            is_due
        };
        // Without listeners a reading costs no hash.
        if self.0.changes.receiver_count() > 0 {
            let mut hasher = DefaultHasher::new();
            pid.hash(&mut hasher);
            for row in rows {
                (row.proxy_id, row.weight, row.active, row.backup).hash(&mut hasher);
            }
            let hash = hasher.finish();
            self.0.changes.send_if_modified(|last| std::mem::replace(last, hash) != hash || is_due);
        }
    }

    /// The samples, until the guard is dropped. The next reading of HAProxy's figures waits for it.
    pub fn lock(&self) -> MutexGuard<'_, Series> {
        // A panic of another thread leaves the samples whole.
        self.0.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gets a message if servers come or go, and with each sample.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(requests: u64, errors: u64) -> Turns<'static> {
        Turns {
            proxy: "http-shop",
            sessions: 3,
            requests: Some(requests),
            errors: Some(errors),
            response_ms: 24,
            ..Turns::default()
        }
    }

    fn shop() -> ServiceId {
        parse_section("http-shop").unwrap()
    }

    #[test]
    fn a_figure_is_kept_to_half_a_percent() {
        assert_eq!(Figure::new(None).value(), None);
        assert_eq!(Figure::new(Some(f32::NAN)).value(), None);
        assert_eq!(Figure::new(Some(f32::INFINITY)).value(), None);
        for value in [0.0, 0.07, 1.0, 24.0, 300.0, 12_345.0, 4e9] {
            let kept = Figure::new(Some(value)).value().unwrap();
            assert!((kept - value).abs() <= value * 0.004, "{value}: {kept}");
        }
        assert!(Figure::new(Some(f32::MAX)).value().is_none_or(|value| value > 1e38));
        assert_eq!(size_of::<Point>(), 8);
    }

    #[test]
    fn a_rate_needs_two_samples_of_one_process() {
        let (mut series, start) = (Series::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut sample = |seconds, pid, row: Turns<'static>| series.add_sample(at(seconds), pid, std::iter::once(row));
        sample(0, 7, row(1_000, 5));
        sample(15, 7, row(1_150, 8));
        // A gap: HAProxy didn't answer for a while.
        sample(75, 7, row(1_210, 8));
        // A restart, and then `clear counters`.
        sample(90, 8, row(30, 0));
        sample(105, 8, row(60, 0));
        sample(120, 8, row(0, 0));
        sample(135, 8, row(0, 0));
        let trend = series.trend(&shop(), at(135));
        assert_eq!(trend.ages, [135.0, 120.0, 60.0, 45.0, 30.0, 15.0, 0.0]);
        assert_eq!(trend.requests, [None, Some(10.0), Some(1.0), None, Some(2.0), None, Some(0.0)]);
        assert_eq!(trend.errors, [None, Some(0.200_195_31), Some(0.0), None, Some(0.0), None, Some(0.0)]);
        assert_eq!(trend.latency, [None, Some(24.0), Some(24.0), None, Some(24.0), None, None]);
        assert!(trend.sessions.iter().all(|sessions| *sessions == Some(3.0)));
    }

    #[test]
    fn a_service_has_sixty_samples_and_only_while_haproxy_has_it() {
        let (mut series, start) = (Series::default(), Instant::now());
        let tcp = Turns { proxy: "tcp-db", sessions_total: 7, total_ms: 9, ..Turns::default() };
        let preview = Turns { proxy: "http-shop:preview-blue", ..Turns::default() };
        let foreign = Turns { proxy: "mine", ..Turns::default() };
        for round in 0..100_u64 {
            let tcp = Turns { sessions_total: 7 + 30 * round, ..tcp };
            let rows = [row(round, 0), preview, foreign].into_iter().chain((round >= 90).then_some(tcp));
            series.add_sample(start + SAMPLE_EVERY * round as u32, 7, rows);
        }
        let now = start + SAMPLE_EVERY * 99;
        assert_eq!(series.rings.len(), 2);
        let trend = series.trend(&shop(), now);
        assert_eq!((trend.ages.len(), trend.requests.len()), (SAMPLES, SAMPLES));
        assert_eq!(trend.ages.first(), Some(&885.0));
        let db = series.trend(&parse_section("tcp-db").unwrap(), now);
        assert_eq!((db.ages.len(), db.ages.first()), (10, Some(&135.0)));
        assert_eq!((db.requests[0], db.requests[1], db.latency[1], db.errors[1]), (None, Some(2.0), Some(9.0), None));
        series.add_sample(now, 7, std::iter::once(tcp));
        assert_eq!(series.trend(&shop(), now), Trend::default());
        assert!(Series::default().trend(&shop(), now).ages.is_empty());
    }

    #[test]
    fn a_sample_is_due_every_fifteen_seconds_and_news_come_only_if_a_client_waits() {
        let (shared, start) = (SharedSeries::default(), Instant::now());
        shared.observe_backends(start, 7, &[row(0, 0)]);
        assert_eq!(shared.lock().times.len(), 0, "no admin port shows them");
        shared.keep_samples();
        shared.observe_backends(start, 7, &[row(0, 0)]);
        shared.observe_backends(start + Duration::from_secs(1), 7, &[row(1, 0)]);
        assert_eq!(shared.lock().times.len(), 1);
        let mut news = shared.subscribe();
        shared.observe_backends(start + Duration::from_secs(2), 7, &[row(2, 0)]);
        assert!(news.has_changed().unwrap(), "the first reading that a client waits for is news");
        news.mark_unchanged();
        shared.observe_backends(start + Duration::from_secs(3), 7, &[row(3, 0)]);
        assert!(!news.has_changed().unwrap(), "more requests are no news");
        shared.observe_backends(start + Duration::from_secs(4), 7, &[Turns { active: 1, ..row(4, 0) }]);
        assert!(news.has_changed().unwrap(), "a server came");
        news.mark_unchanged();
        shared.observe_backends(start + Duration::from_secs(20), 7, &[Turns { active: 1, ..row(4, 0) }]);
        assert!(news.has_changed().unwrap() && shared.lock().times.len() == 2, "a sample");
    }
}
