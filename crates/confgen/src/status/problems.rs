//! Finds what isn't right, in the order of harm, with the reason and the command that helps. Pure: the caller gives the time.
//!
//! The API and the console show the same list. It decides nothing anew: the verdicts are `verdict.rs`'s, and `tally.rs` counts
//! them. Like problems of many services are one entry.

mod groups;
mod kind;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use discovery::{Cause, Key, ServiceId, balancer_api};

use crate::desired::DesiredService;
use crate::local_files::expiry::{DAY, SOON};
use crate::status::figures::{Counted, Figures};
use crate::status::tally::{Idle, Mood, Tally, tally_services};
use crate::status::{Retainer, Status};
use groups::group_like_problems;
pub use kind::ProblemKind;

/// The harm of a problem, the greatest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Harm {
    /// Requests fail.
    Outage,
    /// Changes don't reach HAProxy, which serves on as before.
    Blocked,
    /// Some upstreams fail, and others serve.
    Degraded,
    /// Nothing fails yet.
    Risk,
}

impl Harm {
    /// The word in the API, which is also the name of the style.
    pub fn name(self) -> &'static str {
        match self {
            Self::Outage => "outage",
            Self::Blocked => "blocked",
            Self::Degraded => "degraded",
            Self::Risk => "risk",
        }
    }

    /// The words for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Outage => "Requests fail",
            Self::Blocked => "Changes wait",
            Self::Degraded => "Partly failing",
            Self::Risk => "Needs attention",
        }
    }
}

/// One problem, or one entry for many like ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub harm: Harm,
    pub kind: ProblemKind,
    /// The cause of upstreams without requests. `None` if the problem isn't about requests.
    pub cause: Option<Cause>,
    pub what: String,
    pub reason: String,
    /// The command that helps, or that shows more. `None` if no command does.
    pub command: Option<String>,
    /// The services that it is about, sorted. Empty if it is about the balancer.
    pub services: Vec<ServiceId>,
    /// The number of like problems in this entry.
    pub count: usize,
    /// The name in a list of like problems. `None` if there are no like ones.
    subject: Option<String>,
}

impl Problem {
    fn new(harm: Harm, kind: ProblemKind, what: impl Into<String>, reason: impl Into<String>) -> Self {
        let (what, reason) = (what.into(), reason.into());
        Self { harm, kind, cause: None, what, reason, command: None, services: Vec::new(), count: 1, subject: None }
    }

    fn with_command(self, command: impl Into<String>) -> Self {
        Self { command: Some(command.into()), ..self }
    }

    fn of_service(self, id: &ServiceId) -> Self {
        Self { services: vec![id.clone()], subject: Some(id.to_string()), ..self }
    }

    fn with_cause(self, cause: &Cause) -> Self {
        Self { cause: Some(cause.clone()), ..self }
    }

    fn about(self, subject: impl Into<String>) -> Self {
        Self { subject: Some(subject.into()), ..self }
    }

    /// The word that selects its services in the console's list: `no_requests.pending`.
    pub fn filter(&self) -> String {
        match &self.cause {
            Some(cause) => format!("{}.{}", self.kind.name(), cause.name()),
            None => self.kind.name().to_owned(),
        }
    }
}

/// The time after which a process that handover cut off is no news any more.
const CUT_OFF_NEWS: Duration = Duration::from_secs(24 * 60 * 60);

/// The most names that one problem lists. More like problems than this are one entry.
const NAMED: usize = 4;

/// The journal has the reason of most failures in more words.
const JOURNAL: &str = "journalctl -u confgen -n 50";

/// The problems, those with the most harm first. `tallies` are of all services. `error` is the reason why HAProxy can't be asked.
pub fn find_problems(status: &Status, tallies: &[Tally], error: Option<&str>, now: SystemTime) -> Vec<Problem> {
    let mut finder = Finder { status, found: Vec::new() };
    finder.check_balancer(error);
    // The services are sorted by name, and so are their problems of one harm.
    for tally in tallies {
        finder.check_service(tally);
    }
    finder.check_restart();
    finder.check_certificates(now);
    finder.check_store();
    finder.check_processes(now);
    let mut found = finder.found;
    // The sort is stable, so that problems of one harm stay in the order in which they were found.
    found.sort_by_key(|problem| problem.harm);
    group_like_problems(found)
}

/// The answer to `/api/v1/problems`.
pub fn show_problems(status: &Status, counted: &Counted, now: SystemTime) -> balancer_api::Problems {
    let figures = Figures::new(counted);
    let found = find_problems(status, &tally_services(status, &figures), figures.error(), now);
    balancer_api::Problems {
        haproxy_error: counted.as_ref().err().cloned(),
        applied: status.reconcile.applied.map(|applied| applied.revision),
        problems: found.into_iter().map(show_problem).collect(),
    }
}

fn show_problem(problem: Problem) -> balancer_api::Problem {
    let Problem { harm, kind, cause, what, reason, command, services, count, subject: _ } = problem;
    let services: Vec<String> = services.iter().map(ToString::to_string).collect();
    // Readers of older releases know only this one.
    let service = services.first().filter(|_| services.len() == 1).cloned();
    let (harm, kind) = (harm.name().to_owned(), kind.name().to_owned());
    balancer_api::Problem { harm, what, reason, command, service, kind, cause, count, services }
}

struct Finder<'a> {
    status: &'a Status,
    found: Vec<Problem>,
}

impl Finder<'_> {
    fn add(&mut self, problem: Problem) {
        self.found.push(problem);
    }

    /// Checks what concerns all services: HAProxy, the store, and the last actions.
    fn check_balancer(&mut self, error: Option<&str>) {
        let status = self.status;
        // Each of these explains the next one, so only the first is told.
        if status.running.is_none() && status.has_reconciled {
            let reason = error.unwrap_or("nothing answers on its Runtime API");
            let silent = Problem::new(Harm::Outage, ProblemKind::HaproxyDown, "HAProxy doesn't answer", reason);
            self.add(silent.with_command("supervisorctl status haproxy"));
        } else if let Err(words) = status.check_in_sync() {
            let what = "HAProxy doesn't run what the store asks for";
            let problem = Problem::new(Harm::Blocked, ProblemKind::OutOfSync, what, words);
            let is_of_operator = status.reconcile.operator_files.refused.is_some();
            self.add(if is_of_operator { problem } else { problem.with_command(JOURNAL) });
        } else if let Some(error) = error {
            let what = "HAProxy gives no figures, so no verdict is known";
            self.add(Problem::new(Harm::Blocked, ProblemKind::NoFigures, what, error).with_command(JOURNAL));
        }
        if let Some(error) = &status.store_error {
            let what = "the store is away, and HAProxy keeps what it has";
            let problem = Problem::new(Harm::Blocked, ProblemKind::StoreAway, what, error);
            self.add(problem.with_command("etcdctl endpoint health --cluster"));
        }
        for limit in status.changed_limits() {
            let what = format!("HAProxy's {} was changed over the Runtime API", limit.keyword);
            let problem = Problem::new(Harm::Degraded, ProblemKind::LimitChanged, what, limit.to_string());
            self.add(problem.with_command(limit.remedy()));
        }
    }

    fn check_service(&mut self, tally: &Tally) {
        let (id, desired) = (tally.id, &self.status.reconcile.desired);
        let explain = format!("discoverctl explain {}", id.name);
        if let Some(words) = desired.rejection(id) {
            let what = format!("HAProxy refuses {id}, and its last accepted form counts");
            let problem = Problem::new(Harm::Blocked, ProblemKind::ServiceRefused, what, words);
            self.add(problem.of_service(id).with_command(&explain));
        }
        // Without HAProxy's figures no verdict is known, and `check_balancer` says so.
        if tally.unknown > 0 {
            return;
        }
        let is_reachable = desired.service(id).is_some_and(|wanted| has_claims(wanted) || id.is_default());
        if tally.serving > 0 {
            for idle in tally.idle.iter().filter(|idle| idle.mood == Mood::Failing && !is_of_balancer(&idle.cause)) {
                let what = format!("{id}: {} of {} upstreams fail", idle.count, tally.total);
                let problem = Problem::new(Harm::Degraded, ProblemKind::UpstreamsFail, what, &idle.words);
                self.add(problem.of_service(id).with_cause(&idle.cause).with_command(explain_upstream(id, idle)));
            }
            return;
        }
        match tally.first_idle() {
            None if is_reachable => {
                let (what, reason) = (format!("{id} has no upstream"), "no upstream has a record");
                let problem = Problem::new(Harm::Outage, ProblemKind::NoUpstream, what, reason);
                self.add(problem.of_service(id).with_command(explain));
            }
            // A service without hosts, ports and upstreams harms no client.
            None => {}
            Some(idle) if is_reachable => {
                let what = match tally.total {
                    1 => format!("{id}: its only upstream gets no requests"),
                    total => format!("{id}: none of {total} upstreams gets requests"),
                };
                let command = if idle.mood == Mood::Failing { explain_upstream(id, idle) } else { explain };
                let problem = Problem::new(Harm::Outage, ProblemKind::NoRequests, what, &idle.words);
                self.add(problem.of_service(id).with_cause(&idle.cause).with_command(command));
            }
            Some(idle) => {
                let what = format!("no request leads to {id}");
                let problem = Problem::new(Harm::Degraded, ProblemKind::NoRoute, what, &idle.words);
                self.add(problem.of_service(id).with_cause(&idle.cause).with_command(explain));
            }
        }
    }

    fn check_restart(&mut self) {
        let pending = &self.status.reconcile.pending;
        if pending.is_empty() {
            return;
        }
        let names = list_names(pending.iter().map(ToString::to_string));
        let what =
            format!("{} for a restart of HAProxy: {names}", count(pending.len(), "service waits", "services wait"));
        // HAProxy routes a new host, but has no section of a new service before the restart.
        let unrouted = self.status.reconcile.unrouted.len();
        let reason = if unrouted > 0 {
            format!(
                "{unrouted} of them get no request before it; confgen restarts HAProxy once --restart-interval allows it"
            )
        } else {
            "confgen restarts HAProxy once --restart-interval allows it".to_owned()
        };
        let problem = Problem::new(Harm::Blocked, ProblemKind::RestartDue, what, reason);
        // The console links to all of them, so that the names in the sentence may be few.
        let (services, count) = (pending.iter().cloned().collect(), pending.len());
        self.add(Problem { services, count, ..problem.with_command("supervisorctl restart haproxy") });
    }

    fn check_certificates(&mut self, now: SystemTime) {
        let all = &self.status.reconcile.certificates;
        let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
        let serves = all.choice.names_by_certificate();
        for (index, it) in all.files.iter().enumerate() {
            let Some(names) = serves.get(&index).filter(|names| !names.is_empty()) else { continue };
            let Some(left) = it.not_after.map(|end| end - now).filter(|left| *left < SOON) else { continue };
            let names = list_names(names.iter().map(|name| (*name).to_owned()));
            let reason = it.file.display().to_string();
            let problem = if left < 0 {
                let what = format!("the certificate of {names} has expired");
                Problem::new(Harm::Outage, ProblemKind::CertificateExpired, what, reason)
            } else {
                let when = count((left / DAY).unsigned_abs() as usize, "day", "days");
                let what = format!("the certificate of {names} expires in {when}");
                Problem::new(Harm::Risk, ProblemKind::CertificateExpires, what, reason)
            };
            self.add(problem.about(names));
        }
        // The last good content of such a file may serve on.
        for (file, reason) in &all.rejected {
            let file = file.display().to_string();
            let what = format!("the certificate file {file} is refused");
            self.add(Problem::new(Harm::Risk, ProblemKind::CertificateRefused, what, reason).about(file));
        }
        let pages = self.status.reconcile.refused_error_pages;
        if pages > 0 {
            let what = format!("{} refused", count(pages, "error page is", "error pages are"));
            let reason = "the log names each with its reason";
            self.add(Problem::new(Harm::Risk, ProblemKind::ErrorPageRefused, what, reason).with_command(JOURNAL));
        }
    }

    /// Checks what the store says: keys that aren't followed, and upstreams without keys.
    fn check_store(&mut self) {
        let mut by_service: BTreeMap<Option<ServiceId>, Vec<(&String, &String)>> = BTreeMap::new();
        for (key, reason) in &*self.status.reconcile.quarantined {
            let service = key.parse::<Key>().ok().and_then(|key| key.service_id().cloned());
            by_service.entry(service).or_default().push((key, reason));
        }
        for (service, keys) in by_service {
            let of = service.as_ref().map(|id| format!(" of {id}")).unwrap_or_default();
            let verb = if keys.len() == 1 { "is" } else { "are" };
            let what = format!("{}{of} {verb} not followed", count(keys.len(), "key", "keys"));
            let Some((key, reason)) = keys.first() else { continue };
            let problem = Problem::new(Harm::Risk, ProblemKind::Quarantined, what, format!("{key}: {reason}"));
            let problem = problem.with_command("discoverctl lint");
            self.add(match &service {
                Some(id) => problem.of_service(id),
                None => problem,
            });
        }
        for (by, why) in [
            (Retainer::Guard, "they disappeared together while their checks pass"),
            (Retainer::Reset, "the store was reset and lacks their keys"),
        ] {
            let retained = self.status.reconcile.retained.iter().filter(|(_, retained)| retained.by == by);
            let names: Vec<String> = retained.map(|((id, upstream), _)| format!("{id}/{upstream}")).collect();
            if !names.is_empty() {
                let number = count(names.len(), "upstream is", "upstreams are");
                let what = format!("{number} served without a key: {}", list_names(names.into_iter()));
                let reason = format!("{why}; the command drops them, if that is meant");
                let problem = Problem::new(Harm::Risk, ProblemKind::Held, what, reason);
                self.add(problem.with_command("discoverctl accept-store"));
            }
        }
        for remark in &self.status.reconcile.operator_files.remarks {
            let what = "a remark on the operator's files";
            self.add(Problem::new(Harm::Risk, ProblemKind::Remark, what, remark).about("the operator's files"));
        }
    }

    /// Checks HAProxy's other processes.
    fn check_processes(&mut self, now: SystemTime) {
        let silent = self.status.old.silent;
        if silent > 0 {
            let what = format!(
                "{} not answer",
                count(silent, "HAProxy process or master does", "HAProxy processes or masters do")
            );
            let reason = "a drain waits for those that may be old HAProxy processes";
            let problem = Problem::new(Harm::Risk, ProblemKind::HaproxySilent, what, reason);
            self.add(problem.with_command("ps -C haproxy -o pid,etime,args"));
        }
        let cutoffs = &self.status.cutoffs;
        if let Some(last) = cutoffs.last.filter(|last| now.duration_since(*last).is_ok_and(|age| age < CUT_OFF_NEWS)) {
            let (processes, connections) = (cutoffs.processes, cutoffs.connections);
            let what =
                format!("handover has ended {processes} old HAProxy processes early, with {connections} connections");
            let reason = format!(
                "there were too many or they had too much memory, the last at {}",
                super::api::format_time(last)
            );
            self.add(Problem::new(Harm::Risk, ProblemKind::ConnectionsCut, what, reason));
        }
    }
}

/// True if a host, an expression or a port leads to the service.
fn has_claims(wanted: &DesiredService) -> bool {
    !wanted.routes.is_empty() || wanted.url_reg.is_some() || !wanted.binds.is_empty()
}

/// True if the cause is the balancer's, which is a problem of its own.
fn is_of_balancer(cause: &Cause) -> bool {
    matches!(cause, Cause::OutOfSync | Cause::HaproxySilent | Cause::Limited)
}

fn explain_upstream(id: &ServiceId, idle: &Idle) -> String {
    format!("discoverctl explain {}/{}", id.name, idle.first)
}

fn count(number: usize, one: &str, more: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { more })
}

/// The first names, and the number of the others.
fn list_names(mut names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let mut first: Vec<String> = names.by_ref().take(NAMED).collect();
    first.extend((more > 0).then(|| format!("{more} more")));
    first.join(", ")
}

#[cfg(test)]
mod tests;
