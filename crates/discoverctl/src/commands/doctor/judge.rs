//! The decision what is wrong, from the facts. Pure: no I/O, no clock.

mod balancers;
mod known;
mod problems;
mod records;
mod store;

use serde::Serialize;

use super::facts::Facts;

pub(super) use balancers::is_behind;

/// Renewals come a month before the end (Let's Encrypt). So a certificate that ends within 30 days has missed one.
pub(super) const EXPIRES_SOON_DAYS: i64 = 30;

/// The weight of a finding. The worst comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Severity {
    /// Something doesn't work now.
    Error,
    /// Something may stop working, or works for a part of the clients.
    Warning,
}

/// The area of a finding, in the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Area {
    Store,
    Rights,
    Balancers,
    Api,
    Clocks,
    Certificates,
    Ports,
    Loopback,
    Versions,
    Services,
    Keys,
}

/// A fault: what it is, why it matters, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Finding {
    severity: Severity,
    area: Area,
    /// The key, the balancer or the endpoint.
    subject: String,
    what: String,
    why: String,
    todo: String,
}

impl Finding {
    /// The finding in lines of its own for people.
    pub(super) fn describe(&self) -> Vec<String> {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let mut lines = vec![format!("{severity}: {}: {}", self.subject, self.what)];
        if !self.why.is_empty() {
            lines.push(format!("  why: {}", self.why));
        }
        lines.push(format!("  do:  {}", self.todo));
        lines
    }
}

/// The findings of one area.
struct Findings {
    area: Area,
    list: Vec<Finding>,
}

impl Findings {
    fn of(area: Area) -> Self {
        Self { area, list: Vec::new() }
    }

    fn error(&mut self, subject: &str, what: impl Into<String>, why: &str, todo: impl Into<String>) {
        self.add(Severity::Error, subject, what.into(), why, todo.into());
    }

    fn warn(&mut self, subject: &str, what: impl Into<String>, why: &str, todo: impl Into<String>) {
        self.add(Severity::Warning, subject, what.into(), why, todo.into());
    }

    fn add(&mut self, severity: Severity, subject: &str, what: String, why: &str, todo: String) {
        let (subject, why) = (subject.to_owned(), why.to_owned());
        self.list.push(Finding { severity, area: self.area, subject, what, why, todo });
    }
}

/// Finds everything that is wrong, the worst first.
pub(super) fn find_faults(facts: &Facts) -> Vec<Finding> {
    let all = [
        store::judge_members(facts),
        store::judge_prefix(facts),
        store::judge_rights(facts),
        balancers::judge_balancers(facts),
        problems::judge_problems(facts),
        balancers::judge_api(facts),
        balancers::judge_clocks(facts),
        balancers::judge_versions(facts),
        records::judge_loopback(facts),
        known::judge_lint(facts),
    ];
    let mut findings: Vec<Finding> = all.into_iter().flatten().collect();
    findings.sort();
    findings.dedup();
    findings
}

#[cfg(test)]
mod tests;
