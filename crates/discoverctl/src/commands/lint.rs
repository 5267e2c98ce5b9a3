//! `lint`: everything that is quarantined or odd, and what to do about it.

mod balancers;
mod certificates;
mod keys;
mod services;

use std::collections::BTreeMap;
use std::time::SystemTime;

use clap::Args;
use discovery::Entry;
use serde::Serialize;

use super::Outcome;
use crate::ctl::Ctl;
use crate::error::Error;
use crate::fleet::{Answers, Certificates, Quarantine, Services, Status};
use crate::print::{Block, Cell, Shown, Table};
use crate::store::Store;
use crate::upstreams::{silent, unreachable};

pub(crate) const EXAMPLES: &str = "Examples:
  discoverctl lint
  discoverctl lint --output json | jq -r '.findings[].key'

Exit code 1 if anything is found. A balancer whose API can't be reached is said, and is no finding: what it quarantines it
also says below balancers/.";

/// Options of `lint`.
#[derive(Debug, Args)]
pub(crate) struct Lint {}

/// What `lint` answers.
#[derive(Debug, Serialize)]
struct Linted {
    /// The store's revision.
    revision: i64,
    /// By key.
    findings: Vec<Finding>,
    /// The balancers that couldn't be asked, and why.
    unreachable: BTreeMap<String, String>,
}

/// Something odd.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Finding {
    /// The key or the folder, relative to the prefix.
    key: String,
    /// Its kind; stays.
    kind: &'static str,
    /// What is odd.
    what: String,
    /// What to do.
    todo: String,
}

/// Everything that is looked at.
struct Scene<'a> {
    store: &'a Store,
    status: &'a Answers<Status>,
    services: &'a Answers<Services>,
    quarantine: &'a Answers<Quarantine>,
    certificates: &'a Answers<Certificates>,
    now: SystemTime,
}

impl Lint {
    /// Does it.
    pub(crate) async fn run(self, ctl: &Ctl) -> Result<Outcome, Error> {
        let store = ctl.store().await?;
        let fleet = ctl.fleet(&store)?;
        let (status, services, quarantine, certificates) = tokio::join!(
            fleet.ask("status"),
            fleet.ask("services"),
            fleet.ask("quarantine"),
            fleet.ask("certificates")
        );
        let scene = Scene {
            store: &store,
            status: &status,
            services: &services,
            quarantine: &quarantine,
            certificates: &certificates,
            now: SystemTime::now(),
        };
        let linted = Linted { revision: store.revision, findings: scene.findings(), unreachable: unreachable(&status) };
        ctl.screen.show(&linted)?;
        Ok(if linted.findings.is_empty() { Outcome::Yes } else { Outcome::No })
    }
}

impl Scene<'_> {
    /// All of it, sorted by key.
    fn findings(&self) -> Vec<Finding> {
        let mut findings = keys::findings(self.store);
        findings.extend(services::findings(self.store));
        findings.extend(balancers::findings(self, &findings));
        findings.extend(certificates::findings(self.certificates, self.now));
        findings.sort();
        findings.dedup();
        findings
    }
}

impl Finding {
    fn new(key: impl Into<String>, kind: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { key: key.into(), kind, what: what.into(), todo: todo.into() }
    }

    fn at(entry: &Entry, kind: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self::new(entry.key.clone(), kind, what, todo)
    }
}

impl Shown for Linted {
    fn blocks(&self) -> Vec<Block> {
        let mut table = Table::new(["KEY", "KIND", "WHAT", "TO DO"]);
        for Finding { key, kind, what, todo } in &self.findings {
            table.row([key.as_str().into(), (*kind).into(), Cell::odd(what), todo.as_str().into()]);
        }
        let mut blocks = vec![Block::Table(table)];
        if self.findings.is_empty() {
            blocks.push(Block::Text(format!("nothing odd at revision {}", self.revision)));
        }
        blocks.extend(Block::lines(silent(&self.unreachable)));
        blocks
    }
}

#[cfg(test)]
mod tests;
