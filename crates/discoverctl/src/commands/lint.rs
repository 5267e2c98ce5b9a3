//! `lint`: quarantined keys and other faults, each with its remedy.

mod answers;
mod balancers;
mod certificates;
mod copies;
mod keys;
mod services;

use std::collections::BTreeMap;
use std::time::SystemTime;

use clap::Args;
use discovery::{Cause, Entry, Node, ServiceId};
use serde::Serialize;

use crate::balancer_api::{
    Answers, BalancerApi, Certificates, Quarantine, Service, Services, Status, Upstream, Upstreams,
};
use crate::commands::certs::EXPIRES_SOON_DAYS;
use crate::context::Context;
use crate::error::{Error, Outcome};
use crate::print::{Block, Cell, Printable, Table};
use crate::store::Store;
use crate::upstreams::{Row, build_rows, describe_unreachable, list_unreachable};
use crate::verdict::Keys;

pub(crate) const EXAMPLES: &str = "Examples:
  discoverctl lint
  discoverctl lint --output json | jq -r '.findings[].key'

A finding mentions clients only if a balancer says so. Exit code 1 if anything is found. A balancer whose API can't be reached is
named, and is no finding. Each balancer also writes the keys that it quarantines below balancers/.";

#[derive(Debug, Args)]
pub(crate) struct Lint {}

#[derive(Debug, Serialize)]
struct LintReport {
    revision: i64,
    findings: Vec<Finding>,
    /// The balancers without an answer, with the reason.
    unreachable: BTreeMap<String, String>,
}

/// A fault and its remedy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Finding {
    /// The key or the folder, relative to the prefix.
    pub(super) key: String,
    /// A stable name of the kind, for programs.
    pub(super) kind: &'static str,
    /// The fault, as a sentence for people.
    pub(super) what: String,
    /// The remedy, as a sentence for people.
    pub(super) todo: String,
    /// The cause that `explain` names; null if the fault isn't about requests.
    pub(super) cause: Option<Cause>,
}

/// The input of all checks: the store, and the balancers' answers with their indexes.
struct LintInput<'a> {
    store: &'a Store,
    status: &'a Answers<Status>,
    services: &'a Answers<Services>,
    quarantine: &'a Answers<Quarantine>,
    certificates: &'a Answers<Certificates>,
    now: SystemTime,
    /// A certificate is a finding if it ends within this many days.
    expires_soon_days: i64,
    upstreams: &'a Answers<Upstreams>,
    /// By service, its upstreams as the balancers judge them.
    rows: BTreeMap<ServiceId, Vec<Row>>,
    /// By service, its state at each balancer that answers.
    served: BTreeMap<&'a str, BTreeMap<&'a Node, &'a Service>>,
    /// By service and upstream, the balancers that retain it without a key.
    retained: BTreeMap<(&'a str, &'a str), BTreeMap<&'a Node, &'a Upstream>>,
}

/// The balancers' answers, and the time at which they came.
#[derive(Debug)]
pub(super) struct BalancerAnswers {
    pub(super) status: Answers<Status>,
    pub(super) services: Answers<Services>,
    pub(super) quarantine: Answers<Quarantine>,
    pub(super) upstreams: Answers<Upstreams>,
    pub(super) certificates: Answers<Certificates>,
    pub(super) now: SystemTime,
}

impl BalancerAnswers {
    /// Asks all balancers for everything that the checks need, at once.
    pub(super) async fn ask(api: &BalancerApi) -> Self {
        let (status, services, quarantine, upstreams, certificates) = tokio::join!(
            api.ask_all("status"),
            api.ask_all("services"),
            api.ask_all("quarantine"),
            api.ask_all("upstreams"),
            api.ask_all("certificates")
        );
        Self { status, services, quarantine, upstreams, certificates, now: SystemTime::now() }
    }
}

/// Finds all faults of the store and of the answers, sorted by key. `doctor` has them too. A certificate is a fault if it ends
/// within `expires_soon_days`.
pub(super) fn find_faults(store: &Store, answers: &BalancerAnswers, expires_soon_days: i64) -> Vec<Finding> {
    LintInput { expires_soon_days, ..LintInput::new(store, answers) }.find_all()
}

impl Lint {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let api = context.balancer_api(&store)?;
        let answers = BalancerAnswers::ask(&api).await;
        let findings = find_faults(&store, &answers, EXPIRES_SOON_DAYS);
        let linted = LintReport { revision: store.revision, findings, unreachable: list_unreachable(&answers.status) };
        context.screen.show(&linted)?;
        // An unreachable balancer is listed, and decides nothing.
        Ok(if linted.findings.is_empty() { Outcome::Yes } else { Outcome::No })
    }
}

impl<'a> LintInput<'a> {
    fn new(store: &'a Store, answers: &'a BalancerAnswers) -> Self {
        let BalancerAnswers { status, services, quarantine, upstreams, certificates, now } = answers;
        let mut by_service: BTreeMap<ServiceId, Vec<Row>> = BTreeMap::new();
        for ((id, _), row) in build_rows(Keys::from(store), upstreams, None) {
            by_service.entry(id).or_default().push(row);
        }
        let mut served: BTreeMap<&str, BTreeMap<&Node, &Service>> = BTreeMap::new();
        for (node, answer) in list_answers(services) {
            for service in &answer.services {
                served.entry(&service.id).or_default().insert(node, service);
            }
        }
        let mut retained: BTreeMap<(&str, &str), BTreeMap<&Node, &Upstream>> = BTreeMap::new();
        for (node, answer) in list_answers(upstreams) {
            for it in answer.upstreams.iter().filter(|it| it.held) {
                retained.entry((&it.service, &it.id)).or_default().insert(node, it);
            }
        }
        Self {
            store,
            status,
            services,
            quarantine,
            certificates,
            now: *now,
            expires_soon_days: EXPIRES_SOON_DAYS,
            upstreams,
            rows: by_service,
            served,
            retained,
        }
    }

    /// Finds all faults, sorted by key.
    fn find_all(&self) -> Vec<Finding> {
        let mut findings = keys::lint_keys(self);
        findings.extend(services::lint_services(self));
        findings.extend(copies::lint_copies(self));
        findings.extend(answers::lint_answers(self));
        // These need the store's findings: a value that can't be read is refused by every balancer.
        findings.extend(balancers::lint_balancers(self, &findings));
        findings.extend(certificates::lint_certificates(self.certificates, self.now, self.expires_soon_days));
        findings.sort();
        findings.dedup();
        findings
    }
}

/// Lists the answers that are no errors.
fn list_answers<T>(answers: &Answers<T>) -> impl Iterator<Item = (&Node, &T)> {
    answers.iter().filter_map(|(node, it)| Some((node, it.as_ref().ok()?)))
}

impl Finding {
    fn new(key: impl Into<String>, kind: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { key: key.into(), kind, what: what.into(), todo: todo.into(), cause: None }
    }

    fn with_cause(self, cause: Cause) -> Self {
        Self { cause: Some(cause), ..self }
    }

    fn at_entry(entry: &Entry, kind: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self::new(entry.key.clone(), kind, what, todo)
    }
}

impl Printable for LintReport {
    fn to_blocks(&self) -> Vec<Block> {
        let mut table = Table::new(["KEY", "KIND", "WHAT", "TO DO"]);
        for Finding { key, kind, what, todo, .. } in &self.findings {
            table.add_row([key.as_str().into(), (*kind).into(), Cell::odd(what), todo.as_str().into()]);
        }
        let mut blocks = vec![Block::Table(table)];
        if self.findings.is_empty() {
            blocks.push(Block::Text(format!("nothing odd at revision {}", self.revision)));
        }
        blocks.extend(Block::from_lines(describe_unreachable(&self.unreachable)));
        blocks
    }
}

#[cfg(test)]
mod tests;
