//! Certificates: what HAProxy has loaded of them, and their change without a restart.
//!
//! Seen with 2.6, 3.0 and 3.2: `commit` wants certificate and key, `add ssl crt-list` a committed file, `del ssl cert`
//! one that no list names; a list's first line can't be deleted; the same file may be listed twice.

use std::collections::BTreeMap;
use std::fmt;

use super::change::LINE_LIMIT;
use super::{Command, Error, Socket, Token};

/// The longest command with its payload. HAProxy reads both into one buffer (`tune.bufsize`, 16,384 bytes): of what is
/// longer, 2.6 takes nothing and says nothing.
const LONGEST: usize = 16_000;

/// What HAProxy tells of a certificate that it has loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownCertificate {
    /// The SHA-1 fingerprint, in hexadecimal capitals.
    pub fingerprint: String,
    /// The subjects of the chain behind it, in the file's order, such as `/C=DE/O=Example/CN=Root`.
    pub chain: Vec<String>,
}

/// A line of a crt-list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrtEntry {
    /// The certificate's file.
    pub file: Token,
    /// What follows the file: SNI filters, and options in brackets, word by word.
    pub filters: Vec<String>,
    /// The line's number, which stays the same while other lines come and go.
    pub line: u32,
}

/// An SNI filter of a crt-list line (configuration manual 5.1, `crt-list`). Without one, HAProxy serves a certificate for
/// every name in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SniFilter(String);

impl SniFilter {
    /// The line serves this name: a host, or `*.` and a host. None for a name that a client can't ask for.
    pub fn for_name(name: &str) -> Option<Self> {
        let host = name.strip_prefix("*.").unwrap_or(name);
        let is_host = !host.is_empty() && name.len() <= LONGEST_NAME && host.bytes().all(is_host_byte);
        is_host.then(|| Self(name.to_owned()))
    }

    /// The line's wildcard does not serve this host. None where [`serving`](Self::serving) has none, or for a wildcard.
    pub fn excluding_host(host: &str) -> Option<Self> {
        Self::for_name(host).filter(|_| !host.starts_with('*')).map(|Self(host)| Self(format!("!{host}")))
    }

    /// The line serves no name at all. As the list's first line it is still the default certificate.
    pub fn for_no_name() -> Self {
        Self("!*".to_owned())
    }

    /// The word in the list.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The longest name of the DNS.
const LONGEST_NAME: usize = 253;

/// Upper case is left out: HAProxy compares in lower case, and shows a filter as it was written.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)
}

/// A certificate with its chain and its private key. Never shown: not by `Debug`, not in an error.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    /// In the file's order, the server's own first (DER).
    certificates: Vec<Vec<u8>>,
    /// Everything but the key; no empty line, which would end the payload.
    public: String,
    key: String,
}

/// The text is no certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotPem {
    /// It can't be read. Where and why isn't said: it could be a piece of the key.
    #[error("no PEM file: a BEGIN or END line is missing, or what is between them is no base64")]
    Unreadable,
    /// There is none.
    #[error("there is no CERTIFICATE in it")]
    NoCertificate,
    /// There is none, or more than one.
    #[error("there has to be one PRIVATE KEY in it, or in a file beside it; there are {0}")]
    Keys(usize),
    /// HAProxy would ask for its pass phrase.
    #[error("its private key is encrypted; HAProxy would ask for the pass phrase")]
    Encrypted,
}

/// One change of what HAProxy serves TLS with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateChange {
    /// A new file, which is empty.
    New(Token),
    /// A file's content.
    Load(Token, Pem),
    /// A new line at the end of a list, for a file with a content, with the line's filters.
    List(Token, Token, Vec<SniFilter>),
    /// A line of a list goes; which one, where the file has several.
    Unlist(Token, Token, Option<u32>),
    /// A file goes that no list names.
    Delete(Token),
}

impl Pem {
    /// Reads a file's content. What stands outside of its blocks is left out.
    ///
    /// # Errors
    /// When it isn't certificates with one key in the clear.
    pub fn parse(content: &[u8]) -> Result<Self, NotPem> {
        let blocks = pem::parse_many(content).map_err(|_| NotPem::Unreadable)?;
        let encrypted = |block: &pem::Pem| block.tag().starts_with("ENCRYPTED") || block.headers().iter().count() > 0;
        if blocks.iter().any(encrypted) {
            return Err(NotPem::Encrypted);
        }
        let (keys, public): (Vec<_>, Vec<_>) = blocks.into_iter().partition(|it| it.tag().ends_with("PRIVATE KEY"));
        let certificates: Vec<Vec<u8>> =
            public.iter().filter(|it| it.tag() == "CERTIFICATE").map(|it| it.contents().to_vec()).collect();
        match (certificates.is_empty(), &keys[..]) {
            (true, _) => Err(NotPem::NoCertificate),
            (false, [key]) => {
                Ok(Self { certificates, public: encode_blocks(&public), key: encode_blocks(std::slice::from_ref(key)) })
            }
            (false, keys) => Err(NotPem::Keys(keys.len())),
        }
    }

    /// The certificates in DER, the server's own first. At least one.
    pub fn certificates(&self) -> impl Iterator<Item = &[u8]> {
        self.certificates.iter().map(Vec::as_slice)
    }

    /// The payloads that bring it over, with what each adds to the file's name: at once, or the key by itself. None where
    /// that is still too long.
    fn split_payloads(&self, file: &Token) -> Option<Vec<(&'static str, String)>> {
        let whole = vec![("", format!("{}{}", self.public, self.key))];
        let parts = vec![("", self.public.clone()), (".key", self.key.clone())];
        let fits = |(suffix, payload): &(&str, String)| {
            load_command(file, suffix).to_string().len() + "\n\n".len() + payload.len() <= LONGEST
        };
        [whole, parts].into_iter().find(|payloads| payloads.iter().all(fits))
    }
}

/// Blocks as text, without an empty line.
fn encode_blocks(blocks: &[pem::Pem]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    let lines = pem::encode_many_config(blocks, config);
    lines.lines().filter(|line| !line.trim().is_empty()).map(|line| format!("{line}\n")).collect()
}

fn load_command(file: &Token, suffix: &str) -> Command {
    Command::from_line(format!("set ssl cert {file}{suffix} <<"))
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pem({} certificates, a key)", self.certificates.len())
    }
}

/// As a person would type it, without the payload.
impl fmt::Display for CertificateChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New(file) => write!(f, "new ssl cert {file}"),
            Self::Load(file, _) => write!(f, "set ssl cert {file}"),
            Self::List(list, file, filters) => write!(f, "add ssl crt-list {list} {}", crt_line(file, filters)),
            Self::Unlist(list, file, None) => write!(f, "del ssl crt-list {list} {file}"),
            Self::Unlist(list, file, Some(line)) => write!(f, "del ssl crt-list {list} {file}:{line}"),
            Self::Delete(file) => write!(f, "del ssl cert {file}"),
        }
    }
}

impl Socket {
    /// The loaded certificates whose files lie under `folder`; nothing for a file without a content.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn show_certificates(&self, folder: &str) -> Result<BTreeMap<Token, Option<ShownCertificate>>, Error> {
        // A line with a star is one of a change that is under way.
        let files = self.exchange_lossy(&Command::show_certificate_files(), "")?;
        let files = files.lines().filter(|line| line.starts_with(folder)).filter_map(|line| line.parse().ok());
        let files: Vec<Token> = files.collect();
        let mut shown = BTreeMap::new();
        // Paths have at most 4 kB each, most of them 50 bytes.
        let longest = files.iter().map(|file| "show ssl cert ;".len() + file.to_string().len()).max().unwrap_or(1);
        for some in files.chunks((LINE_LIMIT / longest).max(1)) {
            shown.extend(parse_shown_certificates(&self.exchange_lossy(&Command::show_certificates(some), "")?));
        }
        Ok(shown)
    }

    /// The lines of a crt-list; none where HAProxy has no such list.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn show_crt_list(&self, list: &Token) -> Result<Option<Vec<CrtEntry>>, Error> {
        let answer = self.send_command(&Command::show_crt_list(list))?;
        if answer.contains("didn't find the specified filename") {
            return Ok(None);
        }
        // "/certs/a.pem:3", then options and filters, if any.
        let entry = |line: &str| {
            let mut words = line.split(' ').filter(|word| !word.is_empty());
            let (file, number) = words.next()?.rsplit_once(':')?;
            let filters = words.map(str::to_owned).collect();
            Some(CrtEntry { file: file.parse().ok()?, filters, line: number.parse().ok()? })
        };
        Ok(Some(answer.lines().filter(|line| !line.starts_with('#')).filter_map(entry).collect()))
    }

    /// Makes one change, and returns HAProxy's complaint if it doesn't.
    ///
    /// # Errors
    /// When nobody answers, or not to the end within the bound.
    pub fn change_certificate(&self, change: &CertificateChange) -> Result<Option<String>, Error> {
        let answer = match change {
            CertificateChange::Load(file, pem) => return self.load_certificate(file, pem),
            // Filters are taken from a payload only.
            CertificateChange::List(list, file, filters) if !filters.is_empty() => {
                let (command, payload) =
                    (Command::from_line(format!("add ssl crt-list {list} <<")), crt_line(file, filters));
                if payload.len() > LONGEST {
                    return Ok(Some(format!("the line is longer than the {LONGEST} bytes that HAProxy takes at once")));
                }
                self.exchange_lossy(&command, &format!("{payload}\n\n"))?
            }
            _ => self.exchange_lossy(&Command::from_line(change.to_string()), "")?,
        };
        let done = match change {
            CertificateChange::New(_) => "New empty certificate store",
            CertificateChange::List(..) => "Success!",
            _ => "deleted",
        };
        Ok(if answer.contains(done) && !answer.contains("Can't") { None } else { Some(summarize_complaint(&answer)) })
    }

    fn load_certificate(&self, file: &Token, pem: &Pem) -> Result<Option<String>, Error> {
        let Some(payloads) = pem.split_payloads(file) else {
            return Ok(Some(format!("its chain is longer than the {LONGEST} bytes that HAProxy takes at once")));
        };
        for (suffix, payload) in payloads {
            let command = load_command(file, suffix);
            let mut answer = self.exchange_lossy(&command, &format!("{payload}\n"))?;
            if let Some(other) = parse_other_transaction(&answer, file) {
                self.abort_transaction(&other)?;
                answer = self.exchange_lossy(&command, &format!("{payload}\n"))?;
            }
            if parse_transaction(&answer) != Some(file.to_string()) {
                self.abort_transaction(file)?;
                return Ok(Some(summarize_complaint(&answer)));
            }
        }
        let answer = self.exchange_lossy(&Command::from_line(format!("commit ssl cert {file}")), "")?;
        if answer.contains("Success!") {
            return Ok(None);
        }
        self.abort_transaction(file)?;
        Ok(Some(summarize_complaint(&answer)))
    }

    /// Gives up a change that is under way; HAProxy has one at a time.
    fn abort_transaction(&self, file: &Token) -> Result<(), Error> {
        self.exchange_lossy(&Command::from_line(format!("abort ssl cert {file}")), "").map(drop)
    }

    /// What is answered, whatever letters a certificate has its names in.
    fn exchange_lossy(&self, command: &Command, payload: &str) -> Result<String, Error> {
        Ok(String::from_utf8_lossy(&self.exchange_bytes(command, payload)?).into_owned())
    }
}

/// A line of a crt-list, as HAProxy reads it.
pub fn crt_line(file: &Token, filters: &[SniFilter]) -> String {
    let words = filters.iter().map(|filter| format!(" {}", filter.as_str()));
    std::iter::once(file.to_string()).chain(words).collect()
}

/// The file whose change an answer to `set ssl cert` says to be under way.
fn parse_transaction(answer: &str) -> Option<String> {
    let line = answer.lines().find(|line| line.starts_with("Transaction "))?;
    let file = line.split_once(" for certificate ")?.1.strip_suffix('!')?;
    Some(file.trim_matches('\'').to_owned())
}

/// The file whose change somebody has begun and left: 3.0 refuses another one then, 2.6 takes its content for that file.
fn parse_other_transaction(answer: &str, file: &Token) -> Option<Token> {
    let refused = || Some(answer.split_once("The ongoing transaction is about '")?.1.split_once('\'')?.0.to_owned());
    let other: Token = refused().or_else(|| parse_transaction(answer))?.parse().ok()?;
    (other != *file).then_some(other)
}

/// HAProxy's words in one line.
fn summarize_complaint(answer: &str) -> String {
    let lines: Vec<&str> = answer.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return "HAProxy says nothing to it; tune.bufsize may be too small".into();
    }
    lines.join("; ").chars().take(300).collect()
}

fn parse_shown_certificates(answer: &str) -> BTreeMap<Token, Option<ShownCertificate>> {
    let block = |block: &str| {
        let field = |name: &str, line: &str| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned);
        let file = block.lines().next()?.trim().parse().ok()?;
        let fingerprint = block.lines().find_map(|line| field("SHA1 FingerPrint", line));
        let chain = block.lines().filter_map(|line| field("Chain Subject", line)).collect();
        Some((file, fingerprint.map(|fingerprint| ShownCertificate { fingerprint, chain })))
    };
    // A certificate that went meanwhile has no block.
    answer.split("Filename: ").skip(1).filter_map(block).collect()
}

#[cfg(test)]
mod tests;
