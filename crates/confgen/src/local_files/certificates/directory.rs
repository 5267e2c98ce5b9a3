//! Finds the certificates of the operator's directory: each with its private key and its chain, wherever the tool that wrote
//! them has put those.
//!
//! A file's role follows from its content, so that no tool's naming has to be known. acme.sh, lego, certbot, dehydrated,
//! Caddy, mkcert, step and Kubernetes each have their own.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo, X509Certificate};

use crate::state_dir::{Error, io_error};

/// How the names of certificates' files end, in lower case.
const CERTIFICATES: [&str; 7] = [".pem", ".crt", ".cer", ".cert", ".pem.rsa", ".pem.ecdsa", ".pem.dsa"];

/// Endings that say in which other format a file holds a certificate or a key.
const OTHER_FORMATS: [(&str, &str); 6] = [
    (".p12", "openssl pkcs12 -in FILE -nodes -out NEW.pem"),
    (".pfx", "openssl pkcs12 -in FILE -nodes -out NEW.pem"),
    (".p7b", "openssl pkcs7 -print_certs -in FILE -out NEW.pem"),
    (".p7c", "openssl pkcs7 -print_certs -in FILE -out NEW.pem"),
    (".der", "openssl x509 -inform der -in FILE -out NEW.pem"),
    (".jks", "keytool -importkeystore and openssl pkcs12"),
];

/// A chain has two or three certificates behind the server's own.
const LONGEST_CHAIN: usize = 8;

/// What lies in a directory and its direct subdirectories.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// By certificate's file: its PEM text with key and chain, or why there is none.
    pub(super) certificates: BTreeMap<PathBuf, Result<Vec<u8>, String>>,
    /// Files that are of no use here, without being wrong, and why.
    pub(super) unused: BTreeMap<PathBuf, String>,
}

/// One file, as far as it concerns certificates.
struct Entry {
    path: PathBuf,
    content: Result<Content, String>,
}

#[derive(Default)]
struct Content {
    /// DER.
    certificates: Vec<Vec<u8>>,
    keys: Vec<Key>,
    /// All blocks but the keys, as PEM.
    public: Vec<pem::Pem>,
    is_request: bool,
    is_binary: bool,
    is_malformed: bool,
}

struct Key {
    block: pem::Pem,
    /// Derived only if it is asked for: it takes up to a millisecond.
    public_key: OnceCell<Option<Vec<u8>>>,
}

/// Reads the directory. One that does not exist is empty.
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
    /// Adds the files of one directory. Keys and chains are looked for in this one only.
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

    /// Adds a file that is no server's certificate, and no key that one uses.
    fn add_other(&mut self, entry: &Entry, issuers: &[Vec<u8>]) {
        let Ok(content) = &entry.content else { return };
        let is_issuer = |der: &Vec<u8>| subject_and_issuer(der).is_some_and(|(subject, _)| issuers.contains(&subject));
        let mut refuse = |reason: &str| drop(self.certificates.insert(entry.path.clone(), Err(reason.to_owned())));
        if content.certificates.iter().any(is_issuer) {
            // Part of a chain that is served, or could be.
            self.unused.insert(entry.path.clone(), "the authority of a certificate beside it".to_owned());
        } else if !content.certificates.is_empty() && entry.is_certificate_file() {
            refuse(
                "it holds an authority's certificate and no private key: nothing can be served with it. \
                    CA certificates for upstreams belong into --ca-dir",
            );
        } else if !content.certificates.is_empty() {
            let reason = format!("its name does not end in {}", CERTIFICATES[..4].join(", "));
            self.unused.insert(entry.path.clone(), reason);
        } else if !content.keys.is_empty() {
            refuse("there is no CERTIFICATE in it, and no certificate beside it is for its private key");
        } else if content.is_request {
            self.unused.insert(entry.path.clone(), "a request for a certificate".to_owned());
        } else if entry.has_ending(&[".ocsp", ".sctl"]) {
            self.unused.insert(entry.path.clone(), "OCSP answers and SCT lists are not served".to_owned());
        }
    }
}

/// The files of one directory.
struct Folder<'a> {
    entries: &'a [Entry],
}

impl Folder<'_> {
    /// The text of a certificate's file, or why it can't be served. None for a file that is none. Adds to `used` the files
    /// that its key and its chain come from.
    fn certificate_text(&self, entry: &Entry, used: &mut BTreeSet<PathBuf>) -> Option<Result<Vec<u8>, String>> {
        let content = match &entry.content {
            Ok(content) => content,
            // An unreadable README is no certificate.
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

    /// The key of a certificate without one in its file: by its public key, else by its file's name.
    fn find_key(&self, entry: &Entry, content: &Content) -> Option<(&Entry, &Key)> {
        let keys = || {
            let readable = self.entries.iter().filter_map(|it| Some((it, it.content.as_ref().ok()?)));
            readable.flat_map(|(it, content)| content.keys.iter().map(move |key| (it, key)))
        };
        let by_name = keys().find(|(it, key)| it.is_key_of(entry) && is_key_in(key, content));
        let by_content = || keys().find(|(_, key)| is_key_in(key, content));
        let unknown = || keys().find(|(it, key)| it.is_key_of(entry) && key.public_key().is_none());
        by_name.or_else(by_content).or_else(unknown)
    }

    /// Keys' files that no certificate's file needs, because that has the key in it, or in yet another file.
    fn spare_keys(&self) -> impl Iterator<Item = PathBuf> {
        let certificates = || self.entries.iter().filter_map(|it| Some((it, it.content.as_ref().ok()?)));
        let is_spare = move |entry: &&Entry| {
            let Ok(content) = &entry.content else { return false };
            if !content.certificates.is_empty() {
                return false;
            }
            let belongs = |key: &Key| match key.public_key() {
                Some(_) => certificates().any(|(_, it)| is_key_in(key, it)),
                None => certificates().any(|(it, content)| !content.certificates.is_empty() && entry.is_key_of(it)),
            };
            content.keys.iter().any(belongs)
        };
        self.entries.iter().filter(is_spare).map(|entry| entry.path.clone())
    }

    /// What is wrong with the key that a certificate should have, if a file's name tells which that is.
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
        // HAProxy takes the first certificate of a file for the server's own.
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

    /// The chain of a certificate that stands alone in its file, from the authorities' files beside it. Without the root,
    /// which clients have.
    fn find_chain(&self, own: &[u8], used: &mut BTreeSet<PathBuf>) -> Vec<pem::Pem> {
        let mut chain: Vec<pem::Pem> = Vec::new();
        let Some((mut subject, mut issuer)) = subject_and_issuer(own) else { return chain };
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
        let files = self.entries.iter().filter_map(|it| Some((it, it.content.as_ref().ok()?)));
        let files = files.filter(|(_, content)| content.keys.is_empty());
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

    /// Whether its name is one of a certificate's file.
    fn is_certificate_file(&self) -> bool {
        self.has_ending(&CERTIFICATES)
    }

    /// Whether its name is of a file that should have been readable. A special file never should lie here.
    fn may_concern_certificates(&self) -> bool {
        let ends = OTHER_FORMATS.map(|(end, _)| end);
        let is_special = fs::metadata(&self.path).is_ok_and(|it| !it.is_file());
        is_special || self.is_certificate_file() || self.has_ending(&ends) || self.has_ending(&[".key", ".ca-bundle"])
    }

    /// Whether its name says that it has the key of a certificate's file: `a.pem.key` or `a.key` for `a.pem`, mkcert's
    /// `a-key.pem`, and in a directory of one host the names of certbot, Kubernetes and uacme.
    fn is_key_of(&self, certificate: &Self) -> bool {
        let (name, of) = (self.lowercase_name(), certificate.lowercase_name());
        let stem = of.rsplit_once('.').map_or(of.as_str(), |(stem, _)| stem);
        let own = [format!("{of}.key"), format!("{stem}.key"), format!("{stem}-key.pem"), format!("{stem}.key.pem")];
        let shared = ["privkey.pem", "key.pem", "tls.key"];
        let is_shared = ["fullchain.pem", "cert.pem", "tls.crt"].contains(&of.as_str()) && shared.contains(&&*name);
        name != of && (own.contains(&name) || is_shared)
    }

    /// Why a file in another format can't be read.
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

impl Content {
    fn parse(bytes: &[u8]) -> Self {
        // DER begins with a SEQUENCE.
        let is_binary = bytes.first() == Some(&0x30);
        let Ok(blocks) = pem::parse_many(bytes) else { return Self { is_malformed: true, ..Self::default() } };
        let is_request = blocks.iter().any(|block| block.tag().ends_with("CERTIFICATE REQUEST"));
        let (keys, public): (Vec<_>, Vec<_>) = blocks.into_iter().partition(|it| it.tag().ends_with("PRIVATE KEY"));
        let certificates =
            public.iter().filter(|it| it.tag() == "CERTIFICATE").map(|it| it.contents().to_vec()).collect();
        let keys = keys.into_iter().map(Key::new).collect();
        Self { certificates, keys, public, is_request, is_binary, is_malformed: false }
    }
}

/// Whether a key is one of the file's certificates'.
fn is_key_in(key: &Key, content: &Content) -> bool {
    content.public.iter().any(|block| key.is_key_of_block(block))
}

impl Key {
    /// Whether a PEM block is the certificate that the key is for. False for a key that can't be read here.
    fn is_key_of_block(&self, block: &pem::Pem) -> bool {
        block.tag() == "CERTIFICATE"
            && self.public_key().is_some_and(|own| public_key_of(block.contents()).is_some_and(|key| key == own))
    }

    fn new(block: pem::Pem) -> Self {
        Self { block, public_key: OnceCell::new() }
    }

    /// None for an encrypted key, or one of a kind that can't be read here. HAProxy then says whether it fits.
    fn public_key(&self) -> Option<&[u8]> {
        let derive = || {
            let der = PrivateKeyDer::from_pem_slice(pem::encode(&self.block).as_bytes()).ok()?;
            key_bits(&any_supported_type(&der).ok()?.public_key()?)
        };
        self.public_key.get_or_init(derive).as_deref()
    }
}

/// The public key of a certificate, without its algorithm, which is not always written in the same way.
fn public_key_of(der: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(certificate.public_key().subject_public_key.data.to_vec())
}

fn key_bits(public_key: &[u8]) -> Option<Vec<u8>> {
    let (_, public_key) = SubjectPublicKeyInfo::from_der(public_key).ok()?;
    Some(public_key.subject_public_key.data.to_vec())
}

/// A certificate's subject and issuer, in DER.
fn subject_and_issuer(der: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some((certificate.subject().as_raw().to_vec(), certificate.issuer().as_raw().to_vec()))
}

fn is_ca(der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| certificate.is_ca())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test writes files as other tools do, in place too")]
mod tests;
