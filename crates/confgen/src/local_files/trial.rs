//! Takes over local files of one kind: HAProxy checks each changed file, confgen copies it, and the last good copy of a rejected
//! file serves on. This module doesn't know what a file means: its callers say how HAProxy tries one and how confgen reads one.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use haproxy::check::{CheckResult, Checker};
use tempfile::TempDir;

use crate::state_dir::{Error, TRIAL, io_error, replace_file};

/// The most checks for the files that changed together. Enough to single out a dozen files of a thousand. A check takes some
/// 50 ms.
const MOST_CHECKS: usize = 120;

/// The most characters of HAProxy's output that a reason shows.
const LONGEST_REASON: usize = 300;

/// One of the operator's files, as it was read.
pub(super) struct LocalFile<K> {
    /// Names the file in [`Collected`].
    pub(super) key: K,
    /// The copy's file name. No two files share it.
    pub(super) copy_name: String,
    /// The reason if the file can't be read or used.
    pub(super) content: Result<Vec<u8>, String>,
}

/// A file that HAProxy is about to check.
pub(super) struct Candidate {
    pub(super) copy_name: String,
    pub(super) content: Vec<u8>,
}

/// The files that were taken over, by key.
pub(super) struct Collected<K, T> {
    /// Read from the file, or from its last good copy.
    pub(super) in_use: BTreeMap<K, T>,
    /// Files that aren't used as they stand, with the reason. Those with a last good copy are in `in_use` too.
    pub(super) rejected: BTreeMap<K, String>,
}

/// The copies of one kind of file, in a folder below the state directory.
pub(super) struct Copies {
    folder: PathBuf,
    /// The permissions of a new copy.
    mode: u32,
    /// The longest copy that is read, in bytes.
    longest: u64,
}

impl Copies {
    pub(super) fn new(folder: PathBuf, mode: u32, longest: u64) -> Self {
        Self { folder, mode, longest }
    }

    pub(super) fn create_folder(&self) -> Result<(), Error> {
        fs::create_dir_all(&self.folder).map_err(io_error("create", &self.folder))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn read_copy(&self, name: &str) -> io::Result<Vec<u8>> {
        regular_file::read(&self.path_of(name), self.longest)
    }

    pub(super) fn write_copy(&self, name: &str, content: &[u8]) -> Result<(), Error> {
        replace_file(&self.path_of(name), content, self.mode)
    }

    fn has_copy_of(&self, candidate: &Candidate) -> bool {
        self.read_copy(&candidate.copy_name).is_ok_and(|copy| copy == candidate.content)
    }

    /// Removes the files of the folder that `is_stale` names.
    pub(super) fn remove_stale(&self, is_stale: impl Fn(&Path) -> bool) -> Result<(), Error> {
        let entries = fs::read_dir(&self.folder).map_err(io_error("list", &self.folder))?;
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| is_stale(path)) {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }
}

/// Takes over `files`: those that HAProxy accepts are copied. `parse` reads a file or a copy, by key and copy's name.
/// `find_complaint` returns HAProxy's complaint about some files together, or `None`.
///
/// # Errors
/// If a trial can't be prepared, or a copy can't be written. A file that can't be used is no error.
pub(super) fn collect<K: Ord + Clone, T>(
    files: Vec<LocalFile<K>>,
    copies: &Copies,
    parse: impl Fn(&K, &str, &[u8]) -> Result<T, String>,
    mut find_complaint: impl FnMut(&[&Candidate]) -> Result<Option<String>, Error>,
) -> Result<Collected<K, T>, Error> {
    let (mut collected, readable) = read_files(files, copies, &parse);
    // An unchanged file has passed the check. HAProxy may have another release by now, but it starts with the copy anyway.
    let changed: Vec<&Candidate> =
        readable.iter().map(|(_, candidate, _)| candidate).filter(|it| !copies.has_copy_of(it)).collect();
    let culprits =
        if changed.is_empty() { Vec::new() } else { find_culprits(&changed, MOST_CHECKS, &mut find_complaint)? };
    let mut complaints: BTreeMap<String, String> =
        culprits.into_iter().map(|(candidate, reason)| (candidate.copy_name.clone(), reason)).collect();
    for (key, candidate, value) in readable {
        match complaints.remove(&candidate.copy_name) {
            Some(reason) => collected.reject(key, &candidate.copy_name, reason, copies, &parse),
            None => {
                copies.write_copy(&candidate.copy_name, &candidate.content)?;
                collected.in_use.insert(key, value);
            }
        }
    }
    Ok(collected)
}

/// The same without HAProxy: every file that can be read counts as accepted, and nothing is written.
pub(super) fn collect_unchecked<K: Ord + Clone, T>(
    files: Vec<LocalFile<K>>,
    copies: &Copies,
    parse: impl Fn(&K, &str, &[u8]) -> Result<T, String>,
) -> Collected<K, T> {
    let (mut collected, readable) = read_files(files, copies, &parse);
    collected.in_use.extend(readable.into_iter().map(|(key, _, value)| (key, value)));
    collected
}

/// Files that were read and parsed, with their parsed content.
type Readable<K, T> = Vec<(K, Candidate, T)>;

fn read_files<K: Ord + Clone, T>(
    files: Vec<LocalFile<K>>,
    copies: &Copies,
    parse: &impl Fn(&K, &str, &[u8]) -> Result<T, String>,
) -> (Collected<K, T>, Readable<K, T>) {
    let mut collected = Collected { in_use: BTreeMap::new(), rejected: BTreeMap::new() };
    let mut readable = Vec::new();
    for LocalFile { key, copy_name, content } in files {
        match content.and_then(|content| Ok((parse(&key, &copy_name, &content)?, content))) {
            Ok((value, content)) => readable.push((key, Candidate { copy_name, content }, value)),
            Err(reason) => collected.reject(key, &copy_name, reason, copies, parse),
        }
    }
    (collected, readable)
}

impl<K: Ord + Clone, T> Collected<K, T> {
    /// Notes the reason. The file's last good copy serves, if there is one.
    fn reject(
        &mut self,
        key: K,
        copy_name: &str,
        reason: String,
        copies: &Copies,
        parse: &impl Fn(&K, &str, &[u8]) -> Result<T, String>,
    ) {
        let last_good = copies.read_copy(copy_name).ok().and_then(|copy| parse(&key, copy_name, &copy).ok());
        self.in_use.extend(last_good.map(|value| (key.clone(), value)));
        self.rejected.insert(key, reason);
    }
}

/// A folder with the files of one check, for its owner only, since private keys are among them. `Drop` removes it.
pub(super) struct TrialFolder(TempDir);

impl TrialFolder {
    pub(super) fn create(state_dir: &Path) -> Result<Self, Error> {
        let folder = tempfile::Builder::new().prefix(TRIAL).tempdir_in(state_dir);
        folder.map(Self).map_err(io_error("create a folder in", state_dir))
    }

    /// The folder as HAProxy's output names it, with a `/` at its end.
    pub(super) fn prefix(&self) -> String {
        format!("{}/", self.0.path().display())
    }

    pub(super) fn write_file(&self, name: &str, content: &[u8]) -> Result<PathBuf, Error> {
        let path = self.0.path().join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        // No sync: a trial outlives no crash.
        file.and_then(|mut file| file.write_all(content)).map_err(io_error("write", &path))?;
        Ok(path)
    }

    /// Has HAProxy check the configuration `text`, behind the operator's own files if `beside` names them. The inner error is
    /// the reason why the check itself failed.
    pub(super) fn check(
        &self,
        text: &str,
        beside: Option<&Path>,
        checker: &Checker,
    ) -> Result<Result<CheckResult, String>, Error> {
        let cfg = self.write_file("haproxy.cfg", text.as_bytes())?;
        let files: Vec<PathBuf> = beside.map(Path::to_owned).into_iter().chain([cfg]).collect();
        Ok(checker.check_files(&files).map_err(|error| error.to_string()))
    }
}

/// The first complaint in HAProxy's output, in one line without its prefix.
pub(crate) fn first_alert(output: &str) -> String {
    let mut lines = output.lines().skip_while(|line| !(line.contains("unable to") || line.contains("[ALERT]")));
    let first = lines.next().unwrap_or(output);
    let first = first.rsplit("] : ").next().unwrap_or(first);
    // 3.0 goes on in lines that begin with blanks.
    let more = lines.take_while(|line| line.starts_with(' '));
    let words: Vec<&str> = std::iter::once(first).chain(more).map(str::trim).collect();
    words.join(" ").chars().take(LONGEST_REASON).collect()
}

/// Finds the items without which the rest passes, each with the judge's words about it. `find_complaint` says why a subset is
/// rejected, or `None` if it passes.
///
/// Each culprit costs two checks for each halving. Once `tries` are used up, all items that have not been cleared count as
/// culprits, and so do all items of a part of which each half passes: to leave out too much is safe, to leave in too much is not.
pub(crate) fn find_culprits<T: Clone, E>(
    items: &[T],
    tries: usize,
    find_complaint: &mut impl FnMut(&[T]) -> Result<Option<String>, E>,
) -> Result<Vec<(T, String)>, E> {
    let mut culprits = Vec::new();
    // Parts that are known to be rejected, with the complaint.
    let mut suspects: Vec<_> = find_complaint(items)?.map(|words| (items, words)).into_iter().collect();
    let mut tries = tries.saturating_sub(1);
    while let Some((part, words)) = suspects.pop() {
        let mut rejected = Vec::new();
        if part.len() > 1 && tries > 1 {
            tries -= 2;
            let (left, right) = part.split_at(part.len() / 2);
            for half in [left, right] {
                rejected.extend(find_complaint(half)?.map(|words| (half, words)));
            }
        }
        if rejected.is_empty() {
            culprits.extend(part.iter().map(|item| (item.clone(), words.clone())));
        }
        suspects.extend(rejected);
    }
    Ok(culprits)
}

#[cfg(test)]
mod tests;
