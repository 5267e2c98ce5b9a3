//! Names: `[A-Za-z0-9][A-Za-z0-9_.-]{0,252}`, which HAProxy takes as they are in section, server and map names. A host's name may
//! have `:` too, and never gets to HAProxy.
//!
//! Each kind of name is a type of its own, so that none stands in for another. Pure: no I/O, no clock.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Refusal;

/// In bytes, all of them ASCII.
const LONGEST: usize = 253;
const RULE: &str = "a name is a letter or digit, then letters, digits, `_`, `.`, `-`, at most 253 in all";

fn check_name(text: &str) -> Result<(), Refusal> {
    // A leading `.` would make `..` a name, and a file's name one that leads out of its directory. A leading `-` would
    // make an option.
    let is_first_valid = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    let is_rest_valid = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if is_first_valid && is_rest_valid && text.len() <= LONGEST {
        Ok(())
    } else {
        Err(Refusal::new_malformed(text, explain_fault(text)))
    }
}

/// The reason why a text is no name, with a form that is one.
fn explain_fault(text: &str) -> &'static str {
    if text.is_empty() {
        "a name has a letter or digit at least"
    } else if text.contains(':') {
        // registrator's ids are `host:container:port` (docs/migrate.md).
        "a name has no `:`: write `-` instead, as in `host-web-8000`"
    } else if text.contains('/') {
        "a name has no `/`: write `-` instead"
    } else if text.len() > LONGEST {
        "a name has at most 253 letters, digits, `_`, `.` and `-`"
    } else {
        RULE
    }
}

const HOST_RULE: &str =
    "the name of a host is a letter or digit, then letters, digits, `_`, `.`, `-`, `:`, at most 253 in all";

/// Checks a host's name. An address is one too, so that a host without another name can be named.
fn check_host_name(text: &str) -> Result<(), Refusal> {
    check_name(&text.replace(':', "-")).map_err(|_| Refusal::new_malformed(text, HOST_RULE))
}

// A name is shared, not copied: confgen has each upstream's in five places, and copies all services' with each change.
macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => { name!($(#[$doc])* $type, check_name); };
    ($(#[$doc:meta])* $type:ident, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as it stands in a key and in haproxy.cfg.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The text, shared with this name.
            pub fn shared(&self) -> Arc<str> {
                Arc::clone(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = Refusal;

            fn from_str(text: &str) -> Result<Self, Refusal> {
                $check(text).map(|()| Self(text.into()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = Refusal;

            fn try_from(text: String) -> Result<Self, Refusal> {
                $check(&text).map(|()| Self(text.into()))
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.as_str().to_owned()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name! {
    /// A service's name, the `<svc>` of its keys.
    ServiceName
}
name! {
    /// An upstream's name within its service. HAProxy's server has the same name.
    UpstreamId
}
name! {
    /// The name of one deployment of a service, such as `blue`.
    Color
}
name! {
    /// The name of a `defaults` section in the operator's files.
    Profile
}
name! {
    /// The name of a file in one of the operator's directories. It has no `/`, so it can't lead out of the directory.
    FileName
}
name! {
    /// The name of a host that upstreams run on, as its operator calls it: `web-1`, `web-1.example.com`, `fd00::7`.
    HostName, check_host_name
}
name! {
    /// A balancer's name, the `<node>` of its record's key.
    Node
}
name! {
    /// The name of an entry of the change log, `20261130T101306.123Z-1f9c03ab`. Entries sort by the time of their write.
    LogName
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_write_instead() {
        for (bad, told) in [
            ("host:web-1:8000", "`host:web-1:8000`: a name has no `:`: write `-` instead"),
            ("a/b", "no `/`"),
            ("", "a letter or digit at least"),
            (&"a".repeat(254), "at most 253"),
            ("my shop", RULE),
            ("_x", RULE),
        ] {
            let refusal = bad.parse::<UpstreamId>().unwrap_err().to_string();
            assert!(refusal.contains(told), "{refusal}");
        }
    }

    #[test]
    fn a_hosts_name_may_be_an_address() {
        for good in ["web-1", "web1.example.com", "10.0.0.7", "fd00::7"] {
            assert_eq!(good.parse::<HostName>().unwrap().as_str(), good);
        }
        for bad in ["", "::1", "-a", "a b", "a\nb", "a;b", "a#b", "a\"", "a/b", "[fd00::7]", "fe80::1%eth0", "ä"] {
            let refusal = bad.parse::<HostName>().unwrap_err().to_string();
            assert!(refusal.contains("the name of a host") && !refusal.contains('\n'), "{refusal}");
        }
        assert!("a".repeat(254).parse::<HostName>().is_err());
    }

    #[test]
    fn names_keep_to_the_alphabet() {
        for good in ["a", "0", "shop", "foo.a.com", "node-1_x", &"a".repeat(253)] {
            assert_eq!(good.parse::<ServiceName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".a", "_a", "a b", "a\nb", "a;b", "a#b", "a\"", "a'", "a/b", "a:b", "ä", &"a".repeat(254)]
        {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad:?}");
        }
    }
}
