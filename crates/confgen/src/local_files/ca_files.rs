//! The authorities' files: each checked by HAProxy itself and copied, so that one that breaks, or goes, never stops it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use discovery::FileName;
use haproxy::check::{CheckResult, Checker};
use regular_file::LARGE;

use crate::desired::fingerprint::hash_parts;
use crate::desired::{Authorities, Authority};
use crate::local_files::bisect::find_culprits;
use crate::local_files::certificates::first_alert;
use crate::state_dir::{Error, TRIAL, io_error, replace_file};

/// Nothing secret, but nobody's to write.
const MODE: u32 = 0o644;

/// Enough to single out a dozen files of a thousand; a check takes some 50 ms.
const JUDGEMENTS: usize = 120;

type Contents = BTreeMap<FileName, Vec<u8>>;

/// Takes over the files of `source` into `state_dir/ca/`. A copy whose file is broken or gone can still be named: the
/// last good content serves. One whose file is gone goes too, once haproxy.cfg doesn't name it.
pub fn collect_ca_files(source: &Path, state_dir: &Path, cfg: &Path, checker: &Checker) -> Result<Authorities, Error> {
    let copies = copies_dir(state_dir);
    fs::create_dir_all(&copies).map_err(io_error("create", &copies))?;
    let ((files, unreadable), (kept, _)) = (read_contents(source)?, read_contents(&copies)?);
    let new: Vec<FileName> = files.keys().filter(|name| kept.get(*name) != files.get(*name)).cloned().collect();
    let mut judge =
        |some: &[FileName]| check_ca_files(some.iter().filter_map(|name| files.get(name)), state_dir, checker);
    let mut refused: BTreeMap<FileName, String> = find_culprits(&new, JUDGEMENTS, &mut judge)?.into_iter().collect();
    let gone: Vec<&FileName> =
        kept.keys().filter(|name| !files.contains_key(*name) && !unreadable.contains_key(*name)).collect();
    for name in new.iter().filter(|name| !refused.contains_key(*name)) {
        replace_file(&copies.join(name.as_str()), files.get(name).map_or(&[], Vec::as_slice), MODE)?;
    }
    let named = regular_file::read(cfg, LARGE).unwrap_or_default();
    let named = String::from_utf8_lossy(&named);
    for name in gone {
        let copy = copies.join(name.as_str());
        if named.contains(&copy.display().to_string()) {
            refused.insert(name.clone(), "the file is gone".into());
        } else {
            fs::remove_file(&copy).map_err(io_error("remove", &copy))?;
        }
    }
    refused.extend(unreadable);
    Ok(Authorities { usable: to_authorities(&read_contents(&copies)?.0, &copies), refused })
}

/// What can be named, as far as a look can tell; nothing is taken over.
pub fn read_ca_files_unchecked(source: &Path, state_dir: &Path) -> Authorities {
    let copies = copies_dir(state_dir);
    let (mut files, _) = read_contents(&copies).unwrap_or_default();
    files.extend(read_contents(source).unwrap_or_default().0);
    Authorities { usable: to_authorities(&files, &copies), refused: BTreeMap::new() }
}

fn copies_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("ca")
}

/// The files that a setting can name, and why some of them can't be read. A directory that isn't there holds none.
fn read_contents(dir: &Path) -> Result<(Contents, BTreeMap<FileName, String>), Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
        Err(error) => return Err(io_error("list", dir)(error)),
    };
    let (mut contents, mut unreadable) = (Contents::new(), BTreeMap::new());
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| !path.is_dir()) {
        let name = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        let Some(name) = name else { continue };
        match regular_file::read(&path, LARGE) {
            Ok(content) => drop(contents.insert(name, content)),
            // It went since the directory was listed, or is a link that leads nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => drop(unreadable.insert(name, error.to_string())),
        }
    }
    Ok((contents, unreadable))
}

fn to_authorities(contents: &Contents, copies: &Path) -> BTreeMap<FileName, Authority> {
    let authority = |name: &FileName, content: &Vec<u8>| {
        let copy = copies.join(name.as_str()).display().to_string().parse().ok()?;
        Some((name.clone(), Authority { copy, fingerprint: hash_parts([content.as_slice()]) }))
    };
    contents.iter().filter_map(|(name, content)| authority(name, content)).collect()
}

/// Why HAProxy would not start with these files: it loads each that a configuration names.
fn check_ca_files<'a>(
    files: impl Iterator<Item = &'a Vec<u8>>,
    state_dir: &Path,
    checker: &Checker,
) -> Result<Option<String>, Error> {
    let folder = tempfile::Builder::new().prefix(TRIAL).tempdir_in(state_dir);
    let folder = folder.map_err(io_error("create a folder in", state_dir))?;
    // Nothing is bound by a check; it only wants something to bind.
    let mut text = "defaults\n    mode http\n    timeout client 1s\n    timeout connect 1s\n    timeout server 1s\n\
                    frontend confgen-check\n    bind 127.0.0.1:443\n"
        .to_owned();
    for (number, content) in files.enumerate() {
        let file = folder.path().join(number.to_string());
        replace_file(&file, content, MODE)?;
        text += &format!("backend {number}\n    default-server ssl verify required ca-file {}\n", file.display());
    }
    let cfg = folder.path().join("haproxy.cfg");
    replace_file(&cfg, text.as_bytes(), MODE)?;
    Ok(match checker.check_files(&[cfg]) {
        Ok(CheckResult::Valid { .. }) => None,
        Ok(CheckResult::Rejected { output }) => {
            let words = first_alert(&output);
            let reason = words.rsplit_once('(').and_then(|(_, reason)| reason.split_once(')'));
            Some(reason.map_or(words.clone(), |(reason, _)| reason.to_owned()))
        }
        Err(error) => Some(error.to_string()),
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

    /// What can be named, with the copy's content; and what is refused.
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
}
