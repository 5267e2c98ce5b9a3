//! What concerns the generated file and isn't in the store: the operator's files, certificates, authorities, error pages.

pub(crate) mod bisect;
mod ca_files;
pub(crate) mod certificate;
pub(crate) mod certificates;
pub(crate) mod error_pages;
pub(crate) mod expiry;
pub(crate) mod file_stamps;
pub(crate) mod stats_password;

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use haproxy::check::Checker;
use haproxy::config;

use crate::desired::domain_allowlist::Allowed;
use crate::local_files::certificates::Certificates;
use crate::render::error_pages::ErrorPages;
use crate::state_dir::{Error, failed, may_replace, sweep_beside};

use crate::desired::Authorities;
use crate::local_files::file_stamps::FileStamps;
use crate::operator_files::filled::FilledFiles;
use crate::operator_files::parse::{Environment, Taken};
use crate::operator_files::{OperatorFiles, SourceFile};

/// The files that confgen looks at, and may find changed.
#[derive(Clone, Debug)]
pub struct LocalPaths {
    /// The operator's own `*.cfg` files.
    pub include: PathBuf,
    /// Those of them that are filled.
    pub fill: Vec<PathBuf>,
    /// The certificates.
    pub certs: PathBuf,
    /// The authorities that upstreams' certificates may be checked against.
    pub authorities: PathBuf,
    /// Which service may claim which hosts.
    pub domains: Option<PathBuf>,
    /// The error pages.
    pub pages: Option<PathBuf>,
    /// haproxy.cfg itself, which somebody may have edited.
    pub cfg: PathBuf,
    /// What confgen keeps.
    pub state_dir: PathBuf,
    /// What HAProxy shuts itself into.
    pub chroot: Option<PathBuf>,
    /// The addresses, sockets and files that an operator's file may not take.
    pub taken: Taken,
    /// The environment that HAProxy's check has.
    pub environment: Environment,
}

/// The operator's files, the certificates, the authorities and the error pages, read.
#[derive(Clone, Debug, Default)]
pub struct LocalFiles {
    /// The operator's files.
    pub include: OperatorFiles,
    /// The certificates in use.
    pub certificates: Arc<Certificates>,
    /// The authorities that `verify` may name.
    pub authorities: Authorities,
    /// Who may claim which hosts; none is anybody any.
    pub allowed: Option<Allowed>,
    /// What clients are shown in place of the built-in errors.
    pub pages: Arc<ErrorPages>,
}

impl LocalFiles {
    /// Whether people have changed nothing: what confgen itself fills in doesn't count.
    pub fn is_as(&self, other: &Self) -> bool {
        let parts = |it: &Self| {
            let (pages, authorities) = (Arc::clone(&it.pages), it.authorities.clone());
            (it.include.prints.clone(), Arc::clone(&it.certificates), authorities, it.allowed.clone(), pages)
        };
        parts(self) == parts(other)
    }
}

impl LocalPaths {
    /// Makes the directories without which HAProxy refuses to start: the operator's, and the one it shuts itself into.
    pub fn prepare(&self) -> Result<(), Error> {
        let needed = std::iter::once(&self.include).chain(&self.chroot);
        needed.into_iter().try_for_each(|dir| fs::create_dir_all(dir).map_err(failed("create", dir)))
    }

    /// Reads the operator's files. What confgen did with those that it fills is kept of `before`.
    pub fn include(&self, before: &FilledFiles) -> Result<OperatorFiles, Error> {
        Ok(self.include_of(self.sources()?, before))
    }

    /// The same of files that were read earlier.
    pub fn include_of(&self, sources: Vec<SourceFile>, before: &FilledFiles) -> OperatorFiles {
        // Where links lead now.
        let filled: Vec<PathBuf> = self.fill.iter().filter_map(|file| file.canonicalize().ok()).collect();
        let mut include = OperatorFiles::of(sources, &filled, before, &self.environment);
        include.operator.refuse_conflicts(&self.taken, &real_place);
        let is_read = |file: &&PathBuf| {
            file.canonicalize().is_ok_and(|real| include.sources.iter().any(|source| source.real == real))
        };
        let unread = self.fill.iter().filter(|file| !is_read(file));
        let words =
            |file: &PathBuf| format!("--fill {}: HAProxy reads no such file, nothing is filled", file.display());
        let remarks: Vec<String> = unread.map(words).collect();
        include.operator.remarks.extend(remarks);
        include
    }

    /// Takes over new certificates, authorities and error pages.
    pub fn take_over(&self, checker: &Checker) -> Result<LocalFiles, Error> {
        let certificates = certificates::collect(&self.certs, &self.state_dir, &self.include, checker, expiry::now())?;
        let authorities = ca_files::collect(&self.authorities, &self.state_dir, &self.cfg, checker)?;
        let pages = error_pages::collect(self.pages.as_deref(), &self.state_dir, &self.include, checker)?;
        let (certificates, pages) = (Arc::new(certificates), Arc::new(pages));
        Ok(LocalFiles { certificates, authorities, pages, ..LocalFiles::default() })
    }

    /// All of it as it is, but for who may claim which hosts; nothing is taken over.
    pub fn glimpse(&self) -> LocalFiles {
        let authorities = ca_files::glimpse(&self.authorities, &self.state_dir);
        let pages = Arc::new(error_pages::glimpse(self.pages.as_deref(), &self.state_dir));
        let include = self.include(&FilledFiles::default()).unwrap_or_default();
        LocalFiles { include, authorities, pages, ..LocalFiles::default() }
    }

    /// Whether the files that are to be filled are among those that HAProxy reads, and may be replaced. What a killed
    /// confgen left beside them goes.
    pub fn vet_fill(&self) -> Result<(), Error> {
        for file in &self.fill {
            let real = file.canonicalize().map_err(failed("fill", file))?;
            if !self.sources()?.iter().any(|source| source.real == real) {
                let dir = self.include.display();
                let why =
                    format!("HAProxy doesn't read it: it has to be a *.cfg in --include {dir}, or linked from there");
                return Err(failed("fill", file)(io::Error::other(why)));
            }
            may_replace(&real)?;
            sweep_beside(&real)?;
        }
        Ok(())
    }

    /// Who may claim which hosts, as the file says; an error names its line.
    pub fn allowed(&self) -> Result<Option<Allowed>, Error> {
        let Some(file) = &self.domains else { return Ok(None) };
        let text = regular_file::read_text(file, regular_file::LARGE).map_err(failed("read", file))?;
        Allowed::parse(&text).map(Some).map_err(|wrong| failed("read", file)(io::Error::other(wrong)))
    }

    /// The operator's files, as HAProxy reads their directory.
    fn sources(&self) -> Result<Vec<SourceFile>, Error> {
        let files = config::files(&self.include).map_err(failed("list", &self.include))?;
        let read = |path: PathBuf| {
            let bytes = regular_file::read(&path, regular_file::LARGE).map_err(failed("read", &path))?;
            let real = path.canonicalize().map_err(failed("read", &path))?;
            Ok(SourceFile { path, real, bytes })
        };
        files.into_iter().map(read).collect()
    }

    /// Takes a look at the files. Two looks that are equal saw the same files, unchanged. `last` is the look before.
    pub fn glance(&self, last: &FileStamps, now: SystemTime) -> FileStamps {
        let listed = [&self.include, &self.authorities].into_iter().chain(&self.pages).flat_map(|dir| entries(dir));
        // Certificates may lie one directory deeper.
        let certificates = entries(&self.certs).into_iter().flat_map(|path| {
            let deeper = if path.is_dir() { entries(&path) } else { Vec::new() };
            std::iter::once(path).chain(deeper)
        });
        let directories = [&self.include, &self.certs, &self.authorities].into_iter().chain(&self.pages).cloned();
        let single = std::iter::once(self.cfg.clone()).chain(self.domains.clone());
        FileStamps::of(listed.chain(certificates).chain(directories).chain(single), last, now)
    }
}

/// A directory that can't be listed shows by its own stamp.
fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The place to which a path leads: links in its directories are followed, `.` and `..` are resolved. The last part may not be
/// there yet; HAProxy replaces what lies there.
fn real_place(path: &Path) -> PathBuf {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return path.to_owned() };
    directory.canonicalize().unwrap_or_else(|_| normalized(directory)).join(name)
}

/// The path without `.` and `..`, of a directory that is not there.
fn normalized(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    parts
}
