//! The log of changes: JSON lines below `changes/` in the state directory. Files are appended to, and replaced by numbered ones once
//! they are long. This module doesn't decide which changes are logged.
//!
//! Settings and upstreams have files of their own, so that upstreams that come and go push no setting out.

mod read;
mod rotation;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use discovery::Key;
use discovery::balancer_api::AppliedChange;
use serde::{Deserialize, Serialize};

pub use read::{ChangeQuery, read_changes};
use rotation::{Step, plan_rotation};

/// The folder of the log, below the state directory.
const FOLDER: &str = "changes";

/// The length at which a file is closed. A change of a setting has some 400 bytes, so a file has ten thousand.
const FILE_BYTES: u64 = 4 << 20;

/// The permissions of the files. A value of the store may be a secret.
const MODE: u32 = 0o600;

/// The time in which the lines of a change are usually on their way to the disk.
const WRITTEN_WITHIN: Duration = Duration::from_millis(200);
const POLL_EVERY: Duration = Duration::from_millis(5);

/// The end of the log, which the event loop, the writer and the admin port share.
#[derive(Debug, Default)]
pub struct LogEnd {
    /// Every change up to this revision was sent to the writer. 0 while that isn't known.
    until: AtomicI64,
    /// The number of the last batch that was sent, and of the last one that is in the files.
    sent: AtomicU64,
    written: AtomicU64,
}

impl LogEnd {
    pub fn set_until(&self, revision: i64) {
        self.until.store(revision, Ordering::Release);
    }

    pub fn set_sent(&self, number: u64) {
        self.sent.store(number, Ordering::Release);
    }

    pub fn set_written(&self, number: u64) {
        self.written.store(number, Ordering::Release);
    }

    /// The revision up to which the files have every change. Waits briefly for the writer. 0 if that isn't known.
    pub fn await_until(&self) -> i64 {
        // In this order: a batch that is sent afterwards is newer than the revision.
        let until = self.until.load(Ordering::Acquire);
        let sent = self.sent.load(Ordering::Acquire);
        let deadline = Instant::now() + WRITTEN_WITHIN;
        while self.written.load(Ordering::Acquire) < sent {
            if Instant::now() >= deadline {
                return 0;
            }
            std::thread::sleep(POLL_EVERY);
        }
        until
    }
}

/// One of the two logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogKind {
    /// Settings, overrides, and balancers that come and go.
    Settings,
    /// Records of upstreams.
    Upstreams,
}

impl LogKind {
    pub const ALL: [Self; 2] = [Self::Settings, Self::Upstreams];

    /// The log of a key.
    pub fn of_key(key: &str) -> Self {
        match key.parse() {
            Ok(Key::Upstream { .. }) => Self::Upstreams,
            _ => Self::Settings,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Upstreams => "upstreams",
        }
    }

    /// The most files, the current one included: 32 MiB of settings, 16 MiB of upstreams.
    fn most_files(self) -> usize {
        match self {
            Self::Settings => 8,
            Self::Upstreams => 4,
        }
    }

    /// The file with this number. 0 is the current one, higher numbers are older.
    fn path(self, folder: &Path, number: usize) -> PathBuf {
        match number {
            0 => folder.join(format!("{}.jsonl", self.name())),
            _ => folder.join(format!("{}.{number}.jsonl", self.name())),
        }
    }

    /// The numbers of the files that exist, in ascending order.
    fn list_files(self, folder: &Path) -> Vec<usize> {
        (0..self.most_files()).filter(|number| self.path(folder, *number).exists()).collect()
    }
}

/// A line that says from where on the log is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub mark: MarkKind,
    /// RFC 3339 in UTC.
    pub time: String,
    /// The store's cluster id, as text.
    pub cluster: String,
    /// The store's revision. Every later change is in the log.
    pub revision: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MarkKind {
    /// Changes before this line may be missing.
    Begin,
    /// The lines before this one are in an older file.
    Continue,
}

/// The files as this process appends to them.
#[derive(Debug)]
pub struct ChangeFiles {
    folder: PathBuf,
    logs: [OpenLog; 2],
}

#[derive(Debug)]
struct OpenLog {
    kind: LogKind,
    /// `None` before the first line, and after a failure.
    file: Option<File>,
    bytes: u64,
    /// The file's last line may be cut, by a crash or a full disk.
    is_torn: bool,
}

impl ChangeFiles {
    pub fn new(state_dir: &Path) -> Self {
        let logs = LogKind::ALL.map(|kind| OpenLog { kind, file: None, bytes: 0, is_torn: false });
        Self { folder: state_dir.join(FOLDER), logs }
    }

    /// True if a log has no file.
    pub fn is_incomplete(&self) -> bool {
        self.logs.iter().any(|log| log.kind.list_files(&self.folder).is_empty())
    }

    /// Appends whole lines to a log. `mark` begins a new file.
    pub fn append(&mut self, kind: LogKind, lines: &[u8], mark: &Mark) -> io::Result<()> {
        let folder = &self.folder;
        self.logs.iter_mut().filter(|log| log.kind == kind).try_for_each(|log| {
            let written = log.append(folder, lines, mark);
            if written.is_err() {
                // A full disk may have taken a part of a line.
                (log.file, log.is_torn) = (None, true);
            }
            written
        })
    }

    /// Has the disk take all lines so far.
    pub fn sync(&self) -> io::Result<()> {
        self.logs.iter().filter_map(|log| log.file.as_ref()).try_for_each(File::sync_data)
    }
}

impl OpenLog {
    fn append(&mut self, folder: &Path, lines: &[u8], mark: &Mark) -> io::Result<()> {
        if self.file.is_none() {
            fs::create_dir_all(folder)?;
            self.open(folder)?;
        }
        if self.bytes > 0 && self.bytes + lines.len() as u64 > FILE_BYTES {
            self.rotate(folder)?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut bytes = Vec::with_capacity(lines.len() + 200);
        if self.is_torn {
            // The next line must not continue a cut one.
            bytes.push(b'\n');
        } else if self.bytes == 0 {
            bytes.extend(format_line(&Mark { mark: MarkKind::Continue, ..mark.clone() })?);
        }
        bytes.extend_from_slice(lines);
        // One write, so that a crash cuts at most its end.
        file.write_all(&bytes)?;
        self.bytes += bytes.len() as u64;
        self.is_torn = false;
        Ok(())
    }

    fn open(&mut self, folder: &Path) -> io::Result<()> {
        let path = self.kind.path(folder, 0);
        let mut file = OpenOptions::new().create(true).append(true).read(true).mode(MODE).open(path)?;
        self.bytes = file.metadata()?.len();
        if self.bytes > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            self.is_torn = last != *b"\n";
        }
        self.file = Some(file);
        Ok(())
    }

    fn rotate(&mut self, folder: &Path) -> io::Result<()> {
        for step in plan_rotation(&self.kind.list_files(folder), self.kind.most_files()) {
            match step {
                Step::Remove(number) => fs::remove_file(self.kind.path(folder, number))?,
                Step::Rename(from, to) => fs::rename(self.kind.path(folder, from), self.kind.path(folder, to))?,
            }
        }
        if let Some(file) = self.file.take() {
            // `sync` knows the current file only.
            file.sync_data()?;
        }
        self.is_torn = false;
        self.open(folder)
    }
}

/// The line of a mark.
pub fn format_mark(mark: &Mark) -> serde_json::Result<Vec<u8>> {
    format_line(mark)
}

/// The line of a change.
pub fn format_change(change: &AppliedChange) -> serde_json::Result<Vec<u8>> {
    format_line(change)
}

fn format_line(content: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    // JSON escapes line breaks, so the one at the end is the only one.
    let mut line = serde_json::to_vec(content)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests;
