//! A file that people keep, in which some sections' servers are confgen's. Pure: text and servers go in, text comes out.
//!
//!     backend mine
//!         # discover shop: server <id> <address> check inter 2000
//!         server shop-1 10.0.0.1:8000 check inter 2000
//!
//! The comment is the pattern. The unbroken run of `server` lines right below it is confgen's; every other byte stays.

use discovery::{Kind, ServiceId, ServiceName, UpstreamId};
use haproxy::config::{SECTIONS, tokenize};

use crate::desired::Server;
use crate::operator_files::filled::pattern::Pattern;

/// A file, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Servers(ServerBlock),
}

/// The lines of one service's servers, and the comment that asks for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerBlock {
    /// Where the comment stands, from 1.
    pub comment_line: usize,
    /// Whose servers they are.
    pub service: ServiceRef,
    /// The section it stands in.
    pub section: String,
    /// As it stands now.
    pub current: Vec<u8>,
    /// Or what is wrong with it.
    pattern: Result<Pattern, String>,
    indent: Vec<u8>,
    line_end: Vec<u8>,
    /// What the comment's own end lacks, as the file's last line.
    missing_end: Vec<u8>,
}

/// A service as a comment names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceRef {
    /// `shop`: of whichever kind there is.
    AnyKind(ServiceName),
    /// `http-services/shop`, `tcp-services/db`.
    Exact(ServiceId),
    /// What no service can be called.
    Invalid(String),
}

impl ServiceRef {
    fn parse(text: &str) -> Self {
        let whole = |folder: &str, name: &str| {
            let kind = [Kind::Http, Kind::Tcp].into_iter().find(|kind| kind.folder_name() == folder)?;
            Some(Self::Exact(ServiceId { kind, name: name.parse().ok()? }))
        };
        let named = match text.split_once('/') {
            Some((folder, name)) => whole(folder, name),
            None => text.parse().ok().map(Self::AnyKind),
        };
        named.unwrap_or_else(|| Self::Invalid(text.to_owned()))
    }

    /// The services that it may be, HTTP first.
    pub fn candidates(&self) -> Vec<ServiceId> {
        match self {
            Self::AnyKind(name) => [Kind::Http, Kind::Tcp].map(|kind| ServiceId { kind, name: name.clone() }).into(),
            Self::Exact(id) => vec![id.clone()],
            Self::Invalid(_) => Vec::new(),
        }
    }
}

impl ServerBlock {
    /// What is wrong with its pattern: such a run is left as it stands.
    pub fn pattern_error(&self) -> Option<&str> {
        self.pattern.as_ref().err().map(String::as_str)
    }

    /// The lines for these servers.
    pub fn render_lines(&self, servers: &[Server]) -> Vec<u8> {
        let Ok(pattern) = &self.pattern else { return self.current.clone() };
        let mut lines = if servers.is_empty() { Vec::new() } else { self.missing_end.clone() };
        for server in servers {
            lines.extend([self.indent.as_slice(), pattern.render_line(server).as_bytes(), &self.line_end].concat());
        }
        lines
    }

    /// The name that an upstream's server bears in this section.
    pub fn server_name(&self, id: &UpstreamId) -> Option<String> {
        self.pattern.as_ref().ok()?.server_name(id)
    }
}

impl Template {
    /// Takes a file apart.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut reader = Reader::default();
        for (number, line) in (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n')) {
            reader.read_line(number, line);
        }
        reader.close_block();
        reader.pieces.push(Piece::Text(reader.text));
        Self { pieces: reader.pieces }
    }

    /// The runs, in the file's order.
    pub fn blocks(&self) -> impl Iterator<Item = &ServerBlock> {
        self.pieces.iter().filter_map(|piece| if let Piece::Servers(run) = piece { Some(run) } else { None })
    }

    /// The file with these lines for each run.
    pub fn with_blocks(&self, mut lines: impl FnMut(&ServerBlock) -> Vec<u8>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(kept) => bytes.extend(kept),
                Piece::Servers(run) => bytes.extend(lines(run)),
            }
        }
        bytes
    }

    /// What people wrote: the file without any run.
    pub fn skeleton(&self) -> Vec<u8> {
        self.with_blocks(|_| Vec::new())
    }
}

/// What has been read so far.
#[derive(Default)]
struct Reader {
    pieces: Vec<Piece>,
    text: Vec<u8>,
    /// The run that the next line may belong to.
    open_block: Option<ServerBlock>,
    section: String,
    /// What ends the file's lines.
    line_end: Vec<u8>,
}

impl Reader {
    fn read_line(&mut self, number: usize, line: &[u8]) {
        let text = line.trim_ascii();
        if let Some(run) = self.open_block.as_mut().filter(|_| first_word(text) == b"server") {
            run.current.extend(line);
            return;
        }
        self.close_block();
        self.text.extend(line);
        let lacks = match line {
            [.., b'\r', b'\n'] => self.set_line_end(b"\r\n", b""),
            [.., b'\n'] => self.set_line_end(b"\n", b""),
            [.., b'\r'] => self.set_line_end(b"\r\n", b"\n"),
            _ if self.line_end.is_empty() => self.set_line_end(b"\n", b"\n"),
            _ => self.line_end.clone(),
        };
        let text = String::from_utf8_lossy(text);
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
                missing_end: lacks,
            });
        } else if let [kind, rest @ ..] = tokenize(&text).as_slice()
            && SECTIONS.contains(&kind.text.as_str())
        {
            self.section = rest.first().map(|name| name.text.clone()).unwrap_or_default();
        }
    }

    /// Takes note of how lines end here; gives back what is missing.
    fn set_line_end(&mut self, end: &[u8], missing: &[u8]) -> Vec<u8> {
        self.line_end = end.to_owned();
        missing.to_owned()
    }

    /// Ends the run, if there is one.
    fn close_block(&mut self) {
        if let Some(run) = self.open_block.take() {
            self.pieces.extend([Piece::Text(std::mem::take(&mut self.text)), Piece::Servers(run)]);
        }
    }
}

fn first_word(text: &[u8]) -> &[u8] {
    text.split(u8::is_ascii_whitespace).next().unwrap_or_default()
}

/// The service and the pattern of a comment `# discover SVC: server …`; whatever else people say of discovering is prose.
fn parse_comment(text: &str) -> Option<(ServiceRef, &str)> {
    let words = text.strip_prefix('#')?.trim_start().strip_prefix("discover")?;
    let (service, pattern) = words.strip_prefix([' ', '\t'])?.split_once(':')?;
    let pattern = pattern.trim_start();
    (first_word(pattern.as_bytes()) == b"server").then(|| (ServiceRef::parse(service.trim()), pattern))
}

#[cfg(test)]
mod tests;
