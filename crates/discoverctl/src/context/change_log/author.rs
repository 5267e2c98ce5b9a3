//! The author of a change: this process's user, host and command line.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use clap::{Args as _, Command};
use discovery::{Author, SettingName};
use nix::unistd::{Uid, User, gethostname};
use program::variable;

use crate::shared_options::Common;

/// Names the user, the host and the command.
pub(super) fn find_author() -> Author {
    let uid = Uid::current();
    // sudo names its caller. Any other process could set the variable, so only root's counts.
    let caller = variable::read("SUDO_USER").filter(|_| uid.is_root()).and_then(|name| name.into_string().ok());
    let user = caller.filter(|name| !name.is_empty()).or_else(|| Some(User::from_uid(uid).ok()??.name));
    let host = gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    Author {
        user: user.unwrap_or_else(|| format!("uid {uid}")),
        host,
        command: describe_command(std::env::args_os().skip(1)),
        reason: None,
    }
    .bounded()
}

/// A number that no other process has. The standard library takes the keys of its hash maps from the system's random numbers.
pub(super) fn random() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}

/// Writes the command line without the options that every command has, which may hold a password, without `--reason`, and
/// without the value of a secret setting.
fn describe_command(args: impl IntoIterator<Item = OsString>) -> String {
    // clap knows which options every command has, so that a new one that holds a secret needs no line here.
    let (options, mut shorts) = (Common::augment_args(Command::new("")), BTreeSet::new());
    let mut longs = BTreeSet::from(["--reason".to_owned()]);
    for option in options.get_arguments() {
        longs.extend(option.get_long().map(|name| format!("--{name}")));
        shorts.extend(option.get_short().map(|name| format!("-{name}")));
    }
    let mut words = vec!["discoverctl".to_owned()];
    let mut args = args.into_iter().map(|word| word.to_string_lossy().into_owned());
    while let Some(word) = args.next() {
        let (name, has_value) = word.split_once('=').map_or((word.as_str(), false), |(name, _)| (name, true));
        if longs.contains(name) {
            if !has_value {
                args.next();
            }
        } else if let Some(short) = word.get(..2).filter(|short| shorts.contains(*short)) {
            // `-ojson` and `-o json` are the same.
            if word == short {
                args.next();
            }
        } else {
            words.push(word);
        }
    }
    hide_secret(&mut words);
    words.iter().map(|word| quote_word(word)).collect::<Vec<_>>().join(" ")
}

/// Cuts `set SVC KEY VALUE…` behind the name of a secret setting.
fn hide_secret(words: &mut Vec<String>) {
    // Only a value of `set` can be secret. A service may be called as a setting is.
    let secret = words.iter().position(|word| word.parse::<SettingName>().is_ok_and(SettingName::is_secret));
    if let Some(at) = secret.filter(|_| words.get(1).is_some_and(|word| word == "set")) {
        words.truncate(at + 1);
        words.push("…".to_owned());
    }
}

/// Quotes a word as a shell needs it.
fn quote_word(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_-./:=,%@+…".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(line: &[&str]) -> String {
        describe_command(line.iter().map(OsString::from))
    }

    #[test]
    fn a_command_has_no_password() {
        let line =
            ["--user", "root:secret", "set", "shop", "balance", "random", "--password=secret", "-o", "json", "-ojson"];
        assert_eq!(described(&line), "discoverctl set shop balance random");
        let line =
            ["set", "--endpoints", "http://a:1", "--create", "--reason", "a b", "tcp-db", "ports", "3306", "*:80"];
        assert_eq!(described(&line), "discoverctl set --create tcp-db ports 3306 '*:80'");
        assert_eq!(described(&["rollback", "shop", "--reason=it's bad", "7"]), "discoverctl rollback shop 7");
    }

    #[test]
    fn words_are_quoted_as_a_shell_needs_it() {
        assert_eq!(quote_word("a b"), "'a b'");
        assert_eq!(quote_word("it's"), r"'it'\''s'");
        assert_eq!(quote_word(""), "''");
        assert_eq!(quote_word("shop/node-1"), "shop/node-1");
    }
}
