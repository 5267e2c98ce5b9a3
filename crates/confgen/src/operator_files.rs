//! The operator's own `*.cfg` files (`--include`), as they were read, and their meaning. Pure: no I/O, no clock, except that
//! `validate` has HAProxy check files.

pub(crate) mod edit_windows;
pub(crate) mod filled;
pub(crate) mod parse;
pub(crate) mod server_words;
pub(crate) mod validate;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::desired::fingerprint::hash_parts;
use crate::operator_files::filled::{FilledFile, FilledFiles};
use crate::operator_files::parse::{Environment, OperatorConfig};

/// One file of `--include`. `operator.json` keeps it under these field names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// The path that HAProxy's output has.
    pub path: PathBuf,
    /// The path with all links followed.
    pub real: PathBuf,
    pub bytes: Vec<u8>,
}

/// The files of `--include`, in the order in which HAProxy reads them.
#[derive(Clone, Debug, Default)]
pub struct OperatorFiles {
    pub sources: Vec<SourceFile>,
    pub config: OperatorConfig,
    /// The files among them that `--fill` names.
    pub filled: FilledFiles,
    /// Fingerprints of the files without the lines that confgen fills in. HAProxy reads the rest only at its start.
    pub fingerprints: Vec<String>,
    /// HAProxy's warnings about these files alone.
    pub warnings: BTreeSet<String>,
}

impl OperatorFiles {
    /// Interprets the files. `filled` has the real paths of the files that `--fill` names. `before` tells which lines in them
    /// confgen wrote, and which HAProxy rejected. `environment` is that of HAProxy's check.
    pub fn from_sources(
        sources: Vec<SourceFile>,
        filled: &[PathBuf],
        before: &FilledFiles,
        environment: &Environment,
    ) -> Self {
        let texts: Vec<(String, String)> =
            sources.iter().map(|it| (display_path(&it.path), decode_lossy(&it.bytes))).collect();
        let config =
            OperatorConfig::parse_files(texts.iter().map(|(name, text)| (name.as_str(), text.as_str())), environment);
        let filled = sources
            .iter()
            .filter(|it| filled.contains(&it.real))
            .map(|it| FilledFile::new(it.path.clone(), it.real.clone(), it.bytes.clone(), before.get(&it.path)));
        let filled = FilledFiles::new(filled.collect());
        let fingerprints = sources.iter().map(|it| {
            // The server lines that confgen fills in have fingerprints of their own: `FilledFiles::fingerprint_blocks`.
            let own = filled.get(&it.path).map_or_else(|| it.bytes.clone(), FilledFile::skeleton);
            hash_parts([own.as_slice()])
        });
        let fingerprints = fingerprints.collect();
        Self { sources, config, filled, fingerprints, warnings: BTreeSet::new() }
    }

    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.sources.iter().map(|source| source.path.as_path())
    }
}

fn display_path(path: &Path) -> String {
    path.display().to_string()
}

fn decode_lossy(bytes: &[u8]) -> String {
    // Keywords and names are ASCII. Comments may be in any encoding.
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> SourceFile {
        SourceFile { path: path.into(), real: format!("/real{path}").into(), bytes: text.into() }
    }

    #[test]
    fn filled_lines_are_no_part_of_the_files_fingerprint() {
        let filled = ["/real/b.cfg".into()];
        let read = |own: &str, run: &str| {
            let fill = format!("backend b\n# discover a: server <id> <address>\n{run}# end\n");
            let sources = vec![source("/a.cfg", own), source("/b.cfg", &fill)];
            OperatorFiles::from_sources(sources, &filled, &FilledFiles::default(), &Environment::new())
        };
        let before = read("defaults x\n", "");
        assert_eq!(before.fingerprints, read("defaults x\n", "server s 10.0.0.1:80\n").fingerprints);
        assert_ne!(before.fingerprints, read("defaults y\n", "").fingerprints);
        assert_ne!(before.fingerprints, read("defaults x\n", "# server s 10.0.0.1:80\n").fingerprints);
        assert!(before.filled.get(Path::new("/b.cfg")).is_some() && before.filled.get(Path::new("/a.cfg")).is_none());
    }
}
