//! Makes foreign text harmless for a terminal and for a reader. Pure.
//!
//! A value in the store, a certificate's name or an error of HAProxy may contain anything. Printed as it is, a control
//! character starts a line or moves the cursor, a bidi override turns the order of the following text, and a zero-width
//! character makes two different names look alike. All of them are written as `\u{202e}`.

use std::borrow::Cow;
use std::error::Error;
use std::fmt::{self, Display, Write as _};

/// Escapes hidden characters and line breaks.
pub fn escape_line(text: &str) -> Cow<'_, str> {
    escape_except(text, |c| !is_hidden(c))
}

/// Escapes hidden characters, and keeps line breaks.
pub fn escape_lines(text: &str) -> Cow<'_, str> {
    escape_except(text, |c| c == '\n' || !is_hidden(c))
}

/// Escapes hidden characters in JSON as `\u202e`. The document stays the same: serde_json has escaped those of ASCII
/// except DEL, and the others occur only in strings.
pub fn escape_json(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| c >= '\x7f' && is_hidden(c)) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if c >= '\x7f' && is_hidden(c) {
            // JSON escapes UTF-16 units. A character beyond U+FFFF has two.
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// An error with its causes. A cause that the text before it names already is left out, because many errors name theirs.
pub fn describe_error(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

/// A text that displays in one line.
#[derive(Clone, Copy, Debug)]
pub struct OneLine<'a>(pub &'a str);

impl Display for OneLine<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&escape_line(self.0))
    }
}

fn escape_except(text: &str, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    if text.chars().all(&is_kept) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if is_kept(c) => escaped.push(c),
            // `\n` and `\t` by their names.
            c if c.is_ascii() => escaped.extend(c.escape_default()),
            c => escaped.extend(c.escape_unicode()),
        }
    }
    Cow::Owned(escaped)
}

/// True for a character that shows nothing, or that changes how others are shown: control characters, format characters
/// (bidi, zero width), separators of lines and words other than the blank, unassigned characters.
pub fn is_hidden(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    is_blank_by_name(c) || !is_printable(c)
}

/// True if `Debug` prints the character as it is: no control, format, private or unassigned character and no separator.
/// A letter stands before it, since `Debug` escapes a combining accent at the start.
fn is_printable(c: char) -> bool {
    let mut text = String::from("a");
    text.push(c);
    text.escape_debug().nth(1) == Some(c)
}

/// True for the characters that Unicode shows as nothing (`Default_Ignorable_Code_Point`) although they are letters or
/// marks, and for Braille's blank pattern.
fn is_blank_by_name(c: char) -> bool {
    matches!(c,
        '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{2800}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{e0100}'..='\u{e01ef}')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error whose text may name its cause.
    #[derive(Debug)]
    struct Chained(&'static str, Option<Box<Chained>>);

    impl Display for Chained {
        fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str(self.0)
        }
    }

    impl Error for Chained {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }

    #[test]
    fn a_cause_is_named_once() {
        let full = || Some(Box::new(Chained("disk full", None)));
        assert_eq!(describe_error(&Chained("can't write a: disk full", full())), "can't write a: disk full");
        let inner = Some(Box::new(Chained("can't write a", full())));
        assert_eq!(describe_error(&Chained("start", inner)), "start: can't write a: disk full");
    }

    /// One of each kind.
    const HIDDEN: [char; 24] = [
        '\0',
        '\t',
        '\n',
        '\r',
        '\x1b',
        '\x7f',
        '\u{80}',
        '\u{85}',
        '\u{9b}',
        '\u{a0}',
        '\u{ad}',
        '\u{34f}',
        '\u{61c}',
        '\u{200b}',
        '\u{200d}',
        '\u{200f}',
        '\u{202e}',
        '\u{2028}',
        '\u{2029}',
        '\u{2066}',
        '\u{feff}',
        '\u{3164}',
        '\u{e0001}',
        '\u{fff9}',
    ];

    #[test]
    fn a_line_shows_all_that_it_holds() {
        for c in HIDDEN {
            let text = format!("a{c}b");
            let line = escape_line(&text);
            assert!(line.starts_with("a\\") && line.ends_with('b'), "{c:?}: {line}");
            assert!(!line.chars().any(is_hidden), "{c:?}: {line}");
        }
        assert_eq!(escape_line("a\u{202e}b\u{9b}c\nd"), r"a\u{202e}b\u{9b}c\nd");
        assert_eq!(escape_lines("a\nb\u{2028}c"), "a\nb\\u{2028}c");
    }

    #[test]
    fn what_people_write_stays() {
        for text in [
            "shop-1.example.com:80",
            "größer",
            "e\u{301}té",
            "ไทย ภาษา",
            "हिन्दी",
            "日本語",
            "«\"it's\" \\»",
            "→ – …",
            "😀",
        ] {
            assert_eq!(escape_line(text), text);
            assert_eq!(escape_json(text), text);
        }
    }

    #[test]
    fn json_stays_the_same_document() {
        let value: String = HIDDEN.iter().collect();
        // As serde_json writes it: C0 escaped, the rest as it is.
        let c0 = |c: char| if c < ' ' { format!("\\u{:04x}", c as u32) } else { c.to_string() };
        let json = format!("{{\n  \"a\": \"{}\"\n}}", value.chars().map(c0).collect::<String>());
        let escaped = escape_json(&json);
        assert!(!escaped.chars().any(|c| c != '\n' && is_hidden(c)), "{escaped}");
        assert!(escaped.contains(r"\u202e") && escaped.contains(r"\udb40\udc01"), "{escaped}");
    }
}
