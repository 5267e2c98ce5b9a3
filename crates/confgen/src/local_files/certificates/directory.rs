//! Finds the certificates of the operator's directory, each with its private key and its chain. It has no HAProxy check them, and
//! writes nothing.
//!
//! A file's role follows from its content, since acme.sh, lego, certbot, dehydrated, Caddy, mkcert, step and Kubernetes each name
//! files in their own way.

mod content;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::state_dir::{Error, io_error};
use content::{Content, Key, is_ca, is_key_in, subject_and_issuer};

/// The ends of the names of certificates' files, in lower case.
const CERTIFICATES: [&str; 7] = [".pem", ".crt", ".cer", ".cert", ".pem.rsa", ".pem.ecdsa", ".pem.dsa"];

/// The ends of the names of files in other formats, and the command that converts one.
const OTHER_FORMATS: [(&str, &str); 6] = [
    (".p12", "openssl pkcs12 -in FILE -nodes -out NEW.pem"),
    (".pfx", "openssl pkcs12 -in FILE -nodes -out NEW.pem"),
    (".p7b", "openssl pkcs7 -print_certs -in FILE -out NEW.pem"),
    (".p7c", "openssl pkcs7 -print_certs -in FILE -out NEW.pem"),
    (".der", "openssl x509 -inform der -in FILE -out NEW.pem"),
    (".jks", "keytool -importkeystore and openssl pkcs12"),
];

/// The most certificates behind the server's own. A chain of a public authority has two or three.
const LONGEST_CHAIN: usize = 8;

/// The files of a directory and of its direct subdirectories.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// By certificate's file: its PEM text with key and chain, or the reason why it can't be served.
    pub(super) certificates: BTreeMap<PathBuf, Result<Vec<u8>, String>>,
    /// Files that are of no use here, though nothing is wrong with them, with the reason.
    pub(super) unused: BTreeMap<PathBuf, String>,
}

/// A file and its content, or the reason why it can't be read.
struct Entry {
    path: PathBuf,
    content: Result<Content, String>,
}

/// Reads the directory. A missing directory is empty.
pub(super) fn read_directory(source: &Path) -> Result<Directory, Error> {
    let mut found = Directory::default();
    let listed = match list_visible(source) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(io_error("list", source)(error)),
    };
    let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) = listed.into_iter().partition(|path| path.is_dir());
    found.add_folder(&files);
    // `lost+found` lies at the top of a file system, and is root's.
    for folder in folders.iter().filter(|folder| !folder.ends_with("lost+found")) {
        match list_visible(folder) {
            Ok(listed) => {
                let (deeper, files): (Vec<PathBuf>, Vec<PathBuf>) = listed.into_iter().partition(|path| path.is_dir());
                found.add_folder(&files);
                let reason = "certificates are read from the directory and its direct subdirectories, no deeper";
                found.certificates.extend(deeper.into_iter().map(|path| (path, Err(reason.to_owned()))));
            }
            Err(error) => drop(found.certificates.insert(folder.clone(), Err(format!("can't be listed: {error}")))),
        }
    }
    Ok(found)
}

/// The paths in a directory, sorted, without hidden ones.
fn list_visible(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    let shown = entries.into_iter().filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    let mut paths: Vec<PathBuf> = shown.map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

impl Directory {
    /// Adds the files of one directory. A certificate's key and chain have to be in its directory.
    fn add_folder(&mut self, files: &[PathBuf]) {
        let entries: Vec<Entry> = files.iter().map(|path| Entry::read(path)).collect();
        let folder = Folder { entries: &entries };
        let mut used = BTreeSet::new();
        let mut issuers = Vec::new();
        for entry in &entries {
            let Some(outcome) = folder.certificate_text(entry, &mut used) else { continue };
            if let (Ok(_), Ok(content)) = (&outcome, &entry.content) {
                issuers.extend(content.certificates.iter().filter_map(|der| Some(subject_and_issuer(der)?.1)));
            }
            self.certificates.insert(entry.path.clone(), outcome);
        }
        used.extend(folder.spare_keys());
        for entry in entries.iter().filter(|entry| !used.contains(&entry.path)) {
            if !self.certificates.contains_key(&entry.path) {
                self.add_other(entry, &issuers);
            }
        }
    }

    /// Adds a file that is neither a server's certificate nor a key that one uses.
    fn add_other(&mut self, entry: &Entry, issuers: &[Vec<u8>]) {
        let Ok(content) = &entry.content else { return };
        let has_issuer = content
            .certificates
            .iter()
            .any(|der| subject_and_issuer(der).is_some_and(|(subject, _)| issuers.contains(&subject)));
        if has_issuer {
            // It is a part of a chain that is served or could be.
            self.add_unused(entry, "the authority of a certificate beside it");
        } else if !content.certificates.is_empty() && entry.is_certificate_file() {
            self.add_rejected(
                entry,
                "it holds an authority's certificate and no private key: nothing can be served with it. \
                    CA certificates for upstreams belong into --ca-dir",
            );
        } else if !content.certificates.is_empty() {
            self.add_unused(entry, &format!("its name does not end in {}", CERTIFICATES[..4].join(", ")));
        } else if !content.keys.is_empty() {
            self.add_rejected(
                entry,
                "there is no CERTIFICATE in it, and no certificate beside it is for its private key",
            );
        } else if content.is_request {
            self.add_unused(entry, "a request for a certificate");
        } else if entry.has_ending(&[".ocsp", ".sctl"]) {
            self.add_unused(entry, "OCSP answers and SCT lists are not served");
        }
    }

    fn add_unused(&mut self, entry: &Entry, reason: &str) {
        self.unused.insert(entry.path.clone(), reason.to_owned());
    }

    fn add_rejected(&mut self, entry: &Entry, reason: &str) {
        self.certificates.insert(entry.path.clone(), Err(reason.to_owned()));
    }
}

/// The files of one directory.
struct Folder<'a> {
    entries: &'a [Entry],
}

impl Folder<'_> {
    /// The text of a certificate's file, or the reason why it can't be served. `None` for a file of another kind. Adds the files of its
    /// key and its chain to `used`.
    fn certificate_text(&self, entry: &Entry, used: &mut BTreeSet<PathBuf>) -> Option<Result<Vec<u8>, String>> {
        let content = match &entry.content {
            Ok(content) => content,
            // An unreadable README concerns no certificate.
            Err(reason) => return entry.may_concern_certificates().then(|| Err(reason.clone())),
        };
        if !entry.is_certificate_file() {
            return entry.explain_other_format(content).map(Err);
        }
        if content.is_malformed {
            return Some(Err(haproxy::runtime::NotPem::Unreadable.to_string()));
        }
        if content.certificates.is_empty() {
            let is_only_key = !content.keys.is_empty() || content.is_request;
            return (!is_only_key).then(|| Err(entry.explain_missing_certificate(content)));
        }
        if !content.keys.is_empty() {
            // With one key there is nothing to choose.
            let choices = if content.keys.len() > 1 { &content.keys[..] } else { &[] };
            let fitting = choices.iter().find(|key| is_key_in(key, content)).map(std::slice::from_ref);
            return Some(Ok(self.assemble_pem(content, fitting.unwrap_or(&content.keys), used)));
        }
        if let Some((from, key)) = self.find_key(entry, content) {
            used.insert(from.path.clone());
            return Some(Ok(self.assemble_pem(content, std::slice::from_ref(key), used)));
        }
        let is_authority = content.certificates.first().is_some_and(|der| is_ca(der));
        let complaint = self.explain_missing_key(entry);
        if complaint.is_none() && is_authority {
            return None;
        }
        Some(Err(complaint.unwrap_or_else(|| haproxy::runtime::NotPem::Keys(0).to_string())))
    }

    /// The key of a certificate that has none in its own file. The file's name decides only between equal keys, and for a key that can't
    /// be read here.
    fn find_key(&self, entry: &Entry, content: &Content) -> Option<(&Entry, &Key)> {
        self.keys()
            .find(|(it, key)| it.is_key_of(entry) && is_key_in(key, content))
            .or_else(|| self.keys().find(|(_, key)| is_key_in(key, content)))
            .or_else(|| self.keys().find(|(it, key)| it.is_key_of(entry) && key.public_key().is_none()))
    }

    fn readable(&self) -> impl Iterator<Item = (&Entry, &Content)> {
        self.entries.iter().filter_map(|it| Some((it, it.content.as_ref().ok()?)))
    }

    fn keys(&self) -> impl Iterator<Item = (&Entry, &Key)> {
        self.readable().flat_map(|(it, content)| content.keys.iter().map(move |key| (it, key)))
    }

    /// The files of keys that belong to a certificate here which has its key from another file.
    fn spare_keys(&self) -> impl Iterator<Item = PathBuf> {
        self.entries.iter().filter(|entry| self.is_spare_key(entry)).map(|entry| entry.path.clone())
    }

    fn is_spare_key(&self, entry: &Entry) -> bool {
        let Ok(content) = &entry.content else { return false };
        content.certificates.is_empty() && content.keys.iter().any(|key| self.has_certificate_for(entry, key))
    }

    /// True if a file has the certificate of a key. The name of the key's file decides if the key can't be read here.
    fn has_certificate_for(&self, entry: &Entry, key: &Key) -> bool {
        self.readable().any(|(it, content)| match key.public_key() {
            Some(_) => is_key_in(key, content),
            None => !content.certificates.is_empty() && entry.is_key_of(it),
        })
    }

    /// The reason why the key in the file that is named after the certificate doesn't fit. `None` without such a file.
    fn explain_missing_key(&self, entry: &Entry) -> Option<String> {
        let named = self.entries.iter().find(|it| it.is_key_of(entry))?;
        let file = named.path.file_name().unwrap_or_default().to_string_lossy();
        Some(match &named.content {
            Err(reason) => format!("its private key {file}: {reason}"),
            Ok(content) if content.keys.is_empty() => format!("there is no PRIVATE KEY in {file}"),
            Ok(_) => format!(
                "the private key in {file} is another certificate's (inconsistencies between key and certificate)"
            ),
        })
    }

    /// One PEM text: the certificate that the key is for, its chain, and the key.
    fn assemble_pem(&self, content: &Content, keys: &[Key], used: &mut BTreeSet<PathBuf>) -> Vec<u8> {
        let mut blocks = content.public.clone();
        // HAProxy takes the first certificate of a file as the server's own, and some tools write the authority's first.
        if content.certificates.first().is_some_and(|der| is_ca(der)) {
            let own = blocks.iter().position(|block| keys.iter().any(|key| key.is_key_of_block(block)));
            if let Some(own) = own.and_then(|own| (own > 0).then(|| blocks.remove(own))) {
                blocks.insert(0, own);
            }
        }
        if let [only] = &content.certificates[..] {
            blocks.extend(self.find_chain(only, used));
        }
        blocks.extend(keys.iter().map(|key| key.block.clone()));
        pem::encode_many(&blocks).into_bytes()
    }

    /// The chain of a certificate that is alone in its file, from the authorities' files beside it. The root is left out, since clients
    /// have it.
    fn find_chain(&self, own: &[u8], used: &mut BTreeSet<PathBuf>) -> Vec<pem::Pem> {
        let mut chain: Vec<pem::Pem> = Vec::new();
        let Some((mut subject, mut issuer)) = subject_and_issuer(own) else { return chain };
        // A root is its own issuer. A ring of issuers would have no end.
        while subject != issuer && chain.len() < LONGEST_CHAIN {
            let next = self
                .ca_certificates()
                .find(|(_, block)| subject_and_issuer(block.contents()).is_some_and(|it| it.0 == issuer));
            let Some((entry, block)) = next else { break };
            used.insert(entry.path.clone());
            match subject_and_issuer(block.contents()) {
                Some(names) if names.0 != names.1 => (subject, issuer) = names,
                _ => break,
            }
            chain.push(block.clone());
        }
        chain
    }

    /// The certificates of authorities in files without a key.
    fn ca_certificates(&self) -> impl Iterator<Item = (&Entry, &pem::Pem)> {
        let files = self.readable().filter(|(_, content)| content.keys.is_empty());
        let blocks = files.flat_map(|(it, content)| content.public.iter().map(move |block| (it, block)));
        blocks.filter(|(_, block)| block.tag() == "CERTIFICATE" && is_ca(block.contents()))
    }
}

impl Entry {
    fn read(path: &Path) -> Self {
        let read = regular_file::read(path, regular_file::SMALL);
        Self { path: path.to_owned(), content: read.map(|bytes| Content::parse(&bytes)).map_err(|it| it.to_string()) }
    }

    fn lowercase_name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().to_lowercase()
    }

    fn has_ending(&self, ends: &[&str]) -> bool {
        let name = self.lowercase_name();
        ends.iter().any(|end| name.ends_with(end))
    }

    /// True if the name is one of a certificate's file.
    fn is_certificate_file(&self) -> bool {
        self.has_ending(&CERTIFICATES)
    }

    /// True if an error in reading the file should be reported. A special file should never be here.
    fn may_concern_certificates(&self) -> bool {
        let ends = OTHER_FORMATS.map(|(end, _)| end);
        let is_special = fs::metadata(&self.path).is_ok_and(|it| !it.is_file());
        is_special || self.is_certificate_file() || self.has_ending(&ends) || self.has_ending(&[".key", ".ca-bundle"])
    }

    /// True if the name says that the file has the key of a certificate's file: `a.pem.key` or `a.key` for `a.pem`, mkcert's `a-key.pem`,
    /// and in a directory of one host the names of certbot, Kubernetes and uacme.
    fn is_key_of(&self, certificate: &Self) -> bool {
        let (name, of) = (self.lowercase_name(), certificate.lowercase_name());
        let stem = of.rsplit_once('.').map_or(of.as_str(), |(stem, _)| stem);
        let own = [format!("{of}.key"), format!("{stem}.key"), format!("{stem}-key.pem"), format!("{stem}.key.pem")];
        // certbot, Kubernetes and uacme have a directory for each host, with the same names in each.
        let shared = ["privkey.pem", "key.pem", "tls.key"];
        let is_shared = ["fullchain.pem", "cert.pem", "tls.crt"].contains(&of.as_str()) && shared.contains(&&*name);
        name != of && (own.contains(&name) || is_shared)
    }

    /// The remedy for a file in another format. `None` for a file that is PEM in spite of its name.
    fn explain_other_format(&self, content: &Content) -> Option<String> {
        let (end, command) = OTHER_FORMATS.into_iter().find(|(end, _)| self.has_ending(&[end]))?;
        let is_pem = !content.public.is_empty() || !content.keys.is_empty();
        (!is_pem).then(|| format!("a {end} file is not PEM; convert it: {command}"))
    }

    fn explain_missing_certificate(&self, content: &Content) -> String {
        if content.is_binary {
            let command = "openssl x509 -inform der -in FILE -out NEW.pem";
            return format!("there is no CERTIFICATE in it in PEM; it may be DER: {command}");
        }
        haproxy::runtime::NotPem::NoCertificate.to_string()
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test writes files as other tools do, in place too")]
mod tests;
