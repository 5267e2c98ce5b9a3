//! Replaces one file in one step, on disk. The file keeps its permissions, and its owner as far as confgen may give files away.
//! This module doesn't decide which file is replaced.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::unistd::{AccessFlags, Uid, access, geteuid};
use regular_file::Temporary;

use super::{Error, LARGEST, io_error};

/// The end of a temporary file's name. No editor ends the names of its own files so.
const TEMPORARY: &str = ".confgen";

/// Counts the temporary files of this process. Two of its threads may write one file at a time.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A file that is written beside the one that it will replace. `Drop` removes it.
pub struct StagedFile {
    file: Temporary,
    /// The temporary file's path.
    path: PathBuf,
}

impl StagedFile {
    /// The temporary file's path, for `haproxy -c`.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Replaces a file's content in one step, unless the file has that content. `mode` is for a new file. An old one keeps its own.
pub fn replace_file(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    if regular_file::has_content(path, [content]).is_ok_and(|same| same) {
        return Ok(());
    }
    persist_file(stage_file(path, [content], mode)?, path)
}

/// Checks that a replaced file stays with its owner and its group. root gives a file back to them. Any other user can't, so the
/// file and its directory have to be that user's own.
pub fn check_replaceable(path: &Path) -> Result<(), Error> {
    let dir = parent_dir(path);
    if let Err(errno) = access(dir, AccessFlags::W_OK | AccessFlags::X_OK) {
        return Err(replace_error(path, format!("confgen may not write in its directory: {}", errno.desc())));
    }
    let file = find_metadata(path)?;
    if file.as_ref().is_some_and(|found| !found.is_file()) {
        return Err(replace_error(path, "it is not a regular file".into()));
    }
    let (file, dir) = (file.map(|it| it.uid()), find_metadata(dir)?.map(|it| it.uid()));
    if is_safe_to_replace(geteuid(), file, dir) {
        return Ok(());
    }
    Err(replace_error(
        path,
        "the file or its directory belongs to another user, and a new file would belong to confgen's: chown both to confgen's user"
            .into(),
    ))
}

fn replace_error(path: &Path, why: String) -> Error {
    io_error("replace", path)(io::Error::other(why))
}

/// `file` and `dir` are owners. A missing file has none yet.
fn is_safe_to_replace(user: Uid, file: Option<u32>, dir: Option<u32>) -> bool {
    let own = Some(user.as_raw());
    user.is_root() || file.is_none() || (file == own && dir == own)
}

/// Removes the temporary files that a killed confgen left beside a file.
pub fn remove_leftovers(path: &Path) -> Result<(), Error> {
    let Ok(entries) = fs::read_dir(parent_dir(path)) else { return Ok(()) };
    let prefix = temporary_prefix(path);
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && name.ends_with(TEMPORARY) {
            fs::remove_file(entry.path()).map_err(io_error("remove", &entry.path()))?;
        }
    }
    Ok(())
}

/// Puts a staged file in the place of one with the content `before`. Returns false, and changes nothing, if an editor has saved other
/// content there.
pub fn exchange_file(staged: StagedFile, path: &Path, before: &[u8]) -> Result<bool, Error> {
    if read_whole(path)? != before {
        return Ok(false);
    }
    // The names are swapped in one step, so that a text that is saved right now is not lost but ends up in the staged file.
    let name = file_name(path);
    match staged.file.swap_with(name) {
        Ok(()) if read_whole(&staged.path)? == before => {}
        Ok(()) => {
            staged.file.swap_with(name).map_err(io_error("replace", path))?;
            return Ok(false);
        }
        // Not every file system can swap. There, an edit within some microseconds is lost.
        Err(_) => return persist_file(staged, path).map(|()| true),
    }
    drop(staged);
    sync_dir(parent_dir(path)).map(|()| true)
}

fn read_whole(path: &Path) -> Result<Vec<u8>, Error> {
    regular_file::read(path, LARGEST).map_err(io_error("read", path))
}

/// Writes a file beside `path` that will take its place, and syncs it. Its content is in pieces, one after another. It has the
/// permissions of the file at `path`, or `mode` if there is none.
pub fn stage_file<'a>(
    path: &Path,
    content: impl IntoIterator<Item = &'a [u8]>,
    mode: u32,
) -> Result<StagedFile, Error> {
    let dir = parent_dir(path);
    let name = temporary_name(path);
    let created = File::open(dir).and_then(|opened| Temporary::create(opened.into(), name.clone()));
    let file = created.map_err(io_error("create a temporary file in", dir))?;
    let mut staged = StagedFile { file, path: dir.join(name) };
    fill_file(&mut staged.file, path, content, mode).map_err(io_error("write", &staged.path))?;
    Ok(staged)
}

fn fill_file<'a>(
    file: &mut Temporary,
    path: &Path,
    content: impl IntoIterator<Item = &'a [u8]>,
    mode: u32,
) -> io::Result<()> {
    let old = fs::metadata(path).ok();
    let mode = old.as_ref().map_or(mode, |old| old.mode() & 0o7777);
    match old {
        Some(old) if geteuid().is_root() => fchown(file.file(), Some(old.uid()), Some(old.gid()))?,
        // confgen may keep a group that it belongs to. It owns the file and the directory, so it may lose any other group.
        Some(old) => _ = fchown(file.file(), None, Some(old.gid())),
        None => {}
    }
    file.write(content, mode)?;
    // Without this, a power cut after the rename could leave an empty file in the place.
    file.file().sync_all()
}

pub(super) fn persist_file(staged: StagedFile, path: &Path) -> Result<(), Error> {
    staged.file.rename_to(file_name(path)).map_err(io_error("replace", path))?;
    sync_dir(parent_dir(path))
}

/// Makes a rename durable: a name is part of the directory's content.
fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync", dir))
}

pub(super) fn parent_dir(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn file_name(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}

fn temporary_name(path: &Path) -> OsString {
    let mut name = OsString::from(".");
    name.push(file_name(path));
    name.push(format!(".{}-{}{TEMPORARY}", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    name
}

fn temporary_prefix(path: &Path) -> String {
    format!(".{}.", file_name(path).to_string_lossy())
}

fn find_metadata(path: &Path) -> Result<Option<Metadata>, Error> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_stays_with_its_owner() {
        let may = |user: u32, file, dir| is_safe_to_replace(Uid::from_raw(user), file, dir);
        assert!(may(0, Some(7), Some(8)) && may(7, None, Some(0)) && may(7, Some(7), Some(7)));
        assert!(!may(7, Some(0), Some(7)) && !may(7, Some(7), Some(0)));
    }

    #[test]
    fn an_edit_in_between_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.cfg");
        replace_file(&path, b"read", 0o604).unwrap();
        let ours = || stage_file(&path, [&b"ours"[..]], 0o600).unwrap();
        replace_file(&path, b"saved", 0o600).unwrap();
        assert!(!exchange_file(ours(), &path, b"read").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"saved");
        assert!(exchange_file(ours(), &path, b"saved").unwrap());
        assert_eq!(
            (fs::read(&path).unwrap().as_slice(), fs::metadata(&path).unwrap().mode() & 0o7777),
            (&b"ours"[..], 0o604)
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
