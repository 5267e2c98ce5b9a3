//! Finds what isn't right, in the order of harm, with the reason and the command that helps. Pure: the caller gives the time.
//!
//! The API and the console show the same list. It decides nothing anew: the verdicts are `verdict.rs`'s, and `tally.rs` counts
//! them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use discovery::{Cause, Key, ServiceId, balancer_api};

use crate::desired::DesiredService;
use crate::local_files::expiry::{DAY, SOON};
use crate::status::figures::{Counted, Figures};
use crate::status::tally::{Idle, Mood, Tally, tally_services};
use crate::status::{Retainer, Status};

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

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub harm: Harm,
    pub what: String,
    pub reason: String,
    /// The command that helps, or that shows more. `None` if no command does.
    pub command: Option<String>,
    /// The service that it is about. `None` if it is about the balancer.
    pub service: Option<ServiceId>,
}

/// The time after which a process that handover cut off is no news any more.
const CUT_OFF_NEWS: Duration = Duration::from_secs(24 * 60 * 60);

/// The most names that one problem lists.
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
    found
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
    let Problem { harm, what, reason, command, service } = problem;
    let service = service.map(|id| id.to_string());
    balancer_api::Problem { harm: harm.name().to_owned(), what, reason, command, service }
}

struct Finder<'a> {
    status: &'a Status,
    found: Vec<Problem>,
}

impl Finder<'_> {
    fn add(&mut self, harm: Harm, what: impl Into<String>, reason: impl Into<String>, command: Option<&str>) {
        let command = command.map(str::to_owned);
        self.found.push(Problem { harm, what: what.into(), reason: reason.into(), command, service: None });
    }

    fn add_of_service(&mut self, harm: Harm, id: &ServiceId, what: String, reason: String, command: Option<String>) {
        self.found.push(Problem { harm, what, reason, command, service: Some(id.clone()) });
    }

    /// Checks what concerns all services: HAProxy, the store, and the last actions.
    fn check_balancer(&mut self, error: Option<&str>) {
        let status = self.status;
        // Each of these explains the next one, so only the first is told.
        if status.running.is_none() && status.has_reconciled {
            let reason = error.unwrap_or("nothing answers on its Runtime API");
            self.add(Harm::Outage, "HAProxy doesn't answer", reason, Some("supervisorctl status haproxy"));
        } else if let Err(words) = status.check_in_sync() {
            let command = if status.reconcile.operator_files.refused.is_some() { None } else { Some(JOURNAL) };
            self.add(Harm::Blocked, "HAProxy doesn't run what the store asks for", words, command);
        } else if let Some(error) = error {
            self.add(Harm::Blocked, "HAProxy gives no figures, so no verdict is known", error, Some(JOURNAL));
        }
        if let Some(error) = &status.store_error {
            let what = "the store is away, and HAProxy keeps what it has";
            self.add(Harm::Blocked, what, error, Some("etcdctl endpoint health --cluster"));
        }
        for limit in status.changed_limits() {
            let what = format!("HAProxy's {} was changed over the Runtime API", limit.keyword);
            self.add(Harm::Degraded, what, limit.to_string(), Some(&limit.remedy()));
        }
    }

    fn check_service(&mut self, tally: &Tally) {
        let (id, desired) = (tally.id, &self.status.reconcile.desired);
        let explain = || Some(format!("discoverctl explain {}", id.name));
        if let Some(words) = desired.rejection(id) {
            let what = format!("HAProxy refuses {id}, and its last accepted form counts");
            self.add_of_service(Harm::Blocked, id, what, words.to_owned(), explain());
        }
        // Without HAProxy's figures no verdict is known, and `check_balancer` says so.
        if tally.unknown > 0 {
            return;
        }
        let is_reachable = desired.service(id).is_some_and(|wanted| has_claims(wanted) || id.is_default());
        if tally.serving > 0 {
            for idle in tally.idle.iter().filter(|idle| idle.mood == Mood::Failing && !is_of_balancer(&idle.cause)) {
                let what = format!("{id}: {} of {} upstreams fail", idle.count, tally.total);
                self.add_of_service(Harm::Degraded, id, what, idle.words.clone(), Some(explain_upstream(id, idle)));
            }
            return;
        }
        match tally.first_idle() {
            None if is_reachable => {
                let reason = "no upstream has a record".to_owned();
                self.add_of_service(Harm::Outage, id, format!("{id} has no upstream"), reason, explain());
            }
            // A service without hosts, ports and upstreams harms no client.
            None => {}
            Some(idle) if is_reachable => {
                let what = match tally.total {
                    1 => format!("{id}: its only upstream gets no requests"),
                    total => format!("{id}: none of {total} upstreams gets requests"),
                };
                let command = if idle.mood == Mood::Failing { Some(explain_upstream(id, idle)) } else { explain() };
                self.add_of_service(Harm::Outage, id, what, idle.words.clone(), command);
            }
            Some(idle) => {
                let what = format!("no request leads to {id}");
                self.add_of_service(Harm::Degraded, id, what, idle.words.clone(), explain());
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
        self.add(Harm::Blocked, what, reason, Some("supervisorctl restart haproxy"));
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
            if left < 0 {
                self.add(Harm::Outage, format!("the certificate of {names} has expired"), reason, None);
            } else {
                let when = count((left / DAY).unsigned_abs() as usize, "day", "days");
                self.add(Harm::Risk, format!("the certificate of {names} expires in {when}"), reason, None);
            }
        }
        // The last good content of such a file may serve on.
        for (file, reason) in &all.rejected {
            self.add(Harm::Risk, format!("the certificate file {} is refused", file.display()), reason, None);
        }
        let pages = self.status.reconcile.refused_error_pages;
        if pages > 0 {
            let what = format!("{} refused", count(pages, "error page is", "error pages are"));
            self.add(Harm::Risk, what, "the log names each with its reason", Some(JOURNAL));
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
            let problem = Problem {
                harm: Harm::Risk,
                what,
                reason: format!("{key}: {reason}"),
                command: Some("discoverctl lint".to_owned()),
                service,
            };
            self.found.push(problem);
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
                self.add(Harm::Risk, what, reason, Some("discoverctl accept-store"));
            }
        }
        for remark in &self.status.reconcile.operator_files.remarks {
            self.add(Harm::Risk, "a remark on the operator's files", remark, None);
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
            self.add(Harm::Risk, what, reason, Some("ps -C haproxy -o pid,etime,args"));
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
            self.add(Harm::Risk, what, reason, None);
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
