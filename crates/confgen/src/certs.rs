//! The certificates: each checked by HAProxy itself and copied, so that a broken file never stops it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use discovery::ServiceName;
use haproxy::check::{Checker, Verdict};

use crate::disk::{Error, failed, replace};

/// What HTTPS is served with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificates {
    /// Contents in the list's order; what they are the fingerprint of is up to the caller.
    pub contents: Vec<Vec<u8>>,
    /// Files that are not used, or whose last good copy still is, and why.
    pub refused: BTreeMap<PathBuf, String>,
}

/// Private keys: for the owner, and HAProxy's group to read.
const MODE: u32 = 0o640;

/// Where the list of certificates is, in the folder of the copies.
pub fn crt_list(state_dir: &Path) -> PathBuf {
    state_dir.join("certs/crt-list.txt")
}

/// Takes over the `*.pem` files of `source` into `state_dir/certs/`, and lists the copies. The list's first line is
/// `default.pem`, for clients that name no host or an unknown one: a copy of the first certificate by name, or a
/// self-signed one where there is none. HAProxy can't do without its first line, so that file is never deleted.
pub fn collect(source: &Path, state_dir: &Path, checker: &Checker) -> Result<Certificates, Error> {
    let copies = state_dir.join("certs");
    fs::create_dir_all(&copies).map_err(failed("create", &copies))?;
    let mut certificates = Certificates::default();
    let mut names = Vec::new();
    for file in pem_files(source)? {
        match take_over(&file, &copies, checker)? {
            Ok(name) => names.push(name),
            Err((reason, kept)) => {
                certificates.refused.insert(file, reason);
                names.extend(kept);
            }
        }
    }
    let first = match names.first() {
        Some(name) => read(&copies.join(name))?,
        None => self_signed(&copies)?,
    };
    replace(&copies.join("default.pem"), &first, MODE)?;
    certificates.contents.push(first);
    let mut list = format!("{}\n", copies.join("default.pem").display());
    for name in &names {
        certificates.contents.push(read(&copies.join(name))?);
        list.push_str(&format!("{}\n", copies.join(name).display()));
    }
    replace(&crt_list(state_dir), list.as_bytes(), MODE)?;
    Ok(certificates)
}

/// The certificates that are listed already, as they are: nothing is taken over.
pub fn listed(state_dir: &Path) -> Certificates {
    let list = fs::read_to_string(crt_list(state_dir)).unwrap_or_default();
    Certificates { contents: list.lines().filter_map(|copy| fs::read(copy).ok()).collect(), ..Certificates::default() }
}

/// A directory that isn't there holds no certificates.
fn pem_files(source: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files: Vec<PathBuf> = match fs::read_dir(source) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(failed("list", source)(error)),
    };
    files.retain(|file| file.extension().is_some_and(|extension| extension == "pem"));
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(failed("read", path))
}

/// The copy's name; or why there is none, with the name of the last good copy.
type Taken = Result<String, (String, Option<String>)>;

fn take_over(file: &Path, copies: &Path, checker: &Checker) -> Result<Taken, Error> {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    if stem.parse::<ServiceName>().is_err() || stem == "default" || stem == "self-signed" {
        let rule = "a certificate's name is letters, digits, `_`, `.`, `-` and `.pem`; not default or self-signed";
        return Ok(Err((rule.into(), None)));
    }
    let name = format!("{stem}.pem");
    let copy = copies.join(&name);
    let kept = |reason: String| Err((reason, copy.exists().then(|| name.clone())));
    // The key may stand in a file beside it, as certbot and HAProxy itself have it.
    let beside = fs::read(file.with_extension("pem.key")).or_else(|_| fs::read(file.with_extension("key")));
    let content = match fs::read(file) {
        // A file may lack its last line feed.
        Ok(content) => [content, beside.map(|key| [b"\n", key.as_slice()].concat()).unwrap_or_default()].concat(),
        Err(error) => return Ok(kept(error.to_string())),
    };
    if fs::read(&copy).is_ok_and(|old| old == content) {
        return Ok(Ok(name));
    }
    match verdict(&content, copies, checker)? {
        None => replace(&copy, &content, MODE).map(|()| Ok(name)),
        Some(reason) => Ok(kept(reason)),
    }
}

/// Why HAProxy would not start with the certificate.
fn verdict(content: &[u8], copies: &Path, checker: &Checker) -> Result<Option<String>, Error> {
    let (candidate, cfg) = (copies.join(".candidate.pem"), copies.join(".candidate.cfg"));
    replace(&candidate, content, 0o600)?;
    // Nothing is bound by a check; the port only has to be one.
    let text = format!(
        "defaults\n    mode http\n    timeout client 1s\nfrontend check\n    bind 127.0.0.1:443 ssl crt {}\n",
        candidate.display()
    );
    replace(&cfg, text.as_bytes(), 0o600)?;
    let verdict = checker.check(std::slice::from_ref(&cfg));
    for file in [&candidate, &cfg] {
        fs::remove_file(file).map_err(failed("remove", file))?;
    }
    Ok(match verdict {
        Ok(Verdict::Valid { .. }) => None,
        Ok(Verdict::Refused { output }) => Some(first_alert(&output)),
        Err(error) => Some(error.to_string()),
    })
}

/// The line that says what is wrong, without HAProxy's prefix.
pub(crate) fn first_alert(output: &str) -> String {
    let line = output.lines().find(|line| line.contains("unable to") || line.contains("[ALERT]")).unwrap_or(output);
    line.rsplit("] : ").next().unwrap_or(line).trim().chars().take(200).collect()
}

/// A certificate that lets HTTPS answer where there is none; made once, then kept.
fn self_signed(copies: &Path) -> Result<Vec<u8>, Error> {
    let path = copies.join("self-signed.pem");
    if let Ok(content) = fs::read(&path) {
        return Ok(content);
    }
    let made = rcgen::generate_simple_self_signed(["haproxy-discover.invalid".to_owned()])
        .map_err(|error| failed("make", &path)(std::io::Error::other(error)))?;
    let content = (made.cert.pem() + &made.signing_key.serialize_pem()).into_bytes();
    replace(&path, &content, MODE)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use haproxy::command::CommandLine;

    use super::*;

    fn pem(host: &str) -> String {
        let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
        made.cert.pem() + &made.signing_key.serialize_pem()
    }

    #[test]
    fn a_key_may_stand_beside_a_certificate_without_its_last_line_feed() {
        let dir = tempfile::tempdir().unwrap();
        let (source, state) = (dir.path().join("certs"), dir.path().join("state"));
        fs::create_dir(&source).unwrap();
        let checker = Checker::new(CommandLine::from_words(["haproxy", "-c"]).unwrap(), Duration::from_secs(10));
        let made = rcgen::generate_simple_self_signed(["a.com".to_owned()]).unwrap();
        replace(&source.join("a.com.pem"), made.cert.pem().trim_end().as_bytes(), 0o600).unwrap();
        replace(&source.join("a.com.key"), made.signing_key.serialize_pem().as_bytes(), 0o600).unwrap();
        assert_eq!(collect(&source, &state, &checker).unwrap().refused, BTreeMap::new());
    }

    #[test]
    fn a_broken_certificate_is_refused_and_the_last_good_one_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (source, state) = (dir.path().join("certs"), dir.path().join("state"));
        fs::create_dir(&source).unwrap();
        let command = CommandLine::from_words(["haproxy", "-c"]).unwrap();
        let checker = Checker::new(command, Duration::from_secs(10));
        let collect = || collect(&source, &state, &checker).unwrap();

        let none = collect();
        assert_eq!((none.contents.len(), none.refused.len()), (1, 0));
        assert_eq!(collect(), none, "the self-signed one is made once");

        replace(&source.join("a.com.pem"), pem("a.com").as_bytes(), 0o600).unwrap();
        replace(&source.join("bad name.pem"), b"", 0o600).unwrap();
        let one = collect();
        assert_eq!(one.contents[0], one.contents[1], "the first by name is the default");
        assert_eq!(one.refused.keys().collect::<Vec<_>>(), [&source.join("bad name.pem")]);

        replace(&source.join("a.com.pem"), b"-----BEGIN CERTIFICATE-----\nxx\n", 0o600).unwrap();
        let broken = collect();
        assert_eq!(broken.contents, one.contents);
        assert!(broken.refused.contains_key(&source.join("a.com.pem")));

        fs::remove_file(source.join("a.com.pem")).unwrap();
        assert_eq!(collect().contents, none.contents);
    }
}
