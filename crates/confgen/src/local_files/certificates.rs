//! The certificates' files: each checked by HAProxy itself and copied, so that a broken one never stops it; and the list that
//! says which of them serves which name.

mod choice;
mod directory;
mod trial;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use haproxy::check::Checker;
use haproxy::runtime::{SniFilter, Token, crt_line};
use sha1::{Digest, Sha1};

use crate::local_files::bisect::find_culprits;
use crate::local_files::certificate::Certificate;
use crate::state_dir::{Error, io_error, replace_file};
pub use choice::{Choice, Claimant, Validity};
use trial::Trial;
pub(crate) use trial::first_alert;

/// What HTTPS is served with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificates {
    /// The list that HAProxy reads; none where nothing was collected.
    pub crt_list: Option<Token>,
    /// The list's lines: `default.pem`, then those of the certificates that serve a name.
    pub lines: Vec<CrtListLine>,
    /// Each of the operator's files that was taken, by path, whether it serves a name or not.
    pub files: Vec<Certificate>,
    /// Which of `files` serves which name.
    pub choice: Choice,
    /// The times, in Unix seconds, between which the choice holds. Later, or earlier, another certificate is the best one.
    pub choice_holds_within: Range<i64>,
    /// Files that are not used, or whose last good copy still is, and why.
    pub rejected: BTreeMap<PathBuf, String>,
    /// Files that are of no use here, without being wrong, and why.
    pub unused: BTreeMap<PathBuf, String>,
    /// The operator's directory.
    pub directory: PathBuf,
}

/// A line of the crt-list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrtListLine {
    /// The certificate, with the copy that the line names.
    pub certificate: Certificate,
    /// The names that the line serves. Empty for all names of the certificate.
    pub filters: Vec<SniFilter>,
}

impl Certificates {
    /// Whether the choice is still right at a time in Unix seconds. The clock may have been set back, too.
    pub fn is_current(&self, now: i64) -> bool {
        self.crt_list.is_none() || self.choice_holds_within.contains(&now)
    }

    /// The certificate that clients get that ask for no name, or for one that no certificate is for.
    pub fn default_certificate(&self) -> Option<&Certificate> {
        self.lines.first().map(|line| &line.certificate)
    }

    /// The operator's files that serve a name, or clients without one.
    pub fn serving_files(&self) -> impl Iterator<Item = &Certificate> {
        let listed: BTreeSet<&Path> = self.lines.iter().map(|line| line.certificate.file.as_path()).collect();
        self.files.iter().filter(move |it| listed.contains(it.file.as_path()))
    }

    /// A file's path within the operator's directory.
    pub fn relative_name(&self, file: &Path) -> String {
        file.strip_prefix(&self.directory).unwrap_or(file).display().to_string()
    }

    /// The names that each file serves.
    fn names_by_file(&self) -> BTreeMap<&Path, Vec<&str>> {
        let mut served = self.choice.names_by_certificate();
        let files = self.files.iter().enumerate();
        files.map(|(index, it)| (it.file.as_path(), served.remove(&index).unwrap_or_default())).collect()
    }

    /// Logs what is another than before: what is refused, what was taken over, and what serves other names from now on. At
    /// the start, when nothing was before, only what is refused, and what serves nothing.
    pub fn log_changes(&self, before: &Self) {
        for (file, reason) in &self.rejected {
            if before.rejected.get(file) != Some(reason) {
                tracing::warn!("certificate {}: {reason}; not taken over", file.display());
            }
        }
        for (file, reason) in &self.unused {
            if before.unused.get(file) != Some(reason) {
                tracing::info!("certificate {}: not used: {reason}", file.display());
            }
        }
        let known = |it: &Certificate| before.files.iter().any(|other| other.file == it.file && other.pem == it.pem);
        if before.crt_list.is_some() {
            for certificate in self.files.iter().filter(|it| !known(it)) {
                let (file, names) = (certificate.file.display(), certificate.names.join(", "));
                tracing::info!("certificate {file}: taken over for {names}");
            }
            for gone in before.files.iter().filter(|it| !self.files.iter().any(|other| other.file == it.file)) {
                tracing::info!("certificate {}: gone", gone.file.display());
            }
        }
        self.log_served_names(before);
    }

    /// Logs which files serve other names than before, where the file itself is no news.
    fn log_served_names(&self, before: &Self) {
        let (now, then) = (self.names_by_file(), before.names_by_file());
        for (file, names) in &now {
            let was = then.get(file);
            if names.is_empty() && was.is_none_or(|was| !was.is_empty()) && self.has_names(file) {
                tracing::info!("certificate {}: serves no name, others are better", file.display());
            } else if was.is_some_and(|was| was != names) {
                tracing::info!("certificate {}: serves {} from now on", file.display(), names.join(", "));
            }
        }
    }

    /// Whether a file's certificate has a name that could be served.
    fn has_names(&self, file: &Path) -> bool {
        self.files.iter().any(|it| it.file == file && !it.servable.is_empty())
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

/// The longest copy's name that is taken from its file's name. File systems take 255 bytes.
const LONGEST_NAME: usize = 120;

/// Where the list of certificates is, in the folder of the copies.
pub fn crt_list_path(state_dir: &Path) -> PathBuf {
    copies_dir(state_dir).join("crt-list.txt")
}

fn copies_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("certs")
}

/// Takes over the certificates of `source` into `state_dir/certs/`, and lists the copies of those that are the best ones for a
/// name at the time `now`, in Unix seconds. The list's first line is `default.pem`, for clients that name no host or an
/// unknown one: a copy of the best certificate, or a self-signed one where there is none. HAProxy can't do without its first
/// line, so that file is never deleted.
///
/// Whenever HAProxy starts, what is listed is there: a copy comes before its line, and goes after it. It is checked beside
/// the operator's own files (`include`), whose `global` may ask more of a certificate.
pub fn collect_certificates(
    source: &Path,
    state_dir: &Path,
    include: &Path,
    checker: &Checker,
    now: i64,
) -> Result<Certificates, Error> {
    let copies = copies_dir(state_dir);
    fs::create_dir_all(&copies).map_err(io_error("create", &copies))?;
    let found = directory::read_directory(source)?;
    let mut refused = BTreeMap::new();
    let mut files = Vec::new();
    for (file, outcome) in
        check_new_candidates(list_candidates(source, found.certificates, &copies), &copies, include, checker)?
    {
        let taken = match outcome {
            Ok(candidate) => {
                replace_file(&copies.join(&candidate.name), &candidate.content, MODE)?;
                Some(candidate.certificate)
            }
            Err(RejectedFile { name, reason }) => {
                refused.insert(file.clone(), reason);
                read_last_good(&file, &copies.join(name))
            }
        };
        files.extend(taken);
    }
    let choice = Choice::choose(&files, now);
    let default = write_default(choice.default.and_then(|index| files.get(index)), &copies)?;
    let mut lines = vec![CrtListLine { certificate: default, filters: vec![SniFilter::for_no_name()] }];
    let line =
        |(index, filters)| files.get(index).map(|it: &Certificate| CrtListLine { certificate: it.clone(), filters });
    lines.extend(choice.crt_list_lines(&files).into_iter().filter_map(line));
    let text: String = lines.iter().map(|it| format!("{}\n", crt_line(&it.certificate.copy, &it.filters))).collect();
    replace_file(&crt_list_path(state_dir), text.as_bytes(), MODE)?;
    remove_stale_copies(&copies, &files)?;
    Ok(Certificates {
        crt_list: Some(path_token(&crt_list_path(state_dir))?),
        lines,
        choice_holds_within: choice::unchanged_within(&files, now),
        files,
        choice,
        rejected: refused,
        unused: found.unused,
        directory: source.to_owned(),
    })
}

/// A file that may become a certificate of HAProxy's.
#[derive(Clone)]
struct Candidate {
    /// Of the copy.
    name: String,
    content: Vec<u8>,
    certificate: Certificate,
}

/// Why a file isn't taken, with the name that its copy has.
struct RejectedFile {
    name: String,
    reason: String,
}

type Outcome = Result<Candidate, RejectedFile>;

/// What was found, with names for the copies.
fn list_candidates(
    source: &Path,
    found: BTreeMap<PathBuf, Result<Vec<u8>, String>>,
    copies: &Path,
) -> Vec<(PathBuf, Outcome)> {
    let candidate = |(file, content): (PathBuf, Result<Vec<u8>, String>)| {
        let name = copy_name(file.strip_prefix(source).unwrap_or(&file));
        let outcome = content.and_then(|content| parse_candidate(&file, &name, content, copies));
        (file, outcome.map_err(|reason| RejectedFile { name, reason }))
    };
    found.into_iter().map(candidate).collect()
}

fn parse_candidate(file: &Path, name: &str, content: Vec<u8>, copies: &Path) -> Result<Candidate, String> {
    let copy = path_token(&copies.join(name)).map_err(|error| error.to_string())?;
    let certificate = Certificate::parse(file.to_owned(), copy, &content).map_err(|error| error.to_string())?;
    Ok(Candidate { name: name.to_owned(), content, certificate })
}

/// The copy's name for a file within the operator's directory: `a.pem` for `a.pem`, `a.pem.rsa.pem` for `a.pem.rsa`. For any
/// other name, what of it is plain, and a digest of the whole: HAProxy's list and its Runtime API have their own syntax.
fn copy_name(file: &Path) -> String {
    let name = file.display().to_string();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let fits = name.len() <= LONGEST_NAME && name.bytes().all(is_plain) && name != DEFAULT && name != SELF_SIGNED;
    if fits && [".rsa", ".ecdsa", ".dsa"].iter().any(|end| name.ends_with(&format!(".pem{end}"))) {
        return format!("{name}.pem");
    }
    // `a.pem.rsa.pem` is the copy of another file.
    if fits && name.ends_with(".pem") && !name.contains(".pem.") {
        return name;
    }
    let plain = name.chars().map(|c| if c.is_ascii() && is_plain(c as u8) { c } else { '_' });
    let plain: String = plain.take(LONGEST_NAME).collect();
    let digest = Sha1::digest(file.as_os_str().as_encoded_bytes());
    let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{plain}-{digest}.pem")
}

/// HAProxy's own word on those that are new or changed.
fn check_new_candidates(
    candidates: Vec<(PathBuf, Outcome)>,
    copies: &Path,
    include: &Path,
    checker: &Checker,
) -> Result<Vec<(PathBuf, Outcome)>, Error> {
    let is_new = |it: &&Candidate| !is_copied(&copies.join(&it.name), &it.content);
    let unchecked = candidates.iter().filter_map(|(_, outcome)| outcome.as_ref().ok());
    let unchecked: Vec<Candidate> = unchecked.filter(is_new).cloned().collect();
    if unchecked.is_empty() {
        return Ok(candidates);
    }
    let mut trial = Trial { folder: copies.join(".trial"), beside: Some(include), checker };
    if trial.find_complaint(&unchecked)?.is_none() {
        return Ok(candidates);
    }
    if trial.find_complaint(&[self_signed_candidate(copies)?])?.is_some() {
        // The operator's files refuse even our own: no certificate is to blame for that.
        trial.beside = None;
    }
    let guilty = find_culprits(&unchecked, JUDGEMENTS, &mut |some| trial.find_complaint(some))?;
    let reasons: BTreeMap<String, String> = guilty.into_iter().map(|(it, reason)| (it.name, reason)).collect();
    let judged = |candidate: Candidate| match reasons.get(&candidate.name) {
        Some(reason) => Err(RejectedFile { name: candidate.name, reason: reason.clone() }),
        None => Ok(candidate),
    };
    Ok(candidates.into_iter().map(|(file, outcome)| (file, outcome.and_then(judged))).collect())
}

/// Our own certificate as a candidate.
fn self_signed_candidate(copies: &Path) -> Result<Candidate, Error> {
    let (path, content) = (copies.join(SELF_SIGNED), load_self_signed(copies)?);
    let certificate = Certificate::parse(path.clone(), path_token(&path)?, &content)
        .map_err(|error| io_error("read", &path)(io::Error::other(error)))?;
    Ok(Candidate { name: SELF_SIGNED.into(), content, certificate })
}

/// Whether a copy has this content.
fn is_copied(copy: &Path, content: &[u8]) -> bool {
    read_copy(copy).is_ok_and(|old| old == content)
}

/// A copy may be longer than each of the files that its certificate, chain and key came from.
fn read_copy(copy: &Path) -> io::Result<Vec<u8>> {
    regular_file::read(copy, regular_file::LARGE)
}

/// The last good copy of a file that is broken now.
fn read_last_good(file: &Path, copy: &Path) -> Option<Certificate> {
    Certificate::parse(file.to_owned(), path_token(copy).ok()?, &read_copy(copy).ok()?).ok()
}

/// Writes `default.pem`: one of the certificates again, or a self-signed one.
fn write_default(chosen: Option<&Certificate>, copies: &Path) -> Result<Certificate, Error> {
    let path = copies.join(DEFAULT);
    let (file, content) = match chosen {
        Some(chosen) => {
            let copy = PathBuf::from(chosen.copy.to_string());
            (chosen.file.clone(), read_copy(&copy).map_err(io_error("read", &copy))?)
        }
        None => {
            let own = self_signed_candidate(copies)?;
            (own.certificate.file, own.content)
        }
    };
    replace_file(&path, &content, MODE)?;
    Certificate::parse(file, path_token(&path)?, &content)
        .map_err(|error| io_error("read", &path)(io::Error::other(error)))
}

/// A certificate that lets HTTPS answer where there is none; made once, then kept. A file that was damaged is made anew.
fn load_self_signed(copies: &Path) -> Result<Vec<u8>, Error> {
    let path = copies.join(SELF_SIGNED);
    if let Ok(content) = read_copy(&path)
        && Certificate::parse(path.clone(), path_token(&path)?, &content).is_ok()
    {
        return Ok(content);
    }
    let made = rcgen::generate_simple_self_signed(["haproxy-discover.invalid".to_owned()])
        .map_err(|error| io_error("make", &path)(io::Error::other(error)))?;
    let content = (made.cert.pem() + &made.signing_key.serialize_pem()).into_bytes();
    replace_file(&path, &content, MODE)?;
    Ok(content)
}

/// Removes the copies of files that are gone, or were never taken.
fn remove_stale_copies(copies: &Path, files: &[Certificate]) -> Result<(), Error> {
    let kept: BTreeSet<PathBuf> = files.iter().map(|it| PathBuf::from(it.copy.to_string())).collect();
    let entries = fs::read_dir(copies).map_err(io_error("list", copies))?;
    let is_ours = |path: &PathBuf| path.ends_with(SELF_SIGNED) || path.ends_with(DEFAULT) || kept.contains(path);
    let is_copy = |path: &PathBuf| path.extension().is_some_and(|end| end == "pem");
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| is_copy(path) && !is_ours(path)) {
        fs::remove_file(&path).map_err(io_error("remove", &path))?;
    }
    Ok(())
}

/// The path as HAProxy is told it.
fn path_token(path: &Path) -> Result<Token, Error> {
    path.display().to_string().parse().map_err(|error| io_error("name", path)(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local_files::certificate::tests::pem;
    use crate::test_support::{TempFiles, new_checker};

    /// Unix seconds.
    const NOW: i64 = 1_790_000_000;

    fn place() -> TempFiles {
        TempFiles::with_folders(&["certs", "conf.d"])
    }

    fn collected(place: &TempFiles) -> Certificates {
        let [certs, state, include] = ["certs", "state", "conf.d"].map(|name| place.path(name));
        collect_certificates(&certs, &state, &include, &new_checker(), NOW).unwrap()
    }

    /// The names that are refused, and those served from the first to the last.
    fn summary(certificates: &Certificates) -> (Vec<String>, Vec<String>) {
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        let refused = certificates.rejected.keys().map(|file| name(file)).collect();
        (refused, certificates.lines.iter().map(|it| name(Path::new(&it.certificate.copy.to_string()))).collect())
    }

    #[test]
    fn a_key_may_stand_beside_a_certificate_without_its_last_line_feed() {
        let place = place();
        let made = rcgen::generate_simple_self_signed(["a.com".to_owned()]).unwrap();
        for (certificate, key) in [("a.com.pem", "a.com.key"), ("b.pem", "b.pem.key"), ("c.pem.rsa", "c.pem.rsa.key")] {
            place.write(&format!("certs/{certificate}"), made.cert.pem().trim_end());
            place.write(&format!("certs/{key}"), made.signing_key.serialize_pem());
        }
        let certificates = collected(&place);
        let copies: Vec<_> = certificates.files.iter().map(|it| it.copy.to_string()).collect();
        let copies: Vec<_> = copies.iter().filter_map(|copy| copy.rsplit('/').next()).collect();
        assert_eq!((certificates.rejected.len(), copies.join(" ")), (0, "a.com.pem b.pem c.pem.rsa.pem".into()));
        assert_eq!(summary(&certificates).1, ["default.pem", "a.com.pem"], "they are one certificate");
    }

    #[test]
    fn a_broken_certificate_is_refused_and_the_last_good_one_kept() {
        let place = place();
        let none = collected(&place);
        assert_eq!((none.lines.len(), none.rejected.len()), (1, 0));
        assert_eq!(none.lines[0].certificate.names, ["haproxy-discover.invalid"]);
        assert_eq!(collected(&place), none, "the self-signed one is made once");

        let good = pem("a.com");
        place.write("certs/a.com.pem", &good);
        place.write("certs/bad name.pem", b"");
        let one = collected(&place);
        assert_eq!(one.lines[0].certificate.pem, one.lines[1].certificate.pem, "the first by name is the default");
        assert_eq!(summary(&one).0, ["bad name.pem"]);

        // The last one's certificate and key are fine, but not each other's: only HAProxy says so.
        let mixed = format!("{}{}", &good[..good.find("-----BEGIN PRIVATE").unwrap()], {
            let other = pem("other.com");
            other[other.find("-----BEGIN PRIVATE").unwrap()..].to_owned()
        });
        for broken in ["-----BEGIN CERTIFICATE-----\nxx\n", "", &mixed] {
            place.write("certs/a.com.pem", broken);
            let broken = collected(&place);
            assert_eq!(broken.lines, one.lines);
            let reason = &broken.rejected[&place.path("certs/a.com.pem")];
            assert!(!reason.contains("state/certs"), "{reason}");
        }
        fs::remove_file(place.path("certs/a.com.pem")).unwrap();
        assert_eq!(collected(&place).lines, none.lines);
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
        assert_eq!((summary(&certificates).0, certificates.files.len()), (vec!["4.pem".to_owned()], 8));
        assert!(certificates.rejected.values().all(|reason| reason.contains("'4.pem'")), "{:?}", certificates.rejected);
        assert!(!place.path("state/certs/.trial").exists());
    }

    #[test]
    fn a_copys_name_has_nothing_that_haproxys_list_could_take_for_its_own_syntax() {
        let plain = ["a.pem", "_.a.com.pem", "_wildcard.a.com.pem", "-a.pem"];
        plain.iter().for_each(|name| assert_eq!(copy_name(Path::new(name)), *name));
        assert_eq!(copy_name(Path::new("a.pem.rsa")), "a.pem.rsa.pem");
        let long = format!("{}.pem", "a".repeat(250));
        let others =
            ["default.pem", "self-signed.pem", "a b.pem", "[a].pem", "#a.pem", "a.com+4.pem", "A.PEM", "*.a.com.cer"];
        let others = others.into_iter().chain(["a/tls.crt", "a_tls.crt", "ä.pem", "a.pem.rsa.pem", long.as_str()]);
        let names: BTreeSet<String> = others.clone().map(|name| copy_name(Path::new(name))).collect();
        assert_eq!(names.len(), others.count(), "each has its own: {names:?}");
        let is_plain = |name: &String| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        assert!(names.iter().all(|it| is_plain(it) && it.len() < 200 && it.ends_with(".pem")), "{names:?}");
    }

    #[test]
    fn a_damaged_self_signed_certificate_is_made_anew() {
        let place = place();
        let before = collected(&place);
        place.write("state/certs/self-signed.pem", "");
        let after = collected(&place);
        assert_ne!(before.lines, after.lines);
        assert_eq!(after.lines, collected(&place).lines);
    }

    #[test]
    fn a_special_file_is_refused_and_everything_else_is_taken() {
        let place = place();
        place.write("certs/a.pem", pem("a.com"));
        nix::unistd::mkfifo(&place.path("certs/x.pem"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/dev/zero", place.path("certs/zero")).unwrap();
        std::os::unix::fs::symlink("loop.key", place.path("certs/loop.key")).unwrap();
        let certificates = collected(&place);
        let reason = |name: &str| certificates.rejected[&place.path("certs").join(name)].clone();
        assert!(reason("x.pem").starts_with("it is a FIFO"));
        assert!(reason("zero").starts_with("it is a character device"));
        assert!(reason("loop.key").contains("symbolic links"));
        assert_eq!(certificates.files.len(), 1);
    }

    #[test]
    fn an_operators_broken_file_is_no_fault_of_a_certificates() {
        let place = place();
        for broken in ["nonsense", "ssl-default-bind-ciphers NONE-SUCH"] {
            place.write("conf.d/mine.cfg", format!("global\n    {broken}\n"));
            place.write("certs/a.pem", pem("a.com"));
            assert_eq!(collected(&place).rejected, BTreeMap::new(), "{broken}");
        }
    }
}
