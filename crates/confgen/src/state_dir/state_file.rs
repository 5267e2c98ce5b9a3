//! What confgen must know after its own restart: the last known good values, the claims and the store. `state.json` has all of it
//! as of one moment, `journal` the changes since then. This module doesn't decide when the state is saved.
//!
//! A snapshot and its journal have the same number. A crash between the two writes leaves a new snapshot beside the journal of the
//! previous one, which the number tells.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::journal::{Journal, StateChange, format_change, format_header, parse_journal};
use super::stamp::Stamp;
use super::{Error, LARGEST, io_error, load_json, load_json_leniently, replace_file};
use crate::desired::{DesiredState, LastKnownGood};
use crate::store::removal_guard::PersistedUpstream;
use crate::store::{PersistedStore, RetainedKeys, StoreChange, StoreRevision};

/// The whole state as of one moment.
const SNAPSHOT: &str = "state.json";
/// The changes since then.
const JOURNAL: &str = "journal";

/// The two files of an older confgen, in the place of the snapshot.
const OLD_STORE: &str = "store.json";
const OLD_MEMORY: &str = "memory.json";

/// The permissions of the files. A value of the store may be a secret.
const MODE: u32 = 0o600;

/// A journal is folded into a new snapshot once it is longer than the snapshot, and than this. Some dozen changes have 4 KiB.
const SHORTEST_FOLDED: u64 = 4096;

/// The state to save. A clone costs little.
#[derive(Clone, Debug)]
pub struct SavedState {
    /// Has the keys, the good values and the claims.
    pub desired: DesiredState,
    /// The newest revision of the store that is known.
    pub position: StoreRevision,
    /// The keys that are retained since a reset.
    pub held: Arc<RetainedKeys>,
    /// The upstreams that the removal guard retains.
    pub kept: Vec<PersistedUpstream>,
    /// The losses that the removal guard counts.
    pub lost: Vec<PersistedUpstream>,
}

/// `state.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Snapshot {
    snapshot: u64,
    memory: LastKnownGood,
    store: PersistedStore,
}

/// The two files, and what they hold.
#[derive(Debug)]
pub struct StateFile {
    dir: PathBuf,
    /// The highest number of a snapshot or journal so far. `None` before the files were read.
    number: Option<u64>,
    /// `None` if the next save has to write a snapshot: after a start, and after a failure.
    written: Option<Written>,
}

/// The files as this process wrote them last.
#[derive(Debug)]
struct Written {
    state: SavedState,
    snapshot: Stamp,
    journal: Stamp,
}

impl SavedState {
    /// The state as the next confgen loads it.
    pub fn to_loaded(&self) -> (LastKnownGood, PersistedStore) {
        let Snapshot { memory, store, .. } = self.to_snapshot(0);
        (memory, store)
    }

    fn to_snapshot(&self, number: u64) -> Snapshot {
        let mut store = PersistedStore::from_entries(self.desired.entries(), self.position)
            .with_retained_keys(RetainedKeys::clone(&self.held));
        (store.kept, store.lost) = (self.kept.clone(), self.lost.clone());
        Snapshot { snapshot: number, memory: self.desired.to_last_known_good(), store }
    }

    fn changes_since(&self, before: &Self) -> StateChange {
        let entries = self.desired.compare_entries(&before.desired);
        let is_held_changed = !Arc::ptr_eq(&self.held, &before.held) && self.held != before.held;
        let mut store = StoreChange::from_entries(entries.written, entries.removed);
        store.position = (self.position != before.position).then_some(self.position);
        store.held = is_held_changed.then(|| RetainedKeys::clone(&self.held));
        store.kept = (self.kept != before.kept).then(|| self.kept.clone());
        store.lost = (self.lost != before.lost).then(|| self.lost.clone());
        StateChange { memory: self.desired.compare_last_known_good(&before.desired), store }
    }
}

impl StateFile {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), number: None, written: None }
    }

    /// The names of all files that a save may replace.
    pub fn names() -> [&'static str; 4] {
        [SNAPSHOT, JOURNAL, OLD_STORE, OLD_MEMORY]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The saved state. A file that can't be parsed is put aside, and its part of the state is empty. The damaged end of a journal
    /// does not count.
    pub fn load(&mut self) -> Result<(LastKnownGood, PersistedStore), Error> {
        let is_old = self.has_old_files();
        let mut snapshot: Snapshot = load_json(&self.path(SNAPSHOT))?;
        let mut journal = self.read_journal()?;
        if is_old {
            journal.changes.clear();
            snapshot.memory = load_json(&self.path(OLD_MEMORY))?;
            snapshot.store = load_json(&self.path(OLD_STORE))?;
        }
        Ok(self.fold(snapshot, journal))
    }

    /// The same, but unreadable files count as missing ones, and nothing is put aside.
    pub fn load_leniently(&mut self) -> (LastKnownGood, PersistedStore) {
        let (mut snapshot, mut journal) = self.read_leniently();
        // A running confgen may have replaced both files between the two reads.
        if journal.snapshot.is_some_and(|number| number > snapshot.snapshot) {
            (snapshot, journal) = self.read_leniently();
        }
        if self.has_old_files() {
            journal.changes.clear();
            snapshot.memory = load_json_leniently(&self.path(OLD_MEMORY));
            snapshot.store = load_json_leniently(&self.path(OLD_STORE));
        }
        self.fold(snapshot, journal)
    }

    fn read_leniently(&self) -> (Snapshot, Journal) {
        (load_json_leniently(&self.path(SNAPSHOT)), self.read_journal().unwrap_or_default())
    }

    /// True if the state is in the files of an older confgen. Every save of this one removes them, so an older confgen wrote them
    /// last.
    fn has_old_files(&self) -> bool {
        self.path(OLD_STORE).exists() || (self.path(OLD_MEMORY).exists() && !self.path(SNAPSHOT).exists())
    }

    fn read_journal(&self) -> Result<Journal, Error> {
        let path = self.path(JOURNAL);
        match regular_file::read(&path, LARGEST) {
            Ok(bytes) => Ok(parse_journal(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Journal::default()),
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    /// Applies the journal to its snapshot.
    fn fold(&mut self, snapshot: Snapshot, journal: Journal) -> (LastKnownGood, PersistedStore) {
        let Snapshot { snapshot: number, mut memory, store } = snapshot;
        self.number = Some(number.max(journal.snapshot.unwrap_or_default()));
        let file = self.path(JOURNAL);
        if journal.damaged > 0 {
            let (whole, damaged) = (journal.changes.len(), journal.damaged);
            tracing::warn!(file = %file.display(), whole, damaged, "ignoring the damaged end of the journal");
        }
        if journal.snapshot != Some(number) {
            return (memory, store);
        }
        let (changes, stored): (Vec<_>, Vec<_>) = journal.changes.into_iter().map(|it| (it.memory, it.store)).unzip();
        changes.into_iter().for_each(|change| memory.apply_change(change));
        let store = if stored.is_empty() { store } else { store.apply_changes(stored) };
        (memory, store)
    }

    /// Saves the state: as a line of the journal if the last state is on disk, else as a snapshot.
    pub fn save(&mut self, state: SavedState) -> Result<(), Error> {
        // Taken: whatever fails below, the next save writes a snapshot.
        let Some(mut written) = self.written.take().filter(|written| self.is_in_place(written)) else {
            return self.write_snapshot(state);
        };
        let change = state.changes_since(&written.state);
        if change != StateChange::default() {
            self.append_change(&change)?;
        }
        written.journal = Stamp::read(&self.path(JOURNAL))?;
        written.state = state;
        if written.journal.length > written.snapshot.length.max(SHORTEST_FOLDED) {
            return self.write_snapshot(written.state);
        }
        self.written = Some(written);
        Ok(())
    }

    /// True if both files are as they were written.
    fn is_in_place(&self, written: &Written) -> bool {
        let stamps = [(SNAPSHOT, written.snapshot), (JOURNAL, written.journal)];
        stamps.into_iter().all(|(name, stamp)| Stamp::read(&self.path(name)).is_ok_and(|found| found == stamp))
    }

    /// Appends one line. After an error the journal may end with a part of the line, which the next start ignores.
    fn append_change(&self, change: &StateChange) -> Result<(), Error> {
        let path = self.path(JOURNAL);
        let line = format_change(change).map_err(io::Error::from);
        line.and_then(|line| append_synced(&path, &line)).map_err(io_error("write", &path))
    }

    /// Writes a snapshot and an empty journal for it.
    fn write_snapshot(&mut self, state: SavedState) -> Result<(), Error> {
        if self.number.is_none() {
            self.load_leniently();
        }
        let number = self.number.unwrap_or_default() + 1;
        let (snapshot, journal) = (self.path(SNAPSHOT), self.path(JOURNAL));
        let json = serde_json::to_vec(&state.to_snapshot(number)).map_err(io::Error::from);
        replace_file(&snapshot, &json.map_err(io_error("write", &snapshot))?, MODE)?;
        self.number = Some(number);
        // From here on the new snapshot counts. `store.json` is the one that decides, so it goes first.
        for old in [OLD_STORE, OLD_MEMORY].map(|name| self.path(name)) {
            remove_if_there(&old).map_err(io_error("remove", &old))?;
        }
        let header = format_header(number).map_err(io::Error::from);
        replace_file(&journal, &header.map_err(io_error("write", &journal))?, MODE)?;
        self.written = Some(Written { state, snapshot: Stamp::read(&snapshot)?, journal: Stamp::read(&journal)? });
        Ok(())
    }
}

fn append_synced(path: &Path, line: &[u8]) -> io::Result<()> {
    let mut file: File = OpenOptions::new().append(true).open(path)?;
    file.write_all(line)?;
    // `fdatasync` writes the new length too.
    file.sync_data()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
