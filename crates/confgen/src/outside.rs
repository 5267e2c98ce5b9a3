//! What concerns the generated file and isn't in the store: the operator's files and the certificates.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use haproxy::check::Checker;

use crate::certs::{self, Certificates};
use crate::disk::{Error, failed};
use crate::operator::Operator;

/// The files that confgen looks at, and may find changed.
#[derive(Clone, Debug)]
pub struct Places {
    /// The operator's own `*.cfg` files.
    pub include: PathBuf,
    /// The certificates.
    pub certs: PathBuf,
    /// haproxy.cfg itself, which somebody may have edited.
    pub cfg: PathBuf,
    /// What confgen keeps.
    pub state_dir: PathBuf,
}

/// The operator's files and the certificates, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// What the operator's files say.
    pub operator: Operator,
    /// The certificates in use.
    pub certificates: Certificates,
    /// Everything above that only a restart takes in.
    pub contents: Vec<Vec<u8>>,
}

impl Outside {
    /// From the operator's files in their order, and the certificates.
    fn of(mut contents: Vec<Vec<u8>>, certificates: Certificates) -> Self {
        let texts: Vec<String> = contents.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect();
        let operator = Operator::of(texts.iter().map(String::as_str));
        contents.extend(certificates.contents.iter().cloned());
        Self { operator, certificates, contents }
    }
}

impl Places {
    /// Makes the operator's directory: HAProxy refuses to start when a `-f` directory is missing.
    pub fn prepare(&self) -> Result<(), Error> {
        fs::create_dir_all(&self.include).map_err(failed("create", &self.include))
    }

    /// Reads everything, and takes over new certificates.
    pub fn read(&self, checker: &Checker) -> Result<Outside, Error> {
        let mut contents = Vec::new();
        for file in self.operator_files()? {
            contents.push(fs::read(&file).map_err(failed("read", &file))?);
        }
        Ok(Outside::of(contents, certs::collect(&self.certs, &self.state_dir, checker)?))
    }

    /// Reads everything as it is, and takes over nothing.
    pub fn glimpse(&self) -> Outside {
        let files = self.operator_files().unwrap_or_default();
        let contents: Vec<Vec<u8>> = files.iter().filter_map(|file| fs::read(file).ok()).collect();
        Outside::of(contents, certs::listed(&self.state_dir))
    }

    /// The operator's files as HAProxy reads a directory: `*.cfg`, sorted, without hidden ones (management manual,
    /// section 3, `-f`).
    fn operator_files(&self) -> Result<Vec<PathBuf>, Error> {
        let entries = fs::read_dir(&self.include).map_err(failed("list", &self.include))?;
        let hidden = |file: &Path| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let mut files: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|file| file.extension().is_some_and(|extension| extension == "cfg") && !hidden(file))
            .collect();
        files.sort();
        Ok(files)
    }

    /// A cheap look: two glances that are equal saw the same files, unchanged.
    pub fn glance(&self) -> Glance {
        let listed = [&self.include, &self.certs].into_iter().filter_map(|dir| fs::read_dir(dir).ok());
        let mut seen: Vec<_> = listed.flatten().flatten().map(|entry| entry.path()).chain([self.cfg.clone()]).collect();
        seen.sort();
        let look = |path: PathBuf| {
            let metadata = fs::metadata(&path).ok()?;
            Some((path, metadata.len(), metadata.modified().ok()?))
        };
        Glance(seen.into_iter().filter_map(look).collect())
    }
}

/// Which files there are, how long, and when they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Glance(Vec<(PathBuf, u64, SystemTime)>);
