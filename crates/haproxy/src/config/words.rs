//! A line of a configuration file, split into words (manual, section 2.2 "Quoting and escaping").

use std::iter::Peekable;
use std::str::Chars;

/// The words of a line up to its comment; `None` for one that holds something of the environment.
pub(super) fn words(line: &str) -> Vec<Option<String>> {
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
fn word(chars: &mut Peekable<Chars<'_>>) -> Option<String> {
    let mut word = Some(String::new());
    let mut quote = None;
    while let Some(next) = chars.next_if(|next| quote.is_some() || !(next.is_ascii_whitespace() || *next == '#')) {
        match (quote, next) {
            (Some(open), close) if open == close => quote = None,
            (None, '\'' | '"') => quote = Some(next),
            (Some('"'), '$') => word = None,
            (None | Some('"'), '\\') => {
                if let (Some(word), Some(escaped)) = (&mut word, chars.next()) {
                    word.push(escaped);
                }
            }
            (_, plain) => {
                if let Some(word) = &mut word {
                    word.push(plain);
                }
            }
        }
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(line: &str) -> Vec<String> {
        words(line).into_iter().map(|word| word.unwrap_or_else(|| "<env>".to_owned())).collect()
    }

    #[test]
    fn splits_as_haproxy_does() {
        assert_eq!(all("  server one\t10.0.0.1:80  # c"), ["server", "one", "10.0.0.1:80"]);
        assert_eq!(all("a#b c"), ["a"]);
        assert_eq!(all(r#"'a b' "c d" e\ f g\#h"#), ["a b", "c d", "e f", "g#h"]);
        assert_eq!(all(r#"'$X' "$X" "\$X" $X"#), ["$X", "<env>", "$X", "$X"]);
        assert_eq!(all(r#""open 'quote"#), ["open 'quote"]);
        assert_eq!(all("\"$X\\"), ["<env>"]);
        assert_eq!(all(""), Vec::<String>::new());
    }
}
