//! The types of the settings' values.
//!
//! None of them can hold a line break, a quote, a blank, `#` or `;`, and each prints as text that it reads. Pure: no I/O,
//! no clock.

mod choices;

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use crate::{Color, FileName, Host, Refusal, words};
pub use choices::{Balance, Method, Proto, ProxyProtocol, Sticky, Tls};

/// HAProxy's check of an upstream: `tcp`, `off`, or `http [METHOD] /path [STATUS]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// The upstream passes if it accepts a connection.
    Tcp,
    /// HAProxy checks nothing, and takes every upstream for up.
    Off,
    /// The upstream passes if it answers a request as expected.
    Http(HttpCheck),
}

/// A check by HTTP request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    /// The request's method, `GET` by default.
    pub method: Method,
    /// The path, with a query if there is one.
    pub target: Box<str>,
    /// The statuses that pass, 200–399 by default.
    pub status: StatusRange,
}

/// HTTP statuses from the first to the last, both included.
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
    // `%` would begin a format and `$` a variable in the line that holds the target.
    let is_valid = text.starts_with('/')
        && text.len() <= 256
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~!&()*+,=:@?".contains(&b));
    let rule = "a check's path begins with `/`, at most 256 bytes, no blank, quote, `#`, `;`, `%`, `$` or `\\`";
    if is_valid { Ok(text.into()) } else { Err(Refusal::new_malformed(text, rule)) }
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
    /// True if a check passes with this status.
    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

/// HAProxy's own default: success and redirections.
impl Default for StatusRange {
    fn default() -> Self {
        Self { first: 200, last: 399 }
    }
}

/// Parses three digits from 100 to 599. `u16` would also parse `+99` and `0200`.
fn parse_status(digits: &str) -> Option<u16> {
    digits.parse().ok().filter(|status| digits.len() == 3 && (100..=599).contains(status))
}

impl FromStr for StatusRange {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (parse_status(first), parse_status(last)) {
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

/// `Strict-Transport-Security`: `off`, or a time (`180d`), then optionally `include-subdomains` and `preload`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hsts {
    /// `max-age` in seconds. `off` is 0, which makes browsers forget an earlier header.
    pub max_age: u64,
    /// True if the header holds for subdomains too.
    pub include_subdomains: bool,
    /// True if the operator agrees to the browsers' preload lists.
    pub preload: bool,
}

impl Hsts {
    /// Parses a `max-age` in seconds, or in days with a `d`. 32 bits, so that the days can't overflow.
    fn parse_max_age(word: &str) -> Option<u64> {
        if word == "off" {
            return Some(0);
        }
        match word.strip_suffix('d') {
            Some(days) => Some(u64::from(days.parse::<u32>().ok()?) * 86_400),
            None => word.parse::<u32>().ok().map(u64::from),
        }
    }

    fn from_words(text: &str) -> Option<Self> {
        let mut words = words::split_words(text);
        let max_age = Self::parse_max_age(words.next()?)?;
        let mut hsts = Self { max_age, include_subdomains: false, preload: false };
        for word in words {
            match word {
                // The second spelling is the header's own (RFC 6797).
                "include-subdomains" | "includeSubDomains" => hsts.include_subdomains = true,
                "preload" => hsts.preload = true,
                _ => return None,
            }
        }
        Some(hsts)
    }
}

impl FromStr for Hsts {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let expected = "off, or a max-age in seconds or days (31536000, 180d), then include-subdomains, preload";
        Self::from_words(text).ok_or_else(|| Refusal::new_unexpected(text, expected))
    }
}

impl fmt::Display for Hsts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subdomains = if self.include_subdomains { " include-subdomains" } else { "" };
        let preload = if self.preload { " preload" } else { "" };
        write!(f, "{}{subdomains}{preload}", self.max_age)
    }
}

/// The verification of an upstream's certificate: `on`, `off`, or the name of a file in `--ca-dir`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Against the system's authorities.
    On,
    /// HAProxy accepts every certificate.
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

/// The server name (SNI) that HAProxy sends to an upstream: `host`, `off`, or one fixed name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sni {
    /// The host of the client's request.
    RequestHost,
    /// HAProxy sends none.
    Off,
    /// One name for all requests.
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

/// The active colors with their shares: `blue`, or `blue=90 green=10`. A share belongs to the color as a whole, and its
/// upstreams divide it by their weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Active(Vec<(Color, u32)>);

impl Active {
    /// Shares are parts of a whole. Finer than a ten-thousandth can't be told apart in 256 weights.
    const LARGEST_SHARE: u32 = 10_000;

    /// The color's share. `None` if the color is not active.
    pub fn share_of(&self, color: &Color) -> Option<u32> {
        self.0.iter().find(|(name, _)| name == color).map(|(_, share)| *share)
    }

    /// Every active color with its share, in the order they were written.
    pub fn iter(&self) -> impl Iterator<Item = (&Color, u32)> {
        self.0.iter().map(|(color, share)| (color, *share))
    }

    /// Splits `blue=90` into a color's name and its share. `blue` has the share 1.
    fn split_share(word: &str) -> Result<(&str, u32), Refusal> {
        let (color, share) = match word.split_once('=') {
            Some((color, share)) => (color, share.parse().ok()),
            None => (word, Some(1)),
        };
        let share = share.filter(|share| (1..=Self::LARGEST_SHARE).contains(share));
        let refusal = || Refusal::new_unexpected(word, "a color, or color=share with a share from 1 to 10000");
        Ok((color, share.ok_or_else(refusal)?))
    }
}

impl FromStr for Active {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let mut shares: Vec<(Color, u32)> = Vec::new();
        for word in words::split_words(text) {
            let (color, share) = Self::split_share(word)?;
            let color: Color = color.parse()?;
            match shares.iter().find(|(name, _)| *name == color) {
                None => shares.push((color, share)),
                // The same word twice counts once, as in every list.
                Some((_, other)) if *other == share => {}
                Some(_) => return Err(Refusal::Contradiction(crate::Excerpt::new(word))),
            }
        }
        // The only color has the whole. One spelling of it keeps an unchanged meaning an unchanged value.
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

/// Parses 1 to 1,000,000. HAProxy keeps counters of this size per server, and more connections to one upstream are beyond
/// any host.
pub(super) fn parse_maxconn(text: &str) -> Result<NonZeroU32, Refusal> {
    let number = text.parse::<NonZeroU32>().ok().filter(|n| n.get() <= 1_000_000);
    number.ok_or_else(|| Refusal::new_unexpected(text, "a number from 1 to 1000000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_reads_and_prints() {
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
    fn active_colors_read_and_print() {
        assert_eq!("blue".parse::<Active>().unwrap().to_string(), "blue");
        assert_eq!("blue=90,green=10".parse::<Active>().unwrap().to_string(), "blue=90 green=10");
        for bad in ["", "blue=0", "blue=x", "blue=2 blue=3", "bl ue=1 =2", "blue=10001"] {
            assert!(bad.parse::<Active>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn hsts_reads_days_and_flags() {
        let read = "180d include-subdomains preload".parse::<Hsts>().unwrap();
        assert_eq!(read, Hsts { max_age: 15_552_000, include_subdomains: true, preload: true });
        assert_eq!("off".parse::<Hsts>().unwrap().max_age, 0);
        assert!("180d; x".parse::<Hsts>().is_err());
    }
}
