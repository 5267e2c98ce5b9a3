//! Takes over the operator's certificates, and writes the list that says which of them serves which name. A broken file never
//! stops HAProxy. This module doesn't send certificates to a running HAProxy.

mod choice;
mod directory;
mod fallback;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use haproxy::check::{CheckResult, Checker};
use haproxy::runtime::{SniFilter, Token, crt_line};
use regular_file::LARGE;
use sha1::{Digest, Sha1};

use crate::local_files::certificate::Certificate;
use crate::local_files::trial::{self, Candidate, Copies, LocalFile, TrialFolder, first_alert};
use crate::operator_files::validate::{CHECK_DEFAULTS, CHECK_FRONTEND};
use crate::state_dir::{Error, io_error};
pub use choice::{Choice, Claimant, Validity};

/// The certificates that were taken over, and the crt-list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificates {
    /// The path of the list. `None` if nothing was collected: `render` and `diff` don't.
    pub crt_list: Option<Token>,
    /// `default.pem` first, then the certificates that serve a name.
    pub lines: Vec<CrtListLine>,
    /// The operator's files in use, sorted by path. Some serve no name.
    pub files: Vec<Certificate>,
    /// The names that each of `files` serves.
    pub choice: Choice,
    /// The time, in Unix seconds, in which the choice holds. Before and after, another certificate is the best for a name.
    pub choice_holds_within: Range<i64>,
    /// Files that aren't used as they stand, with the reason. The last good copy of one may serve.
    pub rejected: BTreeMap<PathBuf, String>,
    /// Files that are of no use here, though nothing is wrong with them, with the reason.
    pub unused: BTreeMap<PathBuf, String>,
    /// The operator's directory.
    pub directory: PathBuf,
}

/// A line of the crt-list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrtListLine {
    pub certificate: Certificate,
    /// The names that the line serves. Empty means all names of the certificate.
    pub filters: Vec<SniFilter>,
}

impl Certificates {
    /// True if the choice holds at `now`, in Unix seconds. The clock may have been set back.
    pub fn is_current(&self, now: i64) -> bool {
        self.crt_list.is_none() || self.choice_holds_within.contains(&now)
    }

    /// The certificate for clients that ask for no name, or for a name without a certificate.
    pub fn default_certificate(&self) -> Option<&Certificate> {
        self.lines.first().map(|line| &line.certificate)
    }

    /// The operator's files that serve a name, or clients without one.
    pub fn serving_files(&self) -> impl Iterator<Item = &Certificate> {
        let listed: BTreeSet<&Path> = self.lines.iter().map(|line| line.certificate.file.as_path()).collect();
        self.files.iter().filter(move |it| listed.contains(it.file.as_path()))
    }

    /// A file's path relative to the operator's directory.
    pub fn relative_name(&self, file: &Path) -> String {
        file.strip_prefix(&self.directory).unwrap_or(file).display().to_string()
    }

    /// The names that each file serves, by path. A file that serves none has an empty list.
    fn names_by_file(&self) -> BTreeMap<&Path, Vec<&str>> {
        let mut served = self.choice.names_by_certificate();
        let files = self.files.iter().enumerate();
        files.map(|(index, it)| (it.file.as_path(), served.remove(&index).unwrap_or_default())).collect()
    }

    /// Logs the differences from `before`. At the start, when nothing was before, only rejected and useless files.
    pub fn log_changes(&self, before: &Self) {
        for (file, reason) in &self.rejected {
            if before.rejected.get(file) != Some(reason) {
                tracing::warn!(file = %file.display(), %reason, "rejected a certificate");
            }
        }
        for (file, reason) in &self.unused {
            if before.unused.get(file) != Some(reason) {
                tracing::info!(file = %file.display(), %reason, "certificate not used");
            }
        }
        if before.crt_list.is_some() {
            for it in self.files.iter().filter(|it| before.find_file(&it.file).is_none_or(|old| old.pem != it.pem)) {
                tracing::info!(file = %it.file.display(), names = it.names.join(", "), "certificate loaded");
            }
            for gone in before.files.iter().filter(|it| self.find_file(&it.file).is_none()) {
                tracing::info!(file = %gone.file.display(), "certificate deleted");
            }
        }
        self.log_served_names(before);
    }

    fn find_file(&self, file: &Path) -> Option<&Certificate> {
        self.files.iter().find(|it| it.file == file)
    }

    /// Logs the old files that serve other names than before.
    fn log_served_names(&self, before: &Self) {
        let (now, then) = (self.names_by_file(), before.names_by_file());
        for (file, names) in &now {
            let was = then.get(file);
            if names.is_empty() && was.is_none_or(|was| !was.is_empty()) && self.has_names(file) {
                tracing::info!(file = %file.display(), "certificate serves no name, better ones exist");
            } else if was.is_some_and(|was| was != names) {
                tracing::info!(file = %file.display(), names = names.join(", "), "certificate serves other names");
            }
        }
    }

    fn has_names(&self, file: &Path) -> bool {
        self.find_file(file).is_some_and(|it| !it.servable.is_empty())
    }
}

/// The owner may write a copy, and HAProxy's group may read it. Copies hold private keys.
const MODE: u32 = 0o640;

/// The first line of the list.
const DEFAULT: &str = "default.pem";

/// Serves HTTPS while the operator has no certificate.
const SELF_SIGNED: &str = "self-signed.pem";

/// The longest name of a copy that is taken from its file's name, in bytes. File systems allow 255.
const LONGEST_NAME: usize = 120;

/// The path of the list of certificates, in the folder of the copies.
pub fn crt_list_path(state_dir: &Path) -> PathBuf {
    copies_of(state_dir).path_of("crt-list.txt")
}

/// A copy may be longer than each of the files that its certificate, chain and key come from.
fn copies_of(state_dir: &Path) -> Copies {
    Copies::new(state_dir.join("certs"), MODE, LARGE)
}

/// Takes over the certificates of `source` into `state_dir/certs/`, and lists the copies of those that are the best for a name
/// at the time `now`, in Unix seconds. The list's first line is `default.pem`, for clients that ask for no known name: a copy
/// of the best certificate, or a self-signed one if there is none. HAProxy needs its first line, so that file is never deleted.
///
/// HAProxy checks certificates beside the operator's own files (`include`), since their `global` may ask more of a certificate.
///
/// # Errors
/// If a directory can't be listed, or a file of the state directory can't be written or removed.
pub fn collect_certificates(
    source: &Path,
    state_dir: &Path,
    include: &Path,
    checker: &Checker,
    now: i64,
) -> Result<Certificates, Error> {
    let copies = copies_of(state_dir);
    copies.create_folder()?;
    let found = directory::read_directory(source)?;
    let files = found.certificates.into_iter().map(|(key, content)| {
        let copy_name = copy_name(key.strip_prefix(source).unwrap_or(&key));
        LocalFile { key, copy_name, content }
    });
    let mut trial =
        CertificateTrial { copies: &copies, state_dir, beside: Some(include), has_tried_own: false, checker };
    let collected = trial::collect(
        files.collect(),
        &copies,
        |file, name, content| parse_certificate(file, &copies.path_of(name), content),
        |some| trial.find_complaint(some),
    )?;
    let files: Vec<Certificate> = collected.in_use.into_values().collect();
    let choice = Choice::choose(&files, now);
    let default = fallback::write_default(choice.default.and_then(|index| files.get(index)), &copies)?;
    // `!*` makes the first line the default certificate and nothing else.
    let mut lines = vec![CrtListLine { certificate: default, filters: vec![SniFilter::for_no_name()] }];
    for (index, filters) in choice.crt_list_lines(&files) {
        lines.extend(files.get(index).cloned().map(|certificate| CrtListLine { certificate, filters }));
    }
    // If HAProxy starts at any moment, each listed copy is there: a copy is written before its line, and removed after it.
    let text: String = lines.iter().map(|it| format!("{}\n", crt_line(&it.certificate.copy, &it.filters))).collect();
    copies.write_copy("crt-list.txt", text.as_bytes())?;
    remove_stale_copies(&copies, &files)?;
    Ok(Certificates {
        crt_list: Some(path_token(&crt_list_path(state_dir))?),
        lines,
        choice_holds_within: choice::unchanged_within(&files, now),
        files,
        choice,
        rejected: collected.rejected,
        unused: found.unused,
        directory: source.to_owned(),
    })
}

fn parse_certificate(file: &Path, copy: &Path, content: &[u8]) -> Result<Certificate, String> {
    let copy = path_token(copy).map_err(|error| error.to_string())?;
    Certificate::parse(file.to_owned(), copy, content).map_err(|error| error.to_string())
}

/// The copy's name for a file within the operator's directory: `a.pem` for `a.pem`, `a.pem.rsa.pem` for `a.pem.rsa`. For any
/// other name, its plain characters and a digest of the whole: HAProxy's list and its Runtime API have their own syntax.
fn copy_name(file: &Path) -> String {
    let name = file.display().to_string();
    let is_own = name == DEFAULT || name == SELF_SIGNED;
    let fits = name.len() <= LONGEST_NAME && name.bytes().all(is_plain) && !is_own;
    if fits && [".rsa", ".ecdsa", ".dsa"].iter().any(|end| name.ends_with(&format!(".pem{end}"))) {
        return format!("{name}.pem");
    }
    // `a.pem.rsa.pem` is the copy of `a.pem.rsa`.
    if fits && name.ends_with(".pem") && !name.contains(".pem.") {
        return name;
    }
    let plain = name.chars().map(|c| if c.is_ascii() && is_plain(c as u8) { c } else { '_' });
    let plain: String = plain.take(LONGEST_NAME).collect();
    let digest = Sha1::digest(file.as_os_str().as_encoded_bytes());
    let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{plain}-{digest}.pem")
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_.-".contains(&byte)
}

/// Has HAProxy check certificates that it isn't given yet.
struct CertificateTrial<'a> {
    copies: &'a Copies,
    state_dir: &'a Path,
    /// The operator's own files, which HAProxy reads first. `None` once they have turned out to reject any certificate.
    beside: Option<&'a Path>,
    /// The operator's own files were checked with confgen's certificate already.
    has_tried_own: bool,
    checker: &'a Checker,
}

impl CertificateTrial<'_> {
    /// HAProxy's complaint about some certificates together.
    fn find_complaint(&mut self, some: &[&Candidate]) -> Result<Option<String>, Error> {
        let complaint = self.try_certificates(some)?;
        if complaint.is_none() || self.has_tried_own {
            return Ok(complaint);
        }
        self.has_tried_own = true;
        let own = Candidate { copy_name: SELF_SIGNED.into(), content: fallback::load_self_signed(self.copies)? };
        if self.try_certificates(&[&own])?.is_none() {
            return Ok(complaint);
        }
        // The operator's files reject even confgen's own certificate. No certificate is to blame for that.
        self.beside = None;
        self.try_certificates(some)
    }

    fn try_certificates(&self, some: &[&Candidate]) -> Result<Option<String>, Error> {
        let folder = TrialFolder::create(self.state_dir)?;
        let mut lines = String::new();
        for candidate in some {
            lines += &format!("{}\n", folder.write_file(&candidate.copy_name, &candidate.content)?.display());
        }
        let list = folder.write_file("crt-list.txt", lines.as_bytes())?;
        let text = format!("{CHECK_DEFAULTS}{CHECK_FRONTEND} ssl crt-list {}\n", list.display());
        Ok(match folder.check(&text, self.beside, self.checker)? {
            Ok(CheckResult::Valid { .. }) => None,
            Ok(CheckResult::Rejected { output }) => {
                let words = first_alert(&output).replace(&folder.prefix(), "");
                Some(words.split_once("'crt-list' : ").map_or(words.as_str(), |(_, words)| words).to_owned())
            }
            Err(failure) => Some(failure),
        })
    }
}

/// Removes the copies of files that are gone, or were never taken over.
fn remove_stale_copies(copies: &Copies, files: &[Certificate]) -> Result<(), Error> {
    let kept: BTreeSet<PathBuf> = files.iter().map(|it| PathBuf::from(it.copy.to_string())).collect();
    copies.remove_stale(|path| {
        let is_ours = path.ends_with(SELF_SIGNED) || path.ends_with(DEFAULT) || kept.contains(path);
        path.extension().is_some_and(|end| end == "pem") && !is_ours
    })
}

/// The path as a word of HAProxy's list and Runtime API.
fn path_token(path: &Path) -> Result<Token, Error> {
    path.display().to_string().parse().map_err(|error| io_error("name", path)(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use std::fs;

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
        assert_eq!(fs::read_dir(place.path("state")).unwrap().count(), 1, "nothing of the trials is left");
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
