//! Reads configuration files as HAProxy does: which files, their words, and the `server` lines in them. It writes none.

mod servers;
mod tokens;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use servers::{ServerLine, parse_servers};
pub use tokens::{ConfigWord, find_comment, tokenize, tokenize_with};

/// The keywords that open a section (configuration manuals, 2.6 to 3.2). A `server` line in `peers` is no backend's.
pub const SECTIONS: [&str; 20] = [
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "peers",
    "mailers",
    "resolvers",
    "userlist",
    "program",
    "cache",
    "ring",
    "http-errors",
    "fcgi-app",
    "log-forward",
    "log-profile",
    "crt-store",
    "traces",
    "acme",
    "namespace_list",
];

/// The longest file that is read: 256 MiB. A generated file of 20,000 services has some 40 MB.
const LONGEST: u64 = 256 << 20;

/// The error of a configuration file, or a directory of them, that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("can't read {path}: {source}")]
pub struct Unreadable {
    /// The file, or the directory.
    pub path: PathBuf,
    /// The system's error.
    pub source: io::Error,
}

/// Reads the whole text that HAProxy reads for these `-f` arguments, file by file. A directory stands for its `*.cfg`,
/// by name, without hidden ones.
///
/// # Errors
/// If one of them can't be read.
pub fn read_files(paths: &[PathBuf]) -> Result<String, Unreadable> {
    let mut text = String::new();
    for path in paths {
        for file in list_files(path).map_err(|source| Unreadable { path: path.clone(), source })? {
            // A comment may be in any encoding. All that this project looks for is ASCII.
            let read = regular_file::read(&file, LONGEST);
            let bytes = read.map_err(|source| Unreadable { path: file.clone(), source })?;
            text.push_str(&String::from_utf8_lossy(&bytes));
            // A last line without a line feed must not run into the next file's first one.
            text.push('\n');
        }
    }
    Ok(text)
}

/// Lists the files that HAProxy reads for a `-f` argument, in HAProxy's order. A directory stands for its `*.cfg`, by
/// name, without hidden ones and without directories. A link that leads nowhere is in the list, because HAProxy doesn't
/// start with one.
///
/// # Errors
/// If the directory can't be listed.
pub fn list_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".cfg") && !name.starts_with('.') && (file.is_file() || is_dangling_link(&file)) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn is_dangling_link(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|link| link.is_symlink()) && !path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_stands_for_its_files() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("20.cfg", "second"), ("10.cfg", "first"), (".hidden.cfg", "no"), ("notes.txt", "no")] {
            io::Write::write_all(&mut fs::File::create(dir.path().join(name)).unwrap(), text.as_bytes()).unwrap();
        }
        let last = dir.path().join("notes.txt");
        assert_eq!(read_files(&[dir.path().to_owned(), last]).unwrap(), "first\nsecond\nno\n");
        fs::create_dir(dir.path().join("30.cfg")).unwrap();
        std::os::unix::fs::symlink("/no/such/file", dir.path().join("40.cfg")).unwrap();
        let names = list_files(dir.path()).unwrap();
        let names: Vec<_> = names.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["10.cfg", "20.cfg", "40.cfg"]);
        let error = read_files(&[dir.path().join("none")]).unwrap_err();
        assert!(error.to_string().contains("/none: "), "{error}");
    }
}
