//! Replaces a file in one step: the content is written beside it, and renamed over it. A reader, and a crash, never meet half
//! of a file. This module decides neither the owner of the new file nor which file to replace.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, openat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;

/// In bytes. Pieces of some hundred bytes are written together, since each call of the system costs as much as a copy of some kilobytes.
const WRITTEN_AT_ONCE: usize = 64 << 10;

/// A file with a temporary name in the directory of the file that it will replace. `Drop` removes it.
#[derive(Debug)]
pub struct Temporary {
    directory: OwnedFd,
    name: OsString,
    file: File,
    /// `false` once the file has its final name.
    is_temporary: bool,
}

impl Temporary {
    /// Creates an empty file for its owner only (0600). A file that has the name already is removed: the caller makes the name
    /// from the process's number, so only a process that was killed while it wrote can have left one.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn create(directory: OwnedFd, name: OsString) -> io::Result<Self> {
        // `NOFOLLOW` and `EXCL`: a link that another user has put there leads this process to no other file.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || openat(&directory, name.as_os_str(), flags, Mode::from_raw_mode(0o600));
        let file = open().or_else(|errno| match errno {
            Errno::EXIST => unlinkat(&directory, name.as_os_str(), AtFlags::empty()).and_then(|()| open()),
            errno => Err(errno),
        })?;
        Ok(Self { directory, name, file: File::from(file), is_temporary: true })
    }

    /// The open file, for its owner and for `sync_all`.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Appends the content, which is in pieces, one after another. Sets the permissions to `mode`.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn write<'a>(&mut self, content: impl IntoIterator<Item = &'a [u8]>, mode: u32) -> io::Result<()> {
        let mut file = BufWriter::with_capacity(WRITTEN_AT_ONCE, &self.file);
        content.into_iter().try_for_each(|piece| file.write_all(piece))?;
        file.flush()?;
        drop(file);
        self.file.set_permissions(Permissions::from_mode(mode))
    }

    /// Renames the file to `place` in the same directory. The file replaces a file or a link of that name. The new name
    /// survives a crash only once the caller has synced the directory.
    ///
    /// # Errors
    /// If the system refuses. The temporary file is removed then.
    pub fn rename_to(mut self, place: &OsStr) -> io::Result<()> {
        renameat(&self.directory, self.name.as_os_str(), &self.directory, place)?;
        self.is_temporary = false;
        Ok(())
    }

    /// Swaps the names of this file and `place` in one step. A second call swaps them back.
    ///
    /// # Errors
    /// If nothing is at `place`, or the file system can't swap names.
    pub fn swap_with(&self, place: &OsStr) -> io::Result<()> {
        Ok(renameat_with(&self.directory, self.name.as_os_str(), &self.directory, place, RenameFlags::EXCHANGE)?)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.is_temporary {
            // The next writer, or the next start, removes what stays here.
            let _ = unlinkat(&self.directory, self.name.as_os_str(), AtFlags::empty());
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test writes files as other tools do, in place too")]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::Path;

    use super::*;

    fn create_in(dir: &Path) -> Temporary {
        Temporary::create(File::open(dir).unwrap().into(), ".file.1.tmp".into()).unwrap()
    }

    #[test]
    fn a_file_has_its_old_content_until_the_rename() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("file");
        fs::write(&place, "old").unwrap();
        let mut new = create_in(dir.path());
        new.write([&b"new"[..]], 0o640).unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"old");
        new.rename_to("file".as_ref()).unwrap();
        assert_eq!((fs::read(&place).unwrap(), fs::metadata(&place).unwrap().mode() & 0o7777), (b"new".into(), 0o640));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the temporary name is gone");
    }

    #[test]
    fn a_dropped_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut new = create_in(dir.path());
        new.write([&b"new"[..]], 0o600).unwrap();
        drop(new);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_with_the_temporary_name_is_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other");
        fs::write(&other, "theirs").unwrap();
        symlink(&other, dir.path().join(".file.1.tmp")).unwrap();
        create_in(dir.path()).write([b"new".as_slice()], 0o600).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"theirs");
    }

    #[test]
    fn a_second_swap_undoes_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("file");
        fs::write(&place, "old").unwrap();
        let mut new = create_in(dir.path());
        new.write([&b"new"[..]], 0o600).unwrap();
        new.swap_with("file".as_ref()).unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"new");
        new.swap_with("file".as_ref()).unwrap();
        drop(new);
        assert_eq!(fs::read(&place).unwrap(), b"old");
        assert!(create_in(dir.path()).swap_with("none".as_ref()).is_err());
    }
}
