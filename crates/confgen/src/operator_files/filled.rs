//! The files that are filled (`--fill`): what is to stand in them, and what of that HAProxy has to be restarted for. Pure.

mod pattern;
mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use discovery::{ServiceId, UpstreamId};
use serde::{Deserialize, Serialize};

use crate::desired::fingerprint::digest;
use crate::desired::{DesiredService, DesiredState};
use crate::operator_files::filled::template::{Named, Run, Template};

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilledFile {
    /// As HAProxy reads it.
    pub path: PathBuf,
    /// Where the links lead: what is replaced.
    pub real: PathBuf,
    /// As it stands.
    pub bytes: Vec<u8>,
    template: Template,
    /// As confgen wrote it last, if this process did.
    last: Option<Vec<u8>>,
    /// What HAProxy has against it as it would be filled: it is left as it stands.
    left: Option<String>,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilledFiles(Vec<FilledFile>);

/// What one run says, for a HAProxy that runs it or lacks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filled {
    /// The service's section.
    pub service: String,
    /// The lines' fingerprint.
    pub print: String,
}

/// A file that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingEdit {
    /// As HAProxy reads it.
    pub path: PathBuf,
    /// What is replaced.
    pub real: PathBuf,
    /// As it was read.
    pub was: Vec<u8>,
    /// As it is to be.
    pub will: Vec<u8>,
    /// Whether `was` is what confgen itself wrote.
    pub is_ours: bool,
    /// The lines of the comments below which people have been at work.
    pub by_hand: Vec<usize>,
}

/// Which sections of the operator's send to a service's upstreams, besides its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere(Vec<Run>);

/// What a run's name stands for.
enum Found<'a> {
    One(ServiceId, &'a DesiredService),
    Nobody,
    Both,
}

fn found<'a>(settled: &'a DesiredState, run: &Run) -> Found<'a> {
    let candidates = run.service.candidates().into_iter();
    let mut services = candidates.filter_map(|id| settled.service(&id).map(|wanted| (id, &**wanted)));
    match (services.next(), services.next()) {
        (Some(_), Some(_)) => Found::Both,
        (Some((id, wanted)), None) => Found::One(id, wanted),
        (None, _) => Found::Nobody,
    }
}

impl FilledFile {
    /// A file as it was read; `before` is the same one, as it was known.
    pub fn new(path: PathBuf, real: PathBuf, bytes: Vec<u8>, before: Option<&Self>) -> Self {
        let template = Template::parse(&bytes);
        // What HAProxy refused it may take now, if anything that people wrote is another.
        let left = before.filter(|it| it.skeleton() == template.skeleton()).and_then(|it| it.left.clone());
        Self { path, real, bytes, template, last: before.and_then(|it| it.last.clone()), left }
    }

    /// What people wrote of it.
    pub fn skeleton(&self) -> Vec<u8> {
        self.template.skeleton()
    }

    fn lines(&self, run: &Run, settled: &DesiredState) -> Vec<u8> {
        match found(settled, run) {
            _ if self.left.is_some() => run.standing.clone(),
            Found::One(_, wanted) => run.filled(&wanted.servers),
            Found::Nobody => run.filled(&[]),
            // To guess would send one service's clients to the other.
            Found::Both => run.standing.clone(),
        }
    }

    fn due(&self, settled: &DesiredState) -> Option<PendingEdit> {
        let will = self.template.with(|run| self.lines(run, settled));
        let is_ours = self.last.as_ref() == Some(&self.bytes);
        let (path, real, was) = (self.path.clone(), self.real.clone(), self.bytes.clone());
        (will != was).then(|| PendingEdit { path, real, was, will, is_ours, by_hand: self.by_hand() })
    }

    /// The runs that are not as confgen wrote them last.
    fn by_hand(&self) -> Vec<usize> {
        let last = self.last.as_deref().map(Template::parse).unwrap_or_default();
        if last.skeleton() != self.skeleton() {
            return Vec::new();
        }
        let both = self.template.runs().zip(last.runs());
        both.filter(|(run, last)| run.standing != last.standing).map(|(run, _)| run.line).collect()
    }

    fn remarks(&self, settled: &DesiredState) -> Vec<String> {
        let path = self.path.display();
        let mut remarks = Vec::new();
        if self.template.runs().next().is_none() {
            remarks
                .push(format!("{path}: no comment like `# discover SERVICE: server <id> <address>`: nothing to fill"));
        }
        for run in self.template.runs() {
            let at = |words: String| format!("{path}:{}: {words}", run.line);
            remarks.extend(run.wrong().map(|wrong| at(format!("{wrong}; the lines below are left as they are"))));
            match (&run.service, found(settled, run)) {
                (Named::Odd(_), _) | (_, Found::One(..)) => {}
                (Named::Bare(name), Found::Nobody) => remarks.push(at(format!("there is no service {name}"))),
                (Named::Whole(id), Found::Nobody) => {
                    remarks.push(at(format!("there is no service {}", id.folder().trim_end_matches('/'))));
                }
                (_, Found::Both) => {
                    let names: Vec<String> = run.service.candidates().iter().map(ServiceId::folder).collect();
                    let names = names.join(" or ").replace("/ ", " ");
                    let names = names.trim_end_matches('/');
                    remarks.push(at(format!("say which: {names}; the lines below are left as they are")));
                }
            }
        }
        remarks
    }
}

impl FilledFiles {
    /// These files.
    pub fn new(files: Vec<FilledFile>) -> Self {
        Self(files)
    }

    /// The file that HAProxy reads there.
    pub fn get(&self, path: &Path) -> Option<&FilledFile> {
        self.0.iter().find(|fill| fill.path == path)
    }

    /// What is to be written.
    pub fn due(&self, settled: &DesiredState) -> Vec<PendingEdit> {
        self.0.iter().filter_map(|fill| fill.due(settled)).collect()
    }

    /// What the runs say, by file and place; an empty one says nothing.
    pub fn prints(&self, settled: &DesiredState) -> BTreeMap<String, Filled> {
        let mut prints = BTreeMap::new();
        for fill in &self.0 {
            for (number, run) in fill.template.runs().enumerate() {
                let lines = fill.lines(run, settled);
                let first = || run.service.candidates().into_iter().next();
                let service = if let Found::One(id, _) = found(settled, run) { Some(id) } else { first() };
                if !lines.is_empty() {
                    let service = service.map(|id| id.to_string()).unwrap_or_default();
                    let filled = Filled { service, print: digest([lines.as_slice()]) };
                    prints.insert(format!("{}#{number}", fill.path.display()), filled);
                }
            }
        }
        prints
    }

    /// Whether one of these services is asked for.
    pub fn concern<'a>(&self, mut services: impl Iterator<Item = &'a ServiceId>) -> bool {
        let asked: BTreeSet<ServiceId> =
            self.0.iter().flat_map(|fill| fill.template.runs()).flat_map(|run| run.service.candidates()).collect();
        services.any(|id| asked.contains(id))
    }

    /// Files that are left as they stand, and what HAProxy has against them as they would be filled.
    pub fn left(&self) -> Vec<String> {
        let left = self.0.iter().filter_map(|fill| Some((fill.path.display(), fill.left.as_ref()?)));
        left.map(|(path, words)| format!("{path} can't be filled: {words}")).collect()
    }

    /// Services that are asked for in such a file.
    pub fn left_out(&self) -> BTreeSet<ServiceId> {
        let left = self.0.iter().filter(|fill| fill.left.is_some());
        left.flat_map(|fill| self.asked(&fill.path)).collect()
    }

    /// Services that are asked for in a file.
    pub fn asked(&self, path: &Path) -> BTreeSet<ServiceId> {
        self.get(path)
            .into_iter()
            .flat_map(|fill| fill.template.runs())
            .flat_map(|run| run.service.candidates())
            .collect()
    }

    /// HAProxy refuses these files as they would be filled.
    pub fn leave(&mut self, refused: &BTreeMap<PathBuf, String>) {
        for fill in &mut self.0 {
            if let Some(words) = refused.get(&fill.path) {
                fill.left = Some(words.clone());
            }
        }
    }

    /// What HAProxy refused is tried anew. True if there was any of it.
    pub fn retry(&mut self) -> bool {
        let left = self.0.iter_mut().filter_map(|fill| fill.left.take()).count();
        left > 0
    }

    /// These were written, unless somebody was at them since.
    pub fn wrote(&mut self, due: &[PendingEdit]) {
        for fill in &mut self.0 {
            if let Some(due) = due.iter().find(|due| due.path == fill.path) {
                fill.last = Some(due.will.clone());
                if fill.bytes == due.was {
                    fill.bytes.clone_from(&due.will);
                    fill.template = Template::parse(&fill.bytes);
                }
            }
        }
    }

    /// What an operator should know: places that can't be filled, and why.
    pub fn remarks(&self, settled: &DesiredState) -> Vec<String> {
        self.0.iter().flat_map(|fill| fill.remarks(settled)).collect()
    }

    /// Where else upstreams are sent to.
    pub fn elsewhere(&self) -> Elsewhere {
        Elsewhere(self.0.iter().flat_map(|fill| fill.template.runs()).cloned().collect())
    }
}

impl Elsewhere {
    fn runs<'a>(&'a self, service: &'a ServiceId) -> impl Iterator<Item = &'a Run> {
        self.0.iter().filter(move |run| run.service.candidates().contains(service))
    }

    /// Whether a section of theirs may send to the service.
    pub fn has(&self, service: &ServiceId) -> bool {
        self.runs(service).next().is_some()
    }

    /// What an upstream is called there, by section and server.
    pub fn servers<'a>(
        &'a self,
        service: &'a ServiceId,
        upstream: &'a UpstreamId,
    ) -> impl Iterator<Item = (String, String)> + 'a {
        self.runs(service).filter_map(|run| Some((run.section.clone(), run.name(upstream)?)))
    }
}

#[cfg(test)]
mod tests;
