//! What may be said to HAProxy.

use std::fmt;
use std::str::FromStr;

/// One command of the Runtime API.
///
/// Made from fixed words and [`Word`]s alone, so it is a single line and a single command: `;`
/// separates commands, a line break ends them, `<<` opens a payload, `\` quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command(String);

impl Command {
    /// `show info`: who answers.
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

    /// `show proc`: on a master's socket, the processes it looks after.
    pub fn show_proc() -> Self {
        Self("show proc".to_owned())
    }

    /// `show map`: the maps.
    pub fn show_maps() -> Self {
        Self("show map".to_owned())
    }

    /// `show map PATH`: one map's entries.
    pub fn show_map(path: &super::Token) -> Self {
        Self(format!("show map {path}"))
    }

    /// Changes, made of words and tokens alone.
    pub(super) fn changes(line: String) -> Self {
        Self(line)
    }

    /// The same command for one worker, asked through its master's socket. It is answered after a soft stop too.
    #[must_use]
    pub fn to_worker(&self, pid: u32) -> Self {
        Self(format!("@!{pid} {}", self.0))
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One word of a command: at least one of `[A-Za-z0-9_.:/-]`, at most 260.
///
/// Nothing in it means anything to HAProxy's command line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Word(String);

/// The text can't be a word of a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` can't be a word of a Runtime API command: letters, digits and `_.:/-` only")]
pub struct NotAWord(String);

impl Word {
    /// Longer than any name HAProxy takes from us: a backend's has at most 258 bytes with its prefix.
    const LONGEST: usize = 260;

    /// The word itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Word {
    type Err = NotAWord;

    fn from_str(text: &str) -> Result<Self, NotAWord> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/-".contains(&byte);
        if (1..=Self::LONGEST).contains(&text.len()) && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAWord(text.chars().take(80).collect()))
        }
    }
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
        assert!("x".repeat(300).parse::<Word>().is_err());
        assert_eq!(Command::show_env(&"CONFGEN_GEN".parse().unwrap()).to_string(), "show env CONFGEN_GEN");
    }

    #[test]
    fn a_worker_is_addressed_by_its_pid() {
        assert_eq!(Command::show_info().to_worker(42).to_string(), "@!42 show info");
    }
}
