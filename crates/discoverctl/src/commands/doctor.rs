//! `doctor`: everything that may keep the installation from working, each with its remedy.
//!
//! `gather` asks etcd and the balancers, and decides nothing. `judge` and `checked` are pure.

mod checked;
mod facts;
mod gather;
mod judge;

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;

use crate::context::Context;
use crate::error::{Error, Outcome};
use crate::print::{Block, Printable};
use judge::Finding;

pub(crate) const EXAMPLES: &str = "Examples:
  discoverctl doctor
  discoverctl doctor --output json | jq -r '.findings[] | .severity + \" \" + .subject'

It checks the store, this user's rights in it, the balancers and their API, clocks, certificates, ports, addresses on loopback,
releases, and everything that `lint` checks. It changes nothing.

Exit code 0 if nothing is wrong, and 1 if anything is found. A balancer that can't be asked is a finding. Then the answer says what
could not be checked. Exit code 3 if etcd can't be reached or refuses the login, and 4 if its roles forbid to read the store.";

#[derive(Debug, Args)]
pub(crate) struct Doctor {}

/// The answer of `doctor`.
#[derive(Debug, Serialize)]
struct Report {
    /// The revision at which the store was read; null if it can't be read.
    revision: Option<i64>,
    /// The worst first.
    findings: Vec<Finding>,
    /// Each area with what was checked in it.
    checked: Vec<String>,
    /// Each area that couldn't be checked, or not for all balancers, with the reason.
    unknown: BTreeMap<String, String>,
}

impl Doctor {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let (facts, unreadable) = gather::gather_facts(context).await?;
        let report = Report {
            revision: facts.store.as_ref().map(|store| store.revision),
            findings: judge::find_faults(&facts),
            checked: checked::list_checked(&facts),
            unknown: checked::list_unknown(&facts),
        };
        context.screen.show(&report)?;
        match unreadable {
            // The report above shows the known findings. The error decides the exit code.
            Some(error) => Err(error),
            None if report.findings.is_empty() => Ok(Outcome::Yes),
            None => Ok(Outcome::No),
        }
    }
}

impl Printable for Report {
    fn to_blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        for finding in &self.findings {
            blocks.extend(Block::from_lines(finding.describe().into_iter()));
        }
        let unknown = self.unknown.iter().map(|(area, reason)| format!("not checked: {area}: {reason}"));
        blocks.extend(Block::from_lines(unknown));
        if self.findings.is_empty() {
            blocks.push(Block::Text("nothing is wrong".into()));
        }
        blocks.extend(Block::from_lines(self.checked.iter().map(|what| format!("checked: {what}"))));
        blocks
    }
}
