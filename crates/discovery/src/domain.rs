//! Host names as a service claims them and as routing compares them: lower case, no trailing dot.
//!
//! Nothing here resolves a name. Pure: no I/O, no clock.

use std::fmt;
use std::str::FromStr;

use crate::Refusal;

const RULE: &str =
    "a host name is labels of letters, digits, `-` and `_` between dots, each at most 63 long, 253 in all";

/// One exact host name: `shop.example.com`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(Box<str>);

impl Host {
    /// The name in lower case, without a trailing dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        // RFC 1123 allows no `_`, but HAProxy routes such a host like any other.
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl FromStr for Host {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        // `shop.test.` is the same host, and the generated file removes the dot from requests too.
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.len() <= 253 && name.split('.').all(is_label) {
            Ok(Self(name.to_ascii_lowercase().into()))
        } else {
            Err(Refusal::new_malformed(text, explain_fault(text, "one host is meant here, no wildcard")))
        }
    }
}

/// The reason why a text is no host name, with a form that is one. `wildcard` is the reason for a `*`.
fn explain_fault(text: &str, wildcard: &'static str) -> &'static str {
    // The order matters: `https://[::1]:80/` has a scheme, a bracket, several colons and a path. The first match is the
    // part to remove first.
    if text.contains(['"', '\'', '`', '\u{201c}', '\u{201d}']) {
        "write it without quotes"
    } else if text.starts_with("https://") {
        "leave `https://` out: a host is a name alone, and `tls` says how it is served"
    } else if text.contains("://") {
        "leave the scheme out: a host is a name alone"
    } else if text.starts_with('[') || text.matches(':').count() > 1 {
        "an IPv6 address is no host name"
    } else if text.contains([';', '|']) {
        "separate hosts by blanks or commas"
    } else if text.contains(['/', '\\', '?', '#']) {
        "leave the path out: a host is a name alone, and paths belong into the key `path`"
    } else if text.contains('@') {
        "leave the user out: a host is a name alone"
    } else if text.contains(':') {
        "leave the port out: a host is served on every web port"
    } else if text.contains('*') {
        wildcard
    } else if !text.is_ascii() {
        "a host name has ASCII letters only: write others as punycode, `xn--…`, and look for characters that don't show"
    } else if text.starts_with('.') || text.ends_with('.') || text.contains("..") {
        "a dot has a label on each side"
    } else if text.split('.').any(|label| label.starts_with('-') || label.ends_with('-')) {
        "no label begins or ends with `-`"
    } else {
        RULE
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A word of the setting `domain`: one host, or all hosts with exactly one more label in front (`*.example.com`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Domain {
    /// This host only, none below it.
    Exact(Host),
    /// Every host one label below this one, which itself is not included.
    Wildcard(Host),
}

impl FromStr for Domain {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        const RULE: &str = "`*` is the whole first label of a name, `*.example.com`, and stands for one label; what no \
                            service names goes to the service `default`";
        let parent = text.strip_prefix("*.");
        let host = parent.unwrap_or(text).parse();
        let host = host.map_err(|_| {
            let rule = if text == "*." { RULE } else { explain_fault(parent.unwrap_or(text), RULE) };
            Refusal::new_malformed(text, rule)
        })?;
        Ok(if parent.is_some() { Self::Wildcard(host) } else { Self::Exact(host) })
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => host.fmt(f),
            Self::Wildcard(parent) => write!(f, "*.{parent}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_normalised() {
        assert_eq!("Shop.Example.COM.".parse::<Domain>().unwrap().to_string(), "shop.example.com");
        assert_eq!("*.Example.com".parse::<Domain>().unwrap().to_string(), "*.example.com");
        assert_eq!("localhost".parse::<Domain>().unwrap().to_string(), "localhost");
    }

    #[test]
    fn a_refusal_says_what_to_write_instead() {
        for (bad, told) in [
            ("https://shop.test/", "leave `https://` out"),
            ("ftp://shop.test", "leave the scheme out"),
            ("shop.test:8080", "leave the port out"),
            ("*.shop.test:443", "leave the port out"),
            ("shop.test/api", "paths belong into the key `path`"),
            ("shop.test?a", "leave the path out"),
            ("me@shop.test", "leave the user out"),
            ("\"shop.test\"", "without quotes"),
            ("'shop.test", "without quotes"),
            ("shop.test;", "by blanks or commas"),
            ("[::1]", "an IPv6 address"),
            ("fd00::1", "an IPv6 address"),
            ("*", "the service `default`"),
            ("*.", "`*` is the whole first label"),
            ("*.*.test", "`*` is the whole first label"),
            ("shop.*.test", "`*` is the whole first label"),
            ("*shop.test", "`*` is the whole first label"),
            ("b\u{fc}cher.test", "punycode"),
            ("\u{feff}shop.test", "characters that don't show"),
            ("shop..test", "a dot has a label on each side"),
            ("shop.test..", "a dot has a label on each side"),
            ("-shop.test", "begins or ends with `-`"),
            ("shop%.test", "labels of letters, digits, `-` and `_`"),
        ] {
            let refusal = bad.parse::<Domain>().unwrap_err().to_string();
            assert!(refusal.contains(told), "{refusal}");
        }
        assert_eq!("my_shop.test".parse::<Domain>().unwrap().to_string(), "my_shop.test", "underscores are fine");
        let refusal = "*.shop.test".parse::<Host>().unwrap_err().to_string();
        assert!(refusal.ends_with("no wildcard"), "{refusal}");
    }

    #[test]
    fn a_text_that_is_no_host_is_refused() {
        for bad in
            ["", ".", "*", "*.", "a..b", "-a.com", "a-.com", "a b", "a.com:80", "a.com/", "*.*.com", "x*.com", "ä.de"]
        {
            assert!(bad.parse::<Domain>().is_err(), "{bad:?}");
        }
    }
}
