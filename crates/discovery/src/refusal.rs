//! Why a value is refused, in words for a log line, a status page and the person who wrote it.

use std::fmt;

/// The reason why a key's value is not used. It names what is wrong and, where it helps, what to write instead; the key
/// is named by whoever reports it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The value is longer than anything that makes sense here.
    #[error("{length} bytes, at most {most} are read")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        most: usize,
    },
    /// The value is no text.
    #[error("not UTF-8 text")]
    NotText,
    /// The value has nothing in it.
    #[error("empty: delete the key to unset it")]
    Empty,
    /// A word that must be one of a few.
    #[error("{value}: expected {expected}")]
    Unexpected {
        /// What stands there.
        value: Excerpt,
        /// What may stand there.
        expected: &'static str,
    },
    /// A word that has to follow a rule.
    #[error("{value}: {rule}")]
    Malformed {
        /// What stands there.
        value: Excerpt,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// A JSON value that can't be read.
    #[error("JSON: {0}")]
    Json(Box<str>),
    /// A list says two different things of one name.
    #[error("{0} contradicts a word before it")]
    Contradiction(Excerpt),
    /// A setting that services of this kind don't have.
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

/// The first `most` characters of `text`, control characters escaped.
pub(crate) fn escape_text(text: &str, most: usize) -> String {
    let mut kept: String = text.chars().take(most).flat_map(char::escape_debug).collect();
    if text.chars().nth(most).is_some() {
        kept.push('…');
    }
    kept
}

/// A piece of somebody's value, made safe to print: quoted, control characters escaped, cut at a length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt(String);

impl Excerpt {
    /// Characters kept: enough to find the place, too few to flood a log.
    const LENGTH: usize = 60;

    /// Quotes, escapes and cuts `text`.
    pub fn new(text: &str) -> Self {
        Self(escape_text(text, Self::LENGTH))
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}
