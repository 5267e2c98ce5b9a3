//! haproxy.cfg and the files below `--state-dir`. Each is replaced whole or not at all, except that the journal and the log of changes
//! grow. This module doesn't decide what they hold.

mod atomic_file;
pub mod change_log;
mod generation_folder;
mod journal;
mod lock;
mod stamp;
mod state_file;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::fcntl::Flock;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::desired::LastKnownGood;
use crate::operator_files::SourceFile;
use crate::render::restart_needed::ConfigFingerprint;
use crate::render::{ConfigText, Rendered};
use crate::store::PersistedStore;
pub(crate) use atomic_file::{
    StagedFile, check_replaceable, exchange_file, remove_leftovers, replace_file, stage_file,
};
use atomic_file::{parent_dir, persist_file};
use generation_folder::GenerationFolder;
pub use stamp::OwnFile;
use stamp::Stamp;
pub use state_file::SavedState;
use state_file::StateFile;

/// A file that could not be read, written or replaced.
#[derive(Debug, thiserror::Error)]
#[error("can't {act} {}: {source}", path.display())]
pub struct Error {
    /// The verb of the failed act, `read` or `replace`.
    pub act: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The system's error.
    pub source: io::Error,
}

pub(crate) fn io_error(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error { act, path: path.to_owned(), source }
}

/// haproxy.cfg, and the state directory with its maps.
#[derive(Clone, Debug)]
pub struct StateDir {
    cfg: PathBuf,
    /// haproxy.cfg as confgen wrote it last, or found it as it should be.
    own_cfg: OwnFile,
    state_dir: PathBuf,
    /// Clones share the lock. `None` for `render` and `diff`, which write nothing.
    #[expect(dead_code, reason = "the lock ends with its last holder, and has no other use")]
    lock: Option<Arc<Flock<File>>>,
    /// Clones share it, so that each knows what the others wrote.
    state: Arc<Mutex<StateFile>>,
    /// The folder that was written last. Clones share it.
    generation: Arc<Mutex<Option<GenerationFolder>>>,
}

/// A haproxy.cfg beside its place, not yet committed. Its maps are in their place already.
pub struct StagedConfig {
    file: StagedFile,
}

/// The generation's fingerprints, beside its maps.
const FINGERPRINT: &str = "structure.json";

/// The operator's files as HAProxy accepted them last.
const OPERATOR: &str = "operator.json";

/// Every generated haproxy.cfg has this, before the generation's id.
pub(crate) const GENERATED: &str = "setenv CONFGEN_GEN ";

/// 1 GiB, the longest file that is read. Those of a store with some 100,000 keys have 100 MB.
pub(crate) const LARGEST: u64 = 1 << 30;

/// The start of the names of files and folders that exist only for a check.
pub const TRIAL: &str = ".trial-";

fn is_generation_id(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The wait for another confgen that is about to end, or for a `once`.
const FREE_WITHIN: Duration = Duration::from_secs(2);

/// The permissions of a new haproxy.cfg and of maps. The group may read them. Other users need not know the addresses of upstreams.
const NEW_MODE: u32 = 0o640;

impl StateDir {
    /// Creates and locks the state directory, and removes the temporary files that a killed confgen left.
    ///
    /// # Errors
    /// If another confgen holds the lock, or if a replaced haproxy.cfg could not keep its owner.
    pub fn open(cfg: &Path, state_dir: &Path) -> Result<Self, Error> {
        fs::create_dir_all(state_dir).map_err(io_error("create", state_dir))?;
        let lock = Some(Arc::new(lock::take_lock(state_dir, FREE_WITHIN)?));
        let opened = Self { lock, ..Self::open_read_only(cfg, state_dir) };
        // Behind the lock, since the files of another confgen are no leftovers.
        opened.remove_temporaries()?;
        check_replaceable(&opened.cfg)?;
        Ok(opened)
    }

    /// Opens without a lock, for reading. Nothing is created or removed.
    pub fn open_read_only(cfg: &Path, state_dir: &Path) -> Self {
        // A rename would replace a link, so the file that it leads to is replaced instead.
        let cfg = cfg.canonicalize().unwrap_or_else(|_| cfg.to_owned());
        let state = Arc::new(Mutex::new(StateFile::new(state_dir)));
        let (own_cfg, generation) = (OwnFile::default(), Arc::default());
        Self { cfg, own_cfg, state_dir: state_dir.to_owned(), lock: None, state, generation }
    }

    /// Notes in `own_cfg` which haproxy.cfg is confgen's own.
    #[must_use]
    pub fn with_own_cfg(self, own_cfg: OwnFile) -> Self {
        Self { own_cfg, ..self }
    }

    /// The content of haproxy.cfg. `None` without a file.
    pub fn read_cfg(&self) -> Result<Option<String>, Error> {
        match regular_file::read(&self.cfg, LARGEST) {
            Ok(bytes) => Ok(Some(
                String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", &self.cfg)(error)),
        }
    }

    /// True if haproxy.cfg has this content.
    pub fn is_cfg(&self, content: &ConfigText) -> Result<bool, Error> {
        // Before the content is read: an edit in between has another stamp.
        let stamp = Stamp::read(&self.cfg);
        let is_same = match regular_file::has_content(&self.cfg, content.pieces()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("read", &self.cfg)(error)),
            found => found.is_ok_and(|same| same),
        };
        if let Ok(stamp) = stamp
            && is_same
        {
            self.own_cfg.note(stamp);
        }
        Ok(is_same)
    }

    /// Writes the maps into the generation's folder, and haproxy.cfg beside its place.
    pub fn stage_config(&self, rendered: &Rendered) -> Result<StagedConfig, Error> {
        // `haproxy -c` reads the maps that the staged file names.
        self.write_maps(rendered)?;
        let file = stage_file(&self.cfg, rendered.cfg.pieces(), NEW_MODE)?;
        Ok(StagedConfig { file })
    }

    /// Writes the maps, error pages and fingerprints of a generation into its folder, unless they are there.
    pub fn write_maps(&self, rendered: &Rendered) -> Result<(), Error> {
        let path = self.state_dir.join(&rendered.generation_id);
        let mut last = self.generation.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_some_and(|folder| folder.has_files_of(&path, rendered)) {
            return Ok(());
        }
        // Taken: after a failure, the next call writes again.
        *last = None;
        *last = Some(GenerationFolder::write(path, rendered)?);
        Ok(())
    }

    /// The fingerprints of a generation. `None` if confgen didn't make it, or its folder is gone.
    pub fn read_fingerprint(&self, id: &str) -> Option<ConfigFingerprint> {
        // The id is HAProxy's answer, and an operator may have started a HAProxy with any text as its `CONFGEN_GEN`.
        if !is_generation_id(id) {
            return None;
        }
        serde_json::from_slice(&regular_file::read(&self.state_dir.join(id).join(FINGERPRINT), LARGEST).ok()?).ok()
    }

    /// The map of expressions of a generation, as HAProxy reads it at its start. `None` if it can't be read.
    pub fn read_expressions(&self, id: &str) -> Option<String> {
        let path = self.state_dir.join(id).join("urls.map");
        regular_file::read(&path, LARGEST).ok().and_then(|bytes| String::from_utf8(bytes).ok())
    }

    /// Adds lines to the notes on a HAProxy process of this generation.
    pub fn append_notes(&self, generation_id: &str, process: &str, lines: &str) -> Result<(), Error> {
        let path = self.notes_path(generation_id, process);
        let file = File::options().create(true).append(true).open(&path).map_err(io_error("open", &path))?;
        // Not synced: HAProxy doesn't outlive a crash of the machine either.
        { file }.write_all(lines.as_bytes()).map_err(io_error("write", &path))
    }

    /// The notes on a HAProxy process. Empty without any.
    pub fn read_notes(&self, generation_id: &str, process: &str) -> Result<String, Error> {
        let path = self.notes_path(generation_id, process);
        match regular_file::read(&path, LARGEST) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    fn notes_path(&self, generation_id: &str, process: &str) -> PathBuf {
        self.state_dir.join(generation_id).join(format!("backends-{process}"))
    }

    /// Renames the staged file to haproxy.cfg. This rename is the only commit.
    pub fn commit(&self, staged: StagedConfig) -> Result<(), Error> {
        self.keep_foreign_cfg()?;
        // A rename changes nothing of the stamp.
        self.own_cfg.note(Stamp::read(staged.path())?);
        persist_file(staged.file, &self.cfg)
    }

    /// Keeps a haproxy.cfg that no confgen has written, such as the package's, beside it. The first one that was kept stays.
    fn keep_foreign_cfg(&self) -> Result<(), Error> {
        if self.own_cfg.is_at(&self.cfg) || self.read_cfg()?.is_none_or(|text| text.contains(GENERATED)) {
            return Ok(());
        }
        let mut kept = self.cfg.clone().into_os_string();
        kept.push(".before-confgen");
        let kept = PathBuf::from(kept);
        if !kept.exists() {
            // The kernel refuses a hard link to a file of another user, so the content is copied.
            let bytes = regular_file::read(&self.cfg, LARGEST).map_err(io_error("read", &self.cfg))?;
            replace_file(&kept, &bytes, NEW_MODE)?;
            tracing::warn!(kept = %kept.display(), "haproxy.cfg was not confgen's, and is replaced");
        }
        Ok(())
    }

    /// Removes the folders of all generations but these.
    pub fn remove_other_generations(&self, keep: &[&str]) -> Result<(), Error> {
        for entry in fs::read_dir(&self.state_dir).map_err(io_error("list", &self.state_dir))? {
            let entry = entry.map_err(io_error("list", &self.state_dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_generation_id(&name) && !keep.contains(&name.as_str()) {
                fs::remove_dir_all(entry.path()).map_err(io_error("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// The saved good values and claims, and the saved replica of the store. Empty without a file. A file that can't be parsed is
    /// put aside.
    pub fn load_state(&self) -> Result<(LastKnownGood, PersistedStore), Error> {
        self.lock_state().load()
    }

    /// Both, for `render` and `diff`. Empty if the file can't be read. Nothing is put aside.
    pub fn load_leniently(&self) -> (LastKnownGood, PersistedStore) {
        self.lock_state().load_leniently()
    }

    /// Saves what changed since the last call. After a crash at any moment, the next start finds this state or the previous one.
    pub fn save_state(&self, state: SavedState) -> Result<(), Error> {
        self.lock_state().save(state)
    }

    fn lock_state(&self) -> MutexGuard<'_, StateFile> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The operator's files as HAProxy accepted them last. `None` if that isn't known.
    pub fn load_operator_files(&self) -> Result<Option<Vec<SourceFile>>, Error> {
        load_json(&self.state_dir.join(OPERATOR))
    }

    pub fn save_operator_files(&self, sources: &[SourceFile]) -> Result<(), Error> {
        save_json(&self.state_dir.join(OPERATOR), &sources)
    }

    /// Removes the temporary files and trials that a killed confgen left.
    fn remove_temporaries(&self) -> Result<(), Error> {
        let kept = StateFile::names().into_iter().chain([OPERATOR]).map(|name| self.state_dir.join(name));
        for place in kept.chain([self.cfg.clone()]) {
            remove_leftovers(&place)?;
        }
        let entries = fs::read_dir(&self.state_dir).map_err(io_error("list", &self.state_dir))?.flatten();
        let trials = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(TRIAL));
        // An earlier confgen tried certificates here. If it was killed, their private keys are still there.
        let old_trial = Some(self.state_dir.join("certs/.trial")).filter(|path| path.is_dir());
        for path in trials.map(|entry| entry.path()).chain(old_trial) {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(io_error("remove", &path))?;
        }
        Ok(())
    }
}

impl StagedConfig {
    /// The path of the staged file, for `haproxy -c`.
    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

fn load_json<T: DeserializeOwned + Default>(path: &Path) -> Result<T, Error> {
    let bytes = match regular_file::read(path, LARGEST) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    serde_json::from_slice(&bytes).or_else(|error| {
        let aside = path.with_extension("json.broken");
        // A start without old values serves. A start that fails on them doesn't.
        let (file, aside_to) = (path.display(), aside.display());
        tracing::warn!(%file, %error, %aside_to, "can't parse a file of the state directory, starting without it");
        fs::rename(path, &aside).map_err(io_error("rename", path)).map(|()| T::default())
    })
}

fn load_json_leniently<T: DeserializeOwned + Default>(path: &Path) -> T {
    regular_file::read(path, LARGEST).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn save_json(path: &Path, what: &impl Serialize) -> Result<(), Error> {
    let json = serde_json::to_vec(what).map_err(|error| io_error("write", path)(error.into()))?;
    replace_file(path, &json, 0o600)
}

/// Creates HAProxy's state file if it is missing, with no server in it. handover fills it at each restart.
pub fn create_state_file(path: &Path) {
    if path.exists() {
        return;
    }
    // HAProxy warns about a missing or empty state file at every check. `1` is the format's version.
    let made = fs::create_dir_all(parent_dir(path)).map_err(io_error("create", parent_dir(path)));
    if let Err(error) = made.and_then(|()| replace_file(path, b"1\n", 0o644)) {
        tracing::warn!(%error, "can't create the state file, leaving that to handover");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn rendered(stamp: &str, cfg: &str) -> Rendered {
        Rendered { generation_id: stamp.into(), cfg: cfg.into(), ..Rendered::default() }
    }

    #[test]
    fn a_staged_generation_changes_nothing_until_it_is_committed() {
        let dir = tempfile::tempdir().unwrap();
        let (cfg, state) = (dir.path().join("haproxy.cfg"), dir.path().join("state"));
        let disk = StateDir::open(&cfg, &state).unwrap();
        let staged = disk.stage_config(&rendered("0123456789abcdef", "new\n")).unwrap();
        assert_eq!(disk.read_cfg().unwrap(), None);
        assert_eq!(fs::read_to_string(staged.path()).unwrap(), "new\n");
        disk.commit(staged).unwrap();
        assert_eq!(disk.read_cfg().unwrap().as_deref(), Some("new\n"));
        assert_eq!(fs::metadata(&cfg).unwrap().mode() & 0o7777, 0o640);
        drop(disk.stage_config(&rendered("fedcba9876543210", "refused\n")).unwrap());
        assert_eq!(disk.read_cfg().unwrap().as_deref(), Some("new\n"));
        disk.remove_other_generations(&["0123456789abcdef"]).unwrap();
        assert!(state.join("0123456789abcdef").exists() && !state.join("fedcba9876543210").exists());
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "an operator edits the file in place")]
    fn only_a_file_as_confgen_wrote_it_is_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (cfg, own) = (dir.path().join("haproxy.cfg"), OwnFile::default());
        fs::write(&cfg, "of the last process\n").unwrap();
        let disk = StateDir::open(&cfg, &dir.path().join("state")).unwrap().with_own_cfg(own.clone());
        assert!(!own.is_at(&cfg) && !disk.is_cfg(&"new\n".into()).unwrap() && !own.is_at(&cfg));
        assert!(disk.is_cfg(&"of the last process\n".into()).unwrap() && own.is_at(&cfg), "it is as it should be");
        let staged = disk.stage_config(&rendered("0123456789abcdef", "new\n")).unwrap();
        assert!(own.is_at(&cfg));
        disk.commit(staged).unwrap();
        assert!(own.is_at(&cfg));
        fs::write(&cfg, "edited by hand\n").unwrap();
        assert!(!own.is_at(&cfg));
        fs::remove_file(&cfg).unwrap();
        assert!(!own.is_at(&cfg));
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "an operator writes the files")]
    fn a_file_of_an_operator_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (cfg, kept) = (dir.path().join("haproxy.cfg"), dir.path().join("haproxy.cfg.before-confgen"));
        let generated = format!("    {GENERATED}0123456789abcdef\n");
        let write = || {
            let disk = StateDir::open(&cfg, &dir.path().join("state")).unwrap();
            disk.commit(disk.stage_config(&rendered("0123456789abcdef", &generated)).unwrap()).unwrap();
            fs::read_to_string(&kept).ok()
        };
        assert_eq!(write(), None, "nothing was there");
        assert_eq!(write(), None, "the last confgen's");
        fs::write(&cfg, "by hand\n").unwrap();
        assert_eq!(write().as_deref(), Some("by hand\n"));
        fs::write(&cfg, "once more\n").unwrap();
        assert_eq!(write().as_deref(), Some("by hand\n"), "the first one stays");
    }

    #[test]
    fn mode_and_owner_stay_and_leftovers_go() {
        let dir = tempfile::tempdir().unwrap();
        let cfg = dir.path().join("haproxy.cfg");
        replace_file(&cfg, b"old", 0o604).unwrap();
        let [leftover, editors] = [".haproxy.cfg.abc.confgen", ".haproxy.cfg.swp"].map(|name| dir.path().join(name));
        replace_file(&leftover, b"half", 0o600).unwrap();
        replace_file(&editors, b"mine", 0o600).unwrap();
        let keys = dir.path().join("state/certs/.trial");
        fs::create_dir_all(&keys).unwrap();
        let disk = StateDir::open(&cfg, &dir.path().join("state")).unwrap();
        assert!(!leftover.exists() && editors.exists());
        assert!(!keys.exists(), "an earlier confgen's copies of private keys");
        disk.commit(disk.stage_config(&rendered("0123456789abcdef", "new")).unwrap()).unwrap();
        assert_eq!(fs::metadata(&cfg).unwrap().mode() & 0o7777, 0o604);
    }
}
