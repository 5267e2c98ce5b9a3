//! Takes over the files of `--ca-dir`, so that HAProxy still starts when one breaks or disappears. This module doesn't decide
//! which service may name which file.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use discovery::FileName;
use haproxy::check::{CheckResult, Checker};
use regular_file::LARGE;

use crate::desired::fingerprint::hash_parts;
use crate::desired::{Authorities, Authority};
use crate::local_files::trial::{self, Candidate, Copies, LocalFile, TrialFolder, first_alert};
use crate::operator_files::validate::{CHECK_DEFAULTS, CHECK_FRONTEND};
use crate::state_dir::{self, Error, io_error};

/// CA certificates are no secret, so others may read the copies.
const MODE: u32 = 0o644;

/// Takes over the files of `source` into `state_dir/ca/`. If a file is broken or gone, its copy can still be named: the last good
/// content serves. The copy of a file that is gone is removed once haproxy.cfg (`cfg`) doesn't name it.
///
/// # Errors
/// If a directory can't be listed, or a copy can't be written or removed.
pub fn collect_ca_files(source: &Path, state_dir: &Path, cfg: &Path, checker: &Checker) -> Result<Authorities, Error> {
    let copies = copies_of(state_dir);
    copies.create_folder()?;
    let files = read_files(source)?;
    let present: BTreeSet<FileName> = files.iter().map(|file| file.key.clone()).collect();
    let mut collected = trial::collect(
        files,
        &copies,
        |_, name, content| to_authority(&copies, name, content),
        |some| find_complaint(some, state_dir, checker),
    )?;
    let cfg = read_cfg(cfg);
    for copy in read_files(copies.folder())?.into_iter().filter(|copy| !present.contains(&copy.key)) {
        let Ok(content) = copy.content else { continue };
        let path = copies.path_of(&copy.copy_name);
        // HAProxy would not start without a file that haproxy.cfg names, so the copy outlives its file until the next restart.
        if cfg.as_ref().is_none_or(|cfg| cfg.contains(&path.display().to_string())) {
            let authority = to_authority(&copies, &copy.copy_name, &content);
            collected.in_use.extend(authority.map(|authority| (copy.key.clone(), authority)));
            collected.rejected.insert(copy.key, "the file is gone".into());
        } else {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
    }
    Ok(Authorities { usable: collected.in_use, refused: collected.rejected })
}

/// The text of haproxy.cfg, empty if there is none. `None` if it can't be read, and then it may name any copy.
fn read_cfg(path: &Path) -> Option<String> {
    match regular_file::read(path, state_dir::LARGEST) {
        Ok(cfg) => Some(String::from_utf8_lossy(&cfg).into_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => Some(String::new()),
        Err(_) => None,
    }
}

/// The files and copies that a service could name now. HAProxy checks none, and nothing is written.
pub fn read_ca_files_unchecked(source: &Path, state_dir: &Path) -> Authorities {
    let copies = copies_of(state_dir);
    let mut files = read_files(copies.folder()).unwrap_or_default();
    // A file comes after its copy, and replaces it in the result.
    files.extend(read_files(source).unwrap_or_default());
    let collected = trial::collect_unchecked(files, &copies, |_, name, content| to_authority(&copies, name, content));
    Authorities { usable: collected.in_use, ..Authorities::default() }
}

fn copies_of(state_dir: &Path) -> Copies {
    Copies::new(state_dir.join("ca"), MODE, LARGE)
}

/// The files of a directory that a setting can name, sorted. A missing directory has none.
fn read_files(dir: &Path) -> Result<Vec<LocalFile<FileName>>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("list", dir)(error)),
    };
    let mut files = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| !path.is_dir()) {
        let key = path.file_name().and_then(|name| name.to_str()?.parse::<FileName>().ok());
        let Some(key) = key else { continue };
        let content = match regular_file::read(&path, LARGE) {
            // The file disappeared after the directory was listed, or a link leads nowhere.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            content => content.map_err(|error| error.to_string()),
        };
        files.push(LocalFile { copy_name: key.to_string(), key, content });
    }
    files.sort_by(|one, other| one.key.cmp(&other.key));
    Ok(files)
}

fn to_authority(copies: &Copies, name: &str, content: &[u8]) -> Result<Authority, String> {
    let copy = copies.path_of(name).display().to_string();
    let copy = copy.parse().map_err(|error| format!("HAProxy can't be given the path {copy}: {error}"))?;
    Ok(Authority { copy, fingerprint: hash_parts([content]) })
}

/// HAProxy's complaint about some files together. HAProxy loads each file that a configuration names.
fn find_complaint(some: &[&Candidate], state_dir: &Path, checker: &Checker) -> Result<Option<String>, Error> {
    let folder = TrialFolder::create(state_dir)?;
    let mut text = format!("{CHECK_DEFAULTS}{CHECK_FRONTEND}\n");
    for (number, candidate) in some.iter().enumerate() {
        let file = folder.write_file(&number.to_string(), &candidate.content)?;
        // HAProxy loads the file of a `default-server` line even if the section has no server (2.6, 3.0, 3.2).
        text += &format!("backend {number}\n    default-server ssl verify required ca-file {}\n", file.display());
    }
    Ok(match folder.check(&text, None, checker)? {
        Ok(CheckResult::Valid { .. }) => None,
        Ok(CheckResult::Rejected { output }) => {
            let words = first_alert(&output);
            // HAProxy has the reason in parentheses, behind the path.
            let reason = words.rsplit_once('(').and_then(|(_, reason)| reason.split_once(')'));
            Some(reason.map_or(words.clone(), |(reason, _)| reason.to_owned()))
        }
        Err(failure) => Some(failure),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local_files::certificate::tests::pem;
    use crate::test_support::{TempFiles, new_checker};

    fn place() -> TempFiles {
        TempFiles::with_folders(&["ca", "state"])
    }

    /// The usable names, each with the copy's content, and the refused ones.
    fn collected(place: &TempFiles) -> (Vec<(String, String)>, Vec<String>) {
        let [source, state, cfg] = ["ca", "state", "haproxy.cfg"].map(|name| place.path(name));
        let Authorities { usable, refused } = collect_ca_files(&source, &state, &cfg, &new_checker()).unwrap();
        let read = |authority: &Authority| fs::read_to_string(authority.copy.to_string()).unwrap();
        let usable = usable.iter().map(|(name, authority)| (name.to_string(), read(authority))).collect();
        (usable, refused.iter().map(|(name, reason)| format!("{name}: {reason}")).collect())
    }

    fn has(name: &str, content: &str) -> Vec<(String, String)> {
        vec![(name.to_owned(), content.to_owned())]
    }

    #[test]
    fn a_broken_file_is_refused_and_its_last_good_content_stays() {
        let (place, ca) = (place(), pem("ca.test"));
        place.write("ca/internal", &ca);
        place.write("ca/broken", "nonsense");
        place.write("ca/.hidden", &ca);
        let refused = |name: &str| vec![format!("{name}: no certificate or crl found")];
        assert_eq!(collected(&place), (has("internal", &ca), refused("broken")));
        fs::remove_file(place.path("ca/broken")).unwrap();
        let half = ca.split_at(200).0;
        place.write("ca/internal", half);
        let (usable, reasons) = collected(&place);
        assert_eq!((usable, reasons.len()), (has("internal", &ca), 1), "{reasons:?}");
        let next = pem("next.test");
        place.write("ca/internal", &next);
        assert_eq!(collected(&place), (has("internal", &next), vec![]));
        assert_eq!(fs::read_dir(place.path("state")).unwrap().count(), 1, "nothing of the trials is left");
    }

    #[test]
    fn a_special_file_is_refused_and_its_last_good_content_stays() {
        let (place, ca) = (place(), pem("ca.test"));
        place.write("ca/internal", &ca);
        place.write("ca/other", &ca);
        collected(&place);
        fs::remove_file(place.path("ca/internal")).unwrap();
        nix::unistd::mkfifo(&place.path("ca/internal"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (usable, refused) = collected(&place);
        assert_eq!(usable, [has("internal", &ca), has("other", &ca)].concat());
        assert_eq!(refused, ["internal: it is a FIFO, not a regular file"]);
    }

    #[test]
    fn a_file_that_is_gone_serves_while_the_configuration_names_it() {
        let (place, ca) = (place(), pem("ca.test"));
        assert_eq!(collected(&place), (vec![], vec![]));
        place.write("ca/internal", &ca);
        collected(&place);
        place.write("haproxy.cfg", format!("ca-file {}\n", place.path("state/ca/internal").display()));
        fs::remove_dir_all(place.path("ca")).unwrap();
        assert_eq!(collected(&place), (has("internal", &ca), vec!["internal: the file is gone".to_owned()]));
        place.write("haproxy.cfg", "");
        assert_eq!(collected(&place), (vec![], vec![]));
    }

    #[test]
    fn a_copy_stays_while_a_long_configuration_names_it() {
        let (place, ca) = (place(), pem("ca.test"));
        place.write("ca/internal", &ca);
        collected(&place);
        let comment = "# 20,000 services have some 40 MB\n".repeat(LARGE as usize / 16);
        place.write("haproxy.cfg", format!("{comment}ca-file {}\n", place.path("state/ca/internal").display()));
        fs::remove_file(place.path("ca/internal")).unwrap();
        assert_eq!(collected(&place).0, has("internal", &ca));
    }
}
