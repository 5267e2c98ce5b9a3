//! The folder of a generation: its maps, error pages and fingerprints. This module doesn't decide what they hold.
//!
//! A changed upstream changes none of them. So a folder that is in place is not written, and not even read.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::stamp::Stamp;
use super::{Error, FINGERPRINT, NEW_MODE, io_error, replace_file};
use crate::render::Rendered;
use crate::render::error_pages::ErrorPages;
use crate::render::restart_needed::ConfigFingerprint;
use crate::render::view::Maps;

/// The folder that this process wrote last.
#[derive(Debug)]
pub struct GenerationFolder {
    path: PathBuf,
    maps: Arc<Maps>,
    pages: Arc<ErrorPages>,
    fingerprint: Arc<ConfigFingerprint>,
    stamps: Vec<(PathBuf, Stamp)>,
}

impl GenerationFolder {
    /// Writes the files of a generation that differ from those on disk.
    pub fn write(path: PathBuf, rendered: &Rendered) -> Result<Self, Error> {
        fs::create_dir_all(&path).map_err(io_error("create", &path))?;
        let Maps { hosts, paths, urls, passthrough, checks } = &*rendered.maps;
        let maps_by_name =
            [("hosts", hosts), ("paths", paths), ("urls", urls), ("passthrough", passthrough), ("checks", checks)];
        let mut stamps = Vec::new();
        let mut write_file = |path: PathBuf, content: &[u8]| -> Result<(), Error> {
            replace_file(&path, content, NEW_MODE)?;
            let stamp = Stamp::read(&path)?;
            stamps.push((path, stamp));
            Ok(())
        };
        for (name, content) in maps_by_name {
            write_file(path.join(format!("{name}.map")), content.as_bytes())?;
        }
        for (name, content) in rendered.pages.files() {
            write_file(path.join(name), content)?;
        }
        let fingerprint = path.join(FINGERPRINT);
        let json = serde_json::to_vec(&*rendered.fingerprint)
            .map_err(|error| io_error("write", &fingerprint)(error.into()))?;
        write_file(fingerprint, &json)?;
        let (maps, pages) = (Arc::clone(&rendered.maps), Arc::clone(&rendered.pages));
        Ok(Self { path, maps, pages, fingerprint: Arc::clone(&rendered.fingerprint), stamps })
    }

    /// True if all files of the generation are in this folder, as this process wrote them.
    pub fn has_files_of(&self, path: &Path, rendered: &Rendered) -> bool {
        self.path == path
            && is_equal(&self.maps, &rendered.maps)
            && is_equal(&self.pages, &rendered.pages)
            && is_equal(&self.fingerprint, &rendered.fingerprint)
            && self.stamps.iter().all(|(path, stamp)| Stamp::read(path).is_ok_and(|found| found == *stamp))
    }
}

fn is_equal<T: PartialEq>(one: &Arc<T>, other: &Arc<T>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test edits files in place, as an operator does")]
mod tests {
    use super::*;

    #[test]
    fn only_a_folder_that_nothing_else_changed_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0123456789abcdef");
        let maps = Arc::new(Maps { hosts: "a.com a.com\n".into(), ..Maps::default() });
        let rendered = Rendered { maps: Arc::clone(&maps), ..Rendered::default() };
        let written = || GenerationFolder::write(path.clone(), &rendered).unwrap();
        let folder = written();
        assert!(folder.has_files_of(&path, &rendered));
        assert!(folder.has_files_of(&path, &Rendered { maps: Arc::new(Maps::clone(&maps)), ..rendered.clone() }));
        assert!(!folder.has_files_of(&path, &Rendered { maps: Arc::default(), ..rendered.clone() }));
        assert!(!folder.has_files_of(dir.path(), &rendered), "another generation");
        let hosts = path.join("hosts.map");
        fs::write(&hosts, "b.com b.com\n").unwrap();
        assert!(!folder.has_files_of(&path, &rendered), "edited");
        let folder = written();
        assert_eq!(fs::read_to_string(&hosts).unwrap(), maps.hosts);
        assert!(folder.has_files_of(&path, &rendered));
        fs::remove_file(path.join(FINGERPRINT)).unwrap();
        assert!(!folder.has_files_of(&path, &rendered), "removed");
    }
}
