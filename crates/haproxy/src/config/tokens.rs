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
/// known. A variable that has several words as its value (`${NAME[*]}`) counts as unknown.
pub fn tokenize_with(line: &str, value: &dyn Fn(&str) -> Option<String>) -> Vec<ConfigWord> {
    let mut words = Vec::new();
    let mut chars = line.chars().peekable();
    loop {
        while chars.next_if(char::is_ascii_whitespace).is_some() {}
        // `#` opens a comment in mid-word too.
        if chars.peek().is_none_or(|next| *next == '#') {
            return words;
        }
        words.push(read_word(&mut chars, value));
    }
}

/// Reads one word from its first character on. The blank or `#` behind it is not consumed.
fn read_word(chars: &mut Peekable<Chars<'_>>, value: &dyn Fn(&str) -> Option<String>) -> ConfigWord {
    let mut word = ConfigWord::default();
    let mut quote = None;
    while let Some(next) = chars.next_if(|next| quote.is_some() || !(next.is_ascii_whitespace() || *next == '#')) {
        match (quote, next) {
            (Some(open), close) if open == close => quote = None,
            (None, '\'' | '"') => quote = Some(next),
            (None | Some('"'), '\\') => word.text.extend(chars.next()),
            // In single quotes, `$` and the backslash stand for themselves.
            (Some('"'), '$') => word.push_variable(chars, value),
            (_, plain) => word.text.push(plain),
        }
    }
    word
}

impl ConfigWord {
    /// Reads a variable behind its `$`: `NAME`, `{NAME}`, `{NAME-default}`.
    fn push_variable(&mut self, chars: &mut Peekable<Chars<'_>>, value: &dyn Fn(&str) -> Option<String>) {
        let in_braces = chars.next_if_eq(&'{').is_some();
        let mut name = String::new();
        let mut default = None;
        if in_braces {
            let mut inner = String::new();
            while let Some(next) = chars.next_if(|next| *next != '}' && *next != '"') {
                inner.push(next);
            }
            chars.next_if_eq(&'}');
            let (bare, rest) = inner.split_once('-').map_or((inner.as_str(), None), |(name, rest)| (name, Some(rest)));
            (name, default) = (bare.to_owned(), rest.map(str::to_owned));
        } else {
            while let Some(next) = chars.next_if(|next| next.is_ascii_alphanumeric() || *next == '_') {
                name.push(next);
            }
        }
        match value(&name) {
            Some(value) => self.text.push_str(&value),
            None => {
                self.has_unknown_variable = true;
                let default = default.map(|default| format!("-{default}")).unwrap_or_default();
                let written = if in_braces { format!("${{{name}{default}}}") } else { format!("${name}") };
                self.text.push_str(&written);
            }
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
            (r#""${PORT[*]}""#, "${PORT[*]}", true),
            ("'${PORT}'", "${PORT}", false),
            ("${PORT}", "${PORT}", false),
            (r#""${PORT"#, "80", false),
        ] {
            let found: Vec<(String, bool)> = texts(line);
            assert_eq!(found, expected(text, is_open), "{line}");
        }
    }
}
