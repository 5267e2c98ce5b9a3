//! What the operator's own files say, as far as the generated one has to know it. Pure: it reads text, not files.

use std::collections::{BTreeMap, BTreeSet};

use discovery::{Bind, Profile};

/// What stands in the operator's files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operator {
    /// First words of their `global` lines.
    pub global: BTreeSet<String>,
    /// Names of their sections that routing could meet: backends, frontends, listens.
    pub sections: Vec<String>,
    /// Their named `defaults`.
    pub profiles: Vec<Profile>,
    /// Ports they bind, with the section that does.
    pub ports: BTreeMap<u16, String>,
}

/// Words that begin a section (configuration manual, chapter 2.1 and the sections it lists).
const SECTIONS: [&str; 14] = [
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "peers",
    "resolvers",
    "mailers",
    "userlist",
    "cache",
    "program",
    "http-errors",
    "ring",
    "log-forward",
];

impl Operator {
    /// Reads the files' texts, in the order HAProxy reads them.
    pub fn of<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut operator = Self::default();
        for text in texts {
            let mut section = ("", "");
            for line in text.lines() {
                let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
                match words.as_slice() {
                    [kind, rest @ ..] if SECTIONS.contains(kind) => {
                        section = (kind, rest.first().copied().unwrap_or_default());
                        operator.open(section);
                    }
                    [keyword, ..] if section.0 == "global" => _ = operator.global.insert((*keyword).to_owned()),
                    ["bind", addresses, ..] => operator.bind(addresses, section),
                    _ => {}
                }
            }
        }
        operator
    }

    fn open(&mut self, (kind, name): (&str, &str)) {
        match kind {
            "defaults" => self.profiles.extend(name.parse::<Profile>().ok()),
            "frontend" | "backend" | "listen" => self.sections.push(name.to_owned()),
            _ => {}
        }
    }

    fn bind(&mut self, addresses: &str, (kind, name): (&str, &str)) {
        for address in addresses.split(',') {
            // `:80` is how HAProxy lets people write `*:80`.
            let address = if address.starts_with(':') { format!("*{address}") } else { address.to_owned() };
            if let Ok(bind) = address.parse::<Bind>() {
                self.ports.insert(bind.port, format!("{kind} {name} of the operator's files"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_matters() {
        let operator = Operator::of(["
global
    log 127.0.0.1 local0   # mine
    maxconn 10000
defaults
defaults slow
    timeout server 10m
frontend intern
    bind :8088,10.0.0.1:8089 ssl
    bind unix@/run/x
backend http-shop # not discovered
"]);
        assert_eq!(operator.global.iter().collect::<Vec<_>>(), ["log", "maxconn"]);
        assert_eq!(operator.sections, ["intern", "http-shop"]);
        assert_eq!(operator.profiles.iter().map(Profile::as_str).collect::<Vec<_>>(), ["slow"]);
        assert_eq!(operator.ports.keys().copied().collect::<Vec<_>>(), [8088, 8089]);
    }
}
