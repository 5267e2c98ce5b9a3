//! One file, replaced in one step: never truncated, its mode kept, its owner where we may.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use nix::unistd::{AccessFlags, Uid, access, geteuid};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::NamedTempFile;

use super::{Error, LARGEST, io_error};

/// How a file that is only staged ends: no editor's own is called so.
const TEMPORARY: &str = ".confgen";

/// Replaces a file's content in one step, unless it has it already. The mode is for a new file; an old one keeps its
/// own.
pub fn replace_file(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let length = u64::try_from(content.len()).unwrap_or(u64::MAX);
    if regular_file::read(path, length).is_ok_and(|old| old == content) {
        return Ok(());
    }
    persist_file(stage_file(path, content, mode)?, path)
}

/// Whether a file can be replaced without being taken from those it belongs to: its owner and group are kept where confgen
/// may give files away; else file and directory have to be its own.
pub fn check_replaceable(path: &Path) -> Result<(), Error> {
    let refused = |why: &str| io_error("replace", path)(io::Error::other(why));
    let dir = parent_dir(path);
    if let Err(errno) = access(dir, AccessFlags::W_OK | AccessFlags::X_OK) {
        return Err(refused(&format!("its directory can't be written in: {}", errno.desc())));
    }
    if find_metadata(path)?.is_some_and(|found| !found.is_file()) {
        return Err(refused("it is no regular file"));
    }
    let owner = |path: &Path| Ok(find_metadata(path)?.map(|it| it.uid()));
    if is_safe_to_replace(geteuid(), owner(path)?, owner(dir)?) {
        return Ok(());
    }
    Err(refused(
        "it or its directory belongs to another user, whom a replaced file would be taken from: chown both to confgen's user",
    ))
}

/// root gives files back to whom they belong to; a new file belongs to nobody yet.
fn is_safe_to_replace(user: Uid, file: Option<u32>, dir: Option<u32>) -> bool {
    let own = Some(user.as_raw());
    user.is_root() || file.is_none() || (file == own && dir == own)
}

/// Removes what a killed process left half written beside a file.
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

/// Puts a staged file in the place of one that read `was`; false where somebody else has changed that meanwhile. The two are
/// exchanged in one step, so that nobody's text is lost between the look and the change.
pub fn exchange_file(staged: NamedTempFile, path: &Path, was: &[u8]) -> Result<bool, Error> {
    let read = |path: &Path| regular_file::read(path, LARGEST).map_err(io_error("read", path));
    if read(path)? != was {
        return Ok(false);
    }
    let swap = || renameat_with(CWD, staged.path(), CWD, path, RenameFlags::EXCHANGE);
    match swap() {
        Ok(()) if read(staged.path())? == was => {}
        Ok(()) => {
            swap().map_err(|errno| io_error("replace", path)(errno.into()))?;
            return Ok(false);
        }
        // Not every file system can; what is left of the race is some microseconds.
        Err(_) => return persist_file(staged, path).map(|()| true),
    }
    drop(staged);
    sync_dir(parent_dir(path)).map(|()| true)
}

/// Writes a file beside `path` that will take its place, with the mode and, where we may, the owner of what is there.
pub fn stage_file(path: &Path, content: &[u8], mode: u32) -> Result<NamedTempFile, Error> {
    let dir = parent_dir(path);
    let mut file = tempfile::Builder::new()
        .prefix(&temporary_prefix(path))
        .suffix(TEMPORARY)
        .tempfile_in(dir)
        .map_err(io_error("create a temporary file in", dir))?;
    let written = |file: &mut NamedTempFile| -> io::Result<()> {
        file.write_all(content)?;
        let old = fs::metadata(path).ok();
        let mode = old.as_ref().map_or(mode, |old| old.mode() & 0o7777);
        match old {
            Some(old) if geteuid().is_root() => fchown(file.as_file(), Some(old.uid()), Some(old.gid()))?,
            // A group that we belong to can be kept; file and directory are our own, so another one is ours to lose.
            Some(old) => _ = fchown(file.as_file(), None, Some(old.gid())),
            None => {}
        }
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()
    };
    written(&mut file).map_err(io_error("write", file.path()))?;
    Ok(file)
}

pub(super) fn persist_file(file: NamedTempFile, path: &Path) -> Result<(), Error> {
    file.persist(path).map_err(|error| io_error("replace", path)(error.error))?;
    sync_dir(parent_dir(path))
}

/// A rename lives in the directory.
fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync", dir))
}

pub(super) fn parent_dir(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temporary_prefix(path: &Path) -> String {
    format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy())
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
    fn nothing_is_taken_from_anybody() {
        let may = |user: u32, file, dir| is_safe_to_replace(Uid::from_raw(user), file, dir);
        assert!(may(0, Some(7), Some(8)) && may(7, None, Some(0)) && may(7, Some(7), Some(7)));
        assert!(!may(7, Some(0), Some(7)) && !may(7, Some(7), Some(0)));
    }

    #[test]
    fn what_somebody_saved_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.cfg");
        replace_file(&path, b"read", 0o604).unwrap();
        let ours = || stage_file(&path, b"ours", 0o600).unwrap();
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
