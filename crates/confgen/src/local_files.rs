//! What concerns the generated file and isn't in the store: the operator's files, certificates, authorities, error pages.

mod ca_files;
pub(crate) mod certificate;
pub(crate) mod certificates;
pub(crate) mod error_pages;
pub(crate) mod expiry;
pub(crate) mod file_stamps;
pub(crate) mod stats_password;
pub(crate) mod trial;

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use haproxy::check::Checker;
use haproxy::config;

use crate::desired::domain_allowlist::DomainAllowlist;
use crate::local_files::certificates::Certificates;
use crate::render::error_pages::ErrorPages;
use crate::state_dir::{Error, check_replaceable, io_error, remove_leftovers};

use crate::desired::Authorities;
use crate::local_files::file_stamps::FileStamps;
use crate::operator_files::filled::FilledFiles;
use crate::operator_files::parse::{Environment, OwnEndpoints};
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
    pub own_endpoints: OwnEndpoints,
    /// The environment that HAProxy's check has.
    pub environment: Environment,
}

/// The operator's files, the certificates, the authorities and the error pages, read.
#[derive(Clone, Debug, Default)]
pub struct LocalFiles {
    /// The operator's files.
    pub operator_files: OperatorFiles,
    /// The certificates in use.
    pub certificates: Arc<Certificates>,
    /// The authorities that `verify` may name.
    pub authorities: Authorities,
    /// Who may claim which hosts; none is anybody any.
    pub allowed_domains: Option<DomainAllowlist>,
    /// What clients are shown in place of the built-in errors.
    pub pages: Arc<ErrorPages>,
}

impl LocalFiles {
    /// Whether people have changed nothing: what confgen itself fills in doesn't count.
    pub fn is_unedited_since(&self, other: &Self) -> bool {
        let parts = |it: &Self| {
            let (pages, authorities) = (Arc::clone(&it.pages), it.authorities.clone());
            (
                it.operator_files.fingerprints.clone(),
                Arc::clone(&it.certificates),
                authorities,
                it.allowed_domains.clone(),
                pages,
            )
        };
        parts(self) == parts(other)
    }
}

impl LocalPaths {
    /// Makes the directories without which HAProxy refuses to start: the operator's, and the one it shuts itself into.
    pub fn create_directories(&self) -> Result<(), Error> {
        let needed = std::iter::once(&self.include).chain(&self.chroot);
        needed.into_iter().try_for_each(|dir| fs::create_dir_all(dir).map_err(io_error("create", dir)))
    }

    /// Reads the operator's files. What confgen did with those that it fills is kept of `before`.
    pub fn read_operator_files(&self, before: &FilledFiles) -> Result<OperatorFiles, Error> {
        Ok(self.parse_operator_files(self.read_sources()?, before))
    }

    /// The same of files that were read earlier.
    pub fn parse_operator_files(&self, sources: Vec<SourceFile>, before: &FilledFiles) -> OperatorFiles {
        // Where links lead now.
        let filled: Vec<PathBuf> = self.fill.iter().filter_map(|file| file.canonicalize().ok()).collect();
        let mut include = OperatorFiles::from_sources(sources, &filled, before, &self.environment);
        include.config.detect_conflicts(&self.own_endpoints, &resolve_path);
        let is_read = |file: &&PathBuf| {
            file.canonicalize().is_ok_and(|real| include.sources.iter().any(|source| source.real == real))
        };
        let unread = self.fill.iter().filter(|file| !is_read(file));
        let words =
            |file: &PathBuf| format!("--fill {}: HAProxy reads no such file, nothing is filled", file.display());
        let remarks: Vec<String> = unread.map(words).collect();
        include.config.remarks.extend(remarks);
        include
    }

    /// Takes over new certificates, authorities and error pages.
    pub fn collect_files(&self, checker: &Checker) -> Result<LocalFiles, Error> {
        let certificates = certificates::collect_certificates(
            &self.certs,
            &self.state_dir,
            &self.include,
            checker,
            expiry::unix_now(),
        )?;
        let authorities = ca_files::collect_ca_files(&self.authorities, &self.state_dir, &self.cfg, checker)?;
        let pages = error_pages::collect_error_pages(self.pages.as_deref(), &self.state_dir, &self.include, checker)?;
        let (certificates, pages) = (Arc::new(certificates), Arc::new(pages));
        Ok(LocalFiles { certificates, authorities, pages, ..LocalFiles::default() })
    }

    /// All of it as it is, but for who may claim which hosts; nothing is taken over.
    pub fn read_unchecked(&self) -> LocalFiles {
        let authorities = ca_files::read_ca_files_unchecked(&self.authorities, &self.state_dir);
        let pages = Arc::new(error_pages::read_error_pages_unchecked(self.pages.as_deref(), &self.state_dir));
        let include = self.read_operator_files(&FilledFiles::default()).unwrap_or_default();
        LocalFiles { operator_files: include, authorities, pages, ..LocalFiles::default() }
    }

    /// Whether the files that are to be filled are among those that HAProxy reads, and may be replaced. What a killed
    /// confgen left beside them goes.
    pub fn check_fill_files(&self) -> Result<(), Error> {
        for file in &self.fill {
            let real = file.canonicalize().map_err(io_error("fill", file))?;
            if !self.read_sources()?.iter().any(|source| source.real == real) {
                let dir = self.include.display();
                let why =
                    format!("HAProxy doesn't read it: it has to be a *.cfg in --include {dir}, or linked from there");
                return Err(io_error("fill", file)(io::Error::other(why)));
            }
            check_replaceable(&real)?;
            remove_leftovers(&real)?;
        }
        Ok(())
    }

    /// Who may claim which hosts, as the file says; an error names its line.
    pub fn read_domain_allowlist(&self) -> Result<Option<DomainAllowlist>, Error> {
        let Some(file) = &self.domains else { return Ok(None) };
        let text = regular_file::read_text(file, regular_file::LARGE).map_err(io_error("read", file))?;
        DomainAllowlist::parse(&text).map(Some).map_err(|wrong| io_error("read", file)(io::Error::other(wrong)))
    }

    /// The operator's files, as HAProxy reads their directory.
    fn read_sources(&self) -> Result<Vec<SourceFile>, Error> {
        let files = config::list_files(&self.include).map_err(io_error("list", &self.include))?;
        let read = |path: PathBuf| {
            let bytes = regular_file::read(&path, regular_file::LARGE).map_err(io_error("read", &path))?;
            let real = path.canonicalize().map_err(io_error("read", &path))?;
            Ok(SourceFile { path, real, bytes })
        };
        files.into_iter().map(read).collect()
    }

    /// Takes a look at the files. Two looks that are equal saw the same files, unchanged. `last` is the look before.
    pub fn take_stamps(&self, last: &FileStamps, now: SystemTime) -> FileStamps {
        let listed =
            [&self.include, &self.authorities].into_iter().chain(&self.pages).flat_map(|dir| list_entries(dir));
        // Certificates may lie one directory deeper.
        let certificates = list_entries(&self.certs).into_iter().flat_map(|path| {
            let deeper = if path.is_dir() { list_entries(&path) } else { Vec::new() };
            std::iter::once(path).chain(deeper)
        });
        let directories = [&self.include, &self.certs, &self.authorities].into_iter().chain(&self.pages).cloned();
        let single = std::iter::once(self.cfg.clone()).chain(self.domains.clone());
        FileStamps::read_paths(listed.chain(certificates).chain(directories).chain(single), last, now)
    }
}

/// A directory that can't be listed shows by its own stamp.
fn list_entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The place to which a path leads: links in its directories are followed, `.` and `..` are resolved. The last part may not be
/// there yet; HAProxy replaces what lies there.
fn resolve_path(path: &Path) -> PathBuf {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return path.to_owned() };
    directory.canonicalize().unwrap_or_else(|_| normalize_path(directory)).join(name)
}

/// The path without `.` and `..`, of a directory that is not there.
fn normalize_path(path: &Path) -> PathBuf {
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
