//! Path prefixes, matched at `/` boundaries.
//!
//! It decodes nothing: HAProxy compares a prefix with the path as the client wrote it. Pure: no I/O, no clock.

use std::fmt;
use std::str::FromStr;

use crate::Refusal;

/// Longer prefixes than any router needs would only bloat the maps. In bytes.
const LONGEST: usize = 512;
const RULE: &str =
    "a path begins with `/`, has no `.` or `..` segment, no blank, quote, `?`, `#`, `;` or `\\`, and at most 512 bytes";

/// A path prefix without a trailing `/`. The empty one stands for all paths and prints as `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathPrefix(Box<str>);

impl PathPrefix {
    /// The prefix of every path, which a service without `path` has.
    pub fn root() -> Self {
        Self("".into())
    }

    /// The prefix with the `/` that ends it, as a map of prefixes holds it: `/api/`, `/`.
    pub fn with_boundary(&self) -> String {
        format!("{}/", self.0)
    }
}

fn is_path_byte(byte: u8) -> bool {
    // RFC 3986 section 3.3 less the characters that a line of haproxy.cfg or a command gives a meaning.
    byte.is_ascii_alphanumeric() || b"/-._~%!$&()*+=:@".contains(&byte)
}

impl FromStr for PathPrefix {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let prefix = text.trim_end_matches('/');
        let is_valid = text.starts_with('/')
            && text.len() <= LONGEST
            && prefix.bytes().all(is_path_byte)
            // Clients resolve both before they send a request (RFC 3986, section 5.2.4), so such a prefix would match none.
            && !prefix.split('/').any(|segment| segment == "." || segment == "..")
            && !prefix.contains("//");
        if is_valid { Ok(Self(prefix.into())) } else { Err(Refusal::new_malformed(text, RULE)) }
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(if self.0.is_empty() { "/" } else { &self.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_at_a_boundary() {
        for (written, read, bounded) in
            [("/", "/", "/"), ("/api", "/api", "/api/"), ("/api/v1/", "/api/v1", "/api/v1/")]
        {
            let prefix: PathPrefix = written.parse().unwrap();
            assert_eq!((prefix.to_string().as_str(), prefix.with_boundary().as_str()), (read, bounded));
        }
        for bad in ["", "api", "/a b", "/a;b", "/a#b", "/a'b", "/a?b", "/../a", "/a/.", "/a//b", "/a\nb", "/ä"] {
            assert!(bad.parse::<PathPrefix>().is_err(), "{bad:?}");
        }
    }
}
