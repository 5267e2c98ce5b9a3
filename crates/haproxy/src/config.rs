//! Configuration files as HAProxy reads them: which ones, and the `server` lines in them.

mod servers;
mod words;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use servers::{ServerLine, servers};

/// A configuration file, or directory of them, that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("can't read {path}: {source}")]
pub struct Unreadable {
    /// Which.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// The whole text that HAProxy reads for these `-f` arguments, file by file: a directory stands for its
/// `*.cfg`, by name, without hidden ones.
///
/// # Errors
/// When one of them can't be read.
pub fn read(paths: &[PathBuf]) -> Result<String, Unreadable> {
    let mut text = String::new();
    for path in paths {
        for file in files(path).map_err(|source| Unreadable { path: path.clone(), source })? {
            // Comments may be in any encoding; what matters here is ASCII.
            let bytes = fs::read(&file).map_err(|source| Unreadable { path: file.clone(), source })?;
            text.push_str(&String::from_utf8_lossy(&bytes));
            text.push('\n');
        }
    }
    Ok(text)
}

fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".cfg") && !name.starts_with('.') && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
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
        assert_eq!(read(&[dir.path().to_owned(), last]).unwrap(), "first\nsecond\nno\n");
        let error = read(&[dir.path().join("none")]).unwrap_err();
        assert!(error.to_string().contains("/none: "), "{error}");
    }
}
