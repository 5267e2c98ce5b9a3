//! The operator's own files, as they were read. Pure: what they mean is told from their bytes.

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

/// One file that HAProxy reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// As HAProxy names it.
    pub path: PathBuf,
    /// Where the links lead.
    pub real: PathBuf,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// All of them, in the order HAProxy reads them.
#[derive(Clone, Debug, Default)]
pub struct OperatorFiles {
    /// The files.
    pub sources: Vec<SourceFile>,
    /// What they say.
    pub config: OperatorConfig,
    /// Those that are filled.
    pub filled: FilledFiles,
    /// Fingerprints of what people wrote: only a restart takes it in.
    pub fingerprints: Vec<String>,
    /// What HAProxy warns of in them.
    pub warnings: BTreeSet<String>,
}

impl OperatorFiles {
    /// Takes in what was read. `filled` are the files of `--fill`; of `before` is kept what confgen did with them.
    /// `environment` is the one that HAProxy's check has.
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
        let fill = |it: &SourceFile| {
            let known = before.get(&it.path);
            filled
                .contains(&it.real)
                .then(|| FilledFile::new(it.path.clone(), it.real.clone(), it.bytes.clone(), known))
        };
        let filled = FilledFiles::new(sources.iter().filter_map(fill).collect());
        let human = |it: &SourceFile| filled.get(&it.path).map_or_else(|| it.bytes.clone(), FilledFile::skeleton);
        let fingerprints = sources.iter().map(|it| hash_parts([human(it).as_slice()])).collect();
        Self { sources, config, filled, fingerprints, warnings: BTreeSet::new() }
    }

    /// The same files in the same order, whatever stands in them.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.sources.iter().map(|source| source.path.as_path())
    }
}

fn display_path(path: &Path) -> String {
    path.display().to_string()
}

/// What matters here is ASCII; comments may be in any encoding.
fn decode_lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> SourceFile {
        SourceFile { path: path.into(), real: format!("/real{path}").into(), bytes: text.into() }
    }

    #[test]
    fn what_confgen_fills_in_is_nothing_that_people_wrote() {
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
