//! HAProxy's own word on certificates, before it is given them.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use haproxy::check::{CheckResult, Checker};

use super::Candidate;
use crate::state_dir::{Error, io_error};

/// A configuration that does nothing but serve TLS, in a folder of its own, which goes again.
pub(super) struct Trial<'a> {
    pub(super) folder: PathBuf,
    /// Read before it, if so.
    pub(super) beside: Option<&'a Path>,
    pub(super) checker: &'a Checker,
}

impl Trial<'_> {
    /// Why HAProxy would not start with these certificates.
    pub(super) fn find_complaint(&self, candidates: &[Candidate]) -> Result<Option<String>, Error> {
        // A killed confgen may have left it.
        self.remove_folder()?;
        DirBuilder::new().mode(0o700).create(&self.folder).map_err(io_error("create", &self.folder))?;
        let cfg = self.write_folder(candidates)?;
        let files: Vec<PathBuf> = self.beside.map(Path::to_owned).into_iter().chain([cfg]).collect();
        let verdict = self.checker.check_files(&files);
        self.remove_folder()?;
        let folder = format!("{}/", self.folder.display());
        Ok(match verdict {
            Ok(CheckResult::Valid { .. }) => None,
            Ok(CheckResult::Rejected { output }) => {
                let words = first_alert(&output).replace(&folder, "");
                Some(words.split_once("'crt-list' : ").map_or(words.as_str(), |(_, words)| words).to_owned())
            }
            Err(error) => Some(error.to_string()),
        })
    }

    fn write_folder(&self, candidates: &[Candidate]) -> Result<PathBuf, Error> {
        let mut lines = String::new();
        for candidate in candidates {
            let path = self.folder.join(&candidate.name);
            write_scratch(&path, &candidate.content)?;
            lines.push_str(&format!("{}\n", path.display()));
        }
        let (list, cfg) = (self.folder.join("crt-list.txt"), self.folder.join("haproxy.cfg"));
        write_scratch(&list, lines.as_bytes())?;
        // Nothing is bound by a check; the port only has to be one.
        let text = format!(
            "defaults\n    mode http\n    timeout client 1s\nfrontend confgen-check\n    bind 127.0.0.1:443 ssl crt-list {}\n",
            list.display()
        );
        write_scratch(&cfg, text.as_bytes())?;
        Ok(cfg)
    }

    fn remove_folder(&self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &self.folder)(error)),
            _ => Ok(()),
        }
    }
}

/// A file that needn't outlive a crash, for its owner alone.
fn write_scratch(path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io_error("create", path))?;
    file.write_all(content).map_err(io_error("write", path))
}

/// What HAProxy says is wrong first, in one line without its prefix. 3.0 goes on in lines that begin with blanks.
pub(crate) fn first_alert(output: &str) -> String {
    let is_alert = |line: &&str| line.contains("unable to") || line.contains("[ALERT]");
    let mut lines = output.lines().skip_while(|line| !is_alert(line));
    let first = lines.next().unwrap_or(output);
    let first = first.rsplit("] : ").next().unwrap_or(first);
    let more = lines.take_while(|line| line.starts_with(' '));
    let words: Vec<&str> = std::iter::once(first).chain(more).map(str::trim).collect();
    words.join(" ").chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_of_several_lines_is_read_whole() {
        let of = "[NOTICE]   (1) : haproxy version is 3.2\n\
                  [ALERT]    (1) : config : parsing [h.cfg:10] : 'bind *:443' in section 'frontend' : \n\
                  \x20 'crt-list' : error processing line 1 : inconsistencies between key and certificate\n\
                  [ALERT]    (1) : config : Fatal errors found in configuration.\n";
        let expected = "'bind *:443' in section 'frontend' : 'crt-list' : error processing line 1 : \
                        inconsistencies between key and certificate";
        assert_eq!(first_alert(of), expected);
    }
}
