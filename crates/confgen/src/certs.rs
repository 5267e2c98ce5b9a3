//! The certificates' files: each checked by HAProxy itself and copied, so that a broken one never stops it.

mod trial;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use discovery::ServiceName;
use haproxy::check::Checker;
use haproxy::runtime::Token;

use crate::bisect::culprits;
use crate::certificate::Certificate;
use crate::disk::{Error, failed, replace};
use trial::Trial;
pub(crate) use trial::first_alert;

/// What HTTPS is served with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificates {
    /// The list that HAProxy reads; none where nothing was collected.
    pub list: Option<Token>,
    /// In the list's order: `default.pem`, then a copy of each of the operator's files, by name.
    pub served: Vec<Certificate>,
    /// Files that are not used, or whose last good copy still is, and why.
    pub refused: BTreeMap<PathBuf, String>,
}

impl Certificates {
    /// Those of the operator's files: `default.pem` is a copy of the first, or self-signed where there is none.
    pub fn files(&self) -> impl Iterator<Item = &Certificate> {
        self.served.iter().skip(1)
    }

    /// Logs what is another than before: what is refused, and what is served from now on. At the start, when nothing was
    /// before, only what is refused.
    pub fn tell(&self, before: &Self) {
        for (file, reason) in &self.refused {
            if before.refused.get(file) != Some(reason) {
                tracing::warn!("certificate {}: {reason}; not taken over", file.display());
            }
        }
        if before.list.is_none() {
            return;
        }
        let known = |all: &Self, one: &Certificate| all.files().any(|it| it.file == one.file && it.pem == one.pem);
        for certificate in self.files().filter(|it| !known(before, it)) {
            tracing::info!(
                "certificate {}: taken over for {}",
                certificate.file.display(),
                certificate.names.join(", ")
            );
        }
        for gone in before.files().filter(|it| !self.files().any(|other| other.file == it.file)) {
            tracing::info!("certificate {}: gone", gone.file.display());
        }
    }
}

/// Private keys: for the owner, and HAProxy's group to read.
const MODE: u32 = 0o640;

/// The first line of the list.
const DEFAULT: &str = "default.pem";

/// What lets HTTPS answer where there is nothing else.
const SELF_SIGNED: &str = "self-signed.pem";

/// Enough to single out a dozen files of a thousand; a check takes some 50 ms.
const JUDGEMENTS: usize = 120;

/// Where the list of certificates is, in the folder of the copies.
pub fn crt_list(state_dir: &Path) -> PathBuf {
    copies_in(state_dir).join("crt-list.txt")
}

fn copies_in(state_dir: &Path) -> PathBuf {
    state_dir.join("certs")
}

/// Takes over the certificates of `source` into `state_dir/certs/`, and lists the copies. The list's first line is
/// `default.pem`, for clients that name no host or an unknown one: a copy of the first certificate by name, or a
/// self-signed one where there is none. HAProxy can't do without its first line, so that file is never deleted.
///
/// Whenever HAProxy starts, what is listed is there: a copy comes before its line, and goes after it. It is checked beside
/// the operator's own files (`include`), whose `global` may ask more of a certificate.
pub fn collect(source: &Path, state_dir: &Path, include: &Path, checker: &Checker) -> Result<Certificates, Error> {
    let copies = copies_in(state_dir);
    fs::create_dir_all(&copies).map_err(failed("create", &copies))?;
    let mut refused = BTreeMap::new();
    let mut listed = Vec::new();
    for (file, outcome) in checked(candidates(source, &copies)?, &copies, include, checker)? {
        let taken = match outcome {
            Ok(candidate) => {
                replace(&copies.join(&candidate.name), &candidate.content, MODE)?;
                Some(candidate.certificate)
            }
            Err(Refusal { name, reason }) => {
                refused.insert(file.clone(), reason);
                name.and_then(|name| kept(&file, &copies.join(name)))
            }
        };
        listed.extend(taken);
    }
    let default = default(listed.first(), &copies)?;
    let served: Vec<Certificate> = std::iter::once(default).chain(listed).collect();
    let list: String = served.iter().map(|certificate| format!("{}\n", certificate.copy)).collect();
    replace(&crt_list(state_dir), list.as_bytes(), MODE)?;
    sweep(&copies, &served)?;
    Ok(Certificates { list: Some(token(&crt_list(state_dir))?), served, refused })
}

/// A file that may become a certificate of HAProxy's.
#[derive(Clone)]
struct Candidate {
    /// Of the copy.
    name: String,
    content: Vec<u8>,
    certificate: Certificate,
}

/// Why a file isn't taken; with the name of its copy, where it may have one.
struct Refusal {
    name: Option<String>,
    reason: String,
}

type Outcome = Result<Candidate, Refusal>;

/// The certificates' files. A directory that isn't there holds none.
fn candidates(source: &Path, copies: &Path) -> Result<Vec<(PathBuf, Outcome)>, Error> {
    let mut files: Vec<PathBuf> = match fs::read_dir(source) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(failed("list", source)(error)),
    };
    files.sort();
    let read = |file: PathBuf| copy_name(&file).map(|name| (candidate(&file, name, copies), file));
    Ok(files.into_iter().filter_map(read).map(|(outcome, file)| (file, outcome)).collect())
}

/// The copy's name for a file that is a certificate's: `a.pem` for `a.pem`, `a.pem.rsa.pem` for `a.pem.rsa`, as HAProxy
/// calls one of a pair.
fn copy_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_string_lossy();
    let of_pair = [".pem.rsa", ".pem.ecdsa"].iter().any(|end| name.ends_with(end));
    if of_pair { Some(format!("{name}.pem")) } else { name.ends_with(".pem").then(|| name.into_owned()) }
}

fn candidate(file: &Path, name: String, copies: &Path) -> Outcome {
    if name.parse::<ServiceName>().is_err() || name == DEFAULT || name == SELF_SIGNED {
        let rule = "a certificate's name is letters, digits, `_`, `.`, `-` and `.pem`; not default or self-signed";
        return Err(Refusal { name: None, reason: rule.into() });
    }
    let refusal = |reason: String| Refusal { name: Some(name.clone()), reason };
    // The key may stand in a file beside it, as certbot and HAProxy itself have it.
    let key = PathBuf::from(format!("{}.key", file.display()));
    let beside = fs::read(key).or_else(|_| fs::read(file.with_extension("key")));
    // A file may lack its last line feed.
    let key = beside.map(|key| [b"\n", key.as_slice()].concat()).unwrap_or_default();
    let content = fs::read(file).map(|content| [content, key].concat()).map_err(|error| refusal(error.to_string()))?;
    let copy = token(&copies.join(&name)).map_err(|error| refusal(error.to_string()))?;
    match Certificate::read(file.to_owned(), copy, &content) {
        Ok(certificate) => Ok(Candidate { name, content, certificate }),
        Err(error) => Err(refusal(error.to_string())),
    }
}

/// HAProxy's own word on those that are new or changed.
fn checked(
    candidates: Vec<(PathBuf, Outcome)>,
    copies: &Path,
    include: &Path,
    checker: &Checker,
) -> Result<Vec<(PathBuf, Outcome)>, Error> {
    let is_new = |it: &&Candidate| !fs::read(copies.join(&it.name)).is_ok_and(|old| old == it.content);
    let unchecked = candidates.iter().filter_map(|(_, outcome)| outcome.as_ref().ok());
    let unchecked: Vec<Candidate> = unchecked.filter(is_new).cloned().collect();
    if unchecked.is_empty() {
        return Ok(candidates);
    }
    let mut trial = Trial { folder: copies.join(".trial"), beside: Some(include), checker };
    if trial.verdict(&unchecked)?.is_none() {
        return Ok(candidates);
    }
    if trial.verdict(&[baseline(copies)?])?.is_some() {
        // The operator's files refuse even our own: no certificate is to blame for that.
        trial.beside = None;
    }
    let guilty = culprits(&unchecked, JUDGEMENTS, &mut |some| trial.verdict(some))?;
    let reasons: BTreeMap<String, String> = guilty.into_iter().map(|(it, reason)| (it.name, reason)).collect();
    let judged = |candidate: Candidate| match reasons.get(&candidate.name) {
        Some(reason) => Err(Refusal { name: Some(candidate.name), reason: reason.clone() }),
        None => Ok(candidate),
    };
    Ok(candidates.into_iter().map(|(file, outcome)| (file, outcome.and_then(judged))).collect())
}

/// Our own certificate as a candidate.
fn baseline(copies: &Path) -> Result<Candidate, Error> {
    let (path, content) = (copies.join(SELF_SIGNED), self_signed(copies)?);
    let certificate = Certificate::read(path.clone(), token(&path)?, &content)
        .map_err(|error| failed("read", &path)(io::Error::other(error)))?;
    Ok(Candidate { name: SELF_SIGNED.into(), content, certificate })
}

/// The last good copy of a file that is broken now.
fn kept(file: &Path, copy: &Path) -> Option<Certificate> {
    Certificate::read(file.to_owned(), token(copy).ok()?, &fs::read(copy).ok()?).ok()
}

/// Writes `default.pem`: the first certificate again, or a self-signed one.
fn default(first: Option<&Certificate>, copies: &Path) -> Result<Certificate, Error> {
    let path = copies.join(DEFAULT);
    let (file, content) = match first {
        Some(first) => {
            let copy = PathBuf::from(first.copy.to_string());
            (first.file.clone(), fs::read(&copy).map_err(failed("read", &copy))?)
        }
        None => {
            let own = baseline(copies)?;
            (own.certificate.file, own.content)
        }
    };
    replace(&path, &content, MODE)?;
    Certificate::read(file, token(&path)?, &content).map_err(|error| failed("read", &path)(io::Error::other(error)))
}

/// A certificate that lets HTTPS answer where there is none; made once, then kept.
fn self_signed(copies: &Path) -> Result<Vec<u8>, Error> {
    let path = copies.join(SELF_SIGNED);
    if let Ok(content) = fs::read(&path) {
        return Ok(content);
    }
    let made = rcgen::generate_simple_self_signed(["haproxy-discover.invalid".to_owned()])
        .map_err(|error| failed("make", &path)(io::Error::other(error)))?;
    let content = (made.cert.pem() + &made.signing_key.serialize_pem()).into_bytes();
    replace(&path, &content, MODE)?;
    Ok(content)
}

/// Removes the copies that are no longer listed.
fn sweep(copies: &Path, served: &[Certificate]) -> Result<(), Error> {
    let listed: BTreeSet<PathBuf> = served.iter().map(|it| PathBuf::from(it.copy.to_string())).collect();
    let entries = fs::read_dir(copies).map_err(failed("list", copies))?;
    let unlisted = entries.flatten().map(|entry| entry.path()).filter(|path| {
        path.extension().is_some_and(|end| end == "pem") && !path.ends_with(SELF_SIGNED) && !listed.contains(path)
    });
    for path in unlisted {
        fs::remove_file(&path).map_err(failed("remove", &path))?;
    }
    Ok(())
}

/// The path as HAProxy is told it.
fn token(path: &Path) -> Result<Token, Error> {
    path.display().to_string().parse().map_err(|error| failed("name", path)(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::tests::pem;
    use crate::place::{Place, checker};

    fn place() -> Place {
        Place::of(&["certs", "conf.d"])
    }

    fn collected(place: &Place) -> Certificates {
        let [certs, state, include] = ["certs", "state", "conf.d"].map(|name| place.path(name));
        collect(&certs, &state, &include, &checker()).unwrap()
    }

    /// The names that are refused, and those served from the first to the last.
    fn summary(certificates: &Certificates) -> (Vec<String>, Vec<String>) {
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        let refused = certificates.refused.keys().map(|file| name(file)).collect();
        (refused, certificates.served.iter().map(|it| name(Path::new(&it.copy.to_string()))).collect())
    }

    #[test]
    fn a_key_may_stand_beside_a_certificate_without_its_last_line_feed() {
        let place = place();
        let made = rcgen::generate_simple_self_signed(["a.com".to_owned()]).unwrap();
        for (certificate, key) in [("a.com.pem", "a.com.key"), ("b.pem", "b.pem.key"), ("c.pem.rsa", "c.pem.rsa.key")] {
            place.write(&format!("certs/{certificate}"), made.cert.pem().trim_end());
            place.write(&format!("certs/{key}"), made.signing_key.serialize_pem());
        }
        let (refused, served) = summary(&collected(&place));
        assert_eq!((refused.len(), served.join(" ")), (0, "default.pem a.com.pem b.pem c.pem.rsa.pem".into()));
    }

    #[test]
    fn a_broken_certificate_is_refused_and_the_last_good_one_kept() {
        let place = place();
        let none = collected(&place);
        assert_eq!((none.served.len(), none.refused.len()), (1, 0));
        assert_eq!(none.served[0].names, ["haproxy-discover.invalid"]);
        assert_eq!(collected(&place), none, "the self-signed one is made once");

        let good = pem("a.com");
        place.write("certs/a.com.pem", &good);
        place.write("certs/bad name.pem", b"");
        let one = collected(&place);
        assert_eq!(one.served[0].pem, one.served[1].pem, "the first by name is the default");
        assert_eq!(summary(&one).0, ["bad name.pem"]);

        // The last one's certificate and key are fine, but not each other's: only HAProxy says so.
        let mixed = format!("{}{}", &good[..good.find("-----BEGIN PRIVATE").unwrap()], {
            let other = pem("other.com");
            other[other.find("-----BEGIN PRIVATE").unwrap()..].to_owned()
        });
        for broken in ["-----BEGIN CERTIFICATE-----\nxx\n", "", &mixed] {
            place.write("certs/a.com.pem", broken);
            let broken = collected(&place);
            assert_eq!(broken.served, one.served);
            let reason = &broken.refused[&place.path("certs/a.com.pem")];
            assert!(!reason.contains("state/certs"), "{reason}");
        }
        fs::remove_file(place.path("certs/a.com.pem")).unwrap();
        assert_eq!(collected(&place).served, none.served);
        assert!(!place.path("state/certs/a.com.pem").exists(), "the copy goes too");
    }

    #[test]
    fn of_many_that_come_at_once_only_the_broken_ones_are_refused() {
        let place = place();
        for number in 0..9 {
            place.write(&format!("certs/{number}.pem"), pem("a.com"));
        }
        let (one, two) = (pem("b.com"), pem("c.com"));
        let key = |text: &str| text[text.find("-----BEGIN PRIVATE").unwrap()..].to_owned();
        place.write("certs/4.pem", one.replace(&key(&one), &key(&two)));
        let certificates = collected(&place);
        assert_eq!((summary(&certificates).0, certificates.served.len()), (vec!["4.pem".to_owned()], 9));
        assert!(certificates.refused.values().all(|reason| reason.contains("'4.pem'")), "{:?}", certificates.refused);
        assert!(!place.path("state/certs/.trial").exists());
    }

    #[test]
    fn an_operators_broken_file_is_no_fault_of_a_certificates() {
        let place = place();
        for broken in ["nonsense", "ssl-default-bind-ciphers NONE-SUCH"] {
            place.write("conf.d/mine.cfg", format!("global\n    {broken}\n"));
            place.write("certs/a.pem", pem("a.com"));
            assert_eq!(collected(&place).refused, BTreeMap::new(), "{broken}");
        }
    }
}
