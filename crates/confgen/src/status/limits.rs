//! Finds limits of the whole HAProxy process that were changed over the Runtime API. Pure: no I/O, no clock.
//!
//! These limits belong to the operator, who may need them in an emergency. confgen reports them and leaves them as they are.

use std::collections::BTreeMap;
use std::fmt;

use haproxy::runtime::Limits;

use crate::status::Status;

/// A limit of the whole process that isn't as its file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedLimit {
    /// The keyword in `global`.
    pub keyword: &'static str,
    /// The command that sets the limit, without the value.
    command: &'static str,
    pub now: u64,
    /// The value by the files. 0 is no limit.
    pub written: u64,
}

impl ChangedLimit {
    /// The command of the Runtime API that brings the written value back.
    pub fn remedy(&self) -> String {
        format!("{} global {}", self.command, self.written)
    }
}

impl fmt::Display for ChangedLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { keyword, now, written, .. } = self;
        write!(
            f,
            "HAProxy's {keyword} is {now}, and {written} by its files: it was changed over the Runtime API; `{}` undoes that",
            self.remedy()
        )
    }
}

/// Compares the limits with those of the files. `rates` are the `global` lines of the operator's files. A value of `None` is known to
/// HAProxy only.
pub fn find_changed_limits(limits: &Limits, rates: &BTreeMap<&'static str, Option<u64>>) -> Vec<ChangedLimit> {
    let all = [
        ("maxconn", "set maxconn", limits.connections),
        ("maxconnrate", "set rate-limit connections", limits.connection_rate),
        ("maxsessrate", "set rate-limit sessions", limits.session_rate),
        ("maxsslrate", "set rate-limit ssl-sessions", limits.tls_rate),
        // The file and the command count kilobytes.
        ("maxcomprate", "set rate-limit http-compression", limits.compression_rate / 1024),
    ];
    let mut changed = Vec::new();
    for (keyword, command, now) in all {
        let of_files = rates.get(keyword).copied().unwrap_or(Some(0));
        let written = if keyword == "maxconn" { Some(limits.first_connections) } else { of_files };
        let limit = written.map(|written| ChangedLimit { keyword, command, now, written });
        changed.extend(limit.filter(|limit| limit.now != limit.written));
    }
    changed
}

impl Status {
    /// The limits of the whole process that were changed over the Runtime API. None before the operator's files are known.
    pub fn changed_limits(&self) -> Vec<ChangedLimit> {
        let known = self.limits.filter(|_| self.has_reconciled && self.running.is_some());
        known.map(|limits| find_changed_limits(&limits, &self.reconcile.operator_files.rate_limits)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_differs_from_the_files_is_reported_with_its_remedy() {
        let fine = Limits { connections: 500, first_connections: 500, connection_rate: 5, ..Limits::default() };
        let rates = BTreeMap::from([("maxconnrate", Some(5)), ("maxsslrate", None)]);
        assert_eq!(find_changed_limits(&fine, &rates), []);
        let changed = Limits { connections: 20, connection_rate: 0, tls_rate: 3, compression_rate: 8192, ..fine };
        let found: Vec<String> = find_changed_limits(&changed, &rates).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "HAProxy's maxconn is 20, and 500 by its files: it was changed over the Runtime API; `set maxconn global 500` undoes \
                 that",
                "HAProxy's maxconnrate is 0, and 5 by its files: it was changed over the Runtime API; `set rate-limit connections \
                 global 5` undoes that",
                "HAProxy's maxcomprate is 8, and 0 by its files: it was changed over the Runtime API; `set rate-limit \
                 http-compression global 0` undoes that"
            ]
        );
    }
}
