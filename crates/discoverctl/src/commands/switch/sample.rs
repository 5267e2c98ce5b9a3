//! The new color's requests since a step began, over all balancers. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use crate::balancer_api::{Answers, ServiceInFull, Traffic, Upstream};

/// Fewer requests than this don't justify a judgement: one failure of 19 would be 5 %.
const MIN_REQUESTS: u64 = 20;

/// A share of requests as --max-errors has it: `1%`, `0.5`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(crate) struct Percent(f64);

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.trim().trim_end_matches('%').parse::<f64>().ok();
        let number = number.filter(|number| (0.0..=100.0).contains(number));
        number.map(Self).ok_or_else(|| format!("{text:?} is no share of requests, as 1% is"))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // At most two digits behind the point, without trailing zeros.
        let text = format!("{:.2}", self.0);
        write!(f, "{}%", text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// The limits of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Limits {
    /// The largest share of failed requests.
    pub(crate) errors: Option<Percent>,
    /// The longest average response time.
    pub(crate) latency: Option<Duration>,
}

impl Limits {
    pub(crate) fn is_any(self) -> bool {
        self.errors.is_some() || self.latency.is_some()
    }
}

/// One server's counters in one HAProxy process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    requests: u64,
    failed: u64,
}

/// The counts of all servers since a step began.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct StepCounts {
    last: BTreeMap<(String, String), Counters>,
    counted: BTreeMap<(String, String), Counters>,
    /// The average response time of each server in seconds, by balancer and upstream.
    seconds: BTreeMap<(String, String), f64>,
}

/// The counts of one step, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct StepSum {
    /// Requests to the new color, failed connections included.
    pub(crate) requests: u64,
    /// The requests that were answered 5xx, not answered, or never sent.
    pub(crate) failed: u64,
    /// The average response time in seconds, weighed by requests; null if no balancer says.
    pub(crate) response_seconds_average: Option<f64>,
}

impl StepCounts {
    /// Adds the balancers' counters of these upstreams. The first counters of a server are only where its counting
    /// begins.
    pub(crate) fn add_answers(&mut self, answers: &Answers<ServiceInFull>, is_one: impl Fn(&Upstream) -> bool) {
        for (node, answer) in answers {
            let Ok(service) = answer else { continue };
            for upstream in service.upstreams.iter().filter(|upstream| is_one(upstream)) {
                let Some(traffic) = &upstream.haproxy else { continue };
                let server = (node.to_string(), upstream.id.clone());
                let now = Counters::from_traffic(traffic);
                if let Some(last) = self.last.insert(server.clone(), now) {
                    self.counted.entry(server.clone()).or_default().add(now.since(last));
                }
                match traffic.response_seconds_average {
                    Some(seconds) => self.seconds.insert(server, seconds),
                    None => self.seconds.remove(&server),
                };
            }
        }
    }

    /// Begins the counts of the next step.
    pub(crate) fn reset_counts(&mut self) {
        self.counted.clear();
    }

    /// Adds up the counts of all servers.
    pub(crate) fn sum_up(&self) -> StepSum {
        let mut sum = StepSum::default();
        let (mut seconds, mut weight) = (0.0, 0.0);
        for (server, counted) in &self.counted {
            sum.requests += counted.requests;
            sum.failed += counted.failed;
            // Each average is over the server's last 1,024 requests. It is weighed by the server's share of this step.
            if let Some(average) = self.seconds.get(server) {
                let requests = counted.requests as f64;
                seconds += average * requests;
                weight += requests;
            }
        }
        sum.response_seconds_average = (weight > 0.0).then(|| seconds / weight);
        sum
    }
}

impl Counters {
    fn from_traffic(traffic: &Traffic) -> Self {
        let broken = traffic.connection_errors_total + traffic.response_errors_total;
        match traffic.responses_total {
            // 1xx answers are left out, because another answer follows each of them.
            Some(answers) => {
                let [_, ok, moved, refused, failed] = answers;
                Self { requests: ok + moved + refused + failed + broken, failed: failed + broken }
            }
            None => {
                let errors = traffic.connection_errors_total;
                Self { requests: traffic.sessions_total.max(errors), failed: errors }
            }
        }
    }

    /// The increase since `last`. Each HAProxy process begins at 0, so a lower count comes from a new process.
    fn since(self, last: Self) -> Self {
        if self.requests < last.requests || self.failed < last.failed {
            return self;
        }
        Self { requests: self.requests - last.requests, failed: self.failed - last.failed }
    }

    fn add(&mut self, more: Self) {
        self.requests += more.requests;
        self.failed += more.failed;
    }
}

impl StepSum {
    /// The share of failed requests; None below [`MIN_REQUESTS`].
    pub(crate) fn error_share(&self) -> Option<Percent> {
        (self.requests >= MIN_REQUESTS).then(|| Percent(self.failed as f64 * 100.0 / self.requests as f64))
    }

    /// Checks the counts against the limits.
    ///
    /// # Errors
    /// The limit that is exceeded, in words.
    pub(crate) fn check_limits(&self, limits: Limits) -> Result<(), String> {
        // With few requests a later sample decides, or the step passes.
        let Some(share) = self.error_share() else { return Ok(()) };
        if let Some(most) = limits.errors.filter(|most| share > *most) {
            let Self { requests, failed, .. } = self;
            return Err(format!("{failed} of {requests} requests failed, {share} and not {most} at most"));
        }
        let average = self.response_seconds_average.map(Duration::from_secs_f64);
        match (average, limits.latency) {
            (Some(average), Some(most)) if average > most => {
                Err(format!("it takes {} on average and not {} at most", format_millis(average), format_millis(most)))
            }
            _ => Ok(()),
        }
    }
}

/// Writes `1,000 requests, 3 failed (0.3%), 12 ms on average`.
impl fmt::Display for StepSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, failed, response_seconds_average } = self;
        match self.error_share() {
            Some(share) => write!(f, "{requests} requests, {failed} failed ({share})")?,
            None => write!(f, "{requests} requests, {failed} failed: too few to judge")?,
        }
        match response_seconds_average {
            Some(seconds) => write!(f, ", {} on average", format_millis(Duration::from_secs_f64(*seconds))),
            None => Ok(()),
        }
    }
}

fn format_millis(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(nodes: &[(&str, &str)]) -> Answers<ServiceInFull> {
        let one = |(node, json): &(&str, &str)| {
            let service = serde_json::from_str::<ServiceInFull>(json).map_err(|error| error.to_string());
            (node.parse().unwrap(), service)
        };
        nodes.iter().map(one).collect()
    }

    fn traffic(ok: u64, failed: u64, broken: u64, seconds: &str) -> String {
        format!(
            r#"{{"upstreams":[{{"id":"g","haproxy":{{"responses_total":[0,{ok},0,0,{failed}],
            "connection_errors_total":{broken},"response_seconds_average":{seconds}}}}},
            {{"id":"b","haproxy":{{"responses_total":[0,9999,0,0,9999]}}}}]}}"#
        )
    }

    fn limits(errors: &str) -> Limits {
        Limits { errors: Some(errors.parse().unwrap()), latency: Some(Duration::from_millis(500)) }
    }

    #[test]
    fn what_was_before_does_not_count_and_a_restart_begins_anew() {
        let mut counts = StepCounts::default();
        let mut take = |one: &str, two: &str| {
            counts.add_answers(&answers(&[("lb1", one), ("lb2", two)]), |it| it.id == "g");
            let sum = counts.sum_up();
            (sum.requests, sum.failed)
        };
        assert_eq!(take(&traffic(1000, 100, 0, "null"), "away"), (0, 0));
        assert_eq!(take(&traffic(1010, 101, 1, "null"), "away"), (12, 2));
        assert_eq!(take(&traffic(5, 0, 0, "null"), &traffic(70, 7, 0, "null")), (17, 2), "restarted; lb2 is new");
        assert_eq!(take(&traffic(6, 0, 0, "null"), &traffic(71, 8, 0, "null")), (20, 3));
        counts.reset_counts();
        assert_eq!(counts.sum_up(), StepSum::default());
    }

    #[test]
    fn too_many_errors_and_too_slow_answers_are_said() {
        let sum = |requests, failed, seconds| StepSum { requests, failed, response_seconds_average: seconds };
        assert_eq!(sum(19, 19, None).check_limits(limits("1%")), Ok(()), "too few");
        assert_eq!(sum(200, 2, None).check_limits(limits("1%")), Ok(()));
        assert_eq!(
            sum(200, 3, None).check_limits(limits("1%")),
            Err("3 of 200 requests failed, 1.5% and not 1% at most".into())
        );
        assert_eq!(
            sum(20, 0, Some(0.6)).check_limits(limits("1")),
            Err("it takes 600 ms on average and not 500 ms at most".into())
        );
        assert_eq!(sum(1000, 3, Some(0.012)).to_string(), "1000 requests, 3 failed (0.3%), 12 ms on average");
        assert_eq!(sum(3, 0, None).to_string(), "3 requests, 0 failed: too few to judge");
        assert!("101%".parse::<Percent>().is_err() && "x".parse::<Percent>().is_err());
    }

    #[test]
    fn the_average_is_weighed_by_requests() {
        let mut counts = StepCounts::default();
        let mut take = |one: (u64, &str), two: (u64, &str)| {
            let [one, two] = [one, two].map(|(ok, seconds)| traffic(ok, 0, 0, seconds));
            counts.add_answers(&answers(&[("lb1", &one), ("lb2", &two)]), |it| it.id == "g");
            counts.sum_up().response_seconds_average
        };
        assert_eq!(take((0, "0.1"), (0, "9.0")), None);
        assert_eq!(take((30, "0.1"), (10, "0.5")), Some(0.2));
    }

    #[test]
    fn a_tcp_service_has_sessions_and_connection_errors() {
        let mut counts = StepCounts::default();
        for (sessions, errors) in [(10, 1), (50, 3)] {
            let json = format!(
                r#"{{"upstreams":[{{"id":"g","haproxy":{{"sessions_total":{sessions},"connection_errors_total":{errors}}}}}]}}"#
            );
            counts.add_answers(&answers(&[("lb1", &json)]), |_| true);
        }
        assert_eq!((counts.sum_up().requests, counts.sum_up().failed), (40, 2));
    }
}
