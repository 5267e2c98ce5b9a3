//! The files: staged beside their places, renamed into them, never truncated, never half written.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use tempfile::NamedTempFile;

use crate::render::Rendered;
use crate::settle::Memory;
use crate::structure::Structure;

/// A file that could not be read, written or put in place.
#[derive(Debug, thiserror::Error)]
#[error("{act} {}: {source}", path.display())]
pub struct Error {
    /// What was being done.
    pub act: &'static str,
    /// With what.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

pub(crate) fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error { act, path: path.to_owned(), source }
}

/// Where a generation lives: haproxy.cfg, and the state directory with the maps it names.
#[derive(Clone, Debug)]
pub struct Disk {
    cfg: PathBuf,
    state_dir: PathBuf,
}

/// A generation that is written but not yet what HAProxy will read.
pub struct Staged {
    file: NamedTempFile,
}

/// Beside a generation's maps: what of it a restart alone can change.
const STRUCTURE: &str = "structure.json";

fn is_stamp(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A new haproxy.cfg: its group may read it, others need not know who is behind which host.
const NEW_MODE: u32 = 0o640;

impl Disk {
    /// Makes the state directory, clears what a killed confgen left half written, and makes sure that replacing the
    /// file will not take it from its owner.
    pub fn open(cfg: &Path, state_dir: &Path) -> Result<Self, Error> {
        fs::create_dir_all(state_dir).map_err(failed("create", state_dir))?;
        let disk = Self::at(cfg, state_dir);
        disk.sweep_temporaries()?;
        if let Some(owned) = metadata(cfg)?
            && !geteuid().is_root()
            && owned.uid() != geteuid().as_raw()
        {
            let why =
                "it belongs to another user, whom a replaced file would be taken from: chown it to confgen's user";
            return Err(failed("replace", cfg)(io::Error::other(why)));
        }
        Ok(disk)
    }

    /// The same for somebody who only looks: nothing is made or cleared.
    pub fn at(cfg: &Path, state_dir: &Path) -> Self {
        Self { cfg: cfg.to_owned(), state_dir: state_dir.to_owned() }
    }

    /// haproxy.cfg as it stands; none if there is no file.
    pub fn cfg(&self) -> Result<Option<String>, Error> {
        match fs::read(&self.cfg) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &self.cfg)(error)),
        }
    }

    /// Writes the maps under the generation's name, and the file beside its place.
    pub fn stage(&self, rendered: &Rendered) -> Result<Staged, Error> {
        self.maps(rendered)?;
        let file = staged(&self.cfg, rendered.cfg.as_bytes(), NEW_MODE)?;
        Ok(Staged { file })
    }

    /// Writes the maps of a generation, and beside them its structure.
    pub fn maps(&self, rendered: &Rendered) -> Result<(), Error> {
        let maps = self.state_dir.join(&rendered.stamp);
        fs::create_dir_all(&maps).map_err(failed("create", &maps))?;
        let contents =
            [("hosts", &rendered.maps.hosts), ("paths", &rendered.maps.paths), ("urls", &rendered.maps.urls)];
        for (name, content) in contents {
            replace(&maps.join(format!("{name}.map")), content.as_bytes(), NEW_MODE)?;
        }
        let structure = maps.join(STRUCTURE);
        let json =
            serde_json::to_vec(&rendered.structure).map_err(|error| failed("write", &structure)(error.into()))?;
        replace(&structure, &json, NEW_MODE)
    }

    /// The structure of a generation; none if it isn't one of ours, or its folder is gone.
    pub fn structure(&self, stamp: &str) -> Option<Structure> {
        if !is_stamp(stamp) {
            return None;
        }
        serde_json::from_slice(&fs::read(self.state_dir.join(stamp).join(STRUCTURE)).ok()?).ok()
    }

    /// Makes the staged file haproxy.cfg. This rename is the only commit.
    pub fn commit(&self, staged: Staged) -> Result<(), Error> {
        persist(staged.file, &self.cfg)
    }

    /// Removes the maps of every generation but the given ones.
    pub fn sweep(&self, keep: &[&str]) -> Result<(), Error> {
        for entry in fs::read_dir(&self.state_dir).map_err(failed("list", &self.state_dir))? {
            let entry = entry.map_err(failed("list", &self.state_dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_stamp(&name) && !keep.contains(&name.as_str()) {
                fs::remove_dir_all(entry.path()).map_err(failed("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    fn memory_file(&self) -> PathBuf {
        self.state_dir.join("memory.json")
    }

    /// What was remembered; nothing at first, and nothing when the file can't be read as such (it is then kept aside).
    pub fn memory(&self) -> Result<Memory, Error> {
        let path = self.memory_file();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Memory::default()),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        serde_json::from_slice(&bytes).or_else(|error| {
            let aside = path.with_extension("json.broken");
            tracing::warn!("{}: {error}; kept as {}, starting without it", path.display(), aside.display());
            fs::rename(&path, &aside).map_err(failed("rename", &path)).map(|()| Memory::default())
        })
    }

    /// What was remembered, for somebody who only looks: nothing where it can't be read.
    pub fn glimpse_memory(&self) -> Memory {
        fs::read(self.memory_file()).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Remembers.
    pub fn remember(&self, memory: &Memory) -> Result<(), Error> {
        let path = self.memory_file();
        let json = serde_json::to_vec(memory).map_err(|error| failed("write", &path)(error.into()))?;
        replace(&path, &json, 0o600)
    }

    /// Temporary files of ours that a killed process left.
    fn sweep_temporaries(&self) -> Result<(), Error> {
        for place in [&self.cfg, &self.memory_file()] {
            let dir = parent(place);
            let Ok(entries) = fs::read_dir(dir) else { continue };
            let ours = temporary_prefix(place);
            for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(&ours)) {
                fs::remove_file(entry.path()).map_err(failed("remove", &entry.path()))?;
            }
        }
        Ok(())
    }
}

impl Staged {
    /// Where the staged file is, for `haproxy -c`.
    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

/// Makes the file that HAProxy reads its servers' states from, with nothing but its version in it: a missing or an empty
/// one is a warning at every check. handover makes and fills it too; where confgen may not, that is handover's.
pub fn make_state_file(path: &Path) {
    if path.exists() {
        return;
    }
    let made = fs::create_dir_all(parent(path)).map_err(failed("create", parent(path)));
    if let Err(error) = made.and_then(|()| replace(path, b"1\n", 0o644)) {
        tracing::warn!("{error}; left to handover");
    }
}

/// Replaces a file's content in one step, unless it has it already. The mode is for a new file; an old one keeps its
/// own.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    persist(staged(path, content, mode)?, path)
}

/// Writes a file beside `path` that will take its place, with the mode and, where we may, the owner of what is there.
fn staged(path: &Path, content: &[u8], mode: u32) -> Result<NamedTempFile, Error> {
    let dir = parent(path);
    let mut file = tempfile::Builder::new()
        .prefix(&temporary_prefix(path))
        .tempfile_in(dir)
        .map_err(failed("create a temporary file in", dir))?;
    let written = |file: &mut NamedTempFile| -> io::Result<()> {
        file.write_all(content)?;
        let old = fs::metadata(path).ok();
        let mode = old.as_ref().map_or(mode, |old| old.mode() & 0o7777);
        if let Some(old) = old.filter(|_| geteuid().is_root()) {
            fchown(file.as_file(), Some(old.uid()), Some(old.gid()))?;
        }
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()
    };
    written(&mut file).map_err(failed("write", file.path()))?;
    Ok(file)
}

fn persist(file: NamedTempFile, path: &Path) -> Result<(), Error> {
    file.persist(path).map_err(|error| failed("replace", path)(error.error))?;
    // The rename itself lives in the directory.
    let dir = parent(path);
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temporary_prefix(path: &Path) -> String {
    format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy())
}

fn metadata(path: &Path) -> Result<Option<Metadata>, Error> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(stamp: &str, cfg: &str) -> Rendered {
        Rendered { stamp: stamp.into(), cfg: cfg.into(), ..Rendered::default() }
    }

    #[test]
    fn a_staged_generation_changes_nothing_until_it_is_committed() {
        let dir = tempfile::tempdir().unwrap();
        let (cfg, state) = (dir.path().join("haproxy.cfg"), dir.path().join("state"));
        let disk = Disk::open(&cfg, &state).unwrap();
        let staged = disk.stage(&rendered("0123456789abcdef", "new\n")).unwrap();
        assert_eq!(disk.cfg().unwrap(), None);
        assert_eq!(fs::read_to_string(staged.path()).unwrap(), "new\n");
        disk.commit(staged).unwrap();
        assert_eq!(disk.cfg().unwrap().as_deref(), Some("new\n"));
        assert_eq!(fs::metadata(&cfg).unwrap().mode() & 0o7777, 0o640);
        drop(disk.stage(&rendered("fedcba9876543210", "refused\n")).unwrap());
        assert_eq!(disk.cfg().unwrap().as_deref(), Some("new\n"));
        disk.sweep(&["0123456789abcdef"]).unwrap();
        assert!(state.join("0123456789abcdef").exists() && !state.join("fedcba9876543210").exists());
    }

    #[test]
    fn mode_and_owner_stay_and_leftovers_go() {
        let dir = tempfile::tempdir().unwrap();
        let cfg = dir.path().join("haproxy.cfg");
        replace(&cfg, b"old", 0o604).unwrap();
        let leftover = dir.path().join(".haproxy.cfg.abc");
        replace(&leftover, b"half", 0o600).unwrap();
        let disk = Disk::open(&cfg, &dir.path().join("state")).unwrap();
        assert!(!leftover.exists());
        disk.commit(disk.stage(&rendered("0123456789abcdef", "new")).unwrap()).unwrap();
        assert_eq!(fs::metadata(&cfg).unwrap().mode() & 0o7777, 0o604);
    }

    #[test]
    fn a_broken_memory_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(&dir.path().join("haproxy.cfg"), dir.path()).unwrap();
        replace(&dir.path().join("memory.json"), b"{\"good\":", 0o600).unwrap();
        assert_eq!(disk.memory().unwrap(), Memory::default());
        assert!(dir.path().join("memory.json.broken").exists());
        disk.remember(&Memory::default()).unwrap();
        assert_eq!(disk.memory().unwrap(), Memory::default());
    }
}
