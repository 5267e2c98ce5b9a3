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
            (None | Some('"'), '\\') => word.push_escaped(chars),
            // In single quotes, `$` and the backslash stand for themselves.
            (Some('"'), '$') => word.push_variable(&Variable::read(chars), value, words),
            (_, plain) => word.text.push(plain),
        }
    }
    words.push(word);
}

impl ConfigWord {
    /// Adds the character that a backslash and the characters behind it stand for. HAProxy keeps a backslash that escapes
    /// nothing, and refuses `\x` without two digits.
    fn push_escaped(&mut self, chars: &mut Peekable<Chars<'_>>) {
        match chars.next() {
            Some('n') => self.text.push('\n'),
            Some('r') => self.text.push('\r'),
            Some('t') => self.text.push('\t'),
            Some('x') => {
                let mut next_digit = || chars.next_if(char::is_ascii_hexdigit)?.to_digit(16);
                let code = next_digit().zip(next_digit()).and_then(|(high, low)| char::from_u32(high * 16 + low));
                self.text.extend(code);
            }
            Some(plain @ (' ' | '\\' | '#' | '\'' | '"' | '$')) => self.text.push(plain),
            Some(other) => self.text.extend(['\\', other]),
            None => {}
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
mod tests {
    use super::*;

    fn all(line: &str) -> Vec<String> {
        let shown = |word: ConfigWord| if word.has_unknown_variable { format!("<{}>", word.text) } else { word.text };
        tokenize(line).into_iter().map(shown).collect()
    }

    #[test]
    fn splits_as_haproxy_does() {
        assert_eq!(all("  server one\t10.0.0.1:80  # c"), ["server", "one", "10.0.0.1:80"]);
        assert_eq!(all("a#b c"), ["a"]);
        assert_eq!(all(r#"'a b' "c d" e\ f g\#h"#), ["a b", "c d", "e f", "g#h"]);
        assert_eq!(all(r#"'$X' "$X" "\$X" $X"#), ["$X", "<$X>", "$X", "$X"]);
        assert_eq!(all(r#""${A B}:80""#), ["<${A B}:80>"]);
        assert_eq!(all(r#""open 'quote"#), ["open 'quote"]);
        assert_eq!(all("\"$X\\"), ["<$X>"]);
        assert_eq!(all(""), Vec::<String>::new());
        assert_eq!(all("\x0bbind\x0b:80\x0c"), ["bind", ":80"]);
        assert_eq!(all(r#"bind :\x38\x30 "\x2a:80" '\x38' \d \xz"#), ["bind", ":80", "*:80", r"\x38", r"\d", "z"]);
        assert_eq!(all(r"a\tb\nc"), ["a\tb\nc"]);
    }

    #[test]
    fn a_variable_is_replaced_where_its_value_is_known() {
        let value = |name: &str| (name == "PORT").then(|| "80".to_owned());
        let texts = |line: &str| {
            tokenize_with(line, &value).into_iter().map(|word| (word.text, word.has_unknown_variable)).collect()
        };
        let expected = |text: &str, is_open| vec![(text.to_owned(), is_open)];
        for (line, text, is_open) in [
            (r#""*:${PORT}""#, "*:80", false),
            (r#""*:$PORT,:81""#, "*:80,:81", false),
            (r#""*:${PORT-81}""#, "*:80", false),
            (r#""${HOST}:${PORT}""#, "${HOST}:80", true),
            (r#""${HOST-10.0.0.1}:80""#, "${HOST-10.0.0.1}:80", true),
            (r#""${PORT[*]}""#, "80", false),
            (r#""${PORTS[*]}""#, "${PORTS[*]}", true),
            ("'${PORT}'", "${PORT}", false),
            ("${PORT}", "${PORT}", false),
            (r#""${PORT"#, "80", false),
        ] {
            let found: Vec<(String, bool)> = texts(line);
            assert_eq!(found, expected(text, is_open), "{line}");
        }
    }

    #[test]
    fn a_variable_may_be_several_words() {
        let value = |name: &str| (name == "LIST").then(|| " :80  :81 ".to_owned());
        let texts = |line: &str| tokenize_with(line, &value).into_iter().map(|word| word.text).collect::<Vec<_>>();
        assert_eq!(texts(r#"bind "${LIST[*]}ssl" x"#), ["bind", ":80", ":81", "ssl", "x"]);
        assert_eq!(texts(r#"bind "${LIST}""#), ["bind", " :80  :81 "]);
    }
}
