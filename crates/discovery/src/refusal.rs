//! Reasons why a value is refused, for a log line, a page and the writer of the value. Pure: no I/O, no clock.

use std::fmt;

/// The reason why a key's value is not used. It names the fault and, where that helps, a value that would be read. The
/// caller names the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The value is longer than anything that makes sense here.
    #[error("{length} bytes, at most {limit} are read")]
    TooLong {
        /// The value's length in bytes, from before [`crate::Entry::with_bounded_value`] cut it.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The value is no UTF-8 text.
    #[error("not UTF-8 text")]
    NotText,
    /// The value is empty, or has only blanks.
    #[error("empty: delete the key to unset it")]
    Empty,
    /// The word is none of the few that the setting takes.
    #[error("{value}: expected {expected}")]
    Unexpected {
        /// The word, escaped and cut.
        value: Excerpt,
        /// The words that the setting takes.
        expected: &'static str,
    },
    /// The word breaks a rule.
    #[error("{value}: {rule}")]
    Malformed {
        /// The word, escaped and cut.
        value: Excerpt,
        /// The rule, or the way to correct the word.
        rule: &'static str,
    },
    /// The value is no JSON, or has a field of another type.
    #[error("JSON: {0}")]
    Json(Box<str>),
    /// A list says two different things of one name.
    #[error("{0} contradicts a word before it")]
    Contradiction(Excerpt),
    /// Services of this kind don't have the setting.
    #[error("{0} services have no such setting")]
    WrongKind(crate::Kind),
}

impl Refusal {
    pub(crate) fn new_malformed(value: &str, rule: &'static str) -> Self {
        Self::Malformed { value: Excerpt::new(value), rule }
    }

    pub(crate) fn new_unexpected(value: &str, expected: &'static str) -> Self {
        Self::Unexpected { value: Excerpt::new(value), expected }
    }
}

/// The first `limit` characters of `text`, control characters escaped. `…` stands for the rest.
pub(crate) fn escape_text(text: &str, limit: usize) -> String {
    // `Debug`'s escapes also show bidi and zero-width characters, which would make a log line read as another one.
    let mut escaped: String = text.chars().take(limit).flat_map(char::escape_debug).collect();
    if text.chars().nth(limit).is_some() {
        escaped.push('…');
    }
    escaped
}

/// A piece of a stored value that is safe to print: quoted, control characters escaped, cut at a length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt(String);

impl Excerpt {
    /// The most characters: enough to find the place in the value, too few to flood a log.
    const LENGTH: usize = 60;

    /// Escapes and cuts `text`. `Display` adds the quotes.
    pub fn new(text: &str) -> Self {
        Self(escape_text(text, Self::LENGTH))
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}
