//! A line of a configuration file, split into words (manual, section 2.2 "Quoting and escaping").

use std::iter::Peekable;
use std::str::Chars;

/// One word of a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Word {
    /// Without its quotes and backslashes. What comes from the environment stands in it by its name, as written.
    pub text: String,
    /// Whether something of the environment is in it, which only HAProxy knows.
    pub is_open: bool,
}

impl Word {
    /// The text, where it is known.
    pub fn known(&self) -> Option<&str> {
        (!self.is_open).then_some(self.text.as_str())
    }
}

/// The words of a line up to its comment.
pub fn words(line: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut chars = line.chars().peekable();
    loop {
        while chars.next_if(char::is_ascii_whitespace).is_some() {}
        // `#` opens a comment in mid-word too.
        if chars.peek().is_none_or(|next| *next == '#') {
            return words;
        }
        words.push(word(&mut chars));
    }
}

/// One word from its first character; blank, `#` and the end are left behind it.
fn word(chars: &mut Peekable<Chars<'_>>) -> Word {
    let mut word = Word::default();
    let mut quote = None;
    while let Some(next) = chars.next_if(|next| quote.is_some() || !(next.is_ascii_whitespace() || *next == '#')) {
        match (quote, next) {
            (Some(open), close) if open == close => quote = None,
            (None, '\'' | '"') => quote = Some(next),
            (None | Some('"'), '\\') => word.text.extend(chars.next()),
            (quote, plain) => {
                word.is_open |= quote == Some('"') && plain == '$';
                word.text.push(plain);
            }
        }
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(line: &str) -> Vec<String> {
        let shown = |word: Word| if word.is_open { format!("<{}>", word.text) } else { word.text };
        words(line).into_iter().map(shown).collect()
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
}
