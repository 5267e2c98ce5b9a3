//! `/api/v1/upstreams`: upstreams as one balancer serves them, and HAProxy's counters.

use serde::{Deserialize, Serialize};

use crate::verdict::Verdict;

/// The answer to `/api/v1/upstreams`: all of them, or those of `?service=http-shop`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Upstreams {
    /// The error if HAProxy doesn't answer; None if it does. With an error no upstream has `haproxy`, and `balanced` is None.
    pub haproxy_error: Option<String>,
    /// The revision that HAProxy follows, except for pending services; None before the first one.
    pub applied: Option<i64>,
    /// The upstreams, by service and then by id.
    pub upstreams: Vec<Upstream>,
}

/// One upstream at one balancer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Upstream {
    /// The section of its service in haproxy.cfg: `http-shop`.
    pub service: String,
    /// Its id, which is also its server's name.
    pub id: String,
    /// Its IP address and port; None if neither its record nor a last good one can be read.
    pub address: Option<String>,
    /// The host that its record names; None without one.
    pub host: Option<String>,
    /// The wanted weight, 0 to 256; None if the upstream isn't served.
    pub weight: Option<u16>,
    /// The wanted state: `ready`, `drain` (sticky clients only) or `maint` (no new request). None if it isn't served.
    pub state: Option<String>,
    /// The reasons for the wanted state, in words. Empty if its announcer's plain record alone decides.
    pub why: Vec<String>,
    /// HAProxy uses it only if no other upstream is up.
    pub backup: bool,
    /// The color of its record; None without one.
    pub color: Option<String>,
    /// The state and weight of its record; None without a good record.
    pub announced: Option<Announced>,
    /// The state and weight of its override; None without a good override.
    pub imposed: Option<Imposed>,
    /// The upstream is retained: it is served although its key is gone.
    pub held: bool,
    /// `guard` if the removal guard retains it, `reset` after a store reset; None if it has its key.
    pub held_by: Option<String>,
    /// The time since when it is retained, RFC 3339; None if it has its key, or if confgen doesn't know.
    pub held_since: Option<String>,
    /// A change of its service waits for a restart.
    pub pending: bool,
    /// Its open sessions while it drains, in old HAProxy processes too; None if it isn't draining.
    pub draining: Option<u64>,
    /// Its line in haproxy.cfg; None if it isn't served.
    pub line: Option<String>,
    /// The verdict: it gets new requests, or the reasons why not. None only from a confgen of before this field.
    pub verdict: Option<Verdict>,
    /// The verdict's `gets_requests`, which older programs read.
    pub balanced: Option<bool>,
    /// The words of the verdict's `because`, if the upstream gets no requests.
    pub not_balanced: Option<String>,
    /// Its server's counters; None if HAProxy doesn't answer or has no such server.
    pub haproxy: Option<Traffic>,
    /// The upstream in the section for previews of its color; None if its color has no preview.
    pub preview: Option<Preview>,
}

/// An upstream in the section for previews of its color.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Preview {
    /// The name of that section: `http-shop:preview-green`.
    pub section: String,
    /// The wanted state there: `ready`, `drain` or `maint`.
    pub state: String,
    /// The wanted weight there, 0 to 256.
    pub weight: u16,
    /// Its line in that section.
    pub line: String,
    /// Its server's counters there; None if HAProxy doesn't answer or has no such server.
    pub haproxy: Option<Traffic>,
}

/// The state and weight of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Announced {
    /// `ready`, `drain` or `down`, as the announcer wrote it.
    pub state: String,
    /// The record's weight, 0 to 256.
    pub weight: u16,
}

/// The state and weight of an override.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Imposed {
    /// `drain` or `maint`; None if the override sets no state.
    pub state: Option<String>,
    /// 0 to 256; None if the override sets no weight.
    pub weight: Option<u16>,
}

/// HAProxy's counters of one backend or server since its process started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Traffic {
    /// HAProxy's own word: `UP`, `DOWN`, `DRAIN`, `MAINT`, `no check` and more.
    pub status: String,
    /// HAProxy's checks pass, or there are none.
    pub up: bool,
    /// The weight in use, which slowstart may have lowered.
    pub weight: u64,
    /// The last check's outcome: `L4OK`, `L7STS` and more. None without a check.
    pub check: Option<String>,
    /// The last check's outcome in words; None if HAProxy has none.
    pub check_words: Option<String>,
    /// The time that the last check took, in seconds; None without a check.
    pub check_seconds: Option<f64>,
    /// The time since the last change of `status`, in seconds.
    pub since_seconds: u64,
    /// The time that it was down in all, in seconds.
    pub downtime_seconds: u64,
    /// The sessions that are open now.
    pub sessions: u64,
    /// The most sessions that were open at once.
    pub sessions_max: u64,
    /// The number of all sessions so far.
    pub sessions_total: u64,
    /// The requests that wait for a free connection.
    pub queue: u64,
    /// New sessions in the last second.
    pub rate: u64,
    /// The most new sessions in one second.
    pub rate_max: u64,
    /// The number of HTTP requests; None in TCP mode.
    pub requests_total: Option<u64>,
    /// The number of answers by the first digit of their status, 1xx to 5xx; None in TCP mode.
    pub responses_total: Option<[u64; 5]>,
    /// The number of bytes from clients.
    pub bytes_in_total: u64,
    /// The number of bytes to clients.
    pub bytes_out_total: u64,
    /// The connections to the server that failed.
    pub connection_errors_total: u64,
    /// The answers that broke off or were invalid.
    pub response_errors_total: u64,
    /// The connections that HAProxy tried again.
    pub retries_total: u64,
    /// The requests that HAProxy sent to another server after a failure.
    pub redispatches_total: u64,
    /// The average time to connect, in seconds, over the last 1,024 requests. A reused connection counts as 0.
    pub connect_seconds_average: Option<f64>,
    /// The average time from the request's end to the answer's first byte, in seconds; None in TCP mode.
    pub response_seconds_average: Option<f64>,
    /// The average time from the first byte to the last, in seconds, over the last 1,024 requests, or connections in TCP mode.
    pub total_seconds_average: Option<f64>,
}
