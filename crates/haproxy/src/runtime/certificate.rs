//! Reads the certificates that HAProxy has loaded, and changes them without a restart. Private keys show nowhere.
//!
//! Seen with 2.6, 3.0 and 3.2: `commit` wants certificate and key. `add ssl crt-list` wants a committed file. `del ssl
//! cert` wants a file that no list names. A list's first line can't be deleted. A list may name a file twice.

use std::collections::BTreeMap;
use std::fmt;

use super::change::LINE_LIMIT;
use super::{Command, Error, Socket, Token};

/// The longest command with its payload, in bytes. HAProxy reads both into one buffer (`tune.bufsize`, 16,384 bytes).
/// 2.6 ignores a longer one without an answer.
const LONGEST: usize = 16_000;

/// A certificate that HAProxy has loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownCertificate {
    /// The SHA-1 fingerprint, in hexadecimal capitals.
    pub fingerprint: String,
    /// The subjects of the chain, in the file's order, such as `/C=DE/O=Example/CN=Root`.
    pub chain: Vec<String>,
}

/// A line of a crt-list that HAProxy has loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrtEntry {
    /// The path of the certificate's file.
    pub file: Token,
    /// The words after the file: SNI filters, and options in brackets.
    pub filters: Vec<String>,
    /// The line's number, which stays while other lines come and go.
    pub line: u32,
}

impl CrtEntry {
    /// Parses `/certs/a.pem:3`, and the options and filters behind it, if any.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let (file, number) = words.next()?.rsplit_once(':')?;
        let filters = words.map(str::to_owned).collect();
        Some(Self { file: file.parse().ok()?, filters, line: number.parse().ok()? })
    }
}

/// An SNI filter of a crt-list line (configuration manual 5.1, `crt-list`). Without a filter, HAProxy serves a
/// certificate for every name in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SniFilter(String);

impl SniFilter {
    /// The filter of a line that serves this name: a host, or `*.` and a host. `None` for a name that a client can't
    /// ask for.
    pub fn for_name(name: &str) -> Option<Self> {
        let host = name.strip_prefix("*.").unwrap_or(name);
        let is_host = !host.is_empty() && name.len() <= LONGEST_NAME && host.bytes().all(is_host_byte);
        is_host.then(|| Self(name.to_owned()))
    }

    /// The filter that excepts this host from the line's wildcard. `None` if [`for_name`](Self::for_name) has none, or
    /// for a wildcard.
    pub fn excluding_host(host: &str) -> Option<Self> {
        Self::for_name(host).filter(|_| !host.starts_with('*')).map(|Self(host)| Self(format!("!{host}")))
    }

    /// The filter of a line that serves no name. As the list's first line it is still the default certificate.
    pub fn for_no_name() -> Self {
        Self("!*".to_owned())
    }

    /// The filter as the list has it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The longest name in the DNS, in bytes.
const LONGEST_NAME: usize = 253;

/// True for a byte of a host name in lower case. HAProxy compares in lower case, and shows a filter as it was written.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)
}

/// A certificate with its chain and its private key. Neither `Debug` nor an error shows them.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    /// The certificates in DER, in the file's order, the server's own first. At least one.
    certificates: Vec<Vec<u8>>,
    /// Everything but the key, as PEM. No line is empty, because an empty line would end the payload.
    public: String,
    key: String,
}

/// The reason that a text is no certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotPem {
    /// The text can't be parsed. The error has no details, because they could be a piece of the key.
    #[error("no PEM file: a BEGIN or END line is missing, or what is between them is no base64")]
    Unreadable,
    /// The text has no certificate.
    #[error("there is no CERTIFICATE in it")]
    NoCertificate,
    /// The text has no private key, or more than one.
    #[error("there has to be one PRIVATE KEY in it, or in a file beside it; there are {0}")]
    Keys(usize),
    /// The private key is encrypted, and HAProxy would ask for its pass phrase.
    #[error("its private key is encrypted; HAProxy would ask for the pass phrase")]
    Encrypted,
}

/// One change to the certificates that HAProxy serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateChange {
    /// Add an empty file.
    New(Token),
    /// Set the content of a file.
    Load(Token, Pem),
    /// Add a line with its filters at the end of a list, for a file with a content.
    List(Token, Token, Vec<SniFilter>),
    /// Delete a line of a list. The number tells lines of one file apart.
    Unlist(Token, Token, Option<u32>),
    /// Delete a file that no list names.
    Delete(Token),
}

impl Pem {
    /// Parses a file's content. Text outside of its blocks is left out.
    ///
    /// # Errors
    /// If the content isn't certificates with one private key in the clear.
    pub fn parse(content: &[u8]) -> Result<Self, NotPem> {
        let blocks = pem::parse_many(content).map_err(|_| NotPem::Unreadable)?;
        if blocks.iter().any(is_encrypted) {
            return Err(NotPem::Encrypted);
        }
        let (keys, public): (Vec<_>, Vec<_>) = blocks.into_iter().partition(|it| it.tag().ends_with("PRIVATE KEY"));
        let certificates: Vec<Vec<u8>> =
            public.iter().filter(|it| it.tag() == "CERTIFICATE").map(|it| it.contents().to_vec()).collect();
        match (certificates.is_empty(), &keys[..]) {
            (true, _) => Err(NotPem::NoCertificate),
            (false, [key]) => {
                let key = encode_blocks(std::slice::from_ref(key));
                let pem = Self { certificates, public: encode_blocks(&public), key };
                pem.check_invariants();
                Ok(pem)
            }
            (false, keys) => Err(NotPem::Keys(keys.len())),
        }
    }

    fn check_invariants(&self) {
        debug_assert_eq!(self.find_broken_rule(), None, "{self:?}");
    }

    /// Finds the first rule that the content breaks. `None` if it keeps them all.
    fn find_broken_rule(&self) -> Option<&'static str> {
        let rules = [
            ("there is a certificate", !self.certificates.is_empty()),
            ("no empty line ends a payload", [&self.public, &self.key].iter().all(|text| has_no_empty_line(text))),
        ];
        rules.into_iter().find(|(_, holds)| !holds).map(|(rule, _)| rule)
    }

    /// The certificates in DER, the server's own first. At least one.
    pub fn certificates(&self) -> impl Iterator<Item = &[u8]> {
        self.certificates.iter().map(Vec::as_slice)
    }

    /// Splits the content into payloads, each with the suffix of its file name. The key goes by itself if both are too
    /// long for one. `None` if that is still too long.
    fn split_payloads(&self, file: &Token) -> Option<Vec<(&'static str, String)>> {
        let whole = vec![("", format!("{}{}", self.public, self.key))];
        let parts = vec![("", self.public.clone()), (".key", self.key.clone())];
        let mut ways = [whole, parts].into_iter();
        ways.find(|payloads| payloads.iter().all(|(suffix, payload)| fits_buffer(file, suffix, payload)))
    }
}

/// True for a block with a pass phrase. Old ones have it in a header: `Proc-Type: 4,ENCRYPTED` (RFC 1421).
fn is_encrypted(block: &pem::Pem) -> bool {
    block.tag().starts_with("ENCRYPTED") || block.headers().iter().count() > 0
}

/// True if HAProxy reads the command and its payload at once.
fn fits_buffer(file: &Token, suffix: &str, payload: &str) -> bool {
    // One line feed ends the command, and an empty line ends the payload.
    load_command(file, suffix).to_string().len() + "\n\n".len() + payload.len() <= LONGEST
}

/// Encodes blocks as PEM without an empty line.
fn encode_blocks(blocks: &[pem::Pem]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    let lines = pem::encode_many_config(blocks, config);
    lines.lines().filter(|line| !line.trim().is_empty()).map(|line| format!("{line}\n")).collect()
}

fn has_no_empty_line(text: &str) -> bool {
    text.ends_with('\n') && text.lines().all(|line| !line.trim().is_empty())
}

fn load_command(file: &Token, suffix: &str) -> Command {
    Command::from_line(format!("set ssl cert {file}{suffix} <<"))
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pem({} certificates, a key)", self.certificates.len())
    }
}

/// Writes the command as an operator would type it, without the payload.
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
    /// Lists the loaded certificates of the files under `folder`. The value is `None` for a file without a content.
    ///
    /// # Errors
    /// As [`send_command`](Self::send_command).
    pub fn show_certificates(&self, folder: &str) -> Result<BTreeMap<Token, Option<ShownCertificate>>, Error> {
        // A line with a star belongs to a transaction in progress.
        let files = self.exchange_lossy(&Command::show_certificate_files(), "")?;
        let files = files.lines().filter(|line| line.starts_with(folder)).filter_map(|line| line.parse().ok());
        let files: Vec<Token> = files.collect();
        let mut shown = BTreeMap::new();
        // A path has at most 4 kB, and most have 50 bytes.
        let longest = files.iter().map(|file| "show ssl cert ;".len() + file.to_string().len()).max().unwrap_or(1);
        for some in files.chunks((LINE_LIMIT / longest).max(1)) {
            shown.extend(parse_shown_certificates(&self.exchange_lossy(&Command::show_certificates(some), "")?));
        }
        Ok(shown)
    }

    /// Lists the lines of a crt-list. `None` if HAProxy has no such list.
    ///
    /// # Errors
    /// As [`send_command`](Self::send_command).
    pub fn show_crt_list(&self, list: &Token) -> Result<Option<Vec<CrtEntry>>, Error> {
        let answer = self.send_command(&Command::show_crt_list(list))?;
        if answer.contains("didn't find the specified filename") {
            return Ok(None);
        }
        Ok(Some(answer.lines().filter(|line| !line.starts_with('#')).filter_map(CrtEntry::parse).collect()))
    }

    /// Makes one change. Returns HAProxy's complaint if HAProxy doesn't make it.
    ///
    /// # Errors
    /// If HAProxy doesn't answer, or not to the end within the time limit.
    pub fn change_certificate(&self, change: &CertificateChange) -> Result<Option<String>, Error> {
        let answer = match change {
            CertificateChange::Load(file, pem) => return self.load_certificate(file, pem),
            // HAProxy takes filters only as a payload.
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

    /// Aborts the transaction in progress. HAProxy has one at a time.
    fn abort_transaction(&self, file: &Token) -> Result<(), Error> {
        self.exchange_lossy(&Command::from_line(format!("abort ssl cert {file}")), "").map(drop)
    }

    /// Exchanges without requiring UTF-8, because a certificate may have its names in any encoding.
    fn exchange_lossy(&self, command: &Command, payload: &str) -> Result<String, Error> {
        Ok(String::from_utf8_lossy(&self.exchange_bytes(command, payload)?).into_owned())
    }
}

/// Writes a line of a crt-list, as HAProxy reads it.
pub fn crt_line(file: &Token, filters: &[SniFilter]) -> String {
    let words = filters.iter().map(|filter| format!(" {}", filter.as_str()));
    std::iter::once(file.to_string()).chain(words).collect()
}

/// Parses the file of the transaction that an answer to `set ssl cert` names.
fn parse_transaction(answer: &str) -> Option<String> {
    let line = answer.lines().find(|line| line.starts_with("Transaction "))?;
    let file = line.split_once(" for certificate ")?.1.strip_suffix('!')?;
    Some(file.trim_matches('\'').to_owned())
}

/// Parses the file of a transaction that another client has left open. 3.0 refuses another file then. 2.6 takes its
/// content for the first file.
fn parse_other_transaction(answer: &str, file: &Token) -> Option<Token> {
    let other: Token = parse_refused_transaction(answer).or_else(|| parse_transaction(answer))?.parse().ok()?;
    (other != *file).then_some(other)
}

fn parse_refused_transaction(answer: &str) -> Option<String> {
    Some(answer.split_once("The ongoing transaction is about '")?.1.split_once('\'')?.0.to_owned())
}

/// Shortens HAProxy's answer to one line.
fn summarize_complaint(answer: &str) -> String {
    let lines: Vec<&str> = answer.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return "HAProxy gives no answer. Its tune.bufsize may be too small".into();
    }
    lines.join("; ").chars().take(300).collect()
}

fn parse_shown_certificates(answer: &str) -> BTreeMap<Token, Option<ShownCertificate>> {
    // A certificate that was deleted meanwhile has no block.
    answer.split("Filename: ").skip(1).filter_map(parse_block).collect()
}

/// Parses the answer about one file, from the file's name on.
fn parse_block(block: &str) -> Option<(Token, Option<ShownCertificate>)> {
    let file = block.lines().next()?.trim().parse().ok()?;
    let fingerprint = block.lines().find_map(|line| find_value(line, "SHA1 FingerPrint"));
    let chain = block.lines().filter_map(|line| find_value(line, "Chain Subject")).collect();
    Some((file, fingerprint.map(|fingerprint| ShownCertificate { fingerprint, chain })))
}

fn find_value(line: &str, name: &str) -> Option<String> {
    line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned)
}

#[cfg(test)]
mod tests;
