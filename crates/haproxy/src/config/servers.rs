//! Finds the `server` lines of a configuration. Pure: it resolves no name and reads no file.

use std::collections::HashMap;
use std::net::IpAddr;

use super::SECTIONS;
use crate::config::tokens::{ConfigWord, tokenize};

/// A `server` line with an IP address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerLine {
    /// The name of the `backend` or `listen` section.
    pub backend: String,
    /// The server's name.
    pub server: String,
    /// The server's IP address.
    pub address: IpAddr,
    /// The server's port. 0 if the line has none.
    pub port: u16,
    /// True if the line, or its `default-server`, has `check` or `agent-check`, so that HAProxy finds out if the server
    /// is up.
    pub checked: bool,
}

/// Finds the `server` lines of a configuration text that name an IP address, in the file's order.
///
/// Host names, unix sockets, relative ports, templates and variables are passed over. Both branches of an `.if` count.
pub fn parse_servers(text: &str) -> Vec<ServerLine> {
    let mut reader = ServerReader::default();
    for line in text.lines() {
        let words = tokenize(line);
        reader.read_line(&words.iter().map(ConfigWord::known_text).collect::<Vec<_>>());
    }
    reader.servers
}

/// The section and the defaults that hold for the next line.
#[derive(Default)]
struct ServerReader {
    servers: Vec<ServerLine>,
    section: Section,
    /// True if a server of this section is checked by default.
    checked: bool,
    /// The value of `checked` in the last `defaults` section, and in each one that has a name.
    last_defaults: bool,
    named_defaults: HashMap<String, bool>,
}

#[derive(Default)]
enum Section {
    #[default]
    Other,
    Defaults(Option<String>),
    Backend(String),
}

impl ServerReader {
    fn read_line(&mut self, words: &[Option<&str>]) {
        match (words, &self.section) {
            ([Some("defaults"), rest @ ..], _) => {
                let name = rest.first().filter(|name| **name != Some("from")).and_then(|name| name.map(str::to_owned));
                self.open_section(Section::Defaults(name), rest);
            }
            ([Some("backend" | "listen"), Some(name), rest @ ..], _) => {
                self.open_section(Section::Backend((*name).to_owned()), rest);
            }
            ([Some(keyword), ..], _) if SECTIONS.contains(keyword) => self.open_section(Section::Other, &[]),
            ([Some("default-server"), options @ ..], section) => {
                self.checked = is_checked(options, self.checked);
                if let Section::Defaults(name) = section {
                    self.last_defaults = self.checked;
                    if let Some(name) = name {
                        self.named_defaults.insert(name.clone(), self.checked);
                    }
                }
            }
            ([Some("server"), Some(server), Some(address), options @ ..], Section::Backend(backend)) => {
                if let Some((address, port)) = parse_address(address) {
                    let (backend, server) = (backend.clone(), (*server).to_owned());
                    let checked = is_checked(options, self.checked);
                    self.servers.push(ServerLine { backend, server, address, port, checked });
                }
            }
            _ => {}
        }
    }

    /// Opens a section. Its line may end in `from NAME`. A `defaults` section without it starts from HAProxy's own
    /// defaults.
    fn open_section(&mut self, section: Section, words: &[Option<&str>]) {
        let from =
            words.iter().position(|word| *word == Some("from")).and_then(|at| words.get(at + 1)).copied().flatten();
        // A backend without `from` takes the last `defaults`, which may have a name.
        let unnamed = matches!(section, Section::Backend(_)) && self.last_defaults;
        self.checked = from.map_or(unnamed, |name| self.named_defaults.get(name).copied().unwrap_or_default());
        if let Section::Defaults(name) = &section {
            self.last_defaults = self.checked;
            if let Some(name) = name {
                self.named_defaults.insert(name.clone(), self.checked);
            }
        }
        self.section = section;
    }
}

fn is_checked(options: &[Option<&str>], default: bool) -> bool {
    // The last word counts, as in HAProxy.
    options.iter().fold(default, |checked, option| match option {
        Some("check" | "agent-check") => true,
        Some("no-check") => false,
        _ => checked,
    })
}

/// Parses an address of a `server` line. The last colon separates the port, with or without brackets.
fn parse_address(text: &str) -> Option<(IpAddr, u16)> {
    let text = text.strip_prefix("ipv4@").or_else(|| text.strip_prefix("ipv6@")).unwrap_or(text);
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (host, port.parse().ok()?),
        // A relative port, or a host name behind a prefix such as `unix@`.
        Some(_) => return None,
        None => (text, 0),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host.parse().ok()?, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        parse_servers(text).iter().map(|s| format!("{}/{} {} {}", s.backend, s.server, s.address, s.port)).collect()
    }

    #[test]
    fn finds_servers_by_section() {
        let text = "
global
    stats socket /run/x
backend http-app from careful   # its own
    balance roundrobin
    server one 10.0.0.1:8000 check
    server two [fd00::2]:8001 weight 3
listen tcp-db
    bind :3306
    server db 10.0.0.3
peers others
    server node 10.0.0.9:1024
frontend web
    bind :80
";
        assert_eq!(names(text), ["http-app/one 10.0.0.1 8000", "http-app/two fd00::2 8001", "tcp-db/db 10.0.0.3 0"]);
    }

    #[test]
    fn reads_addresses_as_haproxy_does() {
        let line = |address: &str| names(&format!("backend b\n server s {address}")).pop();
        assert_eq!(line("ipv4@10.0.0.1:80").as_deref(), Some("b/s 10.0.0.1 80"));
        assert_eq!(line("fd00::1:80").as_deref(), Some("b/s fd00::1 80"), "the last colon is the port's");
        for foreign in
            ["app.example:80", "10.0.0.1:+80", "unix@/run/x", "/run/x", "abns@x", "\"${APP}:80\"", "10.0.0.1:99999"]
        {
            assert_eq!(line(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn reads_words_as_haproxy_does() {
        assert_eq!(names("backend 'a'\n server \"s\" 10.0.0.1:80#comment"), ["a/s 10.0.0.1 80"]);
        assert_eq!(names("backend \"$NAME\"\n server s 10.0.0.1:80"), Vec::<String>::new());
        assert_eq!(names("server s 10.0.0.1:80\nbackend\nserver s 10.0.0.1:80"), Vec::<String>::new());
    }

    #[test]
    fn knows_which_are_checked() {
        let text = "
defaults careful
    default-server check inter 1s
backend a
    server s 10.0.0.1:1
    server t 10.0.0.1:2 no-check
defaults plain
    mode http
defaults child from careful
backend b from plain
    server s 10.0.0.1:1
    server t 10.0.0.1:2 weight 3 check
backend c
    server s 10.0.0.1:1
backend d from plain
    default-server agent-check
    server s 10.0.0.1:1
";
        let checked: Vec<_> =
            parse_servers(text).iter().map(|s| (format!("{}/{}", s.backend, s.server), s.checked)).collect();
        let expected = [("a/s", true), ("a/t", false), ("b/s", false), ("b/t", true), ("c/s", true), ("d/s", true)];
        assert_eq!(checked, expected.map(|(name, checked)| (name.to_owned(), checked)));
    }
}
