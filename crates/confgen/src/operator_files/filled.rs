//! The files that `--fill` names: the lines that belong in them, and the fingerprints by which a change of those lines needs a
//! restart. Pure: no I/O, no clock. It never changes a byte outside of a server block.

mod pattern;
mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use discovery::{ServiceId, UpstreamId};
use serde::{Deserialize, Serialize};

use crate::desired::fingerprint::hash_parts;
use crate::desired::{DesiredService, DesiredState};
use crate::operator_files::filled::template::{ServerBlock, ServiceRef, Template};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilledFile {
    /// The path that HAProxy reads.
    pub path: PathBuf,
    /// The path with all links followed, which confgen replaces.
    pub real: PathBuf,
    /// The content on disk.
    pub bytes: Vec<u8>,
    template: Template,
    /// The content that this process wrote last. `None` if it wrote none yet.
    last_written: Option<Vec<u8>>,
    /// HAProxy's complaint about the file with the new lines. While there is one, the file stays as it is.
    rejection: Option<String>,
}

/// All filled files, in the order in which HAProxy reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilledFiles(Vec<FilledFile>);

/// One server block's fingerprint, for comparing the running HAProxy with the wanted one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockFingerprint {
    /// The name of the service's own section, `http-shop`.
    pub service: String,
    pub print: String,
}

/// A filled file with other server lines than the desired ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingEdit {
    /// The path that HAProxy reads.
    pub path: PathBuf,
    /// The path with all links followed, which confgen replaces.
    pub real: PathBuf,
    pub before: Vec<u8>,
    pub after: Vec<u8>,
    /// This process wrote `before`.
    pub is_ours: bool,
    /// The line numbers of the comments below which an editor has changed server lines.
    pub edited_lines: Vec<usize>,
}

/// The operator's sections that send requests to upstreams, beside the services' own sections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OtherBackends(Vec<ServerBlock>);

/// The service that a block's comment names.
enum ServiceMatch<'a> {
    One(ServiceId, &'a DesiredService),
    Missing,
    Ambiguous,
}

fn match_service<'a>(desired: &'a DesiredState, block: &ServerBlock) -> ServiceMatch<'a> {
    let candidates = block.service.candidates().into_iter();
    let mut services = candidates.filter_map(|id| desired.service(&id).map(|wanted| (id, &**wanted)));
    match (services.next(), services.next()) {
        (Some(_), Some(_)) => ServiceMatch::Ambiguous,
        (Some((id, wanted)), None) => ServiceMatch::One(id, wanted),
        (None, _) => ServiceMatch::Missing,
    }
}

impl FilledFile {
    /// `before` is the same file as it was known before this reading.
    pub fn new(path: PathBuf, real: PathBuf, bytes: Vec<u8>, before: Option<&Self>) -> Self {
        let template = Template::parse(&bytes);
        // After an edit outside of the blocks, HAProxy may accept the file. Try again.
        let rejection = before.filter(|it| it.skeleton() == template.skeleton()).and_then(|it| it.rejection.clone());
        Self { path, real, bytes, template, last_written: before.and_then(|it| it.last_written.clone()), rejection }
    }

    /// The operator's part: the file without its server blocks.
    pub fn skeleton(&self) -> Vec<u8> {
        self.template.skeleton()
    }

    fn render_block(&self, block: &ServerBlock, desired: &DesiredState) -> Vec<u8> {
        match match_service(desired, block) {
            _ if self.rejection.is_some() => block.current.clone(),
            ServiceMatch::One(_, wanted) => block.render_lines(&wanted.servers),
            ServiceMatch::Missing => block.render_lines(&[]),
            // A guess would send one service's clients to the other.
            ServiceMatch::Ambiguous => block.current.clone(),
        }
    }

    fn pending_edit(&self, desired: &DesiredState) -> Option<PendingEdit> {
        let after = self.template.with_blocks(|block| self.render_block(block, desired));
        // If confgen wrote the present text, no editor is at work, and no HAProxy can have read an editor's lines.
        let is_ours = self.last_written.as_ref() == Some(&self.bytes);
        let (path, real, before) = (self.path.clone(), self.real.clone(), self.bytes.clone());
        let edit = PendingEdit { path, real, before, after, is_ours, edited_lines: self.find_edited_lines() };
        edit.check_invariants();
        (edit.after != edit.before).then_some(edit)
    }

    /// The line numbers of the comments whose blocks were edited since confgen wrote them.
    fn find_edited_lines(&self) -> Vec<usize> {
        let last = self.last_written.as_deref().map(Template::parse).unwrap_or_default();
        // After an edit of the rest, a block's number no longer tells which block it was.
        if last.skeleton() != self.skeleton() {
            return Vec::new();
        }
        let both = self.template.blocks().zip(last.blocks());
        both.filter(|(block, last)| block.current != last.current).map(|(block, _)| block.comment_line).collect()
    }

    fn list_remarks(&self, desired: &DesiredState) -> Vec<String> {
        let path = self.path.display();
        let mut remarks = Vec::new();
        if self.template.blocks().next().is_none() {
            remarks
                .push(format!("{path}: no comment like `# discover SERVICE: server <id> <address>`: nothing to fill"));
        }
        let missing =
            self.template.blocks().filter_map(|block| Some((block.comment_line, describe_missing(block, desired)?)));
        remarks.extend(missing.map(|(line, words)| format!("{path}:{line}: {words}")));
        remarks
    }

    /// The reasons why blocks stay as they are, with the places of their comments.
    fn list_left_blocks<'a>(&'a self, desired: &'a DesiredState) -> impl Iterator<Item = (&'a ServerBlock, String)> {
        let path = self.path.display();
        self.template.blocks().filter_map(move |block| {
            let words = block.pattern_error().map(str::to_owned).or_else(|| describe_ambiguity(block, desired))?;
            Some((block, format!("{path}:{}: {words}; the lines below are left as they are", block.comment_line)))
        })
    }
}

/// The reason why a block has no servers. `None` if its comment names a service that exists, or no service at all.
fn describe_missing(block: &ServerBlock, desired: &DesiredState) -> Option<String> {
    match (&block.service, match_service(desired, block)) {
        (ServiceRef::AnyKind(name), ServiceMatch::Missing) => Some(format!("there is no service {name}")),
        (ServiceRef::Exact(id), ServiceMatch::Missing) => {
            Some(format!("there is no service {}", id.folder_path().trim_end_matches('/')))
        }
        _ => None,
    }
}

/// The question that an operator has to answer, if a block's comment may mean two services.
fn describe_ambiguity(block: &ServerBlock, desired: &DesiredState) -> Option<String> {
    let ServiceMatch::Ambiguous = match_service(desired, block) else { return None };
    let names: Vec<String> = block.service.candidates().iter().map(ServiceId::folder_path).collect();
    let names = names.join(" or ").replace("/ ", " ");
    Some(format!("say which: {}", names.trim_end_matches('/')))
}

impl PendingEdit {
    /// Panics in debug builds if the edit changes a byte of the operator's.
    fn check_invariants(&self) {
        debug_assert_eq!(self.find_violation(), None, "{} as it would be filled", self.path.display());
    }

    /// The operator's part as the edit would leave it, if it differs. A comment at the very end of the file may get a line end,
    /// since lines follow it now.
    fn find_violation(&self) -> Option<String> {
        let [before, after] = [&self.before, &self.after].map(|bytes| Template::parse(bytes).skeleton());
        let added = after.strip_prefix(before.as_slice());
        let is_kept = added.is_some_and(|added| [&b""[..], b"\n", b"\r\n"].contains(&added));
        (!is_kept).then(|| String::from_utf8_lossy(&after).into_owned())
    }
}

impl FilledFiles {
    pub fn new(files: Vec<FilledFile>) -> Self {
        Self(files)
    }

    pub fn get(&self, path: &Path) -> Option<&FilledFile> {
        self.0.iter().find(|file| file.path == path)
    }

    pub fn pending_edits(&self, desired: &DesiredState) -> Vec<PendingEdit> {
        self.0.iter().filter_map(|file| file.pending_edit(desired)).collect()
    }

    /// The blocks' fingerprints, by `<path>#<number of the block>`. An empty block has none.
    pub fn fingerprint_blocks(&self, desired: &DesiredState) -> BTreeMap<String, BlockFingerprint> {
        let mut prints = BTreeMap::new();
        for file in &self.0 {
            // By number, not by line: an edit above a block changes none of its servers.
            for (number, block) in file.template.blocks().enumerate() {
                let lines = file.render_block(block, desired);
                let service = match match_service(desired, block) {
                    ServiceMatch::One(id, _) => Some(id),
                    ServiceMatch::Missing | ServiceMatch::Ambiguous => block.service.candidates().into_iter().next(),
                };
                if !lines.is_empty() {
                    let service = service.map(|id| id.to_string()).unwrap_or_default();
                    let filled = BlockFingerprint { service, print: hash_parts([lines.as_slice()]) };
                    prints.insert(format!("{}#{number}", file.path.display()), filled);
                }
            }
        }
        prints
    }

    /// True if a comment names one of these services.
    pub fn mentions_any<'a>(&self, mut services: impl Iterator<Item = &'a ServiceId>) -> bool {
        let asked: BTreeSet<ServiceId> = self
            .0
            .iter()
            .flat_map(|file| file.template.blocks())
            .flat_map(|block| block.service.candidates())
            .collect();
        services.any(|id| asked.contains(id))
    }

    /// The files that stay as they are, with HAProxy's complaint about their new lines.
    pub fn list_rejections(&self) -> Vec<String> {
        let left = self.0.iter().filter_map(|file| Some((file.path.display(), file.rejection.as_ref()?)));
        left.map(|(path, words)| format!("{path} can't be filled: {words}")).collect()
    }

    /// The reasons why blocks stay as they are: a bad pattern, or a comment that may mean two services.
    pub fn list_left_blocks(&self, desired: &DesiredState) -> Vec<String> {
        self.0.iter().flat_map(|file| file.list_left_blocks(desired)).map(|(_, words)| words).collect()
    }

    /// The reasons why files, or blocks of them, stay as they are.
    pub fn list_unfilled(&self, desired: &DesiredState) -> Vec<String> {
        [self.list_rejections(), self.list_left_blocks(desired)].concat()
    }

    /// The services with upstreams that a section of the operator's doesn't have as desired, because it stays as it is.
    pub fn unfilled_services(&self, desired: &DesiredState) -> BTreeSet<ServiceId> {
        let blocks = self.0.iter().flat_map(|file| file.list_left_blocks(desired));
        let named = blocks.flat_map(|(block, _)| block.service.candidates());
        self.rejected_services().into_iter().chain(named).collect()
    }

    /// The services that are named in a file which HAProxy rejects with its new lines.
    pub fn rejected_services(&self) -> BTreeSet<ServiceId> {
        let left = self.0.iter().filter(|file| file.rejection.is_some());
        left.flat_map(|file| self.services_in(&file.path)).collect()
    }

    /// The services that are named in a file.
    pub fn services_in(&self, path: &Path) -> BTreeSet<ServiceId> {
        self.get(path)
            .into_iter()
            .flat_map(|file| file.template.blocks())
            .flat_map(|block| block.service.candidates())
            .collect()
    }

    /// Notes HAProxy's complaints about files with their new lines, by path.
    pub fn mark_rejected(&mut self, refused: &BTreeMap<PathBuf, String>) {
        for file in &mut self.0 {
            if let Some(words) = refused.get(&file.path) {
                file.rejection = Some(words.clone());
            }
        }
    }

    /// Forgets all complaints, so that the files are tried again. True if there was one.
    pub fn clear_rejections(&mut self) -> bool {
        let left = self.0.iter_mut().filter_map(|file| file.rejection.take()).count();
        left > 0
    }

    /// Notes that these edits are on disk. A file that was read again since keeps its newer content.
    pub fn mark_written(&mut self, due: &[PendingEdit]) {
        for file in &mut self.0 {
            if let Some(due) = due.iter().find(|due| due.path == file.path) {
                file.last_written = Some(due.after.clone());
                if file.bytes == due.before {
                    file.bytes.clone_from(&due.after);
                    file.template = Template::parse(&file.bytes);
                }
            }
        }
    }

    /// Sentences for the operator about blocks that can't be filled.
    pub fn list_remarks(&self, desired: &DesiredState) -> Vec<String> {
        self.0.iter().flat_map(|file| file.list_remarks(desired)).collect()
    }

    pub fn other_backends(&self) -> OtherBackends {
        OtherBackends(self.0.iter().flat_map(|file| file.template.blocks()).cloned().collect())
    }
}

impl OtherBackends {
    fn blocks_of<'a>(&'a self, service: &'a ServiceId) -> impl Iterator<Item = &'a ServerBlock> {
        self.0.iter().filter(move |block| block.service.candidates().contains(service))
    }

    /// True if a section of the operator's may send requests to the service.
    pub fn has_service(&self, service: &ServiceId) -> bool {
        self.blocks_of(service).next().is_some()
    }

    /// The section and the server's name for each of the operator's sections that sends requests to the upstream.
    pub fn servers_of<'a>(
        &'a self,
        service: &'a ServiceId,
        upstream: &'a UpstreamId,
    ) -> impl Iterator<Item = (String, String)> + 'a {
        self.blocks_of(service).filter_map(|block| Some((block.section.clone(), block.server_name(upstream)?)))
    }
}

#[cfg(test)]
mod tests;
