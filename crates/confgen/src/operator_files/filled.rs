//! The files that are filled (`--fill`): what is to stand in them, and what of that HAProxy has to be restarted for. Pure.

mod pattern;
mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use discovery::{ServiceId, UpstreamId};
use serde::{Deserialize, Serialize};

use crate::desired::fingerprint::hash_parts;
use crate::desired::{DesiredService, DesiredState};
use crate::operator_files::filled::template::{ServerBlock, ServiceRef, Template};

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
    last_written: Option<Vec<u8>>,
    /// What HAProxy has against it as it would be filled: it is left as it stands.
    rejection: Option<String>,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilledFiles(Vec<FilledFile>);

/// What one run says, for a HAProxy that runs it or lacks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockFingerprint {
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
    pub before: Vec<u8>,
    /// As it is to be.
    pub after: Vec<u8>,
    /// Whether `was` is what confgen itself wrote.
    pub is_ours: bool,
    /// The lines of the comments below which people have been at work.
    pub edited_lines: Vec<usize>,
}

/// Which sections of the operator's send to a service's upstreams, besides its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OtherBackends(Vec<ServerBlock>);

/// What a run's name stands for.
enum ServiceMatch<'a> {
    One(ServiceId, &'a DesiredService),
    Missing,
    Ambiguous,
}

fn match_service<'a>(settled: &'a DesiredState, run: &ServerBlock) -> ServiceMatch<'a> {
    let candidates = run.service.candidates().into_iter();
    let mut services = candidates.filter_map(|id| settled.service(&id).map(|wanted| (id, &**wanted)));
    match (services.next(), services.next()) {
        (Some(_), Some(_)) => ServiceMatch::Ambiguous,
        (Some((id, wanted)), None) => ServiceMatch::One(id, wanted),
        (None, _) => ServiceMatch::Missing,
    }
}

impl FilledFile {
    /// A file as it was read; `before` is the same one, as it was known.
    pub fn new(path: PathBuf, real: PathBuf, bytes: Vec<u8>, before: Option<&Self>) -> Self {
        let template = Template::parse(&bytes);
        // What HAProxy refused it may take now, if anything that people wrote is another.
        let rejection = before.filter(|it| it.skeleton() == template.skeleton()).and_then(|it| it.rejection.clone());
        Self { path, real, bytes, template, last_written: before.and_then(|it| it.last_written.clone()), rejection }
    }

    /// What people wrote of it.
    pub fn skeleton(&self) -> Vec<u8> {
        self.template.skeleton()
    }

    fn render_block(&self, run: &ServerBlock, settled: &DesiredState) -> Vec<u8> {
        match match_service(settled, run) {
            _ if self.rejection.is_some() => run.current.clone(),
            ServiceMatch::One(_, wanted) => run.render_lines(&wanted.servers),
            ServiceMatch::Missing => run.render_lines(&[]),
            // To guess would send one service's clients to the other.
            ServiceMatch::Ambiguous => run.current.clone(),
        }
    }

    fn pending_edit(&self, settled: &DesiredState) -> Option<PendingEdit> {
        let will = self.template.with_blocks(|run| self.render_block(run, settled));
        let is_ours = self.last_written.as_ref() == Some(&self.bytes);
        let (path, real, was) = (self.path.clone(), self.real.clone(), self.bytes.clone());
        (will != was).then(|| PendingEdit {
            path,
            real,
            before: was,
            after: will,
            is_ours,
            edited_lines: self.find_edited_lines(),
        })
    }

    /// The runs that are not as confgen wrote them last.
    fn find_edited_lines(&self) -> Vec<usize> {
        let last = self.last_written.as_deref().map(Template::parse).unwrap_or_default();
        if last.skeleton() != self.skeleton() {
            return Vec::new();
        }
        let both = self.template.blocks().zip(last.blocks());
        both.filter(|(run, last)| run.current != last.current).map(|(run, _)| run.comment_line).collect()
    }

    fn list_remarks(&self, settled: &DesiredState) -> Vec<String> {
        let path = self.path.display();
        let mut remarks = Vec::new();
        if self.template.blocks().next().is_none() {
            remarks
                .push(format!("{path}: no comment like `# discover SERVICE: server <id> <address>`: nothing to fill"));
        }
        for run in self.template.blocks() {
            let at = |words: String| format!("{path}:{}: {words}", run.comment_line);
            remarks
                .extend(run.pattern_error().map(|wrong| at(format!("{wrong}; the lines below are left as they are"))));
            match (&run.service, match_service(settled, run)) {
                (ServiceRef::Invalid(_), _) | (_, ServiceMatch::One(..)) => {}
                (ServiceRef::AnyKind(name), ServiceMatch::Missing) => {
                    remarks.push(at(format!("there is no service {name}")))
                }
                (ServiceRef::Exact(id), ServiceMatch::Missing) => {
                    remarks.push(at(format!("there is no service {}", id.folder_path().trim_end_matches('/'))));
                }
                (_, ServiceMatch::Ambiguous) => {
                    let names: Vec<String> = run.service.candidates().iter().map(ServiceId::folder_path).collect();
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
    pub fn pending_edits(&self, settled: &DesiredState) -> Vec<PendingEdit> {
        self.0.iter().filter_map(|fill| fill.pending_edit(settled)).collect()
    }

    /// What the runs say, by file and place; an empty one says nothing.
    pub fn fingerprint_blocks(&self, settled: &DesiredState) -> BTreeMap<String, BlockFingerprint> {
        let mut prints = BTreeMap::new();
        for fill in &self.0 {
            for (number, run) in fill.template.blocks().enumerate() {
                let lines = fill.render_block(run, settled);
                let first = || run.service.candidates().into_iter().next();
                let service =
                    if let ServiceMatch::One(id, _) = match_service(settled, run) { Some(id) } else { first() };
                if !lines.is_empty() {
                    let service = service.map(|id| id.to_string()).unwrap_or_default();
                    let filled = BlockFingerprint { service, print: hash_parts([lines.as_slice()]) };
                    prints.insert(format!("{}#{number}", fill.path.display()), filled);
                }
            }
        }
        prints
    }

    /// Whether one of these services is asked for.
    pub fn mentions_any<'a>(&self, mut services: impl Iterator<Item = &'a ServiceId>) -> bool {
        let asked: BTreeSet<ServiceId> =
            self.0.iter().flat_map(|fill| fill.template.blocks()).flat_map(|run| run.service.candidates()).collect();
        services.any(|id| asked.contains(id))
    }

    /// Files that are left as they stand, and what HAProxy has against them as they would be filled.
    pub fn list_rejections(&self) -> Vec<String> {
        let left = self.0.iter().filter_map(|fill| Some((fill.path.display(), fill.rejection.as_ref()?)));
        left.map(|(path, words)| format!("{path} can't be filled: {words}")).collect()
    }

    /// Services that are asked for in such a file.
    pub fn rejected_services(&self) -> BTreeSet<ServiceId> {
        let left = self.0.iter().filter(|fill| fill.rejection.is_some());
        left.flat_map(|fill| self.services_in(&fill.path)).collect()
    }

    /// Services that are asked for in a file.
    pub fn services_in(&self, path: &Path) -> BTreeSet<ServiceId> {
        self.get(path)
            .into_iter()
            .flat_map(|fill| fill.template.blocks())
            .flat_map(|run| run.service.candidates())
            .collect()
    }

    /// HAProxy refuses these files as they would be filled.
    pub fn mark_rejected(&mut self, refused: &BTreeMap<PathBuf, String>) {
        for fill in &mut self.0 {
            if let Some(words) = refused.get(&fill.path) {
                fill.rejection = Some(words.clone());
            }
        }
    }

    /// What HAProxy refused is tried anew. True if there was any of it.
    pub fn clear_rejections(&mut self) -> bool {
        let left = self.0.iter_mut().filter_map(|fill| fill.rejection.take()).count();
        left > 0
    }

    /// These were written, unless somebody was at them since.
    pub fn mark_written(&mut self, due: &[PendingEdit]) {
        for fill in &mut self.0 {
            if let Some(due) = due.iter().find(|due| due.path == fill.path) {
                fill.last_written = Some(due.after.clone());
                if fill.bytes == due.before {
                    fill.bytes.clone_from(&due.after);
                    fill.template = Template::parse(&fill.bytes);
                }
            }
        }
    }

    /// What an operator should know: places that can't be filled, and why.
    pub fn list_remarks(&self, settled: &DesiredState) -> Vec<String> {
        self.0.iter().flat_map(|fill| fill.list_remarks(settled)).collect()
    }

    /// Where else upstreams are sent to.
    pub fn other_backends(&self) -> OtherBackends {
        OtherBackends(self.0.iter().flat_map(|fill| fill.template.blocks()).cloned().collect())
    }
}

impl OtherBackends {
    fn blocks_of<'a>(&'a self, service: &'a ServiceId) -> impl Iterator<Item = &'a ServerBlock> {
        self.0.iter().filter(move |run| run.service.candidates().contains(service))
    }

    /// Whether a section of theirs may send to the service.
    pub fn has_service(&self, service: &ServiceId) -> bool {
        self.blocks_of(service).next().is_some()
    }

    /// What an upstream is called there, by section and server.
    pub fn servers_of<'a>(
        &'a self,
        service: &'a ServiceId,
        upstream: &'a UpstreamId,
    ) -> impl Iterator<Item = (String, String)> + 'a {
        self.blocks_of(service).filter_map(|run| Some((run.section.clone(), run.server_name(upstream)?)))
    }
}

#[cfg(test)]
mod tests;
