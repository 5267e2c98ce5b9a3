//! What can be set for a service: one key each, one type each.
//!
//! To add one: a variant of [`SettingName`] and of [`Setting`], a line in the table of each, and a type that parses.

mod values;

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

pub use values::{
    Active, Balance, Check, Hsts, HttpCheck, Method, Proto, ProxyProtocol, Sni, StatusRange, Sticky, Tls, Verify,
};

use crate::{Bind, Domain, Kind, Networks, PathPrefix, Profile, Refusal, Span, UrlRegex, words};

/// The longest text of a setting; a list of some five hundred host names.
const LONGEST: usize = 16 * 1024;

macro_rules! settings {
    ($($(#[$doc:meta])* $variant:ident($type:ty) = $word:literal, $kinds:ident, $parse:expr, $print:expr;)*) => {
        /// The name of a setting, the last part of its key.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum SettingName {
            $($(#[$doc])* $variant,)*
        }

        impl SettingName {
            /// Every name, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name as it stands in a key.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }

            /// The kinds of services that have it.
            pub fn kinds(self) -> &'static [Kind] {
                match self {
                    $(Self::$variant => $kinds,)*
                }
            }

            fn parse(self, text: &str) -> Result<Setting, Refusal> {
                match self {
                    $(Self::$variant => {
                        let parse: fn(&str) -> Result<$type, Refusal> = $parse;
                        parse(text).map(Setting::$variant)
                    })*
                }
            }
        }

        /// A setting's value.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Setting {
            $($(#[$doc])* $variant($type),)*
        }

        impl Setting {
            /// Which setting this is the value of.
            pub fn name(&self) -> SettingName {
                match self {
                    $(Self::$variant(_) => SettingName::$variant,)*
                }
            }
        }

        /// The value as a person would write it.
        impl fmt::Display for Setting {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text = match self {
                    $(Self::$variant(value) => {
                        let print: fn(&$type) -> String = $print;
                        print(value)
                    })*
                };
                f.pad(&text)
            }
        }
    };
}

const HTTP: &[Kind] = &[Kind::Http];
const TCP: &[Kind] = &[Kind::Tcp];
const BOTH: &[Kind] = &[Kind::Http, Kind::Tcp];

settings! {
    /// The hosts the service answers for; at least one, the first names it to people.
    Domain(Vec<Domain>) = "domain", HTTP, words::list, |list| words::join(list);
    /// The path prefixes it answers for; unset is all paths.
    Path(Vec<PathPrefix>) = "path", HTTP, words::list, |list| words::join(list);
    /// The old layout's expression on the URL.
    UrlReg(UrlRegex) = "url_reg", HTTP, str::parse, ToString::to_string;
    /// What a TCP service binds.
    Ports(Vec<Bind>) = "ports", TCP, words::list, |list| words::join(list);
    /// How TLS is treated.
    Tls(Tls) = "tls", BOTH, str::parse, ToString::to_string;
    /// The old layout's way to say pass-through: the key's existence, whatever its value.
    Sslpass(()) = "sslpass", HTTP, |_| Ok(()), |()| String::new();
    /// How requests are spread.
    Balance(Balance) = "balance", BOTH, str::parse, ToString::to_string;
    /// How HAProxy checks an upstream.
    Check(Check) = "check", BOTH, str::parse, ToString::to_string;
    /// How a client stays with its upstream.
    Sticky(Sticky) = "sticky", BOTH, str::parse, ToString::to_string;
    /// The client networks that may come in; unset is everybody.
    Allow(Networks) = "allow", BOTH, str::parse, ToString::to_string;
    /// Concurrent connections to one upstream; what is beyond waits in a queue.
    Maxconn(NonZeroU32) = "maxconn", BOTH, values::maxconn, ToString::to_string;
    /// How long a recovering upstream's weight takes to grow to its whole.
    Slowstart(Span) = "slowstart", BOTH, str::parse, ToString::to_string;
    /// `Strict-Transport-Security` on HTTPS answers.
    Hsts(Hsts) = "hsts", HTTP, str::parse, ToString::to_string;
    /// The PROXY protocol's version that upstreams expect.
    ProxyProtocol(ProxyProtocol) = "proxy-protocol", BOTH, str::parse, ToString::to_string;
    /// The HTTP version spoken to upstreams.
    Proto(Proto) = "proto", HTTP, str::parse, ToString::to_string;
    /// How an upstream's certificate is verified with `tls` `reencrypt`.
    Verify(Verify) = "verify", HTTP, str::parse, ToString::to_string;
    /// The server name sent to upstreams with `tls` `reencrypt`.
    Sni(Sni) = "sni", HTTP, str::parse, ToString::to_string;
    /// The operator's `defaults` section that the backend takes `from`.
    Profile(Profile) = "profile", BOTH, str::parse, ToString::to_string;
    /// The active colors.
    Active(Active) = "active", BOTH, str::parse, ToString::to_string;
    /// The networks that may reach a color by its name.
    Preview(Networks) = "preview", HTTP, str::parse, ToString::to_string;
}

impl Setting {
    /// Reads the value of the setting `name` of a service of kind `kind`. Blanks around it, a line feed among them, are
    /// no part of it.
    pub fn parse(kind: Kind, name: SettingName, value: &[u8]) -> Result<Self, Refusal> {
        if !name.kinds().contains(&kind) {
            return Err(Refusal::WrongKind(kind));
        }
        if name == SettingName::Sslpass {
            return Ok(Self::Sslpass(()));
        }
        if value.len() > LONGEST {
            return Err(Refusal::TooLong { length: value.len(), most: LONGEST });
        }
        let text = std::str::from_utf8(value).map_err(|_| Refusal::NotText)?.trim();
        if text.is_empty() {
            return Err(Refusal::Empty);
        }
        let setting = name.parse(text)?;
        match (kind, &setting) {
            (Kind::Tcp, Self::Tls(tls)) if !matches!(tls, Tls::Off | Tls::Terminate) => {
                Err(Refusal::unexpected(text, "off or terminate for a TCP service"))
            }
            (Kind::Tcp, Self::Balance(Balance::Uri)) => {
                Err(Refusal::unexpected(text, "roundrobin, leastconn, random or source for a TCP service"))
            }
            (Kind::Tcp, Self::Sticky(Sticky::Cookie)) => {
                Err(Refusal::unexpected(text, "off or source for a TCP service"))
            }
            _ => Ok(setting),
        }
    }
}

impl FromStr for SettingName {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let found = Self::ALL.iter().find(|name| name.as_str() == text);
        found.copied().ok_or_else(|| Refusal::unexpected(text, "the name of a setting"))
    }
}

impl fmt::Display for SettingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(name: &str, value: &str) -> Result<Setting, Refusal> {
        Setting::parse(Kind::Http, name.parse().unwrap(), value.as_bytes())
    }

    fn tcp(name: &str, value: &str) -> Result<Setting, Refusal> {
        Setting::parse(Kind::Tcp, name.parse().unwrap(), value.as_bytes())
    }

    #[test]
    fn lists_keep_their_order_and_refuse_doubles() {
        let Ok(Setting::Domain(domains)) = http("domain", "b.com, A.com\n*.c.com") else { panic!() };
        assert_eq!(domains.iter().map(ToString::to_string).collect::<Vec<_>>(), ["b.com", "a.com", "*.c.com"]);
        assert!(matches!(http("domain", "a.com A.COM"), Err(Refusal::Twice(_))));
        assert_eq!(http("domain", " \n"), Err(Refusal::Empty));
    }

    #[test]
    fn a_kind_has_its_own_settings() {
        assert_eq!(tcp("domain", "a.com"), Err(Refusal::WrongKind(Kind::Tcp)));
        assert_eq!(http("ports", "80"), Err(Refusal::WrongKind(Kind::Http)));
        assert!(tcp("tls", "both").is_err());
        assert!(tcp("tls", "terminate").is_ok());
        assert!(tcp("balance", "uri").is_err());
        assert!(tcp("sticky", "cookie").is_err());
    }

    #[test]
    fn sslpass_is_its_existence() {
        assert_eq!(http("sslpass", ""), Ok(Setting::Sslpass(())));
        assert_eq!(Setting::parse(Kind::Http, SettingName::Sslpass, b"\xff"), Ok(Setting::Sslpass(())));
    }

    #[test]
    fn size_and_encoding_are_looked_at_first() {
        assert!(matches!(http("domain", &"a".repeat(LONGEST + 1)), Err(Refusal::TooLong { .. })));
        assert_eq!(Setting::parse(Kind::Http, SettingName::Domain, b"\xff"), Err(Refusal::NotText));
    }
}
