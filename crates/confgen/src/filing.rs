//! The file that follows HAProxy: rendered, checked by HAProxy itself, and put in place by a rename. Blocks.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use discovery::ServiceId;
use haproxy::check::{Checker, Verdict};

use crate::args::Options;
use crate::bisect::culprits;
use crate::certs::first_alert;
use crate::disk::Disk;
use crate::outside::Outside;
use crate::render::{Rendered, render};
use crate::settle::Settled;
use crate::structure::Structure;
use crate::view::{Site, View};

/// How writing the file went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filed {
    /// It was what it should be.
    Same,
    /// It was replaced.
    Written,
    /// HAProxy refuses the generated file, in its own words. The old one stays.
    Refused(String),
    /// HAProxy refuses these services, for these reasons; the file would be fine without them.
    Culprits(BTreeMap<ServiceId, String>),
    /// HAProxy refuses the operator's own files, in its own words. Nothing of the store is to blame.
    OperatorRefused(String),
}

impl fmt::Display for Filed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same => f.write_str("haproxy.cfg is as it should be"),
            Self::Written => f.write_str("haproxy.cfg written"),
            Self::Refused(output) => {
                write!(f, "HAProxy refuses the generated file, the old one stays: {}", output.trim())
            }
            Self::Culprits(culprits) => {
                let names: Vec<String> = culprits.keys().map(ToString::to_string).collect();
                write!(f, "HAProxy refuses {}; going on without", names.join(", "))
            }
            Self::OperatorRefused(output) => {
                write!(f, "HAProxy refuses the operator's own files, mend them first: {}", output.trim())
            }
        }
    }
}

/// Enough to single out half a dozen services of a thousand; a check takes some 50 ms.
const JUDGEMENTS: usize = 120;

/// A file to be written, with all that it is written from: later changes don't touch it.
#[derive(Clone)]
pub struct Filing {
    pub(crate) site: Site,
    pub(crate) outside: Arc<Outside>,
    pub(crate) settled: Settled,
    pub(crate) structure: Structure,
    pub(crate) options: Options,
    pub(crate) disk: Disk,
    pub(crate) checker: Checker,
}

impl Filing {
    /// The bytes.
    pub fn render(&self) -> anyhow::Result<Rendered> {
        let view = View::of(&self.settled, &self.site, &self.outside.operator);
        render(&view, &self.structure, &self.options.state_dir).context("render haproxy.cfg")
    }

    /// haproxy.cfg as it stands.
    pub fn on_disk(&self) -> anyhow::Result<Option<String>> {
        Ok(self.disk.cfg()?)
    }

    /// What is refused, and why.
    pub fn quarantined(&self) -> BTreeMap<String, String> {
        self.settled.quarantined()
    }

    /// Remembers, has HAProxy check the staged file, and commits it.
    pub fn write(&self) -> anyhow::Result<Filed> {
        let rendered = self.render()?;
        // First, so that no claim in a file is forgotten whenever this is cut short.
        self.disk.remember(&self.settled.memory())?;
        if self.disk.cfg()?.as_deref() == Some(&rendered.cfg) {
            self.disk.maps(&rendered)?;
            return Ok(Filed::Same);
        }
        self.check_and_commit(&rendered)
    }

    fn check_and_commit(&self, rendered: &Rendered) -> anyhow::Result<Filed> {
        let staged = self.disk.stage(rendered)?;
        let include = self.options.include.clone();
        match self.checker.check(&[include.clone(), staged.path().to_owned()])? {
            Verdict::Valid { warnings } => {
                warnings.iter().for_each(|line| tracing::warn!("haproxy -c: {line}"));
                self.disk.commit(staged)?;
                Ok(Filed::Written)
            }
            Verdict::Refused { output } if self.operator_is_refused(include)? => Ok(Filed::OperatorRefused(output)),
            Verdict::Refused { output } => {
                drop(staged);
                let culprits = self.culprits()?;
                Ok(if culprits.is_empty() { Filed::Refused(output) } else { Filed::Culprits(culprits) })
            }
        }
    }

    /// The services without which HAProxy would take the file; none where it refuses even the empty one.
    fn culprits(&self) -> anyhow::Result<BTreeMap<ServiceId, String>> {
        let mut judge = |services: &[ServiceId]| -> anyhow::Result<Option<String>> {
            let some = Self { settled: self.settled.only(services), ..self.clone() };
            let view = View::of(&some.settled, &some.site, &some.outside.operator);
            let structure = Structure::of(&view, &some.outside.contents)?;
            let staged = self.disk.stage(&render(&view, &structure, &self.options.state_dir)?)?;
            Ok(match self.checker.check(&[self.options.include.clone(), staged.path().to_owned()])? {
                Verdict::Valid { .. } => None,
                Verdict::Refused { output } => Some(first_alert(&output)),
            })
        };
        if judge(&[])?.is_some() {
            return Ok(BTreeMap::new());
        }
        let services: Vec<ServiceId> = self.settled.services().map(|(id, _)| id.clone()).collect();
        Ok(culprits(&services, JUDGEMENTS, &mut judge)?.into_iter().collect())
    }

    /// Whether the operator's files fail on their own. A directory without any is fine, but HAProxy refuses to check
    /// nothing at all: they are given the least that is something.
    fn operator_is_refused(&self, include: PathBuf) -> anyhow::Result<bool> {
        if fs::read_dir(&include).is_ok_and(|mut entries| entries.next().is_none()) {
            return Ok(false);
        }
        let mut least = tempfile::Builder::new().prefix(".least.").tempfile_in(&self.options.state_dir)?;
        let text = "defaults\n    mode http\n    timeout client 1s\nfrontend confgen-check\n    bind 127.0.0.1:1\n";
        std::io::Write::write_all(&mut least, text.as_bytes())?;
        let verdict = self.checker.check(&[include, least.path().to_owned()])?;
        Ok(matches!(verdict, Verdict::Refused { .. }))
    }
}
