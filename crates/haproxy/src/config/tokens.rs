//! Splits a line of a configuration file into words (manual, section 2.2 "Quoting and escaping"). Pure: it reads no
//! variable by itself.

use std::iter::Peekable;
use std::str::Chars;

/// One word of a configuration line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigWord {
    /// The text without its quotes and backslashes. A variable without a known value stays as it is written: `${PORT}`.
    pub text: String,
    /// True if the text has such a variable in it.
    pub has_unknown_variable: bool,
}

impl ConfigWord {
    /// The text. `None` if a variable without a known value is in it.
    pub fn known_text(&self) -> Option<&str> {
        (!self.has_unknown_variable).then_some(self.text.as_str())
    }
}

/// Splits a line into words, up to its comment. Every variable counts as unknown.
pub fn tokenize(line: &str) -> Vec<ConfigWord> {
    tokenize_with(line, &|_| None)
}

/// Splits a line into words, up to its comment. `value` gives the value of an environment variable, `None` if it is not
/// known.
pub fn tokenize_with(line: &str, value: &dyn Fn(&str) -> Option<String>) -> Vec<ConfigWord> {
    let mut words = Vec::new();
    let mut chars = line.chars().peekable();
    loop {
        while chars.next_if(|next| is_blank(*next)).is_some() {}
        // `#` opens a comment in mid-word too.
        if chars.peek().is_none_or(|next| *next == '#') {
            return words;
        }
        read_word(&mut chars, value, &mut words);
    }
}

/// The offset of the `#` that opens a line's comment. `None` if the line has no comment.
pub fn find_comment(line: &str) -> Option<usize> {
    let mut chars = line.chars().peekable();
    loop {
        while chars.next_if(|next| is_blank(*next)).is_some() {}
        if *chars.peek()? == '#' {
            return Some(line.len() - chars.map(char::len_utf8).sum::<usize>());
        }
        read_word(&mut chars, &|_| None, &mut Vec::new());
    }
}

/// True for a character that separates words: C's `isspace`, which has the vertical tab too.
fn is_blank(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}

/// Reads one word from its first character on. The blank or `#` behind it is not consumed. A variable may give several
/// words: `"${NAME[*]}"`.
fn read_word(chars: &mut Peekable<Chars<'_>>, value: &dyn Fn(&str) -> Option<String>, words: &mut Vec<ConfigWord>) {
    let mut word = ConfigWord::default();
    let mut quote = None;
    while let Some(next) = chars.next_if(|next| quote.is_some() || !(is_blank(*next) || *next == '#')) {
        match (quote, next) {
            (Some(open), close) if open == close => quote = None,
            (None, '\'' | '"') => quote = Some(next),
            (None | Some('"'), '\\') => word.push_escaped(chars, quote.is_some()),
            // In single quotes, `$` and the backslash stand for themselves.
            (Some('"'), '$') => word.push_variable(&Variable::read(chars), value, words),
            (_, plain) => word.text.push(plain),
        }
    }
    words.push(word);
}

impl ConfigWord {
    /// Adds the character that a backslash and the characters behind it stand for. HAProxy keeps a backslash that escapes
    /// nothing, and reads the next character as ever. HAProxy refuses `\x` without two digits.
    fn push_escaped(&mut self, chars: &mut Peekable<Chars<'_>>, is_quoted: bool) {
        let Some(next) = chars.next_if(|next| "nrtx \\#'\"".contains(*next) || is_quoted && *next == '$') else {
            self.text.push('\\');
            return;
        };
        match next {
            'n' => self.text.push('\n'),
            'r' => self.text.push('\r'),
            't' => self.text.push('\t'),
            'x' => {
                let mut next_digit = || chars.next_if(char::is_ascii_hexdigit)?.to_digit(16);
                let code = next_digit().zip(next_digit()).and_then(|(high, low)| char::from_u32(high * 16 + low));
                self.text.extend(code);
            }
            plain => self.text.push(plain),
        }
    }

    /// Adds a variable's value. If the value counts as several words, all but the last go to `words`.
    fn push_variable(
        &mut self,
        variable: &Variable,
        value: &dyn Fn(&str) -> Option<String>,
        words: &mut Vec<ConfigWord>,
    ) {
        let Some(value) = value(&variable.name) else {
            self.has_unknown_variable = true;
            self.text.push_str(&variable.written);
            return;
        };
        if !variable.is_list {
            self.text.push_str(&value);
            return;
        }
        for (number, part) in value.split(is_blank).enumerate() {
            // HAProxy takes several blanks for one.
            if number > 0 && !self.text.is_empty() {
                words.push(std::mem::take(self));
            }
            self.text.push_str(part);
        }
    }
}

/// A variable as a line names it: `NAME`, `{NAME}`, `{NAME-default}`, `{NAME[*]}`.
struct Variable {
    name: String,
    /// The value counts as a list of words, separated by blanks.
    is_list: bool,
    /// The text in the line, with its `$`.
    written: String,
}

impl Variable {
    /// Reads a variable behind its `$`.
    fn read(chars: &mut Peekable<Chars<'_>>) -> Self {
        let mut inner = String::new();
        if chars.next_if_eq(&'{').is_some() {
            while let Some(next) = chars.next_if(|next| *next != '}' && *next != '"') {
                inner.push(next);
            }
            chars.next_if_eq(&'}');
            let bare = inner.split_once('-').map_or(inner.as_str(), |(bare, _)| bare);
            let name = bare.strip_suffix("[*]").unwrap_or(bare);
            Self { name: name.to_owned(), is_list: name != bare, written: format!("${{{inner}}}") }
        } else {
            while let Some(next) = chars.next_if(|next| next.is_ascii_alphanumeric() || *next == '_') {
                inner.push(next);
            }
            Self { written: format!("${inner}"), name: inner, is_list: false }
        }
    }
}

#[cfg(test)]
mod tests;
