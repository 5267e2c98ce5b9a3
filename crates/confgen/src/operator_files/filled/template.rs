//! A file of the operator's in which confgen writes the servers of some sections. Pure: no I/O, no clock.
//!
//! ```text
//! backend mine
//!     # discover shop: server <id> <address> check inter 2000
//!     server shop-1 10.0.0.1:8000 check inter 2000
//! ```
//!
//! The comment has the pattern. The unbroken block of `server` lines right below it is confgen's. Every other byte stays.

use discovery::{Kind, ServiceId, ServiceName, UpstreamId};
use haproxy::config::{SECTIONS, tokenize};

use crate::desired::Server;
use crate::operator_files::filled::pattern::{Pattern, decode_bytes, encode_bytes, show_text};

/// A file in pieces: the operator's text and server blocks, in turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Servers(ServerBlock),
}

/// The server lines below one comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerBlock {
    /// The comment's line number, from 1.
    pub comment_line: usize,
    /// The service that the comment names.
    pub service: ServiceRef,
    /// The section's name. Empty for a section without one.
    pub section: String,
    /// The lines as they are in the file.
    pub current: Vec<u8>,
    /// The error is a part of a sentence for the operator.
    pattern: Result<Pattern, String>,
    indent: Vec<u8>,
    line_end: Vec<u8>,
    /// The end that the comment lacks if it is the file's last line. Lines below need it.
    missing_end: Vec<u8>,
}

/// A service as a comment names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceRef {
    /// `shop`, of either kind.
    AnyKind(ServiceName),
    /// `http-services/shop`, `tcp-services/db`.
    Exact(ServiceId),
    /// A text that can't be a service's name.
    Invalid(String),
}

impl ServiceRef {
    fn parse(text: &str) -> Self {
        let named = match text.split_once('/') {
            Some((folder, name)) => Self::parse_exact(folder, name),
            None => text.parse().ok().map(Self::AnyKind),
        };
        named.unwrap_or_else(|| Self::Invalid(show_text(text)))
    }

    fn parse_exact(folder: &str, name: &str) -> Option<Self> {
        let kind = [Kind::Http, Kind::Tcp].into_iter().find(|kind| kind.folder_name() == folder)?;
        Some(Self::Exact(ServiceId { kind, name: name.parse().ok()? }))
    }

    /// The services that the comment may mean, HTTP first.
    pub fn candidates(&self) -> Vec<ServiceId> {
        match self {
            Self::AnyKind(name) => [Kind::Http, Kind::Tcp].map(|kind| ServiceId { kind, name: name.clone() }).into(),
            Self::Exact(id) => vec![id.clone()],
            Self::Invalid(_) => Vec::new(),
        }
    }
}

impl ServerBlock {
    /// The reason why the block stays as it is. `None` if its pattern is good.
    pub fn pattern_error(&self) -> Option<&str> {
        self.pattern.as_ref().err().map(String::as_str)
    }

    /// The block's lines for these servers. With a bad pattern, the lines that it has.
    pub fn render_lines(&self, servers: &[Server]) -> Vec<u8> {
        let Ok(pattern) = &self.pattern else { return self.current.clone() };
        let mut lines = if servers.is_empty() { Vec::new() } else { self.missing_end.clone() };
        for server in servers {
            lines.extend(
                [&self.indent, &encode_bytes(&pattern.render_line(server)), &self.line_end].into_iter().flatten(),
            );
        }
        lines
    }

    /// The name of an upstream's server in this section. `None` with a bad pattern.
    pub fn server_name(&self, id: &UpstreamId) -> Option<String> {
        self.pattern.as_ref().ok()?.server_name(id)
    }
}

impl Template {
    /// Cuts a file into pieces. No byte is lost.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut reader = Reader::default();
        for (number, line) in (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n')) {
            reader.read_line(number, line);
        }
        reader.close_block();
        reader.pieces.push(Piece::Text(reader.text));
        let template = Self { pieces: reader.pieces };
        template.check_invariants(bytes);
        template
    }

    /// Panics in debug builds if the pieces are not the file that was cut.
    fn check_invariants(&self, bytes: &[u8]) {
        debug_assert!(self.is_whole(bytes), "{} lost bytes", String::from_utf8_lossy(bytes));
    }

    /// True if the pieces, joined again, are these bytes.
    fn is_whole(&self, bytes: &[u8]) -> bool {
        self.with_blocks(|block| block.current.clone()) == bytes
    }

    pub fn blocks(&self) -> impl Iterator<Item = &ServerBlock> {
        self.pieces.iter().filter_map(|piece| if let Piece::Servers(block) = piece { Some(block) } else { None })
    }

    /// The file with these lines in place of each block.
    pub fn with_blocks(&self, mut lines: impl FnMut(&ServerBlock) -> Vec<u8>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => bytes.extend(text),
                Piece::Servers(block) => bytes.extend(lines(block)),
            }
        }
        bytes
    }

    /// The operator's part: the file without its blocks.
    pub fn skeleton(&self) -> Vec<u8> {
        self.with_blocks(|_| Vec::new())
    }
}

#[derive(Default)]
struct Reader {
    pieces: Vec<Piece>,
    text: Vec<u8>,
    /// The block that the next line may belong to.
    open_block: Option<ServerBlock>,
    section: String,
    /// The line end that the file uses, `\n` or `\r\n`.
    line_end: Vec<u8>,
}

impl Reader {
    fn read_line(&mut self, number: usize, line: &[u8]) {
        let text = line.trim_ascii();
        if let Some(block) = self.open_block.as_mut().filter(|_| first_word(text) == b"server") {
            block.current.extend(line);
            return;
        }
        self.close_block();
        self.text.extend(line);
        let missing_end = match line {
            [.., b'\r', b'\n'] => self.set_line_end(b"\r\n", b""),
            [.., b'\n'] => self.set_line_end(b"\n", b""),
            // The last line of a file with CRLF, cut before the line feed.
            [.., b'\r'] => self.set_line_end(b"\r\n", b"\n"),
            _ if self.line_end.is_empty() => self.set_line_end(b"\n", b"\n"),
            _ => self.line_end.clone(),
        };
        let text = decode_bytes(text);
        if let Some((service, pattern)) = parse_comment(&text) {
            let pattern = match &service {
                ServiceRef::Invalid(text) => {
                    Err(format!("`{text}` is no service: shop, http-services/shop, tcp-services/shop"))
                }
                ServiceRef::AnyKind(_) | ServiceRef::Exact(_) => Pattern::parse(pattern),
            };
            let indent = line.iter().copied().take_while(|byte| b" \t".contains(byte)).collect();
            self.open_block = Some(ServerBlock {
                comment_line: number,
                service,
                section: self.section.clone(),
                current: Vec::new(),
                pattern,
                indent,
                line_end: self.line_end.clone(),
                missing_end,
            });
        } else if let [kind, rest @ ..] = tokenize(&text).as_slice()
            && SECTIONS.contains(&kind.text.as_str())
        {
            self.section = rest.first().map(|name| name.text.clone()).unwrap_or_default();
        }
    }

    /// Notes the file's line end, and returns `missing`.
    fn set_line_end(&mut self, end: &[u8], missing: &[u8]) -> Vec<u8> {
        self.line_end = end.to_owned();
        missing.to_owned()
    }

    /// Ends the open block, if there is one.
    fn close_block(&mut self) {
        if let Some(block) = self.open_block.take() {
            self.pieces.extend([Piece::Text(std::mem::take(&mut self.text)), Piece::Servers(block)]);
        }
    }
}

fn first_word(text: &[u8]) -> &[u8] {
    text.split(u8::is_ascii_whitespace).next().unwrap_or_default()
}

/// The service and the pattern of a comment `# discover SVC: server …`. `None` for any other comment, `# discover` as prose too.
fn parse_comment(text: &str) -> Option<(ServiceRef, &str)> {
    let words = text.strip_prefix('#')?.trim_start().strip_prefix("discover")?;
    let (service, pattern) = words.strip_prefix([' ', '\t'])?.split_once(':')?;
    let pattern = pattern.trim_start();
    (first_word(pattern.as_bytes()) == b"server").then(|| (ServiceRef::parse(service.trim()), pattern))
}

#[cfg(test)]
mod tests;
