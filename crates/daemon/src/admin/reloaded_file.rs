//! Values of files that are read again when the files change. Blocks. It watches nothing: each use compares stamps.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Stamp of a file's state: device and inode, size, times of its content and of its inode.
type Stamp = (u64, u64, u64, i64, i64, i64, i64);

fn read_stamp(path: &PathBuf) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()))
}

type Read<T> = Box<dyn Fn() -> Result<T, String> + Send + Sync>;

/// A value made from files. If a new state can't be read, the last good value stays, and the error is logged once.
pub(super) struct ReloadedFile<T> {
    paths: Vec<PathBuf>,
    read: Read<T>,
    seen: Mutex<(Vec<Option<Stamp>>, T)>,
}

impl<T: Clone> ReloadedFile<T> {
    /// Reads the value for the first time. Only then a failure is an error.
    pub(super) fn open(
        paths: Vec<PathBuf>,
        read: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        // Stamps come first: a change during the read is then read again.
        let stamps = paths.iter().map(read_stamp).collect();
        let value = read()?;
        Ok(Self { paths, read: Box::new(read), seen: Mutex::new((stamps, value)) })
    }

    /// Current value, read again if a stamp changed.
    pub(super) fn get(&self) -> T {
        let stamps: Vec<_> = self.paths.iter().map(read_stamp).collect();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0 != stamps {
            let file = self.list_changed(&seen.0, &stamps);
            // Kept after a failure too, so that each bad state is read and logged once.
            seen.0 = stamps;
            match (self.read)() {
                Ok(value) => seen.1 = value,
                Err(reason) => {
                    tracing::warn!(file, reason, "admin port can't reload a file, keeping its last good value");
                }
            }
        }
        seen.1.clone()
    }

    /// Paths of the files that changed, separated by commas.
    fn list_changed(&self, before: &[Option<Stamp>], now: &[Option<Stamp>]) -> String {
        let stamps = before.iter().zip(now);
        let changed = self.paths.iter().zip(stamps).filter(|(_, (before, now))| before != now);
        changed.map(|(path, _)| path.display().to_string()).collect::<Vec<_>>().join(",")
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
