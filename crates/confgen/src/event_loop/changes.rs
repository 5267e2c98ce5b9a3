//! Changes of keys on their way to the log of changes: noted when they come, written once HAProxy has them. A thread of its own
//! writes them, so that no reconcile waits for a disk.

mod flaps;
mod hooks;
mod lines;
mod tracker;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use discovery::balancer_api::AppliedChange;
use discovery::{Change, StoreRevision, Topology};

use crate::cli::HookArgs;
use crate::state_dir::change_log::{LogEnd, Mark, MarkKind};
use crate::status::ReconcileStatus;
use hooks::Hooks;
use tracker::{ChangeTracker, Noted};

/// The most batches that wait for the disk. A batch has the changes of one reconcile.
const MOST_WAITING: usize = 256;

/// The wait for the last lines at the end. A disk that hangs must not hold up a stop.
const FINISH_WITHIN: Duration = Duration::from_secs(1);

/// A message to the writer.
#[derive(Debug)]
struct Batch {
    number: u64,
    /// The present place in the store. It begins the log anew if changes may be missing.
    mark: Mark,
    changes: Vec<AppliedChange>,
}

/// Notes changes, and hands them to the writer.
pub struct ChangeRecorder {
    tracker: ChangeTracker,
    /// `None` once the writer has ended.
    batches: Option<SyncSender<Batch>>,
    writer: Option<JoinHandle<()>>,
    store: StoreRevision,
    /// Changes may be missing in the log: the store was reset, or the writer didn't keep up.
    has_gap: bool,
    /// The number of the last batch.
    sent: u64,
    end: Arc<LogEnd>,
}

impl ChangeRecorder {
    /// Starts the writer. `node` is the balancer's name, which log lines have.
    pub fn spawn(state_dir: PathBuf, node: String, hooks: &HookArgs, end: Arc<LogEnd>) -> anyhow::Result<Self> {
        let mut hooks = Hooks::spawn(hooks, &node)?;
        let (batches, received) = sync_channel(MOST_WAITING);
        let (lines, to_log) = sync_channel(MOST_WAITING);
        let logger = std::thread::Builder::new().name("change-lines".into());
        // The thread ends with the writer, which has the other end of its channel.
        drop(logger.spawn(move || lines::log_changes(&node, &to_log))?);
        let thread = std::thread::Builder::new().name("changes".into());
        let written = Arc::clone(&end);
        let writer = thread.spawn(move || {
            writer::write_batches(&state_dir, &received, |batch, is_written| {
                if is_written {
                    written.set_written(batch.number);
                }
                hooks.queue(&batch.changes);
                // A log that takes no line must not hold up the file.
                let _ = lines.try_send(batch.changes);
            });
        })?;
        let store = StoreRevision::default();
        Ok(Self {
            tracker: ChangeTracker::default(),
            batches: Some(batches),
            writer: Some(writer),
            store,
            has_gap: false,
            sent: 0,
            end,
        })
    }

    /// Notes the changes that a listing shows. `known` is the store as it was before. All zero if nothing was known.
    pub fn note_listing(&mut self, known: StoreRevision, before: &Topology, now: StoreRevision, after: &Topology) {
        self.store = now;
        let is_continued = known.cluster != 0 && known.compare(now).is_ok();
        if is_continued {
            self.tracker.note_listing(before, after, (known.revision, now.revision), &Noted::now());
        } else {
            // The store's keys were written before this confgen followed it.
            self.has_gap = true;
        }
        // A log without a file begins now, and not with the first change.
        if self.has_gap || self.sent == 0 {
            self.send(Vec::new());
        }
        self.update_end();
    }

    /// Notes changes that confgen followed. `before` is the store without them.
    pub fn note_changes(&mut self, before: &Topology, revision: i64, changes: &[Change]) {
        self.store.revision = self.store.revision.max(revision);
        self.tracker.note_changes(before, changes, &Noted::now());
        self.update_end();
    }

    /// True if a balancer came or went. That needs nothing of HAProxy.
    pub fn has_balancers(&self) -> bool {
        self.tracker.has_ready()
    }

    /// Writes the changes that HAProxy has by now.
    pub fn record_applied(&mut self, status: &ReconcileStatus) {
        if self.tracker.is_empty() {
            return;
        }
        let applied = status.applied.map_or(0, |applied| applied.revision);
        let done = self.tracker.take_applied(applied, &status.pending, &status.quarantined, Instant::now());
        if !done.is_empty() {
            self.send(done);
            self.update_end();
        }
    }

    /// Says up to which revision every change was sent. Behind `send`, so that a reader waits for what was sent.
    fn update_end(&self) {
        let until = self.tracker.oldest_waiting().map_or(self.store.revision, |revision| revision - 1);
        self.end.set_until(if self.has_gap { 0 } else { until });
    }

    fn send(&mut self, changes: Vec<AppliedChange>) {
        let Some(batches) = &self.batches else { return };
        let kind = if self.has_gap { MarkKind::Begin } else { MarkKind::Continue };
        let StoreRevision { cluster, revision, .. } = self.store;
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let mark = Mark { mark: kind, time, cluster: cluster.to_string(), revision };
        // The event loop must not wait for a disk. After a lost batch the log begins anew.
        self.sent += 1;
        match batches.try_send(Batch { number: self.sent, mark, changes }) {
            Ok(()) => {
                self.has_gap = false;
                self.end.set_sent(self.sent);
            }
            Err(TrySendError::Full(_)) => self.has_gap = true,
            Err(TrySendError::Disconnected(_)) => self.batches = None,
        }
    }

    /// Waits briefly until the last lines are written.
    pub async fn finish(&mut self) {
        self.batches = None;
        if let Some(writer) = self.writer.take() {
            let ended = tokio::task::spawn_blocking(move || drop(writer.join()));
            let _ = tokio::time::timeout(FINISH_WITHIN, ended).await;
        }
    }
}
