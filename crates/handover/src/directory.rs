//! Opens directories, and writes files in them, for a program with more rights than other users. It never follows a
//! link that a lesser user can change.
//!
//! A directory holds an entry safely if only root and this process's user can exchange that entry. A path leads to a
//! directory safely if each directory on the way holds the next one safely. This says nothing of the directory's
//! content.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use nix::unistd::geteuid;
use regular_file::Temporary;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, fchmod, fstat, mkdirat, openat, readlinkat, statat, unlinkat,
};
use rustix::io::Errno;

/// The most links on one path, as in the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// An open directory. Its methods use the descriptor, so that a path that changes later leads them nowhere else.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    /// Absolute, and without links.
    path: PathBuf,
    /// True if only root and this process's user can change the path and the directory's content.
    private: bool,
}

/// The treatment of a directory that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// A missing directory is an error.
    Fail,
    /// Make it with this mode, and each missing directory above it, if a safe path leads there.
    Create(u32),
}

impl Directory {
    /// Opens the directory. A link that a lesser user can change is an error.
    pub(crate) fn open(path: &Path, missing: Missing) -> io::Result<Self> {
        let mut walk = Walk::from_root()?;
        let mut rest: VecDeque<OsString> = VecDeque::new();
        if path.is_relative() {
            prepend_path(&mut rest, &std::env::current_dir()?);
        }
        rest.extend(split_path(path));
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            match walk.enter_entry(&name, missing)? {
                None => {}
                Some(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    if target.is_absolute() {
                        walk = Walk::from_root()?;
                    }
                    prepend_path(&mut rest, &target);
                }
            }
        }
        let Walk { fd, path, safe, .. } = walk;
        let private = safe && is_writable_only_by_us(&fstat(&fd)?);
        Ok(Self { fd, path, private })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn is_private(&self) -> bool {
        self.private
    }

    /// True if only root and this process's user can change the directory's content. The path to it doesn't count.
    pub(crate) fn is_exclusive(&self) -> io::Result<bool> {
        Ok(is_writable_only_by_us(&fstat(&self.fd)?))
    }

    /// The user id of the owner.
    pub(crate) fn owner_uid(&self) -> io::Result<u32> {
        Ok(fstat(&self.fd)?.st_uid)
    }

    /// Sets the mode and, unless it is `None`, the group.
    pub(crate) fn set_access(&self, mode: u32, group: Option<u32>) -> io::Result<()> {
        if let Some(group) = group {
            std::os::unix::fs::fchown(&self.fd, None, Some(group))?;
        }
        Ok(fchmod(&self.fd, Mode::from_raw_mode(mode))?)
    }

    /// Opens the directory again. A lock belongs to an open file, so each lock needs one of its own.
    pub(crate) fn reopen(&self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(File::from(openat(&self.fd, c".", flags, Mode::empty())?))
    }

    /// The names in the directory, without `.` and `..`.
    pub(crate) fn list_names(&self) -> io::Result<Vec<OsString>> {
        let entries = rustix::fs::Dir::read_from(&self.fd)?;
        let names = entries.map(|entry| Ok(OsString::from_vec(entry?.file_name().to_bytes().to_vec())));
        names.filter(|name| !matches!(name, Ok(name) if name == "." || name == "..")).collect()
    }

    pub(crate) fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    /// Reads a regular file in the directory. A link is an error.
    pub(crate) fn read_file(&self, name: &str) -> io::Result<String> {
        // NONBLOCK, because opening a FIFO waits for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.fd, name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(ErrorKind::InvalidInput.into());
        }
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(text)
    }

    /// True if a regular file of that name exists and isn't empty.
    pub(crate) fn has_nonempty_file(&self, name: &OsStr) -> bool {
        statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| has_kind(&stat, FileType::RegularFile) && stat.st_size > 0)
    }

    /// Replaces a file in one step, so that a reader never sees half of it. A link of that name is replaced, not followed.
    pub(crate) fn replace_file(&self, name: &OsStr, text: &str, mode: u32) -> io::Result<()> {
        let mut temporary = name.to_owned();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let mut file = Temporary::create(self.fd.try_clone()?, temporary)?;
        file.write([text.as_bytes()], mode)?;
        // No sync: these files describe running processes, and a crash of the host ends those.
        file.rename_to(name)
    }

    /// Overwrites the beginning of a regular file, and makes a missing one. A file that is long enough needs no free
    /// space on the disk.
    pub(crate) fn overwrite_file(&self, name: &str, bytes: &[u8], mode: u32, group: Option<u32>) -> io::Result<()> {
        // No TRUNC: the file keeps its blocks, which a full disk could not give back.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.fd, name, flags, Mode::from_raw_mode(0o600))?);
        if !file.metadata()?.is_file() {
            return Err(ErrorKind::InvalidInput.into());
        }
        if let Some(group) = group {
            std::os::unix::fs::fchown(&file, None, Some(group))?;
        }
        fchmod(&file, Mode::from_raw_mode(mode))?;
        file.write_all(bytes)
    }
}

/// A walk down a path, one directory at a time.
struct Walk {
    fd: OwnedFd,
    path: PathBuf,
    /// True if each directory so far holds the next one safely.
    safe: bool,
    /// The value of `safe` for each directory above, which `..` restores.
    safe_above: Vec<bool>,
}

impl Walk {
    fn from_root() -> io::Result<Self> {
        let fd = openat(CWD, c"/", directory_flags(), Mode::empty())?;
        Ok(Self { fd, path: PathBuf::from("/"), safe: true, safe_above: Vec::new() })
    }

    /// Enters the directory of that name, or the one above for `..`. At a link it stays, and returns the link's target.
    fn enter_entry(&mut self, name: &OsStr, missing: Missing) -> io::Result<Option<PathBuf>> {
        if name == ".." {
            self.safe = self.safe_above.pop().unwrap_or(true);
            self.path.pop();
            self.fd = openat(&self.fd, c"..", directory_flags(), Mode::empty())?;
            return Ok(None);
        }
        let parent = fstat(&self.fd)?;
        let entry = match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(entry) => entry,
            Err(Errno::NOENT) => match missing {
                // Without root's rights, a lesser user gains nothing here, so any place is safe.
                Missing::Create(mode) if self.safe && is_writable_only_by_us(&parent) || !geteuid().is_root() => {
                    match mkdirat(&self.fd, name, Mode::from_raw_mode(mode)) {
                        // Another start may have made it meanwhile.
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                    statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?
                }
                Missing::Create(_) => {
                    return Err(self.unsafe_error(name, "is not made in a directory that others can change"));
                }
                Missing::Fail => return Err(Errno::NOENT.into()),
            },
            Err(errno) => return Err(errno.into()),
        };
        let held = holds_safely(&parent, &entry);
        if has_kind(&entry, FileType::Symlink) {
            if !(self.safe && held) && geteuid().is_root() {
                return Err(self.unsafe_error(name, "is a link that others can change: it is not followed"));
            }
            let target = readlinkat(&self.fd, name, Vec::new())?;
            return Ok(Some(PathBuf::from(OsString::from_vec(target.into_bytes()))));
        }
        // NOFOLLOW, because the entry may have become a link since statat(2).
        self.fd = openat(&self.fd, name, directory_flags() | OFlags::NOFOLLOW, Mode::empty())?;
        self.safe_above.push(self.safe);
        self.safe = self.safe && held;
        self.path.push(name);
        Ok(None)
    }

    fn unsafe_error(&self, name: &OsStr, why: &str) -> io::Error {
        io::Error::new(ErrorKind::PermissionDenied, format!("{} {why}", self.path.join(name).display()))
    }
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC
}

fn split_path(path: &Path) -> impl Iterator<Item = OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.collect::<Vec<_>>().into_iter()
}

fn prepend_path(rest: &mut VecDeque<OsString>, path: &Path) {
    let names: Vec<OsString> = split_path(path).collect();
    names.into_iter().rev().for_each(|name| rest.push_front(name));
}

fn has_kind(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind
}

/// True if only root and this process's user can exchange that entry of the directory.
fn holds_safely(directory: &Stat, entry: &Stat) -> bool {
    const STICKY: u32 = 0o1000;
    // In a sticky directory, only the owners of the directory and of the entry can rename or delete it (unlink(2)).
    let sticky = directory.st_mode & STICKY != 0 && is_trusted_user(directory.st_uid) && is_trusted_user(entry.st_uid);
    is_writable_only_by_us(directory) || sticky
}

/// True if only root and this process's user can write there.
fn is_writable_only_by_us(stat: &Stat) -> bool {
    // The members of group 0 count as root.
    let by_group = stat.st_mode & 0o020 != 0 && stat.st_gid != 0;
    is_trusted_user(stat.st_uid) && !by_group && stat.st_mode & 0o002 == 0
}

fn is_trusted_user(user: u32) -> bool {
    user == 0 || user == geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn open(path: &Path) -> io::Result<Directory> {
        Directory::open(path, Missing::Fail)
    }

    /// A directory of its own, by its real path.
    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        (dir, path)
    }

    #[test]
    fn the_path_is_the_real_one() {
        let (_dir, path) = scratch();
        fs::create_dir(path.join("real")).unwrap();
        symlink("real", path.join("link")).unwrap();
        symlink(path.join("link"), path.join("again")).unwrap();
        for name in ["real", "link", "again", "real/../link/."] {
            assert_eq!(open(&path.join(name)).unwrap().path(), path.join("real"), "{name}");
        }
        assert_eq!(open(Path::new("/..")).unwrap().path(), Path::new("/"));
        symlink("loop", path.join("loop")).unwrap();
        assert!(open(&path.join("loop")).is_err());
        assert_eq!(open(&path.join("none")).unwrap_err().kind(), ErrorKind::NotFound);
        let made = Directory::open(&path.join("a/b"), Missing::Create(0o750)).unwrap();
        assert!(made.is_private() && made.path() == path.join("a/b"));
    }

    #[test]
    fn a_directory_that_others_can_change_is_not_private() {
        let (_dir, path) = scratch();
        let inner = path.join("inner");
        fs::create_dir(&inner).unwrap();
        assert!(open(&inner).unwrap().is_private());
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(!open(&inner).unwrap().is_private(), "anybody may write there");
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(!open(&inner).unwrap().is_private(), "anybody may exchange it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(open(&inner).unwrap().is_private(), "as in /tmp");
    }

    #[test]
    fn root_follows_no_link_that_others_can_change() {
        let (_dir, path) = scratch();
        let (loose, secret) = (path.join("loose"), path.join("secret"));
        fs::create_dir(&loose).unwrap();
        fs::create_dir(&secret).unwrap();
        symlink(&secret, loose.join("link")).unwrap();
        assert!(open(&loose.join("link")).is_ok());
        fs::set_permissions(&loose, fs::Permissions::from_mode(0o777)).unwrap();
        if geteuid().is_root() {
            let error = open(&loose.join("link")).unwrap_err();
            assert!(
                error.to_string().ends_with("loose/link is a link that others can change: it is not followed"),
                "{error}"
            );
            let error = Directory::open(&loose.join("new"), Missing::Create(0o755)).unwrap_err();
            assert!(error.to_string().contains("is not made in a directory that others can change"), "{error}");
        }
    }

    #[test]
    fn what_is_written_replaces_links() {
        let (_dir, path) = scratch();
        let dir = open(&path).unwrap();
        File::create(path.join("victim")).unwrap().write_all(b"as it was").unwrap();
        symlink("victim", path.join("file")).unwrap();
        symlink("victim", path.join("words")).unwrap();
        assert!(dir.read_file("file").is_err() && !dir.has_nonempty_file(OsStr::new("file")));
        dir.replace_file(OsStr::new("file"), "new", 0o644).unwrap();
        assert_eq!(dir.read_file("file").unwrap(), "new");
        assert_eq!(fs::metadata(path.join("file")).unwrap().mode() & 0o777, 0o644);
        assert!(dir.overwrite_file("words", b"new", 0o640, None).is_err());
        assert_eq!(dir.read_file("victim").unwrap(), "as it was");
        dir.overwrite_file("long", b"12345", 0o640, None).unwrap();
        dir.overwrite_file("long", b"ab", 0o640, None).unwrap();
        assert_eq!(dir.read_file("long").unwrap(), "ab345");
        let mut names = dir.list_names().unwrap();
        names.sort();
        assert_eq!(names, ["file", "long", "victim", "words"]);
    }
}
