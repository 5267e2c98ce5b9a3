//! The version of a HAProxy. Pure.

use std::fmt;
use std::str::FromStr;

/// A release of HAProxy, ordered. A development version counts as its release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The major number: 2 in `2.6.12`.
    pub major: u16,
    /// The minor number: 6 in `2.6.12`.
    pub minor: u16,
    /// The patch number: 12 in `2.6.12`.
    pub patch: u16,
}

/// The knowledge of a release: how far the generated file and the parsed answers are known to suit it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// A release before 2.6, the oldest that the tests run on.
    TooOld,
    /// A release from 2.6 to 3.4. The tests run on 2.6, 3.0, 3.2 and 3.4, the ones with long-term support that Debian has.
    Known,
    /// A release after those. confgen treats it like the newest known one.
    Newer,
}

/// The error of a text that holds no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no version of HAProxy, such as 2.6.12")]
pub struct NoVersion(String);

impl Version {
    /// Makes a version of its numbers.
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch }
    }

    /// The knowledge of this release.
    pub fn support(self) -> Support {
        let release = (self.major, self.minor);
        if release < (2, 6) {
            Support::TooOld
        } else if release <= (3, 4) {
            Support::Known
        } else {
            Support::Newer
        }
    }

    /// True if the release can add and delete backends while it runs: `add backend`, without its experimental mode.
    pub fn adds_backends(self) -> bool {
        (self.major, self.minor) >= (3, 4)
    }

    /// Finds the version in the output of `haproxy -v`: `HAProxy version 2.6.12-1+deb12u2 2025/…`.
    ///
    /// # Errors
    /// If no line names a version.
    pub fn from_banner(banner: &str) -> Result<Self, NoVersion> {
        // Until 2.3 the banner began with `HA-Proxy version`.
        banner
            .lines()
            .find_map(|line| line.strip_prefix("HAProxy version ").or_else(|| line.strip_prefix("HA-Proxy version ")))
            .and_then(|rest| rest.split_whitespace().next())
            .ok_or_else(|| NoVersion(banner.chars().take(200).collect()))?
            .parse()
    }
}

impl FromStr for Version {
    type Err = NoVersion;

    /// Parses `2.6.12`, `2.6.12-1+deb12u2`, `3.4-dev5-1234`.
    fn from_str(text: &str) -> Result<Self, NoVersion> {
        let number = text.split(|c: char| c != '.' && !c.is_ascii_digit()).next().unwrap_or_default();
        let mut parts = number.split('.').map(str::parse);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch))) => Ok(Self { major, minor, patch }),
            (Some(Ok(major)), Some(Ok(minor)), None) => Ok(Self { major, minor, patch: 0 }),
            _ => Err(NoVersion(text.to_owned())),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_haproxy_prints() {
        let debian = "HAProxy version 2.6.12-1+deb12u2 2025/04/29 - https://haproxy.org/\nStatus: long-term";
        assert_eq!(Version::from_banner(debian), Ok(Version::new(2, 6, 12)));
        assert_eq!(
            Version::from_banner("[WARNING] x\nHAProxy version 3.4-dev5-1f2a 2026/01/01"),
            Ok(Version::new(3, 4, 0))
        );
        assert!(Version::from_banner("nginx version: 1.2.3").is_err());
        assert!("2".parse::<Version>().is_err());
        assert!("2.6.999999".parse::<Version>().is_err());
    }

    #[test]
    fn knows_what_it_was_tested_with() {
        let support = |text: &str| text.parse::<Version>().map(Version::support);
        for (text, wanted) in [
            ("2.4.22", Support::TooOld),
            ("2.6.0", Support::Known),
            ("2.10.0", Support::Known),
            ("3.0.11-1+deb13u3", Support::Known),
            ("3.2.26", Support::Known),
            ("3.4.7-1", Support::Known),
            ("3.5-dev1", Support::Newer),
            ("4.0.0", Support::Newer),
        ] {
            assert_eq!(support(text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn backends_are_added_from_3_4_on() {
        let adds = |text: &str| text.parse::<Version>().map(Version::adds_backends);
        for (text, wanted) in
            [("2.6.12", false), ("3.2.26", false), ("3.3.1", false), ("3.4-dev5", true), ("4.0.0", true)]
        {
            assert_eq!(adds(text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn orders_by_number() {
        assert!(Version::new(2, 6, 12) < Version::new(3, 0, 0));
        assert!(Version::new(2, 10, 0) > Version::new(2, 6, 12));
    }
}
