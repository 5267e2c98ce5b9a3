//! The state directory in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use confgen::decisions::{ConfigFingerprint, GenerationFiles, LastKnownGood, PersistedStore, Rendered, StateDirError};

use crate::owners::Owners;

/// The files below `--state-dir`. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<Files>>);

/// The contents.
#[derive(Debug, Default)]
pub struct Files {
    /// By generation.
    generations: BTreeMap<String, Arc<Rendered>>,
    /// By generation and process.
    notes: BTreeMap<(String, String), String>,
    /// `state.json`.
    pub state: Option<(LastKnownGood, PersistedStore)>,
    /// The owners in `state.json`, for an invariant.
    pub owners: Owners,
    /// The leases of the balancer record.
    pub leases: Vec<i64>,
}

impl Disk {
    /// The files, until the guard is dropped.
    pub fn lock(&self) -> MutexGuard<'_, Files> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the files of a generation.
    pub fn write_generation(&self, rendered: &Arc<Rendered>) {
        self.lock().generations.insert(rendered.generation_id.clone(), Arc::clone(rendered));
    }
}

impl GenerationFiles for Disk {
    fn read_fingerprint(&self, id: &str) -> Option<ConfigFingerprint> {
        Some(ConfigFingerprint::clone(&self.lock().generations.get(id)?.fingerprint))
    }

    fn read_expressions(&self, id: &str) -> Option<String> {
        Some(self.lock().generations.get(id)?.maps.urls.clone())
    }

    fn append_notes(&self, generation_id: &str, process: &str, lines: &str) -> Result<(), StateDirError> {
        let of_process = (generation_id.to_owned(), process.to_owned());
        self.lock().notes.entry(of_process).or_default().push_str(lines);
        Ok(())
    }

    fn read_notes(&self, generation_id: &str, process: &str) -> Result<String, StateDirError> {
        let of_process = (generation_id.to_owned(), process.to_owned());
        Ok(self.lock().notes.get(&of_process).cloned().unwrap_or_default())
    }
}
