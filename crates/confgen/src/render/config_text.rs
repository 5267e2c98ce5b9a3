//! The text of haproxy.cfg in pieces. It shares the services' sections with the texts that are kept, so a new file copies none of them.
//! Pure: no I/O, no clock.

use std::fmt;
use std::sync::Arc;

/// The place of each group of sections in the template, in the order of the file. No value in the file can hold a NUL.
pub(super) const PLACES: [&str; 3] = ["\0http", "\0passthrough", "\0tcp"];

/// A text, as the pieces that make it up. Two texts are equal if their pieces are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigText {
    pieces: Vec<Arc<str>>,
}

impl ConfigText {
    /// Puts the sections of each group into its place. `frame` lacks the place of a group only if the group is empty.
    pub(super) fn from_frame(frame: &str, groups: [Vec<Arc<str>>; 3]) -> Self {
        let mut text =
            Self { pieces: Vec::with_capacity(groups.iter().map(Vec::len).sum::<usize>() + groups.len() + 1) };
        let mut rest = frame;
        for (place, sections) in PLACES.into_iter().zip(groups) {
            debug_assert!(sections.is_empty() || rest.contains(place), "the template lacks {place:?}");
            if let Some((before, after)) = rest.split_once(place) {
                text.push(before);
                text.pieces.extend(sections);
                rest = after;
            }
        }
        text.push(rest);
        text
    }

    /// Appends a piece.
    pub fn push(&mut self, piece: &str) {
        self.pieces.push(piece.into());
    }

    /// Ends the text with one line feed, without blanks before it.
    pub(super) fn end_line(&mut self) {
        // The last pieces are blank if the file has no TCP service.
        while let Some(last) = self.pieces.pop() {
            let words = last.trim_end();
            if !words.is_empty() {
                let is_ended = last.strip_suffix('\n') == Some(words);
                self.pieces.push(if is_ended { last } else { format!("{words}\n").into() });
                return;
            }
        }
        self.push("\n");
    }

    /// The texts of both between the pieces that both begin with and those that both end with.
    pub fn differing_pieces(&self, other: &Self) -> (String, String) {
        let (mine, theirs) = (self.pieces.as_slice(), other.pieces.as_slice());
        let is_same = |(one, two): &(&Arc<str>, &Arc<str>)| Arc::ptr_eq(one, two) || one == two;
        let head = mine.iter().zip(theirs).take_while(is_same).count();
        let (mine, theirs) = (mine.get(head..).unwrap_or_default(), theirs.get(head..).unwrap_or_default());
        let tail = mine.iter().rev().zip(theirs.iter().rev()).take_while(is_same).count();
        (
            mine.iter().take(mine.len() - tail).map(AsRef::as_ref).collect(),
            theirs.iter().take(theirs.len() - tail).map(AsRef::as_ref).collect(),
        )
    }

    /// The bytes of the pieces, one after another.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> + Clone {
        self.pieces.iter().map(|piece| piece.as_bytes())
    }
}

impl From<&str> for ConfigText {
    fn from(text: &str) -> Self {
        Self { pieces: vec![text.into()] }
    }
}

impl fmt::Display for ConfigText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pieces.iter().try_for_each(|piece| f.write_str(piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(sections: &[&str]) -> Vec<Arc<str>> {
        sections.iter().map(|section| Arc::from(*section)).collect()
    }

    #[test]
    fn pieces_that_both_texts_have_at_their_ends_do_not_differ() {
        let text = |pieces: &[&str]| ConfigText { pieces: group(pieces) };
        let differ = |one: &[&str], two: &[&str]| text(one).differing_pieces(&text(two));
        assert_eq!(differ(&["a", "b", "c"], &["a", "x", "c"]), ("b".into(), "x".into()));
        assert_eq!(differ(&["a", "c"], &["a", "b", "c"]), (String::new(), "b".into()));
        assert_eq!(differ(&["a", "a"], &["a"]), ("a".into(), String::new()));
        assert_eq!(differ(&["a"], &["a"]), (String::new(), String::new()));
        assert_eq!(differ(&[], &["a"]), (String::new(), "a".into()));
    }

    #[test]
    fn sections_come_into_their_places() {
        let frame = "global\n\0httpbackend x\n\0passthrough\0tcp";
        let text = ConfigText::from_frame(frame, [group(&["a\n", "b\n"]), group(&[]), group(&["c\n"])]);
        assert_eq!(text.to_string(), "global\na\nb\nbackend x\nc\n");
        let without = ConfigText::from_frame("global\n\0httpbackend x\n", [group(&["a\n"]), group(&[]), group(&[])]);
        assert_eq!(without.to_string(), "global\na\nbackend x\n");
    }

    #[test]
    #[should_panic(expected = "the template lacks")]
    fn sections_without_a_place_are_a_violation() {
        ConfigText::from_frame("global\n\0http", [group(&[]), group(&[]), group(&["c\n"])]);
    }

    #[test]
    fn a_text_ends_with_one_line_feed() {
        for (pieces, expected) in [
            (&["a\n"][..], "a\n"),
            (&["a"], "a\n"),
            (&["a\n\n", " \n", ""], "a\n"),
            (&["a\n", "b \n"], "a\nb\n"),
            (&["", " "], "\n"),
            (&[], "\n"),
        ] {
            let mut text = ConfigText { pieces: group(pieces) };
            text.end_line();
            assert_eq!(text.to_string(), expected, "{pieces:?}");
        }
        let section: Arc<str> = "a\n".into();
        let mut text = ConfigText { pieces: vec![Arc::clone(&section)] };
        text.end_line();
        assert!(Arc::ptr_eq(&section, &text.pieces[0]), "a section is not copied");
    }
}
