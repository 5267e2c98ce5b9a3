//! The types of the settings' values.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use crate::{Color, FileName, Host, Refusal, words};

/// An enum whose variants are words: parsed from them, printed as them.
macro_rules! choice {
    ($(#[$doc:meta])* $type:ident, $expected:literal, $($(#[$vdoc:meta])* $variant:ident = $word:literal),*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $type {
            $($(#[$vdoc])* $variant,)*
        }

        impl FromStr for $type {
            type Err = Refusal;

            fn from_str(text: &str) -> Result<Self, Refusal> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(Refusal::new_unexpected(text, $expected)),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self {
                    $(Self::$variant => $word,)*
                })
            }
        }
    };
}

choice! {
    /// How TLS is treated.
    Tls, "both, terminate, off, passthrough or reencrypt",
    /// HTTP and HTTPS, the default.
    Both = "both",
    /// HTTPS; HTTP redirects there.
    Terminate = "terminate",
    /// HTTP only.
    Off = "off",
    /// TLS untouched, chosen by SNI; HTTP redirects to HTTPS.
    Passthrough = "passthrough",
    /// As `terminate`, then TLS to the upstream.
    Reencrypt = "reencrypt"
}

choice! {
    /// How requests are spread over upstreams; all of them take servers at run time.
    Balance, "roundrobin, leastconn, random, source or uri",
    /// In turns, by weight.
    RoundRobin = "roundrobin",
    /// To the upstream with the fewest connections.
    LeastConn = "leastconn",
    /// By chance, the better of two.
    Random = "random",
    /// By the client's address, hashed consistently.
    Source = "source",
    /// By the URI's path, hashed consistently.
    Uri = "uri"
}

choice! {
    /// How a client stays with its upstream.
    Sticky, "off, cookie or source",
    /// Not at all.
    Off = "off",
    /// By a cookie of HAProxy's.
    Cookie = "cookie",
    /// By the client's address.
    Source = "source"
}

choice! {
    /// The PROXY protocol's version towards upstreams.
    ProxyProtocol, "off, v1 or v2",
    /// None.
    Off = "off",
    /// Text.
    V1 = "v1",
    /// Binary.
    V2 = "v2"
}

choice! {
    /// The HTTP version towards upstreams.
    Proto, "h1 or h2",
    /// HTTP/1.1.
    H1 = "h1",
    /// HTTP/2, in the clear with prior knowledge.
    H2 = "h2"
}

choice! {
    /// A method that a check may use.
    Method, "GET, HEAD or OPTIONS",
    /// `GET`
    Get = "GET",
    /// `HEAD`
    Head = "HEAD",
    /// `OPTIONS`
    Options = "OPTIONS"
}

/// How HAProxy checks an upstream: `tcp`, `off`, or `http [METHOD] /path [STATUS]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// A connection is accepted.
    Tcp,
    /// Not at all.
    Off,
    /// A request is answered as expected.
    Http(HttpCheck),
}

/// A check by HTTP request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    /// The method; `GET` unless said.
    pub method: Method,
    /// The path, with a query if there is one.
    pub target: Box<str>,
    /// The statuses that pass; 200–399 unless said.
    pub status: StatusRange,
}

/// HTTP statuses from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRange {
    first: u16,
    last: u16,
}

impl FromStr for Check {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let expected = "tcp, off or http [METHOD] /path [STATUS]";
        let mut words = text.split_whitespace().peekable();
        let check = match words.next() {
            Some("tcp") => Self::Tcp,
            Some("off") => Self::Off,
            Some("http") => {
                let method = match words.next_if(|word| !word.starts_with('/')) {
                    Some(word) => word.parse()?,
                    None => Method::Get,
                };
                let target = words.next().ok_or_else(|| Refusal::new_unexpected(text, expected))?;
                let status = words.next().map_or(Ok(StatusRange::default()), str::parse)?;
                Self::Http(HttpCheck { method, target: check_target(target)?, status })
            }
            _ => return Err(Refusal::new_unexpected(text, expected)),
        };
        if words.next().is_some() { Err(Refusal::new_unexpected(text, expected)) } else { Ok(check) }
    }
}

fn check_target(text: &str) -> Result<Box<str>, Refusal> {
    let fine = text.starts_with('/')
        && text.len() <= 256
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~!&()*+,=:@?".contains(&b));
    // `%` would begin a format and `$` a variable in the line that holds it.
    let rule = "a check's path begins with `/`, at most 256 bytes, no blank, quote, `#`, `;`, `%`, `$` or `\\`";
    if fine { Ok(text.into()) } else { Err(Refusal::new_malformed(text, rule)) }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Off => f.write_str("off"),
            Self::Http(HttpCheck { method, target, status }) => write!(f, "http {method} {target} {status}"),
        }
    }
}

impl StatusRange {
    /// Whether a status is one of them.
    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

/// What passes unless said otherwise, as in HAProxy: success and redirections.
impl Default for StatusRange {
    fn default() -> Self {
        Self { first: 200, last: 399 }
    }
}

impl FromStr for StatusRange {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let status = |digits: &str| digits.parse::<u16>().ok().filter(|s| digits.len() == 3 && (100..=599).contains(s));
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (status(first), status(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(Refusal::new_unexpected(text, "a status or a range: 200, 200-299")),
        }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

/// `Strict-Transport-Security`: `off`, or how long (`180d`), then `include-subdomains` and `preload` if wished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hsts {
    /// `max-age` in seconds; 0 makes browsers forget, and is what `off` stands for.
    pub max_age: u64,
    /// Subdomains as well.
    pub include_subdomains: bool,
    /// The operator agrees to the browsers' preload lists.
    pub preload: bool,
}

impl FromStr for Hsts {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let expected = "off, or a max-age in seconds or days (31536000, 180d), then include-subdomains, preload";
        let refused = || Refusal::new_unexpected(text, expected);
        let mut words = words::split_words(text);
        let max_age = match words.next().ok_or_else(refused)? {
            "off" => 0,
            age => match age.strip_suffix('d') {
                Some(days) => u64::from(days.parse::<u32>().map_err(|_| refused())?) * 86_400,
                None => age.parse::<u32>().map_err(|_| refused())?.into(),
            },
        };
        let mut hsts = Self { max_age, include_subdomains: false, preload: false };
        for word in words {
            match word {
                "include-subdomains" | "includeSubDomains" => hsts.include_subdomains = true,
                "preload" => hsts.preload = true,
                _ => return Err(refused()),
            }
        }
        Ok(hsts)
    }
}

impl fmt::Display for Hsts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |set: bool, word: &'static str| if set { word } else { "" };
        let (subdomains, preload) =
            (flag(self.include_subdomains, " include-subdomains"), flag(self.preload, " preload"));
        write!(f, "{}{subdomains}{preload}", self.max_age)
    }
}

/// How an upstream's certificate is verified: `on` (the system's authorities), `off`, or a file's name in `--ca-dir`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Against the system's authorities.
    On,
    /// Not at all.
    Off,
    /// Against the authorities in this file of `--ca-dir`.
    CaFile(FileName),
}

impl FromStr for Verify {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        match text {
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            // A file's name follows the rule of all names: no `/`, no leading dot.
            name => name.parse().map(Self::CaFile),
        }
    }
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::On => "on",
            Self::Off => "off",
            Self::CaFile(name) => name.as_str(),
        })
    }
}

/// The server name sent to an upstream: `host` (the request's host), `off`, or one fixed name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sni {
    /// The request's host.
    RequestHost,
    /// None.
    Off,
    /// This name.
    Fixed(Host),
}

impl FromStr for Sni {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        match text {
            "host" => Ok(Self::RequestHost),
            "off" => Ok(Self::Off),
            name => name.parse().map(Self::Fixed),
        }
    }
}

impl fmt::Display for Sni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::RequestHost => "host",
            Self::Off => "off",
            Self::Fixed(host) => host.as_str(),
        })
    }
}

/// The active colors with their shares: `blue`, or `blue=90 green=10`. A share is the color's, not its upstreams'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Active(Vec<(Color, u32)>);

impl Active {
    /// Shares are parts of a whole; finer than a ten-thousandth can't be told apart in 256 weights.
    const LARGEST_SHARE: u32 = 10_000;

    /// The color's share, if it is active.
    pub fn share_of(&self, color: &Color) -> Option<u32> {
        self.0.iter().find(|(name, _)| name == color).map(|(_, share)| *share)
    }

    /// Every active color with its share, in the order they were written.
    pub fn iter(&self) -> impl Iterator<Item = (&Color, u32)> {
        self.0.iter().map(|(color, share)| (color, *share))
    }
}

impl FromStr for Active {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let mut shares: Vec<(Color, u32)> = Vec::new();
        for word in words::split_words(text) {
            let refused = || Refusal::new_unexpected(word, "a color, or color=share with a share from 1 to 10000");
            let (color, share) = match word.split_once('=') {
                Some((color, share)) => (color, share.parse().map_err(|_| refused())?),
                None => (word, 1),
            };
            if !(1..=Self::LARGEST_SHARE).contains(&share) {
                return Err(refused());
            }
            let color: Color = color.parse()?;
            match shares.iter().find(|(name, _)| *name == color) {
                None => shares.push((color, share)),
                // The same said twice is said once.
                Some((_, other)) if *other == share => {}
                Some(_) => return Err(Refusal::Contradiction(crate::Excerpt::new(word))),
            }
        }
        // One color alone has the whole, whatever its number.
        if let [(_, share)] = shares.as_mut_slice() {
            *share = 1;
        }
        if shares.is_empty() { Err(Refusal::Empty) } else { Ok(Self(shares)) }
    }
}

impl fmt::Display for Active {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [(color, _)] => color.fmt(f),
            shares => {
                for (i, (color, share)) in shares.iter().enumerate() {
                    write!(f, "{}{color}={share}", if i == 0 { "" } else { " " })?;
                }
                Ok(())
            }
        }
    }
}

/// HAProxy keeps counters of this size per server; a million connections to one upstream is beyond any host.
pub(super) fn parse_maxconn(text: &str) -> Result<NonZeroU32, Refusal> {
    let number = text.parse::<NonZeroU32>().ok().filter(|n| n.get() <= 1_000_000);
    number.ok_or_else(|| Refusal::new_unexpected(text, "a number from 1 to 1000000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks() {
        for (written, read) in [
            ("tcp", "tcp"),
            ("off", "off"),
            ("http /health", "http GET /health 200-399"),
            ("http HEAD /h?x=1 204", "http HEAD /h?x=1 204"),
        ] {
            assert_eq!(written.parse::<Check>().unwrap().to_string(), read);
        }
        for bad in [
            "",
            "http",
            "http health",
            "http POST /x",
            "http /x 99",
            "http /x 300-200",
            "http /a b c",
            "tcp 1",
            "http /%a",
        ] {
            assert!(bad.parse::<Check>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn active_colors() {
        assert_eq!("blue".parse::<Active>().unwrap().to_string(), "blue");
        assert_eq!("blue=90,green=10".parse::<Active>().unwrap().to_string(), "blue=90 green=10");
        for bad in ["", "blue=0", "blue=x", "blue=2 blue=3", "bl ue=1 =2", "blue=10001"] {
            assert!(bad.parse::<Active>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn hsts() {
        let read = "180d include-subdomains preload".parse::<Hsts>().unwrap();
        assert_eq!(read, Hsts { max_age: 15_552_000, include_subdomains: true, preload: true });
        assert_eq!("off".parse::<Hsts>().unwrap().max_age, 0);
        assert!("180d; x".parse::<Hsts>().is_err());
    }
}
