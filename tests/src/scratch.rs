//! A test's own folder.

use std::env::temp_dir;
use std::fs::{Permissions, rename, set_permissions};
use std::io::Write as _;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::{NamedTempFile, TempDir};

use crate::cleanup::folder_prefix;

/// A temporary folder, removed with its value unless the test fails: then it is left, and its path printed. One that a
/// `static` holds goes with the process.
pub struct Scratch(Option<TempDir>);

impl Scratch {
    /// A new empty folder. Its path is short: a Unix socket's has 107 bytes at most.
    pub fn new() -> Self {
        Self(Some(tempfile::Builder::new().prefix(&folder_prefix()).tempdir().expect("a temporary folder")))
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        self.0.as_ref().expect("only taken on drop").path()
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Scratch {
    type Target = Path;

    fn deref(&self) -> &Path {
        self.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(folder) = self.0.take()
            && std::thread::panicking()
        {
            // Under another name: the guard removes this process's own.
            let left = temp_dir().join(format!("failed-{}", folder.path().file_name().unwrap_or_default().display()));
            if rename(folder.keep(), &left).is_ok() {
                eprintln!("left for a look: {}", left.display());
            }
        }
    }
}

/// Puts a whole file in place by a rename, readable by all.
///
/// # Panics
/// When it can't, with the path.
pub fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    let path = path.as_ref();
    let folder = path.parent().expect("a file in a folder");
    let written = NamedTempFile::new_in(folder).and_then(|mut file| {
        file.write_all(content.as_ref())?;
        set_permissions(file.path(), Permissions::from_mode(0o644))?;
        Ok(file.persist(path)?)
    });
    written.unwrap_or_else(|error| panic!("writing {}: {error}", path.display()));
}
