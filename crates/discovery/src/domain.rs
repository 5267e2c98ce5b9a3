//! Host names as a service claims them and as routing looks them up: lower case, no trailing dot.

use std::fmt;
use std::str::FromStr;

use crate::Refusal;

const RULE: &str = "a host name is labels of letters, digits, `-` and `_` between dots, each at most 63 long, 253 in all \
                    (write other letters as punycode)";

/// One exact host name: `shop.example.com`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(Box<str>);

impl Host {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl FromStr for Host {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.len() <= 253 && name.split('.').all(is_label) {
            Ok(Self(name.to_ascii_lowercase().into()))
        } else {
            Err(Refusal::malformed(text, RULE))
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a service answers for: one host, or all hosts with exactly one more label in front (`*.example.com`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Domain {
    /// This host alone.
    Exact(Host),
    /// Every host one label below this one.
    Wildcard(Host),
}

impl FromStr for Domain {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        match text.strip_prefix("*.") {
            Some(parent) => parent.parse().map(Self::Wildcard),
            None => text.parse().map(Self::Exact),
        }
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
    fn what_is_no_host_is_refused() {
        for bad in
            ["", ".", "*", "*.", "a..b", "-a.com", "a-.com", "a b", "a.com:80", "a.com/", "*.*.com", "x*.com", "ä.de"]
        {
            assert!(bad.parse::<Domain>().is_err(), "{bad:?}");
        }
    }
}
