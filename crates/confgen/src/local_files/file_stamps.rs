//! Compares the metadata of local files. It reads the content only of a file that changed a moment ago, and reports none of it.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha1::{Digest, Sha1};

/// A file that changed less than this ago may change again and keep its times. Linux stamps files with the time of its last timer tick
/// (1 to 10 ms). Some file systems count in whole seconds, and FAT in two.
const RECENT: Duration = Duration::from_secs(3);

/// The stamps of some paths at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileStamps(BTreeMap<PathBuf, Result<Stamp, io::ErrorKind>>);

/// The metadata that differs between two states of a file. Links are followed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    state: State,
    /// A digest of the content. `None` for a file that was old already when it was first read.
    content: Option<[u8; 20]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    // A file that is renamed over another one may keep length and times. Its inode differs.
    device: u64,
    inode: u64,
    /// The file's kind and permissions.
    mode: u32,
    owner: (u32, u32),
    /// Length, time of modification, time of change. `None` for a directory: its entries have stamps of their own.
    content: Option<(u64, Time, Time)>,
}

/// Seconds and nanoseconds since 1970.
type Time = (i64, i64);

impl FileStamps {
    /// Reads the stamps of the paths. `last` are the stamps before, and `now` is the system's clock.
    pub fn read_paths(paths: impl Iterator<Item = PathBuf>, last: &Self, now: SystemTime) -> Self {
        let stamps = paths.map(|path| {
            let known = last.0.get(&path).and_then(|stamp| stamp.as_ref().ok());
            let stamp = fs::metadata(&path).map(|found| Stamp::read(&path, &found, known, now));
            let stamp = stamp.map_err(|error| error.kind());
            (path, stamp)
        });
        // A path without a file counts like a path that isn't listed.
        Self(stamps.filter(|(_, stamp)| stamp.as_ref().err() != Some(&io::ErrorKind::NotFound)).collect())
    }

    /// The same stamps, of which a path without a file is a part.
    #[must_use]
    pub fn with_required(mut self, path: &Path) -> Self {
        self.0.entry(path.to_owned()).or_insert(Err(io::ErrorKind::NotFound));
        self
    }
}

impl Stamp {
    fn read(path: &Path, found: &Metadata, known: Option<&Self>, now: SystemTime) -> Self {
        let state = State::from_metadata(found);
        let is_known = known.is_some_and(|known| known.state == state);
        let content = match known {
            // Once the file is old, its next change is sure to have another time.
            Some(known) if is_known && !is_recent(found, now) => known.content,
            _ if is_recent(found, now) => digest_content(path, found),
            _ => None,
        };
        Self { state, content }
    }
}

impl State {
    fn from_metadata(found: &Metadata) -> Self {
        let content = (found.len(), (found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()));
        Self {
            device: found.dev(),
            inode: found.ino(),
            mode: found.mode(),
            owner: (found.uid(), found.gid()),
            content: (!found.is_dir()).then_some(content),
        }
    }
}

/// True if the file changed shortly before `now`, or after it: the clock may have been set back.
fn is_recent(found: &Metadata, now: SystemTime) -> bool {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let recent = i64::try_from(now.saturating_sub(RECENT.as_secs())).unwrap_or(i64::MAX);
    found.ctime() >= recent
}

/// `None` for a file that can't be read or has more than 1 MiB.
fn digest_content(path: &Path, found: &Metadata) -> Option<[u8; 20]> {
    // No program writes a longer file twice within one timer tick, so its times are enough.
    if !found.is_file() {
        return None;
    }
    regular_file::read(path, regular_file::SMALL).ok().map(|content| Sha1::digest(content).into())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test writes files as other tools do, in place too")]
mod tests {
    use std::fs::{File, Permissions};
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    type Step = Box<dyn Fn(&Seen)>;

    /// A file that is looked at, at a time of the test's.
    struct Seen {
        dir: tempfile::TempDir,
        last: FileStamps,
        now: SystemTime,
    }

    impl Seen {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self { dir, last: FileStamps::default(), now: SystemTime::now() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// Whether a look sees something else than the one before.
        fn is_other(&mut self) -> bool {
            let new = FileStamps::read_paths([self.path("file")].into_iter(), &self.last, self.now);
            std::mem::replace(&mut self.last, new.clone()) != new
        }

        fn set_times(&self, name: &str, time: SystemTime) {
            File::options().write(true).open(self.path(name)).unwrap().set_modified(time).unwrap();
        }
    }

    #[test]
    fn every_kind_of_change_is_seen_and_nothing_else() {
        let mut seen = Seen::new();
        assert!(!seen.is_other(), "there is none");
        let mut steps: Vec<(&str, Step)> = Vec::new();
        let write =
            |name: &'static str, text: &'static str| move |seen: &Seen| fs::write(seen.path(name), text).unwrap();
        steps.push(("it comes", Box::new(write("file", "one"))));
        steps.push(("same length", Box::new(write("file", "two"))));
        steps.push((
            "chmod",
            Box::new(|seen| {
                fs::set_permissions(seen.path("file"), Permissions::from_mode(0o400)).unwrap();
            }),
        ));
        steps.push((
            "renamed over it, with its length and time",
            Box::new(|seen| {
                let time = fs::metadata(seen.path("file")).unwrap().modified().unwrap();
                fs::write(seen.path("new"), "six").unwrap();
                seen.set_times("new", time);
                fs::rename(seen.path("new"), seen.path("file")).unwrap();
            }),
        ));
        steps.push((
            "a link",
            Box::new(|seen| {
                fs::write(seen.path("target-1"), "six").unwrap();
                fs::remove_file(seen.path("file")).unwrap();
                symlink("target-1", seen.path("file")).unwrap();
            }),
        ));
        steps.push((
            "a link to another file",
            Box::new(|seen| {
                fs::write(seen.path("target-2"), "six").unwrap();
                symlink("target-2", seen.path("link")).unwrap();
                fs::rename(seen.path("link"), seen.path("file")).unwrap();
            }),
        ));
        steps.push((
            "a directory",
            Box::new(|seen| {
                fs::remove_file(seen.path("file")).unwrap();
                fs::create_dir(seen.path("file")).unwrap();
            }),
        ));
        steps.push(("it goes", Box::new(|seen| fs::remove_dir(seen.path("file")).unwrap())));
        for (what, step) in &steps {
            step(&seen);
            assert!(seen.is_other(), "{what}");
            assert!(!seen.is_other(), "{what}, once");
        }
    }

    #[test]
    fn a_change_without_a_trace_is_seen_while_the_file_is_new() {
        let mut seen = Seen::new();
        fs::write(seen.path("file"), "one").unwrap();
        assert!(seen.is_other());
        // The test makes the states equal, so that only the content differs.
        let FileStamps(stamps) = &mut seen.last;
        let before = stamps.clone();
        File::options().write(true).open(seen.dir.path().join("file")).unwrap().write_all(b"two").unwrap();
        for (path, stamp) in before {
            let state = State::from_metadata(&fs::metadata(&path).unwrap());
            let Ok(Stamp { content, .. }) = stamp else { panic!() };
            stamps.insert(path, Ok(Stamp { state, content }));
        }
        assert!(seen.is_other());
    }

    #[test]
    fn a_file_that_grows_old_is_no_change() {
        let mut seen = Seen::new();
        fs::write(seen.path("file"), "one").unwrap();
        assert!(seen.is_other());
        seen.now += RECENT * 2;
        assert!(!seen.is_other());
        let mut later = Seen { last: FileStamps::default(), ..seen };
        assert!(later.is_other(), "an old file that is seen first");
        assert!(later.last.0.values().all(|stamp| stamp.as_ref().unwrap().content.is_none()), "is not read");
        assert!(!later.is_other());
    }
}
