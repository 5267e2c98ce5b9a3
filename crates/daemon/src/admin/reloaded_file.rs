//! Files that are read anew when they change. Blocks.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// What tells one state of a file from the next: device and inode, size, and the times of its content and its place.
type Stamp = (u64, u64, u64, i64, i64, i64, i64);

fn read_stamp(path: &PathBuf) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()))
}

type Read<T> = Box<dyn Fn() -> Result<T, String> + Send + Sync>;

/// A value made from files. A new state of them that can't be read leaves the last good value, and is logged once.
pub(super) struct ReloadedFile<T> {
    paths: Vec<PathBuf>,
    read: Read<T>,
    seen: Mutex<(Vec<Option<Stamp>>, T)>,
}

impl<T: Clone> ReloadedFile<T> {
    /// Reads for the first time; then a failure is an error.
    pub(super) fn open(
        paths: Vec<PathBuf>,
        read: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        // The stamp comes first: what is written in between is read again.
        let stamps = paths.iter().map(read_stamp).collect();
        let value = read()?;
        Ok(Self { paths, read: Box::new(read), seen: Mutex::new((stamps, value)) })
    }

    /// The value of now.
    pub(super) fn get(&self) -> T {
        let stamps: Vec<_> = self.paths.iter().map(read_stamp).collect();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0 != stamps {
            seen.0 = stamps;
            match (self.read)() {
                Ok(value) => seen.1 = value,
                Err(reason) => tracing::warn!("admin port: {reason}; what was read before counts on"),
            }
        }
        seen.1.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_read_and_a_bad_one_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number");
        let put = |text: &str| {
            let new = tempfile::NamedTempFile::new_in(dir.path()).unwrap();
            std::io::Write::write_all(&mut new.as_file(), text.as_bytes()).unwrap();
            new.persist(&path).unwrap();
        };
        let from = path.clone();
        let read = move || {
            let text = fs::read_to_string(&from).map_err(|error| error.to_string())?;
            text.parse::<u32>().map_err(|error| error.to_string())
        };
        assert!(ReloadedFile::open(vec![path.clone()], read.clone()).is_err());
        put("1");
        let number = ReloadedFile::open(vec![path.clone()], read).unwrap();
        assert_eq!(number.get(), 1);
        put("2");
        assert_eq!(number.get(), 2);
        put("x");
        assert_eq!(number.get(), 2);
        fs::remove_file(&path).unwrap();
        assert_eq!(number.get(), 2);
        put("3");
        assert_eq!(number.get(), 3);
    }
}
