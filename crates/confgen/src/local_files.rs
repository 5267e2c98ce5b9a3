//! The operator's local files that haproxy.cfg depends on: `--include`, certificates, CA files, error pages, domains. This module
//! reads them and keeps copies. It never changes them.

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
use crate::state_dir::{Error, OwnFile, check_replaceable, io_error, remove_leftovers};

use crate::desired::Authorities;
use crate::local_files::file_stamps::FileStamps;
use crate::operator_files::filled::FilledFiles;
use crate::operator_files::parse::{Environment, OwnEndpoints};
use crate::operator_files::{OperatorFiles, SourceFile};

/// The paths of the local files, and what confgen needs to judge their content.
#[derive(Clone, Debug)]
pub struct LocalPaths {
    /// The directory of the operator's own `*.cfg` files.
    pub include: PathBuf,
    /// The files among them that `--fill` names, as the flag has them.
    pub fill: Vec<PathBuf>,
    /// The directory of the certificates.
    pub certs: PathBuf,
    /// The directory of the CA files (`--ca-dir`).
    pub authorities: PathBuf,
    /// The file that says which service may claim which hosts. `None` allows every service every host.
    pub domains: Option<PathBuf>,
    /// The directory of the error pages.
    pub pages: Option<PathBuf>,
    /// haproxy.cfg itself, which an operator may have edited.
    pub cfg: PathBuf,
    pub state_dir: PathBuf,
    /// HAProxy's chroot.
    pub chroot: Option<PathBuf>,
    /// The addresses, sockets and files that an operator's file may not use.
    pub own_endpoints: OwnEndpoints,
    /// The environment of HAProxy's check.
    pub environment: Environment,
}

/// The content of the local files.
#[derive(Clone, Debug, Default)]
pub struct LocalFiles {
    pub operator_files: OperatorFiles,
    pub certificates: Arc<Certificates>,
    /// The CA files that `verify` may name.
    pub authorities: Authorities,
    /// The hosts that each service may claim. `None` allows every service every host.
    pub allowed_domains: Option<DomainAllowlist>,
    pub pages: Arc<ErrorPages>,
}

impl LocalFiles {
    /// True if no operator has changed a file since `other`. The lines that confgen fills in don't count.
    pub fn is_unedited_since(&self, other: &Self) -> bool {
        self.operator_files.fingerprints == other.operator_files.fingerprints
            && self.certificates == other.certificates
            && self.authorities == other.authorities
            && self.allowed_domains == other.allowed_domains
            && self.pages == other.pages
    }
}

impl LocalPaths {
    /// Creates the directories without which HAProxy doesn't start: `--include` and the chroot.
    pub fn create_directories(&self) -> Result<(), Error> {
        let needed = std::iter::once(&self.include).chain(&self.chroot);
        needed.into_iter().try_for_each(|dir| fs::create_dir_all(dir).map_err(io_error("create", dir)))
    }

    /// Reads the operator's files. `before` tells which lines of filled files confgen wrote.
    pub fn read_operator_files(&self, before: &FilledFiles) -> Result<OperatorFiles, Error> {
        Ok(self.parse_operator_files(self.read_sources()?, before))
    }

    /// The same for files that were read earlier.
    pub fn parse_operator_files(&self, sources: Vec<SourceFile>, before: &FilledFiles) -> OperatorFiles {
        // The links may lead elsewhere than at the start.
        let filled: Vec<PathBuf> = self.fill.iter().filter_map(|file| file.canonicalize().ok()).collect();
        let mut include = OperatorFiles::from_sources(sources, &filled, before, &self.environment);
        include.config.detect_conflicts(&self.own_endpoints, &resolve_path);
        for file in &self.fill {
            if !file.canonicalize().is_ok_and(|real| has_source(&include.sources, &real)) {
                let words = format!("--fill {}: HAProxy reads no such file, nothing is filled", file.display());
                include.config.remarks.push(words);
            }
        }
        include
    }

    /// Takes over new certificates, CA files and error pages. Leaves the other parts empty.
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

    /// Reads the files without HAProxy, for `render` and `diff`, and writes nothing. Leaves certificates and domains empty.
    pub fn read_unchecked(&self) -> LocalFiles {
        let authorities = ca_files::read_ca_files_unchecked(&self.authorities, &self.state_dir);
        let pages = Arc::new(error_pages::read_error_pages_unchecked(self.pages.as_deref(), &self.state_dir));
        let include = self.read_operator_files(&FilledFiles::default()).unwrap_or_default();
        LocalFiles { operator_files: include, authorities, pages, ..LocalFiles::default() }
    }

    /// Checks that HAProxy reads the files of `--fill`, and that confgen may replace them. Removes the temporary files that a killed
    /// confgen left beside them.
    pub fn check_fill_files(&self) -> Result<(), Error> {
        for file in &self.fill {
            let real = file.canonicalize().map_err(io_error("fill", file))?;
            if !has_source(&self.read_sources()?, &real) {
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

    /// The hosts that each service may claim. `None` without `--domains-file`. An error names the line.
    pub fn read_domain_allowlist(&self) -> Result<Option<DomainAllowlist>, Error> {
        let Some(file) = &self.domains else { return Ok(None) };
        let text = regular_file::read_text(file, regular_file::LARGE).map_err(io_error("read", file))?;
        DomainAllowlist::parse(&text).map(Some).map_err(|wrong| io_error("read", file)(io::Error::other(wrong)))
    }

    /// The operator's files, in the order in which HAProxy reads them.
    fn read_sources(&self) -> Result<Vec<SourceFile>, Error> {
        let files = config::list_files(&self.include).map_err(io_error("list", &self.include))?;
        files.into_iter().map(read_source).collect()
    }

    /// The stamps of all local files. They equal those of `last` if no file has changed since. A haproxy.cfg that confgen wrote itself is
    /// left out: each change would have all files read again, and all services resolved.
    pub fn take_stamps(&self, own_cfg: &OwnFile, last: &FileStamps, now: SystemTime) -> FileStamps {
        let listed =
            [&self.include, &self.authorities].into_iter().chain(&self.pages).flat_map(|dir| list_entries(dir));
        // `certificates::directory` reads direct subdirectories too.
        let certificates = list_entries(&self.certs).into_iter().flat_map(|path| {
            let deeper = if path.is_dir() { list_entries(&path) } else { Vec::new() };
            std::iter::once(path).chain(deeper)
        });
        let directories = [&self.include, &self.certs, &self.authorities].into_iter().chain(&self.pages).cloned();
        let edited_cfg = Some(&self.cfg).filter(|cfg| !own_cfg.is_at(cfg));
        let single = edited_cfg.cloned().into_iter().chain(self.domains.clone());
        let stamps = FileStamps::read_paths(listed.chain(certificates).chain(directories).chain(single), last, now);
        // Otherwise a haproxy.cfg that is gone would look like confgen's own.
        match edited_cfg {
            Some(cfg) => stamps.with_required(cfg),
            None => stamps,
        }
    }
}

fn has_source(sources: &[SourceFile], real: &Path) -> bool {
    sources.iter().any(|source| source.real == real)
}

fn read_source(path: PathBuf) -> Result<SourceFile, Error> {
    let bytes = regular_file::read(&path, regular_file::LARGE).map_err(io_error("read", &path))?;
    let real = path.canonicalize().map_err(io_error("read", &path))?;
    Ok(SourceFile { path, real, bytes })
}

fn list_entries(dir: &Path) -> Vec<PathBuf> {
    // A directory that can't be listed has a stamp of its own in `take_stamps`.
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// A path with the links in its directories followed, and without `.` and `..`. The last part stays as it is: it may not exist yet,
/// and HAProxy replaces a socket there.
fn resolve_path(path: &Path) -> PathBuf {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return path.to_owned() };
    directory.canonicalize().unwrap_or_else(|_| normalize_path(directory)).join(name)
}

/// A path without `.` and `..`, for a directory that doesn't exist.
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

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "an operator edits files in place")]
mod tests {
    use super::*;
    use crate::state_dir::StateDir;

    #[test]
    fn a_haproxy_cfg_that_confgen_wrote_is_no_changed_file() {
        let dir = tempfile::tempdir().unwrap();
        let below = |name: &str| dir.path().join(name);
        let paths = LocalPaths {
            include: below("conf.d"),
            fill: Vec::new(),
            certs: below("certs"),
            authorities: below("ca"),
            domains: None,
            pages: None,
            cfg: below("haproxy.cfg"),
            state_dir: below("state"),
            chroot: None,
            own_endpoints: OwnEndpoints::default(),
            environment: Environment::default(),
        };
        let own_cfg = OwnFile::default();
        let disk = StateDir::open(&paths.cfg, &paths.state_dir).unwrap().with_own_cfg(own_cfg.clone());
        let stamps = || paths.take_stamps(&own_cfg, &FileStamps::default(), SystemTime::now());
        let missing = stamps();
        let rendered = |cfg: &str| crate::render::Rendered { cfg: cfg.into(), ..Default::default() };
        let publish = |content| disk.commit(disk.stage_config(&rendered(content)).unwrap()).unwrap();
        publish("one\n");
        let own = stamps();
        publish("two\n");
        assert_eq!(stamps(), own);
        fs::write(&paths.cfg, "edited\n").unwrap();
        let edited = stamps();
        assert!(edited != own && edited != missing);
        fs::remove_file(&paths.cfg).unwrap();
        assert!(stamps() == missing && missing != own);
    }
}
