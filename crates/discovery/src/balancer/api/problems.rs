//! `/api/v1/problems`: what isn't right at one balancer, in the order of harm.

use serde::{Deserialize, Serialize};

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

/// One problem.
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
    /// The service that it is about: `http-shop`. None if it is about the balancer.
    pub service: Option<String>,
}
