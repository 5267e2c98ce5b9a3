//! The commands that may be sent to HAProxy. A hostile name can't add a command to them.

use std::fmt;
use std::str::FromStr;

/// One line of commands of the Runtime API.
///
/// It is made of fixed words, [`Word`]s and tokens. So it is a single line, and only this crate's own `;` separate
/// commands. HAProxy would take a line break as the end, `<<` as the beginning of a payload, and `\` as a quote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command(String);

impl Command {
    /// `show info`: the process that answers.
    pub fn show_info() -> Self {
        Self("show info".to_owned())
    }

    /// `show env NAME`: a variable of HAProxy's environment.
    pub fn show_env(name: &Word) -> Self {
        Self(format!("show env {name}"))
    }

    /// `show servers state`: every server with its state.
    pub fn show_servers_state() -> Self {
        Self("show servers state".to_owned())
    }

    /// `show servers state BACKEND`: one backend's servers.
    pub fn show_servers_state_of(backend: &Word) -> Self {
        Self(format!("show servers state {backend}"))
    }

    /// `show servers conn`: connections in use for each server.
    pub fn show_servers_conn() -> Self {
        Self("show servers conn".to_owned())
    }

    /// `show stat -1 7 -1`: frontends (1), backends (2) and servers (4) of all proxies, with all that is counted.
    pub fn show_stat() -> Self {
        Self("show stat -1 7 -1".to_owned())
    }

    /// `show sess`: all streams of the process.
    pub fn show_streams() -> Self {
        Self("show sess".to_owned())
    }

    /// `show info;show stat -1 2 -1`: the process, and all backends (2) without their servers.
    pub fn show_backends() -> Self {
        Self("show info;show stat -1 2 -1".to_owned())
    }

    /// `show info;show stat ID 6 -1;…`: the process, and these backends (2) with their servers (4).
    pub fn show_servers_of(backends: &[u32]) -> Self {
        let commands = backends.iter().map(|id| format!("show stat {id} 6 -1"));
        Self(["show info".to_owned()].into_iter().chain(commands).collect::<Vec<_>>().join(";"))
    }

    /// `show proc`: on a master's socket, the processes it looks after.
    pub fn show_proc() -> Self {
        Self("show proc".to_owned())
    }

    /// `show map`: the paths of all maps.
    pub fn show_maps() -> Self {
        Self("show map".to_owned())
    }

    /// `show map PATH`: one map's entries.
    pub fn show_map(path: &super::Token) -> Self {
        Self(format!("show map {path}"))
    }

    /// `show ssl cert`: the paths of all certificates' files.
    pub fn show_certificate_files() -> Self {
        Self("show ssl cert".to_owned())
    }

    /// `show ssl cert PATH` of each path, in one line.
    pub fn show_certificates(paths: &[super::Token]) -> Self {
        let commands: Vec<String> = paths.iter().map(|path| format!("show ssl cert {path}")).collect();
        Self(commands.join(";"))
    }

    /// `show ssl crt-list -n PATH`: a list of certificates, with its lines' numbers.
    pub fn show_crt_list(path: &super::Token) -> Self {
        Self(format!("show ssl crt-list -n {path}"))
    }

    /// Makes a line of commands. The caller has to make it of words and tokens alone.
    pub(super) fn from_line(line: String) -> Self {
        let command = Self(line);
        command.check_invariants();
        command
    }

    fn check_invariants(&self) {
        debug_assert_eq!(self.find_broken_rule(), None, "{self}");
    }

    /// Finds the first rule that the command breaks. `None` if it keeps them all.
    fn find_broken_rule(&self) -> Option<&'static str> {
        let rules = [
            ("a command is one line", !self.0.contains(['\n', '\r'])),
            ("a payload begins only at a command's end", !self.0.strip_suffix("<<").unwrap_or(&self.0).contains("<<")),
            ("a command quotes nothing", !self.0.contains(['\\', '"', '\''])),
        ];
        rules.into_iter().find(|(_, holds)| !holds).map(|(rule, _)| rule)
    }

    /// Addresses the command to one worker, over its master's socket. The worker answers after a soft stop too.
    #[must_use]
    pub fn to_worker(&self, pid: u32) -> Self {
        // `@!` takes a process id, and reaches old workers too. `@1` is the current worker only.
        Self(format!("@!{pid} {}", self.0))
    }

    /// True for a command to one worker.
    pub(crate) fn is_to_worker(&self) -> bool {
        self.0.starts_with("@!")
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One word of a command: 1 to 530 bytes of `[A-Za-z0-9_.:/-]`.
///
/// No such byte has a meaning on HAProxy's command line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Word(String);

/// The error of a text that can't be a word of a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` can't be a word of a Runtime API command: letters, digits and `_.:/-` only")]
pub struct NotAWord(String);

impl Word {
    /// The longest word in bytes. The longest name is that of a preview's backend. It is made of a service's and a
    /// color's name, 253 bytes each at most, and what this project puts before and between.
    const LONGEST: usize = 530;

    /// The word as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Word {
    type Err = NotAWord;

    fn from_str(text: &str) -> Result<Self, NotAWord> {
        if (1..=Self::LONGEST).contains(&text.len()) && text.bytes().all(is_word_byte) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAWord(text.chars().take(80).collect()))
        }
    }
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_.:/-".contains(&byte)
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_can_hold_nothing_that_haproxy_reads() {
        for hostile in ["", "a b", "a;b", "a\nb", "a\rb", "a\\", "<<", "a\t", "é", "\"a\"", "@1", "\0"] {
            assert!(hostile.parse::<Word>().is_err(), "{hostile:?}");
        }
        assert!("x".repeat(600).parse::<Word>().is_err());
        assert_eq!(Command::show_env(&"CONFGEN_GEN".parse().unwrap()).to_string(), "show env CONFGEN_GEN");
    }

    #[test]
    fn a_command_that_breaks_a_rule_is_found() {
        for (line, rule) in [
            ("show env A\nshutdown sessions server a/b", "a command is one line"),
            ("set ssl cert << a <<", "a payload begins only at a command's end"),
            ("show env a\\", "a command quotes nothing"),
        ] {
            assert_eq!(Command(line.to_owned()).find_broken_rule(), Some(rule), "{line:?}");
        }
        assert_eq!(Command("show info;set ssl cert a.pem <<".to_owned()).find_broken_rule(), None);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "a command is one line")]
    fn a_broken_rule_ends_a_debug_build() {
        Command::from_line("show info\nshow stat".to_owned());
    }

    #[test]
    fn a_worker_is_addressed_by_its_pid() {
        let command = Command::show_info().to_worker(42);
        assert_eq!(command.to_string(), "@!42 show info");
        assert!(command.is_to_worker() && !Command::show_info().is_to_worker());
    }
}
