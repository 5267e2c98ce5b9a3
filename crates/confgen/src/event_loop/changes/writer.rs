//! The thread that writes changes to the log of changes. A disk that fails stops nothing: changes are left out, and the log begins
//! anew once the disk takes lines.

use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::Batch;
use crate::state_dir::change_log::{ChangeFiles, LogKind, Mark, MarkKind, format_change, format_mark};

/// The disk has to take the lines this often. A machine that loses its power loses at most the changes of this time.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// The thread's state.
struct ChangeWriter {
    files: ChangeFiles,
    /// Changes were left out since the last line.
    has_gap: bool,
    /// The last write failed. The log has the first failure, and the recovery.
    is_failing: bool,
    is_dirty: bool,
    synced_at: Instant,
}

/// Writes batches until the sender is gone. `pass_on` gets each batch, and true if it is in the files.
pub(super) fn write_batches(state_dir: &Path, batches: &Receiver<Batch>, mut pass_on: impl FnMut(Batch, bool)) {
    let mut writer = ChangeWriter::new(state_dir);
    loop {
        let next = match writer.is_dirty {
            false => batches.recv().map_err(|_| RecvTimeoutError::Disconnected),
            true => batches.recv_timeout(SYNC_EVERY),
        };
        match next {
            Ok(batch) => {
                writer.write_batch(&batch);
                pass_on(batch, !writer.is_failing);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        writer.sync(SYNC_EVERY);
    }
    writer.sync(Duration::ZERO);
}

impl ChangeWriter {
    fn new(state_dir: &Path) -> Self {
        let files = ChangeFiles::new(state_dir);
        let has_gap = files.is_incomplete();
        Self { files, has_gap, is_failing: false, is_dirty: false, synced_at: Instant::now() }
    }

    fn write_batch(&mut self, batch: &Batch) {
        let written = self.append_batch(batch);
        match &written {
            Ok(()) if self.is_failing => tracing::info!("the log of changes takes lines again"),
            Err(error) if !self.is_failing => {
                tracing::error!(%error, "can't write the log of changes, leaving changes out");
            }
            _ => {}
        }
        self.is_failing = written.is_err();
        self.has_gap |= written.is_err();
        self.is_dirty |= written.is_ok();
    }

    fn append_batch(&mut self, Batch { mark, changes, .. }: &Batch) -> io::Result<()> {
        if self.has_gap || mark.mark == MarkKind::Begin {
            let begin = Mark { mark: MarkKind::Begin, ..mark.clone() };
            for kind in LogKind::ALL {
                self.files.append(kind, &format_mark(&begin)?, mark)?;
            }
            self.has_gap = false;
        }
        for kind in LogKind::ALL {
            let mut lines = Vec::new();
            for change in changes.iter().filter(|change| LogKind::of_key(&change.key) == kind) {
                lines.extend(format_change(change)?);
            }
            if !lines.is_empty() {
                self.files.append(kind, &lines, mark)?;
            }
        }
        Ok(())
    }

    fn sync(&mut self, every: Duration) {
        if !self.is_dirty || self.synced_at.elapsed() < every {
            return;
        }
        if let Err(error) = self.files.sync() {
            tracing::debug!(%error, "can't sync the log of changes");
        }
        (self.is_dirty, self.synced_at) = (false, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use discovery::balancer_api::AppliedChange;

    use super::*;

    #[test]
    fn a_disk_that_fails_leaves_a_gap_and_stops_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let blocked = dir.path().join("changes");
        crate::state_dir::replace_file(&blocked, b"a file in the place of the folder", 0o600).unwrap();
        let mark = |revision| Mark {
            mark: MarkKind::Continue,
            time: "2026-11-30T10:13:06Z".into(),
            cluster: "7".into(),
            revision,
        };
        let batch = |revision| {
            let key = "http-services/shop/domain".to_owned();
            let time = "2026-11-30T10:13:06Z".to_owned();
            let changes = vec![AppliedChange { revision, key, time, ..AppliedChange::default() }];
            Batch { number: 1, mark: mark(revision), changes }
        };
        let mut writer = ChangeWriter::new(dir.path());
        writer.write_batch(&batch(1));
        assert!(writer.is_failing);
        std::fs::remove_file(&blocked).unwrap();
        writer.write_batch(&batch(2));
        assert!(!writer.is_failing);
        let query = crate::state_dir::change_log::ChangeQuery { limit: 9, ..Default::default() };
        let read = crate::state_dir::change_log::read_changes(dir.path(), &query).unwrap();
        assert_eq!(read.changes.iter().map(|change| change.revision).collect::<Vec<_>>(), [2]);
        assert_eq!(read.since_revision, 2);
    }
}
