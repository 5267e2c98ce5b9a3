//! `/api/v1/problems`: what isn't right at one balancer, in the order of harm.

use serde::{Deserialize, Serialize};

use crate::Cause;

/// The answer to `/api/v1/problems`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Problems {
    /// The error if HAProxy doesn't answer; None if it does. With an error no upstream's verdict is known.
    pub haproxy_error: Option<String>,
    /// The revision that HAProxy follows, except for pending services; None before the first one.
    pub applied: Option<i64>,
    /// The problems, those with the most harm first.
    pub problems: Vec<Problem>,
}

/// One problem, or one entry for more than four like ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Problem {
    /// `outage` if requests fail, `blocked` if changes don't reach HAProxy, `degraded` if some upstreams serve and others fail,
    /// `risk` if nothing fails yet.
    pub harm: String,
    /// The fact, in words.
    pub what: String,
    /// The cause, in words.
    pub reason: String,
    /// The command that helps, or that shows more; None if no command does.
    pub command: Option<String>,
    /// The service that it is about: `http-shop`. None if it is about the balancer, or about several services.
    pub service: Option<String>,
    /// A stable name of the kind, for programs: `no_requests`.
    pub kind: String,
    /// The cause why upstreams get no requests. None if the problem is about something else.
    pub cause: Option<Cause>,
    /// The number of like problems in this entry. They have the harm, the kind and the cause in common. `what` names the first
    /// ones, and `reason` is all theirs or an example.
    pub count: usize,
    /// All services that it is about, sorted.
    pub services: Vec<String>,
}
