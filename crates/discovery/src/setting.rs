//! The settings of a service: one key and one type for each. Pure: no I/O, no clock.
//!
//! To add a setting, add a line to the table `settings!`, and a type in `values` if none fits (CONTRIBUTING.md).

mod values;

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

pub use values::{
    Active, Balance, Check, Hsts, HttpCheck, Method, Proto, ProxyProtocol, Sni, StatusRange, Sticky, Tls, Verify,
};

use crate::store::{LONGEST_SETTING, value_length};
use crate::{Bind, Domain, Kind, Networks, PathPrefix, Profile, Refusal, Span, UrlRegex, words};

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

            /// The kinds of services that have the setting.
            pub fn kinds(self) -> &'static [Kind] {
                match self {
                    $(Self::$variant => $kinds,)*
                }
            }

            fn parse_value(self, text: &str) -> Result<Setting, Refusal> {
                match self {
                    $(Self::$variant => {
                        let parse: fn(&str) -> Result<$type, Refusal> = $parse;
                        parse(text).map(Setting::$variant)
                    })*
                }
            }
        }

        /// A setting's value. It prints as `etcdctl put` would write it, and reads back as itself.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Setting {
            $($(#[$doc])* $variant($type),)*
        }

        impl Setting {
            /// The setting that this is a value of.
            pub fn name(&self) -> SettingName {
                match self {
                    $(Self::$variant(_) => SettingName::$variant,)*
                }
            }
        }

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
    /// The hosts that the service answers for, at least one. The first names the service to people.
    Domain(Vec<Domain>) = "domain", HTTP, words::parse_list, |list| words::join_words(list);
    /// The path prefixes that the service answers for. Without it, all paths.
    Path(Vec<PathPrefix>) = "path", HTTP, words::parse_list, |list| words::join_words(list);
    /// A regular expression on path and query, from the legacy layout.
    UrlReg(UrlRegex) = "url_reg", HTTP, str::parse, ToString::to_string;
    /// The binds of a TCP service.
    Ports(Vec<Bind>) = "ports", TCP, words::parse_list, |list| words::join_words(list);
    /// The use of TLS towards clients and upstreams.
    Tls(Tls) = "tls", BOTH, str::parse, ToString::to_string;
    /// The legacy layout's `tls` `passthrough`. The key's existence counts, its value does not.
    Sslpass(()) = "sslpass", HTTP, |_| Ok(()), |()| String::new();
    /// The rule by which HAProxy spreads requests.
    Balance(Balance) = "balance", BOTH, str::parse, ToString::to_string;
    /// HAProxy's check of an upstream.
    Check(Check) = "check", BOTH, str::parse, ToString::to_string;
    /// The way in which a client stays with its upstream.
    Sticky(Sticky) = "sticky", BOTH, str::parse, ToString::to_string;
    /// The client networks that may come in. Without it, all clients.
    Allow(Networks) = "allow", BOTH, str::parse, ToString::to_string;
    /// The most connections to one upstream at a time. HAProxy queues the rest.
    Maxconn(NonZeroU32) = "maxconn", BOTH, values::parse_maxconn, ToString::to_string;
    /// The time in which a recovering upstream's weight grows to its full value.
    Slowstart(Span) = "slowstart", BOTH, str::parse, ToString::to_string;
    /// `Strict-Transport-Security` on HTTPS answers.
    Hsts(Hsts) = "hsts", HTTP, str::parse, ToString::to_string;
    /// The PROXY protocol's version that upstreams expect.
    ProxyProtocol(ProxyProtocol) = "proxy-protocol", BOTH, str::parse, ToString::to_string;
    /// The HTTP version that HAProxy speaks to upstreams.
    Proto(Proto) = "proto", HTTP, str::parse, ToString::to_string;
    /// The verification of upstreams' certificates with `tls` `reencrypt`.
    Verify(Verify) = "verify", HTTP, str::parse, ToString::to_string;
    /// The server name that HAProxy sends to upstreams with `tls` `reencrypt`.
    Sni(Sni) = "sni", HTTP, str::parse, ToString::to_string;
    /// The operator's `defaults` section that the backend takes `from`.
    Profile(Profile) = "profile", BOTH, str::parse, ToString::to_string;
    /// The active colors with their shares.
    Active(Active) = "active", BOTH, str::parse, ToString::to_string;
    /// The client networks that may reach a color by its name.
    Preview(Networks) = "preview", HTTP, str::parse, ToString::to_string;
}

/// A setting's value as the store has it: readable as a whole, in parts, or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSetting {
    /// The value of the readable words, or the reason why there is none.
    pub value: Result<Setting, Refusal>,
    /// The reason why some words are ignored while the others count. `None` if all count, or none.
    pub refused_words: Option<Box<str>>,
}

impl StoredSetting {
    fn refused(refusal: Refusal) -> Self {
        Self { value: Err(refusal), refused_words: None }
    }
}

impl SettingName {
    /// True if a bad word costs only that word, and the others count.
    ///
    /// `domain`, `path` and `ports` ask for less without one of their words. `allow` and `preview` decide access, and
    /// `active` shares out a whole. Half of such a value is another rule than the one that was written.
    pub fn counts_word_by_word(self) -> bool {
        matches!(self, Self::Domain | Self::Path | Self::Ports)
    }
}

/// The most refusals that one reason names. A value of 16 kB has room for thousands of bad words.
const REFUSALS_LISTED: usize = 8;

impl Setting {
    /// Reads a value of the store. If the words of the setting count one by one, good ones count beside bad ones. A
    /// writer uses [`Setting::parse`], which takes the whole value or nothing.
    pub fn parse_stored(kind: Kind, name: SettingName, value: &[u8]) -> StoredSetting {
        let refusal = match Self::parse(kind, name, value) {
            Ok(setting) => return StoredSetting { value: Ok(setting), refused_words: None },
            Err(refusal) => refusal,
        };
        if !name.counts_word_by_word() || matches!(refusal, Refusal::TooLong { .. } | Refusal::WrongKind(_)) {
            return StoredSetting::refused(refusal);
        }
        // A value in Latin-1 costs only the words with other bytes than ASCII: U+FFFD is in no good word.
        let text = String::from_utf8_lossy(value);
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for word in words::split_words(&text) {
            match Self::parse(kind, name, word.as_bytes()) {
                Ok(_) => good.push(word),
                Err(refusal) => bad.push(refusal.to_string()),
            }
        }
        if good.is_empty() {
            return StoredSetting::refused(refusal);
        }
        let value = Self::parse(kind, name, good.join(" ").as_bytes());
        StoredSetting { value, refused_words: Some(list_refusals(bad).into()) }
    }

    /// Reads the value of the setting `name` of a service of kind `kind`. Blanks and line feeds around it are no part of it.
    pub fn parse(kind: Kind, name: SettingName, value: &[u8]) -> Result<Self, Refusal> {
        if !name.kinds().contains(&kind) {
            return Err(Refusal::WrongKind(kind));
        }
        // Before the checks of the text: this key counts whatever its value is.
        if name == SettingName::Sslpass {
            return Ok(Self::Sslpass(()));
        }
        let length = value_length(value);
        if length > LONGEST_SETTING {
            return Err(Refusal::TooLong { length, limit: LONGEST_SETTING });
        }
        let text = std::str::from_utf8(value).map_err(|_| Refusal::NotText)?.trim();
        if text.is_empty() {
            return Err(Refusal::Empty);
        }
        let setting = name.parse_value(text)?;
        match (kind, &setting) {
            (Kind::Tcp, Self::Tls(tls)) if !matches!(tls, Tls::Off | Tls::Terminate) => {
                Err(Refusal::new_unexpected(text, "off or terminate for a TCP service"))
            }
            // Both need an HTTP request, and a TCP service has none.
            (Kind::Tcp, Self::Balance(Balance::Uri)) => {
                Err(Refusal::new_unexpected(text, "roundrobin, leastconn, random or source for a TCP service"))
            }
            (Kind::Tcp, Self::Sticky(Sticky::Cookie)) => {
                Err(Refusal::new_unexpected(text, "off or source for a TCP service"))
            }
            _ => Ok(setting),
        }
    }
}

/// One reason for all refused words, with the first [`REFUSALS_LISTED`] of them.
fn list_refusals(mut refusals: Vec<String>) -> String {
    let more = refusals.len().saturating_sub(REFUSALS_LISTED);
    refusals.truncate(REFUSALS_LISTED);
    let more = if more > 0 { format!("; and {more} more words") } else { String::new() };
    format!("{}{more}; the other words count", refusals.join("; "))
}

impl SettingName {
    /// The settings whose values no log and no history may show. No setting is secret so far.
    const SECRET: &[Self] = &[];

    /// True if the setting's value must stay out of logs and histories.
    pub fn is_secret(self) -> bool {
        Self::SECRET.contains(&self)
    }
}

impl FromStr for SettingName {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let found = Self::ALL.iter().find(|name| name.as_str() == text);
        found.copied().ok_or_else(|| Refusal::new_unexpected(text, "the name of a setting"))
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
    fn lists_keep_their_order_and_merge_doubles() {
        let Ok(Setting::Domain(domains)) = http("domain", "b.com, A.com\n*.c.com") else { panic!() };
        assert_eq!(domains.iter().map(ToString::to_string).collect::<Vec<_>>(), ["b.com", "a.com", "*.c.com"]);
        for (name, doubles, once) in [
            ("domain", "a.com A.COM a.com.,*.b.com *.B.com", "a.com *.b.com"),
            ("path", "/api /api/ /", "/api /"),
            ("allow", "10.0.0.0/8 10.1.2.3/8 ::1 ::1/128", "10.0.0.0/8 ::1/128"),
            ("preview", "10.0.0.1,10.0.0.1", "10.0.0.1/32"),
            ("active", "blue blue", "blue"),
            ("active", "blue=9 green=1 blue=9", "blue=9 green=1"),
        ] {
            assert_eq!(http(name, doubles).unwrap().to_string(), once);
        }
        assert_eq!(tcp("ports", "3306 *:3306").unwrap().to_string(), "*:3306");
        assert!(matches!(http("active", "blue=9 blue=1"), Err(Refusal::Contradiction(_))), "which of them?");
        assert_eq!(http("domain", " \n"), Err(Refusal::Empty));
    }

    #[test]
    fn a_bad_word_costs_that_word_where_less_is_safe() {
        for (kind, name, written, read, told) in [
            (Kind::Http, "domain", "shop.test,shop.test:8080", "shop.test", "`shop.test:8080`: leave the port out"),
            (Kind::Http, "domain", "https://shop.test/ a.test", "a.test", "`https://shop.test/`: leave `https://` out"),
            (Kind::Http, "domain", "a.test; b.test\r\n", "b.test", "`a.test;`: "),
            (Kind::Http, "domain", "caf\u{fffd}.test a.test", "a.test", "punycode"),
            (Kind::Http, "path", "/api admin /a;b", "/api", "`admin`: a path begins with `/`"),
            (Kind::Tcp, "ports", "mysql 3306, 3307-3309", "*:3306", "`mysql`: a bind is a port"),
        ] {
            let it = Setting::parse_stored(kind, name.parse().unwrap(), written.as_bytes());
            assert_eq!(it.value.unwrap().to_string(), read, "{written}");
            let unread = it.refused_words.unwrap();
            assert!(unread.contains(told) && unread.ends_with("; the other words count"), "{unread}");
            let whole = Setting::parse(kind, name.parse().unwrap(), written.as_bytes());
            assert!(whole.is_err(), "who writes it now is told: {written}");
        }
        let latin1 = Setting::parse_stored(Kind::Http, SettingName::Domain, b"caf\xe9.test a.test");
        assert_eq!(latin1.value.unwrap().to_string(), "a.test");
        for (name, half) in [("allow", "10.0.0.0/8 everybody"), ("preview", "10.0.0.0/8 x"), ("active", "blue gr/een")]
        {
            let it = Setting::parse_stored(Kind::Http, name.parse().unwrap(), half.as_bytes());
            assert!(it.value.is_err() && it.refused_words.is_none(), "{name} is never half");
        }
        let none = Setting::parse_stored(Kind::Http, SettingName::Domain, b"shop.test:80 https://shop.test");
        assert!(none.value.is_err() && none.refused_words.is_none());
        let many = format!("a.test {}", "x/ ".repeat(1_000));
        let told = Setting::parse_stored(Kind::Http, SettingName::Domain, many.as_bytes()).refused_words.unwrap();
        assert!(told.ends_with("; and 992 more words; the other words count") && told.len() < 1_000, "{told}");
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
    fn size_and_encoding_are_checked_first() {
        assert!(matches!(http("domain", &"a".repeat(LONGEST_SETTING + 1)), Err(Refusal::TooLong { .. })));
        assert_eq!(Setting::parse(Kind::Http, SettingName::Domain, b"\xff"), Err(Refusal::NotText));
    }
}
