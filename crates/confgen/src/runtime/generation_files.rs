//! The facts about a generation that HAProxy can't tell, as the state directory keeps them. Decides nothing.

use crate::render::restart_needed::ConfigFingerprint;
use crate::state_dir::{Error, StateDir};

/// The files of generations. The state directory has them on disk. The seeded simulation has them in memory.
pub trait GenerationFiles {
    /// The fingerprints of a generation. `None` if confgen didn't make it, or its folder is gone.
    fn read_fingerprint(&self, id: &str) -> Option<ConfigFingerprint>;

    /// The map of expressions of a generation, as HAProxy reads it at its start. `None` if it can't be read.
    fn read_expressions(&self, id: &str) -> Option<String>;

    /// Adds lines to the notes on a HAProxy process of this generation.
    ///
    /// # Errors
    /// If the notes can't be written.
    fn append_notes(&self, generation_id: &str, process: &str, lines: &str) -> Result<(), Error>;

    /// The notes on a HAProxy process. Empty without any.
    ///
    /// # Errors
    /// If the notes can't be read.
    fn read_notes(&self, generation_id: &str, process: &str) -> Result<String, Error>;
}

impl GenerationFiles for StateDir {
    fn read_fingerprint(&self, id: &str) -> Option<ConfigFingerprint> {
        self.read_fingerprint(id)
    }

    fn read_expressions(&self, id: &str) -> Option<String> {
        self.read_expressions(id)
    }

    fn append_notes(&self, generation_id: &str, process: &str, lines: &str) -> Result<(), Error> {
        self.append_notes(generation_id, process, lines)
    }

    fn read_notes(&self, generation_id: &str, process: &str) -> Result<String, Error> {
        self.read_notes(generation_id, process)
    }
}
