//! A file that people keep, in which some sections' servers are confgen's. Pure: text and servers go in, text comes out.
//!
//!     backend mine
//!         # discover shop: server <id> <address> check inter 2000
//!         server shop-1 10.0.0.1:8000 check inter 2000
//!
//! The comment is the pattern. The unbroken run of `server` lines right below it is confgen's; every other byte stays.

use discovery::{Kind, ServiceId, ServiceName, UpstreamId};
use haproxy::config::{SECTIONS, words};

use crate::desired::Server;
use crate::operator_files::filled::pattern::Pattern;

/// A file, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Kept(Vec<u8>),
    Run(Run),
}

/// The lines of one service's servers, and the comment that asks for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where the comment stands, from 1.
    pub line: usize,
    /// Whose servers they are.
    pub service: Named,
    /// The section it stands in.
    pub section: String,
    /// As it stands now.
    pub standing: Vec<u8>,
    /// Or what is wrong with it.
    pattern: Result<Pattern, String>,
    indent: Vec<u8>,
    end: Vec<u8>,
    /// What the comment's own end lacks, as the file's last line.
    lacks: Vec<u8>,
}

/// A service as a comment names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// `shop`: of whichever kind there is.
    Bare(ServiceName),
    /// `http-services/shop`, `tcp-services/db`.
    Whole(ServiceId),
    /// What no service can be called.
    Odd(String),
}

impl Named {
    fn parse(text: &str) -> Self {
        let whole = |folder: &str, name: &str| {
            let kind = [Kind::Http, Kind::Tcp].into_iter().find(|kind| kind.folder() == folder)?;
            Some(Self::Whole(ServiceId { kind, name: name.parse().ok()? }))
        };
        let named = match text.split_once('/') {
            Some((folder, name)) => whole(folder, name),
            None => text.parse().ok().map(Self::Bare),
        };
        named.unwrap_or_else(|| Self::Odd(text.to_owned()))
    }

    /// The services that it may be, HTTP first.
    pub fn candidates(&self) -> Vec<ServiceId> {
        match self {
            Self::Bare(name) => [Kind::Http, Kind::Tcp].map(|kind| ServiceId { kind, name: name.clone() }).into(),
            Self::Whole(id) => vec![id.clone()],
            Self::Odd(_) => Vec::new(),
        }
    }
}

impl Run {
    /// What is wrong with its pattern: such a run is left as it stands.
    pub fn wrong(&self) -> Option<&str> {
        self.pattern.as_ref().err().map(String::as_str)
    }

    /// The lines for these servers.
    pub fn filled(&self, servers: &[Server]) -> Vec<u8> {
        let Ok(pattern) = &self.pattern else { return self.standing.clone() };
        let mut lines = if servers.is_empty() { Vec::new() } else { self.lacks.clone() };
        for server in servers {
            lines.extend([self.indent.as_slice(), pattern.line(server).as_bytes(), &self.end].concat());
        }
        lines
    }

    /// The name that an upstream's server bears in this section.
    pub fn name(&self, id: &UpstreamId) -> Option<String> {
        self.pattern.as_ref().ok()?.name(id)
    }
}

impl Template {
    /// Takes a file apart.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut reader = Reader::default();
        for (number, line) in (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n')) {
            reader.line(number, line);
        }
        reader.close();
        reader.pieces.push(Piece::Kept(reader.kept));
        Self { pieces: reader.pieces }
    }

    /// The runs, in the file's order.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.pieces.iter().filter_map(|piece| if let Piece::Run(run) = piece { Some(run) } else { None })
    }

    /// The file with these lines for each run.
    pub fn with(&self, mut lines: impl FnMut(&Run) -> Vec<u8>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Kept(kept) => bytes.extend(kept),
                Piece::Run(run) => bytes.extend(lines(run)),
            }
        }
        bytes
    }

    /// What people wrote: the file without any run.
    pub fn skeleton(&self) -> Vec<u8> {
        self.with(|_| Vec::new())
    }
}

/// What has been read so far.
#[derive(Default)]
struct Reader {
    pieces: Vec<Piece>,
    kept: Vec<u8>,
    /// The run that the next line may belong to.
    run: Option<Run>,
    section: String,
    /// What ends the file's lines.
    end: Vec<u8>,
}

impl Reader {
    fn line(&mut self, number: usize, line: &[u8]) {
        let text = line.trim_ascii();
        if let Some(run) = self.run.as_mut().filter(|_| first_word(text) == b"server") {
            run.standing.extend(line);
            return;
        }
        self.close();
        self.kept.extend(line);
        let lacks = match line {
            [.., b'\r', b'\n'] => self.ends(b"\r\n", b""),
            [.., b'\n'] => self.ends(b"\n", b""),
            [.., b'\r'] => self.ends(b"\r\n", b"\n"),
            _ if self.end.is_empty() => self.ends(b"\n", b"\n"),
            _ => self.end.clone(),
        };
        let text = String::from_utf8_lossy(text);
        if let Some((service, pattern)) = asked(&text) {
            let pattern = match &service {
                Named::Odd(text) => Err(format!("`{text}` is no service: shop, http-services/shop, tcp-services/shop")),
                Named::Bare(_) | Named::Whole(_) => Pattern::parse(pattern),
            };
            let indent = line.iter().copied().take_while(|byte| b" \t".contains(byte)).collect();
            self.run = Some(Run {
                line: number,
                service,
                section: self.section.clone(),
                standing: Vec::new(),
                pattern,
                indent,
                end: self.end.clone(),
                lacks,
            });
        } else if let [kind, rest @ ..] = words(&text).as_slice()
            && SECTIONS.contains(&kind.text.as_str())
        {
            self.section = rest.first().map(|name| name.text.clone()).unwrap_or_default();
        }
    }

    /// Takes note of how lines end here; gives back what is missing.
    fn ends(&mut self, end: &[u8], missing: &[u8]) -> Vec<u8> {
        self.end = end.to_owned();
        missing.to_owned()
    }

    /// Ends the run, if there is one.
    fn close(&mut self) {
        if let Some(run) = self.run.take() {
            self.pieces.extend([Piece::Kept(std::mem::take(&mut self.kept)), Piece::Run(run)]);
        }
    }
}

fn first_word(text: &[u8]) -> &[u8] {
    text.split(u8::is_ascii_whitespace).next().unwrap_or_default()
}

/// The service and the pattern of a comment `# discover SVC: server …`; whatever else people say of discovering is prose.
fn asked(text: &str) -> Option<(Named, &str)> {
    let words = text.strip_prefix('#')?.trim_start().strip_prefix("discover")?;
    let (service, pattern) = words.strip_prefix([' ', '\t'])?.split_once(':')?;
    let pattern = pattern.trim_start();
    (first_word(pattern.as_bytes()) == b"server").then(|| (Named::parse(service.trim()), pattern))
}

#[cfg(test)]
mod tests;
